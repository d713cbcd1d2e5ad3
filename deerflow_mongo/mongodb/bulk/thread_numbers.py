"""The numbers of several threads at once: their last ones, and numbers that no event may get here any more.

As in `events/numbers.py`, nothing is locked: a process of the database may have cached the last number of a
thread, so that what follows it is occupied before higher numbers are stored. It then meets an occupied
number, and reads the last one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ...contract.errors import StorageUnavailableError
from ..documents.encoding import Document
from ..documents.run_events import LAST_NUMBER_FIELDS, LastNumber, last_number, reserved_number
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..events.numbers import TOMBSTONE_LIFETIME, utc_now
from ..schema import SEQ_FALLING
from . import queries

_ATTEMPTS: Final = 100
_ANCHORS: Final = (("thread_id", 1), ("seq", 1))


class LastOfThread(NamedTuple):
    """What the last document of a thread says, and its anchor, where the last one is no event."""

    last: LastNumber
    minimum_next_seq: int

    @property
    def next_seq(self) -> int:
        return max(self.last.seq + 1, self.minimum_next_seq)


class BulkNumbers:
    """Reads and occupies numbers in the collection of run events."""

    def __init__(self, events: Collection) -> None:
        self._events = events

    async def last_of(self, thread_ids: Sequence[str]) -> dict[str, LastOfThread]:
        """By thread; without those of which nothing is stored."""
        if not thread_ids:
            return {}
        pipeline = queries.last_numbers(thread_ids, LAST_NUMBER_FIELDS)
        documents = await self._events.aggregate(pipeline, batch_size=len(thread_ids) + 1)
        last: dict[str, LastNumber] = {
            document["_id"]: last_number(
                {name: value for name, value in document.items() if value is not None}
            )
            for document in documents
        }
        minimums = await self._minimums([name for name, found in last.items() if not found.is_event])
        return {name: LastOfThread(found, minimums.get(name, 1)) for name, found in last.items()}

    async def _minimums(self, thread_ids: Sequence[str]) -> dict[str, int]:
        if not thread_ids:
            return {}
        found = await self._events.find(
            queries.anchors_of_threads(thread_ids), sort=_ANCHORS, limit=len(thread_ids)
        )
        return {anchor["thread_id"]: last_number(anchor).minimum_next_seq for anchor in found}

    def reservation(self, thread_id: str, after: LastNumber) -> Document:
        """What occupies the number after the last one until no cached number is used any more."""
        now = utc_now()
        return reserved_number(thread_id, after.seq + 1, max(now, after.stored_at), now + TOMBSTONE_LIFETIME)

    async def reserve_next(self, thread_id: str, below_seq: int) -> None:
        """Occupy the first free number below this one, unless all are occupied."""
        for _ in range(_ATTEMPTS):
            query = queries.numbers_below(thread_id, below_seq)
            found = await self._events.find(query, sort=SEQ_FALLING, limit=1, projection=LAST_NUMBER_FIELDS)
            if not found:
                return
            last = last_number(found[0])
            if last.seq + 1 >= below_seq:
                return
            try:
                await self._events.insert_one(self.reservation(thread_id, last))
            except DuplicateKeyError:
                continue  # another process took the number
            return
        raise StorageUnavailableError(
            f"thread {thread_id!r} is being written to while its events are imported: stop its runs, and "
            "repeat the import"
        )
