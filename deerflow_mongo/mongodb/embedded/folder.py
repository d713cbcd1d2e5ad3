"""What stands in a data folder, who may use it, and what its server tells: shared by users and supervisor.

The locks are `flock`s: the kernel takes them back when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
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
from .locks import is_free, probe, try_own

TEMPORARY_PREFIX = "deerflow-mongo-"
# What stands in a data folder.
START_LOCK = "start.lock"  # one starter at a time; the first file to be made, so it marks a folder as ours
USERS_LOCK = "users.lock"  # shared by the users, exclusive to a supervisor that stops
SUPERVISOR_LOCK = "supervisor.lock"  # exclusive to the supervisor while it lives
SERVER_FILE = "server.json"  # what users need to know of a running server
DATABASE = "db"
SERVER_LOG = "mongod.log"
PREVIOUS_LOG = "mongod.log.1"
SUPERVISOR_LOG = "supervisor.log"
TEMPORARY_MARK = "temporary"
SERVER_SOCKET = "server.sock"  # where mongod listens
CLIENT_SOCKET = "mongod.sock"  # a link to it that exists only while the server is writable
OWN_FILES = frozenset(
    {START_LOCK, USERS_LOCK, SUPERVISOR_LOCK, SERVER_FILE, DATABASE, SERVER_LOG, PREVIOUS_LOG, SUPERVISOR_LOG}
    | {TEMPORARY_MARK, SERVER_SOCKET, CLIENT_SOCKET}
)
STOP_TIMEOUT_MS = 30_000
LOG_TAIL_BYTES = 256 * 1024
_ABANDONED_AFTER_MS = 3_600_000
DISK_FULL = "the disk that holds {folder} is full; free some space and start again"


@dataclass(frozen=True, slots=True)
class Server:
    """What a supervisor tells of its server, in its answer and in server.json."""

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


def open_log(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), "wb")


def tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""


def data_folder(data_dir: str | os.PathLike[str]) -> Path:
    if not os.fspath(data_dir):
        raise StorageConfigError("data_dir is empty; set it to a folder or leave it out for a temporary one")
    folder = Path(data_dir).expanduser().absolute()
    with folder_errors_explained(folder):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        folder = folder.resolve()
        _refuse_unfit_folder(folder)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    return folder


def _refuse_unfit_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise StorageConfigError(f"data_dir {folder} is not a folder; choose another data_dir")
    if folder.stat().st_uid != os.geteuid():
        raise StorageConfigError(
            f"data_dir {folder} belongs to another user; choose a folder of your own or the path of a new one"
        )
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise StorageConfigError(f"data_dir {folder} is not writable; choose another data_dir")
    strangers = sorted(path.name for path in folder.iterdir() if _is_strange(path.name))
    if strangers and not (folder / START_LOCK).exists():
        raise StorageConfigError(
            f"data_dir {folder} holds other files, such as {strangers[0]!r}; choose an empty or a new folder"
        )


def _is_strange(name: str) -> bool:
    return name not in OWN_FILES and not name.startswith(".") and name != "lost+found"


def temporary_folder() -> Path:
    try:
        _remove_abandoned_folders()
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)).resolve()
        (folder / TEMPORARY_MARK).touch(mode=0o600)
    except OSError as error:
        raise folder_error(tempfile.gettempdir(), error) from error
    return folder


def _remove_abandoned_folders() -> None:
    """Remove the temporary folders whose user and supervisor were both killed: nobody else will."""
    newest = time.time() - _ABANDONED_AFTER_MS / 1000
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mtime > newest:
                continue
            with probe(folder / USERS_LOCK) as users:
                if (
                    (folder / TEMPORARY_MARK).exists()
                    and try_own(users)
                    and is_free(folder / SUPERVISOR_LOCK)
                ):
                    shutil.rmtree(folder, ignore_errors=True)
