"""The feed that notifies followers, on a change stream and a store in memory: no server is needed."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from bson import Timestamp

from deerflow_mongo import StorageClosedError, StorageError, StorageUnavailableError
from deerflow_mongo.mongodb.drivers.changes import Changes
from deerflow_mongo.mongodb.events import following
from deerflow_mongo.mongodb.events.following import Follower, NewEventFeed, Page, Position

WAIT_S = 20


class Events:
    """Numbered events of some threads, a change stream of them, and the reads of their pages."""

    def __init__(self, page_size: int = 500) -> None:
        self.page_size = page_size
        self.stored: dict[str, int] = {}
        self.statuses: dict[str, str] = {}
        self.changes: asyncio.Queue[dict[str, Any] | BaseException] = asyncio.Queue()
        self.reads: list[Position] = []
        self.times = 0
        self.read_as_of: list[int] = []
        self.opened = 0
        self.reading = self.most_reading = 0
        self.read_error: BaseException | None = None
        self.open_error: BaseException | None = None
        self.pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Changes]:
        await asyncio.sleep(0)
        if self.open_error is not None:
            raise self.open_error
        self.opened += 1
        self.changes = asyncio.Queue()
        yield Changes(self._now(), self._next)

    def _now(self) -> Timestamp:
        self.times += 1
        return Timestamp(self.times, 1)

    def change(self, operation: str, **ids: str) -> None:
        self.changes.put_nowait({"operationType": operation, "clusterTime": self._now(), **ids})

    async def _next(self) -> dict[str, Any] | None:
        try:
            change = await asyncio.wait_for(self.changes.get(), 0.05)
        except TimeoutError:
            return None
        if isinstance(change, BaseException):
            raise change
        return change

    def put(self, thread_id: str = "t") -> None:
        self.stored[thread_id] = self.stored.get(thread_id, 0) + 1
        self.change("insert", thread_id=thread_id)

    def end_run(self, run_id: str) -> None:
        self.statuses[run_id] = "success"
        self.change("update", run_id=run_id)

    async def read(self, position: Position, as_of: Timestamp | None, *, check_run: bool) -> Page:
        assert as_of is not None
        self.reads.append(position)
        self.read_as_of.append(as_of.time)
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        try:
            await self.pause()
            if self.read_error is not None:
                raise self.read_error
            has_ended = check_run and self.statuses.get(position.run_id or "") == "success"
            await self.pause()
            last = min(self.stored.get(position.thread_id, 0), position.after_seq + self.page_size)
            rows: Any = [{"seq": seq} for seq in range(position.after_seq + 1, last + 1)]
            await self.pause()
        finally:
            self.reading -= 1
        return Page(rows, max(last, position.after_seq), len(rows) == self.page_size, run_has_ended=has_ended)

    def feed(self, max_followers: int = 1_000) -> NewEventFeed:
        return NewEventFeed(self.open, self.read, max_followers)


async def followed(feed: NewEventFeed, until: int, thread_id: str = "t", after: int = 0) -> list[int]:
    follower = feed.join(thread_id, None, after, until_run_ends=False)
    seen: list[int] = []
    while not seen or seen[-1] < until:
        seen += [row["seq"] for row in (await follower.next_page(None)).rows]
    return seen


async def settled() -> None:
    """Every task goes as far as it can without a change, however long that takes on a busy machine."""
    for _ in range(300):
        await asyncio.sleep(0)


async def waiting_at(feed: NewEventFeed, followers: int, thread_id: str = "t") -> list[asyncio.Task[Any]]:
    """Tasks of followers that have read what is stored and wait for a first event."""
    joined = [feed.join(thread_id, None, 0, until_run_ends=False) for _ in range(followers)]
    tasks = [asyncio.ensure_future(follower.next_page(None)) for follower in joined]
    await asyncio.sleep(0.02)
    await settled()
    assert not any(task.done() for task in tasks)
    return tasks


async def outcomes(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)


async def test_followers_miss_nothing_whatever_the_order_of_reads_and_changes() -> None:
    events = Events(page_size=3)
    rng = random.Random(7)  # noqa: S311 - not for security

    async def pause() -> None:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)

    events.pause = pause
    feed = events.feed()

    async def follow_slowly(last: int, thread_id: str, after: int) -> list[int]:
        follower = feed.join(thread_id, None, after, until_run_ends=False)
        seen: list[int] = []
        while not seen or seen[-1] < last:
            page = await follower.next_page(None)
            seen += [row["seq"] for row in page.rows]
            await pause()
        return seen

    async def write(thread_id: str) -> None:
        for _ in range(200):
            events.put(thread_id)
            await pause()

    async with asyncio.timeout(WAIT_S):
        places = [(thread_id, after) for thread_id in "abc" for after in (0, 0, 0, 50, 199)]
        reading = [asyncio.create_task(follow_slowly(200, *place)) for place in places]
        await asyncio.gather(*map(write, "abc"))
        seen = await asyncio.gather(*reading)
    assert seen == [list(range(after + 1, 201)) for _, after in places]
    assert events.opened == 1
    assert events.most_reading <= following.MAX_READS
    feed.close()


async def test_followers_at_one_place_share_a_read() -> None:
    events = Events()
    feed = events.feed()
    tasks = await waiting_at(feed, 500)
    assert len(events.reads) <= 2
    events.reads.clear()
    events.put()
    pages = await outcomes(tasks)
    assert {page.last_seq for page in pages} == {1}
    assert len(events.reads) == 1
    feed.close()


async def test_reads_are_as_of_the_opening_and_then_of_the_last_change() -> None:
    events = Events()
    feed = events.feed()
    tasks = await waiting_at(feed, 1)
    assert set(events.read_as_of) == {1}
    events.put("other")
    events.put()
    await outcomes(tasks)
    assert events.read_as_of[-1] == events.times == 3
    feed.close()


async def test_other_tasks_run_while_many_followers_go_on() -> None:
    events = Events()
    feed = events.feed()
    tasks = await waiting_at(feed, 1_000)
    events.put()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    turns = 0
    while not all(task.done() for task in tasks):
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 20
    feed.close()


async def test_event_of_a_run_that_nobody_at_the_place_follows_wakes_nobody() -> None:
    events = Events()
    feed = events.feed()
    [task] = await waiting_at(feed, 1)
    events.change("insert", thread_id="t")
    events.put("other")
    await asyncio.sleep(0.05)
    assert not task.done()
    events.put()
    assert (await outcomes([task]))[0].last_seq == 1
    feed.close()


@pytest.mark.parametrize(
    "error",
    [
        StorageUnavailableError("lost"),
        StorageError("no stream"),
        KeyError("operationType"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("moment", ["opening", "waiting"])
async def test_failed_stream_gives_each_follower_an_error_of_its_own(
    error: BaseException, moment: str
) -> None:
    """A new follower gets a new stream."""
    events = Events()
    feed = events.feed()
    if moment == "opening":
        events.open_error = error
        tasks = [asyncio.create_task(followed(feed, 1)) for _ in range(5)]
    else:
        tasks = await waiting_at(feed, 5)
        events.changes.put_nowait(error)
    answers = await outcomes(tasks)
    assert all(isinstance(answer, StorageError) for answer in answers), answers
    assert len({id(answer) for answer in answers}) == 5
    if isinstance(error, StorageError):
        assert {(type(answer), str(answer)) for answer in answers} == {(type(error), str(error))}
    events.open_error = None
    again = asyncio.create_task(followed(feed, 1))
    await settled()
    events.put()
    assert await outcomes([again]) == [[1]]
    feed.close()


@pytest.mark.parametrize("steps", [0, 1, 5, 50])
async def test_cancelled_stream_leaves_no_follower_behind(steps: int) -> None:
    """Also one that is cancelled before its first step."""
    events = Events()
    feed = events.feed()
    tasks = [asyncio.create_task(followed(feed, 1)) for _ in range(5)]
    await asyncio.sleep(0)
    for _ in range(steps):
        await asyncio.sleep(0)
    assert feed._stream is not None
    feed._stream.task.cancel()
    answers = await outcomes(tasks)
    assert {type(answer) for answer in answers} == {StorageUnavailableError}
    feed.close()


@pytest.mark.parametrize(
    "error",
    [StorageUnavailableError("lost"), KeyError("seq"), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_failed_read_gives_each_of_its_followers_an_error(error: BaseException) -> None:
    """Followers elsewhere go on."""
    events = Events()
    feed = events.feed()
    tasks, others = await waiting_at(feed, 3), await waiting_at(feed, 3, "other")
    events.read_error = error
    events.put()
    answers = await outcomes(tasks)
    assert all(isinstance(answer, StorageError) for answer in answers), answers
    assert len({id(answer) for answer in answers}) == 3
    events.read_error = None
    events.put("other")
    assert [page.last_seq for page in await outcomes(others)] == [1] * 3
    feed.close()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5, 6])
async def test_cancelled_read_leaves_no_follower_behind(steps: int) -> None:
    events = Events()
    feed = events.feed()
    tasks = await waiting_at(feed, 3)
    stream = feed._stream
    assert stream is not None
    [group] = stream._groups.values()
    stream._make_due(group)
    events.stored["t"] = 1
    reading = group.task
    assert reading is not None
    for _ in range(steps):
        await asyncio.sleep(0)
    reading.cancel()
    answers = await outcomes(tasks)
    assert all(isinstance(answer, StorageUnavailableError | Page) for answer in answers), answers
    feed.close()


async def test_cancelled_followers_leave_those_who_share_their_read() -> None:
    events = Events()
    feed = events.feed()
    for steps in range(8):
        events.stored.clear()
        tasks = await waiting_at(feed, 6)
        events.put()
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await outcomes(tasks)
        assert all(isinstance(answer, Page) for answer in answers[1::2]), answers
        assert all(isinstance(answer, Page | asyncio.CancelledError) for answer in answers[::2])
        del tasks, answers
    assert feed._stream is not None
    assert not feed._stream._groups
    feed.close()


async def test_closing_ends_every_follower_at_once() -> None:
    events = Events()
    feed = events.feed()
    tasks = await waiting_at(feed, 50)
    opening = feed.join("new", None, 0, until_run_ends=False)
    feed.close()
    answers = await outcomes([*tasks, asyncio.ensure_future(opening.next_page(None))])
    assert {type(answer) for answer in answers} == {StorageClosedError}
    assert len({id(answer) for answer in answers}) == 51
    with pytest.raises(StorageClosedError):
        feed.join("t", None, 0, until_run_ends=False)
    await asyncio.wait_for(feed.closed(WAIT_S), WAIT_S)


async def test_more_followers_than_the_limit_are_refused_by_number() -> None:
    events = Events()
    feed = events.feed(max_followers=3)
    joined: list[Follower] = [feed.join("t", None, 0, until_run_ends=False) for _ in range(3)]
    with pytest.raises(StorageError, match="at most 3"):
        feed.join("t", None, 0, until_run_ends=False)
    joined.pop().leave()
    joined.append(feed.join("t", None, 0, until_run_ends=False))
    joined.pop()  # dropped without leaving
    joined.append(feed.join("t", None, 0, until_run_ends=False))
    assert feed.followers == 3
    feed.close()


async def test_stream_ends_after_its_last_follower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LINGER_S", 0.1)
    events = Events()
    feed = events.feed()
    events.stored["t"] = 1
    assert await followed(feed, 1) == [1]
    stream = feed._stream
    assert stream is not None
    await asyncio.wait_for(asyncio.wait({stream.task}), WAIT_S)
    assert stream.has_ended
    assert await followed(feed, 1) == [1]
    assert events.opened == 2
    feed.close()


async def test_status_of_an_active_run_is_read_once_until_it_changes() -> None:
    events = Events()
    checked: list[bool] = []
    read = events.read

    async def read_page(position: Position, as_of: Timestamp | None, *, check_run: bool) -> Page:
        checked.append(check_run)
        return await read(position, as_of, check_run=check_run)

    feed = NewEventFeed(events.open, cast("Any", read_page), 10)
    events.statuses["r"] = "running"
    follower = feed.join("t", "r", 0, until_run_ends=True)
    task = asyncio.ensure_future(follower.next_page(None))
    await settled()
    for _ in range(5):
        events.put()
        await asyncio.wait_for(task, WAIT_S)
        task = asyncio.ensure_future(follower.next_page(None))
        await asyncio.sleep(0.01)
        await settled()
    assert checked == [True] + [False] * 5
    events.put()
    events.end_run("r")
    async with asyncio.timeout(WAIT_S):
        page = await task
        rows = list(page.rows)
        while not page.run_has_ended:
            page = await follower.next_page(None)
            rows += page.rows
    assert [row["seq"] for row in rows] == [6]
    feed.close()
