"""The contenders with their servers, drivers and write durability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

ServerName: TypeAlias = Literal["mongodb", "sqlite", "postgresql"]
Kind: TypeAlias = Literal["storage", "direct", "deerflow"]
"""A `Storage` of a registered backend, MongoDB without a `Storage`, or DeerFlow's own repositories."""

OURS = "mongodb"
RAW_PYMONGO = "raw-pymongo"
UVLOOP = "uvloop"

_MAJORITY = "majority, journaled"
_WAL = "WAL with synchronous=NORMAL, as DeerFlow sets it: no sync to the disk per commit"
_SYNCED = "synchronous_commit=on"


def _no_options() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    title: str
    server: ServerName
    driver: str
    durability: str
    kind: Kind = "storage"
    backend: str = ""
    """Backend name, for kind `storage`."""
    opener: str = ""
    """`module.function` in this package, for kind `direct`."""
    options: Mapping[str, Any] = field(default_factory=_no_options)
    """Configuration of the backend, or URL options if a name starts with `?`."""
    loop: str = "asyncio"

    def config(self, url: str, database: str) -> dict[str, Any]:
        """The configuration for `create_storage`."""
        given = {name: value for name, value in self.options.items() if not name.startswith("?")}
        config = {"backend": self.backend, "url": url, **given}
        return {**config, "database": database} if self.server == "mongodb" else config


def _ours(name: str, title: str, **changes: Any) -> Contender:
    fields: dict[str, Any] = {
        "server": "mongodb",
        "driver": "pymongo",
        "durability": _MAJORITY,
        "backend": "mongodb",
        "options": {},
        **changes,
    }
    return Contender(name, title, **fields)


def _sql(
    name: str, title: str, server: ServerName, durability: str, loop: str = "asyncio", **options: Any
) -> Contender:
    driver = "aiosqlite" if server == "sqlite" else "asyncpg"
    return Contender(name, title, server, driver, durability, backend="sql", options=options, loop=loop)


_ALL = (
    _ours(OURS, "deerflow-mongo"),
    _ours(RAW_PYMONGO, "raw PyMongo", kind="direct", opener="raw_pymongo.opened"),
    _sql("sqlite", "SQL baseline on SQLite", "sqlite", _WAL),
    _sql("postgresql", "SQL baseline on PostgreSQL", "postgresql", _SYNCED),
    Contender("deerflow-sqlite", "DeerFlow's SQL code on SQLite", "sqlite", "aiosqlite", _WAL, "deerflow"),
    Contender(
        "deerflow-postgresql",
        "DeerFlow's SQL code on PostgreSQL",
        "postgresql",
        "asyncpg",
        _SYNCED,
        "deerflow",
    ),
    _ours("transaction", "a transaction per batch", kind="direct", opener="transactions.opened"),
    _ours(
        "transaction-in-turn",
        "a transaction per batch, a lock per thread",
        kind="direct",
        opener="transactions.in_turn",
    ),
    _sql(
        "sqlite-for-update",
        "SQL baseline on SQLite, events without a lock",
        "sqlite",
        _WAL,
        run_event_numbers="for_update",
    ),
    _ours("mongodb-motor", "deerflow-mongo on Motor", driver="motor", options={"driver": "motor"}),
    _ours("mongodb-uvloop", "deerflow-mongo with uvloop", loop=UVLOOP),
    _ours(
        "mongodb-w1",
        "deerflow-mongo, w=1",
        durability="w=1: in memory, lost by a failover or a crash",
        options={"?w": "1"},
    ),
    _sql("postgresql-uvloop", "SQL baseline on PostgreSQL with uvloop", "postgresql", _SYNCED, UVLOOP),
    _sql(
        "postgresql-pool32",
        "SQL baseline on PostgreSQL, 32 connections",
        "postgresql",
        _SYNCED,
        pool_size=32,
    ),
    _sql(
        "postgresql-off",
        "SQL baseline on PostgreSQL, not synced",
        "postgresql",
        "synchronous_commit=off: a crash loses what was just acknowledged",
        synchronous="off",
    ),
    _sql(
        "sqlite-full",
        "SQL baseline on SQLite, synced",
        "sqlite",
        "WAL with synchronous=FULL: a sync per commit",
        synchronous="full",
    ),
)

CONTENDERS: Mapping[str, Contender] = {contender.name: contender for contender in _ALL}

DEFAULT = (OURS, RAW_PYMONGO, "sqlite", "postgresql", "deerflow-sqlite", "deerflow-postgresql")
"""The contenders of a run without `--backends`."""
