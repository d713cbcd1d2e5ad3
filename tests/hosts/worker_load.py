"""Users who start, cancel and stream runs at several workers of DeerFlow main, while workers are killed.

    DEERFLOW_BACKEND=<checkout>/backend python -m tests.hosts.worker_load \
        --workers 4 --users 64 --minutes 10 --kill-every 20

The workers are started one by one, so that each can be killed with `kill -9` and started again. Prints a
table, and exits with 1 where a thread had two active runs, a run stayed active after its lease and grace and
three beats, or an acknowledged write was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pymongo

from deerflow_mongo.mongodb.embedded import start_embedded

from .checkout import backend
from .gateway_process import Gateway, start_gateway, stop_gateway, write_config
from .http_script import PASSWORD, Browser, run_body
from .two_workers import DATABASE

LEASE_S: Final = 30
GRACE_S: Final = 10
"""DeerFlow's defaults. On a machine that is busy for as long as a lease, live workers lose their runs."""

SLACK_S: Final = 3.0
"""A pass on a machine with other work starts late and takes its time."""

WATCH_S: Final = 0.25
THREADS_EACH: Final = 2
REQUEST_S: Final = 60.0

_ACTIVE: Final[dict[str, Any]] = {
    "operation_kind": {"$type": "string"},
    "status": {"$in": ["pending", "running"]},
}


@dataclass(frozen=True)
class Load:
    """What is asked for."""

    workers: int
    users: int
    seconds: float
    kill_every_s: float
    lease_s: int = LEASE_S
    grace_s: int = GRACE_S
    pause_s: float = 1.0
    """Of a user between two actions, on the average."""

    seed: int = 11

    @property
    def overdue_s(self) -> int:
        """When a run that nobody renews has been recovered: lease, grace, and three beats."""
        return self.lease_s + self.grace_s + 3 * max(1, self.lease_s // 3)


@dataclass
class Counts:
    """What happened, what was acknowledged, and what was broken."""

    overdue_s: int
    answers: Counter[str] = field(default_factory=lambda: Counter[str]())
    kills: int = 0
    looks: int = 0
    started: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """The runs whose start was answered with 200, and the worker that answered."""

    cancelled: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """The runs whose cancellation was answered with 202, with the action of the first one."""

    ends: Counter[str] = field(default_factory=lambda: Counter[str]())
    two_active: set[str] = field(default_factory=lambda: set[str]())
    """The threads that had two active runs at once."""

    overdue: set[str] = field(default_factory=lambda: set[str]())
    """The runs that were active longer after their last renewal than a recovery takes."""

    longest_s: float = 0.0
    lost_runs: list[str] = field(default_factory=lambda: list[str]())
    lost_cancels: list[str] = field(default_factory=lambda: list[str]())
    still_active: list[str] = field(default_factory=lambda: list[str]())

    @property
    def broken(self) -> bool:
        promises = (self.two_active, self.overdue, self.lost_runs, self.lost_cancels, self.still_active)
        return any(promises)

    def lines(self) -> list[str]:
        """The table."""
        rows: list[tuple[str, Any]] = [
            ("workers killed and started again", self.kills),
            ("runs acknowledged", len(self.started)),
            ("cancellations acknowledged", len(self.cancelled)),
            ("answers", ", ".join(f"{name}: {count}" for name, count in sorted(self.answers.items()))),
            ("how the runs ended", ", ".join(f"{name}: {count}" for name, count in self.ends.most_common())),
            ("looks at the database", self.looks),
            ("**threads with two active runs**", len(self.two_active)),
            (f"**runs active after lease + grace + 3 beats ({self.overdue_s} s)**", len(self.overdue)),
            ("longest time from a renewal to the end, seconds", f"{self.longest_s:.1f}"),
            ("**runs still active at the end**", len(self.still_active)),
            ("**acknowledged runs lost**", len(self.lost_runs)),
            ("**acknowledged cancellations without effect**", len(self.lost_cancels)),
        ]
        return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


class Site:
    """The workers and the server."""

    def __init__(self, folder: Path, client: pymongo.MongoClient[dict[str, Any]], load: Load) -> None:
        self._folder = folder
        self._draw = random.Random(load.seed)  # noqa: S311 - which worker is killed
        self.runs = client[DATABASE]["runs"]
        self.load = load
        self.alive: dict[str, Gateway] = {}
        self._starting: set[asyncio.Task[None]] = set()

    async def start(self, name: str) -> None:
        self.alive[name] = await asyncio.to_thread(start_gateway, self._folder, name=name)

    async def kill(self, counts: Counts) -> None:
        """Kill one of the workers and start it again; at least one other stays."""
        if len(self.alive) < 2:
            return
        name = self._draw.choice(sorted(self.alive))
        self.alive.pop(name).kill()
        counts.kills += 1
        task = asyncio.create_task(self.start(name))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def started(self) -> None:
        """Wait for the workers that are starting."""
        await asyncio.gather(*self._starting)

    def stop(self) -> None:
        for gateway in self.alive.values():
            stop_gateway(gateway)


class User:
    """One user with some threads, at a random worker for each request."""

    def __init__(self, site: Site, counts: Counts, client: httpx.AsyncClient, number: int) -> None:
        self._site, self._counts, self._client = site, counts, client
        self._browser = Browser(client)
        self._draw = random.Random(f"{site.load.seed} {number}")  # noqa: S311 - what the user does
        self._threads: list[str] = []
        self._newest: dict[str, str] = {}
        """The newest run of each thread."""

    def _url(self) -> str:
        return self._draw.choice([gateway.url for gateway in self._site.alive.values()])

    async def register(self) -> None:
        account = {"email": f"{uuid.uuid4().hex}@example.com", "password": PASSWORD}
        await self._browser.ask("POST", f"{self._url()}/api/v1/auth/register", json=account)
        for _ in range(THREADS_EACH):
            thread = await self._browser.ask("POST", f"{self._url()}/api/threads", json={})
            self._threads.append(thread["thread_id"])

    async def act_until(self, stop: asyncio.Event) -> None:
        """One action after the other; what a killed worker did not answer is not acknowledged."""
        while not stop.is_set():
            action = self._draw.choice([self._start, self._start, self._stream, self._cancel, self._read])
            try:
                await asyncio.wait_for(action(), REQUEST_S)
            except httpx.TransportError:
                self._counts.answers["connection lost"] += 1
            except TimeoutError:
                self._counts.answers["no answer"] += 1
            await asyncio.sleep(self._draw.uniform(0.2, 1.8) * self._site.load.pause_s)

    def _body(self) -> tuple[str, dict[str, Any]]:
        thread_id = self._draw.choice(self._threads)
        text = f"slowly {self._draw.randint(2, 60)}: hello"
        strategy = self._draw.choice(["reject", "reject", "interrupt"])
        return thread_id, run_body(text, multitask_strategy=strategy, stream_mode=["messages-tuple"])

    async def _start(self) -> None:
        thread_id, body = self._body()
        url = self._url()
        answer = await self._browser.send("POST", f"{url}/api/threads/{thread_id}/runs", json=body)
        self._counts.answers[f"start {answer.status}"] += 1
        if answer.status == 200:
            self._note(thread_id, answer.answer["run_id"], url)

    def _note(self, thread_id: str, run_id: str, url: str) -> None:
        self._newest[thread_id] = run_id
        self._counts.started[run_id] = url

    async def _stream(self) -> None:
        thread_id, body = self._body()
        url, has_ended = self._url(), False
        headers = {"X-CSRF-Token": str(self._client.cookies.get("csrf_token"))}
        path = f"{url}/api/threads/{thread_id}/runs/stream"
        async with self._client.stream("POST", path, json=body, headers=headers) as response:
            self._counts.answers[f"stream {response.status_code}"] += 1
            if response.status_code == 200:
                self._note(thread_id, response.headers["content-location"].rpartition("/")[2], url)
            async for line in response.aiter_lines():
                has_ended = has_ended or line == "event: end"
        self._counts.answers["stream to its end"] += has_ended

    async def _cancel(self) -> None:
        if not self._newest:
            return
        thread_id, run_id = self._draw.choice(sorted(self._newest.items()))
        action = self._draw.choice(["interrupt", "interrupt", "rollback"])
        path = f"{self._url()}/api/threads/{thread_id}/runs/{run_id}/cancel"
        answer = await self._browser.send("POST", path, params={"action": action})
        self._counts.answers[f"cancel {answer.status}"] += 1
        if answer.status == 202:
            self._counts.cancelled.setdefault(run_id, action)

    async def _read(self) -> None:
        thread_id = self._draw.choice(self._threads)
        path = self._draw.choice(["/runs", "/messages", ""])
        answer = await self._browser.send("GET", f"{self._url()}/api/threads/{thread_id}{path}")
        self._counts.answers[f"read {answer.status}"] += 1


# -- watching --------------------------------------------------------------------------------------


def look(site: Site, counts: Counts) -> None:
    """Look at the active runs: two of one thread, and those that nobody has recovered in time."""
    now = datetime.now(UTC)
    # Of one moment: an ordinary scan may return a run that ends meanwhile, and the next one of its thread.
    with site.runs.database.client.start_session(snapshot=True) as session:
        active = list(site.runs.find(_ACTIVE, session=session))
    counts.looks += 1
    by_thread = Counter(row["thread_id"] for row in active)
    counts.two_active |= {thread_id for thread_id, number in by_thread.items() if number > 1}
    for row in active:
        renewed: datetime | None = row.get("lease_renewed_at")
        if renewed is None:
            continue
        unrenewed_s = (now - renewed.replace(tzinfo=UTC)).total_seconds()
        counts.longest_s = max(counts.longest_s, unrenewed_s)
        if unrenewed_s > counts.overdue_s + SLACK_S:
            counts.overdue.add(row["_id"])


async def _watch(site: Site, counts: Counts, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await asyncio.to_thread(look, site, counts)
        await asyncio.sleep(WATCH_S)


async def _kill(site: Site, counts: Counts, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), site.load.kill_every_s)
        if not stop.is_set():
            await site.kill(counts)


async def _until_idle(site: Site) -> None:
    """Wait for the last runs to end; a run that does not is counted."""
    for _ in range(int((site.load.overdue_s + REQUEST_S) / WATCH_S)):
        if not await asyncio.to_thread(site.runs.count_documents, _ACTIVE):
            return
        await asyncio.sleep(WATCH_S)


def judge(site: Site, counts: Counts) -> None:
    """Compare what was acknowledged with what is stored."""
    stored = {row["_id"]: row for row in site.runs.find()}
    counts.ends.update(f"{row['status']} {row.get('stop_reason') or ''}".strip() for row in stored.values())
    counts.lost_runs = sorted(counts.started.keys() - stored.keys())
    counts.lost_cancels = [
        run_id for run_id in counts.cancelled if run_id in stored and stored[run_id]["status"] == "success"
    ]
    counts.still_active = [row["_id"] for row in site.runs.find(_ACTIVE)]


# -- running ---------------------------------------------------------------------------------------


async def run_load(load: Load, folder: Path, progress: Callable[[str], None]) -> Counts:
    """The whole run, with a server of its own."""
    server = await asyncio.to_thread(start_embedded, folder / "data")
    try:
        ownership = {"lease_seconds": load.lease_s, "grace_seconds": load.grace_s}
        write_config(folder, {"url": server.url, "database": DATABASE}, {"run_ownership": ownership})
        with pymongo.MongoClient[dict[str, Any]](server.url) as client:
            site = Site(folder, client, load)
            try:
                for number in range(load.workers):
                    await site.start(f"worker{number}")
                    progress(f"worker {number} answers")
                return await _run_users(site, progress)
            finally:
                await asyncio.to_thread(site.stop)
    finally:
        server.release()


async def _run_users(site: Site, progress: Callable[[str], None]) -> Counts:
    counts, users_stop, stop = Counts(site.load.overdue_s), asyncio.Event(), asyncio.Event()
    limits = httpx.Limits(max_keepalive_connections=0)
    async with AsyncExitStack() as stack:
        users = [
            User(
                site,
                counts,
                await stack.enter_async_context(httpx.AsyncClient(timeout=REQUEST_S, limits=limits)),
                number,
            )
            for number in range(site.load.users)
        ]
        for user in users:
            await user.register()
        progress(f"{len(users)} users registered")
        watching = asyncio.create_task(_watch(site, counts, stop))
        tasks = [asyncio.create_task(user.act_until(users_stop)) for user in users]
        tasks.append(asyncio.create_task(_kill(site, counts, users_stop)))
        until = time.monotonic() + site.load.seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 30))
            progress(f"{len(counts.started)} runs, {counts.kills} kills, broken: {counts.broken}")
        users_stop.set()
        await asyncio.gather(*tasks)
        await site.started()
        await _until_idle(site)
        stop.set()
        await watching
    judge(site, counts)
    return counts


def _progress(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hosts.worker_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=4, metavar="N")
    parser.add_argument("--users", type=int, default=64, metavar="N")
    parser.add_argument("--minutes", type=float, default=10, metavar="M")
    parser.add_argument("--kill-every", type=float, default=20, metavar="S", help="seconds")
    parser.add_argument("--lease", type=int, default=LEASE_S, metavar="S", help="seconds")
    parser.add_argument("--grace", type=int, default=GRACE_S, metavar="S", help="seconds")
    parser.add_argument("--pause", type=float, default=1.0, metavar="S", help="of a user between two actions")
    parser.add_argument("--seed", type=int, default=11, help="of what users do and which worker is killed")
    asked = parser.parse_args()
    backend()
    load = Load(
        workers=asked.workers,
        users=asked.users,
        seconds=asked.minutes * 60,
        kill_every_s=asked.kill_every,
        lease_s=asked.lease,
        grace_s=asked.grace,
        pause_s=asked.pause,
        seed=asked.seed,
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            counts = asyncio.run(run_load(load, Path(folder), _progress))
        except KeyboardInterrupt:
            return 130
    _progress("\n" + "\n".join(counts.lines()))
    return 1 if counts.broken else 0


if __name__ == "__main__":
    sys.exit(main())
