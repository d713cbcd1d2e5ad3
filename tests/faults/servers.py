"""Throw-away `mongod` processes on loopback, alone or as a replica set, to be killed, frozen and restarted.

    with ReplicaSet(3) as cluster:
        create_storage({"backend": "mongodb", "url": cluster.url})
        killed = cluster.primary()
        killed.kill()
        cluster.primary()  # waits for the next one
        killed.restart()

Every process dies with the one that started it, also when that is killed, and its folder is removed then. Not
the package's embedded server: that one listens on a socket file and is restarted by its supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient, timeout
from pymongo.errors import PyMongoError

from deerflow_mongo.mongodb.embedded import find_mongod

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
"""For a start, an election or a recovery on a busy machine; a second or two on an idle one."""

ELECTION_TIMEOUT_MS = 1_500
_HEARTBEAT_INTERVAL_MS = 300
_STEP_DOWN_S = 5
_POLL_INTERVAL_S = 0.05
_CLOSE_TIMEOUT_S = 0.1
_MAX_LAG_S = 1.0

_MONGOD_OPTIONS = (
    *("--bind_ip", HOST, "--nounixsocket", "--oplogSize", "256", "--quiet"),
    *("--wiredTigerCacheSizeGB", "0.25"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    *("--setParameter", "enableTestCommands=1"),
)
# A secondary leaves a frozen sync source after a second or two. By default it takes 10 s and more, in which
# no write reaches a majority, though there is a new primary: a pause that no client can shorten.
_MEMBER_OPTIONS = (
    *("--setParameter", "oplogNetworkTimeoutBufferSeconds=1"),
    *("--setParameter", "oplogFetcherSteadyStateMaxFetcherRestarts=0"),
)

# What becomes mongod: first it asks the kernel to be killed with its parent, as the supervisor's child does.
# Not a `preexec_fn`: that forks, and a process with a driver in it has threads.
_BECOME = """
import os, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""
# Removes the folder when its standard input ends, which it does however this process ends.
_REMOVE = 'cat >/dev/null; while [ -e "$1" ]; do rm -rf "$1" 2>/dev/null || sleep 0.1; done'

# The death signal is tied to the thread that starts the child: one that lives as long as this process.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mongod-spawner")


class ServerError(Exception):
    """A server did not do what the test needs; the text has the end of its log."""


def _wait_until(condition: Callable[[], bool], failure: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(failure())
        time.sleep(_POLL_INTERVAL_S)


class _Port:
    """A free port, which nobody else gets while this is open: bound and not listened on, it admits mongod."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


class _Folder:
    """A temporary folder that is removed by `close`, or when this process ends in whatever way."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="deerflow-faults-"))
        self._remover = subprocess.Popen(  # noqa: S603 - our own script
            ["/bin/sh", "-c", _REMOVE, "sh", str(self.path)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def close(self) -> None:
        assert self._remover.stdin is not None
        self._remover.stdin.close()
        self._remover.wait()


class Mongod:
    """One server on a port of its own that stays the same over restarts.

    `options` are added to mongod's command line (TLS, a key file, parameters); `client_options` are what a
    client needs to get in (TLS, a login), and may be changed at any time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replica_set: str | None = None,
        options: Sequence[str] = (),
        client_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.client_options = dict(client_options or {})
        self.is_frozen = False
        self._options = [*_MONGOD_OPTIONS, *options]
        if replica_set is not None:
            self._options += [*_MEMBER_OPTIONS, "--replSet", replica_set]
        self._port = _Port()
        self._process: subprocess.Popen[bytes] | None = None
        self._client: MongoClient[dict[str, Any]] | None = None

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """The address of this member alone, whatever state it is in."""
        return f"mongodb://{self.address}/?directConnection=true"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def client(self) -> MongoClient[dict[str, Any]]:
        """A plain client of this member, made with the `client_options` of that moment."""
        if self._client is None:
            self._client = MongoClient(
                HOST,
                self.port,
                directConnection=True,
                serverSelectionTimeoutMS=5_000,
                connectTimeoutMS=5_000,
                socketTimeoutMS=20_000,
                **self.client_options,
            )
        return self._client

    def reconnect(self, **client_options: Any) -> None:
        """Drop the client, and make the next one with these options as well."""
        self.client_options |= client_options
        client, self._client = self._client, None
        if client is not None:
            with timeout(_CLOSE_TIMEOUT_S):  # else it looks for a server that was killed or frozen
                client.close()

    def command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a command on the database `admin`."""
        return self.client.admin.command(dict(command))

    def hello(self) -> dict[str, Any]:
        """The member's state; empty while it cannot be asked."""
        if self.is_frozen or not self.is_running:
            return {}
        with contextlib.suppress(PyMongoError):
            return self.command({"hello": 1})
        return {}

    def start(self, *, wait: bool = True) -> Self:
        data = self.folder / "db"
        data.mkdir(parents=True, exist_ok=True)
        mongod = [str(find_mongod()), "--dbpath", str(data), "--port", str(self.port)]
        mongod += ["--logpath", str(self.folder / "mongod.log"), "--logappend", *self._options]
        self._process = _spawner.submit(self._spawn, mongod).result()
        if wait:
            self.wait_until_started()
        return self

    def _spawn(self, mongod: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "output.log").open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - the tests' own server
                [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *mongod],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until_started(self) -> None:
        """Return once it accepts connections."""

        def accepts_connections() -> bool:
            if not self.is_running:
                raise ServerError(f"mongod on port {self.port} has ended: {self.log_tail()}")
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return True
            return False

        _wait_until(accepts_connections, lambda: f"mongod did not start: {self.log_tail()}")

    def log_tail(self, lines: int = 15) -> str:
        """The end of what it logged and printed."""
        texts = [
            path.read_text("utf-8", "replace").splitlines()[-lines:]
            for path in (self.folder / "mongod.log", self.folder / "output.log")
            if path.exists()
        ]
        return "\n".join(line for text in texts for line in text)

    def kill(self) -> None:
        """`kill -9`, also of a frozen one; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.is_frozen = False

    def restart(self, *, wait: bool = True) -> None:
        """Start it again on its data and port; kill it first if it runs."""
        self.kill()
        self.start(wait=wait)

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self.is_frozen = True

    def resume(self) -> None:
        """SIGCONT, if it is frozen."""
        if self.is_frozen:
            os.kill(self.pid, signal.SIGCONT)
            self.is_frozen = False

    def step_down(self, for_s: int = _STEP_DOWN_S) -> None:
        """Give up being the primary, and do not become it again for so long."""
        self.command({"replSetStepDown": for_s, "secondaryCatchUpPeriodSecs": for_s - 1, "force": True})

    def set_fail_point(self, name: str, mode: str | Mapping[str, Any], **data: Any) -> int:
        """Such as `set_fail_point("failCommand", {"times": 2}, failCommands=["update"], errorCode=91)`.

        Returns how often it was met before.
        """
        command: dict[str, Any] = {"configureFailPoint": name, "mode": mode}
        return self.command({**command, "data": data} if data else command)["count"]

    @contextlib.contextmanager
    def replication_held(self) -> Generator[None]:
        """A secondary fetches no more writes; its heartbeats go on, so that nothing is elected."""
        name = "stopReplProducer"
        met = self.set_fail_point(name, "alwaysOn")
        try:
            limit_ms = int(START_TIMEOUT_S * 1000)
            self.command({"waitForFailPoint": name, "timesEntered": met + 1, "maxTimeMS": limit_ms})
            yield
        finally:
            self.set_fail_point(name, "off")

    def close(self) -> None:
        """Kill it and give its port back; the folder is its owner's."""
        self.kill()
        self.reconnect()
        self._port.close()


class ReplicaSet:
    """A replica set of one member or three, writable once it is entered, gone once it is left."""

    def __init__(
        self,
        size: int = 3,
        *,
        options: Sequence[str] = (),
        client_options: Mapping[str, Any] | None = None,
        election_timeout_ms: int = ELECTION_TIMEOUT_MS,
        name: str = "faults",
    ) -> None:
        self.name = name
        self._election_timeout_ms = election_timeout_ms
        self._folder = _Folder()
        self.members = [
            Mongod(
                self._folder.path / f"member-{number}",
                replica_set=name,
                options=options,
                client_options=client_options,
            )
            for number in range(size)
        ]

    @property
    def url(self) -> str:
        """The address of the set, without options beside its name."""
        return f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet={self.name}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        for member in self.members:
            member.folder.mkdir()
            member.start(wait=False)
        for member in self.members:
            member.wait_until_started()
        settings = {
            "electionTimeoutMillis": self._election_timeout_ms,
            "heartbeatIntervalMillis": _HEARTBEAT_INTERVAL_MS,
        }
        members = [{"_id": number, "host": member.address} for number, member in enumerate(self.members)]
        config = {"_id": self.name, "members": members, "settings": settings}
        self.members[0].command({"replSetInitiate": config})
        self.wait_until_healthy()

    def primary(self) -> Mongod:
        """The member that accepts writes; waits until there is one."""
        found: list[Mongod] = []

        def there_is_one() -> bool:
            found[:] = self._primaries()
            return bool(found)

        _wait_until(there_is_one, lambda: f"no primary was elected: {self._states()}")
        return found[-1]

    def secondaries(self) -> list[Mongod]:
        """The running members that are not the primary."""
        primary = self.primary()
        return [member for member in self.members if member is not primary and member.is_running]

    def wait_until_healthy(self) -> None:
        """Return once there is one primary, and every other member is a secondary that has caught up."""

        def is_healthy() -> bool:
            states = [member.hello() for member in self.members]
            primaries = sum(bool(state.get("isWritablePrimary")) for state in states)
            if primaries != 1 or primaries + sum(bool(s.get("secondary")) for s in states) != len(states):
                return False
            # A member that has just started is a secondary until it notices that it has to roll back.
            written = [state["lastWrite"]["lastWriteDate"] for state in states]
            return (max(written) - min(written)).total_seconds() <= _MAX_LAG_S

        _wait_until(is_healthy, lambda: f"the replica set did not recover: {self._states()}")

    def repair(self) -> None:
        """Resume what is frozen, start what was killed, and wait until all members are healthy."""
        for member in self.members:
            member.resume()
            if not member.is_running:
                member.start()
        self.wait_until_healthy()

    def kill(self, member: Mongod | None = None) -> Mongod:
        """`kill -9` of the member, or of the primary; the killed one."""
        killed = member or self.primary()
        killed.kill()
        return killed

    def freeze(self, member: Mongod | None = None) -> Mongod:
        """SIGSTOP of the member, or of the primary; the frozen one, to be resumed."""
        frozen = member or self.primary()
        frozen.freeze()
        return frozen

    def step_down(self) -> Mongod:
        """Make the primary step down; the member that was it."""
        was_primary = self.primary()
        was_primary.step_down()
        return was_primary

    def _primaries(self) -> list[Mongod]:
        """Those that call themselves primary, the one elected last at the end.

        A member that was frozen does so for a moment after it is resumed.
        """
        states = [(member.hello(), member) for member in self.members]
        writable = [(state, member) for state, member in states if state.get("isWritablePrimary")]
        return [member for _, member in sorted(writable, key=lambda found: found[0]["electionId"])]

    def _states(self) -> list[dict[str, Any]]:
        names = ("isWritablePrimary", "secondary", "primary")
        return [
            {"port": member.port, "running": member.is_running, "frozen": member.is_frozen}
            | {name: value for name, value in member.hello().items() if name in names}
            for member in self.members
        ]

    def close(self) -> None:
        """Kill every member and remove the folder; idempotent."""
        for member in self.members:
            member.close()
        self._folder.close()


class SingleServer:
    """A standalone `mongod`, without a replica set: no transactions, no change streams."""

    def __init__(
        self, *, options: Sequence[str] = (), client_options: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = _Folder()
        self.server = Mongod(self._folder.path / "single", options=options, client_options=client_options)

    def __enter__(self) -> Mongod:
        try:
            return self.server.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        self.server.close()
        self._folder.close()
