"""Starts the servers of a run and creates a new database for each contender of a case."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deerflow_mongo import create_storage
from deerflow_mongo.mongodb.embedded import start_embedded

from . import postgres
from .contenders.known import CONTENDERS, OURS, UVLOOP, Contender, ServerName
from .dataset import Rows
from .loading import mongodb

INSTALL = "pip install '.[bench]' && pip install ./benchmarks/sql_baseline"
"""Installs, in a checkout, everything that a full run needs except DeerFlow's own code."""

_PACKAGES = (
    "deerflow-mongo",
    "pymongo",
    "motor",
    "uvloop",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "deerflow-kernel",
)


@dataclass(frozen=True, slots=True)
class Target:
    """One database."""

    url: str
    database: str


@dataclass(frozen=True, slots=True)
class Servers:
    urls: dict[ServerName, str] = field(default_factory=lambda: dict[ServerName, str]())
    """URL templates with `{database}`."""
    missing: dict[ServerName, str] = field(default_factory=lambda: dict[ServerName, str]())
    """Requested servers that do not run here -> reason."""

    @contextlib.contextmanager
    def database(self, contender: Contender) -> Generator[Target]:
        """A new database, dropped afterwards; the contender creates its tables when it opens it."""
        name = f"bench_{uuid.uuid4().hex[:16]}"
        url = self.urls[contender.server].format(database=name)
        if contender.server != "mongodb":
            from .loading import sql

            sql.create_database(url)
            try:
                yield Target(_with_options(url, contender), name)
            finally:
                sql.drop_database(url)
            return
        try:
            yield Target(_with_options(url, contender), name)
        finally:
            mongodb.drop(url, name)

    def versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for server, url in self.urls.items():
            if server == "mongodb":
                found[server] = mongodb.version(url)
            else:
                from .loading import sql

                found[server] = sql.version(url.format(database="postgres" if server == "postgresql" else ""))
        for package in _PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(package)
        return found


def _with_options(url: str, contender: Contender) -> str:
    options = {name[1:]: value for name, value in contender.options.items() if name.startswith("?")}
    if not options:
        return url
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '/?'}{query}"


def prepare(contender: Contender, target: Target) -> None:
    """Creates the contender's tables or collections with their indexes."""

    async def opened() -> None:
        if contender.kind == "deerflow":
            from .contenders import deerflow_sql

            await deerflow_sql.prepare(target.url)
            return
        async with create_storage(_as_storage(contender).config(target.url, target.database)):
            pass

    asyncio.run(opened())


def _as_storage(contender: Contender) -> Contender:
    """The contender whose collections are used: ours for kind `direct`."""
    return CONTENDERS[OURS] if contender.kind == "direct" else contender


def load(contender: Contender, target: Target, batches: Iterable[Rows]) -> None:
    if contender.server == "mongodb":
        mongodb.load(target.url, target.database, batches)
    else:
        from .loading import sql

        sql.load(target.url, _metadata(contender), batches)


def bytes_of_runs(contender: Contender, target: Target) -> int:
    """Disk space of the runs and their indexes."""
    if contender.server == "mongodb":
        return mongodb.bytes_of_runs(target.url, target.database)
    from .loading import sql

    return sql.bytes_of_runs(target.url, _metadata(contender))


def _metadata(contender: Contender) -> Any:
    """SQLAlchemy's description of the contender's tables."""
    if contender.kind == "deerflow":
        from .contenders import deerflow_sql

        return deerflow_sql.metadata()
    from deerflow_sql_baseline.tables import Base

    return Base.metadata


def unavailable_reason(contender: Contender, servers: Servers) -> str | None:
    """The reason why a contender cannot be measured here, or None."""
    if contender.server in servers.missing:
        return servers.missing[contender.server]
    if contender.kind == "deerflow":
        from .contenders import deerflow_sql

        return deerflow_sql.missing()
    needed = {"sql": ("deerflow_sql_baseline",)}.get(contender.backend, ())
    needed += ("motor",) if contender.driver == "motor" else ()
    needed += ("uvloop",) if contender.loop == UVLOOP else ()
    return _missing_modules(*needed)


@contextlib.contextmanager
def running(names: Iterable[str]) -> Generator[Servers]:
    """Starts the servers that these contenders need, if installed, and stops them afterwards."""
    needed = {CONTENDERS[name].server for name in names}
    servers = Servers()
    with contextlib.ExitStack() as stack:
        if "mongodb" in needed:
            server = start_embedded()
            stack.callback(server.release)
            servers.urls["mongodb"] = server.url.replace("{", "{{").replace("}", "}}")
        if "sqlite" in needed:
            _add_sqlite(servers, stack)
        if "postgresql" in needed:
            _add_postgresql(servers, stack)
        yield servers


def _add_sqlite(servers: Servers, stack: contextlib.ExitStack) -> None:
    if missing := _missing_modules("sqlalchemy", "greenlet", "aiosqlite"):
        servers.missing["sqlite"] = missing
        return
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-sqlite-"))
    servers.urls["sqlite"] = f"sqlite+aiosqlite:///{Path(folder)}/{{database}}.db"


def _add_postgresql(servers: Servers, stack: contextlib.ExitStack) -> None:
    binaries = postgres.find_binaries()
    missing = _missing_modules("sqlalchemy", "greenlet", "asyncpg")
    if binaries is None or missing:
        servers.missing["postgresql"] = (
            missing or f"no package with a PostgreSQL server is installed: {INSTALL}"
        )
        return
    try:
        servers.urls["postgresql"] = stack.enter_context(postgres.running(binaries))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        servers.missing["postgresql"] = f"the PostgreSQL server did not start: {error}"


def _missing_modules(*modules: str) -> str | None:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)} is not installed: {INSTALL}" if absent else None
