"""Runs of several workers: the promises of `capabilities.RunOwnership`, skipped for a store without it.

Owners, leases, cancellation, endings and take-over; the admission of runs is in `admission.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ..contract.capabilities import RunOwnership
from ..contract.errors import ActiveRunError, ArgumentTypeError, ArgumentValueError, InvalidArgumentError
from ..contract.protocols import Storage
from ..contract.rows import CANCEL_ACTIONS, ENDED_STATUSES, OPERATION_KINDS, OWNED_STATUSES, RunRow
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, snapshot, stored_run

WORKER, OTHER = "host:1", "host:2"

_KEYS = set(RunRow.__annotations__)
_COUNTS: dict[str, Any] = {"total_tokens": 30, "total_input_tokens": 20, "total_output_tokens": 10}
_NOT_TIMES = ("soon", 5, "2026-13-01")
_MODELS: dict[str, Any] = {
    "gpt-4.1": {"input_tokens": 20, "output_tokens": 10, "total_tokens": 30},
    "$a.b": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cache_read_tokens": 4},
}


def lease(seconds: float = 60) -> str:
    """The time so many seconds from now, which may be negative."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def given_operation(
    runs: RunOwnership, run_id: str = RUN, thread_id: str = THREAD, **fields: Any
) -> None:
    """Store a run of `WORKER` under a valid lease, or what `fields` have instead."""
    defaults: dict[str, Any] = {
        "user_id": ALICE,
        "owner_worker_id": WORKER,
        "lease_expires_at": lease(),
    }
    await runs.put(run_id, thread_id=thread_id, **{**defaults, **fields})


class OwnershipContract(Contract):
    """The base of the parts that need `RunOwnership`."""

    @pytest.fixture
    def runs(self, request: pytest.FixtureRequest, storage: Storage) -> RunOwnership:
        """The storage's runs; skips the test where they have no owners."""
        runs = storage.runs
        if not isinstance(runs, RunOwnership):
            pytest.skip(f"{request.function.__name__}: {type(runs).__name__} does not have `RunOwnership`")
        return runs


class RunOwnershipContract(OwnershipContract):
    # Storing.

    async def test_put_stores_every_field_given(self, storage: Storage, runs: RunOwnership) -> None:
        fields: dict[str, Any] = {
            "status": "running",
            "operation_kind": "run",
            "multitask_strategy": "rollback",
            "assistant_id": "lead",
            "user_id": ALICE,
            "model_name": "gpt-4.1",
            "metadata": {"a.b": 1, "$c": [None]},
            "kwargs": {"": {"d": True}},
            "error": "no",
            "stop_reason": "because",
            "created_at": "2026-04-22T03:26:38.123456+00:00",
            "follow_up_to_run_id": "run-0",
            "owner_worker_id": WORKER,
            "lease_expires_at": "2126-04-22T03:26:38.654321+00:00",
            "idempotency_key": "key",
        }
        await runs.put(RUN, thread_id=THREAD, **fields)
        row = await stored_run(storage)
        assert set(row) == _KEYS
        assert {name: dict(row)[name] for name in fields} == fields
        assert (row["run_id"], row["thread_id"], row["updated_at"]) == (RUN, THREAD, "")
        assert (row.get("cancel_action"), row.get("cancel_requested_at")) == (None, None)
        assert row.get("token_usage_by_model") == {}

    async def test_put_has_the_documented_defaults(self, storage: Storage, runs: RunOwnership) -> None:
        with acting_as(BOB):
            await runs.put(RUN, thread_id=THREAD)
        row = await stored_run(storage)
        assert (row["status"], row.get("operation_kind"), row["user_id"]) == ("pending", "run", BOB)
        assert (row["multitask_strategy"], row["metadata"], row["kwargs"]) == ("reject", {}, {})
        for name in ("owner_worker_id", "lease_expires_at", "idempotency_key", "stop_reason", "error"):
            assert dict(row)[name] is None

    async def test_repeated_put_changes_nothing_but_updated_at(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        fields: dict[str, Any] = {"metadata": {"a": 1}, "idempotency_key": "key", "lease_expires_at": lease()}
        await given_operation(runs, **fields)
        first = await stored_run(storage)
        await given_operation(runs, **fields)
        assert {**await stored_run(storage), "updated_at": ""} == first

    async def test_put_replaces_its_fields_and_leaves_the_others(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await given_operation(runs, metadata={"old": 1}, model_name="old", created_at="2026-01-01")
        await runs.start_run(RUN)
        await runs.update_run_progress(RUN, **_COUNTS, last_ai_message="hi", token_usage_by_model=_MODELS)
        await runs.request_cancel(RUN, action="rollback")
        before = await stored_run(storage)
        await runs.put(RUN, thread_id=THREAD, user_id=BOB, status="running", created_at="2027-01-01")
        after = await stored_run(storage)
        replaced: dict[str, Any] = {
            "metadata": {},
            "model_name": None,
            "user_id": BOB,
            "owner_worker_id": None,
        }
        replaced |= {"lease_expires_at": None, "updated_at": after["updated_at"]}
        assert after == {**before, **replaced}

    async def test_row_of_a_created_run_has_no_owner(self, storage: Storage, runs: RunOwnership) -> None:
        """Rows that `create` wrote have the keys that all backends have, also after an update."""
        del runs
        row = await given_run(storage)
        assert set(row) == RunRow.__required_keys__
        await storage.runs.update_status(RUN, "error", stop_reason="because")
        assert set(await stored_run(storage)) == RunRow.__required_keys__

    async def test_unknown_names_are_refused_before_anything_is_stored(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await given_operation(runs)
        before = await snapshot(storage)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "kind": lambda: runs.put("r", thread_id="t", user_id=None, operation_kind="walk"),  # pyright: ignore[reportArgumentType]
            "status": lambda: runs.put("r", thread_id="t", user_id=None, status="starting"),
            "strategy": lambda: runs.put("r", thread_id="t", user_id=None, multitask_strategy="enqueue"),
            "lease": lambda: runs.put("r", thread_id="t", user_id=None, lease_expires_at="soon"),
            "ending": lambda: runs.finalize_if_not_cancelled(RUN, status="done"),
            "no ending": lambda: runs.end_runs_of_worker(WORKER, status="running", error="no"),
            "action": lambda: runs.request_cancel(RUN, action="stop"),  # pyright: ignore[reportArgumentType]
            "grace": lambda: runs.claim_for_takeover(RUN, grace_seconds=-1, error="no"),
            "before": lambda: runs.list_inflight(before="soon"),
            "renewal": lambda: runs.update_lease(RUN, owner_worker_id=WORKER, lease_expires_at="soon"),
            "count": lambda: runs.update_run_progress(RUN, total_tokens=-1),
        }
        for name, call in calls.items():
            with case(name), pytest.raises(ArgumentValueError):
                await call()
        assert await snapshot(storage) == before
        assert await storage.runs.get("r", user_id=None) is None

    async def test_wrong_types_are_refused(self, storage: Storage, runs: RunOwnership) -> None:
        del storage
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "run_id": lambda: runs.start_run({"$ne": None}),  # pyright: ignore[reportArgumentType]
            "owner": lambda: runs.end_runs_of_worker({"$ne": None}, status="error", error="no"),  # pyright: ignore[reportArgumentType]
            "empty owner": lambda: runs.renew_leases_of_worker("", lease_expires_at=lease()),
            "grace": lambda: runs.list_inflight_with_expired_lease(grace_seconds="1"),  # pyright: ignore[reportArgumentType]
            "key": lambda: runs.put("r", thread_id="t", user_id=None, idempotency_key={"$gt": ""}),  # pyright: ignore[reportArgumentType]
        }
        for name, call in calls.items():
            with case(name), pytest.raises(InvalidArgumentError):
                await call()
        with pytest.raises(ArgumentTypeError, match="unknown keyword"):
            await runs.put("r", thread_id="t", user_id=None, colour="red")  # pyright: ignore[reportCallIssue]

    # What occupies a thread.

    async def test_second_active_run_of_a_thread_is_refused(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await given_operation(runs)
        for kind in OPERATION_KINDS:
            with case(kind), pytest.raises(ActiveRunError) as caught:
                await given_operation(runs, "second", operation_kind=kind)
            assert caught.value.thread_id == THREAD
        assert await storage.runs.get("second", user_id=None) is None
        await given_operation(runs, "other", "thread-2")
        await given_operation(runs, "ended", status="success")
        await given_operation(runs, "free", operation_kind=None)

    async def test_every_ending_frees_the_thread(self, storage: Storage, runs: RunOwnership) -> None:
        store = storage.runs
        endings: dict[str, Callable[[str], Awaitable[object]]] = {
            "update_status": lambda run_id: store.update_status(run_id, "timeout"),
            "set_error": lambda run_id: store.set_error(run_id, "no"),
            "completion": lambda run_id: store.update_run_completion(run_id, status="success"),
            "finalize": lambda run_id: runs.finalize_if_not_cancelled(run_id, status="success"),
            "takeover": lambda run_id: runs.claim_for_takeover(run_id, grace_seconds=0, error="no"),
            "worker": lambda _: runs.end_runs_of_worker(WORKER, status="interrupted", error="no"),
            "put": lambda run_id: given_operation(runs, run_id, status="error"),
            "delete": lambda run_id: store.delete(run_id, user_id=None),
        }
        for name, end in endings.items():
            with case(name):
                await given_operation(runs, name, lease_expires_at=lease(-60))
                await end(name)
        await given_operation(runs)

    async def test_run_does_not_become_active_beside_another(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await given_operation(runs, "ended", status="interrupted")
        await given_operation(runs)
        with pytest.raises(ActiveRunError):
            await given_operation(runs, "ended", status="running")
        assert (await stored_run(storage, "ended"))["status"] == "interrupted"

    async def test_reservations_are_in_no_list_of_runs(self, storage: Storage, runs: RunOwnership) -> None:
        for kind in OPERATION_KINDS[1:]:
            await given_operation(runs, kind, f"of {kind}", operation_kind=kind)
            assert await storage.runs.list_by_thread(f"of {kind}", user_id=None) == []
            assert await storage.runs.get_many_by_thread(f"of {kind}", [kind], user_id=None) == {}
            usage = await storage.runs.token_usage_by_thread(f"of {kind}", user_id=None)
            assert usage["total_runs"] == 0
            assert (await stored_run(storage, kind)).get("operation_kind") == kind
        assert await storage.runs.list_pending() == []
        assert [row["run_id"] for row in await runs.list_inflight()] == list(OPERATION_KINDS[1:])
        assert await storage.runs.delete("delete", user_id=None)

    # Start and progress.

    async def test_start_run_starts_a_pending_run_once(self, storage: Storage, runs: RunOwnership) -> None:
        for status in OWNED_STATUSES:
            await given_operation(runs, status, f"of {status}", status=status)
            with case(status):
                assert await runs.start_run(status) is (status == "pending")
        row = await stored_run(storage, "pending")
        assert (row["status"], row["started_at"]) == ("running", row["updated_at"])
        assert await runs.start_run("unknown") is False

    async def test_progress_is_stored_while_the_run_is_running(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        for status in OWNED_STATUSES:
            await given_operation(runs, status, f"of {status}", status=status)
            with case(status):
                stored = await runs.update_run_progress(status, **_COUNTS, first_human_message="hi")
                assert stored is (status == "running")
                assert (await stored_run(storage, status))["total_tokens"] == (30 if stored else 0)
        assert await runs.update_run_progress("running", message_count=4, token_usage_by_model=_MODELS)
        row = await stored_run(storage, "running")
        assert (row["total_tokens"], row["message_count"], row["first_human_message"]) == (30, 4, "hi")
        assert row.get("token_usage_by_model") == _MODELS
        assert row["status"] == "running"
        assert await runs.update_run_progress("unknown", total_tokens=1) is False

    async def test_totals_include_running_runs_where_asked(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await given_operation(runs, "done", status="success")
        await storage.runs.update_run_completion("done", status="success", **_COUNTS)
        await given_operation(runs, status="running")
        await runs.update_run_progress(RUN, **_COUNTS, token_usage_by_model=_MODELS)
        ended = await storage.runs.token_usage_by_thread(THREAD, user_id=None, statuses=["success", "error"])
        assert (ended["total_runs"], ended["total_tokens"]) == (1, 30)
        both = await storage.runs.token_usage_by_thread(THREAD, user_id=None, statuses=["success", "running"])
        assert (both["total_runs"], both["total_tokens"]) == (2, 60)
        assert {name: model["tokens"] for name, model in both["by_model"].items()} == {
            "unknown": 30,
            "gpt-4.1": 30,
            "$a.b": 3,
        }

    # Leases.

    async def test_only_the_owner_renews_the_lease_of_an_active_run(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        for status in OWNED_STATUSES:
            await given_operation(runs, status, f"of {status}", status=status)
            until, is_active = lease(90), status in ("pending", "running")
            with case(status):
                assert await runs.renew_lease(status, owner_worker_id=OTHER, lease_expires_at=until) == (
                    False,
                    None,
                )
                assert (await stored_run(storage, status)).get("lease_expires_at") != until
                for renewed in (
                    await runs.update_lease(status, owner_worker_id=WORKER, lease_expires_at=until),
                    (await runs.renew_lease(status, owner_worker_id=WORKER, lease_expires_at=until)).renewed,
                ):
                    assert renewed is is_active
                stored = (await stored_run(storage, status)).get("lease_expires_at")
                assert (stored == until) is is_active
        assert not await runs.update_lease("unknown", owner_worker_id=WORKER, lease_expires_at=lease())

    async def test_expired_lease_that_nobody_claimed_is_renewed(self, runs: RunOwnership) -> None:
        await given_operation(runs, lease_expires_at=lease(-3_600))
        assert await runs.renew_lease(RUN, owner_worker_id=WORKER, lease_expires_at=lease()) == (True, None)
        assert not await runs.claim_for_takeover(RUN, grace_seconds=0, error="no")

    async def test_renewal_reads_the_requested_cancellation(self, runs: RunOwnership) -> None:
        await given_operation(runs)
        await runs.request_cancel(RUN, action="rollback")
        renewal = await runs.renew_lease(RUN, owner_worker_id=WORKER, lease_expires_at=lease())
        assert renewal == (True, "rollback")
        assert renewal.renewed
        assert renewal.cancel_action == "rollback"

    async def test_all_leases_of_a_worker_are_renewed_and_its_runs_ended(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        for number, (worker, status) in enumerate(
            [(WORKER, "pending"), (WORKER, "running"), (WORKER, "success"), (OTHER, "running")]
        ):
            await given_operation(runs, f"r{number}", f"t{number}", owner_worker_id=worker, status=status)
        await given_operation(runs, "r4", "t4", operation_kind="delete")
        until = lease(120)
        assert await runs.renew_leases_of_worker(WORKER, lease_expires_at=until) == 3
        leases = [(await stored_run(storage, f"r{n}")).get("lease_expires_at") == until for n in range(5)]
        assert leases == [True, True, False, False, True]
        ended = await runs.end_runs_of_worker(WORKER, status="interrupted", error="stop", stop_reason="why")
        assert ended == 3
        rows = [await stored_run(storage, f"r{n}") for n in range(5)]
        assert [row["status"] for row in rows] == [
            "interrupted",
            "interrupted",
            "success",
            "running",
            "interrupted",
        ]
        assert (rows[0]["error"], rows[0].get("stop_reason"), rows[2]["error"]) == ("stop", "why", None)
        assert rows[0]["ended_at"] is not None
        assert await runs.end_runs_of_worker(WORKER, status="error", error="again") == 0

    # Cancellation.

    async def test_first_cancellation_stands(self, storage: Storage, runs: RunOwnership) -> None:
        await given_operation(runs)
        assert await runs.request_cancel(RUN, action="rollback") == "rollback"
        first = await stored_run(storage)
        assert await runs.request_cancel(RUN, action="interrupt") == "rollback"
        row = await stored_run(storage)
        assert row.get("cancel_action") == "rollback"
        assert row.get("cancel_requested_at") == first.get("cancel_requested_at") is not None
        assert row["status"] == "pending"

    async def test_of_racing_cancellations_one_action_stands(self, runs: RunOwnership) -> None:
        await given_operation(runs)
        asked = [runs.request_cancel(RUN, action=CANCEL_ACTIONS[number % 2]) for number in range(20)]
        assert len(set(await asyncio.gather(*asked))) == 1

    async def test_ended_run_cannot_be_cancelled(self, storage: Storage, runs: RunOwnership) -> None:
        for status in ENDED_STATUSES:
            await given_operation(runs, status, status=status)
            before = await stored_run(storage, status)
            assert await runs.request_cancel(status, action="interrupt") is None
            assert await stored_run(storage, status) == before
        assert await runs.request_cancel("unknown", action="interrupt") is None

    async def test_completion_against_cancellation_has_one_winner(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        outcomes: set[bool] = set()
        for number in range(30):
            await given_operation(runs, f"r{number}", status="running")
            calls: list[Awaitable[Any]] = [
                runs.finalize_if_not_cancelled(f"r{number}", status="success"),
                runs.request_cancel(f"r{number}", action="interrupt"),
            ]
            if number % 2:
                calls.reverse()
            results = await asyncio.gather(*calls)
            finalized, cancelled = reversed(results) if number % 2 else results
            assert finalized.finalized is (cancelled is None)
            assert finalized.cancel_action == cancelled
            row = await stored_run(storage, f"r{number}")
            assert (row["status"], row.get("cancel_action")) == (
                ("success", None) if finalized.finalized else ("running", "interrupt")
            )
            await storage.runs.update_status(f"r{number}", "interrupted")
            outcomes.add(finalized.finalized)
        assert outcomes

    async def test_finalize_sets_what_is_given_of_an_active_run(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await given_operation(runs, error="old", stop_reason="old")
        assert await runs.finalize_if_not_cancelled(RUN, status="error") == (True, None)
        row = await stored_run(storage)
        assert (row["status"], row["error"], row.get("stop_reason")) == ("error", "old", "old")
        assert await runs.finalize_if_not_cancelled(RUN, status="success", error="new") == (False, None)
        assert await stored_run(storage) == row
        await given_operation(runs, "second")
        await runs.finalize_if_not_cancelled("second", status="timeout", error="e", stop_reason="s")
        row = await stored_run(storage, "second")
        assert (row["status"], row["error"], row.get("stop_reason")) == ("timeout", "e", "s")
        assert await runs.finalize_if_not_cancelled("unknown", status="success") == (False, None)

    # Take-over and lists.

    async def test_takeover_needs_an_expired_lease(self, storage: Storage, runs: RunOwnership) -> None:
        leases = {"none": None, "old": lease(-60), "within grace": lease(-20), "valid": lease()}
        for name, expires in leases.items():
            await given_operation(runs, name, name, lease_expires_at=expires)
        expired = {"none", "old"}
        listed = await runs.list_inflight_with_expired_lease(grace_seconds=40)
        assert {row["run_id"] for row in listed} == expired
        for name in leases:
            claimed = await runs.claim_for_takeover(name, grace_seconds=40, error="lost", stop_reason="why")
            assert claimed is (name in expired)
            row = await stored_run(storage, name)
            if claimed:
                assert (row["status"], row["error"], row.get("stop_reason")) == ("error", "lost", "why")
                assert row["ended_at"] is not None
            else:
                assert row["status"] == "pending"
            assert (row.get("owner_worker_id"), row.get("lease_expires_at")) == (WORKER, leases[name])
            assert not await runs.claim_for_takeover(name, grace_seconds=40, error="again")
        assert not await runs.claim_for_takeover("unknown", grace_seconds=0, error="lost")

    async def test_of_racing_takeovers_one_wins(self, runs: RunOwnership) -> None:
        await given_operation(runs, lease_expires_at=lease(-60))
        claims = [runs.claim_for_takeover(RUN, grace_seconds=1, error=f"by {n}") for n in range(20)]
        assert (await asyncio.gather(*claims)).count(True) == 1

    async def test_inflight_lists_active_operations_oldest_first(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        times = ["2026-03-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"]
        for number, created_at in enumerate(times):
            kind = OPERATION_KINDS[number]
            await given_operation(
                runs, f"r{number}", f"t{number}", created_at=created_at, operation_kind=kind
            )
        for status in ENDED_STATUSES:
            await given_operation(runs, status, status=status, created_at="2026-01-01")
        await storage.runs.create("created", THREAD, user_id=None, created_at="2026-04-01")
        found = [row["run_id"] for row in await runs.list_inflight()]
        assert found == ["r1", "r2", "r0", "created"]
        until = [row["run_id"] for row in await runs.list_inflight(before=times[2])]
        assert until == ["r1", "r2"]
        expired = await runs.list_inflight_with_expired_lease(before=times[0], grace_seconds=0)
        assert expired == []
