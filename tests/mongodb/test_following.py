"""Many followers on one storage: connections, the storage's other calls, short timeouts, access, closing."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandListener, ConnectionPoolListener

from deerflow_mongo import (
    ActorContext,
    CorruptDocumentError,
    MongoStorage,
    RunEventRow,
    StorageClosedError,
    StorageError,
    StorageUnavailableError,
    bind_actor_context,
    reset_actor_context,
)
from deerflow_mongo.mongodb.events import following

from ..busy_machine import connected, until_answered
from ..faults.proxy import FaultProxy
from .drivers.fixtures import event

pytestmark = pytest.mark.usefixtures("emptied_database")

Raw = MongoClient[dict[str, Any]]
Opener = Callable[..., MongoStorage]
WAIT_S = 30
SLACK_S = 3
"""For a busy machine."""


class Monitor(CommandListener, ConnectionPoolListener):
    """Counts a client's open connections and notes its commands."""

    def __init__(self) -> None:
        self.connections = self.most_connections = 0
        self.commands: list[str] = []

    def started(self, event: Any) -> None:
        is_stream = "$changeStream" in next(iter(event.command.get("pipeline", ())), ())
        self.commands.append("change stream" if is_stream else event.command_name)

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...

    def connection_created(self, event: Any) -> None:
        self.connections += 1
        self.most_connections = max(self.connections, self.most_connections)

    def connection_closed(self, event: Any) -> None:
        self.connections -= 1

    def pool_created(self, event: Any) -> None: ...
    def pool_ready(self, event: Any) -> None: ...
    def pool_cleared(self, event: Any) -> None: ...
    def pool_closed(self, event: Any) -> None: ...
    def connection_ready(self, event: Any) -> None: ...
    def connection_check_out_started(self, event: Any) -> None: ...
    def connection_check_out_failed(self, event: Any) -> None: ...
    def connection_checked_out(self, event: Any) -> None: ...
    def connection_checked_in(self, event: Any) -> None: ...


async def _follow(storage: MongoStorage, until: int, **arguments: Any) -> list[int]:
    seen: list[int] = []
    async with aclosing(storage.run_events.follow(**arguments)) as rows:
        async for row in rows:
            seen.append(row["seq"])
            if row["seq"] >= until:
                break
    return seen


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize(("followers", "threads", "pool"), [(400, 40, 100), (120, 1, 10), (120, 120, 10)])
async def test_followers_share_few_connections_and_the_storage_stays_quick(
    followers: int, threads: int, pool: int, new_storage: Opener, mongodb_url: str
) -> None:
    monitor = Monitor()
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
        mongodb_url, maxPoolSize=pool, timeoutMS=10_000, event_listeners=[monitor]
    )
    async with client, new_storage(client) as storage, asyncio.timeout(2 * WAIT_S):
        await storage.runs.create("r", "t0", user_id=None)
        tasks = [
            asyncio.create_task(_follow(storage, 8, thread_id=f"t{number % threads}"))
            for number in range(followers)
        ]
        await asyncio.sleep(0.3)
        before = monitor.connections
        longest_s = 0.0
        for _ in range(8):
            writes = [storage.run_events.put(**event(thread_id=f"t{number}")) for number in range(threads)]
            writing = asyncio.gather(*writes)
            began = time.monotonic()
            assert await storage.runs.get("r", user_id=None) is not None
            longest_s = max(longest_s, time.monotonic() - began)
            await writing
        assert await asyncio.gather(*tasks) == [list(range(1, 9))] * followers
        assert monitor.commands.count("change stream") == 1
    assert before <= following.MAX_READS + 4  # the stream, the test's own call, the driver's monitors
    assert longest_s < 5


async def test_follower_waits_without_a_command_of_its_own(new_storage: Opener, mongodb_url: str) -> None:
    monitor = Monitor()
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongodb_url, event_listeners=[monitor])
    async with client, new_storage(client) as storage:
        tasks = [asyncio.create_task(_follow(storage, 1, thread_id=f"t{number}")) for number in range(50)]
        await asyncio.sleep(0.5)
        monitor.commands.clear()
        await asyncio.sleep(1.2)
        assert set(monitor.commands) == {"getMore"}
        assert len(monitor.commands) <= 3
        await _cancel(tasks)


async def test_abandoned_followers_are_not_counted_and_the_stream_ends(storage: MongoStorage) -> None:
    """Cancelled while they wait, cancelled at any moment, dropped without `aclose`, closed."""
    await storage.run_events.put(**event())
    feed = storage.run_events._feed
    tasks = [asyncio.create_task(_follow(storage, 10, thread_id="t")) for _ in range(50)]
    for number, task in enumerate(tasks[:25]):
        await asyncio.sleep(0.001 * (number % 3))
        task.cancel()
    dropped = [storage.run_events.follow("t") for _ in range(20)]
    closed = storage.run_events.follow("t")
    first = await asyncio.gather(*map(anext, [*dropped, closed]))
    assert [row["seq"] for row in first] == [1] * 21
    await asyncio.wait(tasks[:25])
    assert feed.followers == 25 + 21
    await closed.aclose()
    await _cancel(tasks[25:])
    dropped.clear()
    gc.collect()
    await asyncio.sleep(0.05)
    assert feed.followers == 0
    stream = feed._stream
    assert stream is not None
    assert not stream._groups
    await asyncio.wait_for(asyncio.wait({stream.task}), WAIT_S)
    assert stream.has_ended
    assert await _follow(storage, 1, thread_id="t") == [1]


async def test_one_follower_too_many_is_refused_by_number(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage.run_events.max_followers == following.MAX_FOLLOWERS
    monkeypatch.setattr(storage.run_events._feed, "_max_followers", 2)
    await storage.run_events.put(**event())
    first, second = storage.run_events.follow("t"), storage.run_events.follow("t")
    assert [(await anext(rows))["seq"] for rows in (first, second)] == [1, 1]
    with pytest.raises(StorageError, match="at most 2"):
        await anext(storage.run_events.follow("t"))
    await first.aclose()
    assert await _follow(storage, 1, thread_id="t") == [1]
    await second.aclose()


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
@pytest.mark.parametrize("options", [{"timeout_ms": 600}, {"socketTimeoutMS": 600}], ids=str)
async def test_follower_waits_longer_than_the_timeout_of_an_operation(
    driver: str, options: dict[str, int], storage: MongoStorage, new_storage: Opener, mongodb_url: str
) -> None:
    settings: dict[str, Any] = {"url": mongodb_url, **options}
    if "socketTimeoutMS" in options:
        settings = {"url": f"{mongodb_url}&socketTimeoutMS=600"}
    async with connected(new_storage(**settings, driver=driver)) as hasty, asyncio.timeout(WAIT_S):
        waiting = asyncio.create_task(_follow(hasty, 1, thread_id="t"))
        await asyncio.sleep(1.8)
        assert not waiting.done()
        await storage.run_events.put(**event())
        assert await waiting == [1]


async def test_closing_ends_waiting_followers_at_once(new_storage: Opener) -> None:
    storage = new_storage()
    await storage.setup()
    tasks = [asyncio.create_task(_follow(storage, 1, thread_id=f"t{n % 5}")) for n in range(50)]
    await asyncio.sleep(0.3)
    opening = asyncio.create_task(_follow(storage, 1, thread_id="new"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(storage.aclose())
    done, _ = await asyncio.wait([*tasks, opening], timeout=WAIT_S)
    assert len(done) == 51
    assert not closing.done()  # the followers do not wait for the stream's end
    errors = [task.exception() for task in done]
    assert {type(error) for error in errors} == {StorageClosedError}
    assert len({id(error) for error in errors}) == 51
    await asyncio.wait_for(closing, 2 + SLACK_S)


async def test_lost_server_fails_every_follower_and_a_new_one_continues(
    storage: MongoStorage, new_storage: Opener, proxy: FaultProxy
) -> None:
    await storage.run_events.put(**event())
    async with connected(new_storage(url=proxy.url, timeout_ms=1_000)) as reader:
        rows = [reader.run_events.follow("t") for _ in range(20)]
        assert [(await anext(row))["seq"] for row in rows] == [1] * 20
        tasks = [asyncio.ensure_future(anext(row)) for row in rows]
        await asyncio.sleep(0.1)
        proxy.go_down()
        errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
        assert {type(error) for error in errors} == {StorageUnavailableError}
        assert len({id(error) for error in errors}) == 20
        assert all(isinstance(error, StorageError) and error.__cause__ is not None for error in errors)
        proxy.is_down = False
        await storage.run_events.put(**event())
        await until_answered(reader.ping)
        assert await _follow(reader, 2, thread_id="t", after_seq=1) == [2]


async def test_followers_at_one_place_get_what_their_actors_may_see(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """Also when the thread's owner changes, or becomes unreadable, while they wait."""
    await storage.threads.ensure_thread(thread_id="t", user_id="alice")

    def follow_as(user_id: str | None) -> asyncio.Task[RunEventRow]:
        token = bind_actor_context(None if user_id is None else ActorContext(user_id=user_id))
        try:
            return asyncio.ensure_future(anext(storage.run_events.follow("t")))
        finally:
            reset_actor_context(token)

    async with asyncio.timeout(WAIT_S):
        alice, bob, nobody = (follow_as(user_id) for user_id in ("alice", "bob", None))
        await asyncio.sleep(0.1)
        await storage.run_events.put(**event())
        assert (await alice)["seq"] == (await nobody)["seq"] == 1
        await asyncio.sleep(0.1)
        assert not bob.done()
        raw_client[database_name]["threads"].update_one({"_id": "t"}, {"$set": {"user_id": "bob"}})
        await storage.run_events.put(**event())
        assert (await bob)["seq"] == 1
        carol = follow_as("carol")
        await asyncio.sleep(0.1)
        raw_client[database_name].command(
            {
                "update": "threads",
                "updates": [{"q": {"_id": "t"}, "u": {"$set": {"user_id": 5}}}],
                "bypassDocumentValidation": True,
            }
        )
        await storage.run_events.put(**event())
        with pytest.raises(CorruptDocumentError):
            await carol


async def test_run_whose_status_is_unreadable_fails_its_follower(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.runs.create("r", "t", user_id=None)
    raw_client[database_name].command(
        {
            "update": "runs",
            "updates": [{"q": {"_id": "r"}, "u": {"$unset": {"status": ""}}}],
            "bypassDocumentValidation": True,
        }
    )
    with pytest.raises(CorruptDocumentError) as error:
        await asyncio.wait_for(anext(storage.run_events.follow("t", run_id="r", until_run_ends=True)), WAIT_S)
    assert (error.value.collection, error.value.document_id, error.value.field) == ("runs", "r", "status")


@pytest.mark.usefixtures("new_database")
async def test_change_in_another_database_or_prefix_is_not_followed(
    storage: MongoStorage, new_storage: Opener
) -> None:
    async with new_storage(collection_prefix="other_") as other, asyncio.timeout(WAIT_S):
        waiting = asyncio.create_task(_follow(storage, 1, thread_id="t"))
        foreign = asyncio.create_task(_follow(other, 2, thread_id="t"))
        await asyncio.sleep(0.2)
        await other.run_events.put_batch([event()] * 2)
        assert await foreign == [1, 2]
        assert not waiting.done()
        await storage.run_events.put(**event())
        assert await waiting == [1]
