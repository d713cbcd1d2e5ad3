"""Admission of runs to a thread: one active operation, whatever races; who may interrupt whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ..contract.capabilities import RunOwnership
from ..contract.errors import ActiveRunError, ArgumentValueError, IdempotencyKeyError, RunExistsError
from ..contract.protocols import Storage
from ..contract.rows import OPERATION_KINDS, SUPERSEDED_ERROR, RunRow, ThreadOperation
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, acting_as, snapshot, stored_run
from .run_ownership import OTHER, WORKER, OwnershipContract, given_operation, lease

_RACING = 200
_INTERRUPTING = ("interrupt", "rollback")


async def _admit(
    runs: RunOwnership, run_id: str = RUN, thread_id: str = THREAD, **fields: Any
) -> ThreadOperation:
    defaults: dict[str, Any] = {
        "user_id": ALICE,
        "owner_worker_id": WORKER,
        "lease_expires_at": lease(),
    }
    return await runs.create_thread_operation_atomic(run_id, thread_id=thread_id, **{**defaults, **fields})


async def _active(storage: Storage, runs: RunOwnership, thread_id: str = THREAD) -> list[str]:
    del storage
    return [row["run_id"] for row in await runs.list_inflight() if row["thread_id"] == thread_id]


class AdmissionContract(OwnershipContract):
    async def test_admitted_run_is_stored_as_returned(self, storage: Storage, runs: RunOwnership) -> None:
        fields: dict[str, Any] = {
            "operation_kind": "run",
            "multitask_strategy": "interrupt",
            "assistant_id": "lead",
            "user_id": ALICE,
            "model_name": "gpt-4.1",
            "metadata": {"a.b": 1},
            "kwargs": {"$c": [1]},
            "created_at": "2026-04-22T03:26:38.123456+00:00",
            "follow_up_to_run_id": "run-0",
            "idempotency_key": "key",
        }
        until = lease()
        row, interrupted = await _admit(runs, **fields, lease_expires_at=until)
        assert interrupted == []
        assert set(row) == set(RunRow.__annotations__)
        assert {name: dict(row)[name] for name in fields} == fields
        assert (row["status"], row.get("owner_worker_id")) == ("pending", WORKER)
        assert row.get("lease_expires_at") == until
        assert await stored_run(storage) == row

    async def test_admission_stores_the_bound_user_by_default(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        with acting_as(BOB):
            await runs.create_thread_operation_atomic(
                RUN, thread_id=THREAD, owner_worker_id=WORKER, lease_expires_at=None
            )
        row = await stored_run(storage)
        assert (row["user_id"], row.get("lease_expires_at"), row["multitask_strategy"]) == (
            BOB,
            None,
            "reject",
        )

    async def test_of_racing_admissions_one_wins(self, storage: Storage, runs: RunOwnership) -> None:
        results = await asyncio.gather(
            *(_admit(runs, f"r{number}") for number in range(_RACING)), return_exceptions=True
        )
        admitted = [result for result in results if not isinstance(result, BaseException)]
        refused = [result for result in results if isinstance(result, ActiveRunError)]
        assert (len(admitted), len(refused)) == (1, _RACING - 1)
        assert all(error.thread_id == THREAD and not error.is_protected for error in refused)
        listed = await storage.runs.list_by_thread(THREAD, user_id=None)
        assert [row["run_id"] for row in listed] == [admitted[0].row["run_id"]]

    async def test_every_kind_occupies_its_thread(self, storage: Storage, runs: RunOwnership) -> None:
        for kind in OPERATION_KINDS:
            await _admit(runs, kind, f"of {kind}", operation_kind=kind)
            for other in OPERATION_KINDS:
                with case(f"{other} beside {kind}"), pytest.raises(ActiveRunError):
                    await _admit(runs, "second", f"of {kind}", operation_kind=other)
            await storage.runs.delete(kind, user_id=None)
            await _admit(runs, f"after {kind}", f"of {kind}")

    async def test_own_run_is_interrupted_by_a_newer_one(self, storage: Storage, runs: RunOwnership) -> None:
        for number, strategy in enumerate(_INTERRUPTING):
            thread_id = f"t{number}"
            await _admit(runs, f"old {number}", thread_id)
            await runs.start_run(f"old {number}")
            row, interrupted = await _admit(runs, f"new {number}", thread_id, multitask_strategy=strategy)
            assert (row["run_id"], row["status"]) == (f"new {number}", "pending")
            assert [old["run_id"] for old in interrupted] == [f"old {number}"]
            old = await stored_run(storage, f"old {number}")
            assert interrupted == [old]
            assert (old["status"], old["error"]) == ("interrupted", SUPERSEDED_ERROR)
            assert old["ended_at"] is not None
            assert await _active(storage, runs, thread_id) == [f"new {number}"]

    async def test_run_of_a_dead_worker_is_interrupted(self, storage: Storage, runs: RunOwnership) -> None:
        for number, expires in enumerate((lease(-60), None)):
            thread_id = f"t{number}"
            await _admit(runs, f"old {number}", thread_id, owner_worker_id=OTHER, lease_expires_at=expires)
            _, interrupted = await _admit(runs, f"new {number}", thread_id, multitask_strategy="interrupt")
            assert [old["run_id"] for old in interrupted] == [f"old {number}"]
            old = await stored_run(storage, f"old {number}")
            assert (old["status"], old.get("owner_worker_id")) == ("interrupted", WORKER)

    async def test_run_of_a_live_worker_is_protected(self, storage: Storage, runs: RunOwnership) -> None:
        for expires in (lease(), lease(-5)):
            await given_operation(runs, owner_worker_id=OTHER, lease_expires_at=expires)
            before = await stored_run(storage)
            for strategy in _INTERRUPTING:
                with pytest.raises(ActiveRunError) as caught:
                    await _admit(runs, "second", multitask_strategy=strategy, grace_seconds=20)
                assert caught.value.is_protected
            assert await stored_run(storage) == before
        assert await storage.runs.get("second", user_id=None) is None

    async def test_reservation_is_protected_until_its_lease_expires(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        for kind in OPERATION_KINDS[1:]:
            for expires in (lease(), None):
                await given_operation(runs, kind, kind, operation_kind=kind, lease_expires_at=expires)
                with case(f"{kind} {expires}"), pytest.raises(ActiveRunError) as caught:
                    await _admit(runs, "second", kind, multitask_strategy="interrupt")
                assert caught.value.is_protected
                assert (await stored_run(storage, kind))["status"] == "pending"
            await given_operation(runs, kind, kind, operation_kind=kind, lease_expires_at=lease(-60))
            _, interrupted = await _admit(runs, f"new {kind}", kind, multitask_strategy="rollback")
            assert [row["run_id"] for row in interrupted] == [kind]

    async def test_racing_interrupts_leave_one_active_run(self, storage: Storage, runs: RunOwnership) -> None:
        await _admit(runs, "old")
        results = await asyncio.gather(
            *(_admit(runs, f"r{number}", multitask_strategy="interrupt") for number in range(8)),
            return_exceptions=True,
        )
        admitted = [result for result in results if not isinstance(result, BaseException)]
        assert all(isinstance(result, ThreadOperation | ActiveRunError) for result in results)
        [active] = await _active(storage, runs)
        interrupted = [row["run_id"] for result in admitted for row in result.interrupted]
        assert len(interrupted) == len(set(interrupted))
        assert active in [result.row["run_id"] for result in admitted]
        for row in await storage.runs.list_by_thread(THREAD, user_id=None):
            assert row["run_id"] == active or row["status"] == "interrupted"

    async def test_racing_interrupts_of_two_workers_leave_one_active_run(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        for number in range(10):
            thread_id = f"t{number}"
            await _admit(runs, f"old {number}", thread_id, lease_expires_at=lease(-60))
            results = await asyncio.gather(
                *(
                    _admit(
                        runs, f"{worker} {number}", thread_id, owner_worker_id=worker, multitask_strategy=s
                    )
                    for worker, s in ((WORKER, "interrupt"), (OTHER, "rollback"))
                ),
                return_exceptions=True,
            )
            admitted = [result for result in results if isinstance(result, ThreadOperation)]
            assert len(admitted) == 1
            assert await _active(storage, runs, thread_id) == [admitted[0].row["run_id"]]
            assert (await stored_run(storage, f"old {number}"))["status"] == "interrupted"

    async def test_known_idempotency_key_changes_nothing(self, storage: Storage, runs: RunOwnership) -> None:
        """Whatever its thread, its status and the strategy."""
        await _admit(runs, "keyed", "thread-2", idempotency_key="key")
        await storage.runs.update_status("keyed", "success")
        keyed = await stored_run(storage, "keyed")
        await _admit(runs)
        before = await snapshot(storage, THREAD, "thread-2")
        for strategy in ("reject", *_INTERRUPTING):
            with case(strategy), pytest.raises(IdempotencyKeyError) as caught:
                await _admit(runs, "second", idempotency_key="key", multitask_strategy=strategy)
            assert caught.value.existing == keyed
        assert await snapshot(storage, THREAD, "thread-2") == before
        with pytest.raises(IdempotencyKeyError):
            await given_operation(runs, "third", "thread-3", idempotency_key="key")
        await _admit(runs, "fourth", "thread-3", idempotency_key="other key")

    async def test_of_racing_admissions_with_one_key_one_wins(self, runs: RunOwnership) -> None:
        results = await asyncio.gather(
            *(_admit(runs, f"r{n}", f"t{n}", idempotency_key="key") for n in range(20)),
            return_exceptions=True,
        )
        admitted = [result for result in results if isinstance(result, ThreadOperation)]
        refused = [result for result in results if isinstance(result, IdempotencyKeyError)]
        assert (len(admitted), len(refused)) == (1, 19)
        assert {error.existing["run_id"] for error in refused} == {admitted[0].row["run_id"]}

    async def test_key_of_a_deleted_run_is_free(self, storage: Storage, runs: RunOwnership) -> None:
        await _admit(runs, idempotency_key="key")
        await storage.runs.delete(RUN, user_id=None)
        assert (await _admit(runs, "second", idempotency_key="key")).row.get("idempotency_key") == "key"

    async def test_expired_lease_alone_frees_no_thread(self, runs: RunOwnership) -> None:
        """A run is over when somebody ends it: one that rejects does not."""
        await _admit(runs, owner_worker_id=OTHER, lease_expires_at=lease(-3_600))
        with pytest.raises(ActiveRunError) as caught:
            await _admit(runs, "second")
        assert not caught.value.is_protected

    async def test_grace_period_of_an_admission_is_ten_seconds_by_default(self, runs: RunOwnership) -> None:
        await _admit(runs, owner_worker_id=OTHER, lease_expires_at=lease(-5))
        with pytest.raises(ActiveRunError):
            await _admit(runs, "second", multitask_strategy="interrupt")
        await _admit(runs, "of another thread", "t", owner_worker_id=OTHER, lease_expires_at=lease(-15))
        assert (await _admit(runs, "third", "t", multitask_strategy="interrupt")).interrupted

    async def test_known_run_id_is_refused(self, storage: Storage, runs: RunOwnership) -> None:
        await given_operation(runs, status="success")
        before = await stored_run(storage)
        for strategy in ("reject", "interrupt"):
            with pytest.raises(RunExistsError):
                await _admit(runs, thread_id="thread-2", multitask_strategy=strategy)
        assert await stored_run(storage) == before

    async def test_unknown_kinds_and_strategies_are_refused(
        self, storage: Storage, runs: RunOwnership
    ) -> None:
        await _admit(runs)
        wrong: tuple[dict[str, Any], ...] = (
            {"operation_kind": "walk"},
            {"operation_kind": None},
            {"multitask_strategy": "enqueue"},
            {"multitask_strategy": ""},
            {"grace_seconds": -1},
            {"lease_expires_at": "soon"},
            {"created_at": "soon"},
            {"owner_worker_id": ""},
        )
        before = await snapshot(storage)
        for fields in wrong:
            with case(str(fields)), pytest.raises(ArgumentValueError):
                await _admit(runs, "second", **{"multitask_strategy": "interrupt", **fields})
        assert await snapshot(storage) == before
