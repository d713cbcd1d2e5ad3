"""What was accepted and is not stored yet: bounded admission, flushing and closing.

Beyond the bounds, calls wait to be accepted, first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from ...contract.errors import StorageClosedError
from .batch import Batch

MAX_BACKLOG_EVENTS = 10_000
MAX_BACKLOG_BYTES = 64 * 1024 * 1024


class Backlog:
    """Counts the events that wait to be written and knows their batches."""

    def __init__(self, max_events: int = MAX_BACKLOG_EVENTS, max_bytes: int = MAX_BACKLOG_BYTES) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.events = 0
        self._bytes = 0
        self._queue: deque[tuple[int, int, asyncio.Future[None]]] = deque()
        self._open: set[Batch] = set()
        self._progress: asyncio.Event = asyncio.Event()
        self._closed = False

    # Admission.

    def check_open(self) -> None:
        if self._closed:
            raise StorageClosedError

    async def enter(self, events: int, size_bytes: int) -> None:
        """Wait until there is room for these events, and take it. Raises `StorageClosedError`."""
        self.check_open()
        if not self._queue and self._fits(events, size_bytes):
            self._take(events, size_bytes)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((events, size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(events, size_bytes)  # admitted at the same moment
            else:
                self._admit()
            raise
        if self._closed:
            self._leave(events, size_bytes)
            raise StorageClosedError

    def _fits(self, events: int, size_bytes: int) -> bool:
        # A batch that is larger than the whole backlog is admitted when nothing else waits.
        return not self.events or (
            self.events + events <= self._max_events and self._bytes + size_bytes <= self._max_bytes
        )

    def _take(self, events: int, size_bytes: int) -> None:
        self.events += events
        self._bytes += size_bytes

    def _leave(self, events: int, size_bytes: int) -> None:
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

    # What was admitted.

    def add(self, batch: Batch) -> None:
        """Register a batch whose events have entered."""
        self._open.add(batch)

    def finish(self, batches: Iterable[Batch]) -> None:
        """Release the room of batches that are stored or have failed."""
        for batch in batches:
            self._open.discard(batch)
            self._leave(len(batch.documents), batch.size_bytes)
        self._progress.set()

    async def flush(self) -> None:
        """Return when every batch accepted so far is stored or has failed."""
        waited_for = set(self._open)
        while waited_for & self._open:
            self._progress.clear()
            await self._progress.wait()

    # Closing.

    def close(self) -> None:
        """Accept nothing more; calls that wait for room fail with `StorageClosedError`."""
        self._closed = True
        while self._queue:
            _, _, turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(StorageClosedError())

    def unfinished(self) -> list[Batch]:
        return list(self._open)
