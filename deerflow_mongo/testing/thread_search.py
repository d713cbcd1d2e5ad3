"""Searching threads by owner, status, assistant and metadata, with pages (CONTRACT section 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ..contract.errors import InvalidPayloadError
from ..contract.protocols import Storage
from ..contract.rows import ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, Contract, acting_as

_VALUES: dict[str, Any] = {
    "one": 1,
    "one float": 1.0,
    "true": True,
    "one text": "1",
    "zero": 0,
    "false": False,
    "none": None,
    "empty text": "",
    "none text": "None",
    "null text": "null",
    "empty list": [],
    "empty dict": {},
    "list": [1, 2],
    "list reversed": [2, 1],
    "list longer": [1, 2, 3],
    "list of true": [True, 2],
    "dict": {"a": 1, "b": {"c": [1], "d": None}},
    "dict of true": {"a": True, "b": {"c": [1], "d": None}},
    "dict of float": {"a": 1, "b": {"c": [1.0], "d": None}},
    "dict shorter": {"a": 1},
    "greater": {"$gt": ""},
    "not none": {"$ne": None},
    "exists": {"$exists": True},
    "in": {"$in": [1, 2]},
    "regex": {"$regex": ".*"},
    "expression": "$metadata.key",
    "root": "$$ROOT",
    "pattern": "/.*/",
    "wildcard": "%",
    "big": 2**31,
    "bigger": 2**63,
    "bigger by one": 2**63 + 1,
    "as a float": float(2**63),
    "surrogate": "\U0001f4ac",
    "nul": "a\0b",
    "accent": "é",
    "accent in two": "e\u0301",
    "upper": "KEY",
    "lower": "key",
    "trailing": "key ",
    "reference": {"$ref": "c", "$id": 1},
    "marked": {"_json": "1"},
    "marked text": '{"_json":"1"}',
    "fraction": 0.1,
    "long": "x" * 20_000,
    "long too": "x" * 19_999 + "y",
}
"""Values, no two of which are equal in type and content."""

_KEYS = (
    "plain",
    "",
    ".",
    "a.b",
    "a",
    "$where",
    "$or",
    "$expr",
    "_id",
    "user_id",
    "0",
    "key with spaces",
    "é",
    "a\0b",
    "metadata",
    "thread_id",
    "k" * 2_000,
)


async def _found(storage: Storage, **arguments: Any) -> list[str]:
    wanted: dict[str, Any] = {"user_id": None, "limit": 1_000, **arguments}
    return [thread.thread_id for thread in await storage.threads.search_threads(**wanted)]


async def _given(storage: Storage, thread_id: str, **fields: Any) -> None:
    await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=thread_id, **fields))


class ThreadSearchContract(Contract):
    async def test_search_lists_threads_newest_first(self, storage: Storage) -> None:
        """By `created_time`, in the same order at every call, whatever was updated since."""
        for number in range(60):
            await _given(storage, f"thread-{number}", user_id=ALICE)
        await storage.threads.sync_thread_title(thread_id="thread-7", title="x" * 10_000)
        await storage.threads.ensure_thread_running(thread_id="thread-9")
        expected = [f"thread-{number}" for number in reversed(range(60))]
        assert await _found(storage) == expected
        assert await _found(storage, user_id=ALICE) == expected
        found = await storage.threads.search_threads(user_id=ALICE, limit=1)
        assert found == [await storage.threads.get_thread_meta("thread-59")]

    async def test_search_can_list_threads_last_updated_first(self, storage: Storage) -> None:
        """Every update moves its thread to the front; a read does not."""
        for number in range(9):
            await _given(storage, f"thread-{number}", user_id=ALICE, metadata={"k": 1})
        threads, order = storage.threads, [f"thread-{number}" for number in reversed(range(9))]
        assert await _found(storage, order="last_updated_first") == order
        updates: list[Callable[[str], Awaitable[object]]] = [
            lambda thread_id: threads.update_thread_meta(thread_id, status="busy"),
            lambda thread_id: threads.merge_thread_metadata(thread_id, {"l": 2}),
            lambda thread_id: threads.sync_thread_title(thread_id=thread_id, title="x" * 10_000),
            lambda thread_id: threads.sync_thread_status(thread_id=thread_id, status="idle"),
            lambda thread_id: threads.sync_thread_metadata(thread_id=thread_id, metadata={"k": 1}),
            lambda thread_id: threads.ensure_thread_running(thread_id=thread_id),
        ]
        for number, update in enumerate(updates):
            thread_id = f"thread-{number * 2 % 9}"
            await update(thread_id)
            order.remove(thread_id)
            order.insert(0, thread_id)
            for wanted in ({}, {"user_id": ALICE}, {"metadata": {"k": 1}, "user_id": ALICE}):
                with case(number, wanted):
                    assert await _found(storage, order="last_updated_first", **wanted) == order
        await threads.get_thread("thread-8", user_id=ALICE)
        await threads.ensure_thread(thread_id="thread-8", user_id=ALICE)
        assert await _found(storage, order="last_updated_first") == order
        assert await _found(storage) == await _found(storage, order="newest_first")
        assert await _found(storage) == [f"thread-{number}" for number in reversed(range(9))]

    async def test_concurrently_updated_threads_have_a_stable_order(self, storage: Storage) -> None:
        """By `updated_time`, then by id; pages cover every thread exactly once."""
        for number in range(60):
            await _given(storage, f"thread-{number}", user_id=ALICE if number % 3 else BOB)
        await asyncio.gather(
            *(storage.threads.update_thread_meta(f"thread-{number}", status="busy") for number in range(60))
        )
        for user_id in (None, ALICE):
            with case(user_id):
                found = await storage.threads.search_threads(
                    user_id=user_id, order="last_updated_first", limit=1_000
                )
                keys = [(thread.updated_time, thread.thread_id) for thread in found]
                assert keys == sorted(keys, reverse=True)
                pages = [
                    await _found(storage, user_id=user_id, order="last_updated_first", limit=7, offset=at)
                    for at in range(0, 63, 7)
                ]
                assert [thread_id for page in pages for thread_id in page] == [key[1] for key in keys]

    async def test_unknown_thread_order_raises(self, storage: Storage) -> None:
        await _given(storage, "one")
        others: tuple[Any, ...] = (
            "",
            "oldest_first",
            "NEWEST_FIRST",
            "updated_at",
            "-updated",
            None,
            1,
            True,
            b"newest_first",
            {"$ne": None},
            ["newest_first"],
        )
        for order in others:
            with case(order), pytest.raises((TypeError, ValueError), match="order"):
                await _found(storage, order=order)

    async def test_search_has_a_default_limit_of_100(self, storage: Storage) -> None:
        await asyncio.gather(*(_given(storage, f"thread-{number}", user_id=ALICE) for number in range(105)))
        all_threads = await storage.threads.search_threads(user_id=None, limit=1_000)
        assert len(all_threads) == 105
        assert await storage.threads.search_threads(user_id=None) == all_threads[:100]
        with acting_as(ALICE):
            assert await storage.threads.search_threads() == all_threads[:100]

    async def test_search_pages_cover_every_thread_exactly_once(self, storage: Storage) -> None:
        """`offset` counts only the user's threads."""
        for number in range(50):
            await _given(
                storage, f"thread-{number}", user_id=ALICE if number % 2 else BOB, status=f"s{number % 4}"
            )
        for arguments in ({}, {"user_id": ALICE}, {"user_id": ALICE, "status": "s1"}):
            all_ids = await _found(storage, **arguments)
            for size in (1, 7, 50):
                with case(arguments, size):
                    pages = [
                        await _found(storage, **arguments, limit=size, offset=at) for at in range(0, 50, size)
                    ]
                    assert [thread_id for page in pages for thread_id in page] == all_ids
            assert await _found(storage, **arguments, offset=len(all_ids)) == []
            assert await _found(storage, **arguments, offset=len(all_ids) - 1) == all_ids[-1:]

    async def test_search_limit_counts_only_the_users_threads(self, storage: Storage) -> None:
        for number in range(5):
            await _given(storage, f"alice-{number}", user_id=ALICE, metadata={"k": 1})
        for number in range(25):
            await _given(storage, f"other-{number}", user_id=BOB if number % 2 else None, metadata={"k": 1})
        expected = [f"alice-{number}" for number in reversed(range(5))]
        assert await _found(storage, user_id=ALICE, limit=20) == expected
        assert await _found(storage, user_id=ALICE, limit=20, metadata={"k": 1}) == expected

    async def test_search_treats_a_blank_user_id_as_a_user(self, storage: Storage) -> None:
        """And returns that user's threads, not those of every user."""
        for owner in (ALICE, None):
            await _given(storage, f"of {owner}", user_id=owner)
        for blank in ("", " ", "   ", "\t"):
            with case(blank):
                assert await _found(storage, user_id=blank) == []
        await _given(storage, "of blank", user_id="   ")
        assert await _found(storage, user_id="   ") == ["of blank"]

    async def test_search_matches_status_and_assistant_exactly(self, storage: Storage) -> None:
        for number in range(8):
            await _given(
                storage,
                f"thread-{number}",
                status="busy" if number % 2 else "idle",
                assistant_id=("a", "b", None, "a b")[number % 4],
            )
        assert await _found(storage, status="busy") == [f"thread-{number}" for number in (7, 5, 3, 1)]
        assert await _found(storage, assistant_id="a") == ["thread-4", "thread-0"]
        assert await _found(storage, status="busy", assistant_id="b") == ["thread-5", "thread-1"]
        for arguments in (
            {"status": "bus"},
            {"status": "BUSY"},
            {"assistant_id": "a "},
            {"assistant_id": ".*"},
        ):
            with case(arguments):
                assert await _found(storage, **arguments) == []
        assert await _found(storage, status="busy", assistant_id="a") == []

    async def test_search_ignores_a_blank_status_or_assistant(self, storage: Storage) -> None:
        await _given(storage, "one", status="idle", assistant_id="a")
        await _given(storage, "two", status="busy")
        for blank in ("", "   ", "\t\n", None):
            with case(blank):
                assert await _found(storage, status=blank) == ["two", "one"]
                assert await _found(storage, assistant_id=blank) == ["two", "one"]
                assert await _found(storage, status=blank, assistant_id=blank, metadata={}) == ["two", "one"]
                assert await _found(storage, status="idle", assistant_id=blank) == ["one"]

    async def test_metadata_filter_matches_equal_type_and_content(self, storage: Storage) -> None:
        """1 is not True, None is not "missing"; operators are data."""
        await _given(storage, "missing")
        await _given(storage, "other key", metadata={"other": 1})
        await _given(storage, "nested key", metadata={"outer": {"key": 1}})
        for name, value in _VALUES.items():
            await _given(storage, name, metadata={"key": value, "more": name})
        for name, value in _VALUES.items():
            with case(name, repr(value)[:100]):
                assert await _found(storage, metadata={"key": value}) == [name]
                assert await _found(storage, metadata={"key": value, "more": name}) == [name]
                assert await _found(storage, metadata={"key": value, "more": "x"}) == []
                assert await _found(storage, metadata={"key": value, "missing": None}) == []

    async def test_metadata_filter_accepts_any_key(self, storage: Storage) -> None:
        """Operators and dots in keys are data; a path does not match a nested key."""
        for number, key in enumerate(_KEYS):
            await _given(storage, f"thread-{number}", metadata={key: "value", "number": number})
        await _given(storage, "nested", metadata={"x": {"b": "value"}, "user": {"id": "value"}})
        for number, key in enumerate(_KEYS):
            with case(key[:20]):
                assert await _found(storage, metadata={key: "value"}) == [f"thread-{number}"]
                assert await _found(storage, metadata={key: "value", "number": number}) == [
                    f"thread-{number}"
                ]
                assert await _found(storage, metadata={key: "other"}) == []
                assert await _found(storage, metadata={key: {"$ne": None}}) == []
        for path in ("x.b", "user.id", "x", "metadata.plain", "plain.0"):
            with case(path):
                assert await _found(storage, metadata={path: "value"}) == []

    async def test_metadata_filter_ignores_the_order_of_keys(self, storage: Storage) -> None:
        await _given(storage, "one", metadata={"k": {"a": 1, "b": {"c": 2, "d": 3}}, "l": 1})
        reordered = {"l": 1, "k": {"b": {"d": 3, "c": 2}, "a": 1}}
        assert await _found(storage, metadata=reordered) == ["one"]
        assert await _found(storage, metadata={"k": [{"a": 1, "b": {"c": 2, "d": 3}}]}) == []

    async def test_metadata_filter_does_not_match_parts_of_a_value(self, storage: Storage) -> None:
        """A list does not match one of its items, a dict not one of its keys."""
        await _given(storage, "list", metadata={"k": [1, [2]], "d": {"a": 1, "b": 2}})
        for metadata in ({"k": 1}, {"k": [1]}, {"k": [2]}, {"d": {"a": 1}}, {"d": ["a", 1]}, {"d.a": 1}):
            with case(metadata):
                assert await _found(storage, metadata=metadata) == []

    async def test_metadata_filter_finds_metadata_of_every_write_method(self, storage: Storage) -> None:
        metadata = {"a.b": {"$c": 1}}
        await _given(storage, "created", metadata=metadata)
        await storage.threads.ensure_thread(thread_id="ensured", metadata=metadata, user_id=ALICE)
        await storage.threads.ensure_thread_running(thread_id="running", metadata=metadata)
        for thread_id in ("updated", "synced"):
            await _given(storage, thread_id, metadata={"old": 1})
        await storage.threads.update_thread_meta("updated", metadata=metadata)
        await storage.threads.sync_thread_metadata(thread_id="synced", metadata=metadata)
        expected = ["created", "ensured", "running", "synced", "updated"]
        assert sorted(await _found(storage, metadata=metadata)) == expected
        assert await _found(storage, metadata={"old": 1}) == []

    async def test_search_combines_all_filters(self, storage: Storage) -> None:
        fields: dict[str, Any] = {
            "user_id": ALICE,
            "status": "busy",
            "assistant_id": "a",
            "metadata": {"k": 1, "l": 2},
        }
        await _given(storage, "wanted", **fields)
        others: dict[str, Any] = {
            "user_id": BOB,
            "status": "idle",
            "assistant_id": "b",
            "metadata": {"k": 1, "l": 3},
        }
        for name, value in others.items():
            await _given(storage, name, **{**fields, name: value})
        assert await _found(storage, **fields) == ["wanted"]
        assert await _found(storage, **{**fields, "metadata": {"k": 1}}) == ["metadata", "wanted"]

    async def test_metadata_filter_works_with_thousands_of_keys(self, storage: Storage) -> None:
        many = {f"key-{number}": number for number in range(2_000)}
        await _given(storage, "many", metadata=many)
        await _given(storage, "almost", metadata={**many, "key-1999": "x"})
        assert await _found(storage, metadata={"key-1999": 1_999}) == ["many"]
        assert await _found(storage, metadata={f"key-{number}": number for number in range(200)}) == [
            "almost",
            "many",
        ]

    async def test_metadata_filter_rejects_an_invalid_payload(self, storage: Storage) -> None:
        itself: list[Any] = []
        itself.append(itself)
        for metadata in ({"k": itself}, {"k": {"l": itself}}):
            with (
                case(type(metadata["k"]).__name__),
                pytest.raises(InvalidPayloadError, match="metadata"),
            ):
                await _found(storage, metadata=metadata)
