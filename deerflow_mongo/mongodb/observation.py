"""Where telemetry is attached: what drivers, writers and feeds call, and the operation of the current task.

What is recorded is decided in `telemetry/`, which is imported only where it is configured. Without it the
operation is None, a driver has no observer, and background work calls `unobserved`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

Run: TypeAlias = Callable[[Any], Awaitable[Any]]
"""Sends one command, or what one method of the driver needs, on the driver's own object."""

current_operation: ContextVar[object | None] = ContextVar("current_operation", default=None)
"""The observed operation that the current task runs."""


class CommandObserver(Protocol):
    """Sees every command that a driver sends for this package."""

    def observed(self, collection: str, command: str, run: Run) -> Run:
        """`run`, recorded as this command; its result and its errors stay as they are."""
        ...


class Waiting(Protocol):
    """A call that waits until others have stored its documents."""

    @property
    def documents(self) -> Sized: ...
    @property
    def operation(self) -> object | None:
        """The operation that made the call."""
        ...


class BackgroundObserver(Protocol):
    """Sees work that belongs to no caller, or to several."""

    def __call__(self, name: str, group: Sequence[Waiting] = ()) -> AbstractContextManager[object]:
        """A context for the work, for which the calls of the group wait."""
        ...


_NOTHING = nullcontext()


def unobserved(name: str, group: Sequence[Waiting] = ()) -> AbstractContextManager[object]:
    """The `BackgroundObserver` where telemetry is off."""
    return _NOTHING
