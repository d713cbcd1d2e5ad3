"""Which release of DeerFlow has made a database, by its tables and columns, or one sentence why none has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...contract.errors import StorageConfigError
from .databases import SqlDatabase
from .layouts import (
    BOOKKEEPING,
    LAYOUTS,
    REVISIONS,
    WRITES_TABLES,
    Layout,
    Table,
)
from .queries import revisions, rows_with_value

_REVISION_TABLE = "alembic_version"
_NEWER = "this release of deerflow-mongo knows DeerFlow up to 2.1.0: upgrade deerflow-mongo"


@dataclass(frozen=True, slots=True)
class Recognised:
    """A database of DeerFlow: its layout, and which of its tables and columns there are."""

    layout: Layout
    columns: Mapping[str, frozenset[str]]
    """Every table of the database -> its columns."""
    has_checkpoints: bool

    @property
    def tables(self) -> list[Table]:
        """The tables to carry that exist, in the order of the layout."""
        return [table for table in self.layout.tables if table.name in self.columns]

    @property
    def other_tables(self) -> list[str]:
        """The tables that are not carried, in the order of their names."""
        carried = {table.name for table in self.layout.tables}
        return sorted(self.columns.keys() - carried - BOOKKEEPING)


async def recognise(database: SqlDatabase) -> Recognised:
    """The layout of a database. Raises `StorageConfigError` for none, and for a newer one than is known."""
    columns = await database.tables()
    await _check_revision(database, columns)
    candidates = [layout for layout in LAYOUTS if _has_tables_of(layout, columns)]
    if not candidates:
        names = ", ".join(sorted(columns)[:8]) or "no table"
        raise StorageConfigError(
            f"{database.place} is no database of DeerFlow: it needs the tables runs and threads_meta, and "
            f"has {names}"
        )
    complete = [layout for layout in candidates if not _unknown_columns(layout, columns)]
    layout = complete[0] if complete else candidates[-1]
    for table, column in _unknown_columns(layout, columns):
        if await database.all_rows(rows_with_value(table, column)):
            raise StorageConfigError(
                f"{database.place} has values in {table}.{column}, which would be lost: {_NEWER}"
            )
    return Recognised(layout, columns, has_checkpoints(database, columns))


def has_checkpoints(database: SqlDatabase, tables: Iterable[str]) -> bool:
    """Whether the tables of LangGraph's saver are among these."""
    return {"checkpoints", WRITES_TABLES[database.dialect]} <= set(tables)


async def _check_revision(database: SqlDatabase, columns: Mapping[str, frozenset[str]]) -> None:
    if "version_num" not in columns.get(_REVISION_TABLE, ()):
        return
    for (revision,) in await database.all_rows(revisions(_REVISION_TABLE)):
        if revision not in REVISIONS:
            raise StorageConfigError(f"{database.place} has the schema revision {revision!r}: {_NEWER}")


def _has_tables_of(layout: Layout, columns: Mapping[str, frozenset[str]]) -> bool:
    """Whether there are the runs and threads of this layout, and every table of it has its columns."""
    needed = [table for table in (layout.table("runs"), layout.table("threads")) if table is not None]
    if not all(table.name in columns for table in needed):
        return False
    present = [table for table in layout.tables if table.name in columns]
    return all(table.required_columns <= columns[table.name] for table in present)


def _unknown_columns(layout: Layout, columns: Mapping[str, frozenset[str]]) -> list[tuple[str, str]]:
    """Columns of the tables to carry that this layout does not have."""
    return [
        (table.name, column)
        for table in layout.tables
        for column in sorted(columns.get(table.name, frozenset[str]()) - table.known_columns)
    ]
