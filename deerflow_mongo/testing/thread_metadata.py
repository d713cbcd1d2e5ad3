"""Merging a thread's metadata key by key, in one atomic update (CONTRACT section 5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ..contract.protocols import Storage
from ..contract.rows import ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, THREAD, Contract, stored_thread
from .values import assert_is_now, exactly, now

_KEYS: dict[str, Any] = {
    "": "empty",
    ".": 1,
    "a.b": {"c.d": 2},
    "a": {"b": 3},
    "$set": {"$inc": 4},
    "$a": "$b",
    "$$ROOT": "$$NOW",
    "_id": 5,
    "user_id": BOB,
    "0": [6],
    "nul\0": 7,
    "_json": "8",
    '_json"x"': 9,
    "big": 2**70,
    "nothing": None,
    "ключ": "значение",
    "$ref": {"$ref": "c", "$id": 1},
    "k" * 2_000: "long",
}


async def _found(storage: Storage, metadata: dict[str, Any]) -> list[str]:
    return [
        thread.thread_id for thread in await storage.threads.search_threads(metadata=metadata, user_id=None)
    ]


class ThreadMetadataContract(Contract):
    async def test_metadata_merge_sets_given_keys_and_leaves_the_others(self, storage: Storage) -> None:
        """At the top level only: a value is replaced as a whole."""
        merge = storage.threads.merge_thread_metadata
        await storage.threads.ensure_thread(
            thread_id=THREAD, user_id=ALICE, metadata={"a": {"x": 1}, "b": [1], "c": 1}
        )
        await merge(THREAD, {"a": {"y": 2}, "d": None})
        await merge(THREAD, {"c": None, "e": {}})
        await merge(THREAD, {})
        thread = await stored_thread(storage)
        expected = {"a": {"y": 2}, "b": [1], "c": None, "d": None, "e": {}}
        assert exactly(thread.metadata) == exactly(expected)

    async def test_metadata_merge_changes_only_metadata_and_updated_time(self, storage: Storage) -> None:
        fields: dict[str, Any] = {
            "user_id": ALICE,
            "assistant_id": "lead_agent",
            "display_name": "A title",
            "status": "busy",
        }
        before = await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD, **fields))
        since = now()
        await storage.threads.merge_thread_metadata(THREAD, {"status": "idle", "user_id": BOB})
        after = await stored_thread(storage)
        assert {name: getattr(after, name) for name in fields} == fields
        assert after.metadata == {"status": "idle", "user_id": BOB}
        assert after.created_time == before.created_time
        assert after.updated_time > before.updated_time
        assert_is_now(after.updated_time, since=since)

    async def test_metadata_merge_accepts_any_key(self, storage: Storage) -> None:
        """Keys with dots and dollar signs and empty keys are data, also in a search."""
        await storage.threads.ensure_thread(thread_id="one merge", user_id=None)
        await storage.threads.merge_thread_metadata("one merge", _KEYS)
        assert exactly((await stored_thread(storage, "one merge")).metadata) == exactly(_KEYS)
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=None)
        merged: dict[str, Any] = {}
        for key, value in _KEYS.items():
            with case(key[:20]):
                await storage.threads.merge_thread_metadata(THREAD, {key: value})
                merged[key] = value
                assert exactly((await stored_thread(storage)).metadata) == exactly(merged)
                assert sorted(await _found(storage, {key: value})) == ["one merge", THREAD]
        assert sorted(await _found(storage, _KEYS)) == ["one merge", THREAD]

    async def test_search_finds_the_merged_value_and_not_the_previous_one(self, storage: Storage) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=None, metadata={**_KEYS, "stays": 1})
        for key, value in _KEYS.items():
            with case(key[:20]):
                await storage.threads.merge_thread_metadata(THREAD, {key: {"new": key}})
                assert await _found(storage, {key: {"new": key}, "stays": 1}) == [THREAD]
                assert await _found(storage, {key: value}) == []
        assert await _found(storage, {key: {"new": key} for key in _KEYS}) == [THREAD]
        for value in (1, True, 1.0, "1", None, [1]):
            with case(value):
                await storage.threads.merge_thread_metadata(THREAD, {"stays": value})
                found = [await _found(storage, {"stays": other}) for other in (1, True, 1.0, "1", None, [1])]
                assert sorted(found) == [[]] * 5 + [[THREAD]]
                assert await _found(storage, {"stays": value}) == [THREAD]

    async def test_merged_metadata_can_be_replaced_as_a_whole(self, storage: Storage) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=None, metadata={"a": 1})
        await storage.threads.merge_thread_metadata(THREAD, {"b": 2})
        await storage.threads.update_thread_meta(THREAD, metadata={"c": 3})
        await storage.threads.merge_thread_metadata(THREAD, {"d": 4})
        assert (await stored_thread(storage)).metadata == {"c": 3, "d": 4}
        assert [await _found(storage, {key: value}) for key, value in (("a", 1), ("b", 2))] == [[], []]
        assert await _found(storage, {"c": 3, "d": 4}) == [THREAD]

    async def test_a_hundred_concurrent_metadata_merges_lose_no_key(self, storage: Storage) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE, metadata={"first": True})
        merges = (
            storage.threads.merge_thread_metadata(THREAD, {f"key.{number}": number}, user_id=ALICE)
            for number in range(100)
        )
        await asyncio.gather(*merges)
        expected = {"first": True} | {f"key.{number}": number for number in range(100)}
        assert (await stored_thread(storage)).metadata == expected
        assert await _found(storage, expected) == [THREAD]

    async def test_search_finds_one_value_after_fifty_concurrent_merges_of_one_key(
        self, storage: Storage
    ) -> None:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=None, metadata={"stays": 1})
        await asyncio.gather(
            *(storage.threads.merge_thread_metadata(THREAD, {"key": number}) for number in range(50))
        )
        metadata = (await stored_thread(storage)).metadata
        assert set(metadata) == {"stays", "key"}
        found = [number for number in range(50) if await _found(storage, {"key": number, "stays": 1})]
        assert found == [metadata["key"]]

    async def test_metadata_merge_creates_no_thread(self, storage: Storage) -> None:
        await storage.threads.merge_thread_metadata(THREAD, {"a": 1})
        await storage.threads.merge_thread_metadata(THREAD, {"a": 1}, user_id=ALICE)
        assert await storage.threads.search_threads(user_id=None) == []

    async def test_metadata_merge_rejects_invalid_metadata(self, storage: Storage) -> None:
        before = await storage.threads.ensure_thread(thread_id=THREAD, user_id=None, metadata={"a": 1})
        itself: dict[str, Any] = {}
        itself["k"] = itself
        others: tuple[Any, ...] = ("text", 5, [1], [("a", 1)], {1, 2}, {"k": itself}, b"x")
        for metadata in others:
            with case(type(metadata).__name__), pytest.raises((TypeError, ValueError)):
                await storage.threads.merge_thread_metadata(THREAD, metadata)
        assert await stored_thread(storage) == before
