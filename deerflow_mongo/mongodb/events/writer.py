"""Writes run events: all batches that wait for one thread are stored in one write (group commit).

Which numbers they get is decided in `numbers.py`, how much may wait in `backlog.py`.

How large a write is. A server stores up to 64 documents or 256 KiB of an insert as one unit (its parameter
internalInsertMaxBatchSize, and a constant). A group within these bounds becomes visible at once, and its
batches stay whole. A larger batch is stored in parts, one insert after the other, each from the front: what
is stored of it is always its beginning. No write needs a transaction, so a writer that dies blocks nobody.

What is uncertain. After a lost connection a write may have been executed or may still be executed. Its
documents have the same ids in every retry and are looked up before they are sent again, and the unique ids
refuse a second copy that arrives late. An event with an `event_id` is sent in the hope that it is new; if the
unique index refuses it, the stored one takes its place.

How long a call waits. With T the timeout of an operation, a batch is tried again until T has passed since it
was accepted, and each try takes T at most. Every batch, or part of a larger one, ends within 2 T, whatever
the driver does: `_end_overdue` is a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import deque
from typing import Any

from ...contract.errors import (
    StorageAccessError,
    StorageClosedError,
    StorageError,
    StorageUnavailableError,
)
from .. import queries
from ..documents.encoding import Document
from ..documents.run_events import anchor_document
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError, with_cause
from ..drivers.time_limit import shared_limit
from ..observation import BackgroundObserver, unobserved
from ..schema import BY_EVENT_ID, EVENT_IDS, EVENT_NUMBERS, ONCE_PER_RUN, SEQ_RISING, Index
from .backlog import Backlog
from .batch import (
    Batch,
    EventExistsError,
    event_id_places,
    next_group,
    not_stored,
    permitted,
    replace_repeated,
    unfinished,
    with_note,
)
from .numbers import SEQ_CACHE_TTL_S, CachedSeq, ThreadNumbers, utc_now

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5
_STALLED_S = 0.8
"""How long a closing storage waits for one more write to end."""
_CANCEL_TIMEOUT_S = 0.2
_MAX_IDLE_THREADS = 10_000
WRITE_GROUP = "run_events.write_group"


def _keys_of(index: Index) -> tuple[str, ...]:
    return tuple(name for name, _ in index.keys)


_ID_KEYS = ("_id",)
_NUMBER_KEYS = _keys_of(EVENT_NUMBERS)
_EVENT_ID_KEYS = _keys_of(EVENT_IDS)
_ONCE_KEYS = _keys_of(ONCE_PER_RUN)


class _ThreadQueue:
    """The batches that wait for one thread, and its last number."""

    __slots__ = ("seq", "thread_id", "timer", "waiting", "writer", "writing")

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.seq = CachedSeq()
        self.waiting: deque[Batch] = deque()
        self.writing: list[Batch] = []
        """The group, or the part of a large batch, that is being written."""
        self.writer: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None


class _Write:
    """What the next try of a write looks up before it inserts: documents that may be stored already."""

    __slots__ = ("event_exists", "is_uncertain", "pause_s", "repeats")

    def __init__(self, group: list[Batch]) -> None:
        self.is_uncertain = any(batch.may_be_stored for batch in group)
        """By `_id`: what an earlier try may have stored."""
        # An event that is refused in the middle of a unit divides it. Only that of the first batch risks it.
        self.repeats = any(batch.has_event_ids for batch in group[1:])
        """By `event_id`."""
        self.event_exists = False
        """By run and type, for `put_if_absent`, which looks before its first try as well."""
        self.pause_s = _FIRST_PAUSE_S

    def note_duplicate(self, group: list[Batch], keys: tuple[str, ...] | None) -> bool | None:
        """Set what the next try looks up, after the index with these keys has refused a document.

        Whether it was looked up in vain already; None where nothing of ours can have been the reason.
        """
        has_event_ids = any(batch.has_event_ids for batch in group)
        is_exclusive = any(batch.is_exclusive for batch in group)
        before = (self.is_uncertain, self.repeats, self.event_exists)
        if keys == _ID_KEYS:
            self.is_uncertain = True
            return before[0]
        if keys == _EVENT_ID_KEYS:
            self.repeats = True
            return before[1]
        if keys == _ONCE_KEYS and is_exclusive:
            self.event_exists = True
            return before[2]
        if keys is None:  # mongomock does not report them
            self.repeats, self.event_exists = has_event_ids, is_exclusive
            return before[1:] == (has_event_ids, is_exclusive) != (False, False)
        return False if keys == _NUMBER_KEYS else None


class EventWriter:
    """Accepts batches and stores them, thread by thread."""

    def __init__(
        self,
        events: Collection,
        committed: Collection,
        numbers: ThreadNumbers,
        backlog: Backlog,
        timeout_s: float,
    ) -> None:
        """`committed` reads only what no failover can roll back."""
        self._events = events
        self._committed = committed
        self._numbers = numbers
        self._backlog = backlog
        self._timeout_s = timeout_s
        self._retry_budget_s = timeout_s
        self._threads: dict[str, _ThreadQueue] = {}
        self.observe: BackgroundObserver = unobserved
        self.retries = 0
        """Tries that were repeated, because a number was taken, or the server did not acknowledge."""

    def accept(self, thread_id: str, batch: Batch) -> asyncio.Future[list[Document]]:
        """Queue a batch that has entered the backlog; the numbered documents, once they are stored.

        Cancelling the future withdraws the batch if its write has not begun.
        """
        thread = self._threads.get(thread_id)
        if thread is None:
            thread = self._threads[thread_id] = _ThreadQueue(thread_id)
        batch.accepted_at = time.monotonic()
        thread.waiting.append(batch)
        if thread.writer is None:
            # In a context of its own: the time limit or the actor of one caller is not that of the others.
            thread.writer = asyncio.create_task(self._write_waiting(thread), context=contextvars.Context())
            thread.writer.add_done_callback(lambda writer: self._after_cancellation(thread, writer))
            loop = asyncio.get_running_loop()
            thread.timer = loop.call_later(2 * self._timeout_s, self._end_overdue, thread)
        return batch.done

    async def last_seq(self, thread_id: str) -> int:
        """The thread's highest number, tombstones included, at most seconds old; 0 for an empty thread."""
        thread = self._threads.get(thread_id)
        return await self._numbers.last_seq(thread_id, None if thread is None else thread.seq)

    async def close(self, timeout_s: float) -> int:
        """Accept nothing more and write what waits; the number of events that were not written in time.

        It does not wait longer than `timeout_s`, nor than a second in which nothing was stored.
        """
        self._backlog.close()
        try:
            await self._flush(timeout_s)
        finally:
            remaining = self._backlog.unfinished()
            writers = [thread.writer for thread in self._threads.values() if thread.writer is not None]
            text = (
                "the storage was closed before these run events were acknowledged; they may be stored or not"
            )
            for batch in remaining:
                batch.fail(with_cause(StorageUnavailableError(text), batch.last_cause))
            for writer in writers:
                writer.cancel()
        if writers:
            await asyncio.wait(writers, timeout=_CANCEL_TIMEOUT_S)
        lost = sum(len(batch.documents) for batch in remaining)
        if lost:
            logger.error(
                "%d run events were accepted and could not be written before the storage closed",
                lost,
                extra={"operation": "RunEventStore.aclose"},
            )
        return lost

    async def _flush(self, timeout_s: float) -> None:
        """Wait until nothing waits to be written, as long as something is stored."""
        deadline = time.monotonic() + timeout_s
        finished = -1
        while finished != self._backlog.finished:
            finished = self._backlog.finished
            wait_s = min(_STALLED_S, deadline - time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._backlog.flush(), wait_s)
                return
            if time.monotonic() >= deadline:
                return

    # Groups of one thread, one after the other.

    async def _write_waiting(self, thread: _ThreadQueue) -> None:
        try:
            while thread.waiting:
                group = thread.writing = next_group(thread.waiting)
                try:
                    with self.observe(WRITE_GROUP, group):
                        await self._write_group(thread, group)
                except StorageError as error:
                    _fail(group, error)
                except Exception as error:
                    failure = StorageError(f"run events could not be written: {error}")
                    _fail(group, with_cause(failure, error))
                    logger.exception(
                        "writing run events of thread %r failed",
                        thread.thread_id,
                        extra={"thread_id": thread.thread_id, "operation": "RunEventStore.put_batch"},
                    )
                finally:
                    self._end(group, "their writer ended; they may be stored or not")
        finally:
            self._end_writer(thread)

    def _after_cancellation(self, thread: _ThreadQueue, writer: asyncio.Task[None]) -> None:
        """End a writer that was cancelled before its first step."""
        if thread.writer is writer:
            self._end_writer(thread)

    def _end_writer(self, thread: _ThreadQueue) -> None:
        thread.writer, thread.writing = None, []
        if thread.timer is not None:
            thread.timer.cancel()
        self._end(thread.waiting, "their writer ended; they are not stored")
        thread.waiting.clear()
        self._threads[thread.thread_id] = self._threads.pop(thread.thread_id)
        self._remove_idle_threads()

    def _end(self, batches: list[Batch] | deque[Batch], outcome: str) -> None:
        """Release the room of these batches; those that have no outcome, after a cancellation, get one."""
        for batch in batches:
            if not batch.done.done():
                text = f"run events were not acknowledged: {outcome}"
                batch.fail(with_cause(StorageUnavailableError(text), batch.last_cause))
        if batches:
            self._backlog.finish(batches)

    def _end_overdue(self, thread: _ThreadQueue) -> None:
        """Fail the batches whose time is over, whatever their writer waits for."""
        limit_s = 2 * self._timeout_s
        now = time.monotonic()
        due = now - limit_s
        text = f"run events were not acknowledged within {limit_s:g} s; they"
        for batch in thread.writing:
            if batch.accepted_at <= due:
                failure = StorageUnavailableError(f"{text} may be stored or not")
                batch.fail(with_cause(failure, batch.last_cause))
        overdue = [batch for batch in thread.waiting if batch.accepted_at <= due]
        self._withdraw(thread, overdue, StorageUnavailableError(f"{text} are not stored"))
        accepted = [batch.accepted_at for batch in (*thread.writing, *thread.waiting)]
        wait_s = min((at for at in accepted if at > due), default=now) - due
        thread.timer = asyncio.get_running_loop().call_later(wait_s, self._end_overdue, thread)

    def _withdraw(self, thread: _ThreadQueue, batches: list[Batch], error: StorageError) -> None:
        """Fail batches that still wait."""
        if not batches:
            return
        for batch in batches:
            thread.waiting.remove(batch)
        _fail(batches, error)
        self._backlog.finish(batches)

    def _remove_idle_threads(self) -> None:
        excess = len(self._threads) - _MAX_IDLE_THREADS
        if excess > 0:
            idle = (name for name, thread in self._threads.items() if thread.writer is None)
            for name in [name for name, _ in zip(idle, range(excess), strict=False)]:
                del self._threads[name]

    async def _write_group(self, thread: _ThreadQueue, group: list[Batch]) -> None:
        """Store the group; every batch has succeeded or failed afterwards."""
        group = await permitted(group)
        if not group or not group[0].is_large:
            await self._write(thread, group)
            return
        [whole] = group
        for part in whole.parts():
            thread.writing = [part]
            await self._write(thread, [part])
            if part.has_failed:
                return  # the batch has failed with it
            whole.documents[part.start : part.start + len(part.documents)] = part.documents
            self._backlog.report_progress()
        whole.succeed()

    # One group, until it is stored.

    async def _write(self, thread: _ThreadQueue, group: list[Batch]) -> None:
        """Store what fits into one insert, with retries; every batch has succeeded or failed afterwards."""
        write = _Write(group)
        while group:
            try:
                with shared_limit(self._timeout_s):
                    await self._try(thread, group, write)
                group = unfinished(group)
                continue
            except EventExistsError as exists:
                group[0].fail(exists)
                return
            except DuplicateKeyError as error:
                thread.seq.clear()
                group = unfinished(group)
                in_vain = write.note_duplicate(group, error.keys)
                if in_vain is None:
                    await self._isolate(thread, group, error)
                    return
                if not in_vain:
                    group = [batch for batch in group if not batch.has_failed]
                    self.retries += bool(group)
                    continue
                text = "the server has these run events, but a majority has not"
                reason = with_cause(StorageUnavailableError(text), error.__cause__)
            except StorageUnavailableError as error:
                thread.seq.clear()
                write.is_uncertain, reason = True, error
            except StorageError as error:
                await self._isolate(thread, group, error)
                return
            group = self._without_expired(thread, group, reason)
            if not group:
                return
            self.retries += 1
            await asyncio.sleep(write.pause_s)
            write.pause_s = min(2 * write.pause_s, _LONGEST_PAUSE_S)

    async def _try(self, thread: _ThreadQueue, group: list[Batch], write: _Write) -> None:
        """Look up what may be stored already, and insert the rest."""
        if group[0].is_exclusive:
            await self._check_absent(thread, group[0])
        if write.is_uncertain:
            await self._find_stored(thread.thread_id, group)
        if write.repeats:
            await self._find_repeated(thread.thread_id, group)
        pending = not_stored(group)
        if pending:
            await self._insert(thread, pending)

    async def _insert(self, thread: _ThreadQueue, pending: list[Document]) -> None:
        """Number the documents and store them. One that is not stored has no number afterwards."""
        seq = thread.seq
        if not seq.is_fresh(SEQ_CACHE_TTL_S):
            await self._numbers.refresh(thread.thread_id, seq)
        stored_at = max(utc_now(), seq.last_stored_at)
        for number, item in enumerate(pending, seq.last + 1):
            item["seq"], item["stored_at"] = number, stored_at
        anchor = [] if seq.has_anchor else [anchor_document(thread.thread_id, stored_at)]
        stored = 0
        try:
            if len(pending) == 1 and not anchor:
                await self._events.insert_one(pending[0])  # half of a bulk write's cost in the driver
            else:
                await self._events.insert_many(anchor + pending)
            stored = len(pending)
        except DuplicateKeyError as error:
            stored = max(0, error.stored - len(anchor))
            raise
        finally:
            for item in pending[stored:]:
                item["seq"] = 0
        seq.set(seq.last + len(pending), stored_at)

    # What may be stored already.

    async def _check_absent(self, thread: _ThreadQueue, batch: Batch) -> None:
        """Raise `EventExistsError` if the run has an event of the type of a `put_if_absent`.

        It is looked for after the thread's last number was read: an event that another process stores later
        has the number that this one tries to take, so the server refuses this one.
        """
        if not thread.seq.is_fresh(SEQ_CACHE_TTL_S):
            await self._numbers.refresh(thread.thread_id, thread.seq)
        [event] = batch.documents
        query = queries.events_of_run(thread.thread_id, event["run_id"], event["event_type"])
        found = await self._events.find(query, sort=SEQ_RISING, limit=1)
        if found and found[0]["_id"] != event["_id"]:
            raise EventExistsError(found[0])

    async def _find_stored(self, thread_id: str, group: list[Batch]) -> None:
        """Number the documents that an earlier try has stored."""
        ids = [item["_id"] for item in not_stored(group)]
        if not ids:
            return
        query = queries.events_by_id(thread_id, ids)
        # Tombstones included: stored, and deleted since.
        found = await self._committed.find(query, sort=SEQ_RISING, limit=len(ids), projection=["seq"])
        numbers: dict[Any, int] = {item["_id"]: item["seq"] for item in found}
        for batch in group:
            for item in batch.documents:
                item["seq"] = numbers.get(item["_id"], item["seq"])

    async def _find_repeated(self, thread_id: str, group: list[Batch]) -> None:
        """Replace the documents whose `event_id` is stored by the stored ones."""
        event_ids = list(event_id_places(group))
        if event_ids:
            query = queries.events_by_event_id(thread_id, event_ids)
            found = await self._committed.find(query, sort=BY_EVENT_ID, limit=len(event_ids))
            replace_repeated(group, found)

    # Failures.

    async def _isolate(self, thread: _ThreadQueue, group: list[Batch], error: StorageError) -> None:
        """Write each batch of a refused write alone, so that only the refused one fails."""
        thread.seq.clear()
        if len(group) == 1:
            if isinstance(error, DuplicateKeyError):
                error = with_cause(StorageError(str(error)), error.__cause__)
            if len(group[0].documents) > 1 and not isinstance(error, StorageAccessError | StorageClosedError):
                error = with_note(error, "events of the batch before the refused one may be stored")
            group[0].fail(error)
            return
        for batch in group:
            batch.may_be_stored = True  # those before the refused document
            await self._write(thread, [batch])

    def _without_expired(
        self, thread: _ThreadQueue, group: list[Batch], reason: StorageUnavailableError
    ) -> list[Batch]:
        """The batches that are tried again; the others fail, and those that waited as long behind them."""
        due = time.monotonic() - self._retry_budget_s
        for batch in group:
            batch.last_cause = reason.__cause__
        expired = [batch for batch in group if batch.accepted_at <= due]
        _fail(expired, with_note(reason, "these run events may be stored or not"))
        overdue = [batch for batch in thread.waiting if batch.accepted_at <= due] if expired else []
        self._withdraw(thread, overdue, with_note(reason, "these run events are not stored"))
        return [batch for batch in group if batch.accepted_at > due]


def _fail(batches: list[Batch], error: StorageError) -> None:
    for batch in batches:
        batch.fail(error)
