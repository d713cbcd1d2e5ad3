"""The observer where a completion cannot be stored whole: the run ends all the same, and the log tells."""

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
async def test_a_figure_that_cannot_be_stored_is_left_out(
    storage: Storage, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = await _fail_with(storage, {"total_tokens": odd, "message_count": 3}, error="boom")
    assert (row["status"], row["error"], row["total_tokens"], row["message_count"]) == ("error", "boom", 0, 3)
    assert row["ended_at"] is not None
    assert f"run r: completion figure total_tokens={odd!r} is left out" in caplog.messages


async def test_a_text_that_no_document_holds_costs_the_figures_and_not_the_ending(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    row = await _fail_with(storage, {"total_tokens": 5, "last_ai_message": "x" * (17 << 20)}, error="boom")
    assert (row["status"], row["error"], row["total_tokens"]) == ("error", "boom", 0)
    assert row["ended_at"] is not None
    [told] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told.getMessage() == "run r: the figures of its error could not be stored"
