"""Followers that begin while a write is on its way to the majority: neither a change nor a read shows it yet.

The secondaries fetch nothing for a while; their heartbeats go on, so that the primary stays the primary.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, create_storage

from ..mongodb.drivers.fixtures import event
from .servers import ReplicaSet

WAIT_S = 60
PAUSE_S = 0.5
"""In which a write reaches the primary, and a follower reads what there is."""


@contextmanager
def replication_held(replica_set: ReplicaSet) -> Generator[None]:
    with ExitStack() as held:
        for member in replica_set.secondaries():
            held.enter_context(member.replication_held())
        yield


@pytest.fixture(params=["pymongo", "motor"])
async def storage(request: pytest.FixtureRequest, replica_set: ReplicaSet) -> AsyncIterator[MongoStorage]:
    config = {"backend": "mongodb", "url": replica_set.url, "driver": request.param}
    async with create_storage({**config, "database": f"uncommitted_{uuid.uuid4().hex[:8]}"}) as opened:
        assert isinstance(opened, MongoStorage)
        yield opened


@pytest.fixture
async def running(storage: MongoStorage) -> None:
    await storage.runs.create("r", "t", user_id="alice", status="running")
    await storage.run_events.put(**event(1))


async def test_follower_that_begins_before_an_event_is_committed_gets_it(
    storage: MongoStorage, running: None, replica_set: ReplicaSet
) -> None:
    rows = storage.run_events.follow("t")
    async with asyncio.timeout(WAIT_S):
        with replication_held(replica_set):
            writing = asyncio.create_task(storage.run_events.put(**event(2)))
            await asyncio.sleep(PAUSE_S)
            reading = asyncio.create_task(_next_contents(rows, 2))
            await asyncio.sleep(PAUSE_S)
            assert not writing.done()
        assert await reading == [1, 2]
        await writing
    await rows.aclose()


async def test_follower_that_begins_before_the_end_of_its_run_is_committed_ends(
    storage: MongoStorage, running: None, replica_set: ReplicaSet
) -> None:
    async with asyncio.timeout(WAIT_S):
        with replication_held(replica_set):
            writing = asyncio.create_task(storage.runs.update_status("r", "success"))
            await asyncio.sleep(PAUSE_S)
            following = asyncio.create_task(_contents_until_end(storage))
            await asyncio.sleep(PAUSE_S)
            assert not writing.done()
        assert await following == [1]
        await writing


async def _next_contents(rows: AsyncIterator[Any], count: int) -> list[Any]:
    return [(await anext(rows))["content"] for _ in range(count)]


async def _contents_until_end(storage: MongoStorage) -> list[Any]:
    rows = storage.run_events.follow("t", run_id="r", until_run_ends=True)
    return [row["content"] async for row in rows]
