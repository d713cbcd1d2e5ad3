"""Carries the rows of a source into a storage, table by table, and compares what is stored with them.

Idempotent, so that repeating it continues an interrupted transfer and carries what has changed since. Of
accounts, threads, runs and votes those rows are read whole whose summaries differ, or all rows into a target
that has none; events are read of those threads whose count, last number or last event differ. No state is
stored beside the rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar, cast

from ...contract.bulk_rows import BulkRow, BulkRows, Key, RefusedRow, RowKind
from ...contract.checked_rows import key_of
from ...mongodb.documents.row_summaries import RowSummary
from ..digests import Digests, row_digest
from .databases import SqlDatabase
from .layouts import Row, Table
from .outcomes import RowDifference, TableOutcome, refusal
from .reading import EventNumbers, EventSummary, ReadPage, ReadSummary, TableReader
from .recognition import Recognised
from .stored import BATCH_ROWS, stored_rows

AT_ONCE: Final = 2
"""How many pages are imported at once, while the next one is read."""
CHUNK_EVENTS: Final = 4_000
CHUNK_THREADS: Final = 400
"""Threads whose events are read together."""
CHUNK_ROWS: Final = 250
"""Rows with different summaries that are read together, by their keys."""
SPARSE_BATCH_ROWS: Final = 8
MAX_CONFLICTS: Final = 10_000
"""How many rows wait for the end of their table, because another row is in their way."""

_Item = TypeVar("_Item")


class Stored(Protocol):
    """What the target has, before anything is read whole."""

    async def events(self, thread_ids: Sequence[str]) -> Mapping[str, EventSummary]:
        """Thread ids -> what is stored of their events."""
        ...

    async def has_rows(self, kind: RowKind) -> bool: ...

    async def rows(self, kind: RowKind, ids: Sequence[str]) -> Mapping[str, RowSummary]:
        """The summaries of the rows with these ids."""
        ...


Progress = Callable[[TableOutcome, int], None]
"""Gets the table and the number of rows that were dealt with since the last call."""


@dataclass(frozen=True, slots=True)
class CarryOptions:
    compare_all: bool = False
    """Read and compare every row whole, also where its summary, or that of its thread's events, is equal."""


class Transfer:
    """One pass over a source. The target may be in use by a gateway."""

    def __init__(
        self,
        database: SqlDatabase,
        recognised: Recognised,
        target: BulkRows,
        options: CarryOptions,
        *,
        stored: Stored,
        on_progress: Progress,
    ) -> None:
        self._database = database
        self._recognised = recognised
        self._target = target
        self._options = options
        self._stored = stored
        self._on_progress = on_progress

    async def run(self) -> AsyncGenerator[TableOutcome]:
        """Carry every table; yields each when it is done."""
        for table in self._recognised.tables:
            started = time.perf_counter()
            with Digests() as source, Digests() as target:
                carried = _CarriedTable(self._target, table, source, target, self._on_progress)
                reader = TableReader(self._database, table, self._recognised.columns[table.name])
                if table.kind == "run_events":
                    await self._carry_events(reader, carried)
                else:
                    await self._carry_rows(reader, carried)
                await carried.finish()
            carried.outcome.seconds = time.perf_counter() - started
            yield carried.outcome

    async def _carry_rows(self, reader: TableReader, carried: _CarriedTable) -> None:
        kind = reader.table.kind
        # In a target without rows every summary would differ, and be read for nothing.
        reads_all = self._options.compare_all or not await self._stored.has_rows(kind)
        carry = _carry_all if reads_all else self._carry_different
        if kind == "feedback":
            # Those that are no votes first: one of them may still be the stored vote.
            await carry(reader, carried, {"is_vote": False}, are_replaced=True)
            await carry(reader, carried, {"is_vote": True}, are_replaced=False)
        else:
            await carry(reader, carried, {})

    async def _carry_different(
        self, reader: TableReader, carried: _CarriedTable, added: Mapping[str, Any], **conditions: Any
    ) -> None:
        """Carry the rows whose summaries the target does not have."""
        summaries = reader.summaries(added, **conditions)
        async with _AtOnce(AT_ONCE) as tasks, aclosing(_read_ahead(summaries)) as pages:
            async for page in pages:
                await tasks.start(self._carry_page(reader, carried, page, added, conditions))

    async def _carry_page(
        self,
        reader: TableReader,
        carried: _CarriedTable,
        page: Sequence[ReadSummary],
        added: Mapping[str, Any],
        conditions: Mapping[str, Any],
    ) -> None:
        here = await self._stored.rows(reader.table.kind, [each.key for each in page])
        different = [each.key for each in page if here.get(each.key, ()) != each.summary]
        carried.skip(len(page) - len(different))
        for first in range(0, len(different), CHUNK_ROWS):
            await _carry_keys(reader, carried, different[first : first + CHUNK_ROWS], added, conditions)

    async def _carry_events(self, reader: TableReader, carried: _CarriedTable) -> None:
        async with _AtOnce(AT_ONCE) as tasks, aclosing(_read_ahead(reader.event_summaries())) as pages:
            async for page in pages:
                here = await self._stored.events([summary.thread_id for summary in page])
                different: list[EventSummary] = []
                for summary in page:
                    if here.get(summary.thread_id) == summary and not self._options.compare_all:
                        carried.skip(summary.events)
                    else:
                        different.append(summary)
                is_dense = 2 * len(different) >= len(page)
                for chunk in _chunks(different):
                    await tasks.start(_carry_threads(reader, carried, chunk, is_dense=is_dense))


def _chunks(summaries: Sequence[EventSummary]) -> Iterator[list[EventSummary]]:
    chunk: list[EventSummary] = []
    events = 0
    for summary in summaries:
        chunk.append(summary)
        events += summary.events
        if events >= CHUNK_EVENTS or len(chunk) >= CHUNK_THREADS:
            yield chunk
            chunk, events = [], 0
    if chunk:
        yield chunk


async def _carry_threads(
    reader: TableReader, carried: _CarriedTable, chunk: Sequence[EventSummary], *, is_dense: bool
) -> None:
    """Carry the events of these threads in the order of their numbers."""
    numbers = EventNumbers()
    batch_rows = BATCH_ROWS if is_dense else max(2, max(summary.events for summary in chunk) + 1)
    thread_ids = [summary.thread_id for summary in chunk]
    async with aclosing(_read_ahead(reader.pages(of_threads=thread_ids))) as pages:
        async for page in pages:
            for row in page.rows:
                numbers.number(row)
            await carried.carry(page, batch_rows=min(batch_rows, BATCH_ROWS))
    carried.outcome.renumbered += numbers.renumbered


async def _carry_all(
    reader: TableReader, carried: _CarriedTable, added: Mapping[str, Any], **conditions: Any
) -> None:
    """Carry the rows under these conditions, with these fields added to each."""
    async with _AtOnce(AT_ONCE) as tasks, aclosing(_read_ahead(reader.pages(**conditions))) as pages:
        async for page in pages:
            await tasks.start(carried.carry(_with_fields(page, added)))


async def _carry_keys(
    reader: TableReader,
    carried: _CarriedTable,
    keys: Sequence[str],
    added: Mapping[str, Any],
    conditions: Mapping[str, Any],
) -> None:
    """Carry the rows with these keys, of which a batch of the target has few unless they are many."""
    batch_rows = BATCH_ROWS if len(keys) == CHUNK_ROWS else SPARSE_BATCH_ROWS
    async with aclosing(reader.pages(of_keys=keys, **conditions)) as pages:
        async for page in pages:
            await carried.carry(_with_fields(page, added), batch_rows=batch_rows)


def _with_fields(page: ReadPage, added: Mapping[str, Any]) -> ReadPage:
    for row in page.rows:
        row.update(added)
    return page


class _Compared(NamedTuple):
    """A row of the source, and its digest."""

    row: Row
    digest: int


class _CarriedTable:
    """Imports pages of one table, and records what became of them."""

    def __init__(
        self, target: BulkRows, table: Table, source: Digests, stored: Digests, on_progress: Progress
    ) -> None:
        self.outcome = TableOutcome(table.name, table.kind)
        self._target = target
        self._kind: RowKind = table.kind
        self._source = source
        self._stored = stored
        self._on_progress = on_progress
        self._conflicts: list[Row] = []

    def skip(self, rows: int) -> None:
        self.outcome.rows += rows
        self.outcome.equal_by_summary += rows
        self._on_progress(self.outcome, rows)

    async def carry(self, page: ReadPage, *, batch_rows: int = BATCH_ROWS) -> None:
        outcome = self.outcome
        outcome.rows += page.read
        outcome.differences += [refusal(self._kind, refused, None) for refused in page.refused]
        if page.rows:
            refused = await self._import(page.rows, batch_rows)
            by_key = {key_of(self._kind, row): row for row in page.rows}
            for each in refused:
                row = by_key.get(each.key)
                if row is not None and each.is_conflict and len(self._conflicts) < MAX_CONFLICTS:
                    self._conflicts.append(row)
                else:
                    self._list_refused(each, row)
        self._on_progress(outcome, page.read)

    def _list_refused(self, refused: RefusedRow, row: Row | None) -> None:
        thread_id = None if row is None else row.get("thread_id")
        self.outcome.differences.append(refusal(self._kind, refused, thread_id))

    async def _import(self, rows: Sequence[Row], batch_rows: int) -> list[RefusedRow]:
        """Import the rows that the target does not have, and compare them; those that it refuses."""
        kind = self._kind
        given = {key_of(kind, row): _Compared(row, row_digest(row)) for row in rows}
        # Reading first costs less than an insert that is refused.
        stored = await stored_rows(self._target, kind, given, batch_rows=batch_rows)
        for key, row in stored.items():
            if row_digest(row) == given[key].digest:
                self._add(given.pop(key), stored=True)
                self.outcome.unchanged += 1
        if not given:
            return []
        new = [cast("BulkRow", one.row) for one in given.values()]
        imported = await self._target.import_rows(kind, new)
        self.outcome.add(imported)
        for key in imported.changed_here:
            thread_id = given.pop(key).row.get("thread_id")
            self.outcome.differences.append(RowDifference(kind, key, thread_id, "changed_here"))
        for refused in imported.refused:
            given.pop(refused.key, None)
        stored = await stored_rows(self._target, kind, given, batch_rows=batch_rows)
        for key, one in given.items():
            self._compare(key, one, cast("Row | None", stored.get(key)))
        return imported.refused

    def _add(self, one: _Compared, *, stored: bool) -> None:
        """Add a row to the digest of the source, and to that of the target if it is there."""
        thread_id = one.row.get("thread_id")
        for digests in (self._source, self._stored) if stored else (self._source,):
            digests.add_digest(self._kind, thread_id, one.digest)

    def _compare(self, key: Key, one: _Compared, stored: Row | None) -> None:
        """Add what was imported and what is stored of it to the digests, and list it if they differ."""
        kind, row, thread_id = self._kind, one.row, one.row.get("thread_id")
        stored_digest = None if stored is None else row_digest(stored)
        self._add(one, stored=stored_digest == one.digest)
        if stored is None or stored_digest is None:
            self.outcome.differences.append(RowDifference(kind, key, thread_id, "missing"))
        elif stored_digest != one.digest:
            self._stored.add_digest(kind, thread_id, stored_digest)
            names = [name for name in {**row, **stored} if row.get(name) != stored.get(name)]
            details = ", ".join(names) or "the types of values"
            self.outcome.differences.append(RowDifference(kind, key, thread_id, "different", details))

    async def finish(self) -> None:
        """Import again what was in the way of each other, and compare the totals."""
        rows, self._conflicts = self._conflicts, []
        by_key = {key_of(self._kind, row): row for row in rows}
        refused = await self._import(rows, BATCH_ROWS) if rows else []
        if self._kind == "feedback" and refused:
            # The source has deleted the vote that the target has, so that this row is newer but no vote here.
            feedback = [
                {**by_key[each.key], "is_vote": False}
                for each in refused
                if each.is_conflict and each.key in by_key
            ]
            others = [each for each in refused if not each.is_conflict]
            self.outcome.demoted_votes += len(feedback)
            refused = [*others, *(await self._import(feedback, BATCH_ROWS) if feedback else [])]
        for each in refused:
            self._list_refused(each, by_key.get(each.key))
        self.outcome.source_digest = self._source.total(self._kind).digest
        self.outcome.target_digest = self._stored.total(self._kind).digest
        self.outcome.different_threads = sum(1 for _ in self._source.differences(self._stored))


# -- reading and importing at once -----------------------------------------------------------------


async def _read_ahead(items: AsyncIterable[_Item]) -> AsyncGenerator[_Item]:
    """The same items, of which the next one is read while one is used."""
    iterator = aiter(items)
    reading = asyncio.ensure_future(_next(iterator))
    try:
        while True:
            found = await reading
            if not found:
                return
            reading = asyncio.ensure_future(_next(iterator))
            yield found[0]
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()  # one that is never retrieved would be logged
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


async def _next(iterator: Any) -> list[Any]:
    """The next item alone in a list, or an empty list."""
    try:
        return [await anext(iterator)]
    except StopAsyncIteration:
        return []


class _AtOnce:
    """Runs a number of coroutines at once; the first error cancels the others and is raised itself."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def start(self, work: Any) -> None:
        """Run it; waits while as many run as may."""
        self._tasks.add(asyncio.create_task(work))
        if len(self._tasks) >= self._limit:
            await self._wait(asyncio.FIRST_COMPLETED)

    async def _wait(self, until: str) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=until)
        for task in done:
            await task

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._tasks:
                await self._wait(asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            for task in self._tasks:
                if not task.cancelled():
                    task.exception()
