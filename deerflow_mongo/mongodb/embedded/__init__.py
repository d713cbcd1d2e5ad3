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
import importlib.util
import json
import logging
import os
import selectors
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from ...contract.errors import (
    MissingDependencyError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from .folder import (
    KEEPER_LOCK,
    KEEPER_LOG,
    OWN_FILES,
    START_LOCK,
    STARTING_POLL_MS,
    STOP_TIMEOUT_MS,
    TEMPORARY_MARK,
    TEMPORARY_PREFIX,
    USERS_LOCK,
    Deadline,
    Server,
    folder_error,
    folder_errors_explained,
    is_free,
    open_lock,
    open_log,
    probe,
    tail,
    try_own,
    try_share,
    unlock,
    wait_for,
)

_log = logging.getLogger(__name__)
_MODULE = "deerflow_mongo.mongodb.embedded.supervisor"
_ANSWER_GRACE_MS = 5_000
_ABANDONED_AFTER_MS = 3_600_000
_ERRORS: Mapping[str, type[StorageError]] = {
    "config": StorageConfigError,
    "unavailable": StorageUnavailableError,
    "in_use": StorageUnavailableError,
}


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
    deadline = Deadline(start_timeout_ms)
    mongod = find_mongod(mongod_path)
    folder = _temporary_folder() if data_dir is None else _data_folder(data_dir)
    with folder_errors_explained(folder):
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


def _url(socket_path: str) -> str:
    return f"mongodb://{quote(socket_path, safe='')}/?directConnection=true"


def _data_folder(data_dir: str | os.PathLike[str]) -> Path:
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


def _temporary_folder() -> Path:
    try:
        _remove_abandoned_folders()
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)).resolve()
        (folder / TEMPORARY_MARK).touch(mode=0o600)
    except OSError as error:
        raise folder_error(tempfile.gettempdir(), error) from error
    return folder


def _remove_abandoned_folders() -> None:
    """Remove the temporary folders whose user and keeper were both killed: nobody else will."""
    newest = time.time() - _ABANDONED_AFTER_MS / 1000
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mtime > newest:
                continue
            with probe(folder / USERS_LOCK) as users:
                if (folder / TEMPORARY_MARK).exists() and try_own(users) and is_free(folder / KEEPER_LOCK):
                    shutil.rmtree(folder, ignore_errors=True)


def _has_other_users(lock: Path) -> bool:
    # It takes both: a keeper that stops owns the lock, and so does another probe for a moment.
    try:
        with probe(lock) as fd:
            return not try_own(fd) and try_share(fd)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _only_starter(folder: Path, deadline: Deadline) -> Generator[None]:
    fd = open_lock(folder / START_LOCK)
    try:
        wait_for(
            try_own,
            fd,
            deadline,
            f"another process has been starting the server of {folder} for too long; try again",
        )
        yield
    finally:
        unlock(fd)


class _Hold:
    """One user's shared lock; the kernel takes it back when the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_temporary = (folder / TEMPORARY_MARK).exists()
        self._pid = os.getpid()
        unlock(open_lock(folder / START_LOCK))  # marks the folder before anything else stands in it
        self._fds = [open_lock(folder / USERS_LOCK)]

    def take(self, deadline: Deadline) -> None:
        late = f"the server of {self._folder} has been stopping for too long; try again"
        wait_for(try_share, self._fds[0], deadline, late)

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
        deadline = Deadline(STOP_TIMEOUT_MS + _ANSWER_GRACE_MS)
        sightings = 0
        while not is_free(self._folder / KEEPER_LOCK):
            # Two in a row: the first may have been another user's probe.
            sightings = sightings + 1 if _has_other_users(self._folder / USERS_LOCK) else 0
            if sightings == 2 or deadline.passed:
                return
            time.sleep(STARTING_POLL_MS / 1000)
        # The keeper does this, too, unless it was killed; then mongod may need a moment to end.
        while self._is_temporary and self._folder.exists() and not deadline.passed:
            shutil.rmtree(self._folder, ignore_errors=True)
            time.sleep(STARTING_POLL_MS / 1000)


def _join_or_start(folder: Path, mongod: Path, deadline: Deadline) -> Server:
    while not deadline.passed:
        if is_free(folder / KEEPER_LOCK):
            if server := _start_keeper(folder, mongod, deadline):
                return server
        elif (server := Server.of(folder)) and server.accepts():
            return server
        time.sleep(STARTING_POLL_MS / 1000)
    raise StorageUnavailableError(
        f"the server of {folder} was not writable in {deadline.timeout_ms:,} ms; see {KEEPER_LOG} there"
    )


def _start_keeper(folder: Path, mongod: Path, deadline: Deadline) -> Server | None:
    """The started server, or None where another keeper was faster."""
    order = {"folder": str(folder), "mongod": str(mongod), "start_timeout_ms": deadline.left_ms}
    with open_log(folder / KEEPER_LOG) as log:
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
    answer = _read_answer(keeper, Deadline(deadline.left_ms + _ANSWER_GRACE_MS))
    return _server_in(answer) if answer else _raise_silent_keeper(keeper, folder)


def _read_answer(keeper: subprocess.Popen[bytes], deadline: Deadline) -> bytes:
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


def _server_in(answer: bytes) -> Server | None:
    if server := Server.from_json(answer):
        return server
    failure: dict[str, str] = json.loads(answer)
    if failure["failure"] == "busy":
        return None
    raise _ERRORS[failure["failure"]](failure["text"])


def _raise_silent_keeper(keeper: subprocess.Popen[bytes], folder: Path) -> NoReturn:
    keeper.kill()
    words = tail(folder / KEEPER_LOG).strip().splitlines()
    raise StorageUnavailableError(
        f"the process that keeps the server of {folder} gave no answer"
        f" ({words[-1] if words else 'it wrote nothing'}); try again"
    )
