"""Imports run events with the numbers that they came with, and where the numbers of a thread continue.

An event is stored after the thread's anchor and before those of higher numbers. Its `stored_at` is the time
of the import, or that of the next higher event where there is one: it must not decrease within a thread, or
retention would remove the last number before others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from ...contract.bulk_rows import EventNumbersRow, ExportedRunEventRow, Imported, Key, RefusedRow
from ...contract.errors import StorageError
from ...contract.row_digests import row_digest
from ...contract.rows import MAX_COUNT
from ..corruption import READ_ERRORS, corruption_of
from ..documents.encoding import Document
from ..documents.exported_rows import event_document, exported_event
from ..documents.run_events import (
    LAST_NUMBER_FIELDS,
    RESERVED,
    anchor_document,
    last_number,
    reserved_number,
)
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..events.numbers import utc_now
from ..schema import EVENT_IDS, EVENT_NUMBERS, ONCE_PER_RUN, RUN_EVENTS, SEQ_RISING, Index, schema_of
from . import queries
from .sizes import parts, size_or_refusal
from .thread_numbers import BulkNumbers, LastOfThread

_MAX_COMPARED: Final = 10_000
"""Documents that one command reads at most to compare them with imported rows."""

_REASONS: Final[tuple[tuple[Index, str], ...]] = (
    (EVENT_IDS, "another event of its thread has its event_id"),
    (ONCE_PER_RUN, "its run has another event of its type that is stored once"),
)
_NUMBER_TAKEN: Final = "another event has its number"


class _Given(NamedTuple):
    key: Key
    row: ExportedRunEventRow
    document: Document
    size_bytes: int

    @property
    def thread_id(self) -> str:
        return self.row["thread_id"]

    @property
    def seq(self) -> int:
        return self.row["seq"]

    def refused(self, reason: str) -> RefusedRow:
        return RefusedRow(self.key, reason)


class EventImport:
    """One call of `import_rows` for run events."""

    def __init__(self, events: Collection) -> None:
        self._events = events
        self._numbers = BulkNumbers(events)
        self._outcome = Imported()

    async def run(self, rows: Mapping[Key, ExportedRunEventRow]) -> Imported:
        given: list[_Given] = []
        for key, row in rows.items():
            document = event_document(row)
            size = size_or_refusal(key, document)
            if isinstance(size, RefusedRow):
                self._outcome.refused.append(size)
            else:
                given.append(_Given(key, row, document, size))
        given.sort(key=lambda one: (one.thread_id, one.seq))
        for part in parts(given, lambda one: one.size_bytes):
            await self._import_part(part)
        return self._outcome

    async def _import_part(self, given: Sequence[_Given]) -> None:
        threads = list(dict.fromkeys(one.thread_id for one in given))
        last = await self._numbers.last_of(threads)
        below = [one for one in given if one.thread_id in last and one.seq <= last[one.thread_id].last.seq]
        missing = {one.key for one in await self._compared(below)}
        now = utc_now()
        guards: list[Document] = []
        new: list[_Given] = []
        for thread_id, of_thread in _by_thread(given):
            found = last.get(thread_id)
            above = [one for one in of_thread if found is None or one.seq > found.last.seq]
            guards += self._guards(thread_id, above, found, now)
            stored_at = now if found is None else max(now, found.last.stored_at)
            for one in of_thread:
                if one.key in missing:
                    one.document["stored_at"] = await self._stored_at_below(one, stored_at)
                    new.append(one)
                elif found is None or one.seq > found.last.seq:
                    one.document["stored_at"] = stored_at
                    new.append(one)
        await self._insert(guards, new)

    def _guards(
        self, thread_id: str, above: Sequence[_Given], found: LastOfThread | None, now: datetime
    ) -> Iterator[Document]:
        """What is stored before these events: the anchor, or what closes a gap behind the last number."""
        if found is None:
            yield anchor_document(thread_id, now, min(above[-1].seq + 1, MAX_COUNT))
        elif above and above[0].seq > found.last.seq + 1:
            yield self._numbers.reservation(thread_id, found.last)

    async def _stored_at_below(self, given: _Given, default: datetime) -> datetime:
        """The time of the next higher event or tombstone."""
        query = queries.numbers_above(given.thread_id, given.seq)
        found = await self._events.find(query, sort=SEQ_RISING, limit=1, projection=LAST_NUMBER_FIELDS)
        return last_number(found[0]).stored_at if found else default

    async def _insert(self, guards: Sequence[Document], new: Sequence[_Given]) -> None:
        if not new:
            return
        documents = [*guards, *(one.document for one in new)]
        failures = await self._events.insert_each(documents)
        duplicates: list[tuple[_Given, DuplicateKeyError]] = []
        for position, error in failures.items():
            guard = guards[position] if position < len(guards) else None
            if guard is not None:
                await self._after_refused_guard(guard, error, new)
                continue
            one = new[position - len(guards)]
            if isinstance(error, DuplicateKeyError):
                duplicates.append((one, error))
            else:
                self._outcome.refused.append(one.refused(str(error)))
        self._outcome.stored += len(new) - sum(position >= len(guards) for position in failures)
        absent = {one.key for one in await self._compared([one for one, _ in duplicates])}
        self._outcome.refused += [
            one.refused(_reason_of(error)) for one, error in duplicates if one.key in absent
        ]

    async def _after_refused_guard(self, guard: Document, error: StorageError, new: Sequence[_Given]) -> None:
        if not isinstance(error, DuplicateKeyError):
            raise error
        if RESERVED in guard:
            first = min(
                one.seq for one in new if one.thread_id == guard["thread_id"] and one.seq > guard["seq"]
            )
            await self._numbers.reserve_next(guard["thread_id"], first)

    # What is here already.

    async def _compared(self, given: Sequence[_Given]) -> list[_Given]:
        """Count the rows whose numbers are occupied here; those whose numbers are free."""
        free: list[_Given] = []
        for group in _comparable(given):
            threads, seqs = {one.thread_id for one in group}, {one.seq for one in group}
            query = queries.at_numbers(sorted(threads), sorted(seqs))
            wanted = {one.key for one in group}
            stored: dict[Key, Document] = {}
            async for batch in self._events.stream(query):
                places = (((item["thread_id"], item["seq"]), item) for item in batch)
                stored.update((place, item) for place, item in places if place in wanted)
            for one in group:
                if one.key not in stored:
                    free.append(one)
                else:
                    await self._compare(one, stored[one.key])
        return free

    async def _compare(self, given: _Given, stored: Document) -> None:
        if RESERVED in stored:
            given.document["stored_at"] = last_number(stored).stored_at
            document = {**given.document, "_id": stored["_id"]}
            try:
                matched = await self._events.replace_one(queries.reserved_number(stored), document)
            except DuplicateKeyError as error:
                self._outcome.refused.append(given.refused(_reason_of(error)))
                return
            self._outcome.stored += matched
            self._outcome.unchanged += 1 - matched  # another import of the same event was first
        elif "run_id" not in stored:
            self._outcome.changed_here.append(given.key)  # deleted
        else:
            self._compare_event(given, stored)

    def _compare_event(self, given: _Given, stored: Document) -> None:
        try:
            row = exported_event(stored)
        except READ_ERRORS:
            error = corruption_of(self._events.name, schema_of(RUN_EVENTS), stored)
            self._outcome.refused.append(given.refused(str(error)))
            return
        if row_digest(row) == row_digest(given.row):
            self._outcome.unchanged += 1
        else:
            self._outcome.refused.append(given.refused(_NUMBER_TAKEN))


def _by_thread(given: Sequence[_Given]) -> Iterator[tuple[str, list[_Given]]]:
    """The events of each thread, of events that are sorted by threads."""
    of_thread: list[_Given] = []
    for one in given:
        if of_thread and of_thread[0].thread_id != one.thread_id:
            yield of_thread[0].thread_id, of_thread
            of_thread = []
        of_thread.append(one)
    if of_thread:
        yield of_thread[0].thread_id, of_thread


def _comparable(given: Iterable[_Given]) -> Iterator[list[_Given]]:
    """Groups whose threads and numbers have few enough combinations for one command."""
    group: list[_Given] = []
    threads: set[str] = set()
    seqs: set[int] = set()
    for one in given:
        threads.add(one.thread_id)
        seqs.add(one.seq)
        if group and len(threads) * len(seqs) > _MAX_COMPARED:
            yield group
            group, threads, seqs = [], {one.thread_id}, {one.seq}
        group.append(one)
    if group:
        yield group


def _reason_of(error: DuplicateKeyError) -> str:
    for index, reason in _REASONS:
        if error.keys == tuple(name for name, _ in index.keys):
            return reason
    if error.keys == tuple(name for name, _ in EVENT_NUMBERS.keys):
        return _NUMBER_TAKEN
    return " or ".join(reason for _, reason in _REASONS)


class EventNumbersImport:
    """One call of `import_rows` for where the numbers of threads continue."""

    def __init__(self, events: Collection) -> None:
        self._events = events
        self._numbers = BulkNumbers(events)

    async def run(self, rows: Iterable[EventNumbersRow]) -> Imported:
        outcome = Imported()
        wanted = {row["thread_id"]: row["next_seq"] for row in rows}
        last = await self._numbers.last_of(list(wanted))
        now = utc_now()
        documents: list[Document] = []
        for thread_id, next_seq in wanted.items():
            found = last.get(thread_id)
            if next_seq <= (1 if found is None else found.next_seq):
                outcome.unchanged += 1
                continue
            outcome.stored += 1
            documents += self._occupied(thread_id, next_seq, found, now)
        failures = await self._events.insert_each(documents) if documents else {}
        for position, error in failures.items():
            if not isinstance(error, DuplicateKeyError):
                raise error
            document = documents[position]
            if document.get("expires_at") is not None:
                await self._numbers.reserve_next(document["thread_id"], wanted[document["thread_id"]] - 1)
        return outcome

    def _occupied(
        self, thread_id: str, next_seq: int, found: LastOfThread | None, now: datetime
    ) -> Iterator[Document]:
        """The anchor, the last number for ever, and the first one behind what processes have cached."""
        if found is None:
            yield anchor_document(thread_id, now)
        stored_at = now if found is None else max(now, found.last.stored_at)
        yield reserved_number(thread_id, next_seq - 1, stored_at, None)
        if found is not None and found.last.seq + 1 < next_seq - 1:
            yield self._numbers.reservation(thread_id, found.last)
