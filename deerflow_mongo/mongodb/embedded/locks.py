"""File locks of a data folder, and the deadline that a caller waits with.

The locks are `flock`s: the kernel takes them back when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

from ...contract.errors import StorageUnavailableError

STARTING_POLL_MS = 10


class Deadline:
    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self._end = time.monotonic() + timeout_ms / 1000

    @property
    def left_ms(self) -> int:
        return max(0, round((self._end - time.monotonic()) * 1000))

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_flock(fd: int, operation: int) -> bool:
    import fcntl  # not on Windows

    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_share(fd: int) -> bool:
    import fcntl

    return try_flock(fd, fcntl.LOCK_SH)


def try_own(fd: int) -> bool:
    import fcntl

    return try_flock(fd, fcntl.LOCK_EX)


def unlock(fd: int) -> None:
    import fcntl

    # Closing alone would leave the lock with a child that another thread forked meanwhile.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def wait_for(take: Callable[[int], bool], fd: int, deadline: Deadline, message: str) -> None:
    while not take(fd):
        if deadline.passed:
            raise StorageUnavailableError(message)
        time.sleep(STARTING_POLL_MS / 1000)


@contextlib.contextmanager
def probe(lock: Path) -> Generator[int]:
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def is_free(lock: Path) -> bool:
    try:
        with probe(lock) as fd:
            return try_share(fd)
    except FileNotFoundError:
        return True
