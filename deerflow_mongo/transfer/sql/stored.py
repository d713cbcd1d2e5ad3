"""What the target has: the rows of some keys, read from exports in the order of their keys, and counts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Final

from ...contract.bulk_rows import BulkRow, BulkRows, Key, RowKind, key_order
from ...contract.checked_rows import key_of
from ...mongodb.documents.row_summaries import RowSummary
from ...mongodb.row_counts import events_of_threads, has_rows, summaries_of_rows
from ...mongodb.storage import MongoStorage
from .reading import EventSummary

BATCH_ROWS: Final = 1_000


def _before(key: Key) -> Key | None:
    """A key that is lower, and higher than most that are lower."""
    *first, last = key
    if isinstance(last, int):
        return (*first, last - 1)
    return (*first, last[:-1]) if len(last) > 1 else None


async def stored_rows(
    storage: BulkRows, kind: RowKind, keys: Iterable[Key], *, batch_rows: int = BATCH_ROWS
) -> dict[Key, BulkRow]:
    """The rows of these keys. Reads one batch beyond them at most, wherever they are."""
    wanted = sorted(set(keys), key=key_order)
    places, found, place = {key: at for at, key in enumerate(wanted)}, dict[Key, BulkRow](), 0
    orders = [key_order(key) for key in wanted]
    while place < len(wanted):
        opened_at = place
        exported = storage.export_rows(kind, after=_before(wanted[place]), batch_size=batch_rows)
        async with aclosing(exported) as batches:
            async for batch in batches:
                for row in batch:
                    key = key_of(kind, row)
                    if key in places:
                        found[key] = row
                reached = bisect_right(orders, key_order(key_of(kind, batch[-1])))
                has_gap = reached == place and place != opened_at
                place = reached
                if place == len(wanted) or has_gap:
                    break
            else:
                return found
    return found


class StoredSummaries:
    """What a storage has of events and rows, as it is compared before anything is read whole."""

    def __init__(self, storage: MongoStorage) -> None:
        self._storage = storage

    async def events(self, thread_ids: Sequence[str]) -> dict[str, EventSummary]:
        found = await events_of_threads(self._storage, thread_ids)
        return {thread_id: EventSummary(thread_id, *stored) for thread_id, stored in found.items()}

    async def has_rows(self, kind: RowKind) -> bool:
        return await has_rows(self._storage, kind)

    async def rows(self, kind: RowKind, ids: Sequence[str]) -> dict[str, RowSummary]:
        return await summaries_of_rows(self._storage, kind, ids)
