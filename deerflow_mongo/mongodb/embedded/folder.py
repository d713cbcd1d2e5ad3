"""What stands in a data folder, who may use it, and what its server tells: shared by users and keeper.

The locks are `flock`s: the kernel takes them back when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from ...contract.errors import StorageConfigError, StorageError, StorageUnavailableError

TEMPORARY_PREFIX = "deerflow-mongo-"
# What stands in a data folder.
START_LOCK = "start.lock"  # one starter at a time; the first file to be made, so it marks a folder as ours
USERS_LOCK = "users.lock"  # shared by the users, exclusive to a keeper that stops
KEEPER_LOCK = "keeper.lock"  # exclusive to the keeper while it lives
SERVER_FILE = "server.json"  # what users need to know of a running server
DATABASE = "db"
SERVER_LOG = "mongod.log"
PREVIOUS_LOG = "mongod.log.1"
KEEPER_LOG = "keeper.log"
TEMPORARY_MARK = "temporary"
SERVER_SOCKET = "server.sock"  # where mongod listens
CLIENT_SOCKET = "mongod.sock"  # a link to it that exists only while the server is writable
OWN_FILES = frozenset(
    {START_LOCK, USERS_LOCK, KEEPER_LOCK, SERVER_FILE, DATABASE, SERVER_LOG, PREVIOUS_LOG, KEEPER_LOG}
    | {TEMPORARY_MARK, SERVER_SOCKET, CLIENT_SOCKET}
)
STARTING_POLL_MS = 10
STOP_TIMEOUT_MS = 30_000
LOG_TAIL_BYTES = 256 * 1024
FailureKind = Literal["config", "unavailable", "in_use", "busy"]
DISK_FULL = "the disk that holds {folder} is full; free some space and start again"


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


@dataclass(frozen=True, slots=True)
class Server:
    """What a keeper tells of its server, in its answer and in server.json."""

    pid: int
    socket: str
    folder_id: str  # so that in the copy of a folder the file says nothing of the original's server

    @classmethod
    def from_json(cls, text: str | bytes) -> Server | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(text)
            return cls(int(values["pid"]), str(values["socket"]), str(values["folder_id"]))
        return None

    @classmethod
    def of(cls, folder: Path) -> Server | None:
        with contextlib.suppress(OSError):
            server = cls.from_json((folder / SERVER_FILE).read_bytes())
            return server if server and server.folder_id == folder_id(folder) else None
        return None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(self.socket)
            return True
        return False


def folder_id(folder: Path) -> str:
    about = folder.stat()
    return f"{about.st_dev}:{about.st_ino}"


@contextlib.contextmanager
def folder_errors_explained(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise folder_error(str(folder), error) from error


def folder_error(folder: str, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageUnavailableError(DISK_FULL.format(folder=folder))
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        return StorageConfigError(
            f"data_dir {folder} is on a file system without file locks; choose a folder on a local disk"
        )
    return StorageConfigError(f"data_dir {folder} cannot be used ({error.strerror}); choose another data_dir")


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def open_log(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), "wb")


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


def tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""
