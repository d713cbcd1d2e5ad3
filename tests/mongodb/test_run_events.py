"""Run events on MongoDB: lost connections, refused writes, numbers after deletions and retention, closing."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, BulkWriteError, PyMongoError

from deerflow_mongo import (
    ActorContext,
    MongoStorage,
    RunEventRow,
    StorageClosedError,
    StorageError,
    StorageUnavailableError,
    ThreadAccessError,
    ThreadMetaCreate,
    bind_actor_context,
    reset_actor_context,
)
from deerflow_mongo.mongodb.drivers.collection import Collection
from deerflow_mongo.mongodb.drivers.errors import DuplicateKeyError
from deerflow_mongo.mongodb.events import numbers as event_numbers

from ..busy_machine import connected, until_answered
from ..faults.proxy import FaultProxy
from .drivers.fixtures import event

pytestmark = pytest.mark.usefixtures("emptied_database")

Raw = MongoClient[dict[str, Any]]
Opener = Callable[..., MongoStorage]


def numbers(rows: list[RunEventRow]) -> list[int]:
    return [row["seq"] for row in rows]


async def contents(storage: MongoStorage) -> list[Any]:
    return [row["content"] for row in await storage.run_events.list_thread_events("t", limit=100_000)]


# -- lost connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["pymongo"])
@pytest.mark.parametrize("retried_by", ["driver", "store"])
@pytest.mark.parametrize("arrived", [True, False], ids=["request arrived", "request lost"])
async def test_lost_connection_never_stores_a_batch_twice(
    new_storage: Opener, proxy: FaultProxy, driver: str, retried_by: str, arrived: bool
) -> None:
    """The driver retries the write, or the store does where the driver must not."""
    url = f"{proxy.url}&retryWrites={'true' if retried_by == 'driver' else 'false'}"
    async with new_storage(url=url, driver=driver) as storage:
        await storage.run_events.put(**event("before"))
        lost_each = (
            1 if retried_by == "driver" or arrived else 2
        )  # a write that arrived is found, not sent again
        for round_ in range(5):
            proxy.lose("insert", lost_each, after_it_arrived=arrived)
            batches = [storage.run_events.put_batch([event(f"{round_} {n}")] * 5) for n in range(4)]
            given = [number for rows in await asyncio.gather(*batches) for number in numbers(rows)]
            assert given == list(range(2 + 20 * round_, 22 + 20 * round_))
        assert proxy.lost == 5 * lost_each
        stored = await contents(storage)
    assert stored == ["before", *(f"{r} {n}" for r in range(5) for n in range(4) for _ in range(5))]


async def test_write_that_arrives_after_its_retry_is_refused(storage: MongoStorage) -> None:
    """Also when both run at the same time, whichever of them the server executes first."""
    await storage.run_events.put(**event())
    events = storage.driver.collection("run_events")
    insert = Collection.insert_many

    async def sent_twice(collection: Any, documents: list[Any]) -> None:
        copies = [dict(document) for document in documents]
        first = asyncio.create_task(insert(events, copies))
        await asyncio.gather(first, insert(collection, documents), return_exceptions=True)
        raise StorageUnavailableError("simulated: no answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collection, "insert_many", sent_twice)
        rows = await asyncio.gather(*(storage.run_events.put_batch([event(n)] * 2) for n in range(5)))
    assert [number for batch in rows for number in numbers(batch)] == list(range(2, 12))
    assert await contents(storage) == ["", *(n for n in range(5) for _ in range(2))]


@pytest.mark.parametrize("has_ids", [True, False], ids=["event ids", "no event ids"])
async def test_batch_repeated_after_unavailable_is_stored_once_with_event_ids_only(
    new_storage: Opener, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, has_ids: bool
) -> None:
    """Whether the failed try was stored or not. Without ids an equal event is a new one."""
    async with new_storage(url=f"{proxy.url}&retryWrites=false") as storage:
        monkeypatch.setattr(storage.run_events._writer, "_retry_budget_s", 0.0)
        for round_ in range(4):
            ids: list[dict[str, str]] = [{"event_id": f"{round_}/{n}"} if has_ids else {} for n in range(2)]
            batch: Any = [{**event(round_), **fields} for fields in ids]
            proxy.lose("insert", after_it_arrived=round_ % 2 == 0)
            with pytest.raises(StorageUnavailableError, match="may be stored or not"):
                await storage.run_events.put_batch(batch)
            other = await storage.run_events.put_batch([event("other")])
            again = await storage.run_events.put_batch(batch)
            assert again[0]["seq"] + 1 == again[1]["seq"] != other[0]["seq"]
        found = await contents(storage)
    assert [found.count(n) for n in range(4)] == ([2, 2, 2, 2] if has_ids else [4, 2, 4, 2])
    assert found.count("other") == 4


# -- deletions whose answer is lost ------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 3])
@pytest.mark.parametrize("arrived", [True, False], ids=["request arrived", "request lost"])
async def test_deletion_counts_exactly_after_lost_answers(
    new_storage: Opener, proxy: FaultProxy, arrived: bool, lost: int
) -> None:
    """What an earlier deletion left is not counted, nor is an event of another run."""
    async with new_storage(url=proxy.url) as storage:
        events = storage.run_events
        await events.put_batch([event(run_id="earlier")] * 3)
        assert await events.delete_by_run("t", "earlier") == 3
        await events.put_batch([*[event()] * 5, *[event(run_id="other")] * 2])
        for delete, expected in (
            (lambda: events.delete_by_run("t", "r"), [5, 0]),
            (lambda: events.delete_by_thread("t"), [2, 0]),
        ):
            for count in expected:
                proxy.lose("update", lost, after_it_arrived=arrived)
                assert await delete() == count
        assert proxy.lost == 4 * lost
        assert numbers(await events.put_batch([event()])) == [11]


async def test_deletion_without_a_server_fails_within_its_time(
    storage: MongoStorage, new_storage: Opener, proxy: FaultProxy
) -> None:
    await storage.run_events.put(**event())
    async with connected(new_storage(url=proxy.url, timeout_ms=500)) as hasty:
        proxy.go_down()
        began = time.monotonic()
        with pytest.raises(StorageUnavailableError):
            await hasty.run_events.delete_by_thread("t")
        assert time.monotonic() - began < 1.0 + 5.0  # 2 T, and a busy machine
        proxy.is_down = False
        await until_answered(hasty.ping)
        assert await hasty.run_events.delete_by_thread("t") == 1


# -- refused writes --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("new_database")
async def test_refused_batch_fails_only_its_own_caller(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """An operator's own unique index, which no check here knows, refuses one batch of many in one write."""
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


async def test_validator_refuses_a_malformed_event(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.run_events.put(**event())
    collection = raw_client[database_name]["run_events"]
    [good] = collection.find({"seq": 1}, {"_id": 0})
    changes: list[dict[str, Any]] = [{"seq": "2"}, {"category": 5}, {"metadata": []}, {"created_at": "now"}]
    for change in changes:
        with pytest.raises(Exception, match="Document failed validation"):
            collection.insert_one({**good, "seq": 2, **change})


# -- causes of errors ------------------------------------------------------------------------------


async def _failures(calls: Iterable[Awaitable[Any]]) -> list[StorageError]:
    """The error of each call: an object of its own, caused by the driver's."""
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, StorageError) for error in errors), errors
    assert len({id(error) for error in errors}) == len(errors)
    return [error for error in errors if isinstance(error, StorageError)]


def _puts(storage: MongoStorage, number: int, **fields: Any) -> list[Awaitable[Any]]:
    return [storage.run_events.put_batch([event(n, **fields)] * 2) for n in range(number)]


@pytest.mark.usefixtures("storage")
async def test_batches_that_gave_up_have_the_drivers_error_as_cause(
    new_storage: Opener, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were sent, and those that waited behind them."""
    async with connected(new_storage(url=f"{proxy.url}&retryWrites=false", timeout_ms=1_000)) as hasty:
        await until_answered(lambda: hasty.run_events.put(**event()))
        monkeypatch.setattr(hasty.run_events._writer, "_retry_budget_s", 0.0)
        proxy.go_down()
        calls = [hasty.run_events.put_batch([event(n)] * 50) for n in range(4)]
        errors = await _failures(calls)
        assert {type(error) for error in errors} == {StorageUnavailableError}
        assert all(isinstance(error.__cause__, PyMongoError) for error in errors)
        texts = "\n".join(map(str, errors))
        assert "may be stored or not" in texts
        assert "are not stored" in texts


@pytest.mark.usefixtures("new_database")
async def test_refused_batch_has_the_drivers_error_as_cause(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name]["run_events"].create_index("content", unique=True)
    await storage.run_events.put(**event("unique"))
    calls = [
        storage.run_events.put_batch([event("unique")]),
        storage.run_events.put_batch([event("unique")] * 2),
    ]
    for error in await _failures(calls):
        assert type(error) is StorageError
        assert isinstance(error.__cause__, PyMongoError)
        assert "a unique index on (content) refused the document: `insert` on" in str(error)


def _failed_once(storage: MongoStorage) -> bool:
    """Whether a first try of every batch has failed."""
    batches = storage.run_events._backlog.unfinished()
    return bool(batches) and all(batch.last_cause is not None for batch in batches)


async def test_events_lost_by_close_have_the_drivers_error_as_cause(
    new_storage: Opener, proxy: FaultProxy
) -> None:
    storage = new_storage(url=f"{proxy.url}&retryWrites=false", timeout_ms=5_000)
    await storage.run_events.put(**event())
    proxy.go_down()
    calls = [asyncio.ensure_future(call) for call in _puts(storage, 3)]
    async with asyncio.timeout(60):
        while not _failed_once(storage):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await storage.run_events.aclose(0.1) == 6
    await storage.aclose()
    for error in await _failures(calls):
        assert "the storage was closed before" in str(error)
        assert isinstance(error.__cause__, PyMongoError)


def _raising(error: Exception, cause: Exception | None = None) -> Any:
    async def fail(*args: Any, **options: Any) -> Any:
        raise error from cause

    return fail


@pytest.fixture
async def mock_storage(new_storage: Opener) -> AsyncIterator[MongoStorage]:
    async with new_storage(driver="mongomock") as opened:
        yield opened


async def test_write_without_a_majority_has_the_drivers_error_as_cause(
    mock_storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = BulkWriteError({})
    refused = DuplicateKeyError("refused", keys=("_id",))
    monkeypatch.setattr(Collection, "insert_many", _raising(refused, cause))
    monkeypatch.setattr(mock_storage.run_events._writer, "_retry_budget_s", 0.0)
    for error in await _failures(_puts(mock_storage, 3)):
        assert "a majority has not; these run events may be stored or not" in str(error)
        assert error.__cause__ is cause


async def test_unexpected_error_of_a_write_is_logged_and_is_the_cause(
    mock_storage: MongoStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bug = ZeroDivisionError("simulated")
    monkeypatch.setattr(Collection, "insert_many", _raising(bug))
    for error in await _failures(_puts(mock_storage, 3)):
        assert type(error) is StorageError
        assert error.__cause__ is bug
    record: Any = caplog.records[-1]
    assert (record.thread_id, record.operation) == ("t", "RunEventStore.put_batch")


@pytest.fixture
def actor() -> Iterator[None]:
    token = bind_actor_context(ActorContext("alice"))
    yield
    reset_actor_context(token)


@pytest.mark.usefixtures("actor")
@pytest.mark.parametrize("is_bug", [False, True], ids=["unavailable", "bug"])
async def test_calls_that_share_a_failed_access_check_get_an_error_each(
    mock_storage: MongoStorage, monkeypatch: pytest.MonkeyPatch, is_bug: bool
) -> None:
    cause: Exception = ZeroDivisionError("simulated") if is_bug else AutoReconnect("simulated")
    raised: Exception = cause if is_bug else StorageUnavailableError("simulated")
    monkeypatch.setattr(Collection, "find", _raising(raised, None if is_bug else cause))
    events = mock_storage.run_events
    calls = [
        *_puts(mock_storage, 3),
        events.delete_by_thread("t"),
        events.put_if_absent(**event()),
        events.put(**event()),
    ]
    for error in await _failures(calls):
        assert type(error) is (StorageError if is_bug else StorageUnavailableError)
        assert error.__cause__ is cause


@pytest.mark.usefixtures("actor")
async def test_batch_over_several_threads_reports_a_failed_access_check_once(
    mock_storage: MongoStorage,
) -> None:
    await mock_storage.threads.create_thread_meta(ThreadMetaCreate(thread_id="b", user_id="bob"))
    with pytest.raises(ThreadAccessError, match="not allowed to append events to thread 'b'"):
        await mock_storage.run_events.put_batch([event(thread_id="a"), event(thread_id="b")])
    assert await mock_storage.run_events.count_messages("a") == 0


# -- numbers after deletions and retention ---------------------------------------------------------


def _expire_tombstones(raw: Raw, database: str) -> None:
    """What the server does a day later: it removes the expired tombstones."""
    raw[database]["run_events"].delete_many({"expires_at": {"$type": "date"}})


def _age(raw: Raw, database: str, age: timedelta) -> None:
    """Make every stored time this much older."""
    ms = round(age.total_seconds() * 1000)
    for name in ("stored_at", "event_stored_at", "anchored_at", "expires_at"):
        raw[database]["run_events"].update_many(
            {name: {"$type": "date"}}, [{"$set": {name: {"$subtract": [f"${name}", ms]}}}]
        )


async def test_numbers_are_not_reused_after_tombstones_expire(
    new_storage: Opener, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """The deleted run had the last numbers, or all of them; the next writer has no cache."""
    await storage.run_events.put_batch([event(run_id="kept"), event(), event(), event()])
    assert await storage.run_events.delete_by_run("t", "r") == 3
    _expire_tombstones(raw_client, database_name)
    async with new_storage() as other:
        assert numbers(await other.run_events.put_batch([event()])) == [5]
        assert await other.run_events.delete_by_thread("t") == 2
    _expire_tombstones(raw_client, database_name)
    _age(raw_client, database_name, timedelta(days=400))
    async with new_storage() as another:
        assert numbers(await another.run_events.put_batch([event()])) == [6]


async def test_process_with_an_outdated_cache_does_not_reuse_deleted_numbers(
    new_storage: Opener, storage: MongoStorage
) -> None:
    """Its cache has 1 as the last number; another process used 2 to 4 and deleted those events."""
    await storage.run_events.put(**event())
    async with new_storage() as other:
        await other.run_events.put_batch([event()] * 3)
        await other.run_events.delete_by_thread("t")
    assert numbers(await storage.run_events.put_batch([event()] * 2)) == [5, 6]


@pytest.mark.parametrize("clock", ["monotonic", "time"])
async def test_cached_number_expires_before_tombstones_and_retention(
    new_storage: Opener,
    storage: MongoStorage,
    raw_client: Raw,
    database_name: str,
    clock: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cache TTL is far shorter than a tombstone's lifetime and the shortest retention."""
    assert event_numbers.SEQ_CACHE_TTL_S <= 600
    assert timedelta(days=1) <= event_numbers.TOMBSTONE_LIFETIME
    await storage.run_events.put(**event())
    async with new_storage() as other:
        await other.run_events.put_batch([event()] * 3)
        await other.run_events.delete_by_run("t", "r")
    _expire_tombstones(raw_client, database_name)
    later: dict[str, Any] = {"monotonic": time.monotonic, "time": time.time}
    now = later[clock]
    later[clock] = lambda: now() + 2 * event_numbers.SEQ_CACHE_TTL_S
    monkeypatch.setattr(event_numbers, "time", SimpleNamespace(**later))
    assert numbers(await storage.run_events.put_batch([event()])) == [5]


@pytest.mark.usefixtures("new_database")
async def test_numbers_are_not_reused_after_retention_removed_all_events(
    new_storage: Opener, raw_client: Raw, database_name: str
) -> None:
    """Every process then continues after the same new number."""
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


async def test_old_thread_without_retention_continues_after_its_last_number(
    new_storage: Opener, storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.run_events.put_batch([event()] * 3)
    await storage.run_events.delete_by_thread("t")
    _age(raw_client, database_name, timedelta(days=30))
    async with new_storage() as other:
        assert numbers(await other.run_events.put_batch([event()])) == [4]


async def test_stored_at_never_decreases_within_a_thread(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """Retention then removes a thread's events from the front, whatever the writers' clocks show."""
    await storage.run_events.put(**event())
    collection = raw_client[database_name]["run_events"]
    later = datetime.now(UTC) + timedelta(hours=1)
    collection.update_one({"seq": 1}, {"$set": {"stored_at": later}})
    storage.run_events._writer._threads["t"].seq.clear()
    await storage.run_events.put_batch([event()] * 2)
    assert len(collection.distinct("stored_at")) == 1


# -- retention -------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("new_database")
async def test_server_removes_old_events_and_expired_tombstones(
    new_storage: Opener, raw_client: Raw, database_name: str
) -> None:
    """By its own TTL monitor, which the tests' server runs every second."""
    async with new_storage(run_events_ttl_days=1) as storage:
        await storage.run_events.put_batch([event("old")] * 3 + [event("deleted", run_id="x")] * 2)
        await storage.run_events.delete_by_run("t", "x")
        _age(raw_client, database_name, timedelta(days=1, minutes=1))
        assert numbers(await storage.run_events.put_batch([event("new")])) == [6]
        # Number 5 was the thread's last when it was deleted: its tombstone never expires.
        while await contents(storage) != ["new"] or _tombstones(raw_client, database_name) != [5]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _tombstones(raw: Raw, database: str) -> list[int]:
    return [
        tombstone["seq"]
        for tombstone in raw[database]["run_events"].find({"event_stored_at": {"$exists": True}})
    ]


# -- the backlog and closing -----------------------------------------------------------------------


async def test_full_backlog_makes_calls_wait_in_order(storage: MongoStorage) -> None:
    """The number of accepted events never exceeds the limit."""
    backlog = storage.run_events._backlog
    backlog._max_events = 10
    calls = [asyncio.create_task(storage.run_events.put_batch([event(n)] * 4)) for n in range(50)]
    highest = 0
    while not all(call.done() for call in calls):
        highest = max(highest, storage.run_events.backlog)
        await asyncio.sleep(0)
    assert 4 <= highest <= 10
    assert [number for call in calls for number in numbers(call.result())] == list(range(1, 201))
    assert storage.run_events.backlog == 0


async def test_batch_larger_than_the_backlog_is_admitted_alone(storage: MongoStorage) -> None:
    storage.run_events._backlog._max_events = 10
    sizes = [4, 25, 4, 4, 25]
    calls = [storage.run_events.put_batch([event(n)] * size) for n, size in enumerate(sizes)]
    await asyncio.gather(*calls)
    assert await contents(storage) == [n for n, size in enumerate(sizes) for _ in range(size)]


async def test_cancelled_call_that_waits_for_room_takes_none(storage: MongoStorage) -> None:
    backlog = storage.run_events._backlog
    backlog._max_events = 4
    calls = [asyncio.create_task(storage.run_events.put_batch([event(n)] * 4)) for n in range(10)]
    await asyncio.sleep(0)
    for call in calls[1::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert storage.run_events.backlog == 0
    assert await contents(storage) == [n for n in range(0, 10, 2) for _ in range(4)]


async def test_flush_waits_for_accepted_events(storage: MongoStorage) -> None:
    calls = [asyncio.create_task(storage.run_events.put_batch([event()] * 50)) for _ in range(20)]
    await asyncio.sleep(0)
    assert storage.run_events.backlog == 1_000
    await storage.run_events.flush()
    assert storage.run_events.backlog == 0
    await asyncio.sleep(0)
    assert all(call.done() for call in calls)


async def test_close_writes_accepted_events(new_storage: Opener, storage: MongoStorage) -> None:
    other = new_storage()
    calls = [asyncio.create_task(other.run_events.put_batch([event()] * 10)) for _ in range(30)]
    await asyncio.sleep(0)
    await other.aclose()
    assert sorted(number for rows in await asyncio.gather(*calls) for number in numbers(rows)) == list(
        range(1, 301)
    )
    assert len(await contents(storage)) == 300


CALLS: dict[str, Callable[[MongoStorage], Awaitable[Any]]] = {
    "put": lambda s: s.run_events.put(**event()),
    "put_batch": lambda s: s.run_events.put_batch([event()] * 100),
    "put_if_absent": lambda s: s.run_events.put_if_absent(**event()),
    "list_messages": lambda s: s.run_events.list_messages("t"),
    "list_messages_by_run": lambda s: s.run_events.list_messages_by_run("t", "r"),
    "list_events": lambda s: s.run_events.list_events("t", "r"),
    "list_thread_events": lambda s: s.run_events.list_thread_events("t"),
    "count_messages": lambda s: s.run_events.count_messages("t"),
    "delete_by_thread": lambda s: s.run_events.delete_by_thread("t"),
    "delete_by_run": lambda s: s.run_events.delete_by_run("t", "r"),
    "follow": lambda s: anext(s.run_events.follow("t")),
}


@pytest.mark.parametrize("driver", ["pymongo", "motor", "mongomock"])
async def test_every_call_on_a_closed_storage_raises_storage_closed(new_storage: Opener, driver: str) -> None:
    storage = new_storage(driver=driver)
    await storage.setup()
    await storage.run_events.put(**event())
    await storage.aclose()
    for name, call in CALLS.items():
        with pytest.raises(StorageClosedError):
            assert await call(storage) == name


async def test_calls_that_wait_for_room_fail_when_the_storage_closes(new_storage: Opener) -> None:
    storage = new_storage()
    await storage.setup()
    storage.run_events._backlog._max_events = 10
    calls = [asyncio.create_task(storage.run_events.put_batch([event(n)] * 10)) for n in range(5)]
    await asyncio.sleep(0)
    await storage.aclose()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], list)
    assert {type(answer) for answer in answers[1:]} == {StorageClosedError}
    assert len({id(answer) for answer in answers}) == 5


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_followers_fail_when_the_storage_closes(new_storage: Opener, driver: str) -> None:
    storage = new_storage(driver=driver)
    await storage.setup()
    followers = [asyncio.ensure_future(anext(storage.run_events.follow("t"))) for _ in range(3)]
    await asyncio.sleep(0.3)
    await storage.aclose()
    ended = await asyncio.wait_for(asyncio.gather(*followers, return_exceptions=True), 20)
    assert [type(error) for error in ended] == [StorageClosedError] * 3, ended


async def test_close_without_a_server_reports_lost_events(
    new_storage: Opener, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
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
    assert vars(record)["operation"] == "RunEventStore.aclose"


async def test_callers_fail_within_the_retry_budget_without_a_server(
    storage: MongoStorage, new_storage: Opener, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also callers whose batch was never sent. Events put after the server is back are written."""
    await storage.run_events.put(**event("before"))
    async with connected(new_storage(url=proxy.url, timeout_ms=2_000)) as hasty:
        monkeypatch.setattr(hasty.run_events._writer, "_retry_budget_s", 0.5)
        proxy.go_down()
        calls = [hasty.run_events.put_batch([event("lost", thread_id=f"{n % 3}")] * 30) for n in range(30)]
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, StorageUnavailableError) for answer in answers)
        assert hasty.run_events.backlog == 0
        proxy.is_down = False
        await until_answered(hasty.ping)
        assert (await hasty.run_events.put(**event("after")))["seq"] == 2
        assert await contents(storage) == ["before", "after"]


# -- following -------------------------------------------------------------------------------------


async def test_follow_returns_stored_and_new_events(storage: MongoStorage) -> None:
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


async def test_follow_without_change_streams_says_what_it_requires(
    new_storage: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_storage(driver="mongomock") as storage:
        with pytest.raises(StorageError, match="change streams require a replica set"):
            async for _ in storage.run_events.follow("t"):
                pass


@pytest.mark.usefixtures("new_database")
async def test_follow_fails_when_the_collection_is_dropped(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """It neither hangs nor spins."""
    await storage.run_events.put(**event())
    rows = storage.run_events.follow("t")
    assert (await anext(rows))["seq"] == 1
    raw_client.drop_database(database_name)
    with pytest.raises(StorageError):
        await asyncio.wait_for(anext(rows), 20)


async def test_cancelled_follower_ends(storage: MongoStorage) -> None:
    """Also when the cancellation arrives together with a change."""

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


# -- put_if_absent beside other writers ------------------------------------------------------------


async def test_put_if_absent_stores_nothing_beside_an_event_of_a_racing_put_batch(
    new_storage: Callable[..., MongoStorage],
) -> None:
    """The writer of the new event has read the thread's last number before it looks for such an event."""
    async with new_storage() as storage, new_storage() as other:
        for number in range(40):
            run: dict[str, Any] = {"run_id": f"r{number}", "event_type": "receipt"}
            (row, is_new), [rival, _] = await asyncio.gather(
                storage.run_events.put_if_absent(**event(**run)),
                (storage if number % 2 else other).run_events.put_batch([event(**run), event(**run)]),
            )
            if is_new:
                assert row["seq"] < rival["seq"]
            else:
                assert row == rival
