"""Runs of several workers: admission to a thread, leases, cancellation, take-over.

Every method reads and writes between two awaits of the event loop, so the old state is compared and the new
one is set in one atomic step. All workers of a storage in memory are in one process, but their clocks may
differ: a lease ends on the clock of `data.database_time_ms`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Unpack, cast

from ..contract import arguments, rows, statuses, times
from ..contract.actor import AUTO
from ..contract.capabilities import RunOwnership
from ..contract.errors import ActiveRunError, ArgumentValueError, IdempotencyKeyError, RunExistsError
from ..contract.payloads import to_json_mapping
from ..contract.rows import RunRow, TimeInput
from . import data
from .run_rows import RunRows, set_stop_reason, until, was_created_until


class MemoryRunOwnership(RunRows, RunOwnership):
    """`RunOwnership` in memory."""

    # Writing runs and reservations.

    async def put(self, run_id: str, *, thread_id: str, **fields: Unpack[rows.OperationFields]) -> None:
        arguments.check_keywords(fields, rows.OperationFields)
        changes = _operation(run_id, thread_id, fields, "RunOwnership.put")
        stored = self._data.runs.get(changes["run_id"])
        if stored is not None:
            del changes["created_at"]
        row = cast("RunRow", {**_nothing_yet(), **(stored or {}), **changes})
        if not statuses.is_ending(row["status"]):
            row["ended_at"] = None  # a run that becomes active again has not ended
        self._check_key(row)
        self._check_free(row, row["status"])
        self._store(row)
        if stored is not None:
            self._mark_updated(row)

    async def create_thread_operation_atomic(
        self,
        run_id: str,
        *,
        thread_id: str,
        owner_worker_id: str,
        lease_expires_at: TimeInput | None,
        **fields: Unpack[rows.AdmissionFields],
    ) -> rows.ThreadOperation:
        arguments.check_keywords(fields, rows.AdmissionFields)
        grace_ms = 1_000 * arguments.seconds("grace_seconds", fields.get("grace_seconds", 10))
        operation = {
            **fields,
            "operation_kind": arguments.one_of(
                "operation_kind", fields.get("operation_kind", "run"), rows.OPERATION_KINDS
            ),
            "owner_worker_id": arguments.identifier("owner_worker_id", owner_worker_id),
            "lease_expires_at": lease_expires_at,
        }
        method = "RunOwnership.create_thread_operation_atomic"
        row = cast("RunRow", {**_nothing_yet(), **_operation(run_id, thread_id, operation, method)})
        self._check_key(row)
        if row["run_id"] in self._data.runs:
            raise RunExistsError(row["run_id"])
        interrupted = self._free_thread(row, owner_worker_id, grace_ms)
        self._store(row)
        return rows.ThreadOperation(self._copy(row), self._copies(interrupted))

    def _free_thread(self, new: RunRow, owner_worker_id: str, grace_ms: float) -> list[RunRow]:
        """End the run that occupies the new one's thread, if the new one may do that; the runs ended."""
        occupant = self._occupant(new["thread_id"], but=new["run_id"])
        if occupant is None:
            return []
        if new["multitask_strategy"] == "reject":
            raise ActiveRunError(new["thread_id"])
        has_lease = occupant.get("lease_expires_at") is not None
        is_expired = has_lease and self._has_expired(occupant, grace_ms)
        is_foreign = has_lease and occupant.get("owner_worker_id") != owner_worker_id
        if not is_expired and (is_foreign or occupant.get("operation_kind") != "run"):
            raise ActiveRunError(new["thread_id"], is_protected=True)
        self._end(occupant, _Ending("interrupted", rows.SUPERSEDED_ERROR, None))
        occupant["owner_worker_id"] = owner_worker_id
        return [occupant]

    def _check_key(self, row: RunRow) -> None:
        """Raise `IdempotencyKeyError` where another run has this one's key, or admission has seen it."""
        key = row.get("idempotency_key")
        if key is None:
            return
        for other in self._data.runs.values():
            if other.get("idempotency_key") == key and other["run_id"] != row["run_id"]:
                raise IdempotencyKeyError(self._copy(other))

    def _store(self, row: RunRow) -> None:
        self._data.runs[row["run_id"]] = row
        if "lease_expires_at" in row:
            self._set_lease(row, row["lease_expires_at"])
        self._data.wake_followers_of_run(row["run_id"])

    async def start_run(self, run_id: str) -> bool:
        run = self._find(run_id, None)
        if run is None or run["status"] != rows.PENDING:
            return False
        self._mark_updated(run)
        run["status"], run["started_at"] = "running", run["updated_at"]
        return True

    async def update_run_progress(self, run_id: str, **fields: Unpack[rows.RunProgressFields]) -> bool:
        arguments.check_keywords(fields, rows.RunProgressFields)
        given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        by_model = arguments.model_counts("token_usage_by_model", given.pop("token_usage_by_model", None))
        changes = {
            name: (arguments.count if name in rows.COMPLETION_COUNTS else arguments.long_text)(name, value)
            for name, value in given.items()
        }
        run = self._find(run_id, None)
        if run is None or run["status"] != "running":
            return False
        self._mark_updated(run)
        cast("dict[str, Any]", run).update(changes)
        if by_model is not None:
            self._data.model_counts[run["run_id"]] = by_model
        return True

    # Leases.

    async def update_lease(self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput) -> bool:
        renewal = await self.renew_lease(
            run_id, owner_worker_id=owner_worker_id, lease_expires_at=lease_expires_at
        )
        return renewal.renewed

    async def renew_lease(
        self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput
    ) -> rows.LeaseRenewal:
        owner = arguments.identifier("owner_worker_id", owner_worker_id)
        expiry = times.parse_time("lease_expires_at", lease_expires_at).isoformat()
        run = self._find(run_id, None)
        if run is None or not _is_active_of(run, owner):
            return rows.LeaseRenewal(renewed=False)
        self._renew(run, expiry)
        return rows.LeaseRenewal(renewed=True, cancel_action=run.get("cancel_action"))

    async def renew_leases_of_worker(self, owner_worker_id: str, *, lease_expires_at: TimeInput) -> int:
        owner = arguments.identifier("owner_worker_id", owner_worker_id)
        expiry = times.parse_time("lease_expires_at", lease_expires_at).isoformat()
        active = self._select(lambda run: _is_active_of(run, owner))
        for run in active:
            self._renew(run, expiry)
        return len(active)

    def _renew(self, run: RunRow, expiry: str) -> None:
        self._mark_updated(run)
        self._set_lease(run, expiry)

    def _set_lease(self, run: RunRow, expiry: str | None) -> None:
        """Set the time that the caller gave, and when that is on the database's clock."""
        run["lease_expires_at"] = expiry
        self._data.lease_ends_ms.pop(run["run_id"], None)
        if expiry is not None:
            callers_time = data.EPOCH + timedelta(microseconds=times.system_clock_us())
            lease = times.parse_time("lease_expires_at", expiry) - callers_time
            self._data.lease_ends_ms[run["run_id"]] = data.database_time_ms() + lease / timedelta(
                milliseconds=1
            )

    def _has_expired(self, run: RunRow, grace_ms: float) -> bool:
        """Whether the lease ended earlier than the grace period ago; a run without a lease has none."""
        ends_ms = self._data.lease_ends_ms.get(run["run_id"])
        return ends_ms is None or ends_ms < data.database_time_ms() - grace_ms

    # Cancellation and endings.

    async def request_cancel(self, run_id: str, *, action: rows.CancelAction) -> rows.CancelAction | None:
        wanted = cast("rows.CancelAction", arguments.one_of("action", action, rows.CANCEL_ACTIONS))
        run = self._find(run_id, None)
        if run is None or not _is_active(run):
            return None
        self._mark_updated(run)
        first = run.get("cancel_action")
        if first is not None:
            return first
        for name, value in _no_owner().items():
            cast("dict[str, Any]", run).setdefault(name, value)
        run["cancel_action"], run["cancel_requested_at"] = wanted, run["updated_at"]
        return wanted

    async def finalize_if_not_cancelled(
        self, run_id: str, *, status: str, error: str | None = None, stop_reason: str | None = None
    ) -> rows.StatusFinalization:
        ending = _Ending(status, error, stop_reason)
        run = self._find(run_id, None)
        if run is None:
            return rows.StatusFinalization(finalized=False)
        cancel_action = run.get("cancel_action")
        if cancel_action is not None or not _is_active(run):
            return rows.StatusFinalization(finalized=False, cancel_action=cancel_action)
        self._end(run, ending)
        return rows.StatusFinalization(finalized=True)

    async def claim_for_takeover(
        self, run_id: str, *, grace_seconds: float, error: str, stop_reason: str | None = None
    ) -> bool:
        grace_ms = 1_000 * arguments.seconds("grace_seconds", grace_seconds)
        ending = _Ending("error", error, stop_reason)
        run = self._find(run_id, None)
        if run is None or not _is_active(run) or not self._has_expired(run, grace_ms):
            return False
        self._end(run, ending)
        return True

    async def end_runs_of_worker(
        self, owner_worker_id: str, *, status: str, error: str, stop_reason: str | None = None
    ) -> int:
        owner = arguments.identifier("owner_worker_id", owner_worker_id)
        ending = _Ending(status, error, stop_reason)
        if ending.status not in rows.ENDED_STATUSES:
            raise ArgumentValueError(
                f"status must be one of {', '.join(rows.ENDED_STATUSES)}, got {status!r}"
            )
        active = self._select(lambda run: _is_active_of(run, owner))
        for run in active:
            self._end(run, ending)
        return len(active)

    def _end(self, run: RunRow, ending: _Ending) -> None:
        self._mark_updated(run)
        run["status"] = ending.status
        if run["ended_at"] is None and statuses.is_ending(ending.status):
            run["ended_at"] = run["updated_at"]
        if ending.error is not None:
            run["error"] = ending.error
        set_stop_reason(run, ending.stop_reason)

    # Lists.

    async def list_inflight(self, *, before: TimeInput | None = None) -> list[RunRow]:
        return self._inflight(before, lambda _: True)

    async def list_inflight_with_expired_lease(
        self, *, before: TimeInput | None = None, grace_seconds: float = 10
    ) -> list[RunRow]:
        grace_ms = 1_000 * arguments.seconds("grace_seconds", grace_seconds)
        return self._inflight(before, lambda run: self._has_expired(run, grace_ms))

    def _inflight(self, before: TimeInput | None, is_wanted: Callable[[RunRow], bool]) -> list[RunRow]:
        end = until(before)
        found = self._select(lambda run: _is_active(run) and was_created_until(run, end) and is_wanted(run))
        return self._copies(data.oldest_first(found))

    def _select(self, is_wanted: Callable[[RunRow], bool]) -> list[RunRow]:
        return [run for run in self._data.runs.values() if is_wanted(run)]


class _Ending:
    """A checked status with its texts, of which the absent ones stay as they are."""

    def __init__(self, status: object, error: object, stop_reason: object) -> None:
        self.status = arguments.owned_status("status", status)
        self.error = arguments.long_text("error", error)
        self.stop_reason = arguments.long_text("stop_reason", stop_reason)


def _is_active(run: RunRow) -> bool:
    return run["status"] in rows.ACTIVE_STATUSES


def _is_active_of(run: RunRow, owner: str) -> bool:
    return _is_active(run) and run.get("owner_worker_id") == owner


def _no_owner() -> dict[str, Any]:
    """The fields that only the rows of `RunOwnership` have, without values."""
    return {name: None for name in rows.OwnedRunRow.__annotations__ if name != "token_usage_by_model"}


def _nothing_yet() -> dict[str, Any]:
    """What a new run has besides the fields of `put`."""
    return {
        "updated_at": "",
        "started_at": None,
        "ended_at": None,
        **dict.fromkeys(rows.COMPLETION_COUNTS, 0),
        "first_human_message": None,
        "last_ai_message": None,
        **_no_owner(),
    }


def _operation(run_id: object, thread_id: object, fields: Any, method: str) -> dict[str, Any]:
    """The checked fields of `put`, each with its default."""
    kind = fields.get("operation_kind", "run")
    created_at = data.optional_time("created_at", fields.get("created_at"))
    return {
        "run_id": arguments.identifier("run_id", run_id),
        "thread_id": arguments.identifier("thread_id", thread_id),
        "assistant_id": arguments.optional_text("assistant_id", fields.get("assistant_id")),
        "user_id": arguments.acting_user(fields.get("user_id", AUTO), method),
        "status": arguments.owned_status("status", fields.get("status", rows.PENDING)),
        "operation_kind": None
        if kind is None
        else arguments.one_of("operation_kind", kind, rows.OPERATION_KINDS),
        "multitask_strategy": arguments.one_of(
            "multitask_strategy", fields.get("multitask_strategy", "reject"), rows.MULTITASK_STRATEGIES
        ),
        "model_name": arguments.optional_text("model_name", fields.get("model_name")),
        "metadata": to_json_mapping(fields.get("metadata"), "metadata"),
        "kwargs": to_json_mapping(fields.get("kwargs"), "kwargs"),
        "error": arguments.long_text("error", fields.get("error")),
        "stop_reason": arguments.long_text("stop_reason", fields.get("stop_reason")),
        "created_at": created_at or data.now().isoformat(),
        "follow_up_to_run_id": arguments.optional_text(
            "follow_up_to_run_id", fields.get("follow_up_to_run_id")
        ),
        "owner_worker_id": _optional_identifier("owner_worker_id", fields.get("owner_worker_id")),
        "lease_expires_at": data.optional_time("lease_expires_at", fields.get("lease_expires_at")),
        "idempotency_key": _optional_identifier("idempotency_key", fields.get("idempotency_key")),
    }


def _optional_identifier(name: str, value: object) -> str | None:
    return None if value is None else arguments.identifier(name, value)
