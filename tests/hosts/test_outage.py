"""The gateway while its server is frozen and after it was killed: 503 within the timeout, two log lines."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deerflow_mongo import MongoStorage
from deerflow_mongo.mongodb.embedded import EmbeddedServer, start_embedded

from .gateway_process import (
    SLOW,
    Gateway,
    needs_deerflow,
    running_gateway,
    write_config,
)
from .http_script import ALICE, PASSWORD, Browser, run_body

pytestmark = [needs_deerflow, SLOW]

TIMEOUT_S = 2.0
ALLOWANCE_S = 4.0
"""For a machine with other work."""
CLIENTS = 20


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that the test may freeze."""
    started = start_embedded(tmp_path / "data")
    yield started
    os.kill(started.pid, signal.SIGCONT)
    started.release()


@pytest.fixture
def gateway(own_server: EmbeddedServer, tmp_path: Path) -> Iterator[Gateway]:
    options = {"url": own_server.url, "database": "d"}

    async def set_up() -> None:
        async with MongoStorage.open(options):
            """With the default timeout: it takes longer than the short one on a busy machine."""

    asyncio.run(set_up())
    write_config(tmp_path, {**options, "timeout_ms": int(TIMEOUT_S * 1000)})
    with running_gateway(tmp_path) as started:
        yield started


async def timed(client: httpx.AsyncClient, method: str, path: str) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    headers = {"X-CSRF-Token": client.cookies["csrf_token"]}
    response = await client.request(method, path, headers=headers, json={} if method == "POST" else None)
    return response, time.monotonic() - began


async def until_healthy(client: httpx.AsyncClient) -> None:
    for _ in range(200):
        if (await client.get("/health")).status_code == 200:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the gateway did not become healthy")


async def test_frozen_server_is_answered_with_503_until_it_is_back(
    gateway: Gateway, own_server: EmbeddedServer
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        alice = Browser(client)
        await alice.register(ALICE)
        thread_id = (await alice.ask("POST", "/api/threads", json={}))["thread_id"]
        await alice.ask("POST", f"/api/threads/{thread_id}/runs/wait", json=run_body("hello"))
        thread = f"/api/threads/{thread_id}"
        requests = [("GET", thread), ("GET", f"{thread}/runs"), ("GET", f"{thread}/messages")]
        requests += [("POST", "/api/threads/search"), ("DELETE", thread), ("GET", "/api/v1/auth/me")]
        logged = len(gateway.log.read_text())

        os.kill(own_server.pid, signal.SIGSTOP)
        response, seconds = await timed(client, "GET", "/health")
        assert (response.status_code, response.json()["storage"]) == (503, "unavailable")
        assert seconds < 1 + ALLOWANCE_S
        for round_number in range(3):
            answers = await asyncio.gather(*(timed(client, *request) for request in requests))
            for response, seconds in answers:
                assert response.status_code == 503, (response.request.url, response.text)
                assert response.headers["retry-after"] == "2"
                assert seconds < (TIMEOUT_S if round_number == 0 else 1) + ALLOWANCE_S
        assert (await client.get("/openapi.json")).status_code == 200

        os.kill(own_server.pid, signal.SIGCONT)
        await until_healthy(client)
        for method, path in requests:
            assert (await timed(client, method, path))[0].status_code == 200
    lines = _without_access_log(gateway.log.read_text()[logged:])
    assert len([line for line in lines if "the storage is unavailable" in line]) == 1
    assert len([line for line in lines if "the storage is available again" in line]) == 1
    assert not any("Traceback" in line for line in lines)
    assert PASSWORD not in "".join(lines)


def _without_access_log(log: str) -> list[str]:
    return [line for line in log.splitlines() if not re.match(r"INFO: +\S+ - \"", line)]
