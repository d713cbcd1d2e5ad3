"""Ends every call to a server after the time that is configured, whatever the driver does.

The driver's own timeouts come first and give better reasons. This is what remains where they do not count: a
caller's client without any, a reply that never comes, a name that is not resolved. One timer serves all calls
of a storage, because a timer of its own (`asyncio.timeout`) would cost each call ten times as much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType

from pymongo import _csot, timeout

GRACE_S = 0.5
"""How long after `timeout_ms` a call is ended that the driver has not ended."""

LONG_RUNNING_TIMEOUT_S = 3_600.0
"""An index on a large collection is built in minutes, far beyond the timeout of an operation."""

_longer_limit_s: ContextVar[float] = ContextVar("longer_limit_s", default=0.0)


@contextmanager
def long_running(limit_s: float = LONG_RUNNING_TIMEOUT_S) -> Generator[None]:
    """The time that a command of `setup()` may take, in place of the timeout of an operation."""
    token = _longer_limit_s.set(limit_s)
    try:
        with timeout(limit_s):
            yield
    finally:
        _longer_limit_s.reset(token)


def shared_limit(limit_s: float) -> AbstractContextManager[object]:
    """The time that the commands inside may take together, beside the limit of each."""
    return timeout(limit_s)


def has_longer_limit() -> bool:
    """Whether the caller is inside `long_running`."""
    return _longer_limit_s.get() > 0


def seconds_left() -> float | None:
    """What is left of the time of `shared_limit`, or of the caller's `pymongo.timeout()`; None without."""
    return _csot.remaining()


class TimeLimit:
    """The calls in progress, and the timer of the one that has to end next. Belongs to one event loop."""

    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self._calls: dict[_LimitedCall, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def call(self, seconds: float | None = None) -> _LimitedCall:
        """A context for one call. Raises `TimeoutError` in the task that runs it once its time is over.

        `seconds` is how long it may take where that is less than the timeout.
        """
        return _LimitedCall(self, seconds)

    @property
    def effective_ms(self) -> int:
        """The timeout of a call that begins now."""
        return int(_longer_limit_s.get() * 1000) or self.timeout_ms

    def add(self, call: _LimitedCall) -> None:
        self._calls[call] = None
        if self._timer is None or call.ends_at < self._timer.when():
            self._wait_until(call.ends_at)

    def remove(self, call: _LimitedCall) -> None:
        del self._calls[call]

    def _wait_until(self, ends_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(ends_at, self._end_overdue)

    def _end_overdue(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        pending = [call for call in self._calls if not call.is_overdue]
        for call in pending:
            if call.ends_at <= now:
                call.end()
        later = [call.ends_at for call in pending if not call.is_overdue]
        if later:
            self._wait_until(min(later))


class _LimitedCall:
    """As `asyncio.timeout`, without a timer of its own: a cancellation by the caller stays one."""

    __slots__ = ("_cancelling", "_limit", "_seconds", "_task", "ends_at", "is_overdue")

    def __init__(self, limit: TimeLimit, seconds: float | None) -> None:
        self._limit = limit
        self._seconds = seconds
        self.is_overdue = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call to the storage must run in a task")
        self._task = task
        self._cancelling = task.cancelling()
        limit = self._limit
        seconds = _longer_limit_s.get() or limit.timeout_ms / 1000
        if self._seconds is not None and self._seconds < seconds:
            seconds = max(0.0, self._seconds)
        self.ends_at = task.get_loop().time() + seconds + GRACE_S
        limit.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._limit.remove(self)
        if self.is_overdue and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        self.is_overdue = True
        self._task.cancel()
