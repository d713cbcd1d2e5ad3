"""File locks, and the deadline that bounds the wait for one.

The locks are `flock`s: the kernel releases them when a process ends, however it ends. Which files are locked,
and what a lock on each of them means, is defined in `folder`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

from ...contract.errors import StorageUnavailableError

POLL_INTERVAL_MS = 10


class Deadline:
    """A point in time `timeout_ms` from now, on the monotonic clock."""

    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self._end = time.monotonic() + timeout_ms / 1000

    @property
    def remaining_ms(self) -> int:
        return max(0, round((self._end - time.monotonic()) * 1000))

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end


def open_lock_file(path: Path) -> int:
    """Open the file, and create it if it does not exist."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def existing_lock_file(path: Path) -> Generator[int]:
    """The open file; closing it releases a lock taken meanwhile. Raises FileNotFoundError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def try_lock_shared(fd: int) -> bool:
    import fcntl  # not on Windows

    return _try_flock(fd, fcntl.LOCK_SH)


def try_lock_exclusive(fd: int) -> bool:
    import fcntl

    return _try_flock(fd, fcntl.LOCK_EX)


def _try_flock(fd: int, operation: int) -> bool:
    import fcntl

    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(try_lock: Callable[[int], bool], fd: int, deadline: Deadline, error_text: str) -> None:
    while not try_lock(fd):
        if deadline.passed:
            raise StorageUnavailableError(error_text)
        time.sleep(POLL_INTERVAL_MS / 1000)


def unlock_and_close(fd: int) -> None:
    import fcntl

    # Closing alone would leave the lock with a child process that another thread forked meanwhile.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def is_unlocked(path: Path) -> bool:
    """Whether no process holds an exclusive lock on the file. Holds a shared one for a moment to find out."""
    try:
        with existing_lock_file(path) as fd:
            return try_lock_shared(fd)
    except FileNotFoundError:
        return True
