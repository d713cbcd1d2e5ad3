"""The event loop and the process that a storage belongs to: those of its first call.

A driver's client is bound to both; used elsewhere it raises whatever it happens to meet, or never returns.
"""

from __future__ import annotations

import asyncio
import os

from ...contract.errors import StorageError

_TEXT = "one storage per event loop and process: this one belongs to another {}; create one where it is used"


class _Forks:
    """Counts the forks that led to this process; cheaper to compare than its id."""

    count = 0


def _count_fork() -> None:
    _Forks.count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Owner:
    """Refuses calls from another event loop or another process than that of the first call."""

    __slots__ = ("_forks", "_loop")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forks = 0

    def check(self) -> None:
        """Raise `StorageError` where the call does not belong; the first call decides where that is."""
        if self._loop is None:
            self._loop, self._forks = asyncio.get_running_loop(), _Forks.count
        elif self._forks != _Forks.count or asyncio.get_running_loop() is not self._loop:
            self.refuse_others()

    def refuse_others(self) -> None:
        """As `check`, but decide nothing."""
        if self._loop is None:
            return
        if self._forks != _Forks.count:
            raise StorageError(_TEXT.format("process"))
        if asyncio.get_running_loop() is not self._loop:
            raise StorageError(_TEXT.format("event loop"))


def error_of_other_loop(error: RuntimeError) -> StorageError | None:
    """The package's error where a caller's client belongs to another event loop; else None."""
    if "event loop" not in str(error) and "different loop" not in str(error):
        return None
    return StorageError(_TEXT.format("event loop (its client does)"))
