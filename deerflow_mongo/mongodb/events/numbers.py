"""The last number of a thread: from a short-lived cache, or read from the thread's documents.

The unique index (thread_id, seq) decides; nothing is locked and no counter is stored. A process caches the
last number of each thread that it writes to, takes the next ones and inserts. If another process was faster,
the server refuses the insert, and the events are renumbered after the last number was read again. Every
insert continues directly after a stored document, so no number appears after a greater one was seen.

How long a cached number may be used: `SEQ_CACHE_TTL_S`, five minutes. A deletion leaves tombstones, which
occupy the deleted numbers for a day, and retention removes nothing younger than a day. A process whose cache
is out of date can therefore only meet a number that is occupied; it never gives one out again. `stored_at`
never decreases within a thread, so retention removes a thread's events from the front. What remains when all
are gone is the thread's anchor.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from .. import queries
from ..documents.encoding import Document
from ..documents.run_events import LAST_NUMBER_FIELDS, last_number, new_minimum_update
from ..drivers.collection import Collection
from ..schema import SEQ_FALLING

SEQ_CACHE_TTL_S = 300.0
RECENT_SEQ_TTL_S = 5.0
"""For a deletion: a number above the one that it uses leaves a tombstone that never expires."""

TOMBSTONE_LIFETIME = timedelta(days=1)

_NOT_EXPIRED_BEFORE = timedelta(hours=12)
"""Retention, at least a day, has removed nothing younger than this, whatever the writers' clocks show."""

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
_UNKNOWN = -1

HadRetention: TypeAlias = Callable[[], Awaitable[bool]]


def utc_now() -> datetime:
    """Now, to the millisecond that BSON stores."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


class CachedSeq:
    """The last number of one thread as far as this process knows it."""

    __slots__ = ("_read_at", "has_anchor", "last", "last_stored_at")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.last, self.has_anchor = _UNKNOWN, True
        self.last_stored_at = _BEFORE_ALL
        self._read_at = (0.0, 0.0)

    def set(self, last: int, stored_at: datetime, *, has_anchor: bool = True) -> None:
        self.last, self.last_stored_at, self.has_anchor = last, stored_at, has_anchor
        self._read_at = (time.monotonic(), time.time())

    def is_fresh(self, ttl_s: float) -> bool:
        # By both clocks: the first may stop while a machine sleeps, the second may be set back.
        monotonic, wall = self._read_at
        return (
            self.last != _UNKNOWN and time.monotonic() - monotonic < ttl_s and abs(time.time() - wall) < ttl_s
        )


class ThreadNumbers:
    """Reads the numbers of threads from the server."""

    def __init__(self, events: Collection, had_retention: HadRetention) -> None:
        self._events = events
        self._had_retention = had_retention

    async def refresh(self, thread_id: str, cached: CachedSeq) -> None:
        """Read the number after which the thread continues."""
        document = await self._last_document(thread_id)
        if document is None:
            cached.set(0, _BEFORE_ALL, has_anchor=False)
            return
        found = last_number(document)
        next_seq = max(found.seq + 1, found.minimum_next_seq)
        if not found.is_event and not is_recent(found.stored_at):
            next_seq = max(found.seq + 1, await self._minimum_next_seq(thread_id))
        cached.set(next_seq - 1, found.stored_at)

    async def last_seq(self, thread_id: str, cached: CachedSeq | None) -> int:
        """The thread's highest number, tombstones included, at most seconds old; 0 for an empty thread."""
        if cached is not None and cached.is_fresh(RECENT_SEQ_TTL_S):
            return cached.last
        document = await self._last_document(thread_id)
        return 0 if document is None else last_number(document).seq

    async def _last_document(self, thread_id: str) -> Document | None:
        """An event, a tombstone, or the anchor of a thread without either."""
        query = queries.numbers_of_thread(thread_id)
        found = await self._events.find(query, sort=SEQ_FALLING, limit=1, projection=LAST_NUMBER_FIELDS)
        return found[0] if found else None

    async def _minimum_next_seq(self, thread_id: str) -> int:
        """The number from which an old thread without events continues; the same for every process.

        Retention may have removed events above the last number that is stored. No thread ever used a million
        numbers a second, so the microseconds since 1970 exceed all of them.
        """
        while True:
            document = await self._events.find_one(queries.anchor_of_thread(thread_id))
            if document is None:
                return 1
            anchor = last_number(document)
            if is_recent(anchor.stored_at) or not await self._had_retention():
                return anchor.minimum_next_seq
            # The first process renews the anchor; the others then read its minimum.
            await self._events.update_one(
                queries.anchor_not_renewed_since(thread_id, anchor.stored_at),
                new_minimum_update(time.time_ns() // 1_000, utc_now()),
            )


def is_recent(stored_at: datetime) -> bool:
    """Whether retention cannot have removed anything that was stored later than this."""
    return stored_at > utc_now() - _NOT_EXPIRED_BEFORE
