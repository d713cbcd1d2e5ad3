"""Starting or joining the server of a data folder, and releasing it: what a process that uses it calls.

Runs no `mongod` itself: the process that finds none running starts a supervisor, and that owns it.
"""

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
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ...contract.errors import StorageConfigError, StorageUnavailableError
from .binary import find_mongod
from .diagnosis import ERROR_TYPES
from .folder import (
    START_LOCK,
    STOP_TIMEOUT_MS,
    SUPERVISOR_LOCK,
    SUPERVISOR_LOG,
    TEMPORARY_MARKER,
    USERS_LOCK,
    ServerInfo,
    create_temporary_folder,
    open_log,
    prepare_data_folder,
    read_tail,
    translate_folder_errors,
)
from .locks import (
    POLL_INTERVAL_MS,
    Deadline,
    existing_lock_file,
    is_unlocked,
    open_lock_file,
    try_lock_exclusive,
    try_lock_shared,
    unlock_and_close,
    wait_for_lock,
)

_log = logging.getLogger(__name__)
_SUPERVISOR_MODULE = f"{__package__}.supervisor"  # also in a vendored copy
_SUPERVISOR_GRACE_MS = 5_000  # what the supervisor may need beside the time that mongod has


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server of a data folder, in use by this process until `release`.

    `url` contains no secret and sets no timeouts; it stays the same when the server is restarted. `pid` is
    the process id of mongod when `start_embedded` returned.
    """

    url: str
    data_dir: Path
    pid: int
    _user_lock: _UserLock = field(repr=False, compare=False)

    def release(self) -> None:
        """Stop using the server; the last user of a folder waits here until it has stopped.

        Idempotent. In a forked child it releases the child's copy only.
        """
        self._user_lock.release()


def start_embedded(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    mongod_path: str | None = None,
    start_timeout_ms: int = 60_000,
) -> EmbeddedServer:
    """Start the server of `data_dir`, or join it if it runs, and return when it is writable.

    Without `data_dir` the data is in a temporary folder that is removed with the server. Raises
    StorageConfigError (MissingDependencyError if there is no mongod) for what has to be changed, and
    StorageUnavailableError for what may pass.
    """
    if sys.platform == "win32":
        raise StorageConfigError(
            "url: embedded runs on Linux and macOS only; set url to the address of a MongoDB server"
        )
    deadline = Deadline(start_timeout_ms)
    mongod = find_mongod(mongod_path)
    folder = create_temporary_folder() if data_dir is None else prepare_data_folder(data_dir)
    with translate_folder_errors(folder):
        user_lock = _UserLock(folder)
        try:
            user_lock.acquire(deadline)
            with _start_lock(folder, deadline):
                server = _join_or_start(folder, mongod, deadline)
        except BaseException:
            user_lock.release()
            raise
    _log.info("embedded MongoDB server (mongod %d) is running on %s", server.pid, folder)
    return EmbeddedServer(_url(server.socket), folder, server.pid, user_lock)


def _url(socket_path: str) -> str:
    return f"mongodb://{quote(socket_path, safe='')}/?directConnection=true"


class _UserLock:
    """The shared lock that makes this process a user of the server, for as long as it lives at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_temporary = (folder / TEMPORARY_MARKER).exists()
        self._pid = os.getpid()
        # Created before every other file: it marks the folder as ours.
        unlock_and_close(open_lock_file(folder / START_LOCK))
        self._fds = [open_lock_file(folder / USERS_LOCK)]

    def acquire(self, deadline: Deadline) -> None:
        error_text = (
            f"the previous server of {self._folder} did not stop within {deadline.timeout_ms:,} ms; try again"
        )
        wait_for_lock(try_lock_shared, self._fds[0], deadline, error_text)

    def release(self) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:
            return
        # Only closed, not unlocked: a forked child shares the lock with its parent.
        os.close(fd)
        if os.getpid() == self._pid:
            self._wait_until_stopped()

    def _wait_until_stopped(self) -> None:
        """Return at once if the server has other users."""
        deadline = Deadline(STOP_TIMEOUT_MS + _SUPERVISOR_GRACE_MS)
        seen_in_a_row = 0
        while not is_unlocked(self._folder / SUPERVISOR_LOCK):
            # Twice in a row: once may have been the check of another process.
            seen_in_a_row = seen_in_a_row + 1 if _has_other_users(self._folder / USERS_LOCK) else 0
            if seen_in_a_row == 2 or deadline.passed:
                return
            time.sleep(POLL_INTERVAL_MS / 1000)
        # The supervisor removes it, too, unless it was killed; then mongod may need a moment to exit.
        while self._is_temporary and self._folder.exists() and not deadline.passed:
            shutil.rmtree(self._folder, ignore_errors=True)
            time.sleep(POLL_INTERVAL_MS / 1000)


def _has_other_users(users_lock: Path) -> bool:
    # A supervisor that stops holds the lock exclusively, and so does another such check for a moment.
    try:
        with existing_lock_file(users_lock) as fd:
            return not try_lock_exclusive(fd) and try_lock_shared(fd)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _start_lock(folder: Path, deadline: Deadline) -> Generator[None]:
    """Let one process at a time start the server or join it."""
    error_text = (
        f"another process did not finish starting the server of {folder} within {deadline.timeout_ms:,} ms;"
        " try again"
    )
    fd = open_lock_file(folder / START_LOCK)
    try:
        wait_for_lock(try_lock_exclusive, fd, deadline, error_text)
        yield
    finally:
        unlock_and_close(fd)


def _join_or_start(folder: Path, mongod: Path, deadline: Deadline) -> ServerInfo:
    while not deadline.passed:
        if is_unlocked(folder / SUPERVISOR_LOCK):
            if server := _start_supervisor(folder, mongod, deadline):
                return server
        elif (server := ServerInfo.read(folder)) and server.accepts_connections():
            return server
        time.sleep(POLL_INTERVAL_MS / 1000)
    raise StorageUnavailableError(
        f"the server of {folder} was not writable within {deadline.timeout_ms:,} ms;"
        f" see {SUPERVISOR_LOG} there"
    )


def _start_supervisor(folder: Path, mongod: Path, deadline: Deadline) -> ServerInfo | None:
    """The started server, or None if another supervisor was faster."""
    request = {"folder": str(folder), "mongod": str(mongod), "start_timeout_ms": deadline.remaining_ms}
    with open_log(folder / SUPERVISOR_LOG) as log:
        try:
            supervisor = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [str(sys.executable), "-P", "-m", _SUPERVISOR_MODULE, json.dumps(request)],
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
    # The supervisor may outlive this process; if it does not, its exit status has to be collected.
    threading.Thread(target=supervisor.wait, name="deerflow-mongo-supervisor", daemon=True).start()
    reply = _read_reply(supervisor, Deadline(deadline.remaining_ms + _SUPERVISOR_GRACE_MS))
    if not reply:
        supervisor.kill()
        raise _no_reply_error(folder)
    return _parse_reply(reply)


def _read_reply(supervisor: subprocess.Popen[bytes], deadline: Deadline) -> bytes:
    """The line that the supervisor wrote, or nothing if it exited or the deadline passed before."""
    reply = b""
    assert supervisor.stdout is not None  # noqa: S101 - it is a pipe
    with supervisor.stdout as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not reply.endswith(b"\n") and not deadline.passed:
            if selector.select(deadline.remaining_ms / 1000):
                part = os.read(pipe.fileno(), 65536)
                if not part:
                    return b""
                reply += part
    return reply if reply.endswith(b"\n") else b""


def _parse_reply(reply: bytes) -> ServerInfo | None:
    if server := ServerInfo.from_json(reply):
        return server
    failure: dict[str, str] = json.loads(reply)
    if failure["failure"] == "busy":
        return None
    raise ERROR_TYPES[failure["failure"]](failure["text"])


def _no_reply_error(folder: Path) -> StorageUnavailableError:
    lines = read_tail(folder / SUPERVISOR_LOG).strip().splitlines()
    return StorageUnavailableError(
        f"the supervisor of {folder} did not reply"
        f" (last line of {SUPERVISOR_LOG}: {lines[-1] if lines else 'none, it is empty'}); try again"
    )
