"""Runs and their token counts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any, cast

from ..contract import arguments
from ..contract.actor import AUTO, UserId
from ..contract.errors import RunExistsError
from ..contract.payloads import to_json_mapping
from ..contract.protocols import RunStore
from ..contract.rows import (
    CALLERS,
    COMPLETION_COUNTS,
    PENDING,
    UNSET,
    Caller,
    ModelTokenCounts,
    ModelTokenUsage,
    RunRow,
    TimeInput,
    TokenUsage,
    Unset,
)
from ..contract.statuses import is_ending, restarts_ended_run
from ..contract.times import parse_time
from .data import Memory, Run, is_visible, newest_first, now, oldest_first, optional_time

logger = logging.getLogger(__name__)

_UNKNOWN_MODEL = "unknown"

_ROW_COUNTS = {
    "input_tokens": "total_input_tokens",
    "output_tokens": "total_output_tokens",
    "total_tokens": "total_tokens",
    "llm_calls": "llm_call_count",
}
"""A count by model -> that of the whole run in its row."""


def _created_at(run: Run) -> str:
    return run.row["created_at"]


class MemoryRunStore(RunStore):
    """`RunStore` in memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def get(self, run_id: str, *, user_id: UserId = AUTO) -> RunRow | None:
        run_id = arguments.identifier("run_id", run_id)
        user = arguments.acting_user(user_id, "RunStore.get")
        run = self._memory.data.runs.get(run_id)
        return deepcopy(run.row) if run is not None and is_visible(run.row["user_id"], user) else None

    async def list_by_thread(
        self, thread_id: str, *, limit: int = 100, user_id: UserId = AUTO
    ) -> list[RunRow]:
        thread_id = arguments.identifier("thread_id", thread_id)
        user = arguments.acting_user(user_id, "RunStore.list_by_thread")
        rows = arguments.row_limit("limit", limit)
        runs = newest_first(self._of_thread(thread_id, user), _created_at)
        return [deepcopy(run.row) for run in runs[:rows]]

    async def list_pending(self, *, before: TimeInput | None = None) -> list[RunRow]:
        until = now() if before is None else parse_time("before", before)
        pending = [run for run in self._memory.data.runs.values() if run.row["status"] == PENDING]
        return [
            deepcopy(run.row)
            for run in oldest_first(pending, _created_at)
            if datetime.fromisoformat(_created_at(run)) <= until
        ]

    async def create(
        self,
        run_id: str,
        thread_id: str,
        *,
        status: str = "pending",
        created_at: TimeInput | None = None,
        started_at: TimeInput | None = None,
        ended_at: TimeInput | None = None,
        assistant_id: str | None = None,
        user_id: UserId = AUTO,
        follow_up_to_run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        model_name: str | None = None,
        multitask_strategy: str = "reject",
        error: str | None = None,
    ) -> None:
        row: dict[str, Any] = {
            "run_id": arguments.identifier("run_id", run_id),
            "thread_id": arguments.identifier("thread_id", thread_id),
            "assistant_id": arguments.optional_text("assistant_id", assistant_id),
            "user_id": arguments.acting_user(user_id, "RunStore.create"),
            "status": arguments.status_text("status", status),
            "model_name": arguments.optional_text("model_name", model_name),
            "multitask_strategy": arguments.status_text("multitask_strategy", multitask_strategy),
            "follow_up_to_run_id": arguments.optional_text("follow_up_to_run_id", follow_up_to_run_id),
            "metadata": to_json_mapping(metadata, "metadata"),
            "kwargs": to_json_mapping(kwargs, "kwargs"),
            "created_at": optional_time("created_at", created_at) or now().isoformat(),
            "updated_at": "",
            "started_at": optional_time("started_at", started_at),
            "ended_at": optional_time("ended_at", ended_at),
            "error": arguments.long_text("error", error),
            **dict.fromkeys(COMPLETION_COUNTS, 0),
            "first_human_message": None,
            "last_ai_message": None,
        }
        runs = self._memory.data.runs
        if row["run_id"] in runs:
            raise RunExistsError(row["run_id"])
        runs[row["run_id"]] = Run(cast("RunRow", row))

    async def update_status(
        self,
        run_id: str,
        status: str,
        *,
        started_at: TimeInput | None = None,
        ended_at: TimeInput | None = None,
        metadata: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        times = {
            "started_at": optional_time("started_at", started_at),
            "ended_at": optional_time("ended_at", ended_at),
        }
        changes: dict[str, Any] = {"status": arguments.status_text("status", status)}
        if error is not None:
            changes["error"] = arguments.long_text("error", error)
        merged = to_json_mapping(metadata, "metadata")
        run = self._run_to_update(run_id, "update_status")
        if run is not None:
            _change_status(run, changes, times)
            run.row["metadata"].update(merged)

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        name = arguments.optional_text("model_name", model_name)
        run = self._run_to_update(run_id, "update_model_name")
        if run is not None:
            run.row["model_name"] = name

    async def set_error(self, run_id: str, error: str) -> None:
        text = arguments.long_text("error", error)
        run = self._run_to_update(run_id, "set_error")
        if run is not None:
            run.row["status"], run.row["error"] = "error", text

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
        first_human_message: str | Unset | None = None,
        last_ai_message: str | Unset | None = None,
        error: str | Unset | None = None,
        ended_at: TimeInput | None = None,
        token_usage_by_model: Mapping[str, ModelTokenCounts] | None = None,
    ) -> None:
        status = arguments.status_text("status", status)
        counts = {
            "total_input_tokens": total_input_tokens,
            "total_output_tokens": total_output_tokens,
            "total_tokens": total_tokens,
            "llm_call_count": llm_call_count,
            "lead_agent_tokens": lead_agent_tokens,
            "subagent_tokens": subagent_tokens,
            "middleware_tokens": middleware_tokens,
            "message_count": message_count,
        }
        texts = {
            "first_human_message": first_human_message,
            "last_ai_message": last_ai_message,
            "error": error,
        }
        changes: dict[str, Any] = {"status": status}
        changes |= {name: arguments.count(name, value) for name, value in counts.items()}
        changes |= {
            name: arguments.long_text(name, text) for name, text in texts.items() if text is not UNSET
        }
        by_model = arguments.model_counts("token_usage_by_model", token_usage_by_model)
        end = optional_time("ended_at", ended_at)
        run = self._run_to_update(run_id, "update_run_completion")
        if run is None:
            return
        if end is None and is_ending(status) and run.row["ended_at"] is None:
            end = run.row["updated_at"]
        if by_model is not None and not restarts_ended_run(run.row["status"], status):
            run.by_model = by_model
        _change_status(run, changes, {"ended_at": end})

    async def delete(self, run_id: str, *, user_id: UserId = AUTO) -> bool:
        run_id = arguments.identifier("run_id", run_id)
        user = arguments.acting_user(user_id, "RunStore.delete")
        runs = self._memory.data.runs
        if run_id not in runs or not is_visible(runs[run_id].row["user_id"], user):
            return False
        del runs[run_id]
        return True

    async def record_token_usage(
        self,
        run_id: str,
        *,
        caller: Caller,
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
        _add(cast("dict[str, int]", run.row), {**of_run, f"{caller}_tokens": total})
        if model is not None:
            _add(run.by_model.setdefault(model, {}), spent)

    async def token_usage_by_thread(
        self, thread_id: str, *, user_id: UserId = AUTO, statuses: Sequence[str] | None = None
    ) -> TokenUsage:
        thread_id = arguments.identifier("thread_id", thread_id)
        user = arguments.acting_user(user_id, "RunStore.token_usage_by_thread")
        wanted = arguments.names("statuses", statuses)
        runs = [
            run for run in self._of_thread(thread_id, user) if wanted is None or run.row["status"] in wanted
        ]

        def total(name: str) -> int:
            return sum(cast("dict[str, int]", run.row)[name] for run in runs)

        return {
            "total_runs": len(runs),
            "total_input_tokens": total("total_input_tokens"),
            "total_output_tokens": total("total_output_tokens"),
            "total_tokens": total("total_tokens"),
            "llm_call_count": total("llm_call_count"),
            "by_caller": {caller: total(f"{caller}_tokens") for caller in CALLERS},
            "by_model": _usage_by_model(runs),
        }

    def _of_thread(self, thread_id: str, user: str | None) -> list[Run]:
        return [
            run
            for run in self._memory.data.runs.values()
            if run.row["thread_id"] == thread_id and is_visible(run.row["user_id"], user)
        ]

    def _run_to_update(self, run_id: str, operation: str) -> Run | None:
        """The run, marked as updated now; None where there is none, which is logged."""
        run_id = arguments.identifier("run_id", run_id)
        run = self._memory.data.runs.get(run_id)
        if run is None:
            logger.warning("%s: there is no run %r; nothing was changed", operation, run_id)
        else:
            run.row["updated_at"] = now().isoformat()
        return run


def _change_status(run: Run, changes: Mapping[str, Any], times: Mapping[str, str | None]) -> None:
    """Apply `changes`, a status among them, and the times given.

    An ended run that gets an active status stays as it is, but a time that it lacks is set.
    """
    row = cast("dict[str, Any]", run.row)
    restarts = restarts_ended_run(row["status"], changes["status"])
    if not restarts:
        row.update(changes)
    for name, time in times.items():
        if time is not None and (row[name] is None or not restarts):
            row[name] = time


def _add(counts: dict[str, int], spent: Mapping[str, int]) -> None:
    for name, count in spent.items():
        counts[name] = counts.get(name, 0) + count


def _usage_by_model(runs: Iterable[Run]) -> dict[str, ModelTokenUsage]:
    """Each model's share; a run without counts by model counts under its own `model_name`."""
    usage: dict[str, ModelTokenUsage] = {}
    for run in runs:
        for model, counts in (run.by_model or _under_own_model(run.row)).items():
            nothing: ModelTokenUsage = {
                "runs": 0,
                "tokens": 0,
                "input_tokens": 0,
                "output_tokens": 0,
                "llm_calls": 0,
            }
            of_model = usage.setdefault(model, nothing)
            of_model["runs"] += 1
            of_model["tokens"] += counts["total_tokens"]
            of_model["input_tokens"] += counts["input_tokens"]
            of_model["output_tokens"] += counts["output_tokens"]
            of_model["llm_calls"] += counts["llm_calls"]
    return usage


def _under_own_model(row: RunRow) -> dict[str, dict[str, int]]:
    counts = {name: cast("dict[str, int]", row)[of_run] for name, of_run in _ROW_COUNTS.items()}
    return {_UNKNOWN_MODEL if row["model_name"] is None else row["model_name"]: counts}
