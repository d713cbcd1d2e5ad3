"""Starts the servers of a run and creates a new, loaded database for each contender of a case."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from deerflow_mongo import create_storage
from deerflow_mongo.mongodb.embedded import start_embedded

from . import postgres
from .checkpoints import savers
from .contenders import deerflow_sql
from .contenders.known import CONTENDERS, OURS, UVLOOP, Contender, ServerName
from .dataset import Dataset, Rows
from .loading import mongodb

INSTALL = "pip install '.[bench]' && pip install ./benchmarks/sql_baseline"
"""Installs, in a checkout, everything that a full run needs except DeerFlow's own code."""

LARGE = 100_000
"""Datasets of this size are loaded once for all cases, and no copy of them is kept."""

_PACKAGES = (
    *("deerflow-mongo", "pymongo", "motor", "uvloop", "sqlalchemy", "aiosqlite", "asyncpg"),
    *("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres"),
    *("langgraph-checkpoint-mongodb", "psycopg", "psycopg-binary"),
)
_NEEDED_MODULES: dict[ServerName, tuple[str, ...]] = {
    "mongodb": (),
    "sqlite": ("sqlalchemy", "greenlet", "aiosqlite"),
    "postgresql": ("sqlalchemy", "greenlet", "asyncpg", postgres.PACKAGE),
    "memory": (),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One database."""

    url: str
    database: str


@dataclass(frozen=True, slots=True)
class Servers:
    urls: dict[ServerName, str] = field(default_factory=dict[ServerName, str])
    """URL templates with `{database}`."""
    _copies: dict[tuple[str, str, int], str] = field(default_factory=dict[tuple[str, str, int], str])
    """(server, kind, number of runs) -> URL of a loaded SQL database, from which others are copied."""

    @contextlib.contextmanager
    def loaded(self, contender: Contender, data: Dataset) -> Generator[Target]:
        """A new database with the dataset, dropped afterwards."""
        target = self._new_target(contender)
        if contender.server == "mongodb":
            try:
                asyncio.run(_set_up(contender, target))
                load(contender, target, data.batches())
                yield target
            finally:
                mongodb.drop(target.url, target.database)
            return
        sql = loader(contender.server)
        key = contender.server, contender.kind, data.runs
        if key not in self._copies:
            source = target if data.runs >= LARGE else self._new_target(contender)
            sql.create_database(source.url)
            asyncio.run(_set_up(contender, source))
            load(contender, source, data.batches())
            if data.runs < LARGE:
                self._copies[key] = source.url
        try:
            if key in self._copies:
                sql.create_database(target.url, self._copies[key])
            yield target
        finally:
            sql.drop_database(target.url)

    @contextlib.contextmanager
    def empty(self, contender: Contender) -> Generator[Target]:
        """A new database without tables or collections, dropped afterwards."""
        target = self._new_target(contender)
        if contender.server == "memory":
            yield target
            return
        if contender.server != "mongodb":
            loader(contender.server).create_database(target.url)
        try:
            yield target
        finally:
            if contender.server == "mongodb":
                mongodb.drop(target.url, target.database)
            else:
                loader(contender.server).drop_database(target.url)

    def _new_target(self, contender: Contender) -> Target:
        name = f"bench_{uuid.uuid4().hex[:16]}"
        url = self.urls[contender.server].format(database=name)
        options = [f"{name[1:]}={value}" for name, value in contender.options.items() if name.startswith("?")]
        return Target(f"{url}{'&' if '?' in url else '/?'}{'&'.join(options)}" if options else url, name)

    def versions(self) -> dict[str, str]:
        databases = {"mongodb": "admin", "postgresql": "postgres"}
        found: dict[str, str] = {
            server: loader(server).version(url.format(database=databases.get(server, "")))
            for server, url in self.urls.items()
            if server != "memory"
        }
        for package in (*_PACKAGES, "deerflow-kernel"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(package)
        return found


async def _set_up(contender: Contender, target: Target) -> None:
    """Creates the contender's tables or collections with their indexes: ours for kind `direct`."""
    if contender.kind == "deerflow":
        async with deerflow_sql.opened(target.url):
            return
    known = CONTENDERS[OURS] if contender.kind == "direct" else contender
    async with create_storage(known.config(target.url, target.database)):
        pass


def loader(server: ServerName) -> Any:
    """The module that loads databases on this server; SQLAlchemy may not be installed."""
    return importlib.import_module(f".loading.{'mongodb' if server == 'mongodb' else 'sql'}", __package__)


def load(contender: Contender, target: Target, batches: Iterable[Rows]) -> None:
    """Adds rows to a database that is set up."""
    loader(contender.server).load(contender, target.url, target.database, batches)


def unavailable_reason(contender: Contender) -> str | None:
    """The reason why a contender cannot be measured here, or None."""
    if contender.kind == "saver":
        needed = [*_NEEDED_MODULES[contender.server], *savers.MODULES[contender.name]]
    else:
        needed = _needed_by(contender)
    absent = [module for module in needed if not savers.is_installed(module)]
    if absent:
        return f"{', '.join(absent)} is not installed: {INSTALL}"
    return deerflow_sql.missing() if contender.kind == "deerflow" else None


def _needed_by(contender: Contender) -> list[str]:
    needed = [*_NEEDED_MODULES[contender.server]]
    needed += ["deerflow_sql_baseline"] if contender.backend == "sql" and contender.kind == "storage" else []
    needed += [contender.driver] if contender.driver == "motor" else []
    needed += [contender.loop] if contender.loop == UVLOOP else []
    return needed


@contextlib.contextmanager
def running(names: Iterable[str]) -> Generator[Servers]:
    """Starts the servers that these contenders need and stops them afterwards."""
    needed = {CONTENDERS[name].server for name in names}
    servers = Servers()
    with contextlib.ExitStack() as stack:
        if "mongodb" in needed:
            server = start_embedded()
            stack.callback(server.release)
            servers.urls["mongodb"] = server.url.replace("{", "{{").replace("}", "}}")
        if "memory" in needed:
            servers.urls["memory"] = ""
        if "sqlite" in needed:
            folder = tempfile.mkdtemp(prefix="bench-sqlite-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            servers.urls["sqlite"] = f"sqlite+aiosqlite:///{folder}/{{database}}.db"
        if "postgresql" in needed and (binaries := postgres.find_binaries()) is not None:
            servers.urls["postgresql"] = stack.enter_context(postgres.running(binaries))
        yield servers
