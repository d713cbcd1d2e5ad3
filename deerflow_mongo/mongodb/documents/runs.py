"""Run documents: the row, the updates of a run's state and token counts, and the token usage of a thread."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from ...contract.rows import ACTIVE_STATUSES, CALLERS, ENDED_STATUSES, Caller, RunRow, TokenUsage
from .encoding import Document, Update, decode_mapping, decode_text
from .stored_times import optional_row_time, row_time, stored_from_stamp, stored_now
from .versions import SCHEMA_VERSION, check_version

COUNT_PATHS: dict[str, str] = {
    "total_input_tokens": "tokens.input",
    "total_output_tokens": "tokens.output",
    "total_tokens": "tokens.total",
    "llm_call_count": "tokens.llm_calls",
    "lead_agent_tokens": "tokens.by_caller.lead_agent",
    "subagent_tokens": "tokens.by_caller.subagent",
    "middleware_tokens": "tokens.by_caller.middleware",
    "message_count": "message_count",
}
"""A row's count -> its path in the document."""

UNKNOWN_MODEL = "unknown"

_COUNTS_BY_MODEL = ("input", "output", "total", "llm_calls")
_MODEL_KEY_TABLE = str.maketrans({"%": "%25", ".": "%2E", "$": "%24", "\0": "%00"})
_HAS_ENDED: Document = {"$in": ["$status", list(ENDED_STATUSES)]}


@lru_cache(maxsize=256)
def model_key(model_name: str) -> str:
    """A model's name as one step of an update's path, where a dot would end the step ("gpt-4.1")."""
    return model_name.translate(_MODEL_KEY_TABLE) or "%"


def new_run(
    *,
    run_id: str,
    thread_id: str,
    user_id: str | None,
    assistant_id: str | None,
    status: str,
    model_name: str | None,
    multitask_strategy: str,
    follow_up_to_run_id: str | None,
    metadata: Document,
    kwargs: Document,
    created_at: str | None,
    started_at: str | None,
    ended_at: str | None,
    error: Any,
    stamp_us: int,
) -> Document:
    """A run that has spent nothing yet, created at the clock's stamp where no other time is given."""
    return {
        "_id": run_id,
        "schema_version": SCHEMA_VERSION,
        "thread_id": thread_id,
        "user_id": user_id,
        "assistant_id": assistant_id,
        "status": status,
        "model_name": model_name,
        "multitask_strategy": multitask_strategy,
        "follow_up_to_run_id": follow_up_to_run_id,
        "metadata": metadata,
        "kwargs": kwargs,
        "created_at": created_at or stored_from_stamp(stamp_us),
        "started_at": started_at,
        "ended_at": ended_at,
        "error": error,
        "order": stamp_us,
        "updated_at": None,
        "tokens": no_tokens(),
        "message_count": 0,
        "first_human_message": None,
        "last_ai_message": None,
    }


def no_tokens() -> Document:
    """The token counts of a run that has spent none."""
    return {
        "input": 0,
        "output": 0,
        "total": 0,
        "llm_calls": 0,
        "by_caller": dict.fromkeys(CALLERS, 0),
        "by_model": {},
    }


# In rows, `+` gives a plain int for the driver's 64-bit one, at a fraction of the cost of `int`.


def run_row(document: Document) -> RunRow:
    check_version(document)
    tokens = document["tokens"]
    by_caller = tokens["by_caller"]
    updated_at = document["updated_at"]
    return {
        "run_id": document["_id"],
        "thread_id": document["thread_id"],
        "assistant_id": document["assistant_id"],
        "user_id": document["user_id"],
        "status": document["status"],
        "model_name": document["model_name"],
        "multitask_strategy": document["multitask_strategy"],
        "follow_up_to_run_id": document["follow_up_to_run_id"],
        "metadata": decode_mapping(document["metadata"]),
        "kwargs": decode_mapping(document["kwargs"]),
        "created_at": row_time(document["created_at"]),
        "updated_at": "" if updated_at is None else row_time(updated_at),
        "started_at": optional_row_time(document["started_at"]),
        "ended_at": optional_row_time(document["ended_at"]),
        "error": decode_text(document["error"]),
        "total_input_tokens": +tokens["input"],
        "total_output_tokens": +tokens["output"],
        "total_tokens": +tokens["total"],
        "llm_call_count": +tokens["llm_calls"],
        "lead_agent_tokens": +by_caller["lead_agent"],
        "subagent_tokens": +by_caller["subagent"],
        "middleware_tokens": +by_caller["middleware"],
        "message_count": +document["message_count"],
        "first_human_message": decode_text(document["first_human_message"]),
        "last_ai_message": decode_text(document["last_ai_message"]),
    }


# -- updates ---------------------------------------------------------------------------------------


def status_update(
    status: str, *, started_at: str | None, ended_at: str | None, error: Any, metadata: Document
) -> Update:
    """Set the status and what is not None, and merge `metadata`; see `RunStore.update_status`."""
    changes: Document = {"status": status}
    for name, value in (("started_at", started_at), ("ended_at", ended_at), ("error", error)):
        if value is not None:
            changes[name] = value
    if _is_ending(status) and not metadata:
        return _ending_update(changes)
    stage = _transition_stage(changes)
    if metadata:
        stage["metadata"] = {"$mergeObjects": ["$metadata", _literal(metadata)]}
    return [{"$set": stage}]


def counts_by_model(by_model: Mapping[str, Mapping[str, int]]) -> Document:
    """Counts that `arguments.model_counts` checked, as the run's document has them."""
    return {
        model_key(model): {
            "model": model,
            "input": counts["input_tokens"],
            "output": counts["output_tokens"],
            "total": counts["total_tokens"],
            "llm_calls": counts["llm_calls"],
        }
        for model, counts in by_model.items()
    }


def completion_update(
    status: str,
    *,
    counts: Mapping[str, int],
    by_model: Mapping[str, Mapping[str, int]] | None,
    texts: Mapping[str, Any],
    ended_at: str | None,
) -> Update:
    """Set the status, every count (named as in rows) and these texts; see `update_run_completion`."""
    changes: Document = {"status": status}
    for name, path in COUNT_PATHS.items():
        changes[path] = counts[name]
    if by_model is not None:
        changes["tokens.by_model"] = counts_by_model(by_model)
    changes |= texts
    if ended_at is not None:
        changes["ended_at"] = ended_at
        if _is_ending(status):
            return _ending_update(changes)
    stage = _transition_stage(changes)
    if _is_ending(status):
        stage["ended_at"] = {"$ifNull": ["$ended_at", _literal(stored_now())]}
    return [{"$set": stage}]


def error_update(error: Any) -> Document:
    return {"$set": {"status": "error", "error": error, "updated_at": stored_now()}}


def model_name_update(model_name: str | None) -> Document:
    return {"$set": {"model_name": model_name, "updated_at": stored_now()}}


def token_usage_update(
    caller: Caller,
    model_name: str | None,
    *,
    input_tokens: int,
    output_tokens: int,
    total_tokens: int,
    llm_calls: int,
) -> Document:
    """Add to a run's token counts, and to those of the model where it is named."""
    spent = {"input": input_tokens, "output": output_tokens, "llm_calls": llm_calls, "total": total_tokens}
    increments = {f"tokens.{name}": count for name, count in spent.items()}
    increments[f"tokens.by_caller.{caller}"] = total_tokens
    changes: Document = {"updated_at": stored_now()}
    if model_name is not None:
        path = f"tokens.by_model.{model_key(model_name)}"
        increments |= {f"{path}.{name}": count for name, count in spent.items()}
        changes[f"{path}.model"] = model_name
    return {"$inc": increments, "$set": changes}


def _is_ending(status: str) -> bool:
    return status not in ACTIVE_STATUSES


def _ending_update(changes: Document) -> Document:
    """An ending depends on nothing that is stored, so it needs no pipeline, which costs the server more."""
    return {"$set": {**changes, "updated_at": stored_now()}}


def _transition_stage(changes: Document) -> Document:
    """The `$set` stage that applies `changes`, a status among them, unless it would restart an ended run.

    An ended run that gets an active status keeps every field, but a time that it lacks is set.
    """
    now = stored_now()
    if _is_ending(changes["status"]):
        return {**{path: _literal(value) for path, value in changes.items()}, "updated_at": now}
    stage: Document = {"updated_at": now}
    for path, value in changes.items():
        unchanged = {"$ifNull": [f"${path}", _literal(value)]} if path.endswith("_at") else f"${path}"
        stage[path] = {"$cond": [_HAS_ENDED, unchanged, _literal(value)]}
    return stage


def _literal(value: Any) -> Document:
    return {"$literal": value}


# -- token usage of a thread -----------------------------------------------------------------------


def token_usage_pipeline(query: Document) -> list[Document]:
    own_counts = {name: f"$tokens.{name}" for name in _COUNTS_BY_MODEL}
    own_model = {"$ifNull": ["$model_name", UNKNOWN_MODEL]}
    totals: Document = {"_id": None, "runs": {"$sum": 1}}
    totals |= {name: {"$sum": path} for name, path in own_counts.items()}
    totals |= {caller: {"$sum": f"$tokens.by_caller.{caller}"} for caller in CALLERS}
    by_model: Document = {"_id": "$models.v.model", "runs": {"$sum": 1}}
    by_model |= {name: {"$sum": f"$models.v.{name}"} for name in own_counts}
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
                    {"$project": {"models": {"v": {"model": own_model, **own_counts}}}},
                    {"$group": by_model},
                ],
            }
        },
    ]


def token_usage(facets: Document) -> TokenUsage:
    """The result of `token_usage_pipeline`."""
    totals: Document = facets["totals"][0] if facets["totals"] else {}
    by_model: dict[str, Any] = {}
    for group in facets["recorded"] + facets["unrecorded"]:
        counts = by_model.setdefault(
            group["_id"], {"runs": 0, "tokens": 0, "input_tokens": 0, "output_tokens": 0, "llm_calls": 0}
        )
        counts["runs"] += group["runs"]
        counts["tokens"] += group["total"]
        counts["input_tokens"] += group["input"]
        counts["output_tokens"] += group["output"]
        counts["llm_calls"] += group["llm_calls"]
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
