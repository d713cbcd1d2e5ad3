"""Counts of what is stored, for a transfer that compares before it reads. No row is read or changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from ..contract.bulk_rows import RowKind
from . import queries
from .checkpoints.queries import summaries_of_checkpoints
from .documents.counting import count_pipeline, counted
from .drivers.time_limit import long_running
from .schema import CHECKPOINTS, FEEDBACK, RUN_EVENTS, RUNS, THREADS, USERS
from .storage import MongoStorage

_COLLECTIONS: dict[RowKind, str] = {
    "users": USERS,
    "threads": THREADS,
    "runs": RUNS,
    "feedback": FEEDBACK,
    "run_events": RUN_EVENTS,
}


class StoredEvents(NamedTuple):
    """Of one thread: its events, how many of them have a user, the highest number and the newest time."""

    events: int
    with_user: int
    last_seq: int
    newest: datetime
    """In UTC, cut to the millisecond."""


class StoredCheckpoints(NamedTuple):
    """Of one thread, in all namespaces."""

    checkpoints: int
    last_id: str
    writes: int


async def count_rows(storage: MongoStorage, kind: RowKind) -> int:
    """The number of stored rows of a kind."""
    collection = storage.driver.collection(storage.config.collection_prefix + _COLLECTIONS[kind])
    with long_running():
        return counted(await collection.aggregate(count_pipeline(queries.all_rows(kind))))


async def events_of_threads(storage: MongoStorage, thread_ids: Sequence[str]) -> dict[str, StoredEvents]:
    """What is stored of these threads' events; a thread without events is left out."""
    collection = storage.driver.collection(storage.config.collection_prefix + RUN_EVENTS)
    with long_running():
        found = await collection.aggregate(queries.summaries_of_events(thread_ids), batch_size=1_000)
    return {
        document["_id"]: StoredEvents(
            int(document["events"]),
            int(document["with_user"]),
            int(document["last_seq"]),
            document["newest"].replace(tzinfo=UTC),
        )
        for document in found
        if isinstance(document["newest"], datetime) and isinstance(document["last_seq"], int)
    }


async def checkpoints_of_threads(
    storage: MongoStorage, thread_ids: Sequence[str]
) -> dict[str, StoredCheckpoints]:
    """What is stored of these threads' checkpoints; a thread without any is left out."""
    collection = storage.driver.collection(storage.config.collection_prefix + CHECKPOINTS)
    with long_running():
        found = await collection.aggregate(summaries_of_checkpoints(thread_ids), batch_size=1_000)
    return {
        document["_id"]: StoredCheckpoints(
            int(document["checkpoints"]), document["last_id"], int(document["writes"])
        )
        for document in found
        if document["checkpoints"]
    }
