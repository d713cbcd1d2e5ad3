"""The SQL baseline: DeerFlow's way to number run events, with SQLAlchemy's asyncio ORM.

One session and transaction per batch: the thread's highest number FOR UPDATE (which SQLite ignores), the
rows behind it, commit. `unqueued` leaves conflicts to the database. `queued` is what DeerFlow does since: the
batches of a process queue for their thread, and on PostgreSQL those of all processes, by an advisory lock.
Left out, in its favour, is what it spends on a table of numbers that outlive deletions. SQLite runs with
synchronous=NORMAL as there: no sync to the disk per commit, which MongoDB and PostgreSQL do here.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from deerflow_mongo.rows import RunEventFields

from .workload import THREAD, Put, Target

_POSTGRESQL = "postgresql"
_LOCK_THREAD = "SELECT pg_advisory_xact_lock(hashtext(CAST(:thread_id AS text))::bigint)"


def is_installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in ("sqlalchemy", *modules))


@dataclass(eq=False)
class _Event:
    """The ORM's class; what it is mapped to is in `_Tables`."""

    thread_id: str
    run_id: str
    event_type: str
    category: str
    content: str
    content_sha256: str
    event_metadata: dict[str, Any]
    seq: int
    created_at: datetime
    user_id: str | None = None
    id: int | None = None

    def row(self) -> dict[str, Any]:
        return {
            "thread_id": self.thread_id,
            "run_id": self.run_id,
            "event_type": self.event_type,
            "category": self.category,
            "content": json.loads(self.content),
            "metadata": self.event_metadata,
            "seq": self.seq,
            "created_at": self.created_at.isoformat(),
        }


class _Tables:
    """SQLAlchemy, imported when it is needed, and the mapped table."""

    def __init__(self) -> None:
        self.sa: Any = importlib.import_module("sqlalchemy")
        self.orm: Any = importlib.import_module("sqlalchemy.orm")
        self.aio: Any = importlib.import_module("sqlalchemy.ext.asyncio")
        self.registry: Any = self.orm.registry()
        self.table = self._table()
        self.registry.map_imperatively(_Event, self.table)

    def _table(self) -> Any:
        sa = self.sa
        return sa.Table(
            "run_events",
            self.registry.metadata,
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("thread_id", sa.String(64), nullable=False),
            sa.Column("run_id", sa.String(64), nullable=False),
            sa.Column("user_id", sa.String(64), index=True),
            sa.Column("event_type", sa.String(64), nullable=False),
            sa.Column("category", sa.String(16), nullable=False),
            sa.Column("content", sa.Text, nullable=False),
            sa.Column("content_sha256", sa.String(64), nullable=False),
            sa.Column("event_metadata", sa.JSON, nullable=False),
            sa.Column("seq", sa.Integer, nullable=False),
            sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
            sa.UniqueConstraint("thread_id", "seq"),
            sa.Index("ix_events_thread_cat_seq", "thread_id", "category", "seq"),
            sa.Index("ix_events_run", "thread_id", "run_id", "seq"),
        )

    @asynccontextmanager
    async def engine(self, url: str, busy_timeout_ms: int) -> AsyncGenerator[Any]:
        engine: Any = self.aio.create_async_engine(url)
        if engine.dialect.name == "sqlite":
            pragmas = ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={busy_timeout_ms}")

            def set_up(connection: Any, _: Any) -> None:
                cursor = connection.cursor()
                for pragma in pragmas:
                    cursor.execute(f"PRAGMA {pragma}")
                cursor.close()

            self.sa.event.listen(engine.sync_engine, "connect", set_up)
        try:
            yield engine
        finally:
            await engine.dispose()


_loaded: list[_Tables] = []


def _tables() -> _Tables:
    if not _loaded:
        _loaded.append(_Tables())
    return _loaded[0]


class _Store:
    def __init__(self, tables: _Tables, engine: Any) -> None:
        self._tables = tables
        self._sessions: Any = tables.aio.async_sessionmaker(engine, expire_on_commit=False)
        self._is_postgresql = engine.dialect.name == _POSTGRESQL

    async def put(self, events: list[RunEventFields]) -> list[int]:
        given = cast("list[dict[str, Any]]", events)
        async with self._sessions() as session:
            async with session.begin():
                last = await self._last(session, given[0]["thread_id"])
                rows = [_event(event, seq) for seq, event in enumerate(given, last + 1)]
                session.add_all(rows)
            return [row.row()["seq"] for row in rows]

    async def _last(self, session: Any, thread_id: str) -> int:
        sa, columns = self._tables.sa, self._tables.table.c
        highest = sa.select(sa.func.max(columns.seq)).where(columns.thread_id == thread_id)
        if self._is_postgresql:  # which refuses FOR UPDATE on an aggregate
            await session.execute(sa.text(_LOCK_THREAD), {"thread_id": thread_id})
        else:
            highest = highest.with_for_update()
        return await session.scalar(highest) or 0


def _event(event: dict[str, Any], seq: int) -> _Event:
    content = json.dumps(event["content"], default=str, ensure_ascii=False)
    return _Event(
        thread_id=event["thread_id"],
        run_id=event["run_id"],
        event_type=event["event_type"],
        category=event["category"],
        content=content,
        content_sha256=hashlib.sha256(content.encode()).hexdigest(),
        event_metadata={**event["metadata"], "content_is_json": True, "content_is_dict": True},
        seq=seq,
        created_at=datetime.now(UTC),
    )


@asynccontextmanager
async def unqueued(target: Target) -> AsyncGenerator[Put]:
    async with _tables().engine(target.url, busy_timeout_ms=5_000) as engine:
        yield _Store(_tables(), engine).put


@asynccontextmanager
async def queued(target: Target) -> AsyncGenerator[Put]:
    async with _tables().engine(target.url, busy_timeout_ms=30_000) as engine:
        store, lock = _Store(_tables(), engine), asyncio.Lock()

        async def put(events: list[RunEventFields]) -> list[int]:
            async with lock:
                return await store.put(events)

        yield put


async def prepare(target: Target) -> None:
    tables = _tables()
    if target.url.startswith(_POSTGRESQL):
        await _maintain(tables, target, f'CREATE DATABASE "{target.database}"')
    async with tables.engine(target.url, busy_timeout_ms=5_000) as engine, engine.begin() as connection:
        await connection.run_sync(tables.registry.metadata.create_all)


async def drop(target: Target) -> None:
    tables = _tables()
    if target.url.startswith(_POSTGRESQL):
        await _maintain(tables, target, f'DROP DATABASE "{target.database}" WITH (FORCE)')
        return
    file = Path(tables.sa.make_url(target.url).database)
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        file.with_name(name).unlink(missing_ok=True)


async def _maintain(tables: _Tables, target: Target, command: str) -> None:
    url: Any = tables.sa.make_url(target.url).set(database="postgres")
    engine: Any = tables.aio.create_async_engine(url, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(tables.sa.text(command))
    finally:
        await engine.dispose()


async def stored_numbers(target: Target) -> list[int]:
    tables = _tables()
    columns = tables.table.c
    query = tables.sa.select(columns.seq).where(columns.thread_id == THREAD).order_by(columns.seq)
    async with tables.engine(target.url, busy_timeout_ms=5_000) as engine, engine.connect() as connection:
        return list((await connection.execute(query)).scalars())


async def server_version(url: str) -> str:
    tables = _tables()
    query = "select sqlite_version()" if url.startswith("sqlite") else "show server_version"
    async with tables.engine(url, busy_timeout_ms=5_000) as engine, engine.connect() as connection:
        return str((await connection.execute(tables.sa.text(query))).scalar())
