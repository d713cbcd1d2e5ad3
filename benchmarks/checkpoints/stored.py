"""The bytes that a saver has stored: before the database compresses them, and on disk with their indexes."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pymongo import MongoClient

from ..contenders.known import ServerName
from ..servers import Target
from .savers import libpq_url, sqlite_path

_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
"""Of LangGraph's PostgreSQL saver."""
_PREFIX = "checkpoint"
"""All collections of checkpoints begin with it, ours and the library's."""


class Stored(NamedTuple):
    uncompressed: int
    on_disk: int


def _mongodb(target: Target) -> Stored:
    """Both with the indexes."""
    with MongoClient[Any](target.url) as client:
        client.admin.command("fsync")
        database = client[target.database]
        names = (name for name in database.list_collection_names() if name.startswith(_PREFIX))
        found = [database.command("collStats", name) for name in names]
    return Stored(
        sum(one["size"] + one["totalIndexSize"] for one in found),
        sum(one["storageSize"] + one["totalIndexSize"] for one in found),
    )


def _sqlite(target: Target) -> Stored:
    """The file, which is not compressed, without its free pages."""
    path = Path(sqlite_path(target.url))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return Stored((pages - free) * size, path.stat().st_size)


def _postgresql(target: Target) -> Stored:
    """Before compression: the values of the columns, without rows' headers and indexes."""
    psycopg: Any = importlib.import_module("psycopg")
    with psycopg.connect(libpq_url(target.url)) as connection:

        def number(query: str) -> int:
            return int(connection.execute(query).fetchone()[0])

        columns = {"checkpoints": ("checkpoint::text", "metadata::text")}
        return Stored(
            sum(
                number(f"SELECT coalesce(sum(octet_length({column})), 0) FROM {table}")  # noqa: S608 - our names
                for table in _TABLES
                for column in columns.get(table, ("blob",))
            ),
            sum(number(f"SELECT pg_total_relation_size('{table}')") for table in _TABLES),
        )


_MEASURES: Mapping[ServerName, Callable[[Target], Stored]] = {
    "mongodb": _mongodb,
    "sqlite": _sqlite,
    "postgresql": _postgresql,
}


def measured(server: ServerName, target: Target) -> Stored:
    return _MEASURES[server](target)
