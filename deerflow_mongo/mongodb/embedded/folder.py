"""The data folder: its files and locks, the checks before its first use, temporary folders, `server.json`.

Shared by the processes that use a server and by its supervisor. Starts and stops nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from ...contract.errors import StorageConfigError, StorageError, StorageUnavailableError
from .locks import existing_lock_file, is_unlocked, try_lock_exclusive

TEMPORARY_PREFIX = "deerflow-mongo-"
# The files in a data folder.
START_LOCK = "start.lock"  # one starter at a time; created first, so it also marks the folder as ours
USERS_LOCK = "users.lock"  # shared by the users, exclusive to a supervisor that stops
SUPERVISOR_LOCK = "supervisor.lock"  # exclusive to the supervisor while it lives
SERVER_FILE = "server.json"  # a `ServerInfo`; exists only while the server is writable
DATABASE = "db"
SERVER_LOG = "mongod.log"
PREVIOUS_LOG = "mongod.log.1"
SUPERVISOR_LOG = "supervisor.log"
TEMPORARY_MARKER = "temporary"  # the folder is removed with its server
SERVER_SOCKET = "server.sock"  # where mongod listens
CLIENT_SOCKET = "mongod.sock"  # a link to it that exists only while the server is writable
OWN_FILES = frozenset(
    {START_LOCK, USERS_LOCK, SUPERVISOR_LOCK, SERVER_FILE, DATABASE, SERVER_LOG, PREVIOUS_LOG, SUPERVISOR_LOG}
    | {TEMPORARY_MARKER, SERVER_SOCKET, CLIENT_SOCKET}
)
STOP_TIMEOUT_MS = 30_000  # how long mongod may take to stop before its supervisor kills it
DISK_FULL = "the disk that holds {folder} is full; free some space and start again"
_ABANDONED_AFTER_MS = 3_600_000
_LOG_TAIL_BYTES = 256 * 1024
_MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107, on macOS 103
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")  # none of these is special to mongod or in a URL


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a supervisor publishes about its server, in its reply to the starter and in `server.json`."""

    pid: int
    socket: str
    folder_id: str  # makes the file void in a copy of the folder, which has another server

    @classmethod
    def from_json(cls, text: str | bytes) -> ServerInfo | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(text)
            return cls(int(values["pid"]), str(values["socket"]), str(values["folder_id"]))
        return None

    @classmethod
    def read(cls, folder: Path) -> ServerInfo | None:
        with contextlib.suppress(OSError):
            server = cls.from_json((folder / SERVER_FILE).read_bytes())
            return server if server and server.folder_id == folder_id(folder) else None
        return None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def accepts_connections(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(self.socket)
            return True
        return False


def folder_id(folder: Path) -> str:
    status = folder.stat()
    return f"{status.st_dev}:{status.st_ino}"


@contextlib.contextmanager
def translate_folder_errors(folder: Path) -> Generator[None]:
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


def prepare_data_folder(data_dir: str | os.PathLike[str]) -> Path:
    """The absolute path of `data_dir`, which is created or checked and closed to other users."""
    if not os.fspath(data_dir):
        raise StorageConfigError("data_dir is empty; set it to a folder or leave it out for a temporary one")
    folder = Path(data_dir).expanduser().absolute()
    with translate_folder_errors(folder):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        folder = folder.resolve()
        _check_data_folder(folder)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    return folder


def _check_data_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise StorageConfigError(f"data_dir {folder} is not a folder; choose another data_dir")
    if folder.stat().st_uid != os.geteuid():
        raise StorageConfigError(
            f"data_dir {folder} belongs to another user; choose a folder of your own or the path of a new one"
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise StorageConfigError(f"data_dir {folder} is not writable; choose another data_dir")
    foreign = sorted(path.name for path in folder.iterdir() if _is_foreign(path.name))
    if foreign and not (folder / START_LOCK).exists():
        raise StorageConfigError(
            f"data_dir {folder} contains other files, such as {foreign[0]!r}; choose an empty or a new folder"
        )


def _is_foreign(name: str) -> bool:
    return name not in OWN_FILES and not name.startswith(".") and name != "lost+found"


def create_temporary_folder() -> Path:
    """A new folder that is removed with its server. Also removes old ones that were left behind."""
    try:
        _remove_abandoned_folders()
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)).resolve()
        (folder / TEMPORARY_MARKER).touch(mode=0o600)
    except OSError as error:
        raise folder_error(tempfile.gettempdir(), error) from error
    return folder


def _remove_abandoned_folders() -> None:
    """Remove the temporary folders whose users and supervisor were all killed: nothing else removes them."""
    newest = time.time() - _ABANDONED_AFTER_MS / 1000
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if (
                not stat.S_ISDIR(status.st_mode)
                or status.st_uid != os.geteuid()
                or status.st_mtime > newest
                or not (folder / TEMPORARY_MARKER).exists()
            ):
                continue
            with existing_lock_file(folder / USERS_LOCK) as users:
                if try_lock_exclusive(users) and is_unlocked(folder / SUPERVISOR_LOCK):
                    shutil.rmtree(folder, ignore_errors=True)


def create_socket_folder(folder: Path) -> Path:
    """Where the sockets go: the data folder, or a new private one if its path is too long or not plain."""
    if _fits_sockets(folder):
        return folder
    # The second one is for machines whose temporary folder has a long path, such as macOS.
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a private folder there
        if _fits_sockets(Path(parent) / f"{TEMPORARY_PREFIX}12345678") and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
    raise StorageConfigError(
        f"the path of data_dir {folder} is too long for a socket; choose a data_dir with a shorter path"
    )


def remove_sockets(socket_folder: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):
        (socket_folder / CLIENT_SOCKET).unlink(missing_ok=True)
        (socket_folder / SERVER_SOCKET).unlink(missing_ok=True)
        if socket_folder != folder:
            socket_folder.rmdir()


def _fits_sockets(folder: Path) -> bool:
    path = str(folder / SERVER_SOCKET)
    return _PLAIN_PATH.fullmatch(path) is not None and len(path) <= _MAX_SOCKET_PATH_BYTES


def open_log(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), "wb")


def read_tail(log: Path) -> str:
    """The end of a log; nothing if it cannot be read."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""
