"""Two gateways of DeerFlow main on one database, for the scenarios: started, killed, paused, frozen.

Leases are short, so that a scenario takes seconds. What is stored is read directly, beside the gateways.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import httpx
import pymongo

from deerflow_mongo import create_storage
from deerflow_mongo.mongodb.embedded import EmbeddedServer

from .gateway_process import Gateway, start_gateway, stop_gateway, write_config
from .http_script import ENDED, PASSWORD, Browser, Exchange, run_body

LEASE_S: Final = 5
GRACE_S: Final = 2
BEAT_S: Final = 1
ORPHAN_PASS_S: Final = 3 * BEAT_S
DATABASE: Final = "workers"
WAIT_S: Final = 60.0

OWNERSHIP: Final = {"lease_seconds": LEASE_S, "grace_seconds": GRACE_S}


@dataclass
class Person:
    """A user with one set of cookies for all workers, and a thread."""

    browser: Browser
    thread_id: str

    @property
    def runs(self) -> str:
        return f"/api/threads/{self.thread_id}/runs"

    async def start(self, at: Gateway, text: str, strategy: str = "reject") -> Exchange:
        body = run_body(text, multitask_strategy=strategy)
        return await self.browser.send("POST", at.url + self.runs, json=body)

    async def running(self, at: Gateway, pieces: int = 100) -> str:
        """Start a run of this many tenths of a second; its id."""
        exchange = await self.start(at, f"slowly {pieces}: wait")
        assert exchange.status == 200, exchange
        return exchange.answer["run_id"]

    async def cancel(self, at: Gateway, run_id: str, action: str = "interrupt") -> int:
        path = f"{self.runs}/{run_id}/cancel"
        return (await self.browser.send("POST", at.url + path, params={"action": action})).status

    async def get(self, at: Gateway, path: str, **request: Any) -> Any:
        return await self.browser.ask("GET", at.url + path, **request)


@dataclass
class Workers:
    """The workers by name, the server, and what is stored."""

    folder: Path
    server: EmbeddedServer
    client: pymongo.MongoClient[dict[str, Any]]
    storage: Any
    gateways: dict[str, Gateway] = field(default_factory=lambda: dict[str, Gateway]())

    @property
    def a(self) -> Gateway:
        return self.gateways["a"]

    @property
    def b(self) -> Gateway:
        return self.gateways["b"]

    async def start(self, name: str) -> None:
        """Start a worker; returns when it has done a first run, which takes longer than the next ones."""
        self.gateways[name] = gateway = await asyncio.to_thread(start_gateway, self.folder, name=name)
        async with self.person(gateway) as person:
            answer = await person.start(gateway, "hello")
            await self.until_status(answer.answer["run_id"], "success")

    async def restart(self, name: str) -> None:
        """Start it again unless it is running."""
        if self.gateways[name].process.poll() is not None:
            await self.start(name)

    def stored(self, run_id: str) -> Mapping[str, Any]:
        """The run's document; empty where there is none."""
        return self.client[DATABASE]["runs"].find_one({"_id": run_id}) or {}

    def count_runs(self, thread_id: str) -> int:
        return self.client[DATABASE]["runs"].count_documents({"thread_id": thread_id})

    async def until(self, condition: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> float:
        """Wait for what is stored; the seconds that it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, f"not within {limit_s:g} s: {what}"
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    async def until_status(self, run_id: str, *statuses: str, limit_s: float = WAIT_S) -> float:
        wanted = statuses or ENDED
        return await self.until(
            lambda: self.stored(run_id).get("status") in wanted, f"status {' or '.join(wanted)}", limit_s
        )

    def seconds_since_renewal(self, run_id: str) -> float:
        """Since the last renewal of the run's lease; the server's clock is this machine's."""
        renewed = self.stored(run_id)["lease_renewed_at"]
        return time.time() - renewed.replace(tzinfo=UTC).timestamp()

    async def until_unrenewed_for(self, run_id: str, seconds: float) -> None:
        await self.until(lambda: self.seconds_since_renewal(run_id) >= seconds, "an expired lease")

    @asynccontextmanager
    async def person(self, at: Gateway | None = None) -> AsyncGenerator[Person]:
        """A new user with a thread, made at B or at this worker."""
        url = (at or self.b).url
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=WAIT_S, limits=limits) as client:
            browser = Browser(client)
            account = {"email": f"{uuid.uuid4().hex}@example.com", "password": PASSWORD}
            await browser.ask("POST", f"{url}/api/v1/auth/register", json=account)
            thread = await browser.ask("POST", f"{url}/api/threads", json={})
            yield Person(browser, thread["thread_id"])


@contextmanager
def paused(pid: int) -> Generator[None]:
    """SIGSTOP for as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def two_workers(folder: Path, server: EmbeddedServer) -> AsyncGenerator[Workers]:
    """Workers "a" and "b", started one after the other."""
    storage_options = {"backend": "mongodb", "url": server.url, "database": DATABASE}
    write_config(folder, storage_options, {"run_ownership": OWNERSHIP})
    with pymongo.MongoClient[dict[str, Any]](server.url) as client:
        async with create_storage(storage_options) as storage:
            workers = Workers(folder, server, client, storage)
            try:
                for name in ("a", "b"):
                    await workers.start(name)
                yield workers
            finally:
                for gateway in workers.gateways.values():
                    await asyncio.to_thread(stop_gateway, gateway)
