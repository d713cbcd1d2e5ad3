"""Writes run events: all batches that wait for one thread are stored in one write (group commit).

Which numbers they get is decided in `numbers.py`, how much may wait in `backlog.py`.

How large a write is. A server stores up to 64 documents or 256 KiB of an insert as one unit (its parameter
internalInsertMaxBatchSize, and a constant). A group within these bounds becomes visible at once, and its
batches stay whole. A larger batch is a transaction of its own.

What is uncertain. After a lost connection a write may have been executed or may still be executed. Its
documents have the same ids in every retry and are looked up before they are sent again, and the unique ids
refuse a second copy that arrives late.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from ...contract.errors import StorageError, StorageUnavailableError
from .. import queries
from ..documents.encoding import Document
from ..documents.run_events import anchor_document
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError, with_cause
from ..schema import EVENT_NUMBERS, SEQ_RISING
from .backlog import Backlog
from .batch import Batch, EventExistsError, fits_one_unit, next_group, permitted, resume_failed, unfinished
from .numbers import SEQ_CACHE_TTL_S, CachedSeq, ThreadNumbers, utc_now

logger = logging.getLogger(__name__)

WRITE_RETRY_BUDGET_S = 25.0
"""How long an uncertain write is retried, besides what the driver's own timeout allows."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5
_CANCEL_TIMEOUT_S = 0.2
_CLOSE_UNANSWERED_S, _CLOSE_POLL_S = 0.8, 0.05
_MAX_IDLE_THREADS = 10_000
_MAX_LOOKED_UP = 10_000
_MAX_FAILED = 20
"""Failed batches of a thread that are remembered for a caller who repeats one."""

# Of the index that refused a write when another process took a number first; mongomock does not report them.
_KEYS_OF_A_RACE = (("_id",), tuple(name for name, _ in EVENT_NUMBERS.keys), None)


class _ThreadQueue:
    """The batches that wait for one thread, and its last number."""

    __slots__ = ("failed", "seq", "thread_id", "waiting", "writer")

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.seq = CachedSeq()
        self.waiting: deque[Batch] = deque()
        self.writer: asyncio.Task[None] | None = None
        self.failed: list[Batch] = []
        """Batches that may be stored or not, as their callers know from the error."""


class EventWriter:
    """Accepts batches and stores them, thread by thread."""

    def __init__(
        self, events: Collection, committed: Collection, numbers: ThreadNumbers, backlog: Backlog
    ) -> None:
        """Both collections read from the primary; `committed` only what no failover can roll back."""
        self._events = events
        self._committed = committed
        self._numbers = numbers
        self._backlog = backlog
        self._retry_budget_s = WRITE_RETRY_BUDGET_S
        self._threads: dict[str, _ThreadQueue] = {}

    def accept(self, thread_id: str, batch: Batch) -> asyncio.Future[list[Document]]:
        """Queue a batch that has entered the backlog; the numbered documents, once they are stored.

        Cancelling the future withdraws the batch if its write has not begun.
        """
        thread = self._threads.get(thread_id)
        if thread is None:
            thread = self._threads[thread_id] = _ThreadQueue(thread_id)
        if thread.failed:
            resume_failed(thread.failed, batch)
        self._backlog.add(batch)
        thread.waiting.append(batch)
        if thread.writer is None:
            thread.writer = asyncio.create_task(self._write_waiting(thread))
        return batch.done

    async def last_seq(self, thread_id: str) -> int:
        """The thread's highest number, tombstones included, at most seconds old; 0 for an empty thread."""
        thread = self._threads.get(thread_id)
        return await self._numbers.last_seq(thread_id, None if thread is None else thread.seq)

    async def close(self, timeout_s: float) -> int:
        """Accept nothing more and write what waits; the number of events that were not written in time."""
        self._backlog.close()
        await self._flush_while_answered(timeout_s)
        remaining = self._backlog.unfinished()
        writers = [thread.writer for thread in self._threads.values() if thread.writer is not None]
        text = "the storage was closed before these run events were acknowledged; they may be stored or not"
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

    async def _flush_while_answered(self, timeout_s: float) -> None:
        """Write what waits, until the server has answered no write for a while."""
        flushing = asyncio.ensure_future(self._backlog.flush())
        now = time.monotonic()
        ends_at, answered, answered_at = now + timeout_s, self._events.answered, now
        try:
            while not flushing.done() and now < min(ends_at, answered_at + _CLOSE_UNANSWERED_S):
                await asyncio.wait({flushing}, timeout=_CLOSE_POLL_S)
                now = time.monotonic()
                if self._events.answered != answered:
                    answered, answered_at = self._events.answered, now
        finally:
            flushing.cancel()

    # Groups of one thread, one after the other.

    async def _write_waiting(self, thread: _ThreadQueue) -> None:
        try:
            while thread.waiting:
                group = next_group(thread.waiting)
                try:
                    await self._write(thread, await permitted(group))
                except StorageError as error:
                    _fail(group, error)
                except Exception as error:
                    logger.exception(
                        "writing run events of thread %r failed",
                        thread.thread_id,
                        extra={"thread_id": thread.thread_id, "operation": "RunEventStore.put_batch"},
                    )
                    failure = StorageError(f"run events could not be written: {error}")
                    _fail(group, with_cause(failure, error))
                finally:
                    self._backlog.finish(group)
        finally:
            thread.writer = None
            self._threads[thread.thread_id] = self._threads.pop(thread.thread_id)
            self._remove_idle_threads()

    def _remove_idle_threads(self) -> None:
        excess = len(self._threads) - _MAX_IDLE_THREADS
        if excess > 0:
            idle = (name for name, thread in self._threads.items() if thread.writer is None)
            for name in [name for name, _ in zip(idle, range(excess), strict=False)]:
                del self._threads[name]

    async def _write(self, thread: _ThreadQueue, group: list[Batch]) -> None:
        """Store the group, with retries within the budget; every batch has succeeded or failed afterwards."""
        deadline = time.monotonic() + self._retry_budget_s
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
                if await self._exists_already(group):
                    return
                thread.seq.clear()
                group = unfinished(group)
                if error.keys not in _KEYS_OF_A_RACE:
                    await self._isolate(thread, group, error)
                    return
                # Another process took the number, or an earlier try that was reported as failed did.
                uncertain = uncertain or error.keys == ("_id",)
                if not uncertain:
                    continue
                text = "the server has these run events, but a majority has not"
                reason = with_cause(StorageUnavailableError(text), error.__cause__)
            except StorageUnavailableError as error:
                thread.seq.clear()
                uncertain, reason = True, error
            except StorageError as error:
                await self._isolate(thread, group, error)
                return
            else:
                for batch in group:
                    batch.succeed()
                return
            for batch in group:
                batch.last_cause = reason.__cause__
            if time.monotonic() >= deadline:
                self._give_up(thread, group, reason)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _insert(self, thread: _ThreadQueue, group: list[Batch]) -> None:
        """One try: number the documents without a number and store them.

        A document that is not stored has no number afterwards.
        """
        pending = [item for batch in group for item in batch.documents if item["seq"] == 0]
        seq = thread.seq
        if not seq.is_fresh(SEQ_CACHE_TTL_S):
            await self._numbers.refresh(thread.thread_id, seq)
        stored_at = max(utc_now(), seq.last_stored_at)
        for number, item in enumerate(pending, seq.last + 1):
            item["seq"], item["stored_at"] = number, stored_at
        anchor = [] if seq.has_anchor else [anchor_document(thread.thread_id, stored_at)]
        stored = 0
        try:
            await self._insert_documents(anchor + pending, is_one_unit=fits_one_unit(group, len(pending)))
            stored = len(pending)
        except DuplicateKeyError as error:
            stored = max(0, error.stored - len(anchor))
            raise
        finally:
            for item in pending[stored:]:
                item["seq"] = 0
        seq.set(seq.last + len(pending), stored_at)

    async def _insert_documents(self, documents: list[Document], *, is_one_unit: bool) -> None:
        if len(documents) == 1:
            await self._events.insert_one(documents[0])  # half of a bulk write's cost in the driver
        elif is_one_unit:
            await self._events.insert_many(documents)
        else:
            await self._events.insert_all_or_none(documents)

    async def _without_stored(self, group: list[Batch]) -> list[Batch]:
        """The batches that are not stored entirely; those that are stored succeed."""
        documents = [item for batch in group for item in batch.documents]
        numbers: dict[Any, int] = {}  # tombstones included: stored, and deleted since
        for start in range(0, len(documents), _MAX_LOOKED_UP):
            ids = [item["_id"] for item in documents[start : start + _MAX_LOOKED_UP]]
            query = queries.events_by_id(documents[0]["thread_id"], ids)
            found = await self._committed.find(query, sort=SEQ_RISING, limit=len(ids), projection=["seq"])
            numbers |= {item["_id"]: item["seq"] for item in found}
        for batch in group:
            for item in batch.documents:
                item["seq"] = numbers.get(item["_id"], item["seq"])
        return unfinished(group)

    # Failures.

    async def _exists_already(self, group: list[Batch]) -> bool:
        """Fail the batch of a `put_if_absent` whose event another caller has stored."""
        if not group[0].is_exclusive:
            return False
        [batch], [event] = group, group[0].documents
        other = await self._events.find_one(queries.same_event_once(event))
        if other is None or other["_id"] == event["_id"]:
            return False
        batch.fail(EventExistsError())
        return True

    async def _isolate(self, thread: _ThreadQueue, group: list[Batch], error: StorageError) -> None:
        """Write each batch of a refused write alone, so that only the refused one fails."""
        thread.seq.clear()
        if len(group) == 1:
            if isinstance(error, DuplicateKeyError):
                error = with_cause(StorageError(str(error)), error.__cause__)
            group[0].fail(error)
            return
        for batch in group:
            batch.may_be_stored = True  # those before the refused document
            await self._write(thread, [batch])

    def _give_up(self, thread: _ThreadQueue, group: list[Batch], error: StorageUnavailableError) -> None:
        for batch in group:
            batch.may_be_stored = True
        _fail(group, _unavailable(error, "may be stored or not"))
        thread.failed = (thread.failed + group)[-_MAX_FAILED:]
        # Batches that waited as long as one write is retried fail with it, so that no caller waits for two.
        overdue = [
            batch for batch in thread.waiting if time.monotonic() - batch.accepted_at > self._retry_budget_s
        ]
        for batch in overdue:
            thread.waiting.remove(batch)
        _fail(overdue, _unavailable(error, "are not stored"))
        self._backlog.finish(overdue)


def _unavailable(error: StorageUnavailableError, outcome: str) -> StorageUnavailableError:
    return with_cause(StorageUnavailableError(f"{error}; these run events {outcome}"), error.__cause__)


def _fail(batches: list[Batch], error: StorageError) -> None:
    for batch in batches:
        batch.fail(error)
