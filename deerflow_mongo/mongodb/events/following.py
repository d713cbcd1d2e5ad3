"""Followers of run events: one change stream notifies all of them, and those at the same place share a read.

A notification carries no event: it starts a read of what is stored after the last number that a follower has
seen, so that nothing is lost when the stream reconnects. A follower that waits is one future, without a task
or a connection. How a page is read, and which followers may see it, is up to the store.

Why nothing is missed: a topic counts its changes. A page knows the counts from before its read began, and a
follower that comes back for the next page with older counts than the topic's has a read made at once. A read
is of a state as of the last change that the stream told of, or as of its opening: a write that was on its way
to the majority then is in no change, and a new primary may not know yet what its majority has.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias
from weakref import WeakSet, WeakValueDictionary

from bson import Timestamp

from ...contract.actor import BoundActor
from ...contract.errors import StorageClosedError, StorageError, StorageUnavailableError
from ...contract.rows import JSONValue, RunEventRow
from ..documents.changes import change_of
from ..documents.encoding import Document
from ..drivers.changes import Changes, NextChange
from ..drivers.errors import copied, with_cause
from ..observation import BackgroundObserver, unobserved

MAX_FOLLOWERS = 10_000
MAX_READS = 8
"""How many pages are read at once, so that followers leave connections to the other calls."""
READ_PAGE = "run_events.read_page"
"""The name of a read for followers, for observers of background work."""
LINGER_S = 1.0
"""How long the stream stays open after its last follower."""
_MAX_WOKEN, _MAX_ROWS = 20, 100
"""How many followers go on, and get how many rows, within one step of the event loop. Other tasks run in
between."""
_PAUSE_FACTOR, _MAX_PAUSE_S = 4, 2.0
"""A thread's next read waits as many times as long as a crowd took to go on, so that its pages take at most a
fifth of the event loop's time: they become larger and come less often."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """What a follower waits for. Followers at equal positions get the same page."""

    thread_id: str
    run_id: str | None
    until_run_ends: bool
    actor: BoundActor | None
    after_seq: int


class Page(NamedTuple):
    """The events after a position, as far as they were read."""

    rows: list[RunEventRow]
    last_seq: int
    """The number up to which everything was read."""
    is_full: bool
    """There may be more."""
    run_is_stored: bool = True
    run_has_ended: bool = False
    """As it was before the events were read."""


def copied_row(row: RunEventRow) -> RunEventRow:
    """A follower's own copy of a row that others get too; ten times as fast as `copy.deepcopy`."""
    copy = row.copy()
    copy["content"] = _copied_value(row["content"])
    copy["metadata"] = {key: _copied_value(value) for key, value in row["metadata"].items()}
    return copy


def _copied_value(value: JSONValue) -> JSONValue:
    if isinstance(value, dict):
        return {key: _copied_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied_value(item) for item in value]
    return value


class _Topic:
    """A thread or a run that is followed: how often it changed, and whom that concerns."""

    __slots__ = ("__weakref__", "active_at", "changes", "deletions", "groups", "quiet_until")

    def __init__(self) -> None:
        self.changes = 0
        self.deletions = 0
        self.active_at = -1
        """The number of changes at which a run was active; it is not read again until there are more."""
        self.groups: set[_Group] = set()
        self.quiet_until = 0.0


_Counts: TypeAlias = tuple[int, ...]


class _Group:
    """The followers that wait at one position."""

    __slots__ = ("is_due", "position", "task", "topics", "waiting")

    def __init__(self, position: Position, topics: tuple[_Topic, ...]) -> None:
        self.position = position
        self.topics = topics
        self.waiting: set[asyncio.Future[tuple[Page, _Counts]]] = set()
        self.is_due = False
        """A read must begin: something changed since the last one began."""
        self.task: asyncio.Task[None] | None = None

    def counts(self) -> _Counts:
        return tuple(topic.changes for topic in self.topics)

    def fail(self, error: StorageError) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_exception(copied(error))
        self.waiting.clear()


class ReadPage(Protocol):
    """The store's part: the page at a position, and the run's status before that if `check_run`.

    Of a state that has everything up to `as_of`, a time of the cluster.
    """

    async def __call__(self, position: Position, as_of: Timestamp | None, *, check_run: bool) -> Page: ...


OpenChanges: TypeAlias = Callable[[], AbstractAsyncContextManager[Changes]]


class NewEventFeed:
    """The followers of one storage. The first one opens the change stream, which ends after the last."""

    def __init__(self, open_changes: OpenChanges, read_page: ReadPage, max_followers: int) -> None:
        self._open_changes = open_changes
        self._read_page = read_page
        self._max_followers = max_followers
        self._stream: _Stream | None = None
        self._closed = False
        self.observe: BackgroundObserver = unobserved

    @property
    def followers(self) -> int:
        return 0 if self._stream is None else len(self._stream.followers)

    def join(self, thread_id: str, run_id: str | None, after_seq: int, *, until_run_ends: bool) -> Follower:
        """A new follower. Raises `StorageClosedError`, and `StorageError` where there are too many."""
        if self._closed:
            raise StorageClosedError
        if self.followers >= self._max_followers:
            raise StorageError(
                f"this storage has {self.followers:,} open followers of run events, and at most "
                f"{self._max_followers:,} are possible: close some, or use another process"
            )
        if self._stream is None or self._stream.has_ended:
            self._stream = _Stream(self._open_changes, self._observed_page)
        return Follower(self._stream, thread_id, run_id, after_seq, until_run_ends)

    async def _observed_page(self, position: Position, as_of: Timestamp | None, *, check_run: bool) -> Page:
        with self.observe(READ_PAGE):
            return await self._read_page(position, as_of, check_run=check_run)

    def close(self) -> None:
        """Accept no follower any more; those there are end at once with `StorageClosedError`."""
        self._closed = True
        if self._stream is not None:
            self._stream.end(StorageClosedError())

    async def closed(self, timeout_s: float) -> None:
        """Return when the stream has given its connection back, or the time is over."""
        if self._stream is not None:
            await asyncio.wait({self._stream.task}, timeout=timeout_s)


class Follower:
    """One follower's place in its thread's events."""

    __slots__ = ("__weakref__", "_deletions", "_place", "_seen", "_stream", "_topics", "after_seq")

    def __init__(
        self, stream: _Stream, thread_id: str, run_id: str | None, after_seq: int, until_run_ends: bool
    ) -> None:
        self._stream = stream
        self._place = (thread_id, run_id, until_run_ends)
        self._topics = (stream.topic("thread", thread_id),)
        if until_run_ends and run_id is not None:
            self._topics += (stream.topic("run", run_id),)
        self._deletions = self._topics[-1].deletions
        self._seen: _Counts = ()
        self.after_seq = after_seq
        stream.followers.add(self)

    def leave(self) -> None:
        self._stream.followers.discard(self)

    async def next_page(self, actor: BoundActor | None) -> Page:
        """Wait for events, or for the end of the run; the page's rows are shared and must be copied."""
        while True:
            position = Position(*self._place, actor, self.after_seq)
            page, self._seen = await self._stream.next_page(position, self._topics, self._seen)
            if page.is_full:
                self._seen = ()
            self.after_seq = page.last_seq
            is_deleted = not page.run_is_stored and self._topics[-1].deletions != self._deletions
            if page.run_has_ended or is_deleted:
                return page._replace(run_has_ended=not page.is_full)
            if page.rows:
                return page


class _Stream:
    """One change stream from its opening to its end, with its followers. It is not reopened."""

    def __init__(self, open_changes: OpenChanges, read_page: ReadPage) -> None:
        self._open_changes = open_changes
        self._read_page = read_page
        self._topics: WeakValueDictionary[tuple[str, str], _Topic] = WeakValueDictionary()
        self._groups: dict[Position, _Group] = {}
        self._reading = asyncio.Semaphore(MAX_READS)
        self._is_open = False
        self._as_of: Timestamp | None = None
        """Of the last change, or of the opening."""
        self._error: StorageError | None = None
        self.followers: WeakSet[Follower] = WeakSet()
        # A context of its own: the time limit of the first caller is not that of the others.
        self.task = asyncio.create_task(self._run(), context=contextvars.Context())
        # A callback and no `finally`: a task that is cancelled before its first step runs none of its code.
        self.task.add_done_callback(self._task_ended)

    @property
    def has_ended(self) -> bool:
        return self._error is not None

    def topic(self, kind: str, name: str) -> _Topic:
        """The topic, which exists as long as a follower has it."""
        topic = self._topics.get((kind, name))
        if topic is None:
            topic = self._topics[kind, name] = _Topic()
        return topic

    # The stream.

    async def _run(self) -> None:
        try:
            async with self._open_changes() as (opened_at, next_change):
                self._is_open, self._as_of = True, opened_at
                for group in list(self._groups.values()):
                    self._make_due(group)
                await self._notify_until_unused(next_change)
        except StorageError as error:
            self.end(error)
        except Exception as error:
            logger.exception("reading the change stream failed", extra={"operation": "watch"})
            self.end(with_cause(StorageError(f"the change stream could not be read: {error}"), error))

    async def _notify_until_unused(self, next_change: NextChange) -> None:
        used_at = time.monotonic()
        while True:
            document = await next_change()
            if document is not None:
                self._notify(document)
            if self.followers:
                used_at = time.monotonic()
            elif time.monotonic() - used_at >= LINGER_S:
                self.end(StorageUnavailableError("the change stream has ended"))
                return

    def _notify(self, document: Document) -> None:
        change = change_of(document)
        self._as_of = change.time
        for kind, name in (("thread", change.thread_id), ("run", change.run_id)):
            topic = None if name is None else self._topics.get((kind, name))
            if topic is not None:
                topic.changes += 1
                topic.deletions += change.is_deletion
                for group in list(topic.groups):
                    self._make_due(group)

    def end(self, error: StorageError) -> None:
        """Every follower gets a copy of the error; a new one needs a new stream."""
        if self._error is not None:
            return
        self._error = error
        groups, self._groups = self._groups, {}
        for group in groups.values():
            group.fail(error)
            if group.task is not None:
                group.task.cancel()
        if asyncio.current_task() is not self.task:  # else it ends by itself, after closing the stream
            self.task.cancel()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self.end(StorageUnavailableError("the change stream was cancelled"))
        if not task.cancelled():
            task.exception()

    # Pages.

    async def next_page(
        self, position: Position, topics: tuple[_Topic, ...], seen: _Counts
    ) -> tuple[Page, _Counts]:
        """The next page at the position and the counts from before its read; `seen` are the previous ones."""
        if self._error is not None:
            raise copied(self._error) from self._error.__cause__
        group = self._groups.get(position)
        if group is None:
            group = self._groups[position] = _Group(position, topics)
            for topic in topics:
                topic.groups.add(group)
        future: asyncio.Future[tuple[Page, _Counts]] = asyncio.get_running_loop().create_future()
        group.waiting.add(future)
        if seen != group.counts():
            self._make_due(group)
        try:
            return await future
        finally:
            group.waiting.discard(future)
            if not group.waiting and group.task is None:
                self._remove(group)

    def _make_due(self, group: _Group) -> None:
        group.is_due = True
        if group.task is None and self._is_open:
            group.task = asyncio.create_task(self._read(group), context=contextvars.Context())
            group.task.add_done_callback(lambda task: self._read_ended(group, task))

    def _read_ended(self, group: _Group, task: asyncio.Task[None]) -> None:
        """Whatever ended it, nobody waits without a read to come."""
        group.task = None
        if task.cancelled() or task.exception() is not None:
            self._remove(group)
            group.fail(StorageUnavailableError("the read of run events was cancelled"))
        elif not group.waiting:
            self._remove(group)
        elif group.is_due:
            self._make_due(group)

    def _remove(self, group: _Group) -> None:
        if self._groups.get(group.position) is group:
            del self._groups[group.position]
        for topic in group.topics:
            topic.groups.discard(group)

    async def _read(self, group: _Group) -> None:
        """Read as long as something changed, until there is a page for those who wait."""
        try:
            while group.is_due and group.waiting:
                pause_s = group.topics[0].quiet_until - time.monotonic()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)
                async with self._reading:
                    if not group.waiting:
                        return
                    page, counts = await self._read_once(group)
                if page.rows or page.is_full or page.run_has_ended or not page.run_is_stored:
                    await self._deliver(group, page, counts)
        except StorageError as error:
            self._remove(group)
            group.fail(error)
        except Exception as error:
            logger.exception("reading run events for followers failed", extra={"operation": "find"})
            self._remove(group)
            group.fail(with_cause(StorageError(f"run events could not be read: {error}"), error))

    async def _read_once(self, group: _Group) -> tuple[Page, _Counts]:
        group.is_due, counts = False, group.counts()
        run = group.topics[1] if len(group.topics) > 1 else None
        check_run = run is not None and run.active_at != counts[1]
        page = await self._read_page(group.position, self._as_of, check_run=check_run)
        if run is not None and page.run_is_stored and not page.run_has_ended:
            run.active_at = counts[1]
        return page, counts

    async def _deliver(self, group: _Group, page: Page, counts: _Counts) -> None:
        """Let those who wait go on, a few at a time. Who comes from now on is in another group."""
        self._remove(group)
        began = time.monotonic()
        at_once = max(1, min(_MAX_WOKEN, _MAX_ROWS // max(1, len(page.rows))))
        is_crowd = len(group.waiting) > _MAX_WOKEN
        for number, future in enumerate(list(group.waiting), 1):
            if not future.done():
                future.set_result((page, counts))
            if number % at_once == 0:
                await asyncio.sleep(0)
        group.waiting.clear()
        if is_crowd:
            now = time.monotonic()
            group.topics[0].quiet_until = now + min(_PAUSE_FACTOR * (now - began), _MAX_PAUSE_S)
