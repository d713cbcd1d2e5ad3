"""Visibility of rows: for `AUTO`, a named user, and without a filter (CONTRACT section 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from ..contract.actor import AUTO
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, snapshot
from .methods import OWNED, Method
from .network import no_connections


def _calls_with_auto(method: Method) -> list[Mapping[str, Any]]:
    """The method's arguments with an explicit `AUTO`, and without `user_id` where `AUTO` is the default."""
    calls: list[Mapping[str, Any]] = [{**method.arguments, "user_id": AUTO}]
    if method.auto_by_default:
        calls.append({name: value for name, value in method.arguments.items() if name != "user_id"})
    return calls


def _names_method_and_cause(error: RuntimeError, method: Method) -> bool:
    return method.name in str(error) and "called with user_id=AUTO but no actor context is set" in str(error)


async def _given_three_owners(storage: Storage) -> None:
    """A run, a vote and a thread for each of alice, bob and no owner."""
    for owner in (ALICE, BOB, None):
        await given_run(storage, f"run-of-{owner}", user_id=owner)
        await storage.runs.record_token_usage(f"run-of-{owner}", caller="subagent", input_tokens=1)
        await storage.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, user_id=owner)
        await storage.threads.ensure_thread(thread_id=f"thread-of-{owner}", user_id=owner)


async def _seen(storage: Storage, user_id: Any) -> set[str]:
    """The names of all rows that the methods return for `user_id`."""
    runs, feedback, threads = storage.runs, storage.feedback, storage.threads
    seen = {row["run_id"] for row in await runs.list_by_thread(THREAD, user_id=user_id)}
    assert (await runs.token_usage_by_thread(THREAD, user_id=user_id))["total_runs"] == len(seen)
    seen |= {thread.thread_id for thread in await threads.search_threads(user_id=user_id)}
    seen |= {f"vote-of-{row['user_id']}" for row in await feedback.list_by_run(THREAD, RUN, user_id=user_id)}
    for owner in (ALICE, BOB, None):
        for found in (
            await runs.get(f"run-of-{owner}", user_id=user_id) is not None,
            await threads.get_thread(f"thread-of-{owner}", user_id=user_id) is not None,
        ):
            assert found == (f"run-of-{owner}" in seen)
    return seen


def _all_of(*owners: str | None) -> set[str]:
    return {f"{kind}-of-{owner}" for kind in ("run", "vote", "thread") for owner in owners}


class ActorContract(Contract):
    async def test_auto_without_an_actor_raises_an_error_that_names_the_method(
        self, storage: Storage
    ) -> None:
        """A `RuntimeError`, raised before anything is read or written."""
        await given_run(storage)
        await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        before = await snapshot(storage)
        for method in OWNED:
            for arguments in _calls_with_auto(method):
                with case(method.path, arguments):
                    with pytest.raises(RuntimeError) as no_actor:
                        await method.exactly(storage, arguments)
                    assert _names_method_and_cause(no_actor.value, method)
                    with acting_as(None), pytest.raises(RuntimeError) as no_id:
                        await method.exactly(storage, arguments)
                    assert _names_method_and_cause(no_id.value, method)
        assert await snapshot(storage) == before

    async def test_auto_without_an_actor_opens_no_connection(self, storage_config: Mapping[str, Any]) -> None:
        """The error is raised before anything is read or written."""
        storage = create_storage(storage_config)
        with no_connections():
            for method in OWNED:
                for arguments in _calls_with_auto(method):
                    with case(method.path, arguments), pytest.raises(RuntimeError, match="user_id=AUTO"):
                        await method.exactly(storage, arguments)
        await storage.aclose()

    async def test_named_user_sees_only_own_rows(self, storage: Storage) -> None:
        """A row of another user, or of no user, does not exist for a named user."""
        await _given_three_owners(storage)
        assert await _seen(storage, ALICE) == _all_of(ALICE)
        assert await _seen(storage, BOB) == _all_of(BOB)
        assert await _seen(storage, "carol") == set()

    async def test_user_id_none_is_no_filter(self, storage: Storage) -> None:
        await _given_three_owners(storage)
        assert await _seen(storage, None) == _all_of(ALICE, BOB, None)
        with acting_as(ALICE):
            assert await _seen(storage, None) == _all_of(ALICE, BOB, None)

    async def test_auto_means_the_current_actor(self, storage: Storage) -> None:
        await _given_three_owners(storage)
        for owner in (ALICE, BOB):
            with acting_as(owner):
                assert await _seen(storage, AUTO) == _all_of(owner)
        with acting_as("carol"):
            assert await _seen(storage, AUTO) == set()

    async def test_auto_is_the_default_of_the_documented_methods(self, storage: Storage) -> None:
        await _given_three_owners(storage)
        with acting_as(BOB):
            assert (await storage.runs.get("run-of-bob") or {}).get("user_id") == BOB
            assert await storage.runs.get("run-of-alice") is None
            assert [row["user_id"] for row in await storage.runs.list_by_thread(THREAD)] == [BOB]
            assert (await storage.runs.token_usage_by_thread(THREAD))["total_runs"] == 1
            assert await storage.threads.get_thread("thread-of-alice") is None
            assert [thread.user_id for thread in await storage.threads.search_threads()] == [BOB]
            assert (await storage.threads.ensure_thread(thread_id="new")).user_id == BOB
            await storage.runs.create("new", THREAD)
            assert await storage.runs.delete("run-of-alice") is False
            assert await storage.runs.delete("new") is True

    async def test_explicit_user_id_overrides_the_actor(self, storage: Storage) -> None:
        with acting_as(ALICE):
            await storage.runs.create(RUN, THREAD, user_id=BOB)
            assert await storage.runs.get(RUN) is None
            assert await storage.runs.get(RUN, user_id=BOB) is not None
            assert await storage.runs.delete(RUN) is False
            assert await storage.runs.delete(RUN, user_id=BOB) is True

    async def test_empty_user_id_is_a_distinct_user(self, storage: Storage) -> None:
        """An empty `user_id` is a user of its own, not "no filter"."""
        await _given_three_owners(storage)
        assert await _seen(storage, "") == set()
        await given_run(storage, "run-of-", user_id="")
        await storage.threads.ensure_thread(thread_id="thread-of-", user_id="")
        await storage.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, user_id="")
        assert await _seen(storage, "") == _all_of("")
        assert await _seen(storage, ALICE) == _all_of(ALICE)
        with acting_as(""):
            assert await _seen(storage, AUTO) == _all_of("")

    async def test_concurrent_tasks_have_separate_actors(self, storage: Storage) -> None:
        """The actor is held in a context variable, one for each task."""

        async def work(user_id: str) -> None:
            with acting_as(user_id):
                for number in range(5):
                    await storage.runs.create(f"{user_id}-{number}", THREAD)
                    await asyncio.sleep(0)
                    rows = await storage.runs.list_by_thread(THREAD)
                    assert {row["user_id"] for row in rows} == {user_id}
                    assert len(rows) == number + 1

        await asyncio.gather(*(work(f"user-{number}") for number in range(20)))

    async def test_deleting_another_users_run_returns_false_and_deletes_nothing(
        self, storage: Storage
    ) -> None:
        await _given_three_owners(storage)
        for owner in (BOB, None):
            with case(owner):
                assert await storage.runs.delete(f"run-of-{owner}", user_id=ALICE) is False
                assert await storage.runs.get(f"run-of-{owner}", user_id=None) is not None
        assert await storage.runs.delete("run-of-alice", user_id="") is False
        assert await storage.runs.delete("run-of-alice", user_id=ALICE) is True
        assert await storage.runs.delete("run-of-bob", user_id=None) is True
