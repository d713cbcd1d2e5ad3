"""What DeerFlow main may rely on of our `RunStore`, beside the manager's calls: checked on the stand-in.

`python -m tests.hosts.main_runs_checks URL DATABASE` prints the outcome of every check as JSON, as
`stand_in_checks.py` does. Which of two workers wins a race is checked at the stores.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from .stand_in_checks import Ground, admit, lease, module, outcome_of, run_store

Check = Callable[[Ground], Coroutine[Any, Any, None]]

EARLY, NOON, LATE = (f"2026-01-01T{hour}:00:00.000001+00:00" for hour in ("08", "12", "20"))
INVALID_IDS: Final = ("", "x" * 5_000)
COUNTS: Final = {
    "total_input_tokens": 1,
    "total_output_tokens": 2,
    "total_tokens": 3,
    "llm_call_count": 4,
    "lead_agent_tokens": 5,
    "subagent_tokens": 6,
    "middleware_tokens": 7,
    "message_count": 8,
}
HOST_DEFAULTS: Final[dict[str, Any]] = {
    "assistant_id": None,
    "user_id": "alice",
    "status": "pending",
    "operation_kind": "run",
    "idempotency_key": None,
    "model_name": None,
    "multitask_strategy": "reject",
    "metadata": {},
    "kwargs": {},
    "error": None,
    "stop_reason": None,
    "first_human_message": None,
    "last_ai_message": None,
    **dict.fromkeys(COUNTS, 0),
    "token_usage_by_model": {},
    "follow_up_to_run_id": None,
    "owner_worker_id": None,
    "lease_expires_at": None,
    "cancel_action": None,
    "cancel_requested_at": None,
}
"""The keys of DeerFlow's row, and their values in a run that is stored without them."""

ENDINGS: Final = ("success", "error", "timeout", "interrupted")
STATUSES: Final = ("pending", "running", *ENDINGS)


@contextmanager
def bound(user_id: str | None) -> Generator[None]:
    """A user is bound, or one without an id."""
    context = module("deerflow.runtime.user_context")
    token = context.set_current_user(SimpleNamespace(id=user_id))
    try:
        yield
    finally:
        context.reset_current_user(token)


async def put(store: Any, run_id: str = "run", **fields: Any) -> None:
    await store.put(run_id, **{"thread_id": f"thread of {run_id}", "user_id": "alice", **fields})


async def get(store: Any, run_id: str = "run") -> Any:
    return await store.get(run_id, user_id=None)


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["run_id"] for row in rows]


# -- rows ------------------------------------------------------------------------------------------


async def row_has_every_key_of_the_host_with_its_default(ground: Ground) -> None:
    async with run_store(ground) as store:
        await put(store)
        row = await get(store)
        assert {name: row[name] for name in HOST_DEFAULTS} == HOST_DEFAULTS
        ids_and_times = {"run_id", "thread_id", "created_at", "updated_at", "started_at", "ended_at"}
        assert set(row) == {*HOST_DEFAULTS, *ids_and_times}
        assert row["updated_at"] == row["created_at"] != ""


async def run_of_another_release_has_every_key_too(ground: Ground) -> None:
    create_storage: Any = module("deerflow_mongo").create_storage
    async with create_storage(ground.options()) as storage, run_store(ground) as store:
        await storage.runs.create("run", "thread", user_id="alice")
        row = await get(store)
        assert {name: row[name] for name in HOST_DEFAULTS} == HOST_DEFAULTS


async def times_have_an_offset_and_microseconds(ground: Ground) -> None:
    async with run_store(ground) as store:
        naive, east = "2026-01-01T08:00:00.000001", "2026-01-01T09:00:00.000001+01:00"
        await put(store, created_at=naive, lease_expires_at=east)
        row = await get(store)
        assert (row["created_at"], row["lease_expires_at"]) == (EARLY, EARLY)
        assert datetime.fromisoformat(row["updated_at"]).tzinfo is not None


async def repeated_put_replaces_all_but_time_and_cancellation(ground: Ground) -> None:
    async with run_store(ground) as store:
        await put(store, created_at=EARLY, error="boom", stop_reason="why", idempotency_key="key")
        await store.request_cancel("run", action="rollback")
        await put(store, created_at=LATE, status="running", metadata={"a.b": {"$c": 1}})
        row = await get(store)
        assert (row["status"], row["metadata"]) == ("running", {"a.b": {"$c": 1}})
        assert (row["error"], row["stop_reason"], row["idempotency_key"]) == (None, None, None)
        assert (row["created_at"], row["cancel_action"]) == (EARLY, "rollback")
        assert len(await store.list_by_thread("thread of run", user_id=None)) == 1


async def unknown_words_are_value_errors(ground: Ground) -> None:
    async with run_store(ground) as store:
        await put(store, status="running")
        for call in (
            put(store, "new", status="starting"),
            put(store, "new", operation_kind="rename"),
            put(store, "new", multitask_strategy="enqueue"),
            admit(store, "new", "a", operation_kind="rename"),
            admit(store, "new", "a", multitask_strategy="enqueue"),
            store.update_status("run", "done"),
            store.update_status("", "done"),
            store.update_run_completion("run", status="done"),
            store.finalize_if_not_cancelled("run", status="done"),
            store.request_cancel("run", action="pause"),
            store.request_cancel("", action="pause"),
        ):
            with pytest.raises(ValueError, match="must be one of"):
                await call
        assert await get(store, "new") is None
        assert (await get(store))["status"] == "running"


async def unstorable_payload_is_stored_truncated(ground: Ground) -> None:
    class Dummy: ...

    async with run_store(ground) as store:
        kwargs = {
            "config": {"deep": [Dummy(), 1]},
            "nan": float("nan"),
            "huge": "x" * (17 * 2**20),
            "small": 2,
        }
        await put(store, kwargs=kwargs, metadata={"small": 1})
        await admit(store, "admitted", "a", kwargs=kwargs, metadata={"small": 1}, user_id="alice")
        for run_id in ("run", "admitted"):
            row = await get(store, run_id)
            assert row["metadata"] == {"small": 1}
            assert row["kwargs"] == {"config": {"deep": ["<Dummy>", 1]}, "small": 2}


# -- users -----------------------------------------------------------------------------------------


async def bound_user_is_the_default_and_needed(ground: Ground) -> None:
    async with run_store(ground) as store:
        with pytest.raises(RuntimeError, match=r"RunStore\.create_thread_operation_atomic"):
            await store.create_thread_operation_atomic(
                "run", thread_id="t", owner_worker_id="a", lease_expires_at=None, user_id=""
            )
        for call in (
            store.put("run", thread_id="t"),
            store.get("run"),
            store.list_by_thread("t"),
            store.get_many_by_thread("t", {"run"}),
            store.list_successful_regenerate_sources("t"),
            store.list_edit_regenerate_runs("t"),
            store.delete("run"),
        ):
            with pytest.raises(RuntimeError, match="user"):
                await call
        assert await store.get_many_by_thread("t", set()) == {}
        with bound("bob"):
            row, _ = await store.create_run_atomic(
                "run", thread_id="t", owner_worker_id="a", lease_expires_at=None, user_id=""
            )
            assert (row["user_id"], row["operation_kind"]) == ("bob", "run")


async def reservation_is_released_whoever_is_bound(ground: Ground) -> None:
    async with run_store(ground) as store:
        for run_id, user_id in (("hers", "alice"), ("anybodys", None)):
            await put(store, run_id, operation_kind="delete")
            with bound(None):
                await store.delete_thread_operation(run_id, user_id=user_id)
            assert await get(store, run_id) is None
        await put(store, operation_kind="delete")
        with bound("alice"):
            await store.delete_thread_operation("run", user_id="bob")
        assert await get(store) is not None


async def totals_are_those_of_all_users(ground: Ground) -> None:
    async with run_store(ground) as store:
        for number, (run_id, user_id, status) in enumerate(
            (("a", "alice", "success"), ("b", "bob", "error"), ("c", None, "interrupted"))
        ):
            await put(store, run_id, thread_id="t", user_id=user_id, model_name="m")
            await store.update_run_completion(run_id, status=status, total_tokens=10**number)
        await put(store, "reserved", thread_id="t", operation_kind="delete")
        await store.claim_for_takeover("reserved", grace_seconds=0, error="dead")
        await put(store, "active", thread_id="t", status="running")
        await store.update_run_progress(
            "active", total_tokens=1_000, token_usage_by_model={"x.y": {"total_tokens": 1_000}}
        )
        with bound("alice"):
            ended = await store.aggregate_tokens_by_thread("t")
            going = await store.aggregate_tokens_by_thread("t", include_active=True)
        assert (ended["total_tokens"], ended["total_runs"]) == (11, 2)
        assert ended["by_model"] == {"m": {"tokens": 11, "runs": 2}}
        assert (going["total_tokens"], going["total_runs"]) == (1_011, 3)
        assert going["by_model"]["x.y"] == {"tokens": 1_000, "runs": 1}


# -- duplicates ------------------------------------------------------------------------------------


async def second_active_row_of_any_kind_is_a_duplicate_key(ground: Ground) -> None:
    integrity_error = module("sqlalchemy.exc").IntegrityError
    async with run_store(ground) as store:
        await put(store, thread_id="t", operation_kind="artifact_write")
        for call in (
            put(store, "second", thread_id="t"),
            admit(store, "second", "a", thread_id="t", user_id="u"),
        ):
            with pytest.raises(integrity_error) as refused:
                await call
            error: Any = pickle.loads(pickle.dumps(refused.value))  # noqa: S301 - our own
            assert (error.sqlstate, str(error)) == ("23505", str(refused.value))
        await store.update_status("run", "success")
        await put(store, "second", thread_id="t")


async def known_key_of_a_run_is_a_duplicate_in_put_and_a_conflict_in_admission(ground: Ground) -> None:
    base = module("deerflow.runtime.runs.store.base")
    async with run_store(ground) as store:
        await put(store, idempotency_key="key", status="success")
        with pytest.raises(module("sqlalchemy.exc").IntegrityError):
            await put(store, "second", idempotency_key="key")
        await put(store, "active", thread_id="t")
        for strategy in ("reject", "interrupt"):
            with pytest.raises(base.RunIdempotencyConflict) as known:
                await admit(
                    store,
                    "second",
                    "a",
                    thread_id="t",
                    user_id="u",
                    idempotency_key="key",
                    multitask_strategy=strategy,
                )
            assert known.value.existing == await get(store)
        assert (await get(store, "active"))["status"] == "pending"


async def known_run_id_is_a_duplicate_in_admission(ground: Ground) -> None:
    async with run_store(ground) as store:
        await put(store, status="success")
        with pytest.raises(module("sqlalchemy.exc").IntegrityError):
            await admit(store, "run", "a", thread_id="other", user_id="u")


# -- statuses --------------------------------------------------------------------------------------


async def status_is_set_from_active_and_interrupted_only(ground: Ground) -> None:
    async with run_store(ground) as store:
        for old in STATUSES:
            await put(store, old, status=old, error="first", stop_reason="why")
            is_set = await store.update_status(old, "error", error="second")
            assert is_set is (old in ("pending", "running", "interrupted")), old
            row = await get(store, old)
            assert (row["status"], row["error"]) == (("error", "second") if is_set else (old, "first"))
            assert row["stop_reason"] == "why"
        assert await store.update_status("missing", "error") is False


async def status_without_texts_leaves_them(ground: Ground) -> None:
    async with run_store(ground) as store:
        await put(store, error="boom")
        assert await store.update_status("run", "running") is True
        assert await store.update_status("run", "interrupted", stop_reason="user") is True
        row = await get(store)
        assert (row["status"], row["error"], row["stop_reason"]) == ("interrupted", "boom", "user")
        assert row["started_at"] <= row["ended_at"]
        assert await store.update_status("run", "running") is False


async def completion_is_set_from_active_and_the_same_status(ground: Ground) -> None:
    async with run_store(ground) as store:
        for new in ENDINGS:
            for old in STATUSES:
                run_id = f"{old} to {new}"
                await put(store, run_id, status=old)
                is_set = await store.update_run_completion(run_id, status=new, **COUNTS)
                may = old in ("pending", "running", new) or (old, new) == ("interrupted", "error")
                assert is_set is may, run_id
                row = await get(store, run_id)
                assert (row["status"], row["total_tokens"]) == ((new, 3) if may else (old, 0))
        assert await store.update_run_completion("missing", status="success") is False


async def completion_replaces_counts_and_leaves_absent_texts(ground: Ground) -> None:
    async with run_store(ground) as store:
        await put(store, status="running", error="boom")
        await store.update_run_progress(
            "run", **COUNTS, first_human_message="hello", token_usage_by_model={"m": {"total_tokens": 5}}
        )
        await store.update_run_completion("run", status="error", total_tokens=9, last_ai_message="é" * 3_000)
        row = await get(store)
        assert (row["total_tokens"], row["llm_call_count"], row["token_usage_by_model"]) == (9, 0, {})
        assert (row["first_human_message"], row["error"]) == ("hello", "boom")
        assert row["last_ai_message"] == "é" * 2_000


async def progress_sets_what_is_given_while_running(ground: Ground) -> None:
    async with run_store(ground) as store:
        for status in STATUSES:
            await put(store, status, status=status)
            assert await store.update_run_progress(status, total_tokens=5) is None
            assert (await get(store, status))["total_tokens"] == (5 if status == "running" else 0)
        await store.update_run_progress("running", message_count=2, last_ai_message="é" * 3_000)
        row = await get(store, "running")
        assert (row["status"], row["total_tokens"], row["message_count"]) == ("running", 5, 2)
        assert row["last_ai_message"] == "é" * 2_000


async def counts_by_model_have_short_names_and_optional_cache_reads(ground: Ground) -> None:
    usage = {
        " gpt-4.1$ ": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cache_read_tokens": 0},
        "m" * 200: {"input_tokens": 4, "output_tokens": 5},
    }
    stored = {
        "gpt-4.1$": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cache_read_tokens": 0},
        "m" * 128: {"input_tokens": 4, "output_tokens": 5, "total_tokens": 9},
    }
    async with run_store(ground) as store:
        await put(store, status="running", model_name=f" {'m' * 200}")
        await store.update_run_progress("run", token_usage_by_model=usage)
        assert (await get(store))["token_usage_by_model"] == stored
        await store.update_run_completion("run", status="success", token_usage_by_model=usage)
        row = await get(store)
        assert (row["token_usage_by_model"], row["model_name"]) == (stored, "m" * 128)
        await store.update_model_name("run", " other\n")
        assert (await get(store))["model_name"] == "other"


async def run_ends_however_long_its_error_is(ground: Ground) -> None:
    huge = "x" * (17 * 2**20)
    async with run_store(ground) as store:
        for run_id in ("final", "claimed"):
            await put(store, run_id, status="running")
        result = await store.finalize_if_not_cancelled("final", status="error", error=huge)
        assert (result.finalized, result.cancel_action) == (True, None)
        assert await store.claim_for_takeover("claimed", grace_seconds=0, error=huge, stop_reason="why")
        for run_id in ("final", "claimed"):
            row = await get(store, run_id)
            assert (row["status"], row["error"]) == ("error", huge[:2_000])


# -- lists -----------------------------------------------------------------------------------------


async def reservations_are_in_the_lists_of_active_rows_only(ground: Ground) -> None:
    async with run_store(ground) as store:
        await put(store, "reserved", thread_id="t", operation_kind="checkpoint_write", created_at=EARLY)
        await put(store, "done", thread_id="t", status="success", created_at=NOON)
        await put(store, "pending", created_at=LATE)
        assert ids(await store.list_by_thread("t", user_id=None)) == ["done"]
        assert list(await store.get_many_by_thread("t", {"reserved", "done", ""}, user_id=None)) == ["done"]
        assert ids(await store.list_pending()) == ["pending"]
        assert ids(await store.list_inflight()) == ["reserved", "pending"]
        assert ids(await store.list_inflight_with_expired_lease(before=datetime.now(UTC))) == [
            "reserved",
            "pending",
        ]
        assert ids(await store.list_inflight(before=EARLY)) == ["reserved"]
        assert (await get(store, "reserved"))["operation_kind"] == "checkpoint_write"


async def regenerated_runs_are_listed_without_a_limit(ground: Ground) -> None:
    async with run_store(ground) as store:
        for number in range(120):
            metadata = {"regenerate_from_run_id": f"source {number}", "replay_kind": "edit"}
            await put(store, f"{number:03}", thread_id="t", status="success", metadata=metadata)
        await put(
            store,
            "his",
            thread_id="t",
            status="success",
            user_id="bob",
            metadata={"regenerate_from_run_id": "his source"},
        )
        for odd in ("", None, 5):
            metadata = {"regenerate_from_run_id": odd, "replay_kind": "edit"}
            await put(store, f"odd {odd}", thread_id="t", status="success", metadata=metadata)
        sources = await store.list_successful_regenerate_sources("t", user_id="alice")
        assert sources == {f"source {number}" for number in range(120)}
        assert "his source" in await store.list_successful_regenerate_sources("t", user_id=None)
        edits = await store.list_edit_regenerate_runs("t", user_id="alice")
        assert ids(edits) == [f"{number:03}" for number in range(120)]


async def missing_and_invalid_ids_are_answers(ground: Ground) -> None:
    async with run_store(ground) as store:
        for run_id in ("missing", *INVALID_IDS):
            owner: dict[str, Any] = {"owner_worker_id": "a", "lease_expires_at": lease(30)}
            assert await store.update_status(run_id, "error") is False
            assert await store.start_run(run_id) is False
            assert await store.update_run_completion(run_id, status="success") is False
            assert await store.update_lease(run_id, **owner) is False
            assert (await store.renew_lease(run_id, **owner)).renewed is False
            assert await store.request_cancel(run_id, action="interrupt") is None
            assert (await store.finalize_if_not_cancelled(run_id, status="success")).finalized is False
            assert await store.claim_for_takeover(run_id, grace_seconds=0, error="dead") is False
            assert await store.update_run_progress(run_id, total_tokens=1) is None
            assert await get(store, run_id) is None
            await store.delete_thread_operation(run_id, user_id=None)


CHECKS: Final[tuple[Check, ...]] = (
    row_has_every_key_of_the_host_with_its_default,
    run_of_another_release_has_every_key_too,
    times_have_an_offset_and_microseconds,
    repeated_put_replaces_all_but_time_and_cancellation,
    unknown_words_are_value_errors,
    unstorable_payload_is_stored_truncated,
    bound_user_is_the_default_and_needed,
    reservation_is_released_whoever_is_bound,
    totals_are_those_of_all_users,
    second_active_row_of_any_kind_is_a_duplicate_key,
    known_key_of_a_run_is_a_duplicate_in_put_and_a_conflict_in_admission,
    known_run_id_is_a_duplicate_in_admission,
    status_is_set_from_active_and_interrupted_only,
    status_without_texts_leaves_them,
    completion_is_set_from_active_and_the_same_status,
    completion_replaces_counts_and_leaves_absent_texts,
    progress_sets_what_is_given_while_running,
    counts_by_model_have_short_names_and_optional_cache_reads,
    run_ends_however_long_its_error_is,
    reservations_are_in_the_lists_of_active_rows_only,
    regenerated_runs_are_listed_without_a_limit,
    missing_and_invalid_ids_are_answers,
)


def main(framework: str, url: str, database: str) -> None:
    """Run every check."""
    sys.path.append(framework)
    ground = Ground(Path(framework), url, database)
    output, sys.stdout = sys.stdout, sys.stderr
    output.write(json.dumps({check.__name__: outcome_of(check, ground) for check in CHECKS}))


if __name__ == "__main__":
    main(*sys.argv[1:])
