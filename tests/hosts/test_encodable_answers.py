"""Half of an emoji, NaN and huge integers at the gateway's routes: each later answer is a success."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deerflow_mongo import ActorContext, bind_actor_context, create_storage, reset_actor_context
from deerflow_mongo.mongodb.embedded import EmbeddedServer

from .conftest import SHARED_DATABASE
from .gateway_process import SLOW, Gateway, needs_deerflow
from .host_stores import FEEDBACK, RUN_EVENTS, RUNS, THREADS, named
from .http_script import Browser, run_body

pytestmark = [needs_deerflow, SLOW]

HALF = "\ud83d"
HUGE = 10**4_299


@pytest_asyncio.fixture
async def alice(shared_gateway: Gateway) -> AsyncGenerator[Browser]:
    """A new user."""
    async with httpx.AsyncClient(base_url=shared_gateway.url, timeout=180) as client:
        browser = Browser(client)
        await browser.register(f"{uuid.uuid4().hex}@example.com")
        yield browser


async def ask(alice: Browser, method: str, path: str, value: Any, status: int = 200) -> Any:
    """Send JSON with escapes, and with NaN, neither of which httpx can encode; returns the answer."""
    headers = {"content-type": "application/json", "X-CSRF-Token": alice.client.cookies["csrf_token"]}
    response = await alice.client.request(method, path, content=json.dumps(value), headers=headers)
    assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text}"
    return response.text if "event-stream" in response.headers["content-type"] else response.json()


async def read_everything(alice: Browser, thread_id: str) -> str:
    """The text of every answer about the thread; each is a success."""
    thread = f"/api/threads/{thread_id}"
    answers = [await alice.ask("GET", thread + path) for path in ("", "/state", "/messages", "/token-usage")]
    runs = await alice.ask("GET", f"{thread}/runs")
    for run in runs:
        path = f"{thread}/runs/{run['run_id']}"
        answers += [await alice.ask("GET", path + more) for more in ("", "/messages", "/events", "/feedback")]
    answers.append(await alice.ask("POST", f"{thread}/history", json={}))
    answers.append(await alice.ask("POST", "/api/threads/search", json={}))
    return str([answers, runs])


@pytest.mark.parametrize("route", ["wait", "stream"])
async def test_half_an_emoji_in_requests_leaves_every_answer_readable(alice: Browser, route: str) -> None:
    metadata = {"title": f"half {HALF}", f"key{HALF}": [{"a": HALF}]}
    thread_id: str = (await ask(alice, "POST", "/api/threads", {"metadata": metadata}))["thread_id"]
    path = f"/api/threads/{thread_id}"
    body = run_body(f"hello {HALF}", metadata={f"m{HALF}": HALF}, config={"configurable": {"x": HALF}})
    assert "hello \ufffd" in str(await ask(alice, "POST", f"{path}/runs/{route}", body))
    [run] = await alice.ask("GET", f"{path}/runs")
    vote = {"rating": 1, "comment": f"good {HALF}"}
    await ask(alice, "PUT", f"{path}/runs/{run['run_id']}/feedback", vote)
    await ask(alice, "PATCH", path, {"metadata": {f"n{HALF}": HALF}})
    await ask(alice, "POST", f"{path}/state", {"values": {"title": f"renamed {HALF}"}})
    seen = await read_everything(alice, thread_id)
    for text in ("hello \ufffd", "good \ufffd", "renamed \ufffd", "half \ufffd", "m\ufffd", "n\ufffd"):
        assert text in seen, text
    assert not any(0xD800 <= ord(character) <= 0xDFFF for character in seen)
    await ask(alice, "POST", "/api/threads", {"metadata": HALF}, status=422)


async def test_model_may_answer_with_half_an_emoji_in_each_piece(alice: Browser) -> None:
    thread_id = (await alice.ask("POST", "/api/threads", json={}))["thread_id"]
    runs = f"/api/threads/{thread_id}/runs"
    streamed = await alice.ask("POST", f"{runs}/stream", json=run_body("emoji:"))
    assert streamed[-1]["event"] == "end"
    assert not [frame for frame in streamed if frame["event"] == "error"]
    seen = await read_everything(alice, thread_id)
    assert "\N{GRINNING FACE}" in seen
    [run] = await alice.ask("GET", runs)
    assert run["status"] == "success"


async def test_numbers_that_json_lacks_in_requests_leave_every_answer_readable(alice: Browser) -> None:
    numbers = {"nan": float("nan"), "infinite": float("inf"), "n": 1}
    thread = await ask(alice, "POST", "/api/threads", {"metadata": numbers})
    assert thread["metadata"] == {"nan": None, "infinite": None, "n": 1}
    await alice.ask("POST", f"/api/threads/{thread['thread_id']}/runs/wait", json=run_body("hello"))
    await read_everything(alice, thread["thread_id"])


async def test_stored_half_emoji_leaves_every_answer_readable(alice: Browser, server: EmbeddedServer) -> None:
    thread_id = str(uuid.uuid4())
    user_id = (await alice.ask("GET", "/api/v1/auth/me"))["id"]
    async with create_storage(
        {"backend": "mongodb", "url": server.url, "database": SHARED_DATABASE}
    ) as storage:
        token = bind_actor_context(ActorContext(user_id=user_id))
        try:
            await _store_odd_rows(storage, thread_id)
        finally:
            reset_actor_context(token)
    thread = f"/api/threads/{thread_id}"
    for path in ("/messages", "/runs", "/runs/r", "/runs/r/events", "/runs/r/messages", "/runs/r/feedback"):
        assert (await alice.send("GET", thread + path)).status == 200, path
    assert (await alice.send("GET", f"{thread}/token-usage")).status == 200
    found = await alice.ask("POST", "/api/threads/search", json={})
    assert found[0]["metadata"] == {"a\ufffd": "\ufffd"}


async def _store_odd_rows(storage: Any, thread_id: str) -> None:
    """A model's or a tool's texts: they come through no request."""
    events, runs = named(RUN_EVENTS.ours)(storage.run_events), named(RUNS.ours)(storage.runs)
    threads, feedback = named(THREADS.ours)(storage.threads), named(FEEDBACK.ours)(storage.feedback)
    await threads.create(thread_id, metadata={f"a{HALF}": HALF}, display_name=f"title {HALF}")
    await runs.put("r", thread_id=thread_id, metadata={HALF: HALF}, kwargs={"x": [HALF, HUGE, -(2**70)]})
    for category in ("message", "trace"):
        await events.put(
            thread_id=thread_id,
            run_id="r",
            event_type=f"{category} {HALF}",
            category=category,
            content={"content": HALF, HALF: 1},
            metadata={HALF: HALF},
        )
    await runs.update_run_completion(
        "r", status="error", error=HALF, first_human_message=HALF, last_ai_message=HALF
    )
    await runs.update_model_name("r", f"model {HALF}")
    await feedback.upsert(run_id="r", thread_id=thread_id, rating=1, comment=HALF)
