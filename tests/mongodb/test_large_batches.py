"""Batches of run events that are written in parts: killed writers, failures in the middle, other threads."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, StorageError, StorageUnavailableError, create_storage
from deerflow_mongo.mongodb.drivers.collection import Collection
from deerflow_mongo.mongodb.events.batch import MAX_PART_BYTES, MAX_PART_EVENTS, Batch

from ..busy_machine import connected
from ..faults.proxy import FaultProxy

Raw = MongoClient[dict[str, Any]]
_MEBIBYTE = 1024 * 1024
_WRITER = """
import asyncio, sys
from deerflow_mongo import create_storage

async def write(url, database):
    event = {"thread_id": "t", "run_id": "killed", "event_type": "said", "category": "message"}
    storage = create_storage({"backend": "mongodb", "url": url, "database": database})
    await storage.run_events.put_batch([{**event, "content": n} for n in range(100_000)])

asyncio.run(write(*sys.argv[1:]))
"""


def event(content: Any = "", **fields: Any) -> Any:
    required = {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "message"}
    return {**required, "content": content, **fields}


async def contents(storage: MongoStorage) -> list[Any]:
    """In the order of their numbers, which have no gap."""
    rows = await storage.run_events.list_thread_events("t", limit=200_000)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["content"] for row in rows]


def _opened(**options: Any) -> MongoStorage:
    storage = create_storage({"backend": "mongodb", **options})
    assert isinstance(storage, MongoStorage)
    return storage


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    async with _opened(url=mongodb_url, database=database_name) as opened:
        yield opened


@pytest.fixture
async def mock_storage() -> AsyncIterator[MongoStorage]:
    async with _opened(driver="mongomock") as opened:
        yield opened


def test_part_has_a_bounded_number_of_events_and_bytes() -> None:
    async def parts(*sizes: int) -> list[int]:
        documents: list[Any] = [{} for _ in sizes]
        return [len(part.documents) for part in Batch(documents, list(sizes)).parts()]

    for sizes, expected in (
        ([1] * (2 * MAX_PART_EVENTS + 1), [MAX_PART_EVENTS, MAX_PART_EVENTS, 1]),
        ([MAX_PART_BYTES] * 3, [1, 1, 1]),
        ([MAX_PART_BYTES // 2] * 5, [2, 2, 1]),
        ([1, 4 * MAX_PART_BYTES, 1, 1], [1, 1, 2]),
    ):
        assert asyncio.run(parts(*sizes)) == expected


@pytest.mark.parametrize(("size_bytes", "events"), [(4 * _MEBIBYTE, 19), (15 * _MEBIBYTE, 8), (20, 20_000)])
async def test_batch_of_any_size_is_stored(storage: MongoStorage, size_bytes: int, events: int) -> None:
    """Also beyond what the server's cache holds, or one message to it."""
    rows = await storage.run_events.put_batch([event("x" * size_bytes)] * events)
    assert [row["seq"] for row in rows] == list(range(1, events + 1))
    assert await storage.run_events.count_messages("t") == events
    assert storage.run_events.backlog == 0


async def test_killed_writer_does_not_block_the_threads_other_writers(
    storage: MongoStorage, mongodb_url: str, database_name: str
) -> None:
    """What is stored of its batch is the beginning."""
    command = [sys.executable, "-c", _WRITER, mongodb_url, database_name]
    writer = subprocess.Popen(command)  # noqa: ASYNC220, S603
    try:
        async with asyncio.timeout(60):
            while await storage.run_events.count_messages("t") < 3_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        writer.kill()
        writer.wait()
    began = time.monotonic()
    rows = await storage.run_events.put_batch([event("after")] * 100)
    assert time.monotonic() - began < 5
    await asyncio.sleep(0.2)
    stored = await contents(storage)
    first = stored.index("after")
    assert rows[0]["seq"] == first + 1
    killed = [content for content in stored if content != "after"]
    assert killed == list(range(len(killed)))
    assert 3_000 <= len(killed) < 100_000


async def test_other_processes_events_may_come_between_parts(storage: MongoStorage) -> None:
    """A reader that pages by number misses none of them."""
    async with _opened(url=storage._config.url, database=storage._config.database) as other:
        large = asyncio.create_task(storage.run_events.put_batch([event(n) for n in range(3_000)]))
        seen: list[Any] = []
        small = 0
        while not large.done() or len(seen) < 3_000 + small:
            if not large.done():
                await other.run_events.put(**event("small"))
                small += 1
            rows = await storage.run_events.list_messages("t", after_seq=len(seen), limit=500)
            assert [row["seq"] for row in rows] == [len(seen) + 1 + n for n in range(len(rows))]
            seen += [row["content"] for row in rows]
    assert [content for content in seen if content != "small"] == list(range(3_000))
    assert [row["content"] for row in large.result()] == list(range(3_000))
    assert small > 0


async def test_refused_event_fails_the_batch_after_those_before_it(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """By an operator's own index. Batches that wait behind it are stored."""
    collection = raw_client[database_name]["run_events"]
    collection.create_index("content", unique=True, partialFilterExpression={"content": "unique"})
    await storage.run_events.put(**event("unique"))
    batch = [event(n) for n in range(3_000)]
    batch[1_500] = event("unique")
    calls = [storage.run_events.put_batch(batch), storage.run_events.put_batch([event("behind")])]
    failed, behind = await asyncio.gather(*calls, return_exceptions=True)
    assert type(failed) is StorageError
    assert "a first part may be stored, at least 1000 of 3000 events" in str(failed)
    assert isinstance(behind, list)
    assert await contents(storage) == ["unique", *range(1_500), "behind"]


@pytest.mark.usefixtures("storage")
async def test_batch_that_failed_in_the_middle_is_completed_by_its_event_ids(
    proxy: FaultProxy, database_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [event(n, event_id=f"{n}") for n in range(2_500)]
    async with connected(_opened(url=proxy.url, database=database_name, timeout_ms=2_000)) as storage:
        insert, calls = Collection.insert_many, 0

        async def insert_many(collection: Any, documents: list[Any]) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                proxy.go_down()
            await insert(collection, documents)

        monkeypatch.setattr(Collection, "insert_many", insert_many)
        with pytest.raises(StorageUnavailableError, match="at least 1000 of 2500 events"):
            await storage.run_events.put_batch(batch)
        proxy.is_down = False
        calls = 10
        await storage.run_events.put(**event("between"))
        rows = await storage.run_events.put_batch(batch)
        assert [row["content"] for row in rows] == list(range(2_500))
        assert await contents(storage) == [*range(1_000), "between", *range(1_000, 2_500)]


async def test_large_batch_lets_other_threads_write(
    mock_storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes half of the backlog's room; calls of its own thread wait behind it, in their order."""
    events, backlog = mock_storage.run_events, mock_storage.run_events._backlog
    monkeypatch.setattr(backlog, "_max_events", 120)
    insert, released = Collection.insert_many, asyncio.Event()

    async def insert_many(collection: Any, documents: list[Any]) -> None:
        if len(documents) >= 64:
            await released.wait()
        await insert(collection, documents)

    monkeypatch.setattr(Collection, "insert_many", insert_many)
    large = [asyncio.create_task(events.put_batch([event(n)] * 64)) for n in range(2)]
    large.append(asyncio.create_task(events.put_batch([event("u", thread_id="u")] * 64)))
    behind = [asyncio.create_task(events.put(**event(n))) for n in (2, 3)]
    async with asyncio.timeout(10):
        for number in range(9):
            rows = await events.put_batch([event(thread_id=f"other-{number % 3}")] * 9)
            assert len(rows) == 9
    assert not any(call.done() for call in (*large, *behind))
    released.set()
    await asyncio.gather(*large, *behind)
    stored = [row["content"] for row in await events.list_thread_events("t", limit=1_000)]
    assert stored == [0] * 64 + [1] * 64 + [2, 3]
    assert (events.backlog, backlog._taken_events, backlog._taken_bytes) == (0, 0, 0)
