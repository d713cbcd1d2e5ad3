"""What is written and where to: the same events for every writer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from deerflow_mongo.rows import RunEventFields

THREAD = "thread-1"
EVENTS_PER_BATCH = 5
TASKS = 8


@dataclass(frozen=True, slots=True)
class Target:
    """A database of its own for one measurement."""

    url: str
    database: str


Put: TypeAlias = Callable[[list[RunEventFields]], Awaitable[list[int]]]
"""Stores a batch and gives the numbers of its events."""

Opener: TypeAlias = Callable[[Target], AbstractAsyncContextManager[Put]]


def an_event(thread_id: str, run_id: str, *, is_message: bool, text_bytes: int = 200) -> RunEventFields:
    content: dict[str, Any] = {"type": "ai", "id": "lc_run--0197", "content": "x" * text_bytes}
    return {
        "thread_id": thread_id,
        "run_id": run_id,
        "event_type": "ai_message" if is_message else "llm_request",
        "category": "message" if is_message else "trace",
        "content": content,
        "metadata": {"caller": "lead_agent", "llm_call_index": 3},
    }


def a_batch(run_id: str) -> list[RunEventFields]:
    return [an_event(THREAD, run_id, is_message=i % 2 == 0) for i in range(EVENTS_PER_BATCH)]
