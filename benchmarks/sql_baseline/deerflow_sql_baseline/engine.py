"""The engine and its sessions. Reimplements the `store` package's persistence builders and the context of the
adapters' calls: one session per call, committed after a write, rolled back after an error.

Added: calls after closing raise an error, because a disposed engine would silently reconnect.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy import AsyncAdaptedQueuePool, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from deerflow_mongo import StorageError

from .config import QUEUED, SQLITE, SqlConfig

# The busy timeout of DeerFlow's later releases; earlier ones have sqlite3's default of 5 s.
_QUEUED_BUSY_TIMEOUT_MS = 30_000


class Sessions:
    """One engine and the sessions of its calls."""

    def __init__(self, config: SqlConfig) -> None:
        build = _sqlite_engine if config.url.drivername == SQLITE else _postgresql_engine
        self.engine = build(config)
        self._open = async_sessionmaker(self.engine, expire_on_commit=False, autoflush=False)
        self._closed = False

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncSession]:
        async with self._session() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[AsyncSession]:
        async with self._session() as session:
            try:
                yield session
            except BaseException:
                await session.rollback()
                raise
            await session.commit()

    def check_open(self) -> None:
        if self._closed:
            raise StorageError("this storage is closed")

    async def close(self) -> None:
        self._closed = True
        await self.engine.dispose()

    def _session(self) -> AsyncSession:
        self.check_open()
        return self._open()


_json_text = partial(json.dumps, ensure_ascii=False)


def _sqlite_engine(config: SqlConfig) -> AsyncEngine:
    engine = create_async_engine(
        config.url,
        poolclass=AsyncAdaptedQueuePool,  # SQLAlchemy's own choice since 2.0.38
        pool_size=config.pool_size,
        json_serializer=_json_text,
    )
    pragmas = ["journal_mode=WAL", f"synchronous={config.synchronous}", "foreign_keys=ON"]
    if config.run_event_numbers == QUEUED:
        pragmas.append(f"busy_timeout={_QUEUED_BUSY_TIMEOUT_MS}")

    def set_up(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        try:
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
        finally:
            cursor.close()

    event.listen(engine.sync_engine, "connect", set_up)
    return engine


def _postgresql_engine(config: SqlConfig) -> AsyncEngine:
    settings = {} if config.synchronous == "on" else {"synchronous_commit": config.synchronous}
    return create_async_engine(
        config.url,
        pool_pre_ping=True,
        pool_size=config.pool_size,
        json_serializer=_json_text,
        connect_args={"server_settings": settings},
    )
