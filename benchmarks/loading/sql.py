"""Loads a dataset into the tables of the SQL baseline or of DeerFlow itself."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..contenders import deerflow_sql
from ..contenders.known import Contender
from ..dataset import Rows

_NAMES: Mapping[str, tuple[str, ...]] = {
    "metadata": ("metadata", "metadata_json", "event_metadata"),
    "kwargs": ("kwargs", "kwargs_json"),
    "created_at": ("created_at", "created_time"),
    "updated_at": ("updated_at", "updated_time"),
}
"""Field of the contract -> names of its column in different releases."""

_TABLES: Mapping[str, tuple[str, ...]] = {
    "threads": ("thread_meta", "threads_meta"),
    "runs": ("runs", "run"),
    "feedback": ("feedback",),
    "run_events": ("run_events",),
}


def load(contender: Contender, url: str, _database: str, batches: Iterable[Rows]) -> None:
    """Inserts into existing tables."""
    metadata = _metadata(contender)
    asyncio.run(_load(url, {name: _table(metadata, names) for name, names in _TABLES.items()}, batches))


async def _load(url: str, tables: Mapping[str, sa.Table], batches: Iterable[Rows]) -> None:
    async with _engine(url) as engine:
        for rows in batches:
            async with engine.begin() as connection:
                for name, table in tables.items():
                    values = [_values(table, name, row) for row in getattr(rows, name)]
                    if values:
                        await connection.execute(table.insert(), values)
        if engine.dialect.name == "postgresql":  # as autovacuum would have done by then
            async with engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.execute(sa.text("VACUUM ANALYZE"))


def _metadata(contender: Contender) -> sa.MetaData:
    """The description of the contender's tables."""
    if contender.kind == "deerflow":
        return deerflow_sql.metadata()
    return importlib.import_module("deerflow_sql_baseline.tables").Base.metadata


def _table(metadata: sa.MetaData, names: tuple[str, ...]) -> sa.Table:
    return next(metadata.tables[name] for name in names if name in metadata.tables)


def _values(table: sa.Table, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    given = {"updated_at": None if "created_time" in table.c else row["created_at"], **row}
    if name == "run_events":
        given |= _content(row)
    columns = ((_column(table, field), value) for field, value in given.items())
    return {column.key: value for column, value in columns if column is not None}


def _content(row: Mapping[str, Any]) -> dict[str, Any]:
    """DeerFlow stores content as text, with a mark in the metadata if it was not text."""
    content, metadata = row["content"], dict(row["metadata"])
    if isinstance(content, str):
        return {"content": content, "metadata": metadata}
    metadata["content_is_json"] = True
    if isinstance(content, dict):
        metadata["content_is_dict"] = True
    return {"content": json.dumps(content, default=str, ensure_ascii=False), "metadata": metadata}


def _column(table: sa.Table, field: str) -> sa.Column[Any] | None:
    return next((table.c[name] for name in _NAMES.get(field, (field,)) if name in table.c), None)


@asynccontextmanager
async def _engine(url: str | sa.URL, **options: Any) -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine(url, json_serializer=partial(json.dumps, ensure_ascii=False), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


# -- databases -------------------------------------------------------------------------------------


def create_database(url: str, template: str | None = None) -> None:
    """With what is in the template, which nobody has open, if there is one."""
    if url.startswith("postgresql"):
        copied = "" if template is None else f'TEMPLATE "{_name(template)}"'
        _execute(_maintenance(url), f'CREATE DATABASE "{_name(url)}" {copied}')
    elif template is not None:
        shutil.copyfile(_name(template), _name(url))


def drop_database(url: str) -> None:
    if url.startswith("postgresql"):
        _execute(_maintenance(url), f'DROP DATABASE IF EXISTS "{_name(url)}" WITH (FORCE)')
    else:
        for ending in ("", "-wal", "-shm"):
            Path(f"{_name(url)}{ending}").unlink(missing_ok=True)


def _name(url: str) -> str:
    """The database's name, or SQLite's file."""
    return str(sa.make_url(url).database)


def _maintenance(url: str) -> sa.URL:
    return sa.make_url(url).set(database="postgres")


def bytes_of_runs(contender: Contender, url: str, _database: str) -> int:
    """Disk space of the runs table with its indexes."""
    table = _table(_metadata(contender), _TABLES["runs"]).name
    if url.startswith("postgresql"):
        return int(_execute(url, "SELECT pg_total_relation_size(CAST(:name AS text))", name=table))
    query = (
        "SELECT sum(pgsize) FROM dbstat WHERE name IN (SELECT name FROM sqlite_master WHERE tbl_name = :name)"
    )
    return int(_execute(url, query, name=table))


def version(url: str) -> str:
    query = "SELECT sqlite_version()" if url.startswith("sqlite") else "SHOW server_version"
    return str(_execute(url, query))


def _execute(url: str | sa.URL, command: str, **values: Any) -> Any:
    """The first value that the command returns, if it returns rows."""

    async def execute() -> Any:
        async with _engine(url, isolation_level="AUTOCOMMIT") as engine, engine.connect() as connection:
            result = await connection.execute(sa.text(command), values)
            return result.scalar() if result.returns_rows else None

    return asyncio.run(execute())
