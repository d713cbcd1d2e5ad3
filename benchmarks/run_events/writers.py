"""The writers that are compared, by name, and the database that each of them needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import mongodb, sql
from .workload import Opener

Server = Literal["mongodb", "sqlite", "postgresql"]

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Writer:
    title: str
    server: Server
    open: Opener


WRITERS: dict[str, Writer] = {
    OURS: Writer("put_batch", "mongodb", mongodb.ours),
    "counter": Writer("counter, then insert_many", "mongodb", mongodb.counter_then_insert),
    "transaction": Writer("a transaction per batch", "mongodb", mongodb.transaction),
    "transaction_queued": Writer(
        "a transaction per batch, a lock per thread", "mongodb", mongodb.queued_transaction
    ),
    "sqlite": Writer("SQLAlchemy on SQLite", "sqlite", sql.unqueued),
    "sqlite_queued": Writer("SQLAlchemy on SQLite, a lock per thread", "sqlite", sql.queued),
    "postgresql": Writer(
        "SQLAlchemy on PostgreSQL, a lock per thread and advisory locks", "postgresql", sql.queued
    ),
}
