"""Runs and their token counts: one document per run, every write one atomic update of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ...contract import arguments
from ...contract.actor import AUTO, UserId
from ...contract.errors import ActiveRunError, RunExistsError
from ...contract.payloads import to_json_mapping
from ...contract.protocols import RunStore
from ...contract.regeneration import is_edit_regeneration, regenerated_run
from ...contract.rows import (
    ENDED_STATUSES,
    Caller,
    ModelTokenCounts,
    RunRow,
    TimeInput,
    TokenUsage,
    Unset,
)
from ...contract.statuses import is_ending
from ...contract.times import clock
from .. import queries
from ..documents.encoding import Document, Update, encode_mapping
from ..documents.runs import (
    StatusChange,
    active_status_update,
    completion_update,
    error_update,
    late_status_update,
    model_name_update,
    new_run,
    status_change,
    status_update,
    token_usage,
    token_usage_pipeline,
    token_usage_update,
)
from ..documents.stored_times import stamp_from_optional
from ..drivers.errors import DuplicateKeyError
from ..schema import NEWEST_FIRST, OLDEST_FIRST
from .run_ownership import MongoRunOwnership

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


def _payload(name: str, value: Mapping[str, Any] | None) -> Document:
    return encode_mapping(to_json_mapping(value, name))


class MongoRunStore(MongoRunOwnership, RunStore):
    """`RunStore` on MongoDB, with `RunOwnership`."""

    async def get(self, run_id: str, *, user_id: UserId = AUTO) -> RunRow | None:
        query = queries.run_by_id(run_id)
        queries.owned(query, user_id, "RunStore.get")
        return await self._rows.find_one(query)

    async def list_by_thread(
        self, thread_id: str, *, limit: int = 100, user_id: UserId = AUTO
    ) -> list[RunRow]:
        query = queries.runs_of_thread(thread_id)
        queries.owned(query, user_id, "RunStore.list_by_thread")
        rows = arguments.row_limit("limit", limit)
        if rows == 0:
            return []
        return await self._rows.find(query, sort=NEWEST_FIRST, limit=rows)

    async def list_pending(self, *, before: TimeInput | None = None) -> list[RunRow]:
        until = stamp_from_optional("before", before)
        query = queries.pending_until(clock.stamp_us() if until is None else until)
        return await self._rows.find(query, sort=OLDEST_FIRST, limit=arguments.MAX_LIMIT)

    async def get_many_by_thread(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = AUTO
    ) -> dict[str, RunRow]:
        query = queries.runs_of_thread_by_id(thread_id, run_ids)
        queries.owned(query, user_id, "RunStore.get_many_by_thread")
        if not query["_id"]["$in"]:
            return {}
        rows = await self._rows.find(query, sort=OLDEST_FIRST, limit=arguments.MAX_LIMIT)
        return {row["run_id"]: row for row in rows}

    async def list_successful_regenerate_sources(self, thread_id: str, *, user_id: UserId = AUTO) -> set[str]:
        query = queries.successful_regenerations(thread_id)
        queries.owned(query, user_id, "RunStore.list_successful_regenerate_sources")
        rows = await self._rows.find(query, sort=OLDEST_FIRST, limit=arguments.MAX_LIMIT)
        sources = (regenerated_run(row["metadata"]) for row in rows)
        return {source for source in sources if source is not None}

    async def list_edit_regenerate_runs(self, thread_id: str, *, user_id: UserId = AUTO) -> list[RunRow]:
        query = queries.edit_regenerations(thread_id)
        queries.owned(query, user_id, "RunStore.list_edit_regenerate_runs")
        rows = await self._rows.find(query, sort=OLDEST_FIRST, limit=arguments.MAX_LIMIT)
        return [row for row in rows if is_edit_regeneration(row["metadata"])]

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
        run_id = arguments.identifier("run_id", run_id)
        document = new_run(
            run_id=run_id,
            thread_id=arguments.identifier("thread_id", thread_id),
            user_id=arguments.acting_user(user_id, "RunStore.create"),
            assistant_id=arguments.optional_text("assistant_id", assistant_id),
            status=arguments.status_text("status", status),
            model_name=arguments.optional_text("model_name", model_name),
            multitask_strategy=arguments.status_text("multitask_strategy", multitask_strategy),
            follow_up_to_run_id=arguments.optional_text("follow_up_to_run_id", follow_up_to_run_id),
            metadata=_payload("metadata", metadata),
            kwargs=_payload("kwargs", kwargs),
            created_stamp_us=stamp_from_optional("created_at", created_at),
            started_stamp_us=stamp_from_optional("started_at", started_at),
            ended_stamp_us=stamp_from_optional("ended_at", ended_at),
            error=error,
            stamp_us=clock.stamp_us(),
        )
        try:
            await self._collection.insert_one(document)
        except DuplicateKeyError as duplicate:
            raise RunExistsError(run_id) from duplicate.__cause__

    async def update_status(
        self,
        run_id: str,
        status: str,
        *,
        started_at: TimeInput | None = None,
        ended_at: TimeInput | None = None,
        metadata: Mapping[str, Any] | None = None,
        error: str | None = None,
        stop_reason: str | None = None,
        from_statuses: Sequence[str] | None = None,
    ) -> bool:
        status = arguments.status_text("status", status)
        change = status_change(
            status,
            started_stamp_us=stamp_from_optional("started_at", started_at),
            ended_stamp_us=stamp_from_optional("ended_at", ended_at),
            error=error,
            stop_reason=stop_reason,
        )
        added = _payload("metadata", metadata)
        if added or is_ending(status):
            update = status_update(change, added)
            return await self._change_status(run_id, update, "update_status", from_statuses)
        return await self._set_active_status(run_id, change, arguments.names("from_statuses", from_statuses))

    async def set_error(self, run_id: str, error: str) -> None:
        await self._change_status(run_id, error_update(error), "set_error")

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        update = model_name_update(arguments.optional_text("model_name", model_name))
        await self._update(run_id, update, "update_model_name")

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
        from_statuses: Sequence[str] | None = None,
    ) -> bool:
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
        update = completion_update(
            arguments.status_text("status", status),
            counts={name: arguments.count(name, value) for name, value in counts.items()},
            by_model=arguments.model_counts("token_usage_by_model", token_usage_by_model),
            texts={name: text for name, text in texts.items() if not isinstance(text, Unset)},
            ended_stamp_us=stamp_from_optional("ended_at", ended_at),
        )
        return await self._change_status(run_id, update, "update_run_completion", from_statuses)

    async def delete(self, run_id: str, *, user_id: UserId = AUTO) -> bool:
        query = queries.run_by_id(run_id)
        queries.owned(query, user_id, "RunStore.delete")
        return await self._rows.delete_one(query)

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
        spent_in = arguments.count("input_tokens", input_tokens)
        spent_out = arguments.count("output_tokens", output_tokens)
        update = token_usage_update(
            arguments.caller(caller),
            arguments.optional_text("model_name", model_name),
            input_tokens=spent_in,
            output_tokens=spent_out,
            total_tokens=arguments.count("input_tokens + output_tokens", spent_in + spent_out),
            llm_calls=arguments.count("llm_calls", llm_calls),
        )
        await self._update(run_id, update, "record_token_usage")

    async def token_usage_by_thread(
        self, thread_id: str, *, user_id: UserId = AUTO, statuses: Sequence[str] | None = None
    ) -> TokenUsage:
        query = queries.runs_of_thread(thread_id)
        queries.owned(query, user_id, "RunStore.token_usage_by_thread")
        queries.in_statuses(query, statuses)
        [facets] = await self._collection.aggregate_few(token_usage_pipeline(queries.changeable(query)))
        return token_usage(facets)

    async def _update(self, run_id: str, update: Update, operation: str) -> None:
        if not await self._rows.update_one(queries.run_by_id(run_id), update):
            _warn_of_missing_run(run_id, operation)

    async def _change_status(
        self, run_id: str, update: Update, operation: str, from_statuses: Sequence[str] | None = None
    ) -> bool:
        """Whether the run exists and, with `from_statuses`, was in one of them."""
        query = queries.in_statuses(queries.run_by_id(run_id), from_statuses, "from_statuses")
        if await self._refusing_second_active(run_id, self._rows.update_matching(query, update)):
            return True
        await self._check_exists(run_id, operation)
        return False

    async def _set_active_status(
        self, run_id: str, change: StatusChange, from_statuses: list[str] | None
    ) -> bool:
        """As `_change_status`. Most runs have not ended, and do with the plain update."""
        query = queries.run_not_ended(run_id, from_statuses)
        update: Update = active_status_update(change)
        if await self._refusing_second_active(run_id, self._rows.update_matching(query, update)):
            return True
        if from_statuses is not None and not set(from_statuses) & set(ENDED_STATUSES):
            await self._check_exists(run_id, "update_status")
            return False
        update = late_status_update(change, from_statuses)
        updating = self._rows.update_and_read(queries.run_by_id(run_id), update)
        before = await self._refusing_second_active(run_id, updating)
        if before is None:
            _warn_of_missing_run(run_id, "update_status")
            return False
        if from_statuses is None or before.get("status") in from_statuses:
            return True
        self._rows.row(before)  # raises if it cannot be read
        return False

    async def _refusing_second_active(self, run_id: str, updating: Awaitable[_Result]) -> _Result | None:
        """The update's result. Raises `ActiveRunError` for what would be its thread's second active run."""
        try:
            return await updating
        except DuplicateKeyError as duplicate:
            row = await self._rows.find_one(queries.run_by_id(run_id))
            if row is None:
                return None  # deleted since
            raise ActiveRunError(row["thread_id"]) from duplicate.__cause__

    async def _check_exists(self, run_id: str, operation: str) -> None:
        """Log that the run does not exist, if so. Raises `CorruptDocumentError` if it cannot be read."""
        if await self._rows.find_one(queries.run_by_id(run_id)) is None:
            _warn_of_missing_run(run_id, operation)


def _warn_of_missing_run(run_id: str, operation: str) -> None:
    run_id = arguments.identifier("run_id", run_id)
    logger.warning(
        "%s: there is no run %r; nothing was changed",
        operation,
        run_id,
        extra={"operation": operation, "run_id": run_id},
    )
