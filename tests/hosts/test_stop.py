"""A gateway that is stopped with SIGTERM leaves no run of its own that is pending or running."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import httpx
import pymongo
from pymongo.collection import Collection

from .gateway_process import SLOW, Gateway, needs_deerflow, stop_gateway
from .http_script import ALICE, Browser, run_body

pytestmark = [needs_deerflow, SLOW]

Raw = pymongo.MongoClient[dict[str, Any]]
RunCollection = Collection[dict[str, Any]]
STOP_S = 30
"""The host's own steps at a stop take at most about 15 s."""


async def test_stopped_worker_ends_its_runs_also_one_that_is_pending_without_a_task(
    gateway: Gateway, raw_client: Raw, database_name: str
) -> None:
    stored = raw_client[database_name].runs
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        alice = Browser(client)
        await alice.register(ALICE)
        thread = (await alice.ask("POST", "/api/threads", json={}))["thread_id"]
        body = run_body("slowly 600: for longer than the test")
        run = (await alice.ask("POST", f"/api/threads/{thread}/runs", json=body))["run_id"]
        document = await asyncio.to_thread(_running, stored, run)
    others = {"pending": document["owner_worker_id"], "another worker's": "another"}
    stored.insert_many(
        {**document, "_id": run_id, "thread_id": run_id, "status": "pending", "owner_worker_id": owner}
        for run_id, owner in others.items()
    )
    began = time.monotonic()
    await asyncio.to_thread(stop_gateway, gateway)
    assert time.monotonic() - began < STOP_S
    assert gateway.process.returncode in (0, -signal.SIGTERM)  # uvicorn ends with the signal it got
    found = {row["_id"]: (row["status"], row.get("error")) for row in stored.find()}
    assert found[run][0] == "interrupted"
    assert found["pending"] == ("interrupted", "The gateway was stopped before this run ended.")
    assert found["another worker's"][0] == "pending"
    assert "Task was destroyed" not in gateway.log.read_text()


def _running(stored: RunCollection, run_id: str) -> dict[str, Any]:
    """The run's document, as soon as it is running."""
    while True:
        document = stored.find_one({"_id": run_id, "status": "running"})
        if document is not None:
            return document
        time.sleep(0.1)
