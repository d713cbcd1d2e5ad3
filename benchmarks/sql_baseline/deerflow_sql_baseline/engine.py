"""The options, the engine and its sessions. Reimplements the `store` package's persistence builders and the
context of the adapters' calls: one session per call, committed after a write, rolled back after an error.

Added: calls after closing raise an error, because a disposed engine would silently reconnect.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import AsyncAdaptedQueuePool, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from deerflow_mongo import StorageConfigError, StorageError

SQLITE, POSTGRESQL = "sqlite+aiosqlite", "postgresql+asyncpg"
QUEUED = "queued"

# driver -> values of `synchronous`; the first is the default
_SYNCHRONOUS = {SQLITE: ("normal", "full"), POSTGRESQL: ("on", "off")}
# The busy timeout of DeerFlow's later releases; earlier ones have sqlite3's default of 5 s.
_QUEUED_BUSY_TIMEOUT_MS = 30_000


class SqlConfig(BaseModel):
    """The validated options: DeerFlow's database section, plus those that the benchmark varies."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)

    url: URL
    run_event_numbers: Literal["queued", "for_update"] = QUEUED
    """"queued": as in DeerFlow's later releases; "for_update": as in the releases of the adapters."""
    pool_size: int = Field(default=5, ge=1)
    """Size of the connection pool; up to ten more connections are opened when all are in use."""
    synchronous: str
    """SQLite's PRAGMA of that name, or PostgreSQL's `synchronous_commit`."""


def sql_config(options: Mapping[str, Any]) -> SqlConfig:
    """Validates the options; `StorageConfigError` names the invalid one and the reason."""
    url = _url(options.get("url"))
    allowed = _SYNCHRONOUS[url.drivername]
    if options.get("synchronous", allowed[0]) not in allowed:
        raise StorageConfigError(f"storage configuration: `synchronous` must be {' or '.join(allowed)}")
    try:
        return SqlConfig.model_validate({"synchronous": allowed[0], **options, "url": url})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StorageConfigError(f"storage configuration: `{first['loc'][0]}`: {first['msg']}") from None


def _url(value: object) -> URL:
    with suppress(ArgumentError, ValueError):  # their texts may quote the URL, password included
        url = make_url(value if isinstance(value, str) else "")
        if url.drivername in _SYNCHRONOUS and url.database not in (None, "", ":memory:"):
            return url
    forms = f"{SQLITE}:///FILE or {POSTGRESQL}://USER@HOST/DATABASE"
    raise StorageConfigError(f"storage configuration: `url` must be {forms}")


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
