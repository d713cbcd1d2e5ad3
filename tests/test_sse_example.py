"""The FastAPI example of Server-Sent Events: live events, resuming, and clients that go away."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import pytest_asyncio

from deerflow_mongo import MongoStorage

from .readmes.blocks import PYTHON, ROOT, blocks_of

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

GUIDE = ROOT / "deerflow_mongo" / "hosts" / "SERVER_SENT_EVENTS.md"
THREAD, USER = "a thread", "alice"
WAIT_S = 30.0


@pytest_asyncio.fixture
async def example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mongodb_url: str, new_database: str
) -> ModuleType:
    """The module of the guide, on an empty database, with a quick keep-alive."""
    [block] = [block for block in blocks_of(GUIDE) if block.language in PYTHON]
    address, _, options = mongodb_url.partition("?")
    monkeypatch.setenv("MONGODB_URL", f"{address}{new_database}?{options}")
    file = tmp_path / "app.py"
    file.write_text(block.text)
    spec = importlib.util.spec_from_file_location("sse_example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.1)
    return module


@pytest_asyncio.fixture
async def url(example: ModuleType) -> AsyncIterator[str]:
    """The address of the example under uvicorn, in this event loop."""
    server = uvicorn.Server(
        uvicorn.Config(example.app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


def storage_of(example: ModuleType) -> MongoStorage:
    return cast("MongoStorage", example.app.state.storage)


async def put(example: ModuleType, text: str) -> None:
    await storage_of(example).run_events.put(
        thread_id=THREAD, run_id="run", event_type="ai_message", category="message", content=text
    )


@asynccontextmanager
async def stream(url: str, last_event_id: int = 0, user: str = USER) -> AsyncGenerator[AsyncIterator[str]]:
    """The contents of the events, as they arrive."""
    headers = {"X-User": user, "Last-Event-ID": str(last_event_id)}
    async with (
        httpx.AsyncClient(timeout=WAIT_S) as client,
        client.stream("GET", f"{url}/threads/{THREAD}/events", headers=headers) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        yield contents(response)


async def contents(response: Any) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))["content"]


async def following(arriving: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(arriving), WAIT_S)


async def test_stored_and_new_events_arrive_in_order(example: ModuleType, url: str) -> None:
    await storage_of(example).threads.ensure_thread(thread_id=THREAD, user_id=USER)
    await put(example, "stored")
    async with stream(url) as arriving:
        assert await following(arriving) == "stored"
        await put(example, "new")
        assert await following(arriving) == "new"


async def test_client_resumes_after_its_last_event(example: ModuleType, url: str) -> None:
    for text in ("seen", "missed"):
        await put(example, text)
    async with stream(url, last_event_id=1) as arriving:
        assert await following(arriving) == "missed"


async def test_client_that_goes_away_frees_its_follower(example: ModuleType, url: str) -> None:
    """The keep-alive shows it, without any further event."""
    feed = cast("Any", storage_of(example).run_events)._feed
    await put(example, "an event")
    async with stream(url) as arriving:
        await following(arriving)
        assert feed.followers == 1
    until = time.monotonic() + WAIT_S
    while feed.followers:
        assert time.monotonic() < until, "the follower is still there"
        await asyncio.sleep(0.02)


async def test_stranger_gets_no_event_of_another_users_thread(example: ModuleType, url: str) -> None:
    await storage_of(example).threads.ensure_thread(thread_id=THREAD, user_id=USER)
    await put(example, "private")
    async with stream(url, user="mallory") as arriving:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(arriving), 1)
