"""`kill -9` in the middle of a streamed run: of the worker, of the server, of both.

Every write that was acknowledged before must be there after the restart, for the sessions that were open: an
account, a thread, a run that had ended, feedback, a message that a read had returned. `Remains` records what
is left of the interrupted run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer, start_embedded

from .gateway_process import SLOW, needs_deerflow, running_gateway, write_config
from .http_script import Browser, run_body

pytestmark = [needs_deerflow, SLOW]

PEOPLE = 3
PIECES_BEFORE = 10
"""The number of streamed pieces of the answer when something is killed."""
DOWN_S = 3.0
TIMEOUT_S = 180.0

logger = logging.getLogger(__name__)


@dataclass
class Acknowledged:
    """Everything that one person got a successful answer for."""

    threads: dict[str, dict[str, Any]] = field(default_factory=lambda: dict[str, dict[str, Any]]())
    runs: list[str] = field(default_factory=lambda: list[str]())
    comments: list[str] = field(default_factory=lambda: list[str]())
    messages: dict[int, dict[str, Any]] = field(default_factory=lambda: dict[int, dict[str, Any]]())

    @property
    def counts(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in ("threads", "runs", "comments", "messages")}


@dataclass
class Stream:
    """A run as its stream shows it, up to its end or its interruption."""

    run_id: str = ""
    text: str = ""
    ended: bool = False
    far_enough: asyncio.Event = field(default_factory=asyncio.Event)


class Person:
    """A user of a gateway, who records what was acknowledged."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.browser = Browser(client)
        self.email = f"{uuid.uuid4().hex}@example.com"
        self.user_id = ""
        self.thread_id = str(uuid.uuid4())
        self.acknowledged = Acknowledged()
        self.written = asyncio.Event()

    async def ask(self, method: str, path: str, **request: Any) -> Any:
        return await self.browser.ask(method, self.url + path, **request)

    async def begin(self) -> None:
        """Create an account, a thread, a run that ends and feedback on it."""
        account = {"email": self.email, "password": "correct horse"}
        self.user_id = (await self.ask("POST", "/api/v1/auth/register", json=account))["id"]
        await self.new_thread(self.thread_id)
        await self.run("the first")
        await self.comment()
        await self.read_messages()

    async def new_thread(self, thread_id: str) -> None:
        metadata = {"n": len(self.acknowledged.threads)}
        await self.ask("POST", "/api/threads", json={"thread_id": thread_id, "metadata": metadata})
        self.acknowledged.threads[thread_id] = metadata

    async def run(self, text: str) -> str:
        """Run from start to end, in the first thread."""
        stream = Stream()
        await self.stream(text, stream)
        assert stream.ended
        self.acknowledged.runs.append(stream.run_id)
        return stream.run_id

    async def comment(self) -> None:
        """Leave feedback on the first run."""
        comment = uuid.uuid4().hex
        path = f"/api/threads/{self.thread_id}/runs/{self.acknowledged.runs[0]}/feedback"
        await self.ask("POST", path, json={"rating": 1, "comment": comment, "message_id": comment})
        self.acknowledged.comments.append(comment)

    async def read_messages(self) -> None:
        shown = await self.ask("GET", f"/api/threads/{self.thread_id}/messages", params={"limit": 200})
        self.acknowledged.messages |= {message["seq"]: message for message in shown}

    async def stream(self, text: str, stream: Stream) -> None:
        """Start and follow a run; raises an error if the connection is lost."""
        headers = {"X-CSRF-Token": str(self.client.cookies.get("csrf_token"))}
        url = f"{self.url}/api/threads/{self.thread_id}/runs/stream"
        body = run_body(text, stream_mode=["messages-tuple"])
        pieces = 0
        async with self.client.stream("POST", url, json=body, headers=headers) as response:
            assert response.status_code == 200
            stream.run_id = response.headers["content-location"].rpartition("/")[2]
            async for line in response.aiter_lines():
                stream.ended |= line == "event: end"
                stream.text += _piece(line)
                pieces += bool(_piece(line))
                if pieces >= PIECES_BEFORE:
                    stream.far_enough.set()

    async def keep_writing(self, until: asyncio.Event) -> None:
        """Threads, feedback, runs and reads, one after the other; what fails is not acknowledged."""
        while not until.is_set():
            with suppress(httpx.TransportError, AssertionError):
                await self.new_thread(str(uuid.uuid4()))
                await self.comment()
                await self.run("one more")
                await self.read_messages()
                self.written.set()
            await asyncio.sleep(0.01)


def _piece(line: str) -> str:
    """The part of the answer in a line of the stream."""
    if not line.startswith("data: ["):
        return ""
    message = json.loads(line.removeprefix("data: "))[0]
    return str(message["content"]) if message.get("type") == "AIMessageChunk" else ""


async def _missing(person: Person) -> list[str]:
    """What was acknowledged and is missing, read in the session that was open then."""
    acknowledged, missing = person.acknowledged, list[str]()
    if (await person.ask("GET", "/api/v1/auth/me"))["id"] != person.user_id:
        missing.append("account")
    found = await person.ask("POST", "/api/threads/search", json={"limit": 1000})
    threads = {thread["thread_id"]: thread["metadata"] for thread in found}
    missing += [f"thread {key}" for key, value in acknowledged.threads.items() if threads.get(key) != value]
    thread = f"/api/threads/{person.thread_id}"
    runs = {run["run_id"]: run["status"] for run in await person.ask("GET", f"{thread}/runs")}
    missing += [f"run {run_id}" for run_id in acknowledged.runs if runs.get(run_id) != "success"]
    rows = await person.ask("GET", f"{thread}/runs/{acknowledged.runs[0]}/feedback")
    missing += [f"comment {text}" for text in {*acknowledged.comments} - {row["comment"] for row in rows}]
    messages = await person.ask("GET", f"{thread}/messages", params={"limit": 200})
    shown = {message["seq"]: message for message in messages}
    missing += [
        f"message {seq}" for seq, message in acknowledged.messages.items() if shown.get(seq) != message
    ]
    return missing


@dataclass(frozen=True)
class Remains:
    """What is stored of an interrupted run."""

    status: str
    events: int
    messages: int
    state_messages: list[str]
    thread_status: str

    @classmethod
    async def of(cls, person: Person, run_id: str) -> Remains:
        thread = f"/api/threads/{person.thread_id}"
        run = await person.ask("GET", f"{thread}/runs/{run_id}")
        state = await person.ask("GET", f"{thread}/state")
        [found] = [
            row
            for row in await person.ask("POST", "/api/threads/search", json={"limit": 1000})
            if row["thread_id"] == person.thread_id
        ]
        return cls(
            status=run["status"],
            events=len(await person.ask("GET", f"{thread}/runs/{run_id}/events")),
            messages=len((await person.ask("GET", f"{thread}/runs/{run_id}/messages"))["data"]),
            state_messages=[message["content"] for message in state["values"].get("messages", [])],
            thread_status=found["status"],
        )


# -- the scenario -------------------------------------------------------------------------------------


@asynccontextmanager
async def _people(url: str) -> AsyncGenerator[list[Person]]:
    """People with an account, a thread and a run, at the gateway of this address."""
    clients = [httpx.AsyncClient(timeout=TIMEOUT_S) for _ in range(PEOPLE)]
    people = [Person(url, client) for client in clients]
    try:
        await asyncio.gather(*(person.begin() for person in people))
        yield people
    finally:
        for client in clients:
            await client.aclose()


@dataclass
class Scenario:
    """The first person streams a run, the others write."""

    stream: Stream
    streaming: asyncio.Task[None]
    stop: asyncio.Event
    writing: list[asyncio.Task[None]]

    @classmethod
    async def start(cls, people: Sequence[Person], text: str) -> Scenario:
        """Returns when everyone has written and the stream is in its middle."""
        stream, stop = Stream(), asyncio.Event()
        writing = [asyncio.create_task(person.keep_writing(stop)) for person in people[1:]]
        await asyncio.wait_for(asyncio.gather(*(person.written.wait() for person in people[1:])), TIMEOUT_S)
        streaming = asyncio.create_task(people[0].stream(text, stream))
        await asyncio.wait_for(stream.far_enough.wait(), TIMEOUT_S)
        assert not streaming.done()
        return cls(stream, streaming, stop, writing)

    async def end(self) -> None:
        self.stop.set()
        await asyncio.gather(*self.writing)


def _log(title: str, people: Iterable[Person], remains: object) -> None:
    logger.info("%s: acknowledged %s; the run: %s", title, [p.acknowledged.counts for p in people], remains)


async def _check_acknowledged(people: Sequence[Person]) -> None:
    assert [await _missing(person) for person in people] == [[]] * len(people)
    for writer in people[1:]:
        assert min(writer.acknowledged.counts.values()) > 1


async def _check_next_run(person: Person) -> None:
    """The next run in the thread of the interrupted one works."""
    run_id = await person.run("and now")
    messages = (await person.ask("GET", f"/api/runs/{run_id}/messages"))["data"]
    assert [message["content"]["content"] for message in messages][:2] == ["and now", "echo: and now"]


# -- the kills -------------------------------------------------------------------------------------


async def test_killed_worker_loses_no_acknowledged_write(gateway_folder: Path) -> None:
    with (
        running_gateway(gateway_folder, name="one") as one,
        running_gateway(gateway_folder, name="two") as two,
    ):
        async with _people(one.url) as people:
            scenario = await Scenario.start(people, "slowly 100: interrupted")
            one.kill()
            with pytest.raises(httpx.TransportError):
                await scenario.streaming
            await scenario.end()
            for person in people:
                person.url = two.url
            await _check_acknowledged(people)
            remains = await Remains.of(people[0], scenario.stream.run_id)
            _log("worker killed", people, remains)
            assert not scenario.stream.ended
            assert remains.status == "running"
            await _check_next_run(people[0])


async def test_run_continues_after_the_server_was_killed_and_restarted(
    tmp_path: Path,
) -> None:
    server = start_embedded(tmp_path / "data")
    try:
        write_config(tmp_path, {"backend": "mongodb", "url": server.url, "database": "test"})
        with running_gateway(tmp_path) as gateway:
            async with _people(gateway.url) as people:
                scenario = await Scenario.start(people, f"slowly {PIECES_BEFORE + 10}: continues")
                killed_at = time.monotonic()
                server = await _killed_and_restarted(server, DOWN_S)
                await asyncio.wait_for(scenario.streaming, TIMEOUT_S)
                assert time.monotonic() - killed_at >= DOWN_S  # the run could not end meanwhile
                people[0].acknowledged.runs.append(scenario.stream.run_id)
                await scenario.end()
                await _check_acknowledged(people)
                remains = await Remains.of(people[0], scenario.stream.run_id)
                _log("server killed", people, remains)
                assert scenario.stream.ended
                assert (remains.status, remains.thread_status) == ("success", "idle")
                assert remains.state_messages[-1] == scenario.stream.text
                await _check_next_run(people[0])
    finally:
        server.release()


async def test_killed_worker_and_server_lose_no_acknowledged_write(tmp_path: Path) -> None:
    server = start_embedded(tmp_path / "data")
    try:
        write_config(tmp_path, {"backend": "mongodb", "url": server.url, "database": "test"})
        with running_gateway(tmp_path, name="before") as gateway:
            async with _people(gateway.url) as people:
                scenario = await Scenario.start(people, "slowly 100: interrupted")
                gateway.kill()
                server = await _killed_and_restarted(server, 0)
                with pytest.raises(httpx.TransportError):
                    await scenario.streaming
                await scenario.end()
                with running_gateway(tmp_path, name="after") as after:
                    for person in people:
                        person.url = after.url
                    await _check_acknowledged(people)
                    remains = await Remains.of(people[0], scenario.stream.run_id)
                    _log("both killed", people, remains)
                    assert remains.status == "running"
                    await _check_next_run(people[0])
    finally:
        server.release()


async def _killed_and_restarted(server: EmbeddedServer, down_s: float) -> EmbeddedServer:
    """Kill mongod and the supervisor that would restart it; start a server on the same data and address."""
    mongod, supervisor = _server_and_supervisor(server.data_dir)
    for pid in (supervisor, mongod):
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(down_s)
    server.release()
    restarted = await asyncio.to_thread(start_embedded, server.data_dir)
    assert restarted.url == server.url
    assert restarted.pid != mongod
    return restarted


def _server_and_supervisor(folder: Path) -> tuple[int, int]:
    mongod: int = json.loads((folder / "server.json").read_text(encoding="utf-8"))["pid"]
    supervisor = Path(f"/proc/{mongod}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
    return mongod, int(supervisor)
