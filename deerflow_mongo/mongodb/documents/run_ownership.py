"""What a run's document has beside its other fields once the run has an owner: kind, lease, cancellation.

A document that `runs.create` wrote has none of these fields; one that `RunOwnership` wrote has them all. They
are optional for the validator. The documents and endings of whole runs are in `run_operations.py`.

The database's clock judges a lease: `lease_renewed_at` is set by the server with every renewal, and
`lease_ms` is how long the lease is valid from then on. `lease_expires_at` is only what the owner asked for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, cast

from ...contract.rows import CANCEL_ACTIONS, CancelAction, RunRow
from ...contract.times import clock
from .encoding import WHOLE, Document, UnreadableError, decode_text, encode_text
from .stored_times import BELOW_MS, NOW, REMOVED, row_time, set_update, time_fields, time_stage

KIND: Final = "operation_kind"
OWNER: Final = "owner_worker_id"
STOP_REASON: Final = "stop_reason"
IDEMPOTENCY_KEY: Final = "idempotency_key"
CANCEL_ACTION: Final = "cancel_action"
CANCEL_REQUESTED_AT: Final = "cancel_requested_at"
LEASE_EXPIRES_AT: Final = "lease_expires_at"
LEASE_RENEWED_AT: Final = "lease_renewed_at"
LEASE_MS: Final = "lease_ms"

CACHE_READ: Final = "cache_read"
"""Of a model's counts; absent where the host did not give it."""

_TEXTS: Final = frozenset({str, type(None)})
_ACTIONS: Final = frozenset({None, *CANCEL_ACTIONS})


# -- leases ----------------------------------------------------------------------------------------


def lease_ms(expires_us: int, clock_us: int) -> int:
    """How long a lease is valid: until the caller's time, on the caller's clock; negative if that is past."""
    return (expires_us - clock_us) // 1_000


def renewal_update(expires_us: int, clock_us: int) -> Document:
    """Start the lease anew. The server's clock has the time of the renewal."""
    changes: Document = {LEASE_MS: lease_ms(expires_us, clock_us)}
    times = {LEASE_EXPIRES_AT: expires_us, "updated_at": clock.stamp_us()}
    return {**set_update(changes, **times), "$currentDate": {LEASE_RENEWED_AT: True}}


def lease_stage(expires_us: int | None, clock_us: int) -> Document:
    """The fields of a lease, or of none, in a `$set` stage of an update's pipeline."""
    if expires_us is None:
        fields = dict.fromkeys((LEASE_EXPIRES_AT, LEASE_RENEWED_AT, LEASE_MS))
        return {**fields, LEASE_EXPIRES_AT + BELOW_MS: REMOVED}
    return {
        **time_stage(LEASE_EXPIRES_AT, expires_us),
        LEASE_RENEWED_AT: NOW,
        LEASE_MS: lease_ms(expires_us, clock_us),
    }


def lease_fields(expires_us: int | None, clock_us: int) -> Document:
    """The fields of a lease in a new document, but for the time of the renewal, which the server sets."""
    if expires_us is None:
        return dict.fromkeys((LEASE_EXPIRES_AT, LEASE_RENEWED_AT, LEASE_MS))
    return {**time_fields(LEASE_EXPIRES_AT, expires_us), LEASE_MS: lease_ms(expires_us, clock_us)}


def ownership_fields(
    *,
    operation_kind: str | None,
    stop_reason: str | None,
    owner_worker_id: str | None,
    lease: Document,
    cancel_action: str | None,
    cancel_requested_us: int | None,
    idempotency_key: str | None,
) -> Document:
    """What a new document of a run with an owner has besides the fields of all runs."""
    return {
        KIND: operation_kind,
        STOP_REASON: encode_text(STOP_REASON, stop_reason),
        OWNER: owner_worker_id,
        **lease,
        CANCEL_ACTION: cancel_action,
        **time_fields(CANCEL_REQUESTED_AT, cancel_requested_us),
        IDEMPOTENCY_KEY: idempotency_key,
    }


_HAS_LEASE: Final[Document] = {
    "$and": [{"$eq": [{"$type": f"${LEASE_RENEWED_AT}"}, "date"]}, {"$isNumber": f"${LEASE_MS}"}]
}
"""A broken lease is none, so that one broken document makes no list fail."""


def lease_has_expired(grace_seconds: float) -> Document:
    """The expression: there is no lease, or it ended more than the grace period ago by the server's clock."""
    elapsed_ms = {"$subtract": [NOW, f"${LEASE_RENEWED_AT}"]}
    # Rounded because 2.3 * 1000 is not 2300.
    allowed_ms = {"$add": [f"${LEASE_MS}", round(grace_seconds * 1_000, 3)]}
    return {"$cond": [_HAS_LEASE, {"$gt": [elapsed_ms, allowed_ms]}, True]}


def lease_state() -> Document:
    """The expression: "valid" or "expired" by the server's clock, or "none"."""
    return {"$cond": [_HAS_LEASE, {"$cond": [lease_has_expired(0), "expired", "valid"]}, "none"]}


def lease_left_ms() -> Document:
    """The expression: how long the lease is still valid; negative once it has expired, null without one."""
    elapsed_ms = {"$subtract": [NOW, f"${LEASE_RENEWED_AT}"]}
    return {"$cond": [_HAS_LEASE, {"$subtract": [f"${LEASE_MS}", elapsed_ms]}, None]}


# -- cancellation and start ------------------------------------------------------------------------


def start_update() -> Document:
    now = clock.stamp_us()
    return set_update({"status": "running"}, started_at=now, updated_at=now)


def cancel_update(action: str) -> list[Document]:
    """Request the action, unless one is requested already: the first one and its time stay."""
    now = clock.stamp_us()
    is_requested = {"$ne": [{"$ifNull": [f"${CANCEL_ACTION}", None]}, None]}
    requested = {CANCEL_ACTION: action, **time_stage(CANCEL_REQUESTED_AT, now)}
    stage: Document = {
        name: {"$cond": [is_requested, f"${name}", value]} for name, value in requested.items()
    }
    stage[KIND] = {"$ifNull": [f"${KIND}", None]}  # rows of runs that `runs.create` wrote show it, too
    return [{"$set": {**stage, **time_stage("updated_at", now)}}]


def cancel_action(document: Document | None) -> CancelAction | None:
    """The action that was requested for the run."""
    action = None if document is None else document.get(CANCEL_ACTION)
    return cast("CancelAction | None", action)


# -- rows ------------------------------------------------------------------------------------------


def ownership_row(document: Document) -> RunRow:
    """The part of a row that only runs with an owner have. Raises as `run_row` does."""
    field = document.get
    kind, owner, key, action = field(KIND), field(OWNER), field(IDEMPOTENCY_KEY), field(CANCEL_ACTION)
    if (
        type(kind) not in _TEXTS
        or type(owner) not in _TEXTS
        or type(key) not in _TEXTS
        or type(action) not in _TEXTS
        or action not in _ACTIONS
    ):
        raise UnreadableError
    row: dict[str, Any] = {
        KIND: kind,
        STOP_REASON: decode_text(field(STOP_REASON)),
        OWNER: owner,
        LEASE_EXPIRES_AT: _time(field(LEASE_EXPIRES_AT), field(LEASE_EXPIRES_AT + BELOW_MS, 0)),
        CANCEL_ACTION: action,
        CANCEL_REQUESTED_AT: _time(field(CANCEL_REQUESTED_AT), field(CANCEL_REQUESTED_AT + BELOW_MS, 0)),
        IDEMPOTENCY_KEY: key,
        "token_usage_by_model": _counts_by_model(document["tokens"]["by_model"]),
    }
    return cast("RunRow", row)


def _time(date: datetime | None, below_ms: int) -> str | None:
    return None if date is None else row_time(date, below_ms)


def _counts_by_model(stored: Document) -> dict[str, dict[str, int]]:
    return dict(_counts_of_model(counts) for counts in stored.values())


def counts_with_calls(stored: Document) -> dict[str, dict[str, int]]:
    """The counts of each model, those of its calls too, which no row of a run has. Raises as `run_row`."""
    found = _counts_by_model(stored)
    for of_model in stored.values():
        calls = of_model["llm_calls"]
        if type(calls) not in WHOLE or calls < 0:
            raise UnreadableError
        found[of_model["model"]]["llm_calls"] = +calls
    return found


def _counts_of_model(stored: Document) -> tuple[str, dict[str, int]]:
    model, cache_read = stored["model"], stored.get(CACHE_READ, 0)
    spent_in, spent_out, total = stored["input"], stored["output"], stored["total"]
    if (
        type(model) is not str
        or not {type(spent_in), type(spent_out), type(total), type(cache_read)} <= WHOLE
        or (spent_in | spent_out | total | cache_read) < 0
    ):
        raise UnreadableError
    counts = {"input_tokens": +spent_in, "output_tokens": +spent_out, "total_tokens": +total}
    if CACHE_READ in stored:
        counts["cache_read_tokens"] = +cache_read
    return model, counts
