"""Numbers run events and stores them: all batches that wait for one thread in one write (group commit).

How a number is found. The unique index (thread_id, seq) decides; nothing is locked and no counter is kept. A
process remembers the last number of a thread it writes to, takes the next ones and inserts. If another
process was faster, the server refuses, and the rest is renumbered after a fresh look. As every insert stands
right behind a document that is there already, no number appears after a greater one was seen.

How long a remembered number is good. `TRUST_S`, five minutes. A deletion leaves stubs, which keep the deleted
numbers taken for a day, and retention removes nothing younger than a day: within its trust a process can only
be told "taken", never be given a number again. `stored_at` never falls within a thread, so retention removes
its events from the front. What is left when all are gone is the thread's head.

How large a write is. A server stores up to 64 documents or 256 KiB of an insert as one unit (its parameter
internalInsertMaxBatchSize, and a constant), so that a group within these bounds appears at once, and batches
stay whole. A larger batch is a transaction of its own.

What is uncertain. After a lost connection a write may have happened or may still happen. Its documents keep
their ids and are looked up before they are sent again, and the unique ids refuse a second copy that is late.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from ...contract.errors import StorageClosedError, StorageError, StorageUnavailableError
from ..documents.encoding import Document
from ..documents.run_events import ANCHOR_SEQ, ONCE, anchor_document
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..schema import EVENT_NUMBERS, SEQ_FALLING, SEQ_RISING

logger = logging.getLogger(__name__)

MAX_GROUP_EVENTS = 63
"""One less than what a server stores as one unit: a new thread's head goes with its first events."""
MAX_GROUP_BYTES = 256 * 1024

MAX_BACKLOG_EVENTS = 10_000
MAX_BACKLOG_BYTES = 64 * 1024 * 1024
"""What may wait to be written; beyond it, calls wait to be accepted, first come, first served."""

TRUST_S = 300.0
_FRESH_S = 5.0
STUB_LIFE = timedelta(days=1)
_SURELY_KEPT = timedelta(hours=12)
"""What is younger is under no retention yet, which is a day at least, whatever the writers' clocks say."""

PATIENCE_S = 25.0
"""How long a write whose fate is unknown is followed up, besides what the driver's own timeout allows."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5
_MAX_IDLE_THREADS = 10_000
_MAX_LOOKED_UP = 10_000

_OWN_FIELDS = ("_id", "seq", "stored_at")  # what is not the caller's
_MAX_FAILED = 20
"""Batches of a thread that are remembered for a caller who repeats one."""

# The mock does not tell.
_KEYS_OF_A_RACE = (("_id",), tuple(name for name, _ in EVENT_NUMBERS.keys), None)

HadRetention = Callable[[], Awaitable[bool]]


class AlreadyThereError(Exception):
    """The run has an event of this type already."""


class Batch:
    """Events of one call and one thread on their way to the server."""

    __slots__ = ("accepted_at", "documents", "done", "may_be_stored", "now", "permit", "size_bytes")

    def __init__(
        self, documents: list[Document], size_bytes: int, now: str, permit: asyncio.Future[None] | None = None
    ) -> None:
        """`now` is the time of events that were given none; `permit` is awaited before a write."""
        self.documents = documents
        self.size_bytes = size_bytes
        self.now = now
        self.permit = permit
        self.may_be_stored = False
        self.accepted_at = time.monotonic()
        self.done: asyncio.Future[list[Document]] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # a caller that was cancelled asks no more

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(self.documents)

    @property
    def is_alone(self) -> bool:
        """Whether it must not share its write, since it may be refused for a reason of its own."""
        return ONCE in self.documents[0]

    @property
    def given(self) -> list[Document]:
        """What the caller gave, to tell whether a call repeats one that failed."""
        return [
            {
                name: value
                for name, value in item.items()
                if name not in _OWN_FIELDS and (name != "created_at" or value != self.now)
            }
            for item in self.documents
        ]


class _Thread:
    """What this process knows of a thread that it writes to."""

    __slots__ = (
        "failed",
        "has_head",
        "last",
        "last_stored_at",
        "thread_id",
        "trusted_since",
        "waiting",
        "writer",
    )

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.waiting: deque[Batch] = deque()
        self.writer: asyncio.Task[None] | None = None
        self.failed: list[Batch] = []
        """Batches whose callers were told that they may be stored or not."""
        self.forget()

    def forget(self) -> None:
        self.last, self.has_head = -1, True
        self.last_stored_at = datetime.min.replace(tzinfo=UTC)
        self.trusted_since = (-TRUST_S, -TRUST_S)

    def remember(self, last: int, stored_at: datetime, *, has_head: bool = True) -> None:
        self.last, self.last_stored_at, self.has_head = last, stored_at, has_head
        self.trusted_since = (time.monotonic(), time.time())

    def is_known_within(self, seconds: float) -> bool:
        # By both clocks: the first may stand still while a machine sleeps, the second may be set back.
        since, since_wall = self.trusted_since
        return (
            self.last >= 0 and time.monotonic() - since < seconds and abs(time.time() - since_wall) < seconds
        )


def utc_now() -> datetime:
    """Now, to the millisecond that BSON keeps."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _utc(stored: datetime) -> datetime:
    return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored


class EventLog:
    """The writing half of the run events' store."""

    def __init__(
        self,
        events: Collection,
        committed: Collection,
        had_retention: HadRetention,
    ) -> None:
        """`events` reads from the primary; so does `committed`, and only what no failover takes back."""
        self._events = events
        self._committed = committed
        self._had_retention = had_retention
        self._patience_s = PATIENCE_S
        self._threads: dict[str, _Thread] = {}
        self._backlog = _Backlog(MAX_BACKLOG_EVENTS, MAX_BACKLOG_BYTES)
        self._open: set[Batch] = set()
        self._progress: asyncio.Event = asyncio.Event()
        self._closed = False

    # Accepting.

    @property
    def backlog(self) -> int:
        """Events that were accepted and are not stored yet."""
        return self._backlog.events

    def check_open(self) -> None:
        if self._closed:
            raise StorageClosedError

    async def make_room(self, events: int, size_bytes: int) -> None:
        """Wait until the backlog has room for these, and take it."""
        self.check_open()
        await self._backlog.enter(events, size_bytes)
        if self._closed:
            self._backlog.leave(events, size_bytes)
            self.check_open()

    def accept(self, thread_id: str, batch: Batch) -> asyncio.Future[list[Document]]:
        """Queue a batch that has its room; the documents, numbered, once they are stored.

        Cancelling the future takes the batch back if its write has not begun.
        """
        thread = self._threads.get(thread_id)
        if thread is None:
            thread = self._threads[thread_id] = _Thread(thread_id)
        if thread.failed:
            _take_over_what_is_repeated(thread, batch)
        self._open.add(batch)
        thread.waiting.append(batch)
        if thread.writer is None:
            thread.writer = asyncio.create_task(self._write_all(thread))
        return batch.done

    async def last_number(self, thread_id: str) -> int:
        """The thread's highest number, stubs counted; 0 for an empty thread.

        Seconds old at most: each number above it that a deletion meets leaves a stub for ever.
        """
        thread = self._threads.get(thread_id)
        if thread is not None and thread.is_known_within(_FRESH_S):
            return thread.last
        top = await self._top(thread_id)
        return 0 if top is None else top["seq"]

    # Waiting for what was accepted.

    async def flush(self) -> None:
        """Return when everything accepted so far is stored or has failed."""
        waited_for = set(self._open)
        while waited_for & self._open:
            self._progress.clear()
            await self._progress.wait()

    async def close(self, timeout_s: float) -> int:
        """Accept nothing more and write what waits; the number of events that were not written in time."""
        self._closed = True
        self._backlog.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.flush(), timeout_s)
        left = list(self._open)
        begun = [thread.writer for thread in self._threads.values() if thread.writer is not None]
        text = "the storage was closed before these run events were acknowledged; they may be stored or not"
        for batch in left:
            batch.fail(StorageUnavailableError(text))
        for writer in begun:
            writer.cancel()
        if begun:
            await asyncio.wait(begun, timeout=1.0)
        lost = sum(len(batch.documents) for batch in left)
        if lost:
            logger.error(
                "%d run events were accepted and could not be written before the storage closed", lost
            )
        return lost

    # Writing.

    async def _write_all(self, thread: _Thread) -> None:
        try:
            while thread.waiting:
                group = _next_group(thread.waiting)
                try:
                    await self._write(thread, await _permitted(group))
                except StorageError as error:
                    for batch in group:
                        batch.fail(error)
                except Exception as error:
                    logger.exception("writing run events of thread %r failed", thread.thread_id)
                    for batch in group:
                        batch.fail(StorageError(f"run events could not be written: {error}"))
                finally:
                    self._finish(group)
        finally:
            thread.writer = None
            self._threads[thread.thread_id] = self._threads.pop(thread.thread_id)
            self._forget_idle_threads()

    def _finish(self, group: Iterable[Batch]) -> None:
        for batch in group:
            self._open.discard(batch)
            self._backlog.leave(len(batch.documents), batch.size_bytes)
        self._progress.set()

    def _forget_idle_threads(self) -> None:
        excess = len(self._threads) - _MAX_IDLE_THREADS
        if excess > 0:
            idle = (name for name, thread in self._threads.items() if thread.writer is None)
            for name in [name for name, _ in zip(idle, range(excess), strict=False)]:
                del self._threads[name]

    async def _write(self, thread: _Thread, group: list[Batch]) -> None:
        """Store the group, whatever it takes within our patience; every batch is told what became of it."""
        deadline = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        uncertain = any(batch.may_be_stored for batch in group)
        while group:
            try:
                if uncertain:
                    group = await self._without_stored(group)
                    if not group:
                        return
                await self._insert(thread, group)
            except DuplicateKeyError as error:
                if await self._is_refused_for_good(group):
                    return
                thread.forget()
                group = _without_finished(group)
                if error.keys not in _KEYS_OF_A_RACE:
                    await self._isolate(thread, group, error)
                    return
                # Another process took the number, or a try of ours that was taken for failed did.
                uncertain = uncertain or error.keys == ("_id",)
                if not uncertain:
                    continue
                reason = StorageUnavailableError("the server has these run events, but a majority has not")
            except StorageUnavailableError as error:
                thread.forget()
                uncertain, reason = True, error
            except StorageError as error:
                await self._isolate(thread, group, error)
                return
            else:
                for batch in group:
                    batch.succeed()
                return
            if time.monotonic() >= deadline:
                self._give_up(thread, group, reason)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _insert(self, thread: _Thread, group: list[Batch]) -> None:
        """One try: number what has no number yet, and store it. A number stays only on what is stored."""
        pending = [item for batch in group for item in batch.documents if item["seq"] == 0]
        if not thread.is_known_within(TRUST_S):
            await self._take_up(thread)
        stored_at = max(utc_now(), thread.last_stored_at)
        for seq, item in enumerate(pending, thread.last + 1):
            item["seq"], item["stored_at"] = seq, stored_at
        head = [] if thread.has_head else [anchor_document(thread.thread_id, stored_at)]
        is_one_unit = len(pending) == 1 or (
            len(pending) <= MAX_GROUP_EVENTS and sum(batch.size_bytes for batch in group) <= MAX_GROUP_BYTES
        )
        documents = head + pending
        stored = 0
        try:
            if len(documents) == 1:
                await self._events.insert_one(documents[0])  # for the driver half the work of a bulk write
            elif is_one_unit:
                await self._events.insert_many(documents)
            else:
                await self._events.insert_all_or_none(documents)
            stored = len(pending)
        except DuplicateKeyError as error:
            stored = max(0, error.stored - len(head))
            raise
        finally:
            for item in pending[stored:]:
                item["seq"] = 0
        thread.remember(thread.last + len(pending), stored_at)

    async def _without_stored(self, group: list[Batch]) -> list[Batch]:
        """Finish the batches that turn out to be stored; the others."""
        documents = [item for batch in group for item in batch.documents]
        numbers: dict[Any, int] = {}  # of stubs, too: stored, and deleted since
        for start in range(0, len(documents), _MAX_LOOKED_UP):
            ids = [item["_id"] for item in documents[start : start + _MAX_LOOKED_UP]]
            query = {"thread_id": documents[0]["thread_id"], "_id": {"$in": ids}}
            found = await self._committed.find(query, sort=SEQ_RISING, limit=len(ids), projection=["seq"])
            numbers |= {item["_id"]: item["seq"] for item in found}
        for batch in group:
            for item in batch.documents:
                item["seq"] = numbers.get(item["_id"], item["seq"])
        return _without_finished(group)

    async def _is_refused_for_good(self, group: list[Batch]) -> bool:
        """Whether a batch that may be refused for its own reason was; it stands alone."""
        if not group[0].is_alone:
            return False
        [batch], [event] = group, group[0].documents
        query = {name: event[name] for name in ("thread_id", "run_id", "event_type")} | {ONCE: True}
        other = await self._events.find_one(query)
        if other is None or other["_id"] == event["_id"]:
            return False
        batch.fail(AlreadyThereError())
        return True

    async def _isolate(self, thread: _Thread, group: list[Batch], error: StorageError) -> None:
        """A write was refused: one batch may be to blame, and only its caller is to hear of it."""
        thread.forget()
        if len(group) == 1:
            group[0].fail(StorageError(str(error)) if isinstance(error, DuplicateKeyError) else error)
            return
        for batch in group:
            batch.may_be_stored = True  # what came before the document that was refused
            await self._write(thread, [batch])

    def _give_up(self, thread: _Thread, group: list[Batch], error: StorageUnavailableError) -> None:
        for batch in group:
            batch.may_be_stored = True
            batch.fail(StorageUnavailableError(f"{error}; these run events may be stored or not"))
        thread.failed = (thread.failed + group)[-_MAX_FAILED:]
        # Nobody waits much longer than for one try: what has waited as long fails with it, unwritten.
        overdue = [
            batch for batch in thread.waiting if time.monotonic() - batch.accepted_at > self._patience_s
        ]
        for batch in overdue:
            thread.waiting.remove(batch)
            batch.fail(StorageUnavailableError(f"{error}; these run events are not stored"))
        self._finish(overdue)

    # Taking up a thread.

    async def _top(self, thread_id: str) -> Document | None:
        found = await self._events.find(
            {"thread_id": thread_id},
            sort=SEQ_FALLING,
            limit=1,
            projection=["seq", "stored_at", "was_stored_at", "floor", "founded_at"],
        )
        return found[0] if found else None

    async def _take_up(self, thread: _Thread) -> None:
        top = await self._top(thread.thread_id)
        if top is None:
            thread.remember(0, datetime.min.replace(tzinfo=UTC), has_head=False)
        else:
            await self._start_after(thread, top)

    async def _start_after(self, thread: _Thread, top: Document) -> None:
        """Go on behind the thread's last document, or behind what retention may have removed after it."""
        stored_at = top.get("stored_at") or top.get("was_stored_at") or top["founded_at"]
        if "stored_at" in top or _utc(stored_at) > utc_now() - _SURELY_KEPT:
            thread.remember(max(top["seq"], top.get("floor", 0)), _utc(stored_at))
            return
        floor = await self._floor(thread.thread_id, top["seq"])
        thread.remember(max(top["seq"], floor), _utc(stored_at))

    async def _floor(self, thread_id: str, last: int) -> int:
        """The number behind which an old thread without events goes on; the same for every process.

        Retention may have removed events above `last`. Their numbers are not known any more, but no thread
        was ever given a million numbers a second: the microseconds since 1970 are beyond all of them.
        """
        by_head: Document = {"thread_id": thread_id, "seq": ANCHOR_SEQ}
        while True:
            head = await self._events.find_one(by_head)
            if head is None:
                return last
            if _utc(head["founded_at"]) > utc_now() - _SURELY_KEPT or not await self._had_retention():
                return head["floor"]
            # Whoever is first founds the thread anew; the others then read that floor.
            await self._events.update_one(
                {**by_head, "founded_at": head["founded_at"]},
                {"$set": {"floor": time.time_ns() // 1_000, "founded_at": utc_now()}},
            )


def _next_group(waiting: deque[Batch]) -> list[Batch]:
    """The batches to be written together next, from the front; at least one."""
    group = [waiting.popleft()]
    events, size_bytes = len(group[0].documents), group[0].size_bytes
    while waiting and not (group[0].is_alone or waiting[0].is_alone):
        events, size_bytes = events + len(waiting[0].documents), size_bytes + waiting[0].size_bytes
        if events > MAX_GROUP_EVENTS or size_bytes > MAX_GROUP_BYTES:
            break
        group.append(waiting.popleft())
    return group


async def _permitted(group: list[Batch]) -> list[Batch]:
    """The batches whose callers still wait and may write; the others are told."""
    for batch in group:
        if batch.permit is not None and not batch.done.done():
            try:
                await batch.permit
            except Exception as error:  # noqa: BLE001 - it is handed to the caller whom it concerns
                batch.fail(error)
    return [batch for batch in group if not batch.done.done()]


def _without_finished(group: list[Batch]) -> list[Batch]:
    """Tell the batches of which every document is stored; the others."""
    left = [batch for batch in group if any(item["seq"] == 0 for item in batch.documents)]
    for batch in group:
        if batch not in left:
            batch.succeed()
    return left


def _take_over_what_is_repeated(thread: _Thread, batch: Batch) -> None:
    """Let a call that repeats a failed one go on with the documents that may be stored already."""
    given = batch.given
    for failed in thread.failed:
        if failed.given == given:
            thread.failed.remove(failed)
            batch.documents, batch.now, batch.may_be_stored = failed.documents, failed.now, True
            return


class _Backlog:
    """Counts what waits to be written, and lets callers in first come, first served while there is room."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.events = 0
        self._bytes = 0
        self._queue: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    def _fits(self, events: int, size_bytes: int) -> bool:
        # A batch that is larger than the whole backlog is let in when nothing else waits.
        return not self.events or (
            self.events + events <= self._max_events and self._bytes + size_bytes <= self._max_bytes
        )

    def _take(self, events: int, size_bytes: int) -> None:
        self.events += events
        self._bytes += size_bytes

    async def enter(self, events: int, size_bytes: int) -> None:
        if not self._queue and self._fits(events, size_bytes):
            self._take(events, size_bytes)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((events, size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(events, size_bytes)  # the turn came in the same moment
            else:
                self._admit()
            raise

    def leave(self, events: int, size_bytes: int) -> None:
        self.events -= events
        self._bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            events, size_bytes, turn = self._queue[0]
            if not turn.done():
                if not self._fits(events, size_bytes):
                    return
                self._take(events, size_bytes)
                turn.set_result(None)
            self._queue.popleft()

    def close(self) -> None:
        while self._queue:
            _, _, turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(StorageClosedError)
