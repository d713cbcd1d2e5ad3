"""The contenders with their servers, drivers and write durability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

ServerName: TypeAlias = Literal["mongodb", "sqlite", "postgresql", "memory"]
"""`memory` is the measuring process itself, which needs no server."""
Kind: TypeAlias = Literal["storage", "direct", "deerflow", "saver"]
"""A `Storage` of a registered backend, MongoDB without a `Storage`, DeerFlow's own repositories, or another
checkpoint saver than a storage's own."""

OURS = "mongodb"
SINGLE = "mongodb-single"
"""Ours without groups: one command per call."""
RAW_PYMONGO = "raw-pymongo"
"""What a program without groups costs: one command per call, and nothing around it."""
SQL = ("sqlite", "postgresql")
UVLOOP = "uvloop"

_DURABILITY: Mapping[ServerName, str] = {
    "mongodb": "majority, journaled",
    "sqlite": "WAL with synchronous=NORMAL, as DeerFlow sets it: no sync to the disk per commit",
    "postgresql": "synchronous_commit=on",
    "memory": "none",
}
_DRIVERS: Mapping[ServerName, str] = {
    "mongodb": "pymongo",
    "sqlite": "aiosqlite",
    "postgresql": "asyncpg",
    "memory": "none",
}


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    title: str
    server: ServerName
    kind: Kind = "storage"
    opener: str = ""
    """`module.function` in this package, except for kind `storage`."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Configuration of the backend, or URL options if a name starts with `?`."""
    loop: str = "asyncio"
    own_durability: str = ""
    """If it is not the server's default."""

    @property
    def backend(self) -> str:
        return "mongodb" if self.server == "mongodb" else "sql"

    @property
    def driver(self) -> str:
        return str(self.options.get("driver", _DRIVERS[self.server]))

    @property
    def durability(self) -> str:
        return self.own_durability or _DURABILITY[self.server]

    def config(self, url: str, database: str) -> dict[str, Any]:
        """The configuration for `create_storage`."""
        given = {name: value for name, value in self.options.items() if not name.startswith("?")}
        config = {"backend": self.backend, "url": url, **given}
        return {**config, "database": database} if self.server == "mongodb" else config


_W1 = "w=1: in memory, lost by a failover or a crash"
_OFF = "synchronous_commit=off: a crash loses what was just acknowledged"
_FULL = "WAL with synchronous=FULL: a sync per commit"
_LITE, _PG = "SQL baseline on SQLite", "SQL baseline on PostgreSQL"
_DEERFLOW = "DeerFlow's SQL code on"
_PG_OFF, _LITE_FULL, _UNLOCKED = f"{_PG}, not synced", f"{_LITE}, synced", f"{_LITE}, events without a lock"
_SAVER_FULL = "WAL with synchronous=FULL, the saver's default: a sync per commit"
_TRANSACTION = "a transaction per batch"
_IN_TURN = f"{_TRANSACTION}, a lock per thread"

_ALL = (
    Contender(OURS, "deerflow-mongo", "mongodb"),
    Contender(RAW_PYMONGO, "raw PyMongo", "mongodb", "direct", "raw_pymongo.opened"),
    Contender("sqlite", _LITE, "sqlite"),
    Contender("postgresql", _PG, "postgresql"),
    Contender("deerflow-sqlite", f"{_DEERFLOW} SQLite", "sqlite", "deerflow", "deerflow_sql.opened"),
    Contender(
        "deerflow-postgresql", f"{_DEERFLOW} PostgreSQL", "postgresql", "deerflow", "deerflow_sql.opened"
    ),
    Contender("transaction", _TRANSACTION, "mongodb", "direct", "raw_pymongo.in_transactions"),
    Contender("transaction-in-turn", _IN_TURN, "mongodb", "direct", "raw_pymongo.in_turn"),
    Contender("sqlite-for-update", _UNLOCKED, "sqlite", options={"run_event_numbers": "for_update"}),
    Contender(SINGLE, "deerflow-mongo without groups", "mongodb", options={"groups": False}),
    Contender("mongodb-motor", "deerflow-mongo on Motor", "mongodb", options={"driver": "motor"}),
    Contender("mongodb-uvloop", "deerflow-mongo with uvloop", "mongodb", loop=UVLOOP),
    Contender("mongodb-w1", "deerflow-mongo, w=1", "mongodb", options={"?w": "1"}, own_durability=_W1),
    Contender("postgresql-uvloop", f"{_PG} with uvloop", "postgresql", loop=UVLOOP),
    Contender("postgresql-pool32", f"{_PG}, 32 connections", "postgresql", options={"pool_size": 32}),
    Contender("postgresql-off", _PG_OFF, "postgresql", options={"synchronous": "off"}, own_durability=_OFF),
    Contender("sqlite-full", _LITE_FULL, "sqlite", options={"synchronous": "full"}, own_durability=_FULL),
    Contender("langgraph-sqlite", "AsyncSqliteSaver", "sqlite", "saver", own_durability=_SAVER_FULL),
    Contender(
        "langgraph-postgresql", "AsyncPostgresSaver", "postgresql", "saver", options={"driver": "psycopg"}
    ),
    Contender("langgraph-mongodb", "langgraph-checkpoint-mongodb", "mongodb", "saver"),
    Contender("langgraph-memory", "InMemorySaver", "memory", "saver"),
)

CONTENDERS: Mapping[str, Contender] = {contender.name: contender for contender in _ALL}

DEFAULT = (OURS, RAW_PYMONGO, "sqlite", "postgresql", "deerflow-sqlite", "deerflow-postgresql")
"""The contenders of a run without `--backends`."""

SAVERS = tuple(name for name, contender in CONTENDERS.items() if contender.kind == "saver")
"""The checkpoint savers that ours is compared with."""
