"""Groups where the drivers' contract does not reach: the mock, and a sharded cluster, which is imitated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError

from deerflow_mongo import MongoStorage, create_storage
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT
from deerflow_mongo.mongodb.drivers.groups.writes import SHARD_KEY_NOT_FOUND_CODE, refusing_inserts

pytestmark = pytest.mark.usefixtures("nearby")

Opener = Callable[..., MongoStorage]


async def test_mock_has_no_groups() -> None:
    storage = create_storage({"backend": "mongodb", "driver": "mongomock"})
    assert isinstance(storage, MongoStorage)
    async with storage:
        await asyncio.gather(*(storage.runs.create(f"r-{n}", "t", user_id=None) for n in range(20)))
        rows = await asyncio.gather(*(storage.runs.get(f"r-{n}", user_id=None) for n in range(20)))
        assert all(row is not None for row in rows)
        counts = [counts for kinds in storage.statistics().values() for counts in kinds.values()]
        assert counts
        assert all(count["alone"] == count["grouped"] == 0 for count in counts)


async def test_updates_that_a_cluster_refuses_as_upserts_go_alone_from_then_on(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster refuses an upsert that does not name the shard key."""
    names = [f"r-{number}" for number in range(20)]
    await asyncio.gather(*(storage.runs.create(name, "t", user_id=None) for name in names))
    bulks: list[int] = []

    async def refuse(self: Any, operations: list[Any], **_: Any) -> None:
        bulks.append(len(operations))
        refusal = {"code": SHARD_KEY_NOT_FOUND_CODE, "errmsg": "ShardKeyNotFound"}
        failures = [{"index": index, **refusal} for index in range(len(operations))]
        raise BulkWriteError({"writeErrors": failures, "writeConcernErrors": []})

    monkeypatch.setattr(AsyncCollection, "bulk_write", refuse)
    for model in ("a", "b"):
        calls: list[Awaitable[None]] = [storage.runs.update_model_name(name, model) for name in names]
        await asyncio.gather(*calls)
        rows = await storage.runs.list_by_thread("t", limit=100, user_id=None)
        assert {row["model_name"] for row in rows} == {model}
    assert bulks == [len(names) - LEAST_IN_FLIGHT]


async def test_upsert_that_keeps_what_an_existing_document_has_goes_alone_at_once(
    storage: MongoStorage,
) -> None:
    """What `ensure_thread_running` does not set may change between a read and a write of the group."""
    threads = storage.threads
    await asyncio.gather(*(threads.ensure_thread_running(thread_id=f"t-{number}") for number in range(20)))
    upserts = storage.statistics()["threads"]["upsert"]
    assert (upserts["alone"], upserts["groups"], upserts["waited_seconds"]) == (20, 0, 0.0)


@pytest.mark.parametrize("update", [{"$inc": {"n": 1}}, {"$set": {"n": 1}, "$setOnInsert": {"m": 1}}])
def test_update_of_a_group_keeps_what_the_caller_gave(update: dict[str, Any]) -> None:
    before = {name: dict(value) for name, value in update.items()}
    refusing_inserts(update)
    assert update == before
