"""Identifiers and limits: valid values work, invalid ones raise before any query (CONTRACT section 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ..contract.errors import StorageError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, snapshot, stored_thread
from .methods import LIMITED, METHODS, OPTIONAL, REQUIRED, Method
from .network import no_connections

_MAX_BYTES = 1_024

_INVALID_IDENTIFIERS: tuple[Any, ...] = (
    {"$ne": None},
    {"$gt": ""},
    {"$regex": ".*"},
    {"$exists": True},
    {},
    5,
    0,
    1.5,
    True,
    b"run-1",
    [],
    ["run-1"],
    ("run-1",),
    object(),
    "x" * (_MAX_BYTES + 1),
    "é" * (_MAX_BYTES // 2) + "x",
    "💬" * (_MAX_BYTES // 4 + 1),
)
_INVALID_REQUIRED_IDENTIFIERS = (*_INVALID_IDENTIFIERS, None, "")
_LONGEST = ("x" * _MAX_BYTES, "é" * (_MAX_BYTES // 2), "💬" * (_MAX_BYTES // 4), "$" + "." * (_MAX_BYTES - 1))

# None is allowed here, and an arbitrary object could be a host's AUTO.
_INVALID_OPTIONAL_IDENTIFIERS = [value for value in _INVALID_IDENTIFIERS if type(value) is not object]


def invalid_calls() -> list[tuple[Method, str, Any]]:
    """Each method with each of its identifiers and each invalid value."""
    calls: list[tuple[Method, str, Any]] = []
    for method in METHODS:
        for name in method.named(REQUIRED):
            calls += [(method, name, value) for value in _INVALID_REQUIRED_IDENTIFIERS]
        for name in method.named(OPTIONAL):
            calls += [(method, name, value) for value in _INVALID_OPTIONAL_IDENTIFIERS]
    return calls


async def _given(storage: Storage) -> list[object]:
    """Two rows of each kind, so that a filter that matches everything would be noticed."""
    for run_id, user_id in ((RUN, ALICE), ("run-2", BOB)):
        await given_run(storage, run_id, user_id=user_id)
        await storage.feedback.upsert(run_id=run_id, thread_id=THREAD, rating=1, user_id=user_id)
        await storage.run_events.put(
            thread_id=THREAD, run_id=run_id, event_type="ai_message", category="message"
        )
    for thread_id, user_id in ((THREAD, ALICE), ("thread-2", BOB)):
        await storage.threads.ensure_thread(thread_id=thread_id, user_id=user_id)
    return await snapshot(storage, THREAD, "thread-2")


class IdentifierContract(Contract):
    async def test_invalid_identifier_raises_and_changes_nothing(self, storage: Storage) -> None:
        """A `TypeError` or `ValueError`, also for an operator document such as `{"$ne": None}`."""
        before = await _given(storage)
        for method, name, value in invalid_calls():
            with case(method.path, name, repr(value)[:60]), pytest.raises((TypeError, ValueError)):
                await method(storage, **{name: value})
        assert await snapshot(storage, THREAD, "thread-2") == before

    async def test_invalid_identifier_raises_before_any_query(
        self, storage_config: Mapping[str, Any]
    ) -> None:
        """Also in a storage that has not connected yet."""
        storage = create_storage(storage_config)
        with no_connections():
            for method, name, value in invalid_calls():
                with case(method.path, name, repr(value)[:60]), pytest.raises((TypeError, ValueError)):
                    await method(storage, **{name: value})
        await storage.aclose()

    async def test_identifier_error_names_the_argument(self, storage: Storage) -> None:
        for method, name, value in invalid_calls():
            with case(method.path, name, repr(value)[:60]):
                with pytest.raises((TypeError, ValueError)) as raised:
                    await method(storage, **{name: value})
                assert name in str(raised.value)

    async def test_lone_surrogate_in_an_identifier_raises(self, storage: Storage) -> None:
        """An error of an argument, and not the `UnicodeEncodeError` of measuring its size in bytes."""
        before = await snapshot(storage)
        for method in METHODS:
            for name in method.named(REQUIRED | OPTIONAL):
                with case(method.path, name), pytest.raises((TypeError, ValueError, StorageError)) as raised:
                    await method(storage, **{name: "a\ud800"})
                assert not isinstance(raised.value, UnicodeError), (method.path, name)
        assert await snapshot(storage) == before

    async def test_every_method_accepts_identifiers_of_1024_bytes(self, storage: Storage) -> None:
        for number, longest in enumerate(_LONGEST):
            for method in METHODS:
                for name in method.named(REQUIRED | OPTIONAL):
                    with case(method.path, name, longest[:2]):
                        ids = method.named(frozenset({"run_id", "thread_id"}))
                        own = dict.fromkeys(ids, f"{number} {method.path} {name}")
                        await storage.threads.delete_thread(longest)
                        await storage.runs.delete(longest, user_id=None)
                        await method(storage, **{**own, name: longest})

    async def test_identifiers_of_1024_bytes_round_trip(self, storage: Storage) -> None:
        for longest in _LONGEST:
            with case(longest[:2]):
                names = dict.fromkeys(("assistant_id", "user_id", "follow_up_to_run_id"), longest)
                await storage.runs.create(longest, longest, **names)
                row = await storage.runs.get(longest, user_id=longest)
                assert row is not None
                assert {row[name] for name in (*names, "run_id", "thread_id")} == {longest}  # pyright: ignore[reportGeneralTypeIssues]
                assert await storage.runs.list_by_thread(longest, user_id=longest) == [row]
                vote = await storage.feedback.create(
                    run_id=longest, thread_id=longest, rating=1, user_id=longest, message_id=longest
                )
                assert {vote["run_id"], vote["thread_id"], vote["user_id"], vote["message_id"]} == {longest}
                assert await storage.feedback.list_by_run(longest, longest, user_id=longest) == [vote]
                thread = await storage.threads.create_thread_meta(
                    ThreadMetaCreate(thread_id=longest, user_id=longest, assistant_id=longest)
                )
                assert {thread.thread_id, thread.user_id, thread.assistant_id} == {longest}
                assert await storage.threads.get_thread(longest, user_id=longest) == thread

    async def test_optional_identifiers_may_be_empty(self, storage: Storage) -> None:
        """`user_id`, `assistant_id`, `message_id` and `follow_up_to_run_id` are any text or None."""
        row = await given_run(storage, user_id="", assistant_id="", follow_up_to_run_id="")
        assert (row["user_id"], row["assistant_id"], row["follow_up_to_run_id"]) == ("", "", "")
        vote = await storage.feedback.create(
            run_id=RUN, thread_id=THREAD, rating=1, user_id="", message_id=""
        )
        assert (vote["user_id"], vote["message_id"]) == ("", "")
        await storage.threads.create_thread_meta(
            ThreadMetaCreate(thread_id=THREAD, user_id="", assistant_id="")
        )
        thread = await stored_thread(storage)
        assert (thread.user_id, thread.assistant_id) == ("", "")

    async def test_operator_document_as_a_status_raises(self, storage: Storage) -> None:
        before = await _given(storage)
        for status in ({"$ne": None}, {"$gt": ""}, ["idle"], 5, True):
            value: Any = status
            with case(value):
                with pytest.raises((TypeError, ValueError)):
                    await storage.threads.search_threads(status=value, user_id=None)
                with pytest.raises((TypeError, ValueError)):
                    await storage.threads.update_thread_meta(THREAD, status=value)
                with pytest.raises((TypeError, ValueError)):
                    await storage.runs.update_status(RUN, value)
        assert await snapshot(storage, THREAD, "thread-2") == before

    async def test_limit_of_zero_returns_nothing(self, storage: Storage) -> None:
        await _given(storage)
        for method, name in LIMITED:
            with case(method.path, name):
                found = await method(storage, **{name: 0})
                assert (found == []) == (name == "limit")
                assert await method(storage) != []

    async def test_invalid_limit_raises(self, storage: Storage) -> None:
        """A negative limit is a `ValueError`, another type a `TypeError` or `ValueError`."""
        await _given(storage)
        for method, name in LIMITED:
            for value in (-1, -(10**12)):
                with case(method.path, name, value), pytest.raises(ValueError):  # noqa: PT011 - the promise is the type
                    await method(storage, **{name: value})
            for value in (True, False, 1.5, 1.0, "5", "", None, [1], {"$gt": 0}):
                with case(method.path, name, value), pytest.raises((TypeError, ValueError)):
                    await method(storage, **{name: value})

    async def test_invalid_limit_raises_before_any_query(self, storage_config: Mapping[str, Any]) -> None:
        storage = create_storage(storage_config)
        with no_connections():
            for method, name in LIMITED:
                for value in (-1, True, "5", None):
                    with case(method.path, name, value), pytest.raises((TypeError, ValueError)):
                        await method(storage, **{name: value})
        await storage.aclose()

    async def test_limit_may_exceed_32_bits(self, storage: Storage) -> None:
        await _given(storage)
        for method, name in LIMITED:
            for value in (2**31 - 1, 2**31, 10**12):
                with case(method.path, name, value):
                    found = await method(storage, **{name: value})
                    assert (found == await method(storage)) == (name == "limit")

    async def test_invalid_actor_id_raises(self, storage: Storage) -> None:
        before = await given_run(storage)
        with acting_as("x" * (_MAX_BYTES + 1)):
            for method in METHODS:
                if method.auto_by_default:
                    arguments = {name: value for name, value in method.arguments.items() if name != "user_id"}
                    with case(method.path), pytest.raises((TypeError, ValueError)):
                        await method.exactly(storage, arguments)
        assert await storage.runs.list_by_thread(THREAD, user_id=None) == [before]
