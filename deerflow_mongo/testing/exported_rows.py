"""Rows of every kind as an export has them, for tests of what exports, imports and transfers rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..contract.bulk_rows import RowKind
from ..contract.rows import MAX_COUNT
from .contract import ALICE, RUN, THREAD

AT = "2026-04-22T03:26:38.123456+00:00"
LATER = "2026-04-22T03:26:39.000001+00:00"
PAYLOAD: Mapping[str, Any] = {
    "text": "é\ud800",
    "$ref": 1,
    "a.b": [1, 1.0, True, None, {}],
    "_json": {"_json": "x"},
    "large": 2**80,
    "nul\0": -0.5,
}


def user_row(user_id: str = "u-1", **fields: Any) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "email": f"{user_id}@example.org",
        "password_hash": "$2b$12$of-a-secret-password",
        "system_role": "admin",
        "created_at": AT,
        "oauth_provider": "github",
        "oauth_id": user_id,
        "needs_setup": True,
        "token_version": 3,
        **fields,
    }


def thread_row(thread_id: str = THREAD, **fields: Any) -> dict[str, Any]:
    return {
        "thread_id": thread_id,
        "assistant_id": "lead_agent",
        "user_id": ALICE,
        "display_name": "A title\ud800",
        "status": "idle",
        "metadata": {**PAYLOAD, "deerflow_pinned": True},
        "created_time": AT,
        "updated_time": LATER,
        **fields,
    }


def run_row(run_id: str = RUN, **fields: Any) -> dict[str, Any]:
    """A run that has ended and has no owner."""
    counts = ("input_tokens", "output_tokens", "total_tokens", "llm_calls", "cache_read_tokens")
    return {
        "run_id": run_id,
        "thread_id": THREAD,
        "assistant_id": "lead_agent",
        "user_id": ALICE,
        "status": "error",
        "model_name": "gpt-4.1",
        "multitask_strategy": "reject",
        "follow_up_to_run_id": "run-0",
        "metadata": dict(PAYLOAD),
        "kwargs": {"input": "x"},
        "created_at": AT,
        "updated_at": LATER,
        "started_at": "2026-04-22T03:26:38.500000+00:00",
        "ended_at": "2026-04-22T03:26:39+00:00",
        "error": "ValueError: \ud800",
        "total_input_tokens": 1,
        "total_output_tokens": 2,
        "total_tokens": MAX_COUNT,
        "llm_call_count": 4,
        "lead_agent_tokens": 5,
        "subagent_tokens": 6,
        "middleware_tokens": 7,
        "message_count": 8,
        "first_human_message": "Hello",
        "last_ai_message": None,
        "token_usage_by_model": {"gpt-4.1": dict(zip(counts, range(5), strict=True))},
        **fields,
    }


def owned_run_row(run_id: str = "run-2", **fields: Any) -> dict[str, Any]:
    """An active run of a worker."""
    ownership = {
        "operation_kind": "run",
        "stop_reason": None,
        "owner_worker_id": "worker-1",
        "lease_expires_at": "2026-04-22T03:27:00.000001+00:00",
        "cancel_action": "rollback",
        "cancel_requested_at": LATER,
        "idempotency_key": f"key-of-{run_id}",
    }
    active = {"status": "running", "ended_at": None, "error": None}
    return run_row(run_id, **{**active, "thread_id": f"thread-of-{run_id}", **ownership, **fields})


def feedback_row(feedback_id: str = "f-1", **fields: Any) -> dict[str, Any]:
    user_id = fields.get("user_id", ALICE)
    return {
        "feedback_id": feedback_id,
        "run_id": RUN,
        "thread_id": THREAD,
        "user_id": user_id,
        "owner_id": user_id,
        "message_id": None,
        "rating": -1,
        "comment": "No\ud800",
        "created_at": AT,
        "is_vote": True,
        **fields,
    }


def event_row(seq: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "thread_id": THREAD,
        "run_id": RUN,
        "event_type": "ai_message",
        "category": "message",
        "content": dict(PAYLOAD),
        "metadata": {"caller": "lead_agent"},
        "created_at": AT,
        "seq": seq,
        **fields,
    }


ROWS: Mapping[RowKind, Sequence[dict[str, Any]]] = {
    "users": (
        user_row("u-1"),
        user_row("u-2", email="Ünï@example.org", password_hash=None, oauth_provider=None, oauth_id=None),
    ),
    "threads": (
        thread_row("a" * 1_024, metadata={}, display_name=None, user_id=None, assistant_id=None),
        thread_row(),
    ),
    "runs": (
        run_row(),
        owned_run_row(),
        owned_run_row("run-3", lease_expires_at=None, operation_kind=None, cancel_action=None),
        owned_run_row("run-4", status="success", ended_at=None, idempotency_key=None),
        run_row("run-5", status="pending", updated_at="", started_at=None, ended_at=None, error=None),
    ),
    "feedback": (
        feedback_row(),
        feedback_row("f-2", is_vote=False, comment=None, rating=1),
        feedback_row("f-3", is_vote=False, message_id="m-1", user_id=None, owner_id=None),
    ),
    "run_events": (
        event_row(thread_id="a-thread", content="text", user_id=ALICE, event_id="e-1"),
        event_row(2, thread_id="a-thread", content=[1, "x"], once=True, category="trace"),
        event_row(7, thread_id="a-thread", content=False, user_id=""),
        event_row(),
    ),
    "event_numbers": ({"thread_id": "a-thread", "next_seq": 12}, {"thread_id": "z", "next_seq": 3}),
}
"""Rows of every kind in the order of their keys, which no other row of these is in the way of."""


def numbered_row(kind: RowKind, number: int, **fields: Any) -> dict[str, Any]:
    """A row with a key of its own."""
    makers: Mapping[RowKind, Any] = {
        "users": lambda: user_row(f"u-{number}", **fields),
        "threads": lambda: thread_row(**{"thread_id": f"t-{number}", **fields}),
        "runs": lambda: run_row(f"r-{number}", **fields),
        "feedback": lambda: feedback_row(f"f-{number}", **{"is_vote": False, **fields}),
        "run_events": lambda: event_row(**{"seq": number, **fields}),
        "event_numbers": lambda: {"thread_id": f"t-{number}", "next_seq": 2, **fields},
    }
    return makers[kind]()
