"""Counts and summaries of what is stored, for a transfer that compares before it reads rows whole."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ..contract.bulk_rows import RowKind
from . import queries
from .bulk.queries import last_numbers
from .checkpoints.queries import summaries_of_checkpoints
from .corruption import READ_ERRORS
from .documents.counting import count_pipeline, counted
from .documents.encoding import Document
from .documents.row_summaries import PROJECTIONS, RowSummary, summary_of_document
from .drivers.time_limit import long_running
from .schema import CHECKPOINTS, EVENTS_OF_RUNS, FEEDBACK, RUN_EVENTS, RUNS, THREADS, USERS
from .storage import MongoStorage

_COLLECTIONS: dict[RowKind, str] = {
    "users": USERS,
    "threads": THREADS,
    "runs": RUNS,
    "feedback": FEEDBACK,
    "run_events": RUN_EVENTS,
}


_OF_LAST_EVENT: Final = ("seq", "created_at", "user_id")


class StoredEvents(NamedTuple):
    """Of one thread: its events, the highest number, and the time and user of the event that has it."""

    events: int
    last_seq: int
    last_at: datetime
    """In UTC, cut to the millisecond."""
    last_user: str | None


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
    summaries = {document["_id"]: _summary(kind, document) for document in found}
    return {each: summary for each, summary in summaries.items() if summary is not None}


def _summary(kind: RowKind, document: Document) -> RowSummary | None:
    """None for a document that cannot be read: its row is read whole, which reports the error."""
    try:
        return summary_of_document(kind, document)
    except READ_ERRORS:
        return None


async def events_of_threads(storage: MongoStorage, thread_ids: Sequence[str]) -> dict[str, StoredEvents]:
    """What is stored of these threads' events; a thread whose last number is no event's is left out."""
    collection = storage.driver.collection(storage.config.collection_prefix + RUN_EVENTS)
    counts, last = queries.counts_of_events(thread_ids), last_numbers(thread_ids, _OF_LAST_EVENT)
    options = {"batch_size": len(thread_ids) + 1}
    with long_running():
        counted_by_thread = await collection.aggregate(counts, hint=EVENTS_OF_RUNS.name, **options)
        last_of_thread = {each["_id"]: each for each in await collection.aggregate(last, **options)}
    found: dict[str, StoredEvents] = {}
    for document in counted_by_thread:
        thread_id, events, last_seq = document["_id"], document["events"], document["last_seq"]
        event = last_of_thread.get(thread_id, {})
        if event.get("seq") == last_seq and isinstance(event["created_at"], datetime):
            last_at = event["created_at"].replace(tzinfo=UTC)
            found[thread_id] = StoredEvents(int(events), int(last_seq), last_at, event["user_id"])
    return found


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
