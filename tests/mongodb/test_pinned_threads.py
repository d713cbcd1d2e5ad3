"""Pinned threads: the stored field follows the metadata at every write, on a server and on the mock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, ThreadMetaCreate

pytestmark = pytest.mark.usefixtures("emptied_database")

PIN, UNPIN = {"deerflow_pinned": True}, {"deerflow_pinned": False}
NOT_PINNED: list[Any] = [False, 1, 1.0, "true", None, [True], {"a": True}]


@pytest.fixture(params=["pymongo", "mongomock"])
async def either(
    request: pytest.FixtureRequest, mongodb_url: str, database_name: str
) -> AsyncIterator[MongoStorage]:
    config = {"url": mongodb_url, "database": database_name, "driver": request.param}
    async with MongoStorage.open(config) as storage:
        yield storage


async def _create(storage: MongoStorage, thread_id: str, **fields: Any) -> None:
    await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=thread_id, **fields))


async def _listed(storage: MongoStorage, **wanted: Any) -> list[str]:
    options: dict[str, Any] = {"user_id": None, **wanted}
    found = await storage.threads.search_threads(order="pinned_first", **options)
    return [thread.thread_id for thread in found]


async def test_pinned_threads_come_first_and_each_group_is_last_updated_first(either: MongoStorage) -> None:
    for name in ("a", "b", "c", "d", "e"):
        await _create(either, name, user_id="u")
    await either.threads.merge_thread_metadata("b", PIN)
    await either.threads.merge_thread_metadata("a", PIN)
    await either.threads.update_thread_meta("c", status="busy")
    assert await _listed(either) == ["a", "b", "c", "e", "d"]
    assert await _listed(either, user_id="u", limit=2, offset=1) == ["b", "c"]
    assert await _listed(either, metadata=PIN) == ["a", "b"]


async def test_pin_without_touch_leaves_the_order_within_the_group(either: MongoStorage) -> None:
    for name in ("a", "b", "c"):
        await _create(either, name)
    before = await either.threads.get_thread_meta("a")
    await either.threads.merge_thread_metadata("a", PIN, touch=False)
    after = await either.threads.get_thread_meta("a")
    assert before is not None
    assert after is not None
    assert (after.updated_time, after.metadata) == (before.updated_time, PIN)
    assert await _listed(either) == ["a", "c", "b"]
    await either.threads.merge_thread_metadata("a", UNPIN, touch=False)
    assert await _listed(either) == ["c", "b", "a"]
    await either.threads.merge_thread_metadata("a", {})
    assert await _listed(either) == ["a", "c", "b"]


@pytest.mark.parametrize("value", NOT_PINNED, ids=repr)
async def test_only_true_pins_and_every_write_of_another_value_unpins(
    either: MongoStorage, value: Any
) -> None:
    other = {"deerflow_pinned": value}
    await _create(either, "created", metadata=other)
    await either.threads.ensure_thread(thread_id="ensured", metadata=other, user_id=None)
    for name in ("merged", "replaced", "running"):
        await _create(either, name, metadata=PIN)
    await either.threads.merge_thread_metadata("merged", other)
    await either.threads.update_thread_meta("replaced", metadata=other)
    await either.threads.ensure_thread_running(thread_id="running", metadata=other)  # metadata stays
    assert (await _listed(either))[0] == "running"
    assert await _listed(either, metadata=PIN) == ["running"]
    assert set((await _listed(either))[1:]) == {"created", "ensured", "merged", "replaced"}
    last = await either.threads.get_thread_meta("created")
    await either.threads.update_thread_meta("created", status="busy")
    assert last is not None
    assert (await _listed(either))[:2] == ["running", "created"]


async def test_replacing_the_metadata_without_the_key_unpins(either: MongoStorage) -> None:
    await _create(either, "a", metadata=PIN)
    await _create(either, "b")
    assert await _listed(either) == ["a", "b"]
    await either.threads.sync_thread_title(thread_id="a", title="stays pinned")
    assert await _listed(either) == ["a", "b"]
    await either.threads.sync_thread_metadata(thread_id="a", metadata={"other": 1})
    await either.threads.update_thread_meta("b", status="busy")
    assert await _listed(either) == ["b", "a"]
    await either.threads.sync_thread_metadata(thread_id="a", metadata=PIN)
    assert await _listed(either) == ["a", "b"]


async def test_stored_field_is_true_or_absent(
    storage: MongoStorage, raw_client: MongoClient[dict[str, Any]], database_name: str
) -> None:
    threads = raw_client[database_name]["threads"]
    await _create(storage, "a")
    assert "pinned" not in (threads.find_one({"_id": "a"}) or {})
    for pin, unpin in (
        (storage.threads.merge_thread_metadata("a", PIN), storage.threads.merge_thread_metadata("a", UNPIN)),
        (
            storage.threads.update_thread_meta("a", metadata=PIN),
            storage.threads.update_thread_meta("a", metadata={}),
        ),
    ):
        await pin
        assert (threads.find_one({"_id": "a"}) or {})["pinned"] is True
        await unpin
        assert "pinned" not in (threads.find_one({"_id": "a"}) or {})


async def test_concurrent_pins_and_merges_leave_field_and_metadata_equal(
    storage: MongoStorage, raw_client: MongoClient[dict[str, Any]], database_name: str
) -> None:
    await _create(storage, "a")
    merges: list[Any] = [{"deerflow_pinned": bool(n % 2)} if n % 3 else {f"k{n}": n} for n in range(60)]
    await asyncio.gather(*(storage.threads.merge_thread_metadata("a", merge) for merge in merges))
    document = raw_client[database_name]["threads"].find_one({"_id": "a"}) or {}
    assert document.get("pinned", False) is document["metadata"]["deerflow_pinned"]
    assert len(document["metadata"]) == 21


async def test_new_owner_sees_the_thread_and_the_old_one_does_not(either: MongoStorage) -> None:
    await _create(either, "a", user_id="alice")
    await either.threads.update_thread_meta("a", owner_id="bob", user_id="carol")
    assert await _listed(either, user_id="alice") == ["a"]
    await either.threads.update_thread_meta("a", owner_id="bob", user_id="alice")
    assert (await _listed(either, user_id="alice"), await _listed(either, user_id="bob")) == ([], ["a"])
