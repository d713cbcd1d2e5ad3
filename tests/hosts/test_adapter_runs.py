"""What DeerFlow may rely on of its `RunStore`, on every storage."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from .gateway_process import needs_deerflow
from .host_stores import (
    OURS,
    RUNS,
    acting,
    expect_differences,
    named,
    open_store,
    signature_faults,
    stale_differences,
)

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

INVALID_IDS = ("", "x" * 5_000)
MIB = 1024 * 1024
EARLY, NOON, LATE = (f"2026-01-01T{hour}:00:00+00:00" for hour in ("08", "12", "20"))
COUNTS = {
    "total_input_tokens": 1,
    "total_output_tokens": 2,
    "total_tokens": 3,
    "llm_call_count": 4,
    "lead_agent_tokens": 5,
    "subagent_tokens": 6,
    "middleware_tokens": 7,
    "message_count": 8,
}
SQL_KEYS = {
    "run_id",
    "thread_id",
    "assistant_id",
    "user_id",
    "status",
    "model_name",
    "multitask_strategy",
    "metadata",
    "kwargs",
    "error",
    "first_human_message",
    "last_ai_message",
    "follow_up_to_run_id",
    "created_at",
    "updated_at",
    *COUNTS,
}
OUR_TIMES = {"started_at", "ended_at"}


@pytest.fixture(params=RUNS.backends)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, mongodb_url: str, database_name: str
) -> AsyncGenerator[Any]:
    expect_differences(request, RUNS)
    opened = open_store(RUNS, request.param, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as runs:
        yield runs


async def put(store: Any, run_id: str = "run", **fields: Any) -> None:
    await store.put(run_id, **{"thread_id": "thread", "user_id": "alice", **fields})


async def get(store: Any, run_id: str = "run") -> Any:
    return await store.get(run_id, user_id=None)


def when(text: str) -> datetime:
    """A row's time; one without an offset is in UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["run_id"] for row in rows]


# -- the interface ---------------------------------------------------------------------------------


def test_adapter_has_every_method_with_deerflows_signature() -> None:
    assert signature_faults(RUNS) == []
    assert stale_differences(RUNS, globals()) == []


async def test_store_is_an_instance_of_deerflows_base_class(store: Any) -> None:
    assert isinstance(store, named(str(RUNS.base)))


# -- put and get -----------------------------------------------------------------------------------


async def test_put_stores_every_field(store: Any) -> None:
    given = {
        "thread_id": "thread",
        "assistant_id": "lead_agent",
        "user_id": "alice",
        "model_name": "gpt-4.1",
        "status": "error",
        "multitask_strategy": "interrupt",
        "metadata": {"a.b": {"$c": [1, None, 2.5]}},
        "kwargs": {"input": {"messages": ["¿?"]}},
        "error": "no model",
    }
    await store.put("run", **given, created_at=NOON)
    row = await get(store)
    assert {name: row[name] for name in given} == given
    assert row["run_id"] == "run"
    assert when(row["created_at"]) == when(NOON)


async def test_put_stores_the_followed_run(store: Any) -> None:
    await put(store, follow_up_to_run_id="earlier")
    assert (await get(store))["follow_up_to_run_id"] == "earlier"


async def test_row_has_the_keys_of_the_sql_row(store: Any) -> None:
    await put(store)
    assert set(await get(store)) - OUR_TIMES == SQL_KEYS


async def test_new_run_is_pending_with_empty_payloads(store: Any) -> None:
    await put(store)
    row = await get(store)
    assert (row["status"], row["multitask_strategy"]) == ("pending", "reject")
    assert (row["metadata"], row["kwargs"]) == ({}, {})
    for name in ("assistant_id", "model_name", "error"):
        assert row[name] is None


async def test_new_run_has_zero_counts_and_no_texts(store: Any) -> None:
    await put(store)
    row = await get(store)
    assert {row[name] for name in COUNTS} == {0}
    assert row["first_human_message"] is row["last_ai_message"] is None


async def test_updated_at_of_a_new_run_is_created_at(store: Any) -> None:
    await put(store)
    row = await get(store)
    assert row["created_at"] == row["updated_at"]


async def test_times_have_an_offset(store: Any) -> None:
    await put(store)
    row = await get(store)
    assert datetime.fromisoformat(row["created_at"]).tzinfo is not None


async def test_repeated_put_leaves_one_run_that_has_the_last_fields(store: Any) -> None:
    await put(store, created_at=EARLY, metadata={"first": True}, error="boom")
    await put(store, created_at=LATE, status="running", metadata={"first": False})
    [row] = await store.list_by_thread("thread", user_id=None)
    assert (row["status"], row["metadata"], row["error"]) == ("running", {"first": False}, None)
    assert when(row["created_at"]) == when(EARLY)


@dataclass
class Command:
    resume: str


async def test_values_that_are_not_json_are_stored_as_text(store: Any) -> None:
    await put(store, kwargs={"command": Command("yes"), "at": {1, 2}})
    kwargs = (await get(store))["kwargs"]
    assert "yes" in str(kwargs["command"])
    assert not isinstance(kwargs["command"], Command)


@pytest.mark.parametrize("odd", ["x" * (17 * MIB), float("nan")], ids=["huge", "nan"])
async def test_unstorable_argument_does_not_lose_the_run(store: Any, odd: Any) -> None:
    await put(store, metadata={"small": 1}, kwargs={"odd": odd, "small": 2})
    row = await get(store)
    assert (row["metadata"], row["kwargs"]["small"]) == ({"small": 1}, 2)


@pytest.mark.parametrize("odd", ["x" * (17 * MIB), float("inf")], ids=["huge", "infinity"])
async def test_oversized_or_infinite_argument_comes_back_unchanged(store: Any, odd: Any) -> None:
    await put(store, kwargs={"odd": odd})
    assert (await get(store))["kwargs"] == {"odd": odd}


@pytest.mark.parametrize(
    ("given", "stored"), [("  m \n", "m"), ("m" * 200, "m" * 128), (4, "4")], ids=["blanks", "long", "number"]
)
async def test_model_name_is_stripped_and_truncated(store: Any, given: Any, stored: str) -> None:
    await put(store, model_name=given)
    assert (await get(store))["model_name"] == stored
    await put(store, "other")
    await store.update_model_name("other", given)
    assert (await get(store, "other"))["model_name"] == stored


@pytest.mark.parametrize("model_name", ["", None])
async def test_model_name_may_be_empty_or_none(store: Any, model_name: str | None) -> None:
    await put(store, model_name=model_name)
    await put(store, "other", model_name="m")
    await store.update_model_name("other", model_name)
    assert (await get(store))["model_name"] == (await get(store, "other"))["model_name"] == model_name


@pytest.mark.parametrize("run_id", ["missing", *INVALID_IDS], ids=["missing", "empty", "long"])
async def test_missing_ids_are_not_found(store: Any, run_id: str) -> None:
    assert await store.get(run_id, user_id=None) is None
    assert await store.list_by_thread(run_id, user_id=None) == []


# -- users -----------------------------------------------------------------------------------


async def test_user_sees_own_runs_only(store: Any) -> None:
    await put(store, "hers")
    await put(store, "his", user_id="bob")
    assert await store.get("hers", user_id="bob") is None
    assert (await store.get("hers", user_id="alice"))["run_id"] == "hers"
    assert ids(await store.list_by_thread("thread", user_id="bob")) == ["his"]
    assert len(await store.list_by_thread("thread", user_id=None)) == 2


async def test_default_user_is_the_bound_user(store: Any) -> None:
    alice = UUID(int=1)
    with acting(alice):
        await store.put("run", thread_id="thread")
        assert (await store.get("run"))["user_id"] == str(alice)
    with acting("bob"):
        assert await store.get("run") is None
        assert await store.list_by_thread("thread") == []
        await store.delete("run")
    with acting(alice):
        assert ids(await store.list_by_thread("thread")) == ["run"]
        await store.delete("run")
    assert await get(store) is None


async def test_default_user_without_a_bound_user_is_an_error(store: Any) -> None:
    for call in (
        lambda: store.put("run", thread_id="thread"),
        lambda: store.get("run"),
        lambda: store.list_by_thread("thread"),
        lambda: store.delete("run"),
    ):
        with pytest.raises(RuntimeError, match="user"):
            await call()


async def test_user_id_may_be_a_uuid(store: Any) -> None:
    await put(store, user_id=UUID(int=1))
    assert (await get(store))["user_id"] == str(UUID(int=1))
    assert ids(await store.list_by_thread("thread", user_id=UUID(int=1))) == ["run"]


async def test_run_may_have_no_owner(store: Any) -> None:
    await put(store, user_id=None)
    assert (await get(store))["user_id"] is None
    assert await store.get("run", user_id="alice") is None


# -- lists -----------------------------------------------------------------------------------------


async def test_runs_of_a_thread_are_newest_first(store: Any) -> None:
    for run_id, created_at in (("b", NOON), ("c", LATE), ("a", EARLY)):
        await put(store, run_id, created_at=created_at)
    await put(store, "elsewhere", thread_id="other")
    assert ids(await store.list_by_thread("thread", user_id=None)) == ["c", "b", "a"]
    assert ids(await store.list_by_thread("thread", user_id=None, limit=2)) == ["c", "b"]
    assert await store.list_by_thread("thread", user_id=None, limit=0) == []


async def test_pending_runs_of_all_users_are_oldest_first(store: Any) -> None:
    for run_id, created_at, user_id in (("b", NOON, "alice"), ("c", LATE, "bob"), ("a", EARLY, None)):
        await put(store, run_id, created_at=created_at, user_id=user_id)
    await put(store, "on its way", created_at=EARLY, status="running")
    assert ids(await store.list_pending()) == ["a", "b", "c"]
    assert ids(await store.list_pending(before=NOON)) == ["a", "b"]
    await store.update_status("a", "running")
    assert ids(await store.list_pending()) == ["b", "c"]


async def test_pending_before_a_datetime(store: Any) -> None:
    await put(store, "a", created_at=EARLY)
    await put(store, "b", created_at=LATE)
    assert ids(await store.list_pending(before=datetime.fromisoformat(NOON))) == ["a"]


# -- updates ---------------------------------------------------------------------------------------


async def test_status_is_set_with_its_error(store: Any) -> None:
    await put(store)
    await store.update_status("run", "running")
    assert (await get(store))["status"] == "running"
    await store.update_status("run", "error", error="boom")
    row = await get(store)
    assert (row["status"], row["error"]) == ("error", "boom")
    assert when(row["updated_at"]) > when(row["created_at"])


async def test_status_without_error_leaves_the_error(store: Any) -> None:
    await put(store, error="first")
    await store.update_status("run", "interrupted")
    assert (await get(store))["error"] == "first"


async def test_status_sets_started_at_and_ended_at(store: Any) -> None:
    await put(store)
    assert (await get(store))["started_at"] is None
    await store.update_status("run", "running")
    row = await get(store)
    assert when(row["created_at"]) <= when(row["started_at"])
    assert row["ended_at"] is None
    await store.update_status("run", "interrupted")
    ended = await get(store)
    assert ended["started_at"] == row["started_at"]
    assert when(ended["ended_at"]) >= when(row["started_at"])


async def test_ended_run_never_becomes_active_again(store: Any) -> None:
    await put(store)
    await store.update_status("run", "success")
    await store.update_status("run", "running")
    assert (await get(store))["status"] == "success"


@pytest.mark.parametrize("run_id", ["run", *INVALID_IDS], ids=["missing", "empty", "long"])
async def test_updates_of_a_missing_run_change_nothing(store: Any, run_id: str) -> None:
    await store.update_status(run_id, "error", error="boom")
    await store.update_model_name(run_id, "m")
    await store.update_run_completion(run_id, status="success")
    assert await get(store, run_id) is None


async def test_completion_sets_every_count_and_text(store: Any) -> None:
    await put(store)
    texts = {"first_human_message": "hello", "last_ai_message": "done", "error": "late"}
    await store.update_run_completion("run", status="success", **COUNTS, **texts)
    row = await get(store)
    assert {name: row[name] for name in (*COUNTS, *texts)} == {**COUNTS, **texts}
    assert row["status"] == "success"


async def test_absent_count_of_a_completion_becomes_zero(store: Any) -> None:
    await put(store)
    await store.update_run_completion("run", status="success", total_tokens=5)
    await store.update_run_completion("run", status="success")
    assert (await get(store))["total_tokens"] == 0


async def test_absent_text_of_a_completion_stays(store: Any) -> None:
    await put(store)
    await store.update_run_completion("run", status="running", first_human_message="hello")
    await store.update_status("run", "error", error="boom")
    await store.update_run_completion("run", status="error", total_tokens=5)
    row = await get(store)
    assert (row["first_human_message"], row["error"], row["total_tokens"]) == ("hello", "boom", 5)


async def test_messages_of_a_completion_are_truncated(store: Any) -> None:
    await put(store)
    long = "é" * 3_000
    await store.update_run_completion(
        "run", status="success", first_human_message=long, last_ai_message=long, error=long
    )
    row = await get(store)
    assert row["first_human_message"] == row["last_ai_message"] == long[:2_000]
    assert row["error"] == long


@pytest.mark.parametrize("stored", [0, 16 * MIB - 8_000], ids=["small", "full"])
async def test_run_ends_however_long_its_error_is(store: Any, stored: int) -> None:
    huge = "boom " * (4 * MIB)
    for run_id in ("status", "completion"):
        await put(store, run_id, kwargs={"input": "x" * stored})
        await store.update_run_completion(run_id, status="running", first_human_message="hello")
    await store.update_status("status", "error", error=huge)
    await store.update_run_completion("completion", status="error", error=huge, total_tokens=5)
    for run_id in ("status", "completion"):
        row = await get(store, run_id)
        assert (row["status"], row["error"][:2_000]) == ("error", huge[:2_000])
        assert len(row["kwargs"]["input"]) == stored
        assert row["first_human_message"] == "hello"
    assert row["total_tokens"] == 5


async def test_huge_error_comes_back_unchanged(store: Any) -> None:
    await put(store, error="x" * (17 * MIB))
    assert len((await get(store))["error"]) == 17 * MIB


async def test_run_is_deleted_by_its_owner_only(store: Any) -> None:
    await put(store)
    await store.delete("run", user_id="bob")
    assert await get(store) is not None
    await store.delete("run", user_id="alice")
    assert await get(store) is None
    for missing in ("run", *INVALID_IDS):
        await store.delete(missing, user_id="alice")


# -- tokens ----------------------------------------------------------------------------------------


async def test_token_sums_cover_the_threads_ended_runs(store: Any) -> None:
    counts = {**COUNTS, "total_tokens": 10}
    for run_id, status, model, user_id in (
        ("a", "success", "m", "alice"),
        ("b", "error", "m", "bob"),
        ("c", "success", None, None),
        ("d", "interrupted", "m", "alice"),
        ("e", "running", "m", "alice"),
    ):
        await put(store, run_id, model_name=model, user_id=user_id)
        await store.update_run_completion(run_id, status=status, **counts)
    await put(store, "elsewhere", thread_id="other")
    await store.update_run_completion("elsewhere", status="success", **counts)
    assert await store.aggregate_tokens_by_thread("thread") == {
        "total_tokens": 30,
        "total_input_tokens": 3,
        "total_output_tokens": 6,
        "total_runs": 3,
        "by_model": {"m": {"tokens": 20, "runs": 2}, "unknown": {"tokens": 10, "runs": 1}},
        "by_caller": {"lead_agent": 15, "subagent": 18, "middleware": 21},
    }


async def test_token_sums_cover_the_bound_users_runs_only(store: Any) -> None:
    for run_id, user_id, tokens in (("hers", "alice", 1), ("his", "bob", 2), ("nobodys", None, 4)):
        await put(store, run_id, user_id=user_id)
        await store.update_run_completion(run_id, status="success", total_tokens=tokens)
    with acting("alice"):
        usage = await store.aggregate_tokens_by_thread("thread")
    assert (usage["total_runs"], usage["total_tokens"]) == (1, 1)


async def test_run_without_tokens_is_counted(store: Any) -> None:
    await put(store, model_name="m")
    await store.update_run_completion("run", status="success")
    usage = await store.aggregate_tokens_by_thread("thread")
    assert (usage["total_runs"], usage["by_model"]) == (1, {"m": {"tokens": 0, "runs": 1}})


@pytest.mark.parametrize("thread_id", ["thread", *INVALID_IDS], ids=["missing", "empty", "long"])
async def test_token_sums_without_runs_are_zero(store: Any, thread_id: str) -> None:
    assert await store.aggregate_tokens_by_thread(thread_id) == {
        "total_tokens": 0,
        "total_input_tokens": 0,
        "total_output_tokens": 0,
        "total_runs": 0,
        "by_model": {},
        "by_caller": {"lead_agent": 0, "subagent": 0, "middleware": 0},
    }


# -- ours alone ------------------------------------------------------------------------------------


async def test_run_in_a_full_document_ends_without_its_error_text(
    tmp_path: Path, mongodb_url: str, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_store(RUNS, OURS, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as store:
        await put(store, kwargs={"input": "x" * (16 * MIB - 1_000)})
        with caplog.at_level(logging.WARNING):
            await store.update_status("run", "error", error="boom" * 1_000)
        row = await get(store)
    assert (row["status"], row["error"]) == ("error", "")
    assert len([record for record in caplog.records if "'run' are truncated" in record.message]) == 2


@pytest.mark.parametrize("status", ["success", "error", "timeout", "interrupted"])
async def test_every_ending_sets_ended_at(
    tmp_path: Path, mongodb_url: str, database_name: str, status: str
) -> None:
    opened = open_store(RUNS, OURS, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as store:
        await put(store)
        await store.update_status("run", status)
        assert (await get(store))["ended_at"] is not None


async def test_run_whose_payload_is_larger_in_the_database_than_as_json_is_stored(
    tmp_path: Path, mongodb_url: str, database_name: str
) -> None:
    """As JSON each list has less than 4 MiB, as BSON both exceed 16 MiB: a second attempt fails too."""
    opened = open_store(RUNS, OURS, folder=tmp_path, url=mongodb_url, database=database_name)
    async with opened as store:
        numbers = [1] * 1_300_000
        await put(store, kwargs={"many": numbers, "small": 2}, metadata={"many": numbers, "small": 1})
        row = await get(store)
    assert (row["kwargs"], row["metadata"]) == ({"small": 2}, {"small": 1})
