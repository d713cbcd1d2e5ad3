"""DeerFlow's `RunStore` over ours, for every release that fits: later ones have more methods and arguments.

What differs between the releases is in `run_rows.py`, found by the names of DeerFlow's own interface. Which
run may start, whose lease is valid and who wins a race is not decided here but in `RunOwnership`.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, cast

from ...contract import rows
from ...contract.actor import bound_user_id
from ...contract.arguments import is_valid_id, one_of, owned_status
from ...contract.capabilities import RunOwnership
from ...contract.errors import (
    ActiveRunError,
    IdempotencyKeyError,
    RunExistsError,
    StorageError,
)
from ...contract.protocols import RunStore
from ...contract.rows import TimeInput
from ..deerflow import import_deerflow
from ..encodable import encodable
from .actors import AUTO, acting_user
from .counts_by_model import MAX_MODEL_NAME_CHARACTERS, CountsByModel, Tokens, counts_by_model
from .duplicate_keys import DuplicateRowError
from .run_rows import HAS_RUN_OWNERSHIP, PASSES_COUNTS_BY_MODEL, host_row
from .run_writes import message, write_payloads, write_texts

_base: Any = import_deerflow("deerflow.runtime.runs.store.base")
_manager: Any = import_deerflow("deerflow.runtime.runs.manager")

COUNTED_STATUSES: Final = ("success", "error")
"""The runs whose tokens count for their thread."""

_RUNNING: Final = "running"

_DEFAULT_KIND: Final = "run" if HAS_RUN_OWNERSHIP else None
"""A run of an older release has no kind and does not occupy its thread, which may have several."""

# An older release has no such types, and does not call the methods that return or raise them.
_LeaseRenewal: Any = getattr(_base, "LeaseRenewal", rows.LeaseRenewal)
_StatusFinalization: Any = getattr(_base, "StatusFinalization", rows.StatusFinalization)
_RunIdempotencyConflict: Any = getattr(_base, "RunIdempotencyConflict", IdempotencyKeyError)

logger = logging.getLogger(__name__)


class OwnedRunStore(RunStore, RunOwnership, Protocol):
    """A run store with owners and leases."""


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """This process as the owner of the runs that it stores, for a release of DeerFlow without owners.

    Somebody has to renew the leases: `renew_leases_of_worker`. DeerFlow's recovery then finds only the runs
    whose lease has expired.
    """

    worker_id: str
    lease_seconds: float
    grace_seconds: float

    def expires_at(self) -> datetime:
        """When a lease that is given now ends."""
        return datetime.now(UTC) + timedelta(seconds=self.lease_seconds)


def _model_name(model_name: object) -> str | None:
    return None if model_name is None else encodable(str(model_name)).strip()[:MAX_MODEL_NAME_CHARACTERS]


def _text_or_unset(text: str | None) -> str | rows.Unset:
    """DeerFlow passes None for a text that it does not have; the stored one stays."""
    return rows.UNSET if text is None else text


def _sources_of_status(status: str) -> tuple[str, ...] | None:
    """The statuses from which `update_status` may set this one; None for any.

    DeerFlow's manager ends a cancelled run as interrupted first and then, after a rollback, as an error. Its
    older releases decide nothing by the result.
    """
    if not HAS_RUN_OWNERSHIP:
        return None
    is_active = status in rows.OWNED_ACTIVE_STATUSES
    return rows.OWNED_ACTIVE_STATUSES if is_active else (*rows.OWNED_ACTIVE_STATUSES, "interrupted")


def _sources_of_completion(status: str) -> tuple[str, ...] | None:
    """The statuses from which `update_run_completion` may set this one; None for any."""
    if not HAS_RUN_OWNERSHIP:
        return None
    interrupted = ("interrupted",) if status == "error" else ()
    return tuple(dict.fromkeys((*rows.OWNED_ACTIVE_STATUSES, status, *interrupted)))


@contextmanager
def _duplicates_as_deerflows() -> Generator[None]:
    """DeerFlow's run manager answers its error for a duplicate key with 409."""
    try:
        yield
    except (ActiveRunError, IdempotencyKeyError, RunExistsError) as error:
        raise DuplicateRowError(str(error)) from error


def _no_usage() -> dict[str, Any]:
    return {
        "total_tokens": 0,
        "total_input_tokens": 0,
        "total_output_tokens": 0,
        "total_runs": 0,
        "by_model": {},
        "by_caller": dict.fromkeys(rows.CALLERS, 0),
    }


class RunStoreAdapter(_base.RunStore):
    """Runs with DeerFlow's names and rows; a row has `started_at` and `ended_at` as well.

    An ended run never becomes active again, whichever process sends an older status late. Where DeerFlow
    passes no counts by model, they are those of the run's events, and a run that was stored without a model's
    name gets the name of the lead agent's model when it ends. A duplicate key is a `DuplicateRowError`.
    """

    def __init__(
        self, runs: RunStore, counts: CountsByModel | None = None, lease: WorkerLease | None = None
    ) -> None:
        """`runs` has `RunOwnership`. `counts` is what the adapter of run events adds to.

        With a `lease`, which is for releases without owners, a run without an owner gets this one.
        """
        self._runs = cast("OwnedRunStore", runs)
        self._counts = CountsByModel() if counts is None else counts
        self._lease = lease

    # Writing and reading runs.

    async def put(
        self,
        run_id: str,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        user_id: Any = AUTO,
        model_name: str | None = None,
        status: str = "pending",
        operation_kind: str | None = _DEFAULT_KIND,
        multitask_strategy: str = "reject",
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        error: str | None = None,
        stop_reason: str | None = None,
        created_at: TimeInput | None = None,
        follow_up_to_run_id: str | None = None,
        owner_worker_id: str | None = None,
        lease_expires_at: TimeInput | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Store the run, or replace these fields of the run of this id.

        Raises `DuplicateRowError` for the second active run of a thread. Metadata and arguments that cannot
        be stored are left out, and logged.
        """
        if self._lease is not None and owner_worker_id is None:
            owner_worker_id, lease_expires_at = self._lease.worker_id, self._lease.expires_at()
        fields: rows.OperationFields = {
            "assistant_id": assistant_id,
            "user_id": acting_user(user_id, "RunStore.put"),
            "model_name": _model_name(model_name),
            "status": status,
            "operation_kind": cast("rows.OperationKind | None", operation_kind),
            "multitask_strategy": multitask_strategy,
            "metadata": metadata or {},
            "kwargs": kwargs or {},
            "error": error,
            "stop_reason": stop_reason,
            "created_at": created_at or None,
            "follow_up_to_run_id": follow_up_to_run_id,
            "owner_worker_id": owner_worker_id,
            "lease_expires_at": lease_expires_at or None,
            "idempotency_key": idempotency_key,
        }
        with _duplicates_as_deerflows():
            await write_payloads(
                lambda: self._runs.put(run_id, thread_id=thread_id, **fields),
                fields,
                run_id=run_id,
                thread_id=thread_id,
            )
        if not PASSES_COUNTS_BY_MODEL:
            self._counts.start(run_id, model_name)

    async def get(self, run_id: str, *, user_id: Any = AUTO) -> dict[str, Any] | None:
        user = acting_user(user_id, "RunStore.get")
        if not is_valid_id(run_id):
            return None
        row = await self._runs.get(run_id, user_id=user)
        return None if row is None else host_row(row)

    async def delete(self, run_id: str, *, user_id: Any = AUTO) -> None:
        await self._delete(run_id, acting_user(user_id, "RunStore.delete"))

    async def delete_thread_operation(self, run_id: str, *, user_id: str | None) -> None:
        """Delete a reservation of this user, or anybody's, whoever is bound when it is released."""
        await self._delete(run_id, None if user_id is None else str(user_id))

    async def _delete(self, run_id: str, user_id: str | None) -> None:
        if is_valid_id(run_id) and await self._runs.delete(run_id, user_id=user_id):
            self._counts.discard(run_id)

    # Lists.

    async def list_by_thread(
        self, thread_id: str, *, user_id: Any = AUTO, limit: int = 100
    ) -> list[dict[str, Any]]:
        user = acting_user(user_id, "RunStore.list_by_thread")
        if not is_valid_id(thread_id):
            return []
        return _host_rows(await self._runs.list_by_thread(thread_id, limit=limit, user_id=user))

    async def get_many_by_thread(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: Any = AUTO
    ) -> dict[str, dict[str, Any]]:
        if not run_ids:
            return {}
        user = acting_user(user_id, "RunStore.get_many_by_thread")
        known = [run_id for run_id in run_ids if is_valid_id(run_id)]
        if not known or not is_valid_id(thread_id):
            return {}
        found = await self._runs.get_many_by_thread(thread_id, known, user_id=user)
        return {run_id: host_row(row) for run_id, row in found.items()}

    async def list_successful_regenerate_sources(self, thread_id: str, *, user_id: Any = AUTO) -> set[str]:
        user = acting_user(user_id, "RunStore.list_successful_regenerate_sources")
        if not is_valid_id(thread_id):
            return set()
        return await self._runs.list_successful_regenerate_sources(thread_id, user_id=user)

    async def list_edit_regenerate_runs(self, thread_id: str, *, user_id: Any = AUTO) -> list[dict[str, Any]]:
        user = acting_user(user_id, "RunStore.list_edit_regenerate_runs")
        if not is_valid_id(thread_id):
            return []
        return _host_rows(await self._runs.list_edit_regenerate_runs(thread_id, user_id=user))

    async def list_pending(self, *, before: TimeInput | None = None) -> list[dict[str, Any]]:
        return _host_rows(await self._runs.list_pending(before=before))

    async def list_inflight(self, *, before: TimeInput | None = None) -> list[dict[str, Any]]:
        """The active runs; with a lease of this process, those that no living process owns."""
        if self._lease is None:
            return _host_rows(await self._runs.list_inflight(before=before))
        return await self.list_inflight_with_expired_lease(
            before=before, grace_seconds=self._lease.grace_seconds
        )

    async def list_inflight_with_expired_lease(
        self, *, before: TimeInput | None = None, grace_seconds: float = 10
    ) -> list[dict[str, Any]]:
        return _host_rows(
            await self._runs.list_inflight_with_expired_lease(before=before, grace_seconds=grace_seconds)
        )

    # Status, counts and texts.

    async def update_status(
        self, run_id: str, status: str, *, error: str | None = None, stop_reason: str | None = None
    ) -> bool:
        """Set the status; False for a run that does not exist or whose status may not become this one."""
        now, plain = datetime.now(UTC), owned_status("status", status)

        async def write(_: int | None, error: str | None) -> bool:
            return await self._runs.update_status(
                run_id,
                plain,
                started_at=now if plain == _RUNNING else None,
                ended_at=now if plain in rows.ENDED_STATUSES else None,
                error=error,
                stop_reason=stop_reason,
                from_statuses=_sources_of_status(plain),
            )

        with _duplicates_as_deerflows():
            return is_valid_id(run_id) and await write_texts(run_id, write, error=error)

    async def start_run(self, run_id: str) -> bool:
        return is_valid_id(run_id) and await self._runs.start_run(run_id)

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        if is_valid_id(run_id):
            await self._runs.update_model_name(run_id, _model_name(model_name))
            self._counts.rename(run_id, model_name)

    async def update_run_completion(
        self,
        run_id: str,
        *,
        status: str,
        total_input_tokens: int = 0,
        total_output_tokens: int = 0,
        total_tokens: int = 0,
        llm_call_count: int = 0,
        lead_agent_tokens: int = 0,
        subagent_tokens: int = 0,
        middleware_tokens: int = 0,
        message_count: int = 0,
        last_ai_message: str | None = None,
        first_human_message: str | None = None,
        error: str | None = None,
        token_usage_by_model: Mapping[str, object] | None = None,
    ) -> bool:
        """Set the status and all counts. An absent text stays: a failed run has its error already.

        False for a run that does not exist or has another ending.
        """
        plain = owned_status("status", status)
        totals = Tokens(total_input_tokens, total_output_tokens, total_tokens, llm_call_count)
        by_model = self._completed_counts_by_model(run_id, token_usage_by_model, totals)

        async def write(max_characters: int | None, **texts: str | None) -> bool:
            return await self._runs.update_run_completion(
                run_id,
                status=plain,
                total_input_tokens=total_input_tokens,
                total_output_tokens=total_output_tokens,
                total_tokens=total_tokens,
                llm_call_count=llm_call_count,
                lead_agent_tokens=lead_agent_tokens,
                subagent_tokens=subagent_tokens,
                middleware_tokens=middleware_tokens,
                message_count=message_count,
                first_human_message=_text_or_unset(texts["first_human_message"]),
                last_ai_message=_text_or_unset(texts["last_ai_message"]),
                error=_text_or_unset(texts["error"]),
                token_usage_by_model=None if max_characters == 0 else by_model,
                from_statuses=_sources_of_completion(plain),
            )

        if not is_valid_id(run_id):
            return False
        texts = {"last_ai_message": message(last_ai_message), "error": error}
        with _duplicates_as_deerflows():
            is_written = await write_texts(
                run_id, write, first_human_message=message(first_human_message), **texts
            )
        await self._store_missing_model_name(run_id)
        self._counts.discard(run_id)
        return is_written

    def _completed_counts_by_model(
        self, run_id: str, given: Mapping[str, object] | None, totals: Tokens
    ) -> Mapping[str, rows.ModelTokenCounts] | None:
        """The counts by model that a completion sets; None where nobody knows them."""
        if given is None and not PASSES_COUNTS_BY_MODEL:
            return self._counts.of_run(run_id, totals)
        return counts_by_model(given or {})

    async def _store_missing_model_name(self, run_id: str) -> None:
        """A command of its own, for a run of whose model DeerFlow knew the name only after it was stored."""
        name = self._counts.missing_model_name(run_id)
        if name is None:
            return
        try:
            await self._runs.update_model_name(run_id, name)
        except StorageError as error:  # the run has ended and is stored
            logger.warning(
                "run %r is stored without its model's name: %s", run_id, error, extra={"run_id": run_id}
            )

    async def update_run_progress(
        self,
        run_id: str,
        *,
        total_input_tokens: int | None = None,
        total_output_tokens: int | None = None,
        total_tokens: int | None = None,
        llm_call_count: int | None = None,
        lead_agent_tokens: int | None = None,
        subagent_tokens: int | None = None,
        middleware_tokens: int | None = None,
        token_usage_by_model: Mapping[str, object] | None = None,
        message_count: int | None = None,
        last_ai_message: str | None = None,
        first_human_message: str | None = None,
    ) -> None:
        """Set what is given, while the run's status is "running"."""
        by_model = None if token_usage_by_model is None else counts_by_model(token_usage_by_model)

        async def write(max_characters: int | None, **texts: str | None) -> None:
            await self._runs.update_run_progress(
                run_id,
                total_input_tokens=total_input_tokens,
                total_output_tokens=total_output_tokens,
                total_tokens=total_tokens,
                llm_call_count=llm_call_count,
                lead_agent_tokens=lead_agent_tokens,
                subagent_tokens=subagent_tokens,
                middleware_tokens=middleware_tokens,
                message_count=message_count,
                token_usage_by_model=None if max_characters == 0 else by_model,
                first_human_message=texts["first_human_message"],
                last_ai_message=texts["last_ai_message"],
            )

        if is_valid_id(run_id):
            await write_texts(
                run_id,
                write,
                last_ai_message=message(last_ai_message),
                first_human_message=message(first_human_message),
            )

    async def aggregate_tokens_by_thread(
        self, thread_id: str, *, include_active: bool = False
    ) -> dict[str, Any]:
        """The sums over the thread's runs; in releases without owners, over the bound user's."""
        user_id = None if HAS_RUN_OWNERSHIP else bound_user_id("RunStore.aggregate_tokens_by_thread")
        if not is_valid_id(thread_id):
            return _no_usage()
        usage = await self._runs.token_usage_by_thread(
            thread_id,
            user_id=user_id,
            statuses=(*COUNTED_STATUSES, _RUNNING) if include_active else COUNTED_STATUSES,
        )
        by_model = {
            model: {"tokens": counts["tokens"], "runs": counts["runs"]}
            for model, counts in usage["by_model"].items()
        }
        return {
            "total_tokens": usage["total_tokens"],
            "total_input_tokens": usage["total_input_tokens"],
            "total_output_tokens": usage["total_output_tokens"],
            "total_runs": usage["total_runs"],
            "by_model": encodable(by_model),
            "by_caller": usage["by_caller"],
        }

    # Owners, leases and cancellation.

    async def create_thread_operation_atomic(
        self,
        run_id: str,
        *,
        thread_id: str,
        owner_worker_id: str,
        lease_expires_at: TimeInput | None,
        operation_kind: str = "run",
        multitask_strategy: str = "reject",
        assistant_id: str | None = None,
        user_id: Any = None,
        model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        created_at: TimeInput | None = None,
        grace_seconds: float = 10,
        idempotency_key: str | None = None,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Admit a run or a reservation: its row, and those of the runs that were interrupted for it.

        Without a user it belongs to the bound one. Raises DeerFlow's `ConflictError` where the active one may
        not be interrupted, and its `RunIdempotencyConflict` for a known key.
        """
        fields: rows.AdmissionFields = {
            "operation_kind": cast("rows.OperationKind", operation_kind),
            "multitask_strategy": multitask_strategy,
            "assistant_id": assistant_id,
            "user_id": acting_user(user_id or AUTO, "RunStore.create_thread_operation_atomic"),
            "model_name": _model_name(model_name),
            "metadata": metadata or {},
            "kwargs": kwargs or {},
            "created_at": created_at or None,
            "grace_seconds": grace_seconds,
            "idempotency_key": idempotency_key,
        }
        with _duplicates_as_deerflows(), _conflicts_as_deerflows():
            admitted = await write_payloads(
                lambda: self._runs.create_thread_operation_atomic(
                    run_id,
                    thread_id=thread_id,
                    owner_worker_id=owner_worker_id,
                    lease_expires_at=lease_expires_at or None,
                    **fields,
                ),
                fields,
                run_id=run_id,
                thread_id=thread_id,
            )
        return host_row(admitted.row), _host_rows(admitted.interrupted)

    async def create_run_atomic(
        self,
        run_id: str,
        *,
        thread_id: str,
        owner_worker_id: str,
        lease_expires_at: TimeInput | None,
        multitask_strategy: str = "reject",
        assistant_id: str | None = None,
        user_id: Any = None,
        model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        created_at: TimeInput | None = None,
        grace_seconds: float = 10,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The old name of `create_thread_operation_atomic`, for runs."""
        return await self.create_thread_operation_atomic(
            run_id,
            thread_id=thread_id,
            owner_worker_id=owner_worker_id,
            lease_expires_at=lease_expires_at,
            multitask_strategy=multitask_strategy,
            assistant_id=assistant_id,
            user_id=user_id,
            model_name=model_name,
            metadata=metadata,
            kwargs=kwargs,
            created_at=created_at,
            grace_seconds=grace_seconds,
        )

    async def update_lease(self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput) -> bool:
        return is_valid_id(run_id) and await self._runs.update_lease(
            run_id, owner_worker_id=owner_worker_id, lease_expires_at=lease_expires_at
        )

    async def renew_lease(self, run_id: str, *, owner_worker_id: str, lease_expires_at: TimeInput) -> Any:
        """DeerFlow's `LeaseRenewal`."""
        if not is_valid_id(run_id):
            return _LeaseRenewal(renewed=False)
        renewal = await self._runs.renew_lease(
            run_id, owner_worker_id=owner_worker_id, lease_expires_at=lease_expires_at
        )
        return _LeaseRenewal(renewed=renewal.renewed, cancel_action=renewal.cancel_action)

    async def request_cancel(self, run_id: str, *, action: str) -> str | None:
        wanted = cast("rows.CancelAction", one_of("action", action, rows.CANCEL_ACTIONS))
        return await self._runs.request_cancel(run_id, action=wanted) if is_valid_id(run_id) else None

    async def finalize_if_not_cancelled(
        self, run_id: str, *, status: str, error: str | None = None, stop_reason: str | None = None
    ) -> Any:
        """DeerFlow's `StatusFinalization`."""
        plain = owned_status("status", status)

        async def write(_: int | None, error: str | None) -> rows.StatusFinalization:
            return await self._runs.finalize_if_not_cancelled(
                run_id, status=plain, error=error, stop_reason=stop_reason
            )

        if not is_valid_id(run_id):
            return _StatusFinalization(finalized=False)
        result = await write_texts(run_id, write, error=error)
        return _StatusFinalization(finalized=result.finalized, cancel_action=result.cancel_action)

    async def claim_for_takeover(
        self, run_id: str, *, grace_seconds: float, error: str, stop_reason: str | None = None
    ) -> bool:
        async def write(_: int | None, error: str) -> bool:
            return await self._runs.claim_for_takeover(
                run_id, grace_seconds=grace_seconds, error=error, stop_reason=stop_reason
            )

        return is_valid_id(run_id) and await write_texts(run_id, write, error=error)


@contextmanager
def _conflicts_as_deerflows() -> Generator[None]:
    """DeerFlow's own errors for an admission that another attempt would not change."""
    try:
        yield
    except IdempotencyKeyError as error:
        raise _RunIdempotencyConflict(host_row(error.existing)) from error
    except ActiveRunError as error:
        if not error.is_protected:
            raise
        raise _manager.ConflictError(
            f"Thread {error.thread_id} already has an active run owned by another worker, or a reservation "
            "such as a checkpoint write"
        ) from error


def _host_rows(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [host_row(row) for row in found]
