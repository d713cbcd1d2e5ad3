"""Leases by the clock of the database, and the arguments and results of every method of run ownership.

What each method does is in `run_ownership.py` and `admission.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from ..contract import times
from ..contract.capabilities import RunOwnership
from ..contract.errors import ActiveRunError, ArgumentValueError, IdempotencyKeyError
from ..contract.factory import create_storage
from ..contract.protocols import Storage
from ..contract.rows import (
    CANCEL_ACTIONS,
    ENDED_STATUSES,
    OPERATION_KINDS,
    OWNED_STATUSES,
    LeaseRenewal,
    RunRow,
    StatusFinalization,
)
from .cases import case
from .contract import RUN, THREAD, given_run, stored_run
from .methods import OPTIONAL, OWNERSHIP_METHODS, REQUIRED
from .network import no_connections
from .run_ownership import OTHER, WORKER, OwnershipContract, given_operation, lease
from .values import COMPLETION_DATA

_FAR = "2999-01-01T00:00:00+00:00"
_DAY_S = 86_400.0
_ROUNDS = 20


@contextmanager
def _clock_ahead(seconds: float) -> Generator[None]:
    """A worker whose clock is wrong: what `contract.times` reads is so many seconds later than it is."""
    real = times.time
    shifted = SimpleNamespace(
        time=lambda: real.time() + seconds, time_ns=lambda: real.time_ns() + round(seconds * 10**9)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(times, "time", shifted)
        patch.setattr(times.clock, "_last_us", 0)  # it goes back with the clock, here and afterwards
        yield


async def _given(runs: RunOwnership, run_id: str, **fields: Any) -> None:
    """Store the run in a thread of its own."""
    await given_operation(runs, run_id, f"of {run_id}", **fields)


async def _expired(runs: RunOwnership, grace_seconds: float) -> list[str]:
    found = await runs.list_inflight_with_expired_lease(before=_FAR, grace_seconds=grace_seconds)
    return [row["run_id"] for row in found]


class LeaseContract(OwnershipContract):
    # The clocks.

    async def test_grace_period_decides_which_leases_have_expired(self, runs: RunOwnership) -> None:
        """A run without a lease has expired at once; ten seconds are the default."""
        ends = {"later": lease(3_600), "soon": lease(60), "just": lease(-5), "earlier": lease(-60)}
        for run_id, expires in ends.items():
            await _given(runs, run_id, lease_expires_at=expires)
        await _given(runs, "never", lease_expires_at=None)
        for grace, found in (
            (0, ["just", "earlier", "never"]),
            (0.5, ["just", "earlier", "never"]),
            (30, ["earlier", "never"]),
            (3_600, ["never"]),
        ):
            with case(grace):
                assert await _expired(runs, grace) == found
        by_default = await runs.list_inflight_with_expired_lease(before=_FAR)
        assert [row["run_id"] for row in by_default] == ["earlier", "never"]

    async def test_worker_with_a_wrong_clock_neither_loses_nor_keeps_its_runs(
        self, runs: RunOwnership
    ) -> None:
        """A lease is as long as its owner asked for, whatever the owner's clock shows."""
        for shift in (-_DAY_S, _DAY_S):
            with case(shift):
                with _clock_ahead(shift):
                    await _given(runs, f"valid {shift}", lease_expires_at=lease(shift + 60))
                    await _given(runs, f"over {shift}", lease_expires_at=lease(shift - 60))
                    await _given(runs, f"renewed {shift}", lease_expires_at=None)
                    await runs.update_lease(
                        f"renewed {shift}", owner_worker_id=WORKER, lease_expires_at=lease(shift + 60)
                    )
                assert await _expired(runs, 10) == [f"over {shift}"]
                for name in ("valid", "renewed"):
                    assert not await runs.claim_for_takeover(f"{name} {shift}", grace_seconds=10, error="no")
                with pytest.raises(ActiveRunError):
                    await runs.create_thread_operation_atomic(
                        "new",
                        thread_id=f"of valid {shift}",
                        owner_worker_id=OTHER,
                        lease_expires_at=None,
                        multitask_strategy="interrupt",
                        user_id=None,
                    )
                assert await runs.claim_for_takeover(f"over {shift}", grace_seconds=10, error="gone")

    async def test_worker_with_a_wrong_clock_steals_no_run(self, runs: RunOwnership) -> None:
        await given_operation(runs)
        for shift in (-_DAY_S, _DAY_S):
            with case(shift), _clock_ahead(shift):
                assert await _expired(runs, 0) == []
                assert not await runs.claim_for_takeover(RUN, grace_seconds=0, error="no")

    # Races.

    async def test_take_over_and_renewal_exclude_each_other(self, runs: RunOwnership) -> None:
        for number in range(_ROUNDS):
            run_id = f"run-{number}"
            await _given(runs, run_id, lease_expires_at=lease(-60))
            renewal = runs.renew_lease(run_id, owner_worker_id=WORKER, lease_expires_at=_FAR)
            claim = runs.claim_for_takeover(run_id, grace_seconds=1, error="gone")
            if number % 2:
                renewed, claimed = await asyncio.gather(renewal, claim)
            else:
                claimed, renewed = await asyncio.gather(claim, renewal)
            with case(number):
                assert renewed.renewed != claimed

    async def test_racing_puts_of_one_run_store_it_once(self, runs: RunOwnership) -> None:
        await asyncio.gather(*(given_operation(runs, idempotency_key="key") for _ in range(50)))
        assert [row["run_id"] for row in await runs.list_inflight()] == [RUN]

    async def test_of_racing_puts_one_occupies_the_thread(self, runs: RunOwnership) -> None:
        puts = (given_operation(runs, f"run-{number}") for number in range(50))
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert sum(isinstance(result, ActiveRunError) for result in results) == 49
        [active] = await runs.list_inflight()
        assert results[int(active["run_id"].removeprefix("run-"))] is None

    # Rows.

    async def test_put_with_the_key_of_another_run_changes_nothing(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await _given(runs, "first", status="success", idempotency_key="key")
        await _given(runs, "other", status="success", idempotency_key="another key")
        before = await stored_run(storage, "other")
        for run_id in ("new", "other"):
            with case(run_id):
                with pytest.raises(IdempotencyKeyError, match="first") as raised:
                    await _given(runs, run_id, idempotency_key="key")
                assert raised.value.existing == await stored_run(storage, "first")
        assert await stored_run(storage, "other") == before
        assert await storage.runs.get("new", user_id=None) is None

    async def test_put_gives_a_created_run_an_owner(self, storage: Storage, runs: RunOwnership) -> None:
        """`created_at` is that of the first call."""
        before = await given_run(storage, metadata={"a": 1})
        await given_operation(runs, created_at="2026-01-01", metadata={"b.c": 2})
        row = await stored_run(storage)
        assert set(row) == set(RunRow.__annotations__)
        assert (row["created_at"], row["metadata"]) == (before["created_at"], {"b.c": 2})
        assert row.get("owner_worker_id") == WORKER

    async def test_created_run_can_be_cancelled_and_taken_over(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        """The first requested action is in its row; it has no lease, which counts as expired."""
        await given_run(storage, status="running")
        assert await runs.request_cancel(RUN, action="rollback") == "rollback"
        assert await runs.request_cancel(RUN, action="interrupt") == "rollback"
        row = await stored_run(storage)
        assert set(row) == set(RunRow.__annotations__)
        assert (row.get("cancel_action"), row.get("operation_kind")) == ("rollback", None)
        assert await _expired(runs, 3_600) == [RUN]
        assert await runs.claim_for_takeover(RUN, grace_seconds=3_600, error="gone")
        assert (await stored_run(storage))["status"] == "error"

    async def test_second_active_run_by_a_status_changes_nothing(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        """A status that only the host knows is neither an ending nor active."""
        await given_operation(runs, "odd")
        await storage.runs.update_status("odd", "zzz")
        await given_operation(runs, "active")
        before = await stored_run(storage, "odd")
        for status in ("pending", "running"):
            with case(status):
                with pytest.raises(ActiveRunError):
                    await storage.runs.update_status("odd", status, metadata={"a": 1})
                with pytest.raises(ActiveRunError):
                    await storage.runs.update_run_completion("odd", status=status, total_tokens=1)
        assert await stored_run(storage, "odd") == before

    async def test_stop_reason_is_set_only_where_given(self, storage: Storage, runs: RunOwnership) -> None:
        """And not by an active status of a run that has ended."""
        await given_operation(runs)
        for status, reason, expected in (
            ("running", "first", "first"),
            ("interrupted", None, "first"),
            ("running", "late", "first"),
            ("error", "", ""),
        ):
            await storage.runs.update_status(RUN, status, stop_reason=reason)
            with case(status, reason):
                assert (await stored_run(storage)).get("stop_reason") == expected

    async def test_regenerate_lists_leave_out_reservations(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        for kind in (*OPERATION_KINDS, None):
            metadata = {"regenerate_from_run_id": f"{kind}", "replay_kind": "edit"}
            await given_operation(runs, f"{kind}", operation_kind=kind, status="success", metadata=metadata)
        store = storage.runs
        assert await store.list_successful_regenerate_sources(THREAD, user_id=None) == {"run", "None"}
        edited = await store.list_edit_regenerate_runs(THREAD, user_id=None)
        assert [row["run_id"] for row in edited] == ["run", "None"]

    async def test_progress_sets_each_count_and_text_only_while_running(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await _given(runs, "running", status="running")
        expected = dict(await stored_run(storage, "running"))
        for name, value in COMPLETION_DATA.items():
            given: dict[str, Any] = {"message_count": None, "last_ai_message": None, name: value}
            with case(name):
                assert await runs.update_run_progress("running", **given)
                row = await stored_run(storage, "running")
                expected |= {name: value, "updated_at": row["updated_at"]}
                assert row == expected
        for status in OWNED_STATUSES:
            if status != "running":
                with case(status):
                    await _given(runs, status, status=status)
                    before = await stored_run(storage, status)
                    assert not await runs.update_run_progress(status, **COMPLETION_DATA)
                    assert await stored_run(storage, status) == before

    async def test_cancelled_or_ended_run_is_not_finalised(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        """The result has the requested action, also of a run that has ended since."""
        expected: dict[str, Any] = dict.fromkeys(ENDED_STATUSES)
        for status in ENDED_STATUSES:
            await _given(runs, status, status=status)
        for action in CANCEL_ACTIONS:
            for run_id in (action, f"ended {action}"):
                await _given(runs, run_id, status="running")
                await runs.request_cancel(run_id, action=action)
                expected[run_id] = action
            await storage.runs.update_status(f"ended {action}", "interrupted")
        for run_id, action in expected.items():
            with case(run_id):
                before = await stored_run(storage, run_id)
                outcome = await runs.finalize_if_not_cancelled(run_id, status="success", error="late")
                assert outcome == StatusFinalization(finalized=False, cancel_action=action)
                assert await stored_run(storage, run_id) == before

    # Arguments and results of every method.

    async def test_operation_on_an_unknown_run_is_a_result_and_not_logged(
        self, runs: RunOwnership, caplog: pytest.LogCaptureFixture
    ) -> None:
        renewal: dict[str, Any] = {"owner_worker_id": WORKER, "lease_expires_at": _FAR}
        results = [
            await runs.start_run("unknown"),
            await runs.update_lease("unknown", **renewal),
            await runs.renew_lease("unknown", **renewal),
            await runs.request_cancel("unknown", action="rollback"),
            await runs.finalize_if_not_cancelled("unknown", status="success"),
            await runs.claim_for_takeover("unknown", grace_seconds=0, error="gone"),
            await runs.update_run_progress("unknown", total_tokens=1),
        ]
        nothing = (LeaseRenewal(renewed=False), StatusFinalization(finalized=False))
        assert results == [False, False, nothing[0], None, nothing[1], False, False]
        assert [record for record in caplog.records if "unknown" in record.getMessage()] == []

    async def test_operations_need_no_actor_except_for_auto(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        del runs
        for method in OWNERSHIP_METHODS:
            arguments = {name: value for name, value in method.arguments.items() if name != "user_id"}
            with case(method.path):
                if not method.auto_by_default:
                    await method.exactly(storage, arguments)
                    continue
                with pytest.raises(RuntimeError, match=method.name):
                    await method.exactly(storage, arguments)

    async def test_wrong_argument_of_an_operation_is_refused(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        """Whatever it is; the error names the argument, and nothing is changed."""
        await given_operation(runs, "bystander")
        before = await stored_run(storage, "bystander")
        for method in OWNERSHIP_METHODS:
            for name, values in _WRONG.items():
                for value in values if name in method.arguments or name == "before" else ():
                    if name == "before" and not method.name.startswith("list_"):
                        continue
                    shown = repr(value)[:40]
                    with case(method.path, name, shown), pytest.raises((TypeError, ValueError), match=name):
                        await method(storage, **{name: value})
        assert await stored_run(storage, "bystander") == before
        assert [row["run_id"] for row in await runs.list_inflight()] == ["bystander"]

    async def test_name_that_is_in_no_table_is_refused(self, storage: Storage, runs: RunOwnership) -> None:
        """An unknown kind, strategy, action or status."""
        await given_operation(runs, "bystander")
        for method in OWNERSHIP_METHODS:
            for name in _TABLES & (set(method.arguments) | _KEYWORDS.get(method.name, set())):
                for value in _NOT_IN_A_TABLE:
                    if (method.name, name, value) == ("put", "operation_kind", None):
                        continue
                    with case(method.path, name, value), pytest.raises(ArgumentValueError, match=name):
                        await method(storage, **{name: value})
        assert [row["run_id"] for row in await runs.list_inflight()] == ["bystander"]

    async def test_invalid_id_of_an_operation_is_refused_before_any_query(
        self, storage_config: Mapping[str, Any]
    ) -> None:
        storage = create_storage(storage_config)
        if not isinstance(storage.runs, RunOwnership):
            pytest.skip(f"{type(storage.runs).__name__} does not have `RunOwnership`")
        with no_connections():
            for method in OWNERSHIP_METHODS:
                for name in method.named(REQUIRED | OPTIONAL | {"owner_worker_id", "idempotency_key"}):
                    for value in ({"$ne": None}, 5, b"x", ["x"], "x" * 1_025):
                        shown = repr(value)[:40]
                        with (
                            case(method.path, name, shown),
                            pytest.raises((TypeError, ValueError), match=name),
                        ):
                            await method(storage, **{name: value})
        await storage.aclose()


_NOT_IN_A_TABLE: tuple[Any, ...] = (
    "odd",
    "",
    "Run",
    "run ",
    "starting",
    None,
    5,
    True,
    {"$ne": None},
    ["run"],
)
_TABLES = {"operation_kind", "multitask_strategy", "action", "status"}
_KEYWORDS: Mapping[str, set[str]] = {
    "put": {"operation_kind", "multitask_strategy", "status"},
    "create_thread_operation_atomic": {"operation_kind", "multitask_strategy"},
}
_WRONG_IDS: tuple[Any, ...] = (None, "", 5, b"x", ["x"], {"$ne": None}, "x" * 1_025, "a\ud800")
_WRONG_TIMES: tuple[Any, ...] = ("", "soon", 5, 1.5, True, b"x", {"$gt": ""}, [_FAR])
_WRONG: Mapping[str, tuple[Any, ...]] = {
    "run_id": _WRONG_IDS,
    "thread_id": _WRONG_IDS,
    "owner_worker_id": _WRONG_IDS[1:],
    "idempotency_key": _WRONG_IDS[1:],
    "error": (5, True, b"x", ["x"], {"$ne": None}),
    "lease_expires_at": _WRONG_TIMES,
    "before": _WRONG_TIMES,
    "grace_seconds": (None, -1, -0.5, float("nan"), float("inf"), 10**12, "5", True, {"$gt": 0}),
    "total_tokens": (-1, 1.5, "5", True, 2**63, {"$inc": 1}),
}
"""What each argument may not be. None is no owner, key or lease for `put`."""
