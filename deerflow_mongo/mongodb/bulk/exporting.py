"""Exports rows in pages, each read behind the key of the last one: no cursor is open between two pages.

A page is at most one answer of the server, 16 MiB, and so is what is in memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Final, cast

from ...contract.bulk_rows import BulkRow, EventNumbersRow, ExportedRunEventRow, Key
from ..documents.exported_rows import exported_event
from ..documents.stored_times import stamp_of
from ..drivers.collection import Collection
from ..events.numbers import HadRetention, is_recent
from ..queries import after_id
from ..row_collection import RowCollection
from ..schema import EVENT_NUMBERS, RUN_EVENTS
from . import queries
from .kinds import IdentifiedKind
from .thread_numbers import BulkNumbers, LastOfThread

_BY_ID: Final = (("_id", 1),)


async def identified_rows(
    collection: Collection, kind: IdentifiedKind, after: Key | None, limit: int
) -> AsyncGenerator[Sequence[BulkRow]]:
    rows = RowCollection(collection, kind.collection, kind.to_row)
    last = None if after is None else after[0]
    if last is None:
        for document in await collection.find(queries.with_other_ids(), sort=_BY_ID, limit=1):
            rows.row(document)  # raises
    while page := await collection.find_page(after_id(last), sort=_BY_ID, limit=limit):
        yield [rows.row(document) for document in page]
        last = page[-1]["_id"]


async def events(
    collection: Collection, after: Key | None, limit: int
) -> AsyncGenerator[Sequence[ExportedRunEventRow]]:
    rows = RowCollection(collection, RUN_EVENTS, exported_event)
    last = cast("tuple[str, int] | None", after)
    while page := await collection.find_page(
        queries.events_behind(last), sort=EVENT_NUMBERS.keys, limit=limit
    ):
        found = [rows.row(document) for document in page]
        yield found
        last = (found[-1]["thread_id"], found[-1]["seq"])


async def event_numbers(
    collection: Collection, had_retention: HadRetention, after: Key | None, limit: int
) -> AsyncGenerator[Sequence[EventNumbersRow]]:
    numbers = BulkNumbers(collection)
    thread_id = None if after is None else cast("str", after[0])
    had = await had_retention()
    while page := await collection.find_page(
        queries.anchors_behind(thread_id), sort=EVENT_NUMBERS.keys, limit=limit
    ):
        threads = [anchor["thread_id"] for anchor in page]
        last = await numbers.last_of(threads)
        found: list[EventNumbersRow] = []
        for name in threads:
            if name in last and not last[name].last.is_event:
                next_seq = _next_seq(last[name], had_retention=had)
                if next_seq > 1:
                    found.append({"thread_id": name, "next_seq": next_seq})
        if found:
            yield found
        thread_id = threads[-1]


def _next_seq(found: LastOfThread, *, had_retention: bool) -> int:
    """Where an empty thread continues.

    Retention may have removed events above all that is stored, more than a day ago. As in
    `events/numbers.py`, the microseconds until then exceed their numbers; here until midnight, so that two
    exports are equal.
    """
    if not had_retention or is_recent(found.last.stored_at):
        return found.next_seq
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return max(found.next_seq, stamp_of(midnight))
