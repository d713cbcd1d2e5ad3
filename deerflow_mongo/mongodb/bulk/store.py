"""`BulkRows` on MongoDB: which module exports or imports which kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from ...contract import arguments
from ...contract.bulk_rows import (
    KEYS,
    BulkRow,
    BulkRows,
    EventNumbersRow,
    ExportedRunEventRow,
    Imported,
    Key,
    RowKind,
)
from ...contract.checked_rows import checked_key, checked_rows
from ...contract.errors import ArgumentValueError
from ...contract.times import system_clock_us
from ..documents.exported_rows import ClockReading
from ..documents.stored_times import stamp_of
from ..drivers.collection import Collection
from ..drivers.driver import READ_COMMITTED
from ..schema import RUN_EVENTS
from . import exporting
from .event_rows import EventImport, EventNumbersImport
from .identified_rows import IdentifiedRowImport
from .kinds import IDENTIFIED_KINDS

if TYPE_CHECKING:
    from datetime import datetime

    from ..events.numbers import HadRetention

_MAX_EXPORT_BATCH = 100_000


class MongoBulkRows(BulkRows):
    """Exports what no failover can roll back, and imports with the storage's own write concern."""

    def __init__(
        self,
        collection: Callable[..., Collection],
        had_retention: HadRetention,
        server_time: Callable[[], Awaitable[datetime]],
    ) -> None:
        """`collection` gives a collection by its name in the schema, and options."""
        names = {RUN_EVENTS, *(kind.collection for kind in IDENTIFIED_KINDS.values())}
        self._collections = {name: collection(name) for name in names}
        self._committed = {name: collection(name, **READ_COMMITTED) for name in names}
        self._had_retention = had_retention
        self._server_time = server_time

    async def export_rows(
        self, kind: RowKind, *, after: Key | None = None, batch_size: int = 1_000
    ) -> AsyncGenerator[Sequence[BulkRow]]:
        key = None if after is None else checked_key(kind, after)
        arguments.one_of("kind", kind, KEYS)
        limit = arguments.row_limit("batch_size", batch_size)
        if limit == 0:
            raise ArgumentValueError("batch_size must not be 0")
        async with aclosing(self._pages(kind, key, min(limit, _MAX_EXPORT_BATCH))) as pages:
            async for page in pages:
                yield page

    def _pages(self, kind: RowKind, after: Key | None, limit: int) -> AsyncGenerator[Sequence[BulkRow]]:
        identified = IDENTIFIED_KINDS.get(kind)
        if identified is not None:
            rows = self._committed[identified.collection]
            return exporting.identified_rows(rows, identified, after, limit)
        events = self._committed[RUN_EVENTS]
        if kind == "run_events":
            return exporting.events(events, after, limit)
        return exporting.event_numbers(events, self._had_retention, after, limit)

    async def import_rows(
        self, kind: RowKind, rows: Sequence[BulkRow], *, overwrite: bool = False
    ) -> Imported:
        replaces = arguments.flag("overwrite", overwrite)
        checked = checked_rows(kind, rows)
        outcome = Imported(refused=checked.refused)
        identified = IDENTIFIED_KINDS.get(kind)
        if identified is not None:
            target = self._collections[identified.collection]
            importing = IdentifiedRowImport(target, identified, overwrite=replaces)
            outcome.add(await importing.run(checked.rows, await self._now(checked.rows)))
        elif kind == "run_events":
            events = cast("Mapping[Key, ExportedRunEventRow]", checked.rows)
            outcome.add(await EventImport(self._collections[RUN_EVENTS]).run(events))
        else:
            numbers = cast("Mapping[Key, EventNumbersRow]", checked.rows)
            outcome.add(await EventNumbersImport(self._collections[RUN_EVENTS]).run(numbers.values()))
        return outcome

    async def _now(self, rows: Mapping[Key, Any]) -> ClockReading:
        """Of both clocks where a row has a lease, else of this process's."""
        own_us = system_clock_us()
        if not any(row.get("lease_expires_at") for row in rows.values()):
            return ClockReading(own_us, own_us)
        return ClockReading(own_us, stamp_of(await self._server_time()))
