"""What a storage in memory holds, and what its stores share: the filter by owner and the order of creation.

A write changes these rows at once, between two awaits of the event loop, which makes it atomic. The rows here
are never handed out: a store returns copies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from ..contract.errors import StorageClosedError
from ..contract.rows import FeedbackRow, RunEventRow, RunRow, ThreadMeta, UserRow
from ..contract.times import clock, parse_time

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Run:
    """A run's row, and its token counts by model, which are not part of the row."""

    row: RunRow
    by_model: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])


@dataclass(slots=True)
class EventLog:
    """A thread's events in rising `seq`. `last_seq` stays when they are deleted: no number is given twice."""

    rows: list[RunEventRow] = field(default_factory=list[RunEventRow])
    last_seq: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced by a new one, as soon as events are stored."""


@dataclass(slots=True)
class Data:
    """Rows by their ids."""

    runs: dict[str, Run] = field(default_factory=dict[str, Run])
    feedback: dict[str, FeedbackRow] = field(default_factory=dict[str, FeedbackRow])
    votes: set[str] = field(default_factory=set[str])
    """The ids of the feedback that is its user's vote on a run."""
    threads: dict[str, ThreadMeta] = field(default_factory=dict[str, ThreadMeta])
    events: dict[str, EventLog] = field(default_factory=dict[str, EventLog])
    users: dict[str, UserRow] = field(default_factory=dict[str, UserRow])


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
        for log in data.events.values() if data is not None else ():
            log.changed.set()


def is_visible(owner: str | None, user: str | None) -> bool:
    """Whether a row of `owner` exists for `user`; None is every user."""
    return user is None or owner == user


Row = TypeVar("Row")


def oldest_first(rows: Iterable[Row], created_at: Callable[[Row], str]) -> list[Row]:
    """By the time of creation; of equal times in the order of creation, which is that of the dict."""
    return sorted(rows, key=lambda row: datetime.fromisoformat(created_at(row)))


def newest_first(rows: Iterable[Row], created_at: Callable[[Row], str]) -> list[Row]:
    """`oldest_first` in reverse."""
    return oldest_first(rows, created_at)[::-1]


def now() -> datetime:
    """The time of a write; two writes of one process never have the same."""
    return _EPOCH + timedelta(microseconds=clock.stamp_us())


def optional_time(name: str, value: object) -> str | None:
    """A caller's time as rows have it; None for None."""
    return None if value is None else parse_time(name, value).isoformat()
