"""Run events on MongoDB: lost connections, refusals, numbers after deletions and retention, closing."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import (
    InvalidPayloadError,
    MongoStorage,
    RunEventRow,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
    create_storage,
)
from deerflow_mongo.mongodb.events import writer as event_log

from .lossy_proxy import LossyProxy

Raw = MongoClient[dict[str, Any]]
Opener = Callable[..., MongoStorage]


def event(content: Any = "", thread_id: str = "t", run_id: str = "r", event_type: str = "said") -> Any:
    return {
        "thread_id": thread_id,
        "run_id": run_id,
        "event_type": event_type,
        "category": "message",
        "content": content,
    }


def numbers(rows: list[RunEventRow]) -> list[int]:
    return [row["seq"] for row in rows]


async def contents(storage: MongoStorage) -> list[Any]:
    return [row["content"] for row in await storage.run_events.list_thread_events("t", limit=100_000)]


@pytest.fixture
def new_storage(mongodb_url: str, database_name: str) -> Opener:
    """Another storage on the test's database, as another process would have it."""

    def build(**options: Any) -> MongoStorage:
        config = {"backend": "mongodb", "url": mongodb_url, "database": database_name, **options}
        storage = create_storage(config)
        assert isinstance(storage, MongoStorage)
        return storage

    return build


@pytest.fixture
async def storage(new_storage: Opener) -> AsyncIterator[MongoStorage]:
    async with new_storage() as opened:
        yield opened


@pytest.fixture
async def proxy(mongodb_url: str, tmp_path: Path) -> AsyncIterator[LossyProxy]:
    async with LossyProxy(mongodb_url, tmp_path).running() as running:
        yield running


# -- lost connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
@pytest.mark.parametrize("retried_by", ["driver", "store"])
@pytest.mark.parametrize("arrived", [True, False], ids=["request arrived", "request lost"])
async def test_a_lost_connection_never_stores_a_batch_twice(
    new_storage: Opener, proxy: LossyProxy, driver: str, retried_by: str, arrived: bool
) -> None:
    """The driver repeats the write, or, told not to, leaves its fate to the store."""
    url = f"{proxy.url}&retryWrites={'true' if retried_by == 'driver' else 'false'}"
    async with new_storage(url=url, driver=driver) as storage:
        await storage.run_events.put(**event("before"))
        lost_each = 1 if retried_by == "driver" or arrived else 2  # what arrived is found, not sent again
        for round_ in range(5):
            proxy.lose("insert", lost_each, after_it_arrived=arrived)
            batches = [storage.run_events.put_batch([event(f"{round_} {n}")] * 5) for n in range(4)]
            given = [number for rows in await asyncio.gather(*batches) for number in numbers(rows)]
            assert given == list(range(2 + 20 * round_, 22 + 20 * round_))
        assert proxy.lost == 5 * lost_each
        stored = await contents(storage)
    assert stored == ["before", *(f"{r} {n}" for r in range(5) for n in range(4) for _ in range(5))]


@pytest.mark.parametrize("arrived", [True, False], ids=["commit arrived", "commit lost"])
async def test_a_lost_connection_never_stores_a_large_batch_twice_or_in_part(
    new_storage: Opener, proxy: LossyProxy, arrived: bool
) -> None:
    async with new_storage(url=proxy.url) as storage:
        await storage.run_events.put(**event("before"))
        for command in ("commitTransaction", "insert"):
            proxy.lose(command, 3, after_it_arrived=arrived)
            rows = await storage.run_events.put_batch([event(command)] * 100)
            assert numbers(rows) == list(range(rows[0]["seq"], rows[0]["seq"] + 100))
        assert await contents(storage) == ["before"] + ["commitTransaction"] * 100 + ["insert"] * 100


async def test_a_late_first_try_is_refused_by_the_second(storage: MongoStorage) -> None:
    """Also when both run at the same time, and whichever of them the server sees first."""
    await storage.run_events.put(**event())
    events = storage.driver.collection("run_events")
    insert = event_log.Collection.insert_many

    async def sent_twice(collection: Any, documents: list[Any]) -> None:
        copies = [dict(document) for document in documents]
        first = asyncio.create_task(insert(events, copies))
        await asyncio.gather(first, insert(collection, documents), return_exceptions=True)
        raise StorageUnavailableError("made up: no answer came")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_log.Collection, "insert_many", sent_twice)
        rows = await asyncio.gather(*(storage.run_events.put_batch([event(n)] * 2) for n in range(5)))
    assert [number for batch in rows for number in numbers(batch)] == list(range(2, 12))
    assert await contents(storage) == ["", *(n for n in range(5) for _ in range(2))]


async def test_a_caller_may_repeat_what_was_unavailable(
    new_storage: Opener, proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed may be stored; repeated by the same process it is stored once, anything else is new."""
    async with new_storage(url=f"{proxy.url}&retryWrites=false", timeout_ms=5_000) as storage:
        monkeypatch.setattr(storage.run_events._log, "_patience_s", 0.0)
        for round_ in range(4):
            proxy.lose("insert", after_it_arrived=round_ % 2 == 0)
            with pytest.raises(StorageUnavailableError, match="may be stored or not"):
                await storage.run_events.put_batch([event(f"{round_}"), event(f"{round_}")])
            other = await storage.run_events.put_batch([event("other")])
            again = await storage.run_events.put_batch([event(f"{round_}"), event(f"{round_}")])
            assert again[0]["seq"] + 1 == again[1]["seq"] != other[0]["seq"]
        found = await contents(storage)
    assert sorted(found) == sorted([f"{n}" for n in range(4)] * 2 + ["other"] * 4)


# -- refusals --------------------------------------------------------------------------------------


async def test_what_the_server_refuses_fails_its_own_caller_only(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """An operator's own rule, which no check of ours knows, met by one batch of many in one write."""
    collection = raw_client[database_name]["run_events"]
    collection.create_index("content", unique=True, partialFilterExpression={"content": "unique"})
    await storage.run_events.put(**event("unique"))
    asked = ["a", "b", "unique", "c", "unique", "d"]
    calls = [storage.run_events.put_batch([event(content)]) for content in asked]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for content, answer in zip(asked, answers, strict=True):
        assert isinstance(answer, StorageError if content == "unique" else list)
    assert await contents(storage) == ["unique", "a", "b", "c", "d"]
    assert numbers(await storage.run_events.list_messages("t")) == [1, 2, 3, 4, 5]


async def test_a_batch_beyond_a_transaction_is_refused_whole(storage: MongoStorage) -> None:
    """The embedded server's cache of 256 MB holds no transaction of 20,000 runs' events."""
    too_many = [event("x" * 1_000, run_id=f"{n}") for n in range(20_000)]
    with pytest.raises(InvalidPayloadError, match="transaction: split it into smaller batches"):
        await storage.run_events.put_batch(too_many)
    assert numbers(await storage.run_events.put_batch(too_many[:2_000])) == list(range(1, 2_001))


async def test_a_validator_refuses_a_malformed_event(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.run_events.put(**event())
    collection = raw_client[database_name]["run_events"]
    [good] = collection.find({"seq": 1}, {"_id": 0})
    changes: list[dict[str, Any]] = [{"seq": "2"}, {"category": 5}, {"metadata": []}, {"created_at": "now"}]
    for change in [*changes, {"more": 1}]:
        with pytest.raises(Exception, match="Document failed validation"):
            collection.insert_one({**good, "seq": 2, **change})


# -- numbers after deletions and retention ---------------------------------------------------------


def _forget(raw: Raw, database: str) -> None:
    """What the server does a day later: it removes the stubs that go."""
    raw[database]["run_events"].delete_many({"forget_at": {"$type": "date"}})


def _age(raw: Raw, database: str, age: timedelta) -> None:
    """Make everything this much older."""
    ms = round(age.total_seconds() * 1000)
    for name in ("stored_at", "was_stored_at", "founded_at", "forget_at"):
        raw[database]["run_events"].update_many(
            {name: {"$type": "date"}}, [{"$set": {name: {"$subtract": [f"${name}", ms]}}}]
        )


async def test_no_number_is_given_again_when_the_stubs_are_gone(
    new_storage: Opener, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """The run that was deleted had the last numbers, or all of them; the next writer knows nothing."""
    await storage.run_events.put_batch([event(run_id="kept"), event(), event(), event()])
    assert await storage.run_events.delete_by_run("t", "r") == 3
    _forget(raw_client, database_name)
    async with new_storage() as other:
        assert numbers(await other.run_events.put_batch([event()])) == [5]
        assert await other.run_events.delete_by_thread("t") == 2
    _forget(raw_client, database_name)
    _age(raw_client, database_name, timedelta(days=400))
    async with new_storage() as another:
        assert numbers(await another.run_events.put_batch([event()])) == [6]


async def test_a_stale_process_is_told_that_deleted_numbers_are_taken(
    new_storage: Opener, storage: MongoStorage
) -> None:
    """It knows 1 as the last number; 2 to 4 were given by another process and deleted since."""
    await storage.run_events.put(**event())
    async with new_storage() as other:
        await other.run_events.put_batch([event()] * 3)
        await other.run_events.delete_by_thread("t")
    assert numbers(await storage.run_events.put_batch([event()] * 2)) == [5, 6]


@pytest.mark.parametrize("clock", ["monotonic", "time"])
async def test_a_remembered_number_is_trusted_for_minutes_only(
    new_storage: Opener,
    storage: MongoStorage,
    raw_client: Raw,
    database_name: str,
    clock: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shorter than any stub lives and retention waits."""
    assert event_log.TRUST_S <= 600
    assert timedelta(days=1) <= event_log.STUB_LIFE
    await storage.run_events.put(**event())
    async with new_storage() as other:
        await other.run_events.put_batch([event()] * 3)
        await other.run_events.delete_by_run("t", "r")
    _forget(raw_client, database_name)
    later: dict[str, Any] = {"monotonic": time.monotonic, "time": time.time}
    now = later[clock]
    later[clock] = lambda: now() + 2 * event_log.TRUST_S
    monkeypatch.setattr(event_log, "time", SimpleNamespace(**later))
    assert numbers(await storage.run_events.put_batch([event()])) == [5]


async def test_no_number_is_given_again_when_retention_has_removed_all_events(
    new_storage: Opener, raw_client: Raw, database_name: str
) -> None:
    """Every process then goes on behind the same new number."""
    async with new_storage(run_events_ttl_days=1) as storage:
        await storage.run_events.put_batch([event()] * 3)
        await storage.run_events.put_batch([event(thread_id="u")] * 3)
    _age(raw_client, database_name, timedelta(days=2))
    raw_client[database_name]["run_events"].delete_many({"stored_at": {"$type": "date"}})
    async with new_storage(run_events_ttl_days=1) as one, new_storage(run_events_ttl_days=1) as other:
        calls = [store.run_events.put_batch([event()] * 2) for store in (one, other) * 10]
        given = sorted(number for rows in await asyncio.gather(*calls) for number in numbers(rows))
    assert given == list(range(given[0], given[0] + 40))
    assert 3 < given[0] < 2**53


async def test_without_retention_an_old_thread_goes_on_where_it_was(
    new_storage: Opener, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.run_events.put_batch([event()] * 3)
    await storage.run_events.delete_by_thread("t")
    _age(raw_client, database_name, timedelta(days=30))
    async with new_storage() as other:
        assert numbers(await other.run_events.put_batch([event()])) == [4]


async def test_stored_at_never_falls_within_a_thread(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """So that retention removes a thread's events from the front, whatever the writers' clocks say."""
    await storage.run_events.put(**event())
    collection = raw_client[database_name]["run_events"]
    later = datetime.now(UTC) + timedelta(hours=1)
    collection.update_one({"seq": 1}, {"$set": {"stored_at": later}})
    storage.run_events._log._threads["t"].forget()
    await storage.run_events.put_batch([event()] * 2)
    assert len(collection.distinct("stored_at")) == 1


# -- retention -------------------------------------------------------------------------------------


def _retention(raw: Raw, database: str) -> int | None:
    index = raw[database]["run_events"].index_information().get("retention")
    return None if index is None else index["expireAfterSeconds"]


async def test_retention_is_off_by_default_and_changes_on_a_live_collection(
    new_storage: Opener, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.run_events.put_batch([event()] * 10)
    assert _retention(raw_client, database_name) is None
    for days in (30, 7, None, 90, 90, None):
        async with new_storage(run_events_ttl_days=days) as other:
            assert _retention(raw_client, database_name) == (None if days is None else days * 86_400)
            assert (await other.inspect()).retention_days == days
            await storage.run_events.put(**event())
    assert len(await contents(storage)) == 16


@pytest.mark.timeout(240)
async def test_the_server_removes_events_by_their_age_and_deleted_ones_stubs(
    new_storage: Opener, raw_client: Raw, database_name: str
) -> None:
    """By its own TTL monitor, which the tests' server runs every second."""
    async with new_storage(run_events_ttl_days=1) as storage:
        await storage.run_events.put_batch([event("old")] * 3 + [event("deleted", run_id="x")] * 2)
        await storage.run_events.delete_by_run("t", "x")
        _age(raw_client, database_name, timedelta(days=1, minutes=1))
        assert numbers(await storage.run_events.put_batch([event("new")])) == [6]
        # Number 5 is the last one that was known when it was deleted, and stays.
        while await contents(storage) != ["new"] or _stubs(raw_client, database_name) != [5]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _stubs(raw: Raw, database: str) -> list[int]:
    return [stub["seq"] for stub in raw[database]["run_events"].find({"was_stored_at": {"$exists": True}})]


def test_a_retention_of_less_than_a_day_is_refused(new_storage: Opener) -> None:
    for days in (0, -1, 0.5, "soon"):
        with pytest.raises(StorageConfigError, match="run_events_ttl_days"):
            new_storage(run_events_ttl_days=days)


# -- the backlog and closing -----------------------------------------------------------------------


async def test_the_backlog_is_bounded_and_pushes_back(storage: MongoStorage) -> None:
    """Calls wait to be accepted, in their order."""
    backlog = storage.run_events._log._backlog
    backlog._max_events = 10
    calls = [asyncio.create_task(storage.run_events.put_batch([event(n)] * 4)) for n in range(50)]
    highest = 0
    while not all(call.done() for call in calls):
        highest = max(highest, storage.run_events.backlog)
        await asyncio.sleep(0)
    assert 4 <= highest <= 10
    assert [number for call in calls for number in numbers(call.result())] == list(range(1, 201))
    assert storage.run_events.backlog == 0


async def test_a_batch_larger_than_the_backlog_goes_alone(storage: MongoStorage) -> None:
    storage.run_events._log._backlog._max_events = 10
    sizes = [4, 25, 4, 4, 25]
    calls = [storage.run_events.put_batch([event(n)] * size) for n, size in enumerate(sizes)]
    await asyncio.gather(*calls)
    assert await contents(storage) == [n for n, size in enumerate(sizes) for _ in range(size)]


async def test_a_caller_that_gives_up_waiting_for_room_takes_none(storage: MongoStorage) -> None:
    backlog = storage.run_events._log._backlog
    backlog._max_events = 4
    calls = [asyncio.create_task(storage.run_events.put_batch([event(n)] * 4)) for n in range(10)]
    await asyncio.sleep(0)
    for call in calls[1::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert storage.run_events.backlog == 0
    assert await contents(storage) == [n for n in range(0, 10, 2) for _ in range(4)]


async def test_flush_waits_for_what_was_accepted(storage: MongoStorage) -> None:
    calls = [asyncio.create_task(storage.run_events.put_batch([event()] * 50)) for _ in range(20)]
    await asyncio.sleep(0)
    assert storage.run_events.backlog == 1_000
    await storage.run_events.flush()
    assert storage.run_events.backlog == 0
    await asyncio.sleep(0)
    assert all(call.done() for call in calls)


async def test_closing_writes_what_was_accepted(new_storage: Opener, storage: MongoStorage) -> None:
    other = new_storage()
    calls = [asyncio.create_task(other.run_events.put_batch([event()] * 10)) for _ in range(30)]
    await asyncio.sleep(0)
    await other.aclose()
    assert sorted(number for rows in await asyncio.gather(*calls) for number in numbers(rows)) == list(
        range(1, 301)
    )
    assert len(await contents(storage)) == 300
    with pytest.raises(StorageError, match="closed"):
        await other.run_events.put(**event())


async def test_closing_without_a_server_says_what_was_not_written(
    new_storage: Opener, proxy: LossyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    storage = new_storage(url=proxy.url)
    await storage.run_events.put(**event())
    proxy.go_down()
    calls = [asyncio.create_task(storage.run_events.put_batch([event()] * 3)) for _ in range(4)]
    await asyncio.sleep(0.1)
    assert await storage.run_events.aclose(0.5) == 12
    await storage.aclose()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, StorageUnavailableError) for answer in answers)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "12 run events" in record.getMessage()


async def test_without_a_server_callers_hear_in_time(
    new_storage: Opener, proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, also those whose batch was never sent; what comes after the server is back is written."""
    async with new_storage(url=proxy.url, timeout_ms=2_000) as storage:
        await storage.run_events.put(**event("before"))
        monkeypatch.setattr(storage.run_events._log, "_patience_s", 0.5)
        proxy.go_down()
        calls = [storage.run_events.put_batch([event("lost", thread_id=f"{n % 3}")] * 30) for n in range(30)]
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, StorageUnavailableError) for answer in answers)
        assert storage.run_events.backlog == 0
        proxy.is_down = False
        assert (await storage.run_events.put(**event("after")))["seq"] == 2
        assert await contents(storage) == ["before", "after"]


# -- following -------------------------------------------------------------------------------------


async def test_following_gives_what_is_there_and_what_comes(storage: MongoStorage) -> None:
    await storage.run_events.put_batch([event(run_id="a"), event(run_id="b")] * 400)
    seen: list[int] = []

    async def follow() -> None:
        async for row in storage.run_events.follow("t", run_id="a", after_seq=10):
            seen.append(row["seq"])
            if row["seq"] == 999:
                return

    async with asyncio.timeout(60):
        follower = asyncio.create_task(follow())
        for _ in range(100):
            await storage.run_events.put_batch([event(run_id="a"), event(run_id="b")])
        await follower
    assert seen == list(range(11, 1_000, 2))


async def test_without_change_streams_following_says_so(
    new_storage: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_storage(driver="mongomock") as storage:
        with pytest.raises(StorageError, match="change streams require a replica set"):
            async for _ in storage.run_events.follow("t"):
                pass


async def test_following_ends_when_the_collection_is_dropped(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """It neither hangs nor spins."""
    await storage.run_events.put(**event())
    rows = storage.run_events.follow("t")
    assert (await anext(rows))["seq"] == 1
    raw_client.drop_database(database_name)
    with pytest.raises(StorageError):
        await asyncio.wait_for(anext(rows), 20)


async def test_a_cancelled_follower_ends(storage: MongoStorage) -> None:
    """Also when the cancellation comes together with a change."""

    async def follow() -> None:
        async for _ in storage.run_events.follow("t"):
            pass

    for _ in range(10):
        follower = asyncio.create_task(follow())
        await asyncio.sleep(0.05)
        writing = asyncio.create_task(storage.run_events.put(**event()))
        await asyncio.sleep(0.001)
        follower.cancel()
        await writing
        done, _ = await asyncio.wait({follower}, timeout=20)
        assert done
        assert follower.cancelled()
