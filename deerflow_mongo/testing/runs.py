"""Runs: creating, reading, listing, deleting (CONTRACT section 3)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ..contract.errors import RunExistsError
from ..contract.protocols import Storage
from ..contract.rows import ACTIVE_STATUSES, ENDED_STATUSES, PENDING, RunRow
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, stored_run
from .values import assert_is_now, assert_row_time, exactly, now

_DAY = datetime(2026, 4, 22, tzinfo=UTC)

_DEFAULTS: dict[str, Any] = {
    "run_id": RUN,
    "thread_id": THREAD,
    "assistant_id": None,
    "user_id": ALICE,
    "status": "pending",
    "model_name": None,
    "multitask_strategy": "reject",
    "follow_up_to_run_id": None,
    "metadata": {},
    "kwargs": {},
    "updated_at": "",
    "started_at": None,
    "ended_at": None,
    "error": None,
    "total_input_tokens": 0,
    "total_output_tokens": 0,
    "total_tokens": 0,
    "llm_call_count": 0,
    "lead_agent_tokens": 0,
    "subagent_tokens": 0,
    "middleware_tokens": 0,
    "message_count": 0,
    "first_human_message": None,
    "last_ai_message": None,
}

_EVERY_FIELD: dict[str, Any] = {
    "status": "running",
    "created_at": "2026-04-22T03:26:38.123456+00:00",
    "started_at": "2026-04-22T03:26:39+00:00",
    "ended_at": "2026-04-22T03:26:40.000001+00:00",
    "assistant_id": "lead_agent",
    "user_id": BOB,
    "follow_up_to_run_id": "run-0",
    "metadata": {"a": 1, "b": {"c": [None, True, 1.5]}},
    "kwargs": {"input": {"messages": ["hi"]}, "config": {}},
    "model_name": "gpt-4.1",
    "multitask_strategy": "interrupt",
    "error": "an error text",
}


def _ids(rows: list[RunRow]) -> list[str]:
    return [row["run_id"] for row in rows]


def _of_every_user(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"user_id": None, **arguments}


async def _pending(storage: Storage, **arguments: Any) -> list[str]:
    return _ids(await storage.runs.list_pending(**arguments))


async def _listed(storage: Storage, **arguments: Any) -> list[str]:
    return _ids(await storage.runs.list_by_thread(THREAD, **_of_every_user(arguments)))


class RunStoreContract(Contract):
    async def test_new_run_has_the_documented_defaults(self, storage: Storage) -> None:
        """`status` "pending", `multitask_strategy` "reject", `created_at` now, `user_id` the actor."""
        since = now()
        with acting_as(ALICE):
            await storage.runs.create(RUN, THREAD)
            row = await storage.runs.get(RUN)
        assert row is not None
        assert_is_now(assert_row_time(row["created_at"]), since=since)
        assert exactly(dict(row)) == exactly({**_DEFAULTS, "created_at": row["created_at"]})

    async def test_create_stores_every_field(self, storage: Storage) -> None:
        await storage.runs.create(RUN, THREAD, **_EVERY_FIELD)
        assert exactly(dict(await stored_run(storage))) == exactly({**_DEFAULTS, **_EVERY_FIELD})

    async def test_optional_run_fields_accept_none(self, storage: Storage) -> None:
        names = ("created_at", "started_at", "ended_at", "assistant_id", "follow_up_to_run_id")
        nothing: dict[str, Any] = dict.fromkeys((*names, "metadata", "kwargs", "model_name", "error"))
        row = await given_run(storage, **nothing)
        assert exactly(dict(row)) == exactly({**_DEFAULTS, "created_at": row["created_at"]})

    async def test_run_created_for_none_has_no_owner(self, storage: Storage) -> None:
        with acting_as(ALICE):
            await storage.runs.create(RUN, THREAD, user_id=None)
        assert (await stored_run(storage))["user_id"] is None

    async def test_second_create_raises_and_leaves_the_first_run_unchanged(self, storage: Storage) -> None:
        """Of the same `run_id`, by any user and in any thread: `RunExistsError`."""
        first = await given_run(storage, metadata={"first": True})
        for user_id, thread_id in ((ALICE, THREAD), (BOB, THREAD), (None, "thread-2")):
            with case(user_id, thread_id):
                with pytest.raises(RunExistsError, match=RUN):
                    await storage.runs.create(
                        RUN, thread_id, user_id=user_id, status="running", metadata={"b": 1}
                    )
                assert await stored_run(storage) == first
        assert await storage.runs.list_by_thread("thread-2", user_id=None) == []

    async def test_exactly_one_of_fifty_concurrent_run_creates_succeeds(self, storage: Storage) -> None:
        creates = (
            storage.runs.create(RUN, THREAD, user_id=f"user-{number}", metadata={"number": number})
            for number in range(50)
        )
        results = await asyncio.gather(*creates, return_exceptions=True)
        winners = [number for number, result in enumerate(results) if result is None]
        assert len(winners) == 1
        assert sum(isinstance(result, RunExistsError) for result in results) == 49
        row = await stored_run(storage)
        assert (row["user_id"], row["metadata"]) == (f"user-{winners[0]}", {"number": winners[0]})

    async def test_get_of_unknown_run_returns_none(self, storage: Storage) -> None:
        assert await storage.runs.get("unknown", user_id=None) is None
        assert await storage.runs.get("unknown", user_id=ALICE) is None
        assert await storage.runs.delete("unknown", user_id=None) is False
        assert await storage.runs.list_by_thread("unknown", user_id=None) == []

    async def test_runs_of_a_thread_are_listed_newest_first(self, storage: Storage) -> None:
        """By `created_at`, whatever the order of creation and the offset of the given times."""
        given = {
            "second": "2026-04-22T12:00:00.000001Z",
            "fourth": "2026-04-22T11:59:59.999999+00:00",
            "first": "2026-04-22T23:00:00+09:00",
            "third": "2026-04-22T12:00:00",
            "last": "2026-04-22T12:00:00+05:30",
        }
        for run_id, created_at in given.items():
            await given_run(storage, run_id, created_at=created_at)
        await given_run(storage, "other thread", "thread-2")
        assert await _listed(storage) == ["first", "second", "third", "fourth", "last"]
        assert await _listed(storage, limit=2) == ["first", "second"]
        assert await _listed(storage, user_id=ALICE, limit=1) == ["first"]

    async def test_listed_run_equals_the_row_from_get(self, storage: Storage) -> None:
        await storage.runs.create(RUN, THREAD, **_EVERY_FIELD)
        assert await storage.runs.list_by_thread(THREAD, user_id=None) == [await stored_run(storage)]

    async def test_run_list_has_a_default_limit_of_100(self, storage: Storage) -> None:
        for number in range(105):
            await storage.runs.create(f"run-{number}", THREAD, user_id=ALICE)
        newest = [f"run-{number}" for number in range(104, 4, -1)]
        assert await _listed(storage) == newest
        assert await _listed(storage, user_id=ALICE) == newest

    async def test_runs_created_in_sequence_are_never_tied_or_swapped(self, storage: Storage) -> None:
        for number in range(200):
            await storage.runs.create(f"run-{number}", THREAD, user_id=ALICE)
        rows = await storage.runs.list_by_thread(THREAD, user_id=None, limit=1_000)
        assert _ids(rows) == [f"run-{number}" for number in reversed(range(200))]
        assert len({row["created_at"] for row in rows}) == 200
        assert await storage.runs.list_by_thread(THREAD, user_id=ALICE, limit=200) == rows

    async def test_runs_created_concurrently_are_listed_in_a_stable_order(self, storage: Storage) -> None:
        """By `created_at`, and in the same order at every call."""
        creates = (storage.runs.create(f"run-{number}", THREAD, user_id=ALICE) for number in range(200))
        await asyncio.gather(*creates)
        rows = await storage.runs.list_by_thread(THREAD, user_id=None, limit=1_000)
        moments = [assert_row_time(row["created_at"]) for row in rows]
        assert len(rows) == 200
        assert moments == sorted(moments, reverse=True)
        for limit in (1, 20, 199, 200):
            with case("limit", limit):
                assert await _listed(storage, limit=limit) == _ids(rows)[:limit]
                assert await _listed(storage, limit=limit, user_id=ALICE) == _ids(rows)[:limit]

    async def test_runs_with_equal_created_at_are_listed_in_creation_order(self, storage: Storage) -> None:
        """Also where the host passes the time."""
        expected = [f"run-{number * 7919 % 60}" for number in reversed(range(60))]
        for run_id in reversed(expected):
            await storage.runs.create(run_id, THREAD, user_id=ALICE, created_at=_DAY)
        assert await _listed(storage) == expected
        assert [(await _listed(storage, limit=limit))[-1] for limit in range(1, 61)] == expected

    async def test_update_does_not_change_the_order_of_runs(self, storage: Storage) -> None:
        for number in range(10):
            await given_run(storage, f"run-{number}", created_at=_DAY + timedelta(seconds=number // 2))
        before = await _listed(storage)
        for number in (0, 5, 3):
            await storage.runs.update_status(f"run-{number}", "running", metadata={"a": "x" * 1_000})
            await storage.runs.record_token_usage(f"run-{number}", caller="subagent", model_name="m")
        assert await _listed(storage) == before

    async def test_run_limit_counts_only_the_users_runs(self, storage: Storage) -> None:
        """A user's 5 runs behind 25 of other users are all listed at limit 20."""
        for number in range(5):
            await given_run(storage, f"alice-{number}", user_id=ALICE)
        for number in range(25):
            await given_run(storage, f"bob-{number}", user_id=BOB if number % 2 else None)
        expected = [f"alice-{number}" for number in reversed(range(5))]
        assert await _listed(storage, user_id=ALICE, limit=20) == expected
        assert await _listed(storage, user_id=ALICE, limit=3) == expected[:3]
        with acting_as(ALICE):
            assert _ids(await storage.runs.list_by_thread(THREAD, limit=20)) == expected

    async def test_delete_removes_only_the_named_run(self, storage: Storage) -> None:
        for run_id in ("run-1", "run-11", "RUN-1"):
            await given_run(storage, run_id)
        assert await storage.runs.delete("run-1", user_id=ALICE) is True
        assert await storage.runs.get("run-1", user_id=None) is None
        assert sorted(await _listed(storage)) == ["RUN-1", "run-11"]
        assert await storage.runs.delete("run-1", user_id=ALICE) is False

    async def test_exactly_one_of_a_hundred_concurrent_run_deletes_succeeds(self, storage: Storage) -> None:
        await given_run(storage)
        results = await asyncio.gather(*(storage.runs.delete(RUN, user_id=ALICE) for _ in range(100)))
        assert sorted(results) == [False] * 99 + [True]

    async def test_ids_are_compared_exactly(self, storage: Storage) -> None:
        """No case folding, trimming or pattern matching: ids are plain text."""
        ids = ["a", "A", "a ", " a", "á", "a\u0301", "a%", "a_", "a*", ".", "$a", "a\0", "a\0b", "NULL", "0"]
        for run_id in ids:
            await storage.runs.create(run_id, THREAD, user_id=f"user {run_id}")
        for run_id in ids:
            with case(run_id):
                row = await stored_run(storage, run_id)
                assert (row["run_id"], row["user_id"]) == (run_id, f"user {run_id}")
                rows = await storage.runs.list_by_thread(THREAD, user_id=f"user {run_id}")
                assert _ids(rows) == [run_id]

    async def test_pending_runs_of_every_user_are_listed_oldest_first(self, storage: Storage) -> None:
        """All of them, whoever the actor is, and no run of another status."""
        owners = (ALICE, BOB, None, "")
        for number in range(120):
            thread_id, owner = f"thread-{number % 7}", owners[number % 4]
            await given_run(storage, f"run-{number}", thread_id, user_id=owner)
        for status in (*ACTIVE_STATUSES, *ENDED_STATUSES, "odd"):
            if status != PENDING:
                await given_run(storage, f"run with status {status}", status=status)
        rows = await storage.runs.list_pending()
        assert _ids(rows) == [f"run-{number}" for number in range(120)]
        assert rows[7] == await stored_run(storage, "run-7")
        with acting_as(ALICE):
            assert await storage.runs.list_pending() == rows

    async def test_pending_list_follows_the_status(self, storage: Storage) -> None:
        for run_id in ("started", "pending", "completed", "failed", "deleted"):
            await given_run(storage, run_id)
        await storage.runs.update_status("started", "running")
        await storage.runs.update_status("pending", PENDING, metadata={"a": 1}, error="not started")
        await storage.runs.update_run_completion("completed", status="success")
        await storage.runs.set_error("failed", "broken")
        await storage.runs.delete("deleted", user_id=None)
        await given_run(storage, "pending again", status="running")
        await storage.runs.update_status("pending again", PENDING)
        assert await _pending(storage) == ["pending", "pending again"]

    async def test_pending_runs_are_filtered_by_created_at(self, storage: Storage) -> None:
        """At or before `before`, which is now by default; equal times in the order of creation."""
        moments = {"later": 2, "one": 1, "another": 1, "first": 0}
        for run_id, seconds in moments.items():
            await given_run(storage, run_id, created_at=_DAY + timedelta(seconds=seconds))
        await given_run(storage, "in the future", created_at=now() + timedelta(hours=1))
        a_tick = timedelta(microseconds=1)
        expected = ["first", "one", "another", "later"]
        assert await _pending(storage) == expected
        assert await _pending(storage, before=None) == expected
        assert await _pending(storage, before=_DAY) == expected[:1]
        assert await _pending(storage, before=_DAY - a_tick) == []
        assert await _pending(storage, before=_DAY + timedelta(seconds=1)) == expected[:3]
        assert await _pending(storage, before=_DAY + timedelta(seconds=2) - a_tick) == expected[:3]
        assert await _pending(storage, before="2026-04-22T09:00:01+09:00") == expected[:3]
        assert await _pending(storage, before="2999-01-01T00:00:00Z") == [*expected, "in the future"]

    async def test_list_pending_rejects_an_invalid_time(self, storage: Storage) -> None:
        others: tuple[Any, ...] = ("yesterday", "", 5, 1.5, True, {"$gt": ""}, ["2026-04-22"])
        for before in others:
            with case(before), pytest.raises(ValueError):  # noqa: PT011 - the promise is the type
                await storage.runs.list_pending(before=before)
