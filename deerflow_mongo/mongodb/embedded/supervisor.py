"""The supervisor process: owns the `mongod` of one folder, heals it, and stops it when the last user is gone.

Started with `python -m` by the first user, whom it answers with one line of JSON. It uses no driver: threads
do not go with starting a child that is tied to the thread which started it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...contract.errors import StorageConfigError
from .diagnosis import StartFailed, complaints_in, diagnose
from .folder import (
    CLIENT_SOCKET,
    DATABASE,
    PREVIOUS_LOG,
    SERVER_FILE,
    SERVER_LOG,
    SERVER_SOCKET,
    STOP_TIMEOUT_MS,
    SUPERVISOR_LOCK,
    TEMPORARY_MARK,
    TEMPORARY_PREFIX,
    USERS_LOCK,
    Server,
    folder_error,
    folder_id,
    open_log,
    tail,
)
from .locks import STARTING_POLL_MS, Deadline, open_lock, try_own, try_share
from .wire import REPLICA_SET, command, is_writable

_log = logging.getLogger(__name__)
_SERVER_OPTIONS = (
    # Part of the member's name and nothing else: no TCP socket is opened.
    *("--port", "27017", "--nounixsocket", "--filePermissions", "0700"),
    *("--replSet", REPLICA_SET, "--oplogSize", "256", "--quiet"),
    *("--wiredTigerCacheSizeGB", "0.25"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
)
_LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107, on macOS 103
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")  # neither mongod nor a URL gives any of these a meaning
_POLL_MS = 100
_RESTART_LIMIT = 5
_RESTART_PAUSES_MS = (0, 200, 500, 1_000, 2_000)
_STEADY_MS = 60_000  # a server that ran this long did not fail "again"
_FAILED_STOP_TIMEOUT_MS = 5_000
_RESTART_TIMEOUT_MS = 60_000
_ORPHAN_PATIENCE_MS = 15_000
_NEIGHBOUR_PATIENCE_MS = 2_000


class _Supervisor:
    """Owns the mongod of one folder. Single-threaded: mongod is tied to the thread that starts it."""

    def __init__(self, folder: Path, mongod: Path, start_timeout_ms: int) -> None:
        self._folder = folder
        self._mongod = mongod
        self._start_timeout_ms = start_timeout_ms
        self._lock_fd = open_lock(folder / SUPERVISOR_LOCK)
        self._users_fd = open_lock(folder / USERS_LOCK)
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
            stop_timeout_ms = STOP_TIMEOUT_MS
            _answer(server.to_json())
            self._watch()
        except StartFailed as failure:
            _log.error("%s", failure.text)
            _answer({"failure": failure.kind, "text": failure.text})
        finally:
            self._stop(stop_timeout_ms)

    def _take_lock(self) -> bool:
        # A user's look at the lock takes it for a moment.
        deadline = Deadline(1_000)
        while not try_own(self._lock_fd):
            if deadline.passed:
                return False
            time.sleep(STARTING_POLL_MS / 1000)
        return True

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self._told_to_stop = True

    def _is_unwanted(self) -> bool:
        """Whether to stop: told so, no user left (whose lock is then ours), or the folder is gone."""
        return self._told_to_stop or try_own(self._users_fd) or not self._has_folder()

    def _has_folder(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock_fd), (self._folder / SUPERVISOR_LOCK).stat())
        except OSError:
            return False

    def _start(self) -> Server:
        patience = Deadline(self._clear_up_after_predecessor())
        try:
            self._sockets = _socket_folder(self._folder)
            (self._folder / DATABASE).mkdir(mode=0o700, exist_ok=True)
            for folder in {self._folder, self._sockets}:
                # Tells systemd-tmpfiles, which removes old files from /tmp, to leave these alone.
                try_share(os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
            return self._launch_when_free(patience)
        except OSError as error:
            known = folder_error(str(self._folder), error)
            kind = "config" if isinstance(known, StorageConfigError) else "unavailable"
            raise StartFailed(kind, str(known)) from error

    def _clear_up_after_predecessor(self) -> int:
        """Clean up after a killed supervisor; return how many ms a mongod of it may need to end."""
        predecessor = Server.of(self._folder)
        if predecessor is None:
            return _NEIGHBOUR_PATIENCE_MS
        sockets = Path(predecessor.socket).parent
        _end_orphan(sockets / SERVER_SOCKET)
        (self._folder / SERVER_FILE).unlink(missing_ok=True)
        _remove_sockets(sockets, self._folder)
        return _ORPHAN_PATIENCE_MS

    def _launch_when_free(self, patience: Deadline) -> Server:
        while True:
            _end_orphan(self._sockets / SERVER_SOCKET)
            try:
                return self._launch(self._start_timeout_ms)
            except StartFailed as failure:
                if failure.kind != "in_use" or patience.passed:
                    raise
            time.sleep(_POLL_MS / 1000)

    def _launch(self, timeout_ms: int) -> Server:
        """Start mongod and let clients in once it is writable."""
        deadline = Deadline(timeout_ms)
        self._process = self._spawn()
        while not deadline.passed:
            if self._process.poll() is not None:
                raise diagnose(self._folder, self._mongod, self._process.returncode)
            if self._is_unwanted():
                raise StartFailed(
                    "unavailable", f"the server of {self._folder} was told to stop while it started"
                )
            if is_writable(self._sockets / SERVER_SOCKET):
                return self._publish(self._process.pid)
            time.sleep(STARTING_POLL_MS / 1000)
        raise StartFailed(
            "unavailable",
            f"the server of {self._folder} was not writable in {timeout_ms:,} ms; see {SERVER_LOG} there",
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / SERVER_LOG).replace(self._folder / PREVIOUS_LOG)
        places = ("--dbpath", str(self._folder / DATABASE), "--bind_ip", str(self._sockets / SERVER_SOCKET))
        with open_log(self._folder / SERVER_LOG) as log:
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
                raise StartFailed(
                    "config",
                    f"{self._mongod} cannot run on this machine ({error.strerror}); set mongod_path to a"
                    " mongod that is built for it",
                ) from error

    def _publish(self, pid: int) -> Server:
        server = Server(pid, str(self._sockets / CLIENT_SOCKET), folder_id(self._folder))
        draft = self._folder / f".{SERVER_FILE}"
        draft.write_text(server.to_json())
        draft.replace(self._folder / SERVER_FILE)
        link = Path(server.socket)
        link.unlink(missing_ok=True)
        link.symlink_to(SERVER_SOCKET)
        self._ready_at = time.monotonic()
        _log.info("mongod %d is writable", pid)
        return server

    def _unpublish(self) -> None:
        for path in (self._sockets / CLIENT_SOCKET, self._folder / SERVER_FILE):
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
        complaints = complaints_in(tail(self._folder / SERVER_LOG))
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
            except (StartFailed, OSError) as error:
                _log.warning("restart %d failed: %s", self._restarts, error)
                self._end_process(_FAILED_STOP_TIMEOUT_MS)
            else:
                return True
        _log.error("giving up after %d restarts", self._restarts)
        return False

    def _paused_in_vain(self, pause_ms: int) -> bool:
        pause = Deadline(pause_ms)
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
        if has_folder and (self._folder / TEMPORARY_MARK).exists():
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
        if _fits_sockets(Path(place) / f"{TEMPORARY_PREFIX}12345678") and os.access(place, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=place))
    raise StartFailed(
        "config",
        f"the path of data_dir {folder} is too long for a socket; choose a data_dir with a shorter path",
    )


def _fits_sockets(folder: Path) -> bool:
    path = str(folder / SERVER_SOCKET)
    return _PLAIN_PATH.fullmatch(path) is not None and len(path) <= _LONGEST_SOCKET_PATH


def _remove_sockets(sockets: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):
        (sockets / CLIENT_SOCKET).unlink(missing_ok=True)
        (sockets / SERVER_SOCKET).unlink(missing_ok=True)
        if sockets != folder:
            sockets.rmdir()


def _end_orphan(server_socket: Path) -> None:
    """End a mongod whose supervisor was killed: nobody but a supervisor could have put that socket there."""
    with contextlib.suppress(OSError):
        command(server_socket, {"shutdown": 1, "force": True})


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
    _Supervisor(Path(order["folder"]), Path(order["mongod"]), order["start_timeout_ms"]).run()


if __name__ == "__main__":
    _keep(json.loads(sys.argv[1]))
