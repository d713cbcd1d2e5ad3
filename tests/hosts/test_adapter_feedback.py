"""What DeerFlow may rely on of its `FeedbackRepository`, on every storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from .gateway_process import needs_deerflow
from .host_stores import (
    FEEDBACK,
    OURS,
    acting,
    expect_differences,
    open_store,
    signature_faults,
    stale_differences,
)

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

KEYS = {
    "feedback_id",
    "run_id",
    "thread_id",
    "user_id",
    "message_id",
    "rating",
    "comment",
    "created_at",
}
RUN = {"thread_id": "thread", "run_id": "run"}


@pytest.fixture(params=FEEDBACK.backends)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, mongodb_url: str, database_name: str
) -> AsyncGenerator[Any]:
    expect_differences(request, FEEDBACK)
    opened = open_store(FEEDBACK, request.param, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as feedback:
        yield feedback


@pytest.fixture
async def ours(tmp_path: Path, mongodb_url: str, database_name: str) -> AsyncGenerator[Any]:
    opened = open_store(FEEDBACK, OURS, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as feedback:
        yield feedback


async def create(store: Any, user_id: str | None = "alice", **fields: Any) -> dict[str, Any]:
    return await store.create(**{**RUN, "rating": 1, "user_id": user_id, **fields})


async def vote(store: Any, user_id: str | None = "alice", **fields: Any) -> dict[str, Any]:
    return await store.upsert(**{**RUN, "rating": 1, "user_id": user_id, **fields})


async def all_of(store: Any, run_id: str = "run") -> list[dict[str, Any]]:
    return await store.list_by_run("thread", run_id, user_id=None)


def users(rows: list[dict[str, Any]]) -> list[str]:
    return [row["user_id"] for row in rows]


# -- the interface ---------------------------------------------------------------------------------


def test_adapter_has_every_method_with_deerflows_signature() -> None:
    assert signature_faults(FEEDBACK) == []
    assert stale_differences(FEEDBACK, globals()) == []


# -- create and get --------------------------------------------------------------------------------


async def test_create_stores_every_field_and_returns_the_row(store: Any) -> None:
    given = {**RUN, "rating": -1, "user_id": "alice", "message_id": "message", "comment": "Ünï"}
    row = await store.create(**given)
    assert {name: row[name] for name in given} == given
    assert await store.get(row["feedback_id"], user_id=None) == row


async def test_row_has_the_keys_of_the_sql_row(store: Any) -> None:
    row = await create(store)
    assert set(row) == set(await vote(store, "bob")) == KEYS
    assert set(await store.get(row["feedback_id"], user_id=None)) == KEYS
    assert [set(item) for item in await all_of(store)] == [KEYS, KEYS]
    assert set((await store.list_by_thread_grouped("thread", user_id="bob"))["run"]) == KEYS


async def test_time_has_an_offset(store: Any) -> None:
    row = await create(store)
    assert datetime.fromisoformat(row["created_at"]).tzinfo is not None


@pytest.mark.parametrize("rating", [0, 2, -2, 5])
async def test_rating_other_than_one_and_minus_one_is_refused(store: Any, rating: int) -> None:
    with pytest.raises(ValueError, match="rating"):
        await create(store, rating=rating)
    with pytest.raises(ValueError, match="rating"):
        await vote(store, rating=rating)
    assert await all_of(store) == []


@pytest.mark.parametrize("rating", [True, 1.0])
async def test_rating_that_only_equals_one_is_refused(store: Any, rating: Any) -> None:
    with pytest.raises(ValueError, match="rating"):
        await create(store, rating=rating)


async def test_comment_and_message_id_are_optional(store: Any) -> None:
    assert (await create(store))["comment"] is None
    assert (await create(store, "bob"))["message_id"] is None


@pytest.mark.parametrize("missing", ["missing", "", "x" * 5_000], ids=["missing", "empty", "long"])
async def test_missing_ids_are_not_found(store: Any, missing: str) -> None:
    assert await store.get(missing, user_id=None) is None
    assert await store.delete(missing, user_id=None) is False
    assert await store.list_by_run("thread", missing, user_id=None) == []
    assert await store.list_by_thread(missing, user_id=None) == []
    assert await store.list_by_thread_grouped(missing, user_id=None) == {}
    assert await store.list_by_thread_grouped(missing, user_id="alice") == {}
    assert await store.delete_by_run(thread_id="thread", run_id=missing, user_id="alice") is False


# -- users -----------------------------------------------------------------------------------


async def test_user_sees_and_deletes_own_rows_only(store: Any) -> None:
    hers = (await create(store, "alice"))["feedback_id"]
    his = (await create(store, "bob"))["feedback_id"]
    assert await store.get(his, user_id="alice") is None
    assert await store.delete(his, user_id="alice") is False
    assert (await store.get(hers, user_id="alice"))["feedback_id"] == hers
    assert users(await store.list_by_run("thread", "run", user_id="bob")) == ["bob"]
    assert users(await store.list_by_thread("thread", user_id="bob")) == ["bob"]
    assert await store.delete(hers, user_id="alice") is True
    assert await store.delete(his, user_id=None) is True
    assert await all_of(store) == []


async def test_default_user_is_the_bound_user(store: Any) -> None:
    alice = UUID(int=1)
    with acting(alice):
        row = await store.create(**RUN, rating=1)
        assert row["user_id"] == str(alice)
    with acting("bob"):
        assert await store.get(row["feedback_id"]) is None
        assert await store.list_by_run("thread", "run") == []
        assert await store.list_by_thread("thread") == []
        assert await store.list_by_thread_grouped("thread") == {}
        assert await store.delete(row["feedback_id"]) is False
        assert await store.delete_by_run(**RUN) is False
        assert (await store.upsert(**RUN, rating=1))["user_id"] == "bob"
        assert list(await store.list_by_thread_grouped("thread")) == ["run"]
        assert await store.delete_by_run(**RUN) is True
    with acting(alice):
        assert users(await store.list_by_run("thread", "run")) == [str(alice)]
        assert await store.delete(row["feedback_id"]) is True


async def test_user_id_may_be_a_uuid(store: Any) -> None:
    alice: Any = UUID(int=1)
    row = await create(store, alice)
    assert row["user_id"] == str(alice)
    assert await store.list_by_thread("thread", user_id=alice) == [row]


async def test_default_user_without_a_bound_user_is_an_error(store: Any) -> None:
    for call in (
        lambda: store.create(**RUN, rating=1),
        lambda: store.upsert(**RUN, rating=1),
        lambda: store.get("id"),
        lambda: store.delete("id"),
        lambda: store.list_by_run("thread", "run"),
        lambda: store.list_by_thread("thread"),
        lambda: store.list_by_thread_grouped("thread"),
        lambda: store.delete_by_run(**RUN),
    ):
        with pytest.raises(RuntimeError, match="user"):
            await call()


# -- lists -----------------------------------------------------------------------------------------


async def test_lists_are_oldest_first(store: Any) -> None:
    for user_id in ("c", "a", "b"):
        await create(store, user_id)
    await create(store, "d", run_id="other")
    await create(store, "e", thread_id="elsewhere")
    assert users(await all_of(store)) == ["c", "a", "b"]
    assert users(await store.list_by_run("thread", "run", limit=2, user_id=None)) == ["c", "a"]
    assert users(await store.list_by_thread("thread", user_id=None)) == ["c", "a", "b", "d"]
    assert users(await store.list_by_thread("thread", limit=1, user_id=None)) == ["c"]


async def test_default_limit_of_lists_is_100(store: Any) -> None:
    for number in range(101):
        await create(store, f"user{number}")
    assert len(await all_of(store)) == 100
    assert len(await store.list_by_thread("thread", user_id=None)) == 100


async def test_users_newest_rows_by_run(store: Any) -> None:
    await vote(store, run_id="a")
    await vote(store, run_id="b", rating=-1)
    await vote(store, "bob", run_id="a", rating=-1)
    grouped = await store.list_by_thread_grouped("thread", user_id="alice")
    assert {run_id: row["rating"] for run_id, row in grouped.items()} == {"a": 1, "b": -1}
    assert users(list(grouped.values())) == ["alice", "alice"]


async def test_newest_rows_of_all_users_by_run(store: Any) -> None:
    await vote(store, run_id="a")
    await vote(store, run_id="b")
    await vote(store, "bob", run_id="a", rating=-1)
    grouped = await store.list_by_thread_grouped("thread", user_id=None)
    assert {run_id: row["user_id"] for run_id, row in grouped.items()} == {"a": "bob", "b": "alice"}


async def test_votes_are_counted(store: Any) -> None:
    for user_id, rating in (("a", 1), ("b", 1), ("c", -1)):
        await vote(store, user_id, rating=rating)
    await vote(store, "a", run_id="other")
    assert await store.aggregate_by_run("thread", "run") == {
        "run_id": "run",
        "total": 3,
        "positive": 2,
        "negative": 1,
    }
    for missing in ("missing", "", "x" * 5_000):
        nothing = await store.aggregate_by_run("thread", missing)
        assert nothing == {"run_id": missing, "total": 0, "positive": 0, "negative": 0}


# -- the one vote ----------------------------------------------------------------------------------


@pytest.mark.parametrize("user_id", ["alice", None])
async def test_second_vote_replaces_the_first(store: Any, user_id: str | None) -> None:
    first = await vote(store, user_id, comment="good")
    second = await vote(store, user_id, rating=-1)
    assert second["feedback_id"] == first["feedback_id"]
    assert (second["rating"], second["comment"]) == (-1, None)
    assert second["created_at"] > first["created_at"]
    assert await all_of(store) == [second]


async def test_vote_replaces_a_created_row(store: Any) -> None:
    row = await create(store)
    assert (await vote(store, rating=-1))["feedback_id"] == row["feedback_id"]


async def test_vote_replaces_a_row_created_on_a_message(store: Any) -> None:
    row = await create(store, message_id="message")
    assert (await vote(store, rating=-1))["feedback_id"] == row["feedback_id"]


async def test_user_may_have_feedback_on_several_messages_of_a_run(store: Any) -> None:
    await create(store, message_id="one")
    await create(store, message_id="two")
    assert [row["message_id"] for row in await all_of(store)] == ["one", "two"]


@pytest.mark.parametrize("message_id", [None, "message"])
@pytest.mark.parametrize("user_id", ["alice", None])
async def test_vote_is_deleted(store: Any, user_id: str | None, message_id: str | None) -> None:
    await create(store, user_id, message_id=message_id)
    await vote(store, "bob")
    assert await store.delete_by_run(**RUN, user_id=user_id) is True
    assert await store.delete_by_run(**RUN, user_id=user_id) is False
    assert users(await all_of(store)) == ["bob"]


async def test_anonymous_vote_is_deleted(store: Any) -> None:
    await vote(store)
    assert await store.delete_by_run(**RUN, user_id=None) is False
    await vote(store, None)
    assert await store.delete_by_run(**RUN, user_id=None) is True
    assert users(await all_of(store)) == ["alice"]


# -- ours alone ------------------------------------------------------------------------------------


async def test_concurrent_votes_leave_one(ours: Any) -> None:
    rows = await asyncio.gather(*(vote(ours, rating=1 - 2 * (i % 2)) for i in range(20)))
    assert len({row["feedback_id"] for row in rows}) == 1
    assert len(await all_of(ours)) == 1


async def test_vote_is_deleted_before_feedback_on_messages(ours: Any) -> None:
    await vote(ours)
    await create(ours, message_id="message")
    assert await ours.delete_by_run(**RUN, user_id="alice") is True
    assert [row["message_id"] for row in await all_of(ours)] == ["message"]


# -- what DeerFlow calls from release 2.0 on -------------------------------------------------------


async def test_newest_feedback_on_each_of_some_runs(ours: Any) -> None:
    await create(ours, rating=1)
    await create(ours, rating=-1)
    await create(ours, "bob", rating=1)
    await create(ours, run_id="other", rating=1)
    read = ours.list_by_run_ids
    found = await read("thread", {"run", "none", "", "x" * 5_000}, user_id="alice")
    assert {run_id: row["rating"] for run_id, row in found.items()} == {"run": -1}
    assert set(found["run"]) == KEYS
    with acting("bob"):
        assert users(list((await read("thread", {"run", "other"})).values())) == ["bob"]
    everybody = await read("thread", {"run", "other"}, user_id=None)
    assert {run_id: row["user_id"] for run_id, row in everybody.items()} == {"run": "bob", "other": "alice"}
    assert await read("thread", set()) == await read("", {"run"}, user_id=None) == {}
    with pytest.raises(RuntimeError, match="list_by_run_ids"):
        await read("thread", {"run"})
