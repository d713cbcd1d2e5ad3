"""Documents and updates of runs and reservations with an owner: admission, replacement, progress, endings.

The fields of an owner are in `run_ownership.py`, all other fields of a run in `runs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ...contract.rows import SUPERSEDED_ERROR
from ...contract.statuses import is_ending
from ...contract.times import clock
from .encoding import Document, encode_text
from .run_ownership import (
    IDEMPOTENCY_KEY,
    KIND,
    LEASE_MS,
    LEASE_RENEWED_AT,
    OWNER,
    STOP_REASON,
    lease_fields,
    lease_stage,
    ownership_fields,
)
from .runs import COUNT_PATHS, counts_by_model, duration_ms_after, error_fields, new_run, transition_update
from .stored_times import BELOW_MS, ORDER_TIE, REMOVED, date_of, set_update

_REPLACED = (
    "thread_id",
    "user_id",
    "assistant_id",
    "status",
    "model_name",
    "multitask_strategy",
    "follow_up_to_run_id",
    "metadata",
    "kwargs",
    "error",
    "error_type",
    KIND,
    STOP_REASON,
    OWNER,
    IDEMPOTENCY_KEY,
)
"""What a second `put` of a run replaces, besides its lease."""


class Operation(NamedTuple):
    """A run or reservation to be stored; its arguments are checked and its payloads encoded."""

    run_id: str
    thread_id: str
    status: str
    operation_kind: str | None
    multitask_strategy: str
    assistant_id: str | None
    user_id: str | None
    model_name: str | None
    metadata: Document
    kwargs: Document
    error: str | None
    stop_reason: str | None
    created_stamp_us: int | None
    follow_up_to_run_id: str | None
    owner_worker_id: str | None
    lease_expires_us: int | None
    idempotency_key: str | None
    clock_us: int
    """The caller's clock at the call, which `lease_expires_us` is compared with."""


def new_operation(operation: Operation) -> Document:
    """The document of a new run or reservation, but for the time of its lease, which the server sets."""
    run = new_run(
        run_id=operation.run_id,
        thread_id=operation.thread_id,
        user_id=operation.user_id,
        assistant_id=operation.assistant_id,
        status=operation.status,
        model_name=operation.model_name,
        multitask_strategy=operation.multitask_strategy,
        follow_up_to_run_id=operation.follow_up_to_run_id,
        metadata=operation.metadata,
        kwargs=operation.kwargs,
        created_stamp_us=operation.created_stamp_us,
        started_stamp_us=None,
        ended_stamp_us=None,
        error=operation.error,
        stamp_us=clock.stamp_us(),
    )
    return {
        **run,
        **ownership_fields(
            operation_kind=operation.operation_kind,
            stop_reason=operation.stop_reason,
            owner_worker_id=operation.owner_worker_id,
            lease=lease_fields(operation.lease_expires_us, operation.clock_us),
            cancel_action=None,
            cancel_requested_us=None,
            idempotency_key=operation.idempotency_key,
        ),
    }


def insertion(document: Document) -> Document:
    """The update that stores a new operation, in an upsert that matches nothing."""
    update: Document = {"$setOnInsert": {name: value for name, value in document.items() if name != "_id"}}
    if document[LEASE_MS] is not None:
        update["$currentDate"] = {LEASE_RENEWED_AT: True}
    return update


def replacement(operation: Operation) -> list[Document]:
    """The upsert that stores the operation, or replaces what `put` takes of the stored run.

    A run that becomes active again has no end; one that gets an ending keeps the end that is stored.
    """
    document = new_operation(operation)
    now, ends = clock.stamp_us(), is_ending(operation.status)
    stage: Document = {}
    for name, value in document.items():
        if name in _REPLACED:
            stage[name] = _literal(value)
        elif name != "_id":
            stage[name] = {"$ifNull": [f"${name}", _literal(value)]}
    stage |= lease_stage(operation.lease_expires_us, operation.clock_us)
    if ORDER_TIE in document:
        stage[ORDER_TIE] = _on_insert(document[ORDER_TIE], f"${ORDER_TIE}")
    stage["updated_at"] = _on_insert(None, date_of(now))
    stage["updated_at" + BELOW_MS] = _on_insert(REMOVED, now % 1_000 or REMOVED)
    if ends:
        stage["duration_ms"] = _on_insert(0, duration_ms_after(now))
    else:
        stage |= {"ended_at": None, "ended_at" + BELOW_MS: REMOVED, "duration_ms": None}
    return [{"$set": stage}]


def _on_insert(inserted: object, replaced: object) -> Document:
    """The first value for a new document, else the other one."""
    return {"$cond": [{"$eq": [{"$ifNull": ["$schema_version", None]}, None]}, inserted, replaced]}


def _literal(value: object) -> Document:
    return {"$literal": value}


def ending(
    status: str, *, error: str | None, stop_reason: str | None, owner_worker_id: str | None = None
) -> list[Document]:
    """Set this status, and what else is not None; an ending sets `ended_at` where none is set."""
    changes: Document = {"status": status}
    if error is not None:
        changes |= error_fields(error)
    if stop_reason is not None:
        changes[STOP_REASON] = encode_text("stop_reason", stop_reason)
    if owner_worker_id is not None:
        changes[OWNER] = owner_worker_id
    return transition_update(changes)


def interruption(owner_worker_id: str) -> list[Document]:
    """End a run that a newer one of this worker replaces."""
    return ending("interrupted", error=SUPERSEDED_ERROR, stop_reason=None, owner_worker_id=owner_worker_id)


def progress_update(
    *,
    counts: Mapping[str, int],
    by_model: Mapping[str, Mapping[str, int]] | None,
    texts: Mapping[str, str],
) -> Document:
    """Set these counts and texts, named as in rows."""
    changes: Document = {COUNT_PATHS[name]: count for name, count in counts.items()}
    changes |= {name: encode_text(name, text) for name, text in texts.items()}
    if by_model is not None:
        changes["tokens.by_model"] = counts_by_model(by_model)
    return set_update(changes, updated_at=clock.stamp_us())
