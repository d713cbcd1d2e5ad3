"""A thread with an event loop and one asynchronous resource, for programs that have no loop of their own.

The thread opens the resource and closes it again: when it is stopped, when its last user is collected, and
when the interpreter exits.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

from .loop_calls import LoopCalls

_Resource = TypeVar("_Resource")

_CLOSE_LIMIT_S = 30.0
"""How long a close is waited for. A storage closes within 12 s; an embedded server may need longer."""

_logger = logging.getLogger(__name__)


class LoopThread(Generic[_Resource]):
    """Opens the resource in a new thread; `resource` and `calls` are there when the constructor returns.

    Raises what the opening raised; the thread has ended then.
    """

    resource: _Resource
    calls: LoopCalls

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[_Resource]], name: str) -> None:
        worker = _Worker(opener, name)
        self._worker = worker
        worker.start()
        try:
            self.resource, self.calls = worker.opened.result()
        except BaseException:
            worker.stop()
            raise
        # The worker has no reference to this object, so that dropping the last one ends the thread.
        weakref.finalize(self, worker.stop).atexit = False

    def close(self) -> None:
        """Close the resource and wait for it; idempotent, from any thread."""
        self._worker.stop()
        self._worker.wait_for_end()


class _Worker(Generic[_Resource]):
    """The thread's side."""

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[_Resource]], name: str) -> None:
        self.opened: Future[tuple[_Resource, LoopCalls]] = Future()
        self._opener = opener
        self._lock = threading.Lock()
        self._stopped = False
        self._main: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        # A daemon: the interpreter waits for other threads before it calls what atexit has.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        _Open.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to close the resource and to end; does not wait, idempotent."""
        with self._lock:
            self._stopped = True
            main = self._main
        if main is not None:
            loop, stopping = main
            with suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(stopping.set)

    def wait_for_end(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_LIMIT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self.opened.done():
                _logger.exception("the storage of a checkpoint saver did not close properly")
            else:
                self.opened.set_exception(error)
        finally:
            _Open.discard(self)

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._lock:
            self._main = (loop, stopping)
            if self._stopped:
                stopping.set()
        async with self._opener() as resource:
            self.opened.set_result((resource, LoopCalls(loop)))
            del resource
            await stopping.wait()


class _Open:
    """The workers that run, for the interpreter's exit."""

    _lock = threading.Lock()
    _workers: set[_Worker[Any]] = set()  # noqa: RUF012 - one for the process

    @classmethod
    def add(cls, worker: _Worker[Any]) -> None:
        with cls._lock:
            cls._workers.add(worker)

    @classmethod
    def discard(cls, worker: _Worker[Any]) -> None:
        with cls._lock:
            cls._workers.discard(worker)

    @classmethod
    def close_all(cls) -> None:
        with cls._lock:
            workers = list(cls._workers)
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait_for_end()


atexit.register(_Open.close_all)
