"""Counts and summaries of what is stored, for a transfer that compares before it reads rows whole."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from ..contract.bulk_rows import RowKind
from . import queries
from .checkpoints.queries import summaries_of_checkpoints
from .corruption import READ_ERRORS
from .documents.counting import count_pipeline, counted
from .documents.row_summaries import PROJECTIONS, RowSummary, summary_of_document
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


async def has_rows(storage: MongoStorage, kind: RowKind) -> bool:
    """Whether there is any stored row of a kind other than events."""
    collection = storage.driver.collection(storage.config.collection_prefix + _COLLECTIONS[kind])
    return bool(await collection.find({}, sort=(("_id", 1),), limit=1, projection=["_id"]))


async def summaries_of_rows(
    storage: MongoStorage, kind: RowKind, ids: Sequence[str]
) -> dict[str, RowSummary]:
    """The summaries of the rows with these ids, but of those that cannot be read; of any kind but events."""
    collection = storage.driver.collection(storage.config.collection_prefix + _COLLECTIONS[kind])
    pipeline = queries.parts_of_documents(ids, PROJECTIONS[kind])
    with long_running():
        found = await collection.aggregate(pipeline, batch_size=len(ids) + 1)
    summaries: dict[str, RowSummary] = {}
    for document in found:
        with contextlib.suppress(*READ_ERRORS):  # its row is read whole, which reports the error
            summaries[document["_id"]] = summary_of_document(kind, document)
    return summaries


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
