"""The processes of the embedded server's tests: users of a server, stand-ins for mongod, and what is left.

Every process that a test starts has the test's folder in its command line. So a test can wait for its own
processes, fails if it leaves one behind, and never sees those of another test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer, binary, start_embedded

HANG_TIMEOUT_S = 60.0
"""Only bounds a hang: no test promises that something takes less."""

_REPOSITORY = Path(binary.__file__).parents[3]

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
as_root = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="needs root")

_USER = """
import json, os, sys
from deerflow_mongo.mongodb.embedded import start_embedded
server = start_embedded(sys.argv[1] or None)
print(json.dumps({"url": server.url, "pid": server.pid, "folder": str(server.data_dir)}), flush=True)
for line in sys.stdin:
    if line == "fork\\n":
        child = os.fork()
        if child == 0:
            server.release()
            os._exit(0)
        os.waitpid(child, 0)
        print("forked", flush=True)
server.release()
"""


class User:
    """A process that uses the server of a folder until `leave` or `kill`."""

    def __init__(self, folder: Path | str) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter
            [sys.executable, "-c", _USER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        )

    def server(self) -> dict[str, Any]:
        return json.loads(self._line())

    def fork_and_release_in_child(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("fork\n")
        self.process.stdin.flush()
        assert self._line() == "forked\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(HANG_TIMEOUT_S) == 0
        self._close_pipes()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Sandbox:
    """The folder of a test, and everything that the test starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / "data"
        self._servers: list[EmbeddedServer] = []
        self._users: list[User] = []

    def start(self, data_dir: Path | None = None, **options: Any) -> EmbeddedServer:
        server = start_embedded(data_dir or self.folder, **options)
        self._servers.append(server)
        return server

    def start_temporary(self) -> EmbeddedServer:
        server = start_embedded()
        self._servers.append(server)
        return server

    def user(self, folder: Path | None = None) -> User:
        user = User(folder or self.folder)
        self._users.append(user)
        return user

    def temporary_user(self) -> User:
        user = User("")
        self._users.append(user)
        return user

    def processes(self) -> list[int]:
        rows = [
            line.split(None, 2)
            for line in output_of("ps", "-A", "-ww", "-o", "pid=,stat=,args=").splitlines()
        ]
        return [int(row[0]) for row in rows if row[1][0] != "Z" and f"{self.path}/" in row[2]]

    def has_no_processes(self) -> bool:
        return not self.processes()

    def close(self) -> list[int]:
        """End everything; returns the processes that did not end by themselves and were killed."""
        for user in self._users:
            user.kill()
        for server in self._servers:
            server.release()
        with contextlib.suppress(TimeoutError):
            wait_until(self.has_no_processes)
        left = self.processes()
        end = time.monotonic() + HANG_TIMEOUT_S
        # Until none is left: a supervisor may have restarted its mongod between the two kills.
        while (pids := self.processes()) and time.monotonic() < end:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        return left


@contextlib.contextmanager
def sandbox_in(path: Path) -> Generator[Sandbox]:
    sandbox = Sandbox(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(path))
        patch.setattr(tempfile, "tempdir", str(path))
        try:
            yield sandbox
        finally:
            left = sandbox.close()
    assert left == []


def output_of(*command: str) -> str:
    """What a command prints; nothing if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603 - ours
    return run.stdout if run.returncode == 0 else ""


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def supervisor_of(mongod_pid: int) -> int:
    return int(output_of("ps", "-o", "ppid=", "-p", str(mongod_pid)))


def is_running(pid: int) -> bool:
    state = output_of("ps", "-o", "stat=", "-p", str(pid))
    return bool(state) and not state.startswith("Z")


@contextlib.contextmanager
def client_of(url: str) -> Generator[pymongo.MongoClient[dict[str, Any]]]:
    with pymongo.MongoClient[dict[str, Any]](url, timeoutMS=25_000) as client:
        yield client


def write(url: str, name: str) -> None:
    with client_of(url) as client:
        client["app"]["things"].insert_one({"_id": name})


def names(url: str) -> set[str]:
    with client_of(url) as client:
        return {document["_id"] for document in client["app"]["things"].find()}


def script(path: Path, text: str) -> str:
    """A stand-in for mongod."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@contextlib.contextmanager
def unsupervised_mongod(mongod: Path, folder: Path, socket_path: Path) -> Generator[subprocess.Popen[bytes]]:
    """A mongod on the data of `folder` that no supervisor started."""
    (folder / "db").mkdir(parents=True, exist_ok=True)
    data, bind = ("--dbpath", str(folder / "db")), ("--bind_ip", str(socket_path))
    process = subprocess.Popen(  # noqa: S603 - the tested mongod
        [str(mongod), *data, *bind, "--nounixsocket"], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _accepts_connections(socket_path))
        yield process
    finally:
        process.kill()
        process.wait()


def _accepts_connections(socket_path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path))
        return True
    return False


def error_text(error: type[Exception], call: Callable[[], object]) -> str:
    """The text, of one line, of the error that the call raises."""
    with pytest.raises(error) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text
    return text
