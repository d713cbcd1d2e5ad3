"""Run documents: the row, the updates of a run's state and token counts, and the token usage of a thread."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, cast

from ...contract.regeneration import REGENERATED_RUN, REPLAY_KIND
from ...contract.rows import (
    ACTIVE_STATUSES,
    CALLERS,
    ENDED_STATUSES,
    UNKNOWN_MODEL,
    Caller,
    RunRow,
    TokenUsage,
)
from ...contract.statuses import is_ending
from ...contract.times import clock
from .encoding import (
    OPTIONAL_WHOLE,
    WHOLE,
    Document,
    UnreadableError,
    decode_mapping,
    decode_text,
    encode_text,
)
from .run_ownership import CACHE_READ, KIND, STOP_REASON, ownership_row
from .stored_times import (
    ORDER,
    created_fields,
    date_of,
    row_time,
    row_time_of_stamp,
    set_update,
    time_fields,
    time_stage,
)
from .version_1 import VERSION as VERSION_1
from .version_1 import as_current
from .versions import IS_NEWER, READABLE_FROM, SCHEMA_VERSION

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

EXPECTED_RUNS = 15
"""Runs that a thread may be expected to have, where no limit says how many rows there are."""

REGENERATED_RUN_PATH = f"metadata.{REGENERATED_RUN}"
REPLAY_KIND_PATH = f"metadata.{REPLAY_KIND}"
"""Keys and a text that `encode_mapping` stores as they are, so a filter finds them."""

_ERROR_TYPE = re.compile(r"^([^\s:]{1,128}):", re.ASCII)

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
    created_stamp_us: int | None,
    started_stamp_us: int | None,
    ended_stamp_us: int | None,
    error: str | None,
    stamp_us: int,
) -> Document:
    """A run that has spent nothing yet, created at the clock's stamp where no other time is given."""
    if created_stamp_us is None:
        created_us, created = stamp_us, created_fields(stamp_us)
    else:
        created_us, created = created_stamp_us, created_fields(created_stamp_us, stamp_us)
    return {
        "_id": run_id,
        "schema_version": READABLE_FROM,
        "thread_id": thread_id,
        "user_id": user_id,
        "assistant_id": assistant_id,
        "status": status,
        "model_name": model_name,
        "multitask_strategy": multitask_strategy,
        "follow_up_to_run_id": follow_up_to_run_id,
        "metadata": metadata,
        "kwargs": kwargs,
        **created,
        "updated_at": None,
        **time_fields("started_at", started_stamp_us),
        **time_fields("ended_at", ended_stamp_us),
        "duration_ms": duration_ms(status, created_us, started_stamp_us, ended_stamp_us),
        **error_fields(error),
        "tokens": no_tokens(),
        "message_count": 0,
        "first_human_message": None,
        "last_ai_message": None,
    }


def duration_ms(status: str, created_us: int, started_us: int | None, ended_us: int | None) -> int | None:
    """How long an ended run took: from `started_at` to `ended_at`, 0 at least; None while it is active.

    A run that was never started counts from `created_at`. One that ended without an `ended_at` ends with the
    update that set its status.
    """
    if not is_ending(status):
        return None
    start = created_us if started_us is None else started_us
    end = created_us if ended_us is None else ended_us
    return max(0, end // 1_000 - start // 1_000)


def error_fields(error: object) -> Document:
    """A run's error, and its type: the text before the first ":" where that is one word."""
    encoded = encode_text("error", error)
    found = _ERROR_TYPE.match(encoded) if isinstance(encoded, str) else None
    return {"error": encoded, "error_type": found and found[1]}


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


# In rows, `+` gives a plain int for the driver's 64-bit one, at a fraction of the cost of `int`, and `|` of
# counts raises for what is no whole number and is negative if one of them is.


def run_row(document: Document) -> RunRow:
    if document["schema_version"] is not SCHEMA_VERSION:
        document = as_current(document, "updated_at", "started_at", "ended_at")
    run_id, thread_id, status = document["_id"], document["thread_id"], document["status"]
    user_id, assistant_id, model = document["user_id"], document["assistant_id"], document["model_name"]
    strategy, follow_up = document["multitask_strategy"], document["follow_up_to_run_id"]
    started, ended, updated = document["started_at"], document["ended_at"], document["updated_at"]
    error, error_type, tokens = document["error"], document["error_type"], document["tokens"]
    total_in, total_out, total = tokens["input"], tokens["output"], tokens["total"]
    calls, by_caller, order = tokens["llm_calls"], tokens["by_caller"], document[ORDER]
    messages, below_ms = document["message_count"], document.get
    lead, sub, middle = by_caller["lead_agent"], by_caller["subagent"], by_caller["middleware"]
    if (
        not (type(run_id) is type(thread_id) is type(status) is type(strategy) is str)
        or (user_id is not None and type(user_id) is not str)
        or (assistant_id is not None and type(assistant_id) is not str)
        or (model is not None and type(model) is not str)
        or (follow_up is not None and type(follow_up) is not str)
        or (error_type is not None and type(error_type) is not str)
        or type(order) not in WHOLE
        or type(document["duration_ms"]) not in OPTIONAL_WHOLE
        or type(document["created_at"]) is not datetime
        or type(tokens["by_model"]) is not dict
        or (total_in | total_out | total | calls | lead | sub | middle | messages) < 0
    ):
        raise UnreadableError
    row: RunRow = {
        "run_id": run_id,
        "thread_id": thread_id,
        "assistant_id": assistant_id,
        "user_id": user_id,
        "status": status,
        "model_name": model,
        "multitask_strategy": strategy,
        "follow_up_to_run_id": follow_up,
        "metadata": decode_mapping(document["metadata"]),
        "kwargs": decode_mapping(document["kwargs"]),
        "created_at": row_time_of_stamp(order),
        "updated_at": "" if updated is None else row_time(updated, below_ms("updated_at_us", 0)),
        "started_at": None if started is None else row_time(started, below_ms("started_at_us", 0)),
        "ended_at": None if ended is None else row_time(ended, below_ms("ended_at_us", 0)),
        "error": None if error is None else decode_text(error),
        "total_input_tokens": +total_in,
        "total_output_tokens": +total_out,
        "total_tokens": +total,
        "llm_call_count": +calls,
        "lead_agent_tokens": +lead,
        "subagent_tokens": +sub,
        "middleware_tokens": +middle,
        "message_count": +messages,
        "first_human_message": decode_text(document["first_human_message"]),
        "last_ai_message": decode_text(document["last_ai_message"]),
    }
    return {**row, **ownership_row(document)} if KIND in document else row


# -- updates ---------------------------------------------------------------------------------------


class StatusChange(NamedTuple):
    """What `RunStore.update_status` sets, encoded; times are stamps."""

    changes: Document
    times: dict[str, int]


def status_change(
    status: str,
    *,
    started_stamp_us: int | None,
    ended_stamp_us: int | None,
    error: str | None,
    stop_reason: str | None,
) -> StatusChange:
    """The status, and what is not None."""
    changes: Document = {"status": status}
    times: dict[str, int] = {}
    if error is not None:
        changes |= error_fields(error)
    if stop_reason is not None:
        changes[STOP_REASON] = encode_text(STOP_REASON, stop_reason)
    if started_stamp_us is not None:
        times["started_at"] = started_stamp_us
    if ended_stamp_us is not None:
        times["ended_at"] = ended_stamp_us
    return StatusChange(changes, times)


def active_status_update(change: StatusChange) -> Document:
    """Set an active status on a run that has not ended; the query makes sure of that.

    It costs the server a fifth less than `status_update`, which reads the stored document.
    """
    # A run that had an ending of a host's own had a duration, too, by which retention would remove it.
    return set_update({**change.changes, "duration_ms": None}, **change.times, updated_at=clock.stamp_us())


def status_update(change: StatusChange, metadata: Document) -> list[Document]:
    """Apply the change whatever the stored status is, and merge `metadata`; see `RunStore.update_status`."""
    stages = _transition(change.changes, change.times)
    if metadata:
        stages[0]["$set"]["metadata"] = {"$mergeObjects": ["$metadata", _literal(metadata)]}
    return stages


def late_status_update(change: StatusChange, from_statuses: Sequence[str] | None) -> list[Document]:
    """As `status_update` for a run in one of these statuses, and no change of any other document.

    For a command that reads a run as well, whose query is therefore the id alone.
    """
    is_kept = [IS_NEWER]
    if from_statuses is not None:
        is_kept.append({"$eq": [{"$in": ["$status", _literal(list(from_statuses))]}, False]})
    [stage] = _transition(change.changes, change.times)
    return [{"$set": {path: _unless({"$or": is_kept}, path, value) for path, value in stage["$set"].items()}}]


def counts_by_model(by_model: Mapping[str, Mapping[str, int]]) -> Document:
    """Counts that `arguments.model_counts` checked, as the run's document has them."""
    return {model_key(model): _counts_of_model(model, counts) for model, counts in by_model.items()}


def _counts_of_model(model: str, counts: Mapping[str, int]) -> Document:
    stored: Document = {
        "model": model,
        "input": counts["input_tokens"],
        "output": counts["output_tokens"],
        "total": counts["total_tokens"],
        "llm_calls": counts["llm_calls"],
    }
    if "cache_read_tokens" in counts:
        stored[CACHE_READ] = counts["cache_read_tokens"]
    return stored


def completion_update(
    status: str,
    *,
    counts: Mapping[str, int],
    by_model: Mapping[str, Mapping[str, int]] | None,
    texts: Mapping[str, str | None],
    ended_stamp_us: int | None,
) -> list[Document]:
    """Set the status, every count (named as in rows) and these texts; see `update_run_completion`."""
    changes: Document = {"status": status}
    for name, path in COUNT_PATHS.items():
        changes[path] = counts[name]
    if by_model is not None:
        changes["tokens.by_model"] = counts_by_model(by_model)
    for name, text in texts.items():
        changes |= error_fields(text) if name == "error" else {name: encode_text(name, text)}
    times = {} if ended_stamp_us is None else {"ended_at": ended_stamp_us}
    return _transition(changes, times, ends_now=ended_stamp_us is None)


def error_update(error: str | None) -> list[Document]:
    return _transition({"status": "error", **error_fields(error)}, {})


def transition_update(changes: Document) -> list[Document]:
    """Set these fields, a status among them, and `ended_at` to now where none is set and it is an ending."""
    return _transition(changes, {}, ends_now=True)


def duration_ms_after(now: int) -> Document:
    """The duration of a stored run that has ended by now."""
    return _duration_ms("$started_at", "$ended_at", now)


def model_name_update(model_name: str | None) -> Document:
    return set_update({"model_name": model_name}, updated_at=clock.stamp_us())


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
    changes: Document = {}
    if model_name is not None:
        path = f"tokens.by_model.{model_key(model_name)}"
        increments |= {f"{path}.{name}": count for name, count in spent.items()}
        changes[f"{path}.model"] = model_name
    return {"$inc": increments, **set_update(changes, updated_at=clock.stamp_us())}


def _transition(changes: Document, times: Mapping[str, int], *, ends_now: bool = False) -> list[Document]:
    """The `$set` stage that applies `changes`, a status among them, unless it would restart an ended run.

    An ending replaces the times given; with `ends_now` it sets `ended_at` to now where no end is stored. An
    ended run that gets an active status stays as it is, but a time that it lacks is set; its duration stays
    what it was at its end.
    """
    now = clock.stamp_us()
    if is_ending(changes["status"]):
        stage = {path: _literal(value) for path, value in changes.items()}
        for name, stamp in times.items():
            stage |= time_stage(name, stamp)
        if ends_now:
            stage |= _time_unless(_is_set("ended_at"), "ended_at", now)
        stage["duration_ms"] = _duration_ms(_after("started_at", times), _after("ended_at", times), now)
    else:
        stage = {path: _unless(_HAS_ENDED, path, _literal(value)) for path, value in changes.items()}
        for name, stamp in times.items():
            stage |= _time_unless({"$and": [_HAS_ENDED, _is_set(name)]}, name, stamp)
    return [{"$set": stage | time_stage("updated_at", now)}]


def _unless(is_kept: Document, path: str, value: object) -> Document:
    """The stored value where the condition holds, else this one."""
    return {"$cond": [is_kept, f"${path}", value]}


def _time_unless(is_kept: Document, name: str, stamp_us: int) -> Document:
    return {field: _unless(is_kept, field, value) for field, value in time_stage(name, stamp_us).items()}


def _is_set(name: str) -> Document:
    return {"$ne": [f"${name}", None]}


def _after(name: str, times: Mapping[str, int]) -> object:
    """The date that a run has after an update that sets these times."""
    return date_of(times[name]) if name in times else f"${name}"


def _duration_ms(started_at: object, ended_at: object, now: int) -> Document:
    """The duration of a run that ends, as `duration_ms` has it; null in version 1, whose times are texts."""
    start, end = {"$ifNull": [started_at, "$created_at"]}, {"$ifNull": [ended_at, date_of(now)]}
    milliseconds = {"$max": [0, {"$subtract": [end, start]}]}
    return {"$cond": [{"$eq": ["$schema_version", VERSION_1]}, None, milliseconds]}


def _literal(value: Any) -> Document:
    return {"$literal": value}


def derived_fields() -> Document:
    """What a new run's document and its updates compute in Python, for stored ones: see `version_1.py`."""
    end = {"$ifNull": ["$ended_at", {"$ifNull": ["$updated_at", "$created_at"]}]}
    is_active = {"$in": ["$status", list(ACTIVE_STATUSES)]}
    text = {"$cond": [{"$eq": [{"$type": "$error"}, "string"]}, "$error", ""]}
    found = {"$regexFind": {"input": text, "regex": _ERROR_TYPE.pattern}}
    captures = {"$getField": {"field": "captures", "input": found}}
    return {
        "duration_ms": {"$cond": [is_active, None, _duration_ms("$started_at", end, 0)]},
        "error_type": {"$ifNull": [{"$arrayElemAt": [captures, 0]}, None]},
    }


# -- token usage of a thread -----------------------------------------------------------------------


IS_WHOLE: Document = {"$type": ["int", "long"]}
HAS_COUNTS: Document = {
    **dict.fromkeys(COUNT_PATHS.values(), IS_WHOLE),
    "tokens.by_model": {"$type": "object"},
    "model_name": {"$type": ["string", "null"]},
}
"""A run whose counts can be added up; one broken run must not make a sum fail, or change its type."""


def token_usage_pipeline(query: Document) -> list[Document]:
    own_counts = {name: f"$tokens.{name}" for name in _COUNTS_BY_MODEL}
    own_model = {"$ifNull": ["$model_name", UNKNOWN_MODEL]}
    totals: Document = {"_id": None, "runs": {"$sum": 1}}
    totals |= {name: {"$sum": path} for name, path in own_counts.items()}
    totals |= {caller: {"$sum": f"$tokens.by_caller.{caller}"} for caller in CALLERS}
    by_model: Document = {"_id": "$models.v.model", "runs": {"$sum": 1}}
    by_model |= {name: {"$sum": f"$models.v.{name}"} for name in own_counts}
    has_counts = {f"models.v.{name}": IS_WHOLE for name in _COUNTS_BY_MODEL}
    return [
        {"$match": {**query, **HAS_COUNTS}},
        {"$project": {"tokens": 1, "model_name": 1, "recorded": {"$objectToArray": "$tokens.by_model"}}},
        {
            "$facet": {
                "totals": [{"$group": totals}],
                "recorded": [
                    {"$unwind": "$recorded"},
                    {"$project": {"models": "$recorded"}},
                    {"$match": {"models.v.model": {"$type": "string"}, **has_counts}},
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
            "total_runs": int(totals.get("runs", 0)),
            "total_input_tokens": int(totals.get("input", 0)),
            "total_output_tokens": int(totals.get("output", 0)),
            "total_tokens": int(totals.get("total", 0)),
            "llm_call_count": int(totals.get("llm_calls", 0)),
            "by_caller": {caller: int(totals.get(caller, 0)) for caller in CALLERS},
            "by_model": by_model,
        },
    )
