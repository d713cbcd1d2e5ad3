"""The supervisor process: owns the `mongod` of one folder, restarts it, and stops it after its last user.

Started with `python -m` by the first user, to whom it replies with one line of JSON: a `ServerInfo`, or a
failure. It uses no driver: a driver starts threads, and mongod's death signal is tied to the thread that
forks it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...contract.errors import StorageConfigError, StorageError
from .diagnosis import StartError, diagnose, last_error
from .folder import (
    CLIENT_SOCKET,
    DATABASE,
    PREVIOUS_LOG,
    SERVER_FILE,
    SERVER_LOG,
    SERVER_SOCKET,
    STOP_TIMEOUT_MS,
    SUPERVISOR_LOCK,
    TEMPORARY_MARKER,
    USERS_LOCK,
    ServerInfo,
    create_socket_folder,
    folder_id,
    open_log,
    remove_sockets,
    translate_folder_errors,
)
from .locks import POLL_INTERVAL_MS, Deadline, open_lock_file, try_lock_exclusive, try_lock_shared
from .wire import REPLICA_SET, is_writable, request_shutdown

_log = logging.getLogger(__name__)
_MONGOD_OPTIONS = (
    # The port is only part of the socket's name: no TCP socket is opened.
    *("--port", "27017", "--nounixsocket", "--filePermissions", "0700"),
    *("--replSet", REPLICA_SET, "--oplogSize", "256", "--quiet"),
    *("--wiredTigerCacheSizeGB", "0.25"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
)
_WATCH_INTERVAL_MS = 100
_LOCK_TIMEOUT_MS = 1_000
_MAX_RESTARTS = 5
_RESTART_DELAYS_MS = (0, 200, 500, 1_000, 2_000)
_RESTART_COUNT_RESET_MS = 60_000  # a mongod that ran this long starts the count again
_RESTART_TIMEOUT_MS = 60_000
_FAILED_STOP_TIMEOUT_MS = 5_000
# How long to try again while another mongod uses the data files.
_IN_USE_RETRY_BUDGET_MS = 2_000
_ORPHAN_RETRY_BUDGET_MS = 15_000


class _Supervisor:
    """Owns the mongod of one folder. Single-threaded: mongod's death signal is tied to the forking thread."""

    def __init__(self, folder: Path, mongod: Path, start_timeout_ms: int) -> None:
        self._folder = folder
        self._mongod = mongod
        self._start_timeout_ms = start_timeout_ms
        self._lock_fd = open_lock_file(folder / SUPERVISOR_LOCK)
        self._users_fd = open_lock_file(folder / USERS_LOCK)
        self._socket_folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._writable_at = 0.0
        self._restarts = 0
        self._stop_requested = False

    def run(self) -> None:
        if not self._acquire_lock():
            _reply(json.dumps({"failure": "busy", "text": ""}))
            return
        signal.signal(signal.SIGTERM, self._on_sigterm)
        stop_timeout_ms = _FAILED_STOP_TIMEOUT_MS
        try:
            server = self._start()
            stop_timeout_ms = STOP_TIMEOUT_MS
            _reply(server.to_json())
            self._watch()
        except StartError as error:
            _log.error("%s", error.text)
            _reply(json.dumps({"failure": error.kind, "text": error.text}))
        finally:
            self._stop(stop_timeout_ms)

    def _acquire_lock(self) -> bool:
        # Not at the first try only: a user that looks whether the lock is free holds it for a moment.
        deadline = Deadline(_LOCK_TIMEOUT_MS)
        while not try_lock_exclusive(self._lock_fd):
            if deadline.passed:
                return False
            time.sleep(POLL_INTERVAL_MS / 1000)
        return True

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self._stop_requested = True

    def _should_stop(self) -> bool:
        """True after SIGTERM, without users, or when the folder is gone.

        Without users it also takes their lock, so that no new one can join a server that stops.
        """
        return self._stop_requested or try_lock_exclusive(self._users_fd) or not self._folder_is_ours()

    def _folder_is_ours(self) -> bool:
        """False when the folder was moved or removed, even if another one is at its path now."""
        try:
            return os.path.samestat(os.fstat(self._lock_fd), (self._folder / SUPERVISOR_LOCK).stat())
        except OSError:
            return False

    def _start(self) -> ServerInfo:
        retry_deadline = Deadline(self._clean_up_after_killed_supervisor())
        try:
            with translate_folder_errors(self._folder):
                self._socket_folder = create_socket_folder(self._folder)
                (self._folder / DATABASE).mkdir(mode=0o700, exist_ok=True)
                for folder in {self._folder, self._socket_folder}:
                    # systemd-tmpfiles, which removes old files from /tmp, skips locked folders.
                    try_lock_shared(os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
                return self._launch_when_unused(retry_deadline)
        except StorageError as error:
            kind = "config" if isinstance(error, StorageConfigError) else "unavailable"
            raise StartError(kind, str(error)) from error

    def _clean_up_after_killed_supervisor(self) -> int:
        """Remove what a killed supervisor left in the folder.

        Returns for how many ms to try again while another mongod uses the data: longer if there was one.
        """
        left_behind = ServerInfo.read(self._folder)
        if left_behind is None:
            return _IN_USE_RETRY_BUDGET_MS
        socket_folder = Path(left_behind.socket).parent
        request_shutdown(socket_folder / SERVER_SOCKET)
        (self._folder / SERVER_FILE).unlink(missing_ok=True)
        remove_sockets(socket_folder, self._folder)
        return _ORPHAN_RETRY_BUDGET_MS

    def _launch_when_unused(self, retry_deadline: Deadline) -> ServerInfo:
        while True:
            # Only a supervisor puts a socket there: a mongod behind it is the orphan of a killed one.
            request_shutdown(self._socket_folder / SERVER_SOCKET)
            try:
                return self._launch(self._start_timeout_ms)
            except StartError as error:
                if error.kind != "in_use" or retry_deadline.passed:
                    raise
            time.sleep(_WATCH_INTERVAL_MS / 1000)

    def _launch(self, timeout_ms: int) -> ServerInfo:
        """Start mongod, and publish it once it is writable."""
        deadline = Deadline(timeout_ms)
        self._process = self._spawn_mongod()
        while not deadline.passed:
            if self._process.poll() is not None:
                raise diagnose(self._folder, self._mongod, self._process.returncode)
            if self._should_stop():
                raise StartError("unavailable", f"the server of {self._folder} was stopped while it started")
            if is_writable(self._socket_folder / SERVER_SOCKET):
                return self._publish(self._process.pid)
            time.sleep(POLL_INTERVAL_MS / 1000)
        raise StartError(
            "unavailable",
            f"the server of {self._folder} was not writable within {timeout_ms:,} ms; see {SERVER_LOG} there",
        )

    def _spawn_mongod(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / SERVER_LOG).replace(self._folder / PREVIOUS_LOG)
        data, server_socket = self._folder / DATABASE, self._socket_folder / SERVER_SOCKET
        with open_log(self._folder / SERVER_LOG) as log:
            try:
                return subprocess.Popen(  # noqa: S603 - the mongod that the configuration names
                    [
                        str(self._mongod),
                        "--dbpath",
                        str(data),
                        "--bind_ip",
                        str(server_socket),
                        *_MONGOD_OPTIONS,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_terminate_with_parent(os.getpid()),
                )
            except OSError as error:
                # "No such file" may also mean the dynamic loader that the binary names.
                raise StartError(
                    "config",
                    f"{self._mongod} cannot run on this machine ({error.strerror}); set mongod_path to a"
                    " mongod that is built for it",
                ) from error

    def _publish(self, pid: int) -> ServerInfo:
        server = ServerInfo(pid, str(self._socket_folder / CLIENT_SOCKET), folder_id(self._folder))
        draft = self._folder / f".{SERVER_FILE}"
        draft.write_text(server.to_json())
        draft.replace(self._folder / SERVER_FILE)
        link = Path(server.socket)
        link.unlink(missing_ok=True)
        link.symlink_to(SERVER_SOCKET)
        self._writable_at = time.monotonic()
        _log.info("mongod %d is writable", pid)
        return server

    def _unpublish(self) -> None:
        for path in (self._socket_folder / CLIENT_SOCKET, self._folder / SERVER_FILE):
            with contextlib.suppress(OSError):
                path.unlink()

    def _watch(self) -> None:
        """Returns when the server should stop, or when it cannot be restarted."""
        while not self._should_stop():
            if self._process is not None and self._process.poll() is not None and not self._restart():
                return
            time.sleep(_WATCH_INTERVAL_MS / 1000)

    def _restart(self) -> bool:
        """Start mongod again after it exited, behind the same socket: connected clients only see a pause."""
        self._unpublish()
        assert self._process is not None  # noqa: S101 - the caller saw it exit
        _log.warning(
            "mongod %d exited with code %d: %s",
            self._process.pid,
            self._process.returncode,
            last_error(self._folder),
        )
        ran_ms = (time.monotonic() - self._writable_at) * 1000
        first = 1 if ran_ms > _RESTART_COUNT_RESET_MS else self._restarts + 1
        for self._restarts in range(first, _MAX_RESTARTS + 1):
            if self._should_stop_within(_RESTART_DELAYS_MS[self._restarts - 1]):
                return False
            try:
                self._launch(_RESTART_TIMEOUT_MS)
            except (StartError, OSError) as error:
                _log.warning("restart %d failed: %s", self._restarts, error)
                self._stop_mongod(_FAILED_STOP_TIMEOUT_MS)
            else:
                return True
        _log.error("giving up after %d restarts", self._restarts)
        return False

    def _should_stop_within(self, delay_ms: int) -> bool:
        deadline = Deadline(delay_ms)
        while not deadline.passed:
            if self._should_stop():
                return True
            time.sleep(_WATCH_INTERVAL_MS / 1000)
        return False

    def _stop(self, timeout_ms: int) -> None:
        folder_is_ours = self._folder_is_ours()
        if folder_is_ours:
            self._unpublish()
        self._stop_mongod(timeout_ms)
        if folder_is_ours or self._socket_folder != self._folder:
            remove_sockets(self._socket_folder, self._folder)
        if folder_is_ours and (self._folder / TEMPORARY_MARKER).exists():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _stop_mongod(self, timeout_ms: int) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_ms / 1000)
        except subprocess.TimeoutExpired:
            _log.warning("mongod %d did not stop within %d ms and was killed", self._process.pid, timeout_ms)
            self._process.kill()
            self._process.wait()


def _terminate_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """What the forked child runs before it becomes mongod, to get SIGTERM if its parent dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        # First of all, or the parent's handler would swallow a signal that arrives before the exec.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(set_death_signal, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(1)

    return before_exec


def _reply(text: str) -> None:
    """Write one line to the user that started this process, and close the pipe to it."""
    with contextlib.suppress(OSError):  # that user may be gone
        os.write(sys.stdout.fileno(), text.encode() + b"\n")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _raise_file_limit() -> None:
    import resource  # not on Windows

    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _main(request: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    _raise_file_limit()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _Supervisor(Path(request["folder"]), Path(request["mongod"]), request["start_timeout_ms"]).run()


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
