"""What a storage in memory holds, and what its stores share: rows by owner, and the order of creation.

A write changes these rows at once, between two awaits of the event loop, which makes it atomic. The rows here
are never handed out: a store returns copies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from weakref import WeakSet

from ..contract import arguments, rows, times
from ..contract.bulk_rows import Key
from ..contract.errors import StorageClosedError

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class EventLog:
    """A thread's events in rising `seq`. `last_seq` stays when they are deleted: no number is given twice."""

    events: list[rows.RunEventRow] = field(default_factory=list[rows.RunEventRow])
    last_seq: int = 0
    by_event_id: dict[str, rows.RunEventRow] = field(default_factory=dict[str, rows.RunEventRow])
    """Of those that have an `event_id`."""
    once: set[int] = field(default_factory=set[int])
    """The numbers of those that `put_if_absent` stored."""
    deleted: set[int] = field(default_factory=set[int])
    """The numbers of those that were deleted."""


class Follower:
    """Wakes up when its thread has new events, or when the run that it follows changes."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.run_was_deleted = False


class Data:
    """Rows by their ids."""

    def __init__(self) -> None:
        self.runs: dict[str, rows.RunRow] = {}
        self.model_counts: dict[str, dict[str, dict[str, int]]] = {}
        """A run's token counts by model, which are part of the rows of runs that have an owner only."""
        self.lease_ends_ms: dict[str, float] = {}
        """When the lease of a run ends, on the clock of `database_time_ms`; absent where it has none."""
        self.feedback: dict[str, rows.FeedbackRow] = {}
        self.votes: set[str] = set()
        """The ids of the feedback that is its user's vote on a run."""
        self.threads: dict[str, rows.ThreadMeta] = {}
        self.events: dict[str, EventLog] = {}
        self.users: dict[str, rows.UserRow] = {}
        self.imported: dict[str, dict[Key, int]] = {}
        """By kind and key: the digests of the rows that were imported."""
        self._followers_of_threads: dict[str, WeakSet[Follower]] = {}
        self._followers_of_runs: dict[str, WeakSet[Follower]] = {}

    @contextmanager
    def following(self, thread_id: str, run_id: str | None) -> Generator[Follower]:
        """A follower of the thread, and of the run unless it is None."""
        follower, places = Follower(), [(self._followers_of_threads, thread_id)]
        if run_id is not None:
            places.append((self._followers_of_runs, run_id))
        for followers, name in places:
            followers.setdefault(name, WeakSet()).add(follower)
        try:
            yield follower
        finally:
            for followers, name in places:
                followers[name].discard(follower)
                if not followers[name]:
                    del followers[name]

    def wake_followers_of_thread(self, thread_id: str) -> None:
        for follower in self._followers_of_threads.get(thread_id, ()):
            follower.changed.set()

    def wake_followers_of_run(self, run_id: str, *, was_deleted: bool = False) -> None:
        for follower in self._followers_of_runs.get(run_id, ()):
            follower.run_was_deleted = follower.run_was_deleted or was_deleted
            follower.changed.set()

    def wake_all_followers(self) -> None:
        for thread_id in self._followers_of_threads:
            self.wake_followers_of_thread(thread_id)


class Memory:
    """The data of one storage until it is closed."""

    def __init__(self) -> None:
        self._data: Data | None = Data()

    @property
    def data(self) -> Data:
        """Raises `StorageClosedError` once the storage is closed."""
        if self._data is None:
            raise StorageClosedError
        return self._data

    def close(self) -> None:
        """Forget the data, and wake the followers of events, which then see that the storage is closed."""
        data, self._data = self._data, None
        if data is not None:
            data.wake_all_followers()


class MemoryStore:
    """What every store has: the data of the storage that it belongs to."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @property
    def _data(self) -> Data:
        return self._memory.data


RunOrFeedback = TypeVar("RunOrFeedback", rows.RunRow, rows.FeedbackRow)
Created = TypeVar("Created", rows.RunRow, rows.FeedbackRow, rows.UserRow)


def is_visible(owner: str | None, user: str | None) -> bool:
    """Whether a row of `owner` exists for `user`; None is every user."""
    return user is None or owner == user


def visible_of_thread(
    stored: Mapping[str, RunOrFeedback], thread_id: str, user: str | None, run_id: str | None = None
) -> list[RunOrFeedback]:
    """The rows of the thread, or of one run in it, that exist for this user."""
    thread_id = arguments.identifier("thread_id", thread_id)
    return [
        row
        for row in stored.values()
        if row["thread_id"] == thread_id
        and run_id in (None, row["run_id"])
        and is_visible(row["user_id"], user)
    ]


def oldest_first(found: Iterable[Created]) -> list[Created]:
    """By the time of creation; of equal times in the order of creation, which is that of the dict."""
    return sorted(found, key=lambda row: datetime.fromisoformat(row["created_at"]))


def newest_first(found: Iterable[Created]) -> list[Created]:
    """`oldest_first` in reverse."""
    return oldest_first(found)[::-1]


def now() -> datetime:
    """The time of a write; two writes of one process never have the same."""
    return EPOCH + timedelta(microseconds=times.clock.stamp_us())


def database_time_ms() -> float:
    """The clock by which leases are judged, which no caller's clock changes."""
    return time.monotonic_ns() / 1_000_000


def optional_time(name: str, value: object) -> str | None:
    """A caller's time as rows have it; None for None."""
    return None if value is None else times.parse_time(name, value).isoformat()


def log_missing(operation: str, kind: str, row_id: str) -> None:
    """Log an update of a run or thread that does not exist."""
    logger.warning("%s: there is no %s %r; nothing was changed", operation, kind, row_id)
