"""A private MongoDB server for `url: embedded`: a `mongod` on a data folder, for one user of one machine.

The server is a replica set of one and listens on a unix socket only, in a folder that only its user may
enter: no network port, and so no password. A *keeper* process owns the `mongod`, starts it again when it
dies, and stops it when the last user is gone. The kernel counts the users: each holds a shared lock on a
file, which ends with the process however it ends. On Linux `mongod` ends with its keeper, too; on macOS a
killed keeper leaves it running until the next start on its folder, which stops it first. This is no way to
run a server for several users or machines, and it does not run on Windows.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import re
import selectors
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast
from urllib.parse import quote

from .errors import (
    MissingDependencyError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)

_log = logging.getLogger(__name__)

_MODULE = "deerflow_mongo.embedded"
_TEMPORARY_PREFIX = "deerflow-mongo-"
_REPLICA_SET = "deerflow"

# What stands in a data folder.
_START_LOCK = "start.lock"  # one starter at a time; the first file to be made, so it marks a folder as ours
_USERS_LOCK = "users.lock"  # shared by the users, exclusive to a keeper that stops
_KEEPER_LOCK = "keeper.lock"  # exclusive to the keeper while it lives
_SERVER_FILE = "server.json"  # what users need to know of a running server
_DATABASE = "db"
_SERVER_LOG = "mongod.log"
_PREVIOUS_LOG = "mongod.log.1"
_KEEPER_LOG = "keeper.log"
_TEMPORARY_MARK = "temporary"
_SERVER_SOCKET = "server.sock"  # where mongod listens
_CLIENT_SOCKET = "mongod.sock"  # a link to it that exists only while the server is writable
_OWN_FILES = frozenset(
    {_START_LOCK, _USERS_LOCK, _KEEPER_LOCK, _SERVER_FILE, _DATABASE, _SERVER_LOG, _PREVIOUS_LOG, _KEEPER_LOG}
    | {_TEMPORARY_MARK, _SERVER_SOCKET, _CLIENT_SOCKET}
)

_SERVER_OPTIONS = (
    # Part of the member's name and nothing else: no TCP socket is opened.
    *("--port", "27017", "--nounixsocket", "--filePermissions", "0700"),
    *("--replSet", _REPLICA_SET, "--oplogSize", "256", "--quiet"),
    *("--wiredTigerCacheSizeGB", "0.25"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
)
_REPLICA_SET_SETTINGS = {"electionTimeoutMillis": 1000}
_NOT_YET_INITIALIZED = 94

_LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107, on macOS 103
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")  # neither mongod nor a URL gives any of these a meaning

_POLL_MS = 100
_STARTING_POLL_MS = 10
_RESTART_LIMIT = 5
_RESTART_PAUSES_MS = (0, 200, 500, 1_000, 2_000)
_STEADY_MS = 60_000  # a server that ran this long did not fail "again"
_STOP_TIMEOUT_MS = 30_000
_FAILED_STOP_TIMEOUT_MS = 5_000
_RESTART_TIMEOUT_MS = 60_000
_ORPHAN_PATIENCE_MS = 15_000
_NEIGHBOUR_PATIENCE_MS = 2_000
_ANSWER_GRACE_MS = 5_000
_ABANDONED_AFTER_MS = 3_600_000
_LOG_TAIL_BYTES = 256 * 1024
_LEAST_FREE_BYTES = 1024 * 1024

_FailureKind = Literal["config", "unavailable", "in_use", "busy"]
_ERRORS: Mapping[str, type[StorageError]] = {
    "config": StorageConfigError,
    "unavailable": StorageUnavailableError,
    "in_use": StorageUnavailableError,
}

_DISK_FULL = "the disk that holds {folder} is full; free some space and start again"
_NOT_PERMITTED = "{folder} holds files that this user may not read and write; give them to this user"
# The first pattern found in mongod's complaints names the cause. Their order matters: an unsupported file
# version, for one, is reported as "Permission denied".
_DIAGNOSES: tuple[tuple[re.Pattern[str], _FailureKind, str], ...] = (
    (
        re.compile(
            r"error while loading shared libraries: ([^:\s]+)|version `(\S+)' not found"
            r"|Library not loaded: (\S+)"
        ),
        "config",
        "{mongod} cannot run on this system, which lacks {detail}; install the system package that has it or"
        " set mongod_path to a mongod built for this system",
    ),
    (
        re.compile(r"Exec format error|Bad CPU type|cannot execute|Illegal instruction"),
        "config",
        "{mongod} is not built for this machine; set mongod_path to a mongod that is",
    ),
    (
        re.compile(r"DBPathInUse|Unable to lock the lock file"),
        "in_use",
        "another mongod already uses {folder}; stop it or choose another data_dir",
    ),
    (re.compile(r"No space left on device|Disk quota exceeded"), "unavailable", _DISK_FULL),
    (
        re.compile(
            r"unsupported WiredTiger|WiredTiger version incompat|under any compatibility version"
            r"|UPGRADE PROBLEM|[Ii]nvalid feature ?[Cc]ompatibility ?[Vv]ersion|too recent to start up"
        ),
        "config",
        "the data in {folder} was written by a mongod of a version that {mongod} cannot read; set mongod_path"
        " to one that can or choose another data_dir",
    ),
    (
        re.compile(r"Permission denied|Operation not permitted|Read-only file system"),
        "config",
        _NOT_PERMITTED,
    ),
)


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """One user's hold on the server of a data folder.

    `url` holds no secret and sets no timeouts; it stays the same when the server is started again. `pid` is
    mongod's at the time of the start.
    """

    url: str
    data_dir: Path
    pid: int
    _hold: _Hold = field(repr=False, compare=False)

    def release(self) -> None:
        """Give up the hold; the last user of a folder waits here until the server has stopped.

        May be called again. In a forked child it gives up the child's copy only.
        """
        self._hold.release()


def start_embedded(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    mongod_path: str | None = None,
    start_timeout_ms: int = 60_000,
) -> EmbeddedServer:
    """Start the server of `data_dir`, or join it where it runs, and return when it is writable.

    Without `data_dir` the data lives in a temporary folder that is removed with the server. Raises
    StorageConfigError (MissingDependencyError where there is no mongod) for what someone has to change, and
    StorageUnavailableError for what may pass.
    """
    if sys.platform == "win32":
        raise StorageConfigError(
            "url: embedded runs on Linux and macOS only; set url to the address of a MongoDB server"
        )
    deadline = _Deadline(start_timeout_ms)
    mongod = find_mongod(mongod_path)
    folder = _temporary_folder() if data_dir is None else _data_folder(data_dir)
    with _folder_errors_explained(folder):
        hold = _Hold(folder)
        try:
            hold.take(deadline)
            with _only_starter(folder, deadline):
                server = _join_or_start(folder, mongod, deadline)
        except BaseException:
            hold.release()
            raise
    _log.info("embedded MongoDB server %d serves %s", server.pid, folder)
    return EmbeddedServer(_url(server.socket), folder, server.pid, hold)


def find_mongod(mongod_path: str | None = None) -> Path:
    """The mongod to run: `mongod_path`, else the one on PATH, else the one the extra `embedded` installs."""
    if mongod_path is not None:
        return _given_mongod(Path(mongod_path).expanduser())
    if on_path := shutil.which("mongod"):
        return Path(on_path)
    for folder in _wheel_folders():
        mongod = Path(folder) / "db" / "bin" / "mongod"
        if mongod.is_file():
            return _made_executable(mongod)
    raise MissingDependencyError("url: embedded", "a mongod binary", "embedded")


def _given_mongod(mongod: Path) -> Path:
    if mongod.is_file() and os.access(mongod, os.X_OK):
        return mongod.absolute()
    raise StorageConfigError(
        f"mongod_path is {str(mongod)!r}, which is not an executable file; set it to a mongod or leave it out"
    )


def _wheel_folders() -> list[str]:
    # Found without an import: where FiftyOne itself is installed, importing it starts a server of its own.
    spec = importlib.util.find_spec("fiftyone")
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _made_executable(mongod: Path) -> Path:
    # Wheels may lose the execute bit on their way.
    if not os.access(mongod, os.X_OK):
        try:
            mongod.chmod(mongod.stat().st_mode | 0o111)
        except OSError as error:
            raise StorageConfigError(
                f"{mongod} is not executable and this user cannot change that; run chmod +x on it"
            ) from error
    return mongod


class _Deadline:
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
class _Server:
    """What a keeper tells of its server, in its answer and in server.json."""

    pid: int
    socket: str
    folder_id: str  # so that in the copy of a folder the file says nothing of the original's server

    @classmethod
    def from_json(cls, text: str | bytes) -> _Server | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(text)
            return cls(int(values["pid"]), str(values["socket"]), str(values["folder_id"]))
        return None

    @classmethod
    def of(cls, folder: Path) -> _Server | None:
        with contextlib.suppress(OSError):
            server = cls.from_json((folder / _SERVER_FILE).read_bytes())
            return server if server and server.folder_id == _folder_id(folder) else None
        return None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(self.socket)
            return True
        return False


def _folder_id(folder: Path) -> str:
    about = folder.stat()
    return f"{about.st_dev}:{about.st_ino}"


def _url(socket_path: str) -> str:
    return f"mongodb://{quote(socket_path, safe='')}/?directConnection=true"


# --- folders and locks


def _data_folder(data_dir: str | os.PathLike[str]) -> Path:
    if not os.fspath(data_dir):
        raise StorageConfigError("data_dir is empty; set it to a folder or leave it out for a temporary one")
    folder = Path(data_dir).expanduser().absolute()
    with _folder_errors_explained(folder):
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
    if strangers and not (folder / _START_LOCK).exists():
        raise StorageConfigError(
            f"data_dir {folder} holds other files, such as {strangers[0]!r}; choose an empty or a new folder"
        )


def _is_strange(name: str) -> bool:
    return name not in _OWN_FILES and not name.startswith(".") and name != "lost+found"


def _temporary_folder() -> Path:
    try:
        _remove_abandoned_folders()
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX)).resolve()
        (folder / _TEMPORARY_MARK).touch(mode=0o600)
    except OSError as error:
        raise _folder_error(tempfile.gettempdir(), error) from error
    return folder


def _remove_abandoned_folders() -> None:
    """Remove the temporary folders whose user and keeper were both killed: nobody else will."""
    newest = time.time() - _ABANDONED_AFTER_MS / 1000
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mtime > newest:
                continue
            with _probe(folder / _USERS_LOCK) as users:
                if (
                    (folder / _TEMPORARY_MARK).exists()
                    and _try_own(users)
                    and _is_free(folder / _KEEPER_LOCK)
                ):
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _folder_errors_explained(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _folder_error(str(folder), error) from error


def _folder_error(folder: str, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageUnavailableError(_DISK_FULL.format(folder=folder))
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        return StorageConfigError(
            f"data_dir {folder} is on a file system without file locks; choose a folder on a local disk"
        )
    return StorageConfigError(f"data_dir {folder} cannot be used ({error.strerror}); choose another data_dir")


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _open_log(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), "wb")


def _try_flock(fd: int, operation: int) -> bool:
    import fcntl  # not on Windows

    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_share(fd: int) -> bool:
    import fcntl

    return _try_flock(fd, fcntl.LOCK_SH)


def _try_own(fd: int) -> bool:
    import fcntl

    return _try_flock(fd, fcntl.LOCK_EX)


def _unlock(fd: int) -> None:
    import fcntl

    # Closing alone would leave the lock with a child that another thread forked meanwhile.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _wait_for(take: Callable[[int], bool], fd: int, deadline: _Deadline, message: str) -> None:
    while not take(fd):
        if deadline.passed:
            raise StorageUnavailableError(message)
        time.sleep(_STARTING_POLL_MS / 1000)


@contextlib.contextmanager
def _probe(lock: Path) -> Generator[int]:
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_free(lock: Path) -> bool:
    try:
        with _probe(lock) as fd:
            return _try_share(fd)
    except FileNotFoundError:
        return True


def _has_other_users(lock: Path) -> bool:
    # It takes both: a keeper that stops owns the lock, and so does another probe for a moment.
    try:
        with _probe(lock) as fd:
            return not _try_own(fd) and _try_share(fd)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _only_starter(folder: Path, deadline: _Deadline) -> Generator[None]:
    fd = _open_lock(folder / _START_LOCK)
    try:
        _wait_for(
            _try_own,
            fd,
            deadline,
            f"another process has been starting the server of {folder} for too long; try again",
        )
        yield
    finally:
        _unlock(fd)


class _Hold:
    """One user's shared lock; the kernel takes it back when the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_temporary = (folder / _TEMPORARY_MARK).exists()
        self._pid = os.getpid()
        _unlock(_open_lock(folder / _START_LOCK))  # marks the folder before anything else stands in it
        self._fds = [_open_lock(folder / _USERS_LOCK)]

    def take(self, deadline: _Deadline) -> None:
        late = f"the server of {self._folder} has been stopping for too long; try again"
        _wait_for(_try_share, self._fds[0], deadline, late)

    def release(self) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:
            return
        # Only closed, never unlocked: a forked child shares the lock with its parent.
        os.close(fd)
        if os.getpid() == self._pid:
            self._wait_until_stopped()

    def _wait_until_stopped(self) -> None:
        deadline = _Deadline(_STOP_TIMEOUT_MS + _ANSWER_GRACE_MS)
        sightings = 0
        while not _is_free(self._folder / _KEEPER_LOCK):
            # Two in a row: the first may have been another user's probe.
            sightings = sightings + 1 if _has_other_users(self._folder / _USERS_LOCK) else 0
            if sightings == 2 or deadline.passed:
                return
            time.sleep(_STARTING_POLL_MS / 1000)
        # The keeper does this, too, unless it was killed; then mongod may need a moment to end.
        while self._is_temporary and self._folder.exists() and not deadline.passed:
            shutil.rmtree(self._folder, ignore_errors=True)
            time.sleep(_STARTING_POLL_MS / 1000)


# --- the user's side of a start


def _join_or_start(folder: Path, mongod: Path, deadline: _Deadline) -> _Server:
    while not deadline.passed:
        if _is_free(folder / _KEEPER_LOCK):
            if server := _start_keeper(folder, mongod, deadline):
                return server
        elif (server := _Server.of(folder)) and server.accepts():
            return server
        time.sleep(_STARTING_POLL_MS / 1000)
    raise StorageUnavailableError(
        f"the server of {folder} was not writable in {deadline.timeout_ms:,} ms; see {_KEEPER_LOG} there"
    )


def _start_keeper(folder: Path, mongod: Path, deadline: _Deadline) -> _Server | None:
    """The started server, or None where another keeper was faster."""
    order = {"folder": str(folder), "mongod": str(mongod), "start_timeout_ms": deadline.left_ms}
    with _open_log(folder / _KEEPER_LOG) as log:
        try:
            keeper = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [str(sys.executable), "-P", "-m", _MODULE, json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
                },
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise StorageConfigError(
                f"url: embedded cannot start the Python interpreter {sys.executable!r} ({error}); set url to"
                " the address of a MongoDB server"
            ) from error
    # It outlives this call and may outlive this process; until then somebody has to collect its exit status.
    threading.Thread(target=keeper.wait, name="deerflow-mongo-keeper", daemon=True).start()
    answer = _read_answer(keeper, _Deadline(deadline.left_ms + _ANSWER_GRACE_MS))
    return _server_in(answer) if answer else _raise_silent_keeper(keeper, folder)


def _read_answer(keeper: subprocess.Popen[bytes], deadline: _Deadline) -> bytes:
    """The keeper's line, or nothing if it ended or stayed silent."""
    answer = b""
    assert keeper.stdout is not None  # noqa: S101 - it was asked for
    with keeper.stdout as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not answer.endswith(b"\n") and not deadline.passed:
            if selector.select(deadline.left_ms / 1000):
                part = os.read(pipe.fileno(), 65536)
                if not part:
                    return b""
                answer += part
    return answer if answer.endswith(b"\n") else b""


def _server_in(answer: bytes) -> _Server | None:
    if server := _Server.from_json(answer):
        return server
    failure: dict[str, str] = json.loads(answer)
    if failure["failure"] == "busy":
        return None
    raise _ERRORS[failure["failure"]](failure["text"])


def _raise_silent_keeper(keeper: subprocess.Popen[bytes], folder: Path) -> NoReturn:
    keeper.kill()
    words = _tail(folder / _KEEPER_LOG).strip().splitlines()
    raise StorageUnavailableError(
        f"the process that keeps the server of {folder} gave no answer"
        f" ({words[-1] if words else 'it wrote nothing'}); try again"
    )


# --- the keeper process


class _StartFailed(Exception):  # noqa: N818 - an answer on its way, never seen outside
    def __init__(self, kind: _FailureKind, text: str) -> None:
        super().__init__(text)
        self.kind: _FailureKind = kind
        self.text = text


class _Keeper:
    """Owns the mongod of one folder. Single-threaded: mongod is tied to the thread that starts it."""

    def __init__(self, folder: Path, mongod: Path, start_timeout_ms: int) -> None:
        self._folder = folder
        self._mongod = mongod
        self._start_timeout_ms = start_timeout_ms
        self._lock_fd = _open_lock(folder / _KEEPER_LOCK)
        self._users_fd = _open_lock(folder / _USERS_LOCK)
        self._sockets = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_at = 0.0
        self._restarts = 0
        self._told_to_stop = False

    def run(self) -> None:
        if not self._take_lock():
            _answer({"failure": "busy", "text": ""})
            return
        signal.signal(signal.SIGTERM, self._on_sigterm)
        stop_timeout_ms = _FAILED_STOP_TIMEOUT_MS
        try:
            server = self._start()
            stop_timeout_ms = _STOP_TIMEOUT_MS
            _answer(server.to_json())
            self._watch()
        except _StartFailed as failure:
            _log.error("%s", failure.text)
            _answer({"failure": failure.kind, "text": failure.text})
        finally:
            self._stop(stop_timeout_ms)

    def _take_lock(self) -> bool:
        # A user's look at the lock takes it for a moment.
        deadline = _Deadline(1_000)
        while not _try_own(self._lock_fd):
            if deadline.passed:
                return False
            time.sleep(_STARTING_POLL_MS / 1000)
        return True

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self._told_to_stop = True

    def _is_unwanted(self) -> bool:
        """Whether to stop: told so, no user left (whose lock is then ours), or the folder is gone."""
        return self._told_to_stop or _try_own(self._users_fd) or not self._has_folder()

    def _has_folder(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock_fd), (self._folder / _KEEPER_LOCK).stat())
        except OSError:
            return False

    def _start(self) -> _Server:
        patience = _Deadline(self._clear_up_after_predecessor())
        try:
            self._sockets = _socket_folder(self._folder)
            (self._folder / _DATABASE).mkdir(mode=0o700, exist_ok=True)
            for folder in {self._folder, self._sockets}:
                # Tells systemd-tmpfiles, which removes old files from /tmp, to leave these alone.
                _try_share(os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
            return self._launch_when_free(patience)
        except OSError as error:
            known = _folder_error(str(self._folder), error)
            kind = "config" if isinstance(known, StorageConfigError) else "unavailable"
            raise _StartFailed(kind, str(known)) from error

    def _clear_up_after_predecessor(self) -> int:
        """Clear up after a keeper that was killed; how long to wait for a mongod it may have left, in ms."""
        predecessor = _Server.of(self._folder)
        if predecessor is None:
            return _NEIGHBOUR_PATIENCE_MS
        sockets = Path(predecessor.socket).parent
        _end_orphan(sockets / _SERVER_SOCKET)
        (self._folder / _SERVER_FILE).unlink(missing_ok=True)
        _remove_sockets(sockets, self._folder)
        return _ORPHAN_PATIENCE_MS

    def _launch_when_free(self, patience: _Deadline) -> _Server:
        while True:
            _end_orphan(self._sockets / _SERVER_SOCKET)
            try:
                return self._launch(self._start_timeout_ms)
            except _StartFailed as failure:
                if failure.kind != "in_use" or patience.passed:
                    raise
            time.sleep(_POLL_MS / 1000)

    def _launch(self, timeout_ms: int) -> _Server:
        """Start mongod and let clients in once it is writable."""
        deadline = _Deadline(timeout_ms)
        self._process = self._spawn()
        while not deadline.passed:
            if self._process.poll() is not None:
                raise self._diagnosis(self._process.returncode)
            if self._is_unwanted():
                raise _StartFailed(
                    "unavailable", f"the server of {self._folder} was told to stop while it started"
                )
            if _is_writable(self._sockets / _SERVER_SOCKET):
                return self._publish(self._process.pid)
            time.sleep(_STARTING_POLL_MS / 1000)
        raise _StartFailed(
            "unavailable",
            f"the server of {self._folder} was not writable in {timeout_ms:,} ms; see {_SERVER_LOG} there",
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / _SERVER_LOG).replace(self._folder / _PREVIOUS_LOG)
        places = ("--dbpath", str(self._folder / _DATABASE), "--bind_ip", str(self._sockets / _SERVER_SOCKET))
        with _open_log(self._folder / _SERVER_LOG) as log:
            try:
                return subprocess.Popen(  # noqa: S603 - the mongod that the configuration names
                    [str(self._mongod), *places, *_SERVER_OPTIONS],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_end_with_parent(os.getpid()),
                )
            except OSError as error:
                # Also "not found", of a file that exists: what is not found is the loader it was built for.
                raise _StartFailed(
                    "config",
                    f"{self._mongod} cannot run on this machine ({error.strerror}); set mongod_path to a"
                    " mongod that is built for it",
                ) from error

    def _diagnosis(self, exit_code: int) -> _StartFailed:
        complaints = _complaints(_tail(self._folder / _SERVER_LOG))
        if exit_code == -signal.SIGILL:
            complaints.append("Illegal instruction")
        if shutil.disk_usage(self._folder).free < _LEAST_FREE_BYTES:
            complaints.append("No space left on device")  # mongod could not even write that
        text = "\n".join(complaints)
        for pattern, kind, sentence in _DIAGNOSES:
            if found := pattern.search(text):
                detail = next((group for group in found.groups() if group), "")
                return _StartFailed(
                    kind, sentence.format(folder=self._folder, mongod=self._mongod, detail=detail)
                )
        last = complaints[-1] if complaints else "it wrote no reason"
        return _StartFailed(
            "unavailable",
            f"mongod ended with exit code {exit_code} while it started on {self._folder}: {last}",
        )

    def _publish(self, pid: int) -> _Server:
        server = _Server(pid, str(self._sockets / _CLIENT_SOCKET), _folder_id(self._folder))
        draft = self._folder / f".{_SERVER_FILE}"
        draft.write_text(server.to_json())
        draft.replace(self._folder / _SERVER_FILE)
        link = Path(server.socket)
        link.unlink(missing_ok=True)
        link.symlink_to(_SERVER_SOCKET)
        self._ready_at = time.monotonic()
        _log.info("mongod %d is writable", pid)
        return server

    def _unpublish(self) -> None:
        for path in (self._sockets / _CLIENT_SOCKET, self._folder / _SERVER_FILE):
            with contextlib.suppress(OSError):
                path.unlink()

    def _watch(self) -> None:
        while not self._is_unwanted():
            if self._process is not None and self._process.poll() is not None and not self._heal():
                return
            time.sleep(_POLL_MS / 1000)

    def _heal(self) -> bool:
        """Start a mongod that died again, behind the same socket, so that connected clients see a pause."""
        self._unpublish()
        assert self._process is not None  # noqa: S101 - the caller saw it end
        complaints = _complaints(_tail(self._folder / _SERVER_LOG))
        reason = complaints[-1] if complaints else "it wrote no reason"
        _log.warning(
            "mongod %d ended with exit code %d: %s", self._process.pid, self._process.returncode, reason
        )
        first = 0 if (time.monotonic() - self._ready_at) * 1000 > _STEADY_MS else self._restarts
        for self._restarts in range(first + 1, _RESTART_LIMIT + 1):
            if self._paused_in_vain(_RESTART_PAUSES_MS[self._restarts - 1]):
                return False
            try:
                self._launch(_RESTART_TIMEOUT_MS)
            except (_StartFailed, OSError) as error:
                _log.warning("restart %d failed: %s", self._restarts, error)
                self._end_process(_FAILED_STOP_TIMEOUT_MS)
            else:
                return True
        _log.error("giving up after %d restarts", self._restarts)
        return False

    def _paused_in_vain(self, pause_ms: int) -> bool:
        pause = _Deadline(pause_ms)
        while not pause.passed:
            if self._is_unwanted():
                return True
            time.sleep(_POLL_MS / 1000)
        return False

    def _stop(self, timeout_ms: int) -> None:
        has_folder = self._has_folder()  # else what stands there now is not ours
        if has_folder:
            self._unpublish()
        self._end_process(timeout_ms)
        if has_folder or self._sockets != self._folder:
            _remove_sockets(self._sockets, self._folder)
        if has_folder and (self._folder / _TEMPORARY_MARK).exists():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end_process(self, timeout_ms: int) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_ms / 1000)
        except subprocess.TimeoutExpired:
            _log.warning("mongod %d did not stop in time and was killed", self._process.pid)
            self._process.kill()
            self._process.wait()


def _socket_folder(folder: Path) -> Path:
    """Where the sockets go: the data folder, or a private one elsewhere if its path is too long or odd."""
    if _fits_sockets(folder):
        return folder
    # The second for a machine whose temporary folder has a long path, as on macOS.
    for place in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a private folder there
        if _fits_sockets(Path(place) / f"{_TEMPORARY_PREFIX}12345678") and os.access(place, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=place))
    raise _StartFailed(
        "config",
        f"the path of data_dir {folder} is too long for a socket; choose a data_dir with a shorter path",
    )


def _fits_sockets(folder: Path) -> bool:
    path = str(folder / _SERVER_SOCKET)
    return _PLAIN_PATH.fullmatch(path) is not None and len(path) <= _LONGEST_SOCKET_PATH


def _remove_sockets(sockets: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):
        (sockets / _CLIENT_SOCKET).unlink(missing_ok=True)
        (sockets / _SERVER_SOCKET).unlink(missing_ok=True)
        if sockets != folder:
            sockets.rmdir()


def _end_orphan(server_socket: Path) -> None:
    """End a mongod whose keeper was killed: nobody but a keeper could have put that socket there."""
    with contextlib.suppress(OSError):
        _command(server_socket, {"shutdown": 1, "force": True})


def _end_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """What the child does before it becomes mongod, to get SIGTERM when its parent dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        # First, or the parent's handler would swallow a signal that comes before mongod is there.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(set_death_signal, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(1)

    return before_exec


def _is_writable(server_socket: Path) -> bool:
    """Whether mongod takes writes; on the way there, makes it a replica set of one at its present address."""
    try:
        reply = _command(server_socket, {"replSetGetConfig": 1})
        if reply.get("code") == _NOT_YET_INITIALIZED:
            members = [{"_id": 0, "host": str(server_socket)}]
            config = {"_id": _REPLICA_SET, "members": members, "settings": _REPLICA_SET_SETTINGS}
            _command(server_socket, {"replSetInitiate": config})
            return False
        config = cast("dict[str, Any] | None", reply.get("config"))
        if config and config["members"][0]["host"] != str(server_socket):
            config["members"][0]["host"] = str(server_socket)  # the folder was moved, or the socket had to
            config["version"] += 1
            _command(server_socket, {"replSetReconfig": config, "force": True})
            return False
        return _command(server_socket, {"hello": 1}).get("isWritablePrimary") is True
    except OSError:
        return False


def _command(server_socket: Path, command: Mapping[str, Any], timeout_ms: int = 30_000) -> dict[str, Any]:
    """One command over the wire; a driver's client would bring threads into a process that forks."""
    import bson

    body = struct.pack("<IB", 0, 0) + bson.encode({**command, "$db": "admin"})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_ms / 1000)
        connection.connect(str(server_socket))
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body)  # OP_MSG
        (length,) = struct.unpack("<i", _receive(connection, 4))
        message = _receive(connection, length - 4)
    return bson.decode(message[17:])  # pyright: ignore[reportUnknownMemberType] - its stubs say array


def _receive(connection: socket.socket, size_bytes: int) -> bytes:
    received = b""
    while len(received) < size_bytes:
        part = connection.recv(size_bytes - len(received))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "mongod closed the connection")
        received += part
    return received


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""


def _complaints(log: str) -> list[str]:
    """The errors in a mongod log, those with a reason last, and lines of other origin, as the loader's."""
    found: list[tuple[bool, str]] = []
    for line in log.splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            found.append((True, line))
            continue
        if (
            entry.get("s") in ("E", "F") and entry.get("msg") != "Writing fatal message"
        ):  # before a stack trace
            reason = _reason(entry.get("attr") or {})
            found.append((bool(reason), f"{entry.get('msg')}: {reason}" if reason else f"{entry.get('msg')}"))
    found.sort(key=lambda complaint: complaint[0])
    return [" ".join(text.split()) for _, text in found if text.strip()]


def _reason(attributes: dict[str, Any]) -> str:
    for key in ("message", "error", "reason"):
        reason: Any = attributes.get(key)
        if isinstance(reason, dict):
            parts = cast("dict[str, Any]", reason)
            reason = parts.get("errmsg") or f"{parts.get('msg')} ({parts.get('error_str')})"
        if isinstance(reason, str):
            return reason
    return ""


def _answer(answer: str | Mapping[str, str]) -> None:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    with contextlib.suppress(OSError):  # the user who asked may be gone
        os.write(sys.stdout.fileno(), text.encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _raise_file_limit() -> None:
    import resource  # not on Windows

    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep(order: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    _raise_file_limit()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _Keeper(Path(order["folder"]), Path(order["mongod"]), order["start_timeout_ms"]).run()


if __name__ == "__main__":
    _keep(json.loads(sys.argv[1]))
