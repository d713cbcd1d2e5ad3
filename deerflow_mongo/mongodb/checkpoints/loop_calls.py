"""Runs an object's coroutines on the event loop that it belongs to, for callers in other threads and loops.

It starts no loop and owns none: `loop_thread.py` does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from ...contract.errors import StorageClosedError, StorageError

_Result = TypeVar("_Result")

_CHECK_INTERVAL_S = 1.0
"""How often a waiting thread looks whether the loop still runs."""

_ENDED = "the event loop of this checkpoint saver has ended; open another saver"


class BlockingCallError(StorageError, asyncio.InvalidStateError):
    """A synchronous method was called in the event loop's own thread, where it could never return."""


class LoopCalls:
    """The calls into one event loop. The loop must run in this process."""

    __slots__ = ("_loop", "_process_id")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._process_id = os.getpid()

    def is_current(self) -> bool:
        """Whether the caller runs in the loop."""
        return _running_loop() is self._loop

    def refuse_own_thread(self, method: str) -> None:
        """Raise `BlockingCallError` in the loop's thread, which must not wait for itself."""
        if self.is_current():
            raise BlockingCallError(
                f"{method}() blocks, and this is the thread of the saver's event loop: await a{method}(), or "
                "call it from another thread (a graph: ainvoke, astream, aget_state, ...)"
            )

    def wait(self, method: str, call: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """What the coroutine returns or raises; blocks the calling thread. `method` is named in errors."""
        self.refuse_own_thread(method)
        future = self._start(call)
        try:
            return self._result(future)
        except CancelledError:
            raise StorageClosedError(_ENDED) from None
        except BaseException:
            future.cancel()  # the thread was interrupted: the call's own errors leave nothing to cancel
            raise

    async def run(self, call: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """As `wait`, for a coroutine of any event loop. Cancelling it cancels the call."""
        if self.is_current():
            return await call()
        future = self._start(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            raise StorageClosedError(_ENDED) from None

    def wait_for_each(self, method: str, rows: Callable[[], AsyncIterator[_Result]]) -> Iterator[_Result]:
        """The rows of an asynchronous iterator, fetched one by one as the caller asks for them."""
        self.refuse_own_thread(method)
        return self._each_waited(method, rows)

    def _each_waited(self, method: str, rows: Callable[[], AsyncIterator[_Result]]) -> Iterator[_Result]:
        iterator = rows()
        try:
            while (row := self.wait(method, lambda: _next_of(iterator))) is not None:
                yield row[0]
        finally:
            with suppress(StorageClosedError):
                self.wait(method, lambda: _close(iterator))

    async def each(self, rows: Callable[[], AsyncIterator[_Result]]) -> AsyncGenerator[_Result]:
        """As `wait_for_each`, for a coroutine of any event loop."""
        iterator = rows()
        try:
            while (row := await self.run(lambda: _next_of(iterator))) is not None:
                yield row[0]
        finally:
            with suppress(StorageClosedError):
                await self.run(lambda: _close(iterator))

    def _start(self, call: Callable[[], Coroutine[Any, Any, _Result]]) -> Future[_Result]:
        if self._process_id != os.getpid():
            raise StorageError(
                "one checkpoint saver per process: this one belongs to another; open one where it is used"
            )
        if not self._loop.is_running():  # a call would wait for ever
            raise StorageClosedError(_ENDED)
        coroutine = call()
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise StorageClosedError(_ENDED) from None

    def _result(self, future: Future[_Result]) -> _Result:
        while True:
            with suppress(TimeoutError):
                return future.result(_CHECK_INTERVAL_S)
            if future.done():
                return future.result()  # the call's own TimeoutError, or an answer of this moment
            if not self._loop.is_running():
                future.cancel()
                raise CancelledError


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _next_of(iterator: AsyncIterator[_Result]) -> tuple[_Result] | None:
    """The next row, or None at the end: a future cannot carry StopAsyncIteration out of a coroutine."""
    async for row in iterator:
        return (row,)
    return None


async def _close(iterator: AsyncIterator[Any]) -> None:
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
