"""Joining the server of a data folder, or starting it, and giving it up again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from ...contract.errors import StorageConfigError, StorageError, StorageUnavailableError
from .binary import find_mongod
from .folder import (
    START_LOCK,
    STOP_TIMEOUT_MS,
    SUPERVISOR_LOCK,
    SUPERVISOR_LOG,
    TEMPORARY_MARK,
    USERS_LOCK,
    Server,
    data_folder,
    folder_errors_explained,
    open_log,
    tail,
    temporary_folder,
)
from .locks import STARTING_POLL_MS, Deadline, is_free, open_lock, probe, try_own, try_share, unlock, wait_for

_log = logging.getLogger(__name__)
_MODULE = "deerflow_mongo.mongodb.embedded.supervisor"
_ANSWER_GRACE_MS = 5_000
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
    folder = temporary_folder() if data_dir is None else data_folder(data_dir)
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


def _url(socket_path: str) -> str:
    return f"mongodb://{quote(socket_path, safe='')}/?directConnection=true"


def _has_other_users(lock: Path) -> bool:
    # It takes both: a supervisor that stops owns the lock, and so does another probe for a moment.
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
        while not is_free(self._folder / SUPERVISOR_LOCK):
            # Two in a row: the first may have been another user's probe.
            sightings = sightings + 1 if _has_other_users(self._folder / USERS_LOCK) else 0
            if sightings == 2 or deadline.passed:
                return
            time.sleep(STARTING_POLL_MS / 1000)
        # The supervisor does this, too, unless it was killed; then mongod may need a moment to end.
        while self._is_temporary and self._folder.exists() and not deadline.passed:
            shutil.rmtree(self._folder, ignore_errors=True)
            time.sleep(STARTING_POLL_MS / 1000)


def _join_or_start(folder: Path, mongod: Path, deadline: Deadline) -> Server:
    while not deadline.passed:
        if is_free(folder / SUPERVISOR_LOCK):
            if server := _start_supervisor(folder, mongod, deadline):
                return server
        elif (server := Server.of(folder)) and server.accepts():
            return server
        time.sleep(STARTING_POLL_MS / 1000)
    raise StorageUnavailableError(
        f"the server of {folder} was not writable in {deadline.timeout_ms:,} ms; see {SUPERVISOR_LOG} there"
    )


def _start_supervisor(folder: Path, mongod: Path, deadline: Deadline) -> Server | None:
    """The started server, or None where another supervisor was faster."""
    order = {"folder": str(folder), "mongod": str(mongod), "start_timeout_ms": deadline.left_ms}
    with open_log(folder / SUPERVISOR_LOG) as log:
        try:
            supervisor = subprocess.Popen(  # noqa: S603 - our own interpreter and module
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
    threading.Thread(target=supervisor.wait, name="deerflow-mongo-supervisor", daemon=True).start()
    answer = _read_answer(supervisor, Deadline(deadline.left_ms + _ANSWER_GRACE_MS))
    return _server_in(answer) if answer else _raise_no_answer(supervisor, folder)


def _read_answer(supervisor: subprocess.Popen[bytes], deadline: Deadline) -> bytes:
    """The supervisor's line, or nothing if it ended or stayed silent."""
    answer = b""
    assert supervisor.stdout is not None  # noqa: S101 - it was asked for
    with supervisor.stdout as pipe, selectors.DefaultSelector() as selector:
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


def _raise_no_answer(supervisor: subprocess.Popen[bytes], folder: Path) -> NoReturn:
    supervisor.kill()
    words = tail(folder / SUPERVISOR_LOG).strip().splitlines()
    raise StorageUnavailableError(
        f"the process that keeps the server of {folder} gave no answer"
        f" ({words[-1] if words else 'it wrote nothing'}); try again"
    )
