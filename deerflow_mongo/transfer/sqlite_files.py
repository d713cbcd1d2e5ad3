"""Opens a SQLite file of a host for reading, so that nothing beside it is left behind and no host waits.

In WAL mode even a reader creates `-wal` and `-shm`, and one that may not write cannot remove them. Where
there is no `-wal`, no host has the file open: it is then read as one that nobody writes to, and
`read_current` reads again where a host began to write meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from ..contract.errors import StorageConfigError, StorageUnavailableError

BUSY_TIMEOUT_S: Final = 30.0
"""How long a read waits for a host that holds the file; only without WAL mode."""

_HEADER_BYTES: Final = 28
_MAGIC: Final = b"SQLite format 3\0"
_WAL_VERSION: Final = 2
_ATTEMPTS: Final = 5

_Result = TypeVar("_Result")


def file_of(url: str, option: str = "--from") -> Path:
    """The file of a `sqlite:///` URL. Raises `StorageConfigError` if there is none."""
    authority, slash, path = url.partition("://")[2].partition("/")
    if authority or not slash or not path or "?" in path:
        raise StorageConfigError(
            f"{option} sqlite: expected sqlite:///file, or sqlite:////file for an absolute path, without "
            "options"
        )
    file = Path(unquote(path)).expanduser()
    if not file.is_file():
        hint = "" if file.is_absolute() else "; an absolute path has four slashes: sqlite:////file"
        raise StorageConfigError(f"{option} sqlite: there is no file {file}{hint}")
    return file


@dataclass(slots=True)
class OpenedFile:
    connection: sqlite3.Connection
    file: Path
    is_immutable: bool
    state: tuple[int, int]

    def is_outdated(self) -> bool:
        """Whether somebody writes to a file that was opened as one that nobody writes to."""
        return self.is_immutable and (_wal_of(self.file).exists() or _state_of(self.file) != self.state)


def open_file(file: Path) -> OpenedFile:
    """A connection that cannot write, for any thread. Raises `StorageConfigError`."""
    state = _state_of(file)
    is_immutable = _is_in_wal_mode(file) and not _wal_of(file).exists()
    address = f"file:{quote(str(file))}?mode=ro{'&immutable=1' * is_immutable}"
    try:
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    except sqlite3.Error as error:
        raise StorageConfigError(f"--from sqlite: {file} cannot be opened: {error}") from error
    return OpenedFile(connection, file, is_immutable, state)


def read_current(
    read: Callable[[], _Result], is_outdated: Callable[[], bool], reopen: Callable[[], None], place: object
) -> _Result:
    """What `read` returns from a file that did not change meanwhile, or was opened as one in use."""
    for _ in range(_ATTEMPTS):
        if is_outdated():
            reopen()
        try:
            result = read()
        except Exception:
            if not is_outdated():
                raise
        else:
            if not is_outdated():
                return result
    raise StorageUnavailableError(f"{place} is being replaced or changed by a program without WAL mode")


def size_bytes(file: Path) -> int:
    """The size of the file, and of what is still beside it."""
    return sum(part.stat().st_size for part in (file, _wal_of(file)) if part.exists())


def _is_in_wal_mode(file: Path) -> bool:
    with file.open("rb") as opened:
        header = opened.read(_HEADER_BYTES)
    return header.startswith(_MAGIC) and header[18:20] == bytes([_WAL_VERSION, _WAL_VERSION])


def _wal_of(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def _state_of(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size
