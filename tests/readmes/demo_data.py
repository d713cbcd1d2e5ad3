"""The database that the commands of the READMEs find: a few conversations of two users."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from deerflow_mongo import MongoStorage

THREAD, RUN, USER = "weather-berlin", "run-weather-1", "alice"
PLACEHOLDERS = {"THREAD": THREAD, "RUN": RUN, "USER": USER}
"""What stands for them in a command."""

_THREADS = {THREAD: USER, "holiday-rome": USER, "tax-2025": "bob"}
_MODELS = ("gpt-4.1", "claude-sonnet-4")


async def fill(config: Mapping[str, Any]) -> None:
    """Store the conversations in an empty database."""
    now = datetime.now(UTC)
    async with MongoStorage.open(config) as storage:
        for hours, (thread, user) in enumerate(_THREADS.items(), 1):
            await storage.threads.ensure_thread(
                thread_id=thread, user_id=user, metadata={"source": "web"}, assistant_id="lead_agent"
            )
            await storage.threads.sync_thread_title(thread_id=thread, title=thread.replace("-", " "))
            for number in (1, 2, 3):
                run = f"run-{thread.partition('-')[0]}-{number}"
                await _store_run(storage, run, thread, user, now - timedelta(hours=hours * number))
        await storage.runs.create("run-weather-4", THREAD, user_id=USER, status="running")


async def _store_run(storage: MongoStorage, run: str, thread: str, user: str, began: datetime) -> None:
    failed = run.endswith("3")
    await storage.runs.create(
        run, thread, user_id=user, model_name=_MODELS[len(run) % 2], created_at=began, started_at=began
    )
    await storage.run_events.put_batch([_event(run, thread, kind) for kind in ("human", "ai")])
    await storage.runs.record_token_usage(run, caller="lead_agent", input_tokens=800, output_tokens=90)
    await storage.runs.update_run_completion(
        run,
        status="error" if failed else "success",
        error="RateLimitError: the model is busy" if failed else None,
        total_input_tokens=800,
        total_output_tokens=90,
        total_tokens=890,
        lead_agent_tokens=890,
        llm_call_count=1,
        message_count=2,
        first_human_message="What is the weather like?",
    )
    await storage.feedback.upsert(run_id=run, thread_id=thread, rating=-1 if failed else 1, user_id=user)


def _event(run: str, thread: str, kind: str) -> Any:
    content = {"type": kind, "content": f"a message of {kind} in {run}"}
    return {
        "thread_id": thread,
        "run_id": run,
        "event_type": f"{kind}_message",
        "category": "message",
        "content": content,
    }
