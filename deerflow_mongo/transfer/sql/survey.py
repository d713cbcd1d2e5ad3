"""What a transfer would find, before it writes anything: counts, sizes, time, and what cannot be carried.

Only what the database itself counts. A value that cannot be converted is found by the transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ...contract.bulk_rows import RowKind
from ...contract.rows import ACTIVE_STATUSES
from . import queries
from .databases import SqlDatabase
from .layouts import NOT_CARRIED, Table
from .recognition import Recognised

MAX_NAMED: Final = 20
"""How many rows of a kind of finding are named; all are counted."""

SAMPLE_ROWS: Final = 1_000
MAX_ROW_BYTES: Final = 16 * 1024 * 1024
ROWS_PER_S: Final[Mapping[RowKind, int]] = {
    "users": 3_000,
    "threads": 4_000,
    "runs": 2_500,
    "feedback": 5_000,
    "run_events": 4_500,
}
"""Of two free cores with the server on the same machine; the network and larger rows make it slower."""

CHECKPOINT_BYTES_PER_S: Final = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TableSurvey:
    """A table that is carried. The size is estimated from some of its rows, without indexes."""

    table: str
    kind: RowKind
    rows: int
    size_bytes: int

    @property
    def seconds(self) -> float:
        return self.rows / ROWS_PER_S.get(self.kind, 5_000)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the operator should know: how many rows it concerns, which, and what happens."""

    table: str
    rows: int
    what: str
    named: list[str] = field(default_factory=lambda: list[str]())
    prevents: bool = False
    """Whether these rows are not carried."""


@dataclass(frozen=True, slots=True)
class Survey:
    place: str
    release: str
    size_bytes: int
    """Of the whole database, with indexes and checkpoints."""
    tables: list[TableSurvey]
    findings: list[Finding]
    has_checkpoints: bool
    checkpoint_threads: int = 0
    checkpoints: int = 0

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def checkpoint_bytes(self) -> int:
        """What the tables leave of the database's size; indexes count as well."""
        return max(0, self.size_bytes - sum(table.size_bytes for table in self.tables))

    @property
    def seconds(self) -> float:
        """A first pass, roughly."""
        copying = self.checkpoint_bytes / CHECKPOINT_BYTES_PER_S if self.checkpoints else 0
        return sum(table.seconds for table in self.tables) + copying


async def survey(database: SqlDatabase, recognised: Recognised) -> Survey:
    tables = [await _table(database, recognised, table) for table in recognised.tables]
    findings: list[Finding] = []
    for table in recognised.tables:
        findings += await _findings(database, recognised, table)
    for name in recognised.other_tables:
        [(rows,)] = await database.all_rows(queries.count_of(name))
        if rows:
            contents = NOT_CARRIED.get(name)
            what = f"{contents}, which this storage does not have yet" if contents else "an unknown table"
            findings.append(Finding(name, rows, what, prevents=True))
    return Survey(
        database.place,
        recognised.layout.release,
        await database.size_bytes(),
        tables,
        findings,
        recognised.has_checkpoints,
    )


async def _table(database: SqlDatabase, recognised: Recognised, table: Table) -> TableSurvey:
    [(rows,)] = await database.all_rows(queries.count_of(table.name))
    columns = recognised.columns[table.name] & table.known_columns
    query = queries.sample_size(table, columns, SAMPLE_ROWS, database.dialect)
    [(average,)] = await database.all_rows(query)
    return TableSurvey(table.name, table.kind, rows, round(rows * float(average or 0)))


async def _findings(database: SqlDatabase, recognised: Recognised, table: Table) -> list[Finding]:
    columns = recognised.columns[table.name] & table.known_columns
    found = [await _large_rows(database, table, columns)]
    if table.kind == "users":
        query = queries.emails_that_differ_in_case(table, MAX_NAMED)
        emails = [f"{email} ({count} accounts)" for email, count in await database.all_rows(query)]
        what = "emails that differ in case only: the first account of each is carried, the others are not"
        found.append(Finding(table.name, len(emails), what, emails, prevents=True))
    if table.kind == "runs":
        [(active,)] = await database.all_rows(queries.count_of_runs_in(table, ACTIVE_STATUSES))
        rows = await database.all_rows(queries.runs_in(table, ACTIVE_STATUSES, MAX_NAMED))
        named = [f"run {run_id} of thread {thread_id}, {status}" for run_id, thread_id, status in rows]
        what = "active runs: carried as they are; a gateway ends those of no worker when it starts"
        found.append(Finding(table.name, active, what, named))
    if table.kind == "feedback":
        [(replaced,)] = await database.all_rows(queries.replaced_votes(table, columns))
        what = (
            "votes that their user has replaced by a newer one on the same run: carried as feedback; the "
            "newest is the vote"
        )
        found.append(Finding(table.name, replaced, what))
    if table.kind == "run_events" and not await database.has_unique_key(table.name, table.key[:2]):
        [(repeated,)] = await database.all_rows(queries.repeated_numbers(table))
        what = (
            "events with the number of an event before them: they get the next number, and the thread's "
            "later events move up"
        )
        found.append(Finding(table.name, int(repeated), what))
    return [finding for finding in found if finding.rows]


async def _large_rows(database: SqlDatabase, table: Table, columns: frozenset[str]) -> Finding:
    if not table.long_columns:
        return Finding(table.name, 0, "")
    query = queries.large_rows(table, columns, MAX_ROW_BYTES, MAX_NAMED, database.dialect)
    named = [f"{', '.join(map(str, key))} ({size:,} bytes)" for *key, size in await database.all_rows(query)]
    return Finding(table.name, len(named), "rows beyond 16 MiB: not carried", named, prevents=True)
