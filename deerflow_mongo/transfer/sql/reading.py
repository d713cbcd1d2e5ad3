"""Reads a table in pages by its key and converts its rows. How a page is stored is not known here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...contract.bulk_rows import KEYS, RefusedRow
from ...contract.errors import InvalidArgumentError
from ...mongodb.documents.row_summaries import SUMMARY_FIELDS, SUMMARY_PAYLOADS, SUMMARY_TIMES
from . import queries
from .conversions import as_stored, instant
from .databases import SqlDatabase, SqlRow
from .layouts import Row, Table

if TYPE_CHECKING:
    from ...contract.bulk_rows import Key
    from ...mongodb.documents.row_summaries import RowSummary

PAGE_ROWS: Final = 1_000
PAGE_BYTES: Final = 8 * 1024 * 1024
"""A page has at most so many rows and, but for its last row, so much text."""
SUMMARY_ROWS: Final = 1_000
"""Rows, or threads, whose summaries are compared together."""


@dataclass(frozen=True, slots=True)
class ReadPage:
    """Rows as they are imported, and those that cannot be converted."""

    rows: list[Row]
    refused: list[RefusedRow]

    @property
    def read(self) -> int:
        return len(self.rows) + len(self.refused)


@dataclass(frozen=True, slots=True)
class EventSummary:
    """What is compared of a thread's events before they are read."""

    thread_id: str
    events: int
    last_seq: int
    last_at: datetime | None
    """When the event with the highest number was created, in UTC, cut to the millisecond.

    None, which equals nothing stored, for a time that cannot be read.
    """
    last_user: str | None


class ReadSummary(NamedTuple):
    """The key of a row, and its summary; None if a value of it cannot be converted."""

    key: str
    summary: RowSummary | None


class TableReader:
    """Reads the rows of one table."""

    def __init__(self, database: SqlDatabase, table: Table, columns: frozenset[str]) -> None:
        self.table = table
        self._database = database
        self._columns = columns & table.known_columns
        first = len(table.key)
        self._converted = [
            (place, column.field, column.convert) for place, column in enumerate(table.columns, first)
        ]

    async def pages(self, **conditions: Any) -> AsyncGenerator[ReadPage]:
        """All rows under these conditions (see `queries.rows_of`), in rising order of their key."""
        after: Sequence[Any] | None = None
        while True:
            query = queries.rows_of(self.table, self._columns, after=after, **conditions)
            page = await self._database.page(query, max_rows=PAGE_ROWS, max_bytes=PAGE_BYTES)
            if page.rows:
                after = tuple(page.rows[-1][: len(self.table.key)])
                yield self._read(page.rows)
            if page.is_last:
                return

    def _read(self, values: list[SqlRow]) -> ReadPage:
        page = ReadPage([], [])
        for each in values:
            row: Row = {}
            field = ""
            try:
                for place, field, convert in self._converted:
                    row[field] = convert(each[place])
                row.update(self.table.constants)
                page.rows.append(self.table.finish(row))
            except (ValueError, InvalidArgumentError) as error:
                page.refused.append(RefusedRow(self._key(each), f"{field}: {error}"))
        return page

    async def summaries(
        self, added: Mapping[str, Any], **conditions: Any
    ) -> AsyncGenerator[list[ReadSummary]]:
        """Of all rows under these conditions, in pages; of tables with a key of one column.

        `added` are the last fields of the summaries, which are in no column.
        """
        names = [name for name in SUMMARY_FIELDS[self.table.kind] if name not in added]
        converts = [self._convert_of(name) for name in names]
        more = tuple(added.values())
        after: str | None = None
        while True:
            query = queries.small_values(
                self.table, self._columns, names, self._database.dialect, after=after, **conditions
            )
            rows = await self._database.all_rows(query.limit(SUMMARY_ROWS))
            if rows:
                after = rows[-1][0]
                yield [ReadSummary(row[0], _summary(row, converts, more)) for row in rows]
            if len(rows) < SUMMARY_ROWS:
                return

    def _convert_of(self, name: str) -> Callable[[Any], Any]:
        """How a value of a summary is read: as the row's, but for times, which need not become texts."""
        if name in SUMMARY_TIMES:
            return instant
        [convert] = [column.convert for column in self.table.columns if column.field == name] or [as_stored]
        return (lambda value: repr(convert(value))) if name in SUMMARY_PAYLOADS else convert

    def _key(self, values: SqlRow) -> Key:
        """The key of a row that cannot be converted, as our rows have it."""
        names = [column.field for column in self.table.columns]
        first = len(self.table.key)
        return tuple(values[first + names.index(name)] for name in KEYS[self.table.kind])

    async def event_summaries(self) -> AsyncGenerator[list[EventSummary]]:
        """Of all threads with events, in pages."""
        after: str | None = None
        while True:
            rows = await self._database.all_rows(queries.event_summaries(self.table, after, SUMMARY_ROWS))
            # Of several events with the highest number the one that was stored last.
            page = {
                thread_id: EventSummary(thread_id, events, last or 0, to_millisecond(created_at), user_id)
                for thread_id, events, last, created_at, user_id in rows
            }
            if page:
                after = rows[-1][0]
                yield list(page.values())
            if len(page) < SUMMARY_ROWS:
                return


def _summary(
    values: SqlRow, converts: Sequence[Callable[[Any], Any]], added: tuple[Any, ...]
) -> RowSummary | None:
    try:
        return (*[convert(value) for convert, value in zip(converts, values[1:], strict=True)], *added)
    except (ValueError, InvalidArgumentError):
        return None  # the row is read whole, and refused


def to_millisecond(time: object) -> datetime | None:
    """A time of SQL as MongoDB has it; None for one that cannot be read."""
    try:
        exact = instant(time)
    except ValueError:
        return None
    return exact and exact.replace(microsecond=exact.microsecond // 1_000 * 1_000)


class EventNumbers:
    """Gives every event of a thread a number of its own, where SQL has some twice.

    Events stay in the order of their number and, among equal ones, of their storing. The second event of a
    number gets the next one, and later events move up as far as they must.
    """

    def __init__(self) -> None:
        self.renumbered = 0
        self._thread_id: object = None
        self._last = 0

    def number(self, row: Row) -> Row:
        """The row with its number; rows come in the order of thread and number."""
        if row["thread_id"] != self._thread_id:
            self._thread_id, self._last = row["thread_id"], 0
        seq = row["seq"]
        if not isinstance(seq, int):
            return row
        self._last = max(seq, self._last + 1)
        if self._last != seq:
            row["seq"] = self._last
            self.renumbered += 1
        return row
