"""Runs and their token counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack, cast

from ..contract import arguments, rows, statuses
from ..contract.actor import AUTO, UserId
from ..contract.bulk_rows import ExportedRunRow
from ..contract.errors import RunExistsError
from ..contract.payloads import to_json_mapping
from ..contract.protocols import RunStore
from ..contract.regeneration import is_edit_regeneration, regenerated_run
from ..contract.rows import RunRow, TimeInput
from . import data
from .run_ownership import MemoryRunOwnership
from .run_rows import change_status, is_run, until, was_created_until

_ROW_COUNTS = {
    "input_tokens": "total_input_tokens",
    "output_tokens": "total_output_tokens",
    "total_tokens": "total_tokens",
    "llm_calls": "llm_call_count",
}
"""A count by model -> that of the whole run in its row."""


class MemoryRunStore(MemoryRunOwnership, RunStore):
    """`RunStore` in memory."""

    async def get(self, run_id: str, *, user_id: UserId = AUTO) -> RunRow | None:
        run = self._find(run_id, arguments.acting_user(user_id, "RunStore.get"))
        return None if run is None else self._copy(run)

    async def list_by_thread(
        self, thread_id: str, *, limit: int = 100, user_id: UserId = AUTO
    ) -> list[RunRow]:
        user = arguments.acting_user(user_id, "RunStore.list_by_thread")
        count = arguments.row_limit("limit", limit)
        return self._copies(data.newest_first(self._runs_of_thread(thread_id, user))[:count])

    async def list_pending(self, *, before: TimeInput | None = None) -> list[RunRow]:
        end = until(before)
        pending = [
            run
            for run in self._data.runs.values()
            if run["status"] == rows.PENDING and is_run(run) and was_created_until(run, end)
        ]
        return self._copies(data.oldest_first(pending))

    async def get_many_by_thread(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = AUTO
    ) -> dict[str, RunRow]:
        user = arguments.acting_user(user_id, "RunStore.get_many_by_thread")
        wanted = arguments.identifiers("run_ids", run_ids)
        of_thread = self._runs_of_thread(thread_id, user)
        return {run["run_id"]: self._copy(run) for run in of_thread if run["run_id"] in wanted}

    async def list_successful_regenerate_sources(self, thread_id: str, *, user_id: UserId = AUTO) -> set[str]:
        user = arguments.acting_user(user_id, "RunStore.list_successful_regenerate_sources")
        successful = (run for run in self._runs_of_thread(thread_id, user) if run["status"] == "success")
        sources = (regenerated_run(run["metadata"]) for run in successful)
        return {source for source in sources if source is not None}

    async def list_edit_regenerate_runs(self, thread_id: str, *, user_id: UserId = AUTO) -> list[RunRow]:
        user = arguments.acting_user(user_id, "RunStore.list_edit_regenerate_runs")
        found = [
            run for run in self._runs_of_thread(thread_id, user) if is_edit_regeneration(run["metadata"])
        ]
        return self._copies(data.oldest_first(found))

    async def create(self, run_id: str, thread_id: str, **fields: Unpack[rows.RunCreateFields]) -> None:
        arguments.check_keywords(fields, rows.RunCreateFields)
        created_at = data.optional_time("created_at", fields.get("created_at"))
        run: dict[str, Any] = {
            "run_id": arguments.identifier("run_id", run_id),
            "thread_id": arguments.identifier("thread_id", thread_id),
            "assistant_id": arguments.optional_text("assistant_id", fields.get("assistant_id")),
            "user_id": arguments.acting_user(fields.get("user_id", AUTO), "RunStore.create"),
            "status": arguments.status_text("status", fields.get("status", "pending")),
            "model_name": arguments.optional_text("model_name", fields.get("model_name")),
            "multitask_strategy": arguments.status_text(
                "multitask_strategy", fields.get("multitask_strategy", "reject")
            ),
            "follow_up_to_run_id": arguments.optional_text(
                "follow_up_to_run_id", fields.get("follow_up_to_run_id")
            ),
            "metadata": to_json_mapping(fields.get("metadata"), "metadata"),
            "kwargs": to_json_mapping(fields.get("kwargs"), "kwargs"),
            "created_at": created_at or data.now().isoformat(),
            "updated_at": "",
            "started_at": data.optional_time("started_at", fields.get("started_at")),
            "ended_at": data.optional_time("ended_at", fields.get("ended_at")),
            "error": arguments.long_text("error", fields.get("error")),
            **dict.fromkeys(rows.COMPLETION_COUNTS, 0),
            "first_human_message": None,
            "last_ai_message": None,
        }
        if run["run_id"] in self._data.runs:
            raise RunExistsError(run["run_id"])
        self._data.runs[run["run_id"]] = cast("RunRow", run)
        self._data.wake_followers_of_run(run["run_id"])

    def store_as_is(self, row: ExportedRunRow) -> None:
        """Store an imported run. Raises `ActiveRunError` or `IdempotencyKeyError`."""
        run = cast("RunRow", {name: value for name, value in row.items() if name != "token_usage_by_model"})
        self._check_key(run)
        self._check_free(run, run["status"])
        self._store(run)
        self._data.model_counts[run["run_id"]] = row.get("token_usage_by_model", {})

    async def update_status(
        self, run_id: str, status: str, **fields: Unpack[rows.RunStatusUpdateFields]
    ) -> bool:
        arguments.check_keywords(fields, rows.RunStatusUpdateFields)
        changes = {"status": arguments.status_text("status", status)}
        for name in ("error", "stop_reason"):
            text = arguments.long_text(name, fields.get(name))
            if text is not None:
                changes[name] = text
        new_times = {name: data.optional_time(name, fields.get(name)) for name in ("started_at", "ended_at")}
        merged = to_json_mapping(fields.get("metadata"), "metadata")
        allowed = arguments.names("from_statuses", fields.get("from_statuses"))
        run = self._run_to_update(run_id, "update_status", status, allowed)
        if run is None:
            return False
        if "operation_kind" not in run:
            # A run without an owner has no stop reason.
            changes.pop("stop_reason", None)
        change_status(run, changes, new_times)
        run["metadata"].update(merged)
        return True

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        name = arguments.optional_text("model_name", model_name)
        run = self._run_to_update(run_id, "update_model_name")
        if run is not None:
            run["model_name"] = name

    async def set_error(self, run_id: str, error: str) -> None:
        text = arguments.long_text("error", error)
        run = self._run_to_update(run_id, "set_error")
        if run is not None:
            run["status"], run["error"] = "error", text

    async def update_run_completion(
        self, run_id: str, *, status: str, **fields: Unpack[rows.RunCompletionFields]
    ) -> bool:
        arguments.check_keywords(fields, rows.RunCompletionFields)
        status = arguments.status_text("status", status)
        changes: dict[str, Any] = {"status": status}
        for name in rows.COMPLETION_COUNTS:
            changes[name] = arguments.count(name, fields.get(name))
        for name in rows.COMPLETION_TEXTS:
            if fields.get(name) is not rows.UNSET:
                changes[name] = arguments.long_text(name, fields.get(name))
        by_model = arguments.model_counts("token_usage_by_model", fields.get("token_usage_by_model"))
        end = data.optional_time("ended_at", fields.get("ended_at"))
        allowed = arguments.names("from_statuses", fields.get("from_statuses"))
        run = self._run_to_update(run_id, "update_run_completion", status, allowed)
        if run is None:
            return False
        if end is None and statuses.is_ending(status) and run["ended_at"] is None:
            end = run["updated_at"]
        if by_model is not None and not statuses.restarts_ended_run(run["status"], status):
            self._data.model_counts[run["run_id"]] = by_model
        change_status(run, changes, {"ended_at": end})
        return True

    async def delete(self, run_id: str, *, user_id: UserId = AUTO) -> bool:
        run = self._find(run_id, arguments.acting_user(user_id, "RunStore.delete"))
        if run is None:
            return False
        del self._data.runs[run["run_id"]]
        self._data.model_counts.pop(run["run_id"], None)
        self._data.lease_ends_ms.pop(run["run_id"], None)
        self._data.wake_followers_of_run(run["run_id"], was_deleted=True)
        return True

    async def record_token_usage(
        self,
        run_id: str,
        *,
        caller: rows.Caller,
        model_name: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        llm_calls: int = 1,
    ) -> None:
        caller = arguments.caller(caller)
        model = arguments.optional_text("model_name", model_name)
        spent = {
            "input_tokens": arguments.count("input_tokens", input_tokens),
            "output_tokens": arguments.count("output_tokens", output_tokens),
            "llm_calls": arguments.count("llm_calls", llm_calls),
        }
        total = spent["input_tokens"] + spent["output_tokens"]
        spent["total_tokens"] = arguments.count("input_tokens + output_tokens", total)
        run = self._run_to_update(run_id, "record_token_usage")
        if run is None:
            return
        of_run = {_ROW_COUNTS[name]: count for name, count in spent.items()}
        _add(_counts(run), {**of_run, f"{caller}_tokens": total})
        if model is not None:
            by_model = self._data.model_counts.setdefault(run["run_id"], {})
            _add(by_model.setdefault(model, {}), spent)

    async def token_usage_by_thread(
        self, thread_id: str, *, user_id: UserId = AUTO, statuses: Sequence[str] | None = None
    ) -> rows.TokenUsage:
        user = arguments.acting_user(user_id, "RunStore.token_usage_by_thread")
        wanted = arguments.names("statuses", statuses)
        of_thread = self._runs_of_thread(thread_id, user)
        runs = [run for run in of_thread if wanted is None or run["status"] in wanted]
        return {
            "total_runs": len(runs),
            "total_input_tokens": sum(run["total_input_tokens"] for run in runs),
            "total_output_tokens": sum(run["total_output_tokens"] for run in runs),
            "total_tokens": sum(run["total_tokens"] for run in runs),
            "llm_call_count": sum(run["llm_call_count"] for run in runs),
            "by_caller": {
                caller: sum(_counts(run)[f"{caller}_tokens"] for run in runs) for caller in rows.CALLERS
            },
            "by_model": self._usage_by_model(runs),
        }

    def _usage_by_model(self, runs: Iterable[RunRow]) -> dict[str, rows.ModelTokenUsage]:
        """Each model's share; a run without counts by model counts under its own `model_name`."""
        usage: dict[str, rows.ModelTokenUsage] = {}
        for run in runs:
            by_model = self._data.model_counts.get(run["run_id"]) or _under_own_model(run)
            for model, counts in by_model.items():
                nothing = rows.ModelTokenUsage(runs=0, tokens=0, input_tokens=0, output_tokens=0, llm_calls=0)
                of_model = usage.setdefault(model, nothing)
                of_model["runs"] += 1
                of_model["tokens"] += counts["total_tokens"]
                of_model["input_tokens"] += counts["input_tokens"]
                of_model["output_tokens"] += counts["output_tokens"]
                of_model["llm_calls"] += counts["llm_calls"]
        return usage

    def _run_to_update(
        self, run_id: str, operation: str, status: str | None = None, allowed: list[str] | None = None
    ) -> RunRow | None:
        """The run, marked as updated now; None where there is none, which is logged.

        Also None where it has none of the allowed statuses. Raises `ActiveRunError` where it may not get the
        new status.
        """
        run_id = arguments.identifier("run_id", run_id)
        run = self._data.runs.get(run_id)
        if run is None:
            data.log_missing(operation, "run", run_id)
            return None
        if allowed is not None and run["status"] not in allowed:
            return None
        if status is not None and not statuses.restarts_ended_run(run["status"], status):
            self._check_free(run, status)
        self._mark_updated(run)
        return run


def _counts(run: RunRow) -> dict[str, int]:
    """The row, for those of its fields that are counts."""
    return cast("dict[str, int]", run)


def _add(counts: dict[str, int], spent: Mapping[str, int]) -> None:
    for name, count in spent.items():
        counts[name] = counts.get(name, 0) + count


def _under_own_model(run: RunRow) -> dict[str, dict[str, int]]:
    counts = {name: _counts(run)[of_run] for name, of_run in _ROW_COUNTS.items()}
    return {rows.UNKNOWN_MODEL if run["model_name"] is None else run["model_name"]: counts}
