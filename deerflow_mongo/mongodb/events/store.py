"""Run events: reads, follows and deletes them. `writer.py` numbers and stores them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack

from bson import ObjectId, Timestamp

from ...contract import arguments
from ...contract.actor import BoundActor, UserId, current_actor
from ...contract.capabilities import Following
from ...contract.errors import (
    ArgumentValueError,
    CorruptDocumentError,
    PayloadTooLargeError,
    StorageUnavailableError,
    ThreadAccessError,
)
from ...contract.protocols import RunEventStore
from ...contract.rows import MAX_COUNT, RunEventFields, RunEventRow
from ...contract.run_event_fields import checked_event, checked_events
from ...contract.statuses import is_ending
from ...contract.times import clock
from .. import queries
from ..documents.changes import change_pipeline
from ..documents.counting import count_pipeline, counted
from ..documents.encoding import Document
from ..documents.run_events import (
    ONCE,
    VISIBLE_AI_TYPES,
    document_size_bytes,
    encoded_event,
    event_row,
    last_visible_seq_pipeline,
    last_visible_seqs,
    tombstone_update,
)
from ..documents.runs import EXPECTED_RUNS
from ..documents.stored_times import time_fields
from ..drivers.changes import Changes
from ..drivers.collection import Collection, Sort
from ..drivers.errors import DRIVER_ERRORS, MAX_DOCUMENT_BYTES, translate
from ..drivers.time_limit import shared_limit
from ..observation import BackgroundObserver
from ..row_collection import RowCollection
from ..schema import RUN_EVENTS, SEQ_FALLING, SEQ_RISING
from .backlog import Backlog
from .batch import Batch, EventExistsError
from .following import MAX_FOLLOWERS, NewEventFeed, Page, Position, copied_row
from .numbers import TOMBSTONE_LIFETIME, HadRetention, ThreadNumbers, utc_now
from .thread_access import ThreadOwners
from .writer import EventWriter

_NUMBERS_BYTES = 64
"""What `seq` and `stored_at` may add to a document's size, which is checked before they are set."""
CLOSE_TIMEOUT_S = 10.0
_DELETION_PAUSE_S = 0.1
_BY_ID = (("_id", 1),)
_FOLLOW_PAGE = 500
_ERASED_AT_ONCE = 5_000
"""Events of one command: some 100 ms of the server."""
_FEED_CLOSE_TIMEOUT_S = 0.5

OpenChanges: TypeAlias = Callable[[list[Document]], AbstractAsyncContextManager[Changes]]

_Found = TypeVar("_Found")


class EventCounts(TypedDict):
    """What a store counts: backlog and followers as they are now, and tries that were repeated."""

    backlog_events: int
    backlog_size_bytes: int
    backlog_waiting_calls: int
    followers: int
    write_retries: int
    deletion_retries: int


def _now() -> Document:
    """The fields of an event's time that is now."""
    return time_fields("created_at", clock.stamp_us())


def _size_bytes(position: int | None, document: Document) -> int:
    """The document's size. Raises `PayloadTooLargeError`, which names its largest field.

    `position` is that in its batch, None for the only one of a call.
    """
    try:
        size_bytes = document_size_bytes(document) + _NUMBERS_BYTES
    except DRIVER_ERRORS as error:
        raise translate(error, written=document) from error
    if size_bytes > MAX_DOCUMENT_BYTES:
        name = max(("content", "metadata"), key=lambda part: document_size_bytes({"": document[part]}))
        part_bytes = document_size_bytes({"": document[name]})
        place = name if position is None else f"events[{position}].{name}"
        raise PayloadTooLargeError(place, part_bytes, MAX_DOCUMENT_BYTES)
    return size_bytes


def _mark_retrieved(permit: asyncio.Future[None]) -> None:
    """An error that nobody waits for any more is not reported by the event loop."""
    if not permit.cancelled():
        permit.exception()


class MongoRunEventStore(RunEventStore, Following):
    """`RunEventStore` on MongoDB.

    How long a call takes where the server does not answer, with T the `timeout_ms` of the storage: `put` and
    `put_batch` end within 3 T, one of which they wait for room in the backlog at most, the deletions within
    4 T and `put_if_absent` within 5 T. A batch larger than one unit may take longer, as long as each part of
    it is stored within 2 T.
    """

    def __init__(
        self,
        events: Collection,
        committed: Collection,
        runs: Collection,
        owners: ThreadOwners,
        had_retention: HadRetention,
        open_changes: OpenChanges,
        timeout_ms: int,
    ) -> None:
        """One collection with two sets of options: `committed` returns only what no failover can roll back.

        So does `runs`. `open_changes` opens a change stream of the database.
        """
        self._rows = RowCollection(committed, RUN_EVENTS, event_row)
        self._events = events
        self._committed = committed
        self._runs = runs
        self._owners = owners
        self._timeout_s = timeout_ms / 1000
        pipeline = change_pipeline(events.name, runs.name)
        self._feed = NewEventFeed(lambda: open_changes(pipeline), self._followed_page, MAX_FOLLOWERS)
        self._backlog = Backlog(self._timeout_s)
        self._deletion_retries = 0
        numbers = ThreadNumbers(events, had_retention)
        self._writer = EventWriter(events, committed, numbers, self._backlog, self._timeout_s)

    # Writing.

    async def put_batch(self, events: Sequence[RunEventFields]) -> list[RunEventRow]:
        given, now = checked_events(events), _now()
        return [
            self._rows.row(item) for item in await self._put([encoded_event(event, now) for event in given])
        ]

    async def put(self, **event: Unpack[RunEventFields]) -> RunEventRow:
        [stored] = await self._put([encoded_event(checked_event(event), _now())])
        return self._rows.row(stored)

    async def put_if_absent(self, **event: Unpack[RunEventFields]) -> tuple[RunEventRow, bool]:
        document: Document = {**encoded_event(checked_event(event), _now()), ONCE: True}
        self._backlog.check_open()
        try:
            [stored] = await self._put([dict(document)])
        except EventExistsError as exists:
            return self._rows.row(exists.document), False
        return self._rows.row(stored), stored["_id"] == document["_id"]

    async def _put(self, documents: list[Document]) -> list[Document]:
        """The stored documents, in the order of those given."""
        sizes = [_size_bytes(i if len(documents) > 1 else None, item) for i, item in enumerate(documents)]
        if not documents:
            return []
        self._events.check_owner()
        positions: dict[str, list[int]] = {}
        for position, document in enumerate(documents):
            positions.setdefault(document["thread_id"], []).append(position)
        batches = {
            thread_id: Batch([documents[i] for i in places], [sizes[i] for i in places])
            for thread_id, places in positions.items()
        }
        actor = current_actor()
        await self._backlog.enter(batches)
        permit = self._permit(positions, actor)
        waiting: list[asyncio.Future[list[Document]]] = []
        for thread_id, batch in batches.items():
            batch.permit = permit
            waiting.append(self._writer.accept(thread_id, batch))
        if len(waiting) == 1:
            return await waiting[0]
        stored = list(documents)
        for places, numbered in zip(positions.values(), await asyncio.gather(*waiting), strict=True):
            for position, document in zip(places, numbered, strict=True):
                stored[position] = document
        return stored

    def _permit(self, thread_ids: Iterable[str], actor: BoundActor | None) -> asyncio.Future[None] | None:
        """The check of the actor's access, to be awaited before a write; None without an actor."""
        if actor is None:
            return None
        permit = asyncio.ensure_future(self._check_access(list(thread_ids), actor))
        permit.add_done_callback(_mark_retrieved)
        return permit

    async def _check_access(self, thread_ids: list[str], actor: BoundActor) -> None:
        refused = await self._owners.first_refused(thread_ids, actor)
        if refused is not None:
            raise ThreadAccessError(refused, "append events to")

    # Reading.

    async def list_messages(
        self,
        thread_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        query = queries.messages_of_thread(thread_id)
        queries.owned(query, user_id, "RunEventStore.list_messages")
        return await self._page(query, limit, before_seq, after_seq)

    async def list_messages_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        query = queries.messages_of_run(thread_id, run_id)
        queries.owned(query, user_id, "RunEventStore.list_messages_by_run")
        return await self._page(query, limit, before_seq, after_seq)

    async def list_events(
        self,
        thread_id: str,
        run_id: str,
        *,
        event_types: Sequence[str] | None = None,
        task_id: str | None = None,
        limit: int = 500,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        types = arguments.names("event_types", event_types)
        query = queries.of_task(queries.events_of_run(thread_id, run_id, *(types or ())), task_id)
        queries.between(query, after_seq=arguments.sequence_number("after_seq", after_seq), before_seq=None)
        queries.owned(query, user_id, "RunEventStore.list_events")
        rows = arguments.row_limit("limit", limit)
        if types == []:
            return []
        return await self._list(query, SEQ_RISING, rows)

    async def list_thread_events(
        self, thread_id: str, *, run_id: str | None = None, after_seq: int = 0, limit: int = 500
    ) -> list[RunEventRow]:
        after = arguments.sequence_number("after_seq", after_seq)
        query = queries.events_after(thread_id, run_id, after)
        return await self._list(query, SEQ_RISING, arguments.row_limit("limit", limit))

    async def get_last_visible_ai_seq_by_run(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = None
    ) -> dict[str, int]:
        wanted = arguments.identifiers("run_ids", run_ids)
        query = queries.of_runs(queries.of_thread(thread_id), wanted)
        query = queries.messages_of_type(query, VISIBLE_AI_TYPES)
        queries.owned(query, user_id, "RunEventStore.get_last_visible_ai_seq_by_run")
        if not wanted:
            return {}
        self._events.check_owner()
        reading = self._committed.aggregate_few(last_visible_seq_pipeline(query), rows=EXPECTED_RUNS)
        return last_visible_seqs(await self._if_allowed(query["thread_id"], current_actor(), reading))

    async def count_messages(self, thread_id: str, *, user_id: UserId = None) -> int:
        query = queries.messages_of_thread(thread_id)
        queries.owned(query, user_id, "RunEventStore.count_messages")
        self._events.check_owner()
        counting = self._committed.aggregate_few(count_pipeline(query))
        return counted(await self._if_allowed(query["thread_id"], current_actor(), counting))

    async def _page(
        self, query: Document, limit: int, before_seq: int | None, after_seq: int | None
    ) -> list[RunEventRow]:
        rows = arguments.row_limit("limit", limit)
        after = arguments.sequence_number("after_seq", after_seq)
        queries.between(
            query, after_seq=after, before_seq=arguments.sequence_number("before_seq", before_seq)
        )
        found = await self._list(query, SEQ_FALLING if after is None else SEQ_RISING, rows)
        return found[::-1] if after is None else found

    async def _list(self, query: Document, sort: Sort, limit: int) -> list[RunEventRow]:
        if limit == 0:
            return []
        self._events.check_owner()
        reading = self._rows.find(query, sort=sort, limit=limit)
        return await self._if_allowed(query["thread_id"], current_actor(), reading)

    async def _if_allowed(
        self, thread_id: str, actor: BoundActor | None, reading: Coroutine[Any, Any, list[_Found]]
    ) -> list[_Found]:
        """What is read, or nothing of another user's thread. Both reads are sent at the same time."""
        if actor is None:
            return await reading
        refused, found = await asyncio.gather(self._owners.first_refused([thread_id], actor), reading)
        return [] if refused is not None else found

    # Following.

    @property
    def max_followers(self) -> int:
        return MAX_FOLLOWERS

    async def follow(
        self,
        thread_id: str,
        *,
        run_id: str | None = None,
        after_seq: int = 0,
        until_run_ends: bool = False,
    ) -> AsyncGenerator[RunEventRow]:
        thread_id = arguments.identifier("thread_id", thread_id)
        run_id = None if run_id is None else arguments.identifier("run_id", run_id)
        after = arguments.sequence_number("after_seq", after_seq) or 0
        if arguments.flag("until_run_ends", until_run_ends) and run_id is None:
            raise ArgumentValueError("until_run_ends needs a run_id")
        self._events.check_owner()
        follower = self._feed.join(thread_id, run_id, after, until_run_ends=until_run_ends)
        try:
            while True:
                page = await follower.next_page(current_actor())
                for row in page.rows:
                    yield copied_row(row)
                if page.run_has_ended:
                    return
        finally:
            follower.leave()

    async def _followed_page(self, position: Position, as_of: Timestamp | None, *, check_run: bool) -> Page:
        # The status is read first: what was stored before the run ended is then in the page.
        status = await self._run_status(position.run_id, as_of) if check_run else None
        has_ended = status is not None and is_ending(status)
        query = queries.events_after(position.thread_id, position.run_id, position.after_seq)
        # Nothing is read after the end: a new primary has all events of before, and perhaps not yet in its
        # majority.
        events = self._events if has_ended else self._committed
        reading = events.find_as_of(query, sort=SEQ_RISING, limit=_FOLLOW_PAGE, as_of=as_of)
        found = await self._if_allowed(position.thread_id, position.actor, reading)
        return Page(
            self._rows.rows(found),
            last_seq=+found[-1]["seq"] if found else position.after_seq,
            is_full=len(found) == _FOLLOW_PAGE,
            run_is_stored=not check_run or status is not None,
            run_has_ended=has_ended,
        )

    async def _run_status(self, run_id: str | None, as_of: Timestamp | None) -> str | None:
        """The run's status; None if it is not stored."""
        found = await self._runs.find_as_of(
            queries.run_by_id(run_id), sort=_BY_ID, limit=1, projection=["status"], as_of=as_of
        )
        if not found:
            return None
        status = found[0].get("status")
        if not isinstance(status, str):
            raise CorruptDocumentError(self._runs.name, found[0]["_id"], "status", "is not text")
        return status

    # Deleting.

    async def delete_by_thread(self, thread_id: str, *, user_id: UserId = None) -> int:
        query = queries.events_of_thread(thread_id)
        return await self._delete(queries.owned(query, user_id, "RunEventStore.delete_by_thread"))

    async def delete_by_run(self, thread_id: str, run_id: str, *, user_id: UserId = None) -> int:
        query = queries.events_of_run(thread_id, run_id)
        return await self._delete(queries.owned(query, user_id, "RunEventStore.delete_by_run"))

    async def _delete(self, query: Document) -> int:
        self._events.check_owner()
        actor = current_actor()
        if actor is not None and await self._owners.first_refused([query["thread_id"]], actor) is not None:
            return 0
        return await self._bury(query["thread_id"], queries.deletable_events(query))

    async def erase(self, query: queries.Query) -> int:
        """Delete these events of one thread in batches, also broken ones, whoever the actor is."""
        self._events.check_owner()
        thread_id, deleted, after_seq, up_to_seq = query["thread_id"], 0, -1, -1
        while up_to_seq < MAX_COUNT:
            rest = queries.deletable_events(query, after_seq=after_seq)
            up_to_seq = await self._last_of_batch(rest)
            batch = queries.deletable_events(query, after_seq=after_seq, up_to_seq=up_to_seq)
            deleted += await self._bury(thread_id, batch)
            after_seq = up_to_seq
        return deleted + await self._events.delete_many(queries.events_without_number(query))

    async def _last_of_batch(self, query: queries.Query) -> int:
        """The number that ends a batch of these events; the highest possible one if all are one batch."""
        found = await self._events.find(
            query, sort=SEQ_RISING, limit=1, skip=_ERASED_AT_ONCE - 1, projection=("seq",)
        )
        return found[0]["seq"] if found else MAX_COUNT

    async def _bury(self, thread_id: str, query: queries.Query) -> int:
        """Make tombstones of these events by one command; the number of events."""
        # A driver does not repeat an update of many documents. Here the tombstones of all tries carry one id,
        # by which they are counted where the answer of a try was lost.
        deletion = ObjectId()
        deadline = time.monotonic() + self._timeout_s
        tries = 0
        while True:
            tries += 1
            try:
                with shared_limit(self._timeout_s):
                    last_seq = await self._writer.last_seq(thread_id)
                    update = tombstone_update(last_seq, utc_now() + TOMBSTONE_LIFETIME, deletion)
                    deleted = await self._events.update_many(query, update)
                    if tries > 1:
                        left = count_pipeline(queries.events_of_deletion(thread_id, deletion))
                        deleted = counted(await self._events.aggregate(left))
            except StorageUnavailableError:
                if time.monotonic() >= deadline:
                    raise
                self._deletion_retries += 1
                await asyncio.sleep(_DELETION_PAUSE_S)
            else:
                return deleted

    # What was accepted and is not stored yet.

    def observe_background(self, observer: BackgroundObserver) -> None:
        """Report group commits and reads for followers to the observer."""
        self._writer.observe = self._feed.observe = observer

    def counts(self) -> EventCounts:
        """Of this moment, or since the storage was opened; sends no command."""
        return {
            "backlog_events": self._backlog.events,
            "backlog_size_bytes": self._backlog.size_bytes,
            "backlog_waiting_calls": self._backlog.waiting_calls,
            "followers": self._feed.followers,
            "write_retries": self._writer.retries,
            "deletion_retries": self._deletion_retries,
        }

    @property
    def backlog(self) -> int:
        """The number of events that were accepted and are not stored yet."""
        return self._backlog.events

    async def flush(self) -> None:
        """Return when every event accepted so far is stored or has failed; its caller got the outcome."""
        self._events.check_owner()
        await self._backlog.flush()

    async def aclose(self, timeout_s: float = CLOSE_TIMEOUT_S) -> int:
        """Accept nothing more and write what was accepted; the number of events that could not be written.

        Their callers get a `StorageUnavailableError`, and the number is logged at ERROR. Followers end at
        once.
        """
        self._events.check_owner()
        self._feed.close()
        closing = self._writer.close(timeout_s), self._feed.closed(_FEED_CLOSE_TIMEOUT_S)
        lost, _ = await asyncio.gather(*closing)
        return lost
