"""The observer where a completion cannot be stored as a whole: the run still ends, and the log has why."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deerflow_mongo import LifecycleEvent, LifecycleEventType, Storage, create_storage


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[Storage]:
    config = {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    async with create_storage(config) as opened:
        await opened.runs.create("r", "t", user_id="u", status="running")
        yield opened


async def _fail_with(storage: Storage, completion: dict[str, Any], **payload: Any) -> Any:
    event = LifecycleEvent(
        event_type=LifecycleEventType.RUN_FAILED,
        run_id="r",
        thread_id="t",
        payload={"completion_data": completion, **payload},
    )
    await storage.observer().on_event(event)
    return await storage.runs.get("r", user_id="u")


@pytest.mark.parametrize("odd", [2**63, -1, 1.5, "12", True])
async def test_invalid_count_is_left_out_and_the_run_still_ends(
    storage: Storage, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = await _fail_with(storage, {"total_tokens": odd, "message_count": 3}, error="boom")
    assert (row["status"], row["error"], row["total_tokens"], row["message_count"]) == ("error", "boom", 0, 3)
    assert row["ended_at"] is not None
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == f"run r: invalid completion value total_tokens={odd!r} was left out"
    assert (vars(record)["run_id"], vars(record)["thread_id"]) == ("r", "t")


async def test_oversized_text_drops_counts_but_run_still_ends(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    row = await _fail_with(storage, {"total_tokens": 5, "last_ai_message": "x" * (17 << 20)}, error="boom")
    assert (row["status"], row["error"], row["total_tokens"]) == ("error", "boom", 0)
    assert row["ended_at"] is not None
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "run r: the counts and texts of its error could not be stored"
    assert vars(record)["event_type"] == "run_failed"
