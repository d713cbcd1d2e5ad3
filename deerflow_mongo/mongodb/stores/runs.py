"""Runs and their token figures: one document per run, every write one atomic update of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...contract import arguments
from ...contract.actor import AUTO, UserId
from ...contract.errors import RunExistsError
from ...contract.payloads import to_json_mapping
from ...contract.protocols import RunStore
from ...contract.rows import (
    ACTIVE_STATUSES,
    CALLERS,
    ENDED_STATUSES,
    UNSET,
    Caller,
    RunRow,
    TimeInput,
    TokenUsage,
    Unset,
)
from ...contract.times import clock
from .. import codec, queries
from ..codec import Document
from ..documents.stored_times import stored_from_optional, stored_from_stamp, stored_now
from ..drivers.base import Collection, DuplicateKeyError
from ..schema import NEWEST_FIRST, OLDEST_FIRST

logger = logging.getLogger(__name__)

_IS_OVER: Document = {"$in": ["$status", list(ENDED_STATUSES)]}


def _literal(value: Any) -> Document:
    return {"$literal": value}


def _payload(name: str, value: Mapping[str, Any] | None) -> Document:
    return codec.encode_mapping(to_json_mapping(value, name))


class MongoRunStore(RunStore):
    """`RunStore` on MongoDB."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def get(self, run_id: str, *, user_id: UserId = AUTO) -> RunRow | None:
        query = queries.run_by_id(run_id)
        queries.owned(query, user_id, "RunStore.get")
        document = await self._collection.find_one(query)
        return None if document is None else codec.run_row(document)

    async def list_by_thread(
        self, thread_id: str, *, limit: int = 100, user_id: UserId = AUTO
    ) -> list[RunRow]:
        query = queries.of_thread(thread_id)
        queries.owned(query, user_id, "RunStore.list_by_thread")
        rows = arguments.row_limit("limit", limit)
        if rows == 0:
            return []
        return [
            codec.run_row(document)
            for document in await self._collection.find(query, sort=NEWEST_FIRST, limit=rows)
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
        order = clock.stamp_us()
        document = codec.new_run(
            arguments.identifier("run_id", run_id),
            arguments.identifier("thread_id", thread_id),
            {
                "user_id": arguments.acting_user(user_id, "RunStore.create"),
                "assistant_id": arguments.optional_text("assistant_id", assistant_id),
                "status": arguments.status_text("status", status),
                "model_name": arguments.optional_text("model_name", model_name),
                "multitask_strategy": arguments.status_text("multitask_strategy", multitask_strategy),
                "follow_up_to_run_id": arguments.optional_text("follow_up_to_run_id", follow_up_to_run_id),
                "metadata": _payload("metadata", metadata),
                "kwargs": _payload("kwargs", kwargs),
                "created_at": stored_from_optional("created_at", created_at) or stored_from_stamp(order),
                "started_at": stored_from_optional("started_at", started_at),
                "ended_at": stored_from_optional("ended_at", ended_at),
                "error": codec.encode_text("error", error),
            },
            order,
        )
        try:
            await self._collection.insert_one(document)
        except DuplicateKeyError as duplicate:
            raise RunExistsError(document["_id"]) from duplicate.__cause__

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
        changes: Document = {"status": arguments.status_text("status", status)}
        for name, value in (("started_at", started_at), ("ended_at", ended_at)):
            if value is not None:
                changes[name] = stored_from_optional(name, value)
        if error is not None:
            changes["error"] = codec.encode_text("error", error)
        merged = _payload("metadata", metadata)
        if _is_ending(changes) and not merged:
            await self._update(run_id, _plain_update(changes), "update_status")
            return
        update = _transition(changes)
        if merged:
            update["metadata"] = {"$mergeObjects": ["$metadata", _literal(merged)]}
        await self._update(run_id, [{"$set": update}], "update_status")

    async def set_error(self, run_id: str, error: str) -> None:
        changes = {
            "status": "error",
            "error": codec.encode_text("error", error),
            "updated_at": stored_now(),
        }
        await self._update(run_id, {"$set": changes}, "set_error")

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        changes = {
            "model_name": arguments.optional_text("model_name", model_name),
            "updated_at": stored_now(),
        }
        await self._update(run_id, {"$set": changes}, "update_model_name")

    async def list_pending(self, *, before: TimeInput | None = None) -> list[RunRow]:
        until = stored_from_optional("before", before) or stored_now()
        query = queries.pending_until(until)
        return [
            codec.run_row(document)
            for document in await self._collection.find(query, sort=OLDEST_FIRST, limit=arguments.MAX_LIMIT)
        ]

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
    ) -> None:
        given: dict[str, Any] = {
            "total_input_tokens": total_input_tokens,
            "total_output_tokens": total_output_tokens,
            "total_tokens": total_tokens,
            "llm_call_count": llm_call_count,
            "lead_agent_tokens": lead_agent_tokens,
            "subagent_tokens": subagent_tokens,
            "middleware_tokens": middleware_tokens,
            "message_count": message_count,
        }
        changes: Document = {"status": arguments.status_text("status", status)}
        for name, path in codec.FIGURE_PATHS.items():
            changes[path] = arguments.count(name, given[name])
        texts = {
            "first_human_message": first_human_message,
            "last_ai_message": last_ai_message,
            "error": error,
        }
        for name, text in texts.items():
            if text is not UNSET:
                changes[name] = codec.encode_text(name, text)
        if ended_at is not None:
            changes["ended_at"] = stored_from_optional("ended_at", ended_at)
            if _is_ending(changes):
                await self._update(run_id, _plain_update(changes), "update_run_completion")
                return
        update = _transition(changes)
        if _is_ending(changes):
            update["ended_at"] = {"$ifNull": ["$ended_at", _literal(stored_now())]}
        await self._update(run_id, [{"$set": update}], "update_run_completion")

    async def delete(self, run_id: str, *, user_id: UserId = AUTO) -> bool:
        query = queries.run_by_id(run_id)
        queries.owned(query, user_id, "RunStore.delete")
        return await self._collection.delete_one(query)

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
        spent = {
            "input": arguments.count("input_tokens", input_tokens),
            "output": arguments.count("output_tokens", output_tokens),
            "llm_calls": arguments.count("llm_calls", llm_calls),
        }
        spent["total"] = arguments.count("input_tokens + output_tokens", spent["input"] + spent["output"])
        increments = {f"tokens.{name}": count for name, count in spent.items()}
        increments[f"tokens.by_caller.{arguments.caller(caller)}"] = spent["total"]
        changes: Document = {"updated_at": stored_now()}
        model = arguments.optional_text("model_name", model_name)
        if model is not None:
            path = f"tokens.by_model.{codec.model_key(model)}"
            increments |= {f"{path}.{name}": count for name, count in spent.items()}
            changes[f"{path}.model"] = model
        await self._update(run_id, {"$inc": increments, "$set": changes}, "record_token_usage")

    async def token_usage_by_thread(
        self, thread_id: str, *, user_id: UserId = AUTO, statuses: Sequence[str] | None = None
    ) -> TokenUsage:
        query = queries.of_thread(thread_id)
        queries.owned(query, user_id, "RunStore.token_usage_by_thread")
        queries.in_statuses(query, statuses)
        [sums] = await self._collection.aggregate(_token_usage_pipeline(query))
        return _token_usage(sums)

    async def _update(self, run_id: str, update: Document | list[Document], operation: str) -> None:
        query = queries.run_by_id(run_id)
        if not await self._collection.update_one(query, update):
            logger.warning("%s: there is no run %r; nothing was changed", operation, query["_id"])


def _is_ending(changes: Document) -> bool:
    return changes["status"] not in ACTIVE_STATUSES


def _plain_update(changes: Document) -> Document:
    """An ending looks at nothing that is stored, and so costs the server a quarter less than a pipeline."""
    return {"$set": {**changes, "updated_at": stored_now()}}


def _transition(changes: Document) -> Document:
    """The `$set` stage that applies `changes`, a status among them, unless the run would come back to life.

    An ended run that is to be put back keeps every field, but a time that it lacks is filled.
    """
    now = stored_now()
    if _is_ending(changes):
        return {**{path: _literal(value) for path, value in changes.items()}, "updated_at": now}
    update: Document = {"updated_at": now}
    for path, value in changes.items():
        kept = {"$ifNull": [f"${path}", _literal(value)]} if path.endswith("_at") else f"${path}"
        update[path] = {"$cond": [_IS_OVER, kept, _literal(value)]}
    return update


def _sum_of(path: str) -> Document:
    return {"$sum": f"$tokens.{path}"}


def _token_usage_pipeline(query: Document) -> list[Document]:
    own_figures = {name: f"$tokens.{name}" for name in ("input", "output", "total", "llm_calls")}
    own_model = {"$ifNull": ["$model_name", codec.MODEL_NAME_WHEN_UNKNOWN]}
    totals: Document = {"_id": None, "runs": {"$sum": 1}}
    totals |= {name: _sum_of(name) for name in own_figures}
    totals |= {caller: _sum_of(f"by_caller.{caller}") for caller in CALLERS}
    by_model: Document = {"_id": "$models.v.model", "runs": {"$sum": 1}}
    by_model |= {name: {"$sum": f"$models.v.{name}"} for name in own_figures}
    return [
        {"$match": query},
        {"$project": {"tokens": 1, "model_name": 1, "recorded": {"$objectToArray": "$tokens.by_model"}}},
        {
            "$facet": {
                "totals": [{"$group": totals}],
                "recorded": [
                    {"$unwind": "$recorded"},
                    {"$project": {"models": "$recorded"}},
                    {"$group": by_model},
                ],
                "unrecorded": [
                    {"$match": {"recorded": []}},
                    {"$project": {"models": {"v": {"model": own_model, **own_figures}}}},
                    {"$group": by_model},
                ],
            }
        },
    ]


def _token_usage(sums: Document) -> TokenUsage:
    totals: Document = sums["totals"][0] if sums["totals"] else {}
    by_model: dict[str, Any] = {}
    for group in sums["recorded"] + sums["unrecorded"]:
        figures = by_model.setdefault(
            group["_id"], {"runs": 0, "tokens": 0, "input_tokens": 0, "output_tokens": 0, "llm_calls": 0}
        )
        figures["runs"] += group["runs"]
        figures["tokens"] += group["total"]
        figures["input_tokens"] += group["input"]
        figures["output_tokens"] += group["output"]
        figures["llm_calls"] += group["llm_calls"]
    # As in rows, `+` gives a plain int for the driver's 64-bit one.
    return cast(
        "TokenUsage",
        {
            "total_runs": +totals.get("runs", 0),
            "total_input_tokens": +totals.get("input", 0),
            "total_output_tokens": +totals.get("output", 0),
            "total_tokens": +totals.get("total", 0),
            "llm_call_count": +totals.get("llm_calls", 0),
            "by_caller": {caller: +totals.get(caller, 0) for caller in CALLERS},
            "by_model": by_model,
        },
    )
