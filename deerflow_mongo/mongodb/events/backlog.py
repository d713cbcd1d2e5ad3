"""What was accepted and is not stored yet: bounded admission, flushing and closing.

Beyond the bounds, calls wait to be accepted, first come, first served. A call that needs more than half of
the room takes half of it, one such call at a time: the other half is left to the other threads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping

from ...contract.errors import StorageClosedError, StorageUnavailableError
from .batch import Batch

MAX_BACKLOG_EVENTS = 10_000
MAX_BACKLOG_BYTES = 64 * 1024 * 1024


class _Call:
    """The batches of one call, one per thread, and the room that they take until all are finished."""

    __slots__ = ("events", "is_large", "open_batches", "size_bytes", "threads", "turn")

    def __init__(self, batches: Mapping[str, Batch], half: tuple[int, int]) -> None:
        events = sum(len(batch.documents) for batch in batches.values())
        size_bytes = sum(batch.size_bytes for batch in batches.values())
        self.threads = batches.keys()
        self.open_batches = set(batches.values())
        self.is_large = events > half[0] or size_bytes > half[1]
        self.events, self.size_bytes = half if self.is_large else (events, size_bytes)
        self.turn: asyncio.Future[None] | None = None
        """Done when the call is admitted, or is not; None if it did not have to wait."""


class Backlog:
    """Counts the events that wait to be written and knows their batches."""

    def __init__(
        self, timeout_s: float, max_events: int = MAX_BACKLOG_EVENTS, max_bytes: int = MAX_BACKLOG_BYTES
    ) -> None:
        """`timeout_s` is how long a call waits for room."""
        self._timeout_s = timeout_s
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.events = 0
        """Of all batches that were accepted and are not finished."""
        self.finished = 0
        """Grows whenever something was stored or has failed."""
        self._taken_events, self._taken_bytes = 0, 0
        self._large: _Call | None = None
        self._queue: deque[_Call] = deque()
        self._open: dict[Batch, _Call] = {}
        self._progress: asyncio.Event = asyncio.Event()
        self._closed = False

    # Admission.

    def check_open(self) -> None:
        if self._closed:
            raise StorageClosedError

    async def enter(self, batches: Mapping[str, Batch]) -> None:
        """Wait until there is room for a call's batches, by thread, and take it.

        Raises `StorageClosedError`, and `StorageUnavailableError` where there is no room in time.
        """
        self.check_open()
        call = _Call(batches, (self._max_events // 2, self._max_bytes // 2))
        if not self._queue and self._fits(call):
            self._take(call)
            return
        loop = asyncio.get_running_loop()
        turn = call.turn = loop.create_future()
        self._queue.append(call)
        self._admit()
        timer = loop.call_later(self._timeout_s, self._give_up, turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(call)  # admitted at the same moment
            else:
                self._admit()
            raise
        finally:
            timer.cancel()
        if self._closed:
            self._leave(call)
            raise StorageClosedError

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            text = (
                f"no room for these run events within {self._timeout_s:g} s: {self.events:,} others wait to "
                "be written; they are not stored"
            )
            turn.set_exception(StorageUnavailableError(text))

    def _waits_for_large(self, call: _Call) -> bool:
        return call.is_large and self._large is not None

    def _fits(self, call: _Call) -> bool:
        return (
            not self._waits_for_large(call)
            and self._taken_events + call.events <= self._max_events
            and self._taken_bytes + call.size_bytes <= self._max_bytes
        )

    def _take(self, call: _Call) -> None:
        self._taken_events += call.events
        self._taken_bytes += call.size_bytes
        if call.is_large:
            self._large = call
        for batch in call.open_batches:
            self._open[batch] = call
            self.events += len(batch.documents)

    def _leave(self, call: _Call) -> None:
        self.finish(list(call.open_batches))

    def _admit(self) -> None:
        """Admit the first calls that fit; none before an earlier one of the same thread."""
        waiting: set[str] = set()
        """Threads of large calls that wait for another large one; calls of other threads overtake these."""
        for call in tuple(self._queue):
            turn = call.turn
            if turn is None or turn.done():
                self._queue.remove(call)
            elif self._waits_for_large(call) or not waiting.isdisjoint(call.threads):
                waiting |= call.threads
            elif self._fits(call):
                self._take(call)
                self._queue.remove(call)
                turn.set_result(None)
            else:
                return

    # What was admitted.

    def finish(self, batches: Iterable[Batch]) -> None:
        """Release the room of batches that are stored or have failed; idempotent."""
        for batch in batches:
            call = self._open.pop(batch, None)
            if call is None:
                continue
            self.report_progress()
            self.events -= len(batch.documents)
            call.open_batches.discard(batch)
            if not call.open_batches:
                self._taken_events -= call.events
                self._taken_bytes -= call.size_bytes
                if call is self._large:
                    self._large = None
        if self._queue:
            self._admit()

    def report_progress(self) -> None:
        self.finished += 1
        self._progress.set()

    @property
    def size_bytes(self) -> int:
        """The room that is taken; no call takes more than half of it."""
        return self._taken_bytes

    @property
    def waiting_calls(self) -> int:
        """The number of calls that wait to be accepted."""
        return len(self._queue)

    async def flush(self) -> None:
        """Return when every batch accepted so far is stored or has failed."""
        waited_for = self._open.keys() - set[Batch]()
        while not waited_for.isdisjoint(self._open):
            self._progress.clear()
            await self._progress.wait()

    # Closing.

    def close(self) -> None:
        """Accept nothing more; calls that wait for room fail with `StorageClosedError`."""
        self._closed = True
        while self._queue:
            turn = self._queue.popleft().turn
            if turn is not None and not turn.done():
                turn.set_exception(StorageClosedError())

    def unfinished(self) -> list[Batch]:
        return list(self._open)
