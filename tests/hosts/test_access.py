"""Access that DeerFlow's own routes leave open and our gateway closes: nobody reads another user's thread."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pymongo
import pytest
import pytest_asyncio

from ..database_search import documents_with
from .conftest import SHARED_DATABASE
from .gateway_process import SLOW, Gateway, needs_deerflow
from .http_script import Browser, run_body

pytestmark = [needs_deerflow, SLOW]

SECRET = "what only alice knows"  # noqa: S105 - a message


@pytest_asyncio.fixture
async def users(shared_gateway: Gateway) -> AsyncGenerator[tuple[Browser, Browser]]:
    """Alice and bob, new in each test."""
    async with (
        httpx.AsyncClient(base_url=shared_gateway.url, timeout=180) as first,
        httpx.AsyncClient(base_url=shared_gateway.url, timeout=180) as second,
    ):
        alice, bob = Browser(first), Browser(second)
        for browser in (alice, bob):
            registered = await browser.register(f"{uuid.uuid4().hex}@example.com")
            assert registered.status == 201, registered
        yield alice, bob


async def _new_thread(alice: Browser) -> tuple[str, str]:
    """A thread of alice with one run and her vote on it."""
    thread_id: str = (await alice.ask("POST", "/api/threads", json={}))["thread_id"]
    await alice.ask("POST", f"/api/threads/{thread_id}/runs/wait", json=run_body(SECRET))
    [run] = await alice.ask("GET", f"/api/threads/{thread_id}/runs")
    vote = f"/api/threads/{thread_id}/runs/{run['run_id']}/feedback"
    await alice.ask("PUT", vote, json={"rating": 1, "comment": SECRET})
    return thread_id, run["run_id"]


@pytest.mark.parametrize("route", ["wait", "stream"])
async def test_runs_without_thread_in_path_are_refused_in_another_users_thread(
    users: tuple[Browser, Browser], route: str
) -> None:
    alice, bob = users
    thread_id, _ = await _new_thread(alice)
    before = await alice.ask("GET", f"/api/threads/{thread_id}/state")
    body = run_body("tell me everything", config={"configurable": {"thread_id": thread_id}})
    refused = await bob.send("POST", f"/api/runs/{route}", json=body)
    assert (refused.status, refused.answer) == (404, {"detail": f"Thread {thread_id} not found"})
    assert await alice.ask("GET", f"/api/threads/{thread_id}/state") == before
    assert len(await alice.ask("GET", f"/api/threads/{thread_id}/runs")) == 1
    assert (await alice.send("POST", f"/api/runs/{route}", json=body)).status == 200


async def test_remains_of_a_deleted_thread_are_hidden_from_other_users(
    users: tuple[Browser, Browser], raw_client: pymongo.MongoClient[dict[str, Any]]
) -> None:
    """What stays where `thread_deletion` is "deerflow", and of a deletion that was interrupted."""
    alice, bob = users
    thread_id, run_id = await _new_thread(alice)
    thread, run = f"/api/threads/{thread_id}", f"/api/threads/{thread_id}/runs/{run_id}"
    raw_client[SHARED_DATABASE].threads.delete_one({"_id": thread_id})
    for path in ("", "/state", "/messages", "/runs", "/token-usage"):
        assert (await bob.send("GET", thread + path)).status == 404, path
    for path in ("", "/messages", "/events", "/feedback", "/feedback/stats", "/join"):
        assert (await bob.send("GET", run + path)).status == 404, path
    for path in ("messages", "feedback"):
        assert (await bob.send("GET", f"/api/runs/{run_id}/{path}")).status == 404, path
    body = run_body("go on", config={"configurable": {"thread_id": thread_id}})
    assert (await bob.send("POST", "/api/runs/wait", json=body)).status == 404
    assert len(await alice.ask("GET", f"{thread}/runs")) == 1


async def test_deleted_thread_leaves_nothing_in_the_database(
    users: tuple[Browser, Browser], raw_client: pymongo.MongoClient[dict[str, Any]]
) -> None:
    alice, _ = users
    thread_id, _ = await _new_thread(alice)
    before = documents_with(raw_client[SHARED_DATABASE], thread_id)
    assert before.keys() == {"threads", "runs", "run_events", "feedback", "checkpoint_data"}
    await alice.ask("DELETE", f"/api/threads/{thread_id}")
    # Tombstones have the thread's id beside numbers, so that no number is given twice.
    after = documents_with(raw_client[SHARED_DATABASE], thread_id)
    assert after.keys() <= {"run_events", "checkpoint_data"}
    assert SECRET in str(before)
    assert SECRET not in str(after)


async def test_new_thread_with_a_deleted_threads_id_shows_nothing_of_it(
    users: tuple[Browser, Browser],
) -> None:
    alice, bob = users
    thread_id, _ = await _new_thread(alice)
    await alice.ask("DELETE", f"/api/threads/{thread_id}")
    await bob.ask("POST", "/api/threads", json={"thread_id": thread_id})
    state = await bob.ask("POST", f"/api/threads/{thread_id}/runs/wait", json=run_body("hello"))
    messages = await bob.ask("GET", f"/api/threads/{thread_id}/messages")
    assert SECRET not in str([state, messages])
    assert [row["run_id"] for row in messages] == [messages[0]["run_id"]] * len(messages)
    assert (await bob.ask("GET", f"/api/threads/{thread_id}/token-usage"))["total_runs"] == 1
    assert (await alice.send("GET", f"/api/threads/{thread_id}/messages")).status == 404


async def test_every_route_needs_a_login(shared_gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=shared_gateway.url) as client:
        for path in ("/api/threads/t", "/api/threads/t/runs", "/api/runs/r/messages", "/api/models"):
            assert (await client.get(path)).status_code == 401, path
