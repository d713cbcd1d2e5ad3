"""Two gateway workers on one database, and twenty users at once whose data can be told apart.

Every text and every thread's id that a user sends contains the user's mark, and every answer is recorded:
nothing that belongs to one user may appear in an answer to another. After a write to one worker, the other
one is read first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer

from .gateway_process import SLOW, Gateway, needs_deerflow, running_gateway, write_config
from .http_script import Browser, run_body

pytestmark = [needs_deerflow, SLOW]

Raw = pymongo.MongoClient[dict[str, Any]]
DATABASE = "test_workers"
USERS = 20
RUNS_EACH = 2

_MARK = re.compile(r"mark[0-9a-f]{12}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One answer: headers and body, without what the request itself named of another user."""

    request: str
    status: int
    text: str

    @property
    def owner_marks(self) -> set[str]:
        """What identifies an owner: marks, and identifiers that are given once."""
        return {*_MARK.findall(self.text), *_UUID.findall(self.text)}


class User:
    """One user at all the workers, with one set of cookies."""

    def __init__(self, number: int, workers: Sequence[Gateway], client: httpx.AsyncClient) -> None:
        self.mark = f"mark{uuid.uuid4().hex[:12]}"
        self.email = f"{self.mark}@example.com"
        self.thread, self.second_thread = f"{self.mark}-1", f"{self.mark}-2"
        self.user_id = ""
        self.runs: list[str] = []
        self.vote_id = ""
        self.answers: list[Answer] = []
        self.differences: list[str] = []
        """The requests that the workers answered differently."""
        self.found: list[str] = []
        """What requests for another user's ids returned."""
        first = number % len(workers)
        self._urls = [gateway.url for gateway in (*workers[first:], *workers[:first])]
        self._browser = Browser(client)
        self._response: httpx.Response | None = None
        client.event_hooks = {"response": [self._record]}

    async def _record(self, response: httpx.Response) -> None:
        await response.aread()
        self._response = response

    async def send(
        self, worker: int, method: str, path: str, *, hidden: Sequence[str] = (), **request: Any
    ) -> tuple[int, Any]:
        """The answer of this user's n-th worker; `hidden` is what the answer may repeat of the request."""
        exchange = await self._browser.send(method, self._urls[worker] + path, **request)
        assert self._response is not None
        text = f"{self._response.headers.multi_items()}\n{self._response.text}"
        for sent in hidden:
            text = text.replace(sent, "")
        self.answers.append(Answer(f"{method} {path}", exchange.status, text))
        return exchange.status, exchange.answer

    async def ask(self, worker: int, method: str, path: str, **request: Any) -> Any:
        """The answer of a request that must succeed."""
        status, answer = await self.send(worker, method, path, **request)
        assert status < 400, f"{method} {path}: {status} {answer}"
        return answer

    async def ask_all(self, done_by: int, method: str, path: str, **request: Any) -> Any:
        """The answer of all workers, the one that did the work last; differences are recorded."""
        others = [worker for worker in range(len(self._urls)) if worker != done_by]
        answers = [await self.ask(worker, method, path, **request) for worker in (*others, done_by)]
        for answer in answers[1:]:
            if _durable(answer) != _durable(answers[0]):
                self.differences.append(f"{method} {path}: {answers[0]}, but then {answer}")
        return answers[0]


def _durable(answer: Any) -> Any:
    """Without a run's `updated_at`: the worker that made the run has its own clock's time."""
    if isinstance(answer, list):
        return [_durable(item) for item in cast("list[Any]", answer)]
    if isinstance(answer, dict):
        return {name: value for name, value in cast("dict[str, Any]", answer).items() if name != "updated_at"}
    return answer


# -- a user's session ----------------------------------------------------------------------------------


async def _session(user: User, neighbour: User) -> None:
    """Write at one worker and read at the other, in turns."""
    await _register(user)
    await _new_thread(user, 0, user.thread)
    for worker in range(RUNS_EACH):
        await _run(user, worker)
        await _probe_neighbour(user, worker, neighbour)
        await _vote(user, worker, 1 - 2 * worker)
    await user.ask_all(1, "GET", f"/api/threads/{user.thread}/messages")
    await _second_thread(user)


async def _register(user: User) -> None:
    account = {"email": user.email, "password": f"{user.mark} secret"}
    user.user_id = (await user.ask(0, "POST", "/api/v1/auth/register", json=account))["id"]
    assert (await user.ask_all(0, "GET", "/api/v1/auth/me"))["id"] == user.user_id


async def _new_thread(user: User, worker: int, thread_id: str) -> None:
    body = {"thread_id": thread_id, "metadata": {"mark": user.mark}}
    await user.ask(worker, "POST", "/api/threads", json=body)
    assert (await user.ask_all(worker, "GET", f"/api/threads/{thread_id}"))["metadata"] == body["metadata"]


async def _run(user: User, worker: int) -> None:
    thread = f"/api/threads/{user.thread}"
    text = f"{user.mark} says {len(user.runs)}"
    frames = await user.ask(worker, "POST", f"{thread}/runs/stream", json=run_body(text))
    assert frames[-1]["event"] == "end"
    runs = await user.ask_all(worker, "GET", f"{thread}/runs")
    assert [run["status"] for run in runs] == ["success"] * (len(user.runs) + 1)
    assert [run["run_id"] for run in runs[1:]] == user.runs[::-1]
    run_id = runs[0]["run_id"]
    user.runs.append(run_id)
    for path in ("", "/state", "/token-usage", f"/runs/{run_id}", f"/runs/{run_id}/events"):
        await user.ask_all(worker, "GET", thread + path)
    messages = await user.ask_all(worker, "GET", f"{thread}/messages")
    assert {message["run_id"] for message in messages} == set(user.runs)
    assert [message["seq"] for message in messages] == sorted(message["seq"] for message in messages)
    of_run = await user.ask_all(worker, "GET", f"/api/runs/{run_id}/messages")
    texts = [message["content"]["content"] for message in of_run["data"]]
    assert texts[:2] == [text, f"echo: {text}"]  # the model is asked for the thread's title after that


async def _vote(user: User, worker: int, rating: int) -> None:
    """Create or replace the user's one vote on the first run."""
    votes = f"/api/threads/{user.thread}/runs/{user.runs[0]}/feedback"
    row = await user.ask(worker, "PUT", votes, json={"rating": rating, "comment": user.mark})
    assert user.vote_id in ("", row["feedback_id"])
    user.vote_id = row["feedback_id"]
    assert [row["rating"] for row in await user.ask_all(worker, "GET", votes)] == [rating]
    stats = await user.ask_all(worker, "GET", f"{votes}/stats")
    assert (stats["total"], stats["positive"]) == (1, max(rating, 0))


async def _second_thread(user: User) -> None:
    await _new_thread(user, 1, user.second_thread)
    thread = f"/api/threads/{user.second_thread}"
    merged = await user.ask(0, "PATCH", thread, json={"metadata": {"more": user.mark}})
    assert merged["metadata"] == {"mark": user.mark, "more": user.mark}
    for body in ({}, {"metadata": {"mark": user.mark}}):
        found = await user.ask_all(0, "POST", "/api/threads/search", json=body)
        assert {row["thread_id"] for row in found} == {user.thread, user.second_thread}
    await user.ask(1, "DELETE", thread)
    assert [row["thread_id"] for row in await user.ask_all(1, "POST", "/api/threads/search", json={})] == [
        user.thread
    ]
    for worker in (0, 1):
        assert (await user.send(worker, "GET", thread))[0] == 404


async def _probe_neighbour(user: User, worker: int, neighbour: User) -> None:
    """Request what the neighbour, who is active too, has by now."""
    await _probe(user, worker, neighbour, "GET", f"/api/threads/{neighbour.thread}/messages")
    body = {"metadata": {"mark": neighbour.mark}}
    await _probe(user, worker, neighbour, "POST", "/api/threads/search", json=body)


# -- requests for another user's ids ------------------------------------------------------------------

_READS = ("", "/state", "/messages", "/runs", "/token-usage", "/uploads/list", "/artifacts/mnt/user-data/x")
_RUN_READS = ("", "/messages", "/events", "/join", "/stream", "/feedback", "/feedback/stats")


def _probes(user: User, other: User) -> Iterator[tuple[str, str, Any]]:
    """Requests for the other user's thread, run and vote, on every route that takes one of their ids."""
    thread, own = f"/api/threads/{other.thread}", f"/api/threads/{user.thread}"
    run_id, vote = other.runs[0], {"rating": 1, "comment": user.mark}
    for path in _READS:
        yield "GET", thread + path, None
    yield "POST", f"{thread}/history", {}
    yield "POST", f"{thread}/state", {"values": {"title": user.mark}}
    yield "PATCH", thread, {"metadata": {"mark": user.mark}}
    yield "DELETE", thread, None
    yield "POST", f"{thread}/runs/wait", run_body(user.mark)
    yield "POST", "/api/runs/wait", run_body(user.mark, config={"configurable": {"thread_id": other.thread}})
    # Under the other's thread, and under the own one, which must not reach a run of another thread.
    for run in (f"{thread}/runs/{run_id}", f"{own}/runs/{run_id}"):
        for path in _RUN_READS:
            yield "GET", run + path, None
        yield "POST", f"{run}/cancel", None
        yield "PUT", f"{run}/feedback", vote
        yield "POST", f"{run}/feedback", vote
        yield "DELETE", f"{run}/feedback", None
        yield "DELETE", f"{run}/feedback/{other.vote_id}", None
    yield "GET", f"/api/runs/{run_id}/messages", None
    yield "GET", f"/api/runs/{run_id}/feedback", None
    yield "POST", "/api/threads/search", {"metadata": {"mark": other.mark}}


async def _probe(user: User, worker: int, other: User, method: str, path: str, json: Any = None) -> None:
    request: dict[str, Any] = {} if json is None else {"json": json}
    sent = [other.thread, other.mark, *other.runs[:1], *filter(None, [other.vote_id])]
    status, answer = await user.send(worker, method, path, hidden=sent, **request)
    if status != 404 and not (status == 200 and _is_empty(answer)):
        user.found.append(f"{method} {path}: {status} {answer}")


def _is_empty(answer: Any) -> bool:
    """An empty list, page or total."""
    if not isinstance(answer, dict):
        return answer == []
    body = cast("dict[str, Any]", answer)
    return body.get("data") == [] or any(body.get(name) == 0 for name in ("total", "total_runs", "count"))


async def _taken_id(user: User, other: User) -> None:
    """Create a thread with the other's thread id: DeerFlow answers that it failed."""
    body = {"thread_id": other.thread, "metadata": {"mark": user.mark}}
    status, answer = await user.send(0, "POST", "/api/threads", hidden=[other.thread], json=body)
    if status != 500:
        user.found.append(f"POST /api/threads: {status} {answer}")


async def _probe_everything(user: User, other: User) -> None:
    for number, (method, path, body) in enumerate(_probes(user, other)):
        await _probe(user, number % 2, other, method, path, body)
    await _taken_id(user, other)


# -- twenty users ---------------------------------------------------------------------------------


@dataclass
class Crowd:
    """All users, after their sessions and probes."""

    users: list[User]
    seconds: float
    probing_from: list[int] = field(default_factory=lambda: list[int]())

    @property
    def counts(self) -> Mapping[str, Any]:
        answers = [answer for user in self.users for answer in user.answers]
        return {
            "users": len(self.users),
            "requests": len(answers),
            "runs": sum(len(user.runs) for user in self.users),
            "probes": sum(
                len(user.answers) - start for user, start in zip(self.users, self.probing_from, strict=True)
            ),
            "owner_marks seen": sum(len(answer.owner_marks) for answer in answers),
            "seen by two": len(self.seen_by_several),
            "found by probing": sum(len(user.found) for user in self.users),
            "workers disagreed": sum(len(user.differences) for user in self.users),
            "seconds": round(self.seconds, 1),
        }

    @property
    def seen_by_several(self) -> dict[str, list[str]]:
        """Marks and identifiers that appear in answers to more than one user, with the requests."""
        seen: dict[str, dict[str, str]] = defaultdict(dict)
        for user in self.users:
            for answer in user.answers:
                for sign in answer.owner_marks:
                    seen[sign].setdefault(user.mark, f"{user.mark}: {answer.request}")
        return {sign: list(by_user.values()) for sign, by_user in seen.items() if len(by_user) > 1}


@asynccontextmanager
async def _users(workers: Sequence[Gateway], how_many: int) -> AsyncGenerator[list[User]]:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(timeout=300, limits=_LIMITS))
            for _ in range(how_many)
        ]
        yield [User(number, workers, client) for number, client in enumerate(clients)]


_LIMITS = httpx.Limits(max_keepalive_connections=0)
"""After an internal error the gateway closes the connection."""


async def _run_sessions(workers: Sequence[Gateway]) -> Crowd:
    started = time.monotonic()
    async with _users(workers, USERS) as users:
        neighbours = users[1:] + users[:1]
        await asyncio.gather(*map(_session, users, neighbours))
        probing_from = [len(user.answers) for user in users]
        await asyncio.gather(*map(_probe_everything, users, neighbours))
    return Crowd(users, time.monotonic() - started, probing_from)


@pytest.fixture(scope="module")
def workers(
    tmp_path_factory: pytest.TempPathFactory, server: EmbeddedServer, raw_client: Raw
) -> Iterator[Sequence[Gateway]]:
    """Two workers on one database, which remains for the tests."""
    folder = tmp_path_factory.mktemp("workers")
    write_config(folder, {"backend": "mongodb", "url": server.url, "database": DATABASE})
    with running_gateway(folder, name="one") as one, running_gateway(folder, name="two") as two:
        yield one, two
    raw_client.drop_database(DATABASE)


@pytest.fixture(scope="module")
def crowd(workers: Sequence[Gateway]) -> Crowd:
    """The users' sessions at the workers."""
    crowd = asyncio.run(_run_sessions(workers))
    logger.info("%s", crowd.counts)
    return crowd


def test_one_workers_writes_are_visible_to_the_other_immediately(crowd: Crowd) -> None:
    assert [difference for user in crowd.users for difference in user.differences] == []


def test_no_answer_contains_anything_of_another_user(crowd: Crowd) -> None:
    assert crowd.seen_by_several == {}
    for user in crowd.users:
        own = {user.mark, user.user_id, user.vote_id, *user.runs}
        assert own <= set[str]().union(*(answer.owner_marks for answer in user.answers))


def test_requests_for_another_users_ids_find_nothing(crowd: Crowd) -> None:
    assert [found for user in crowd.users for found in user.found] == []


def test_everything_is_stored_once_with_its_owner(crowd: Crowd, raw_client: Raw) -> None:
    stored = raw_client[DATABASE]
    for user in crowd.users:
        own = {"user_id": user.user_id}
        [account] = stored.users.find({"email": user.email})
        assert account["_id"] == user.user_id
        assert [thread["_id"] for thread in stored.threads.find(own)] == [user.thread]
        assert sorted(run["_id"] for run in stored.runs.find(own)) == sorted(user.runs)
        [vote] = stored.feedback.find(own)
        assert (vote["_id"], vote["rating"], vote["comment"]) == (user.vote_id, -1, user.mark)
        assert stored.run_events.distinct("user_id", {"thread_id": user.thread}) == [user.user_id]
        assert set(stored.run_events.distinct("run_id", own)) == set(user.runs)
    foreign = {"user_id": {"$nin": [user.user_id for user in crowd.users]}}
    assert [stored[name].count_documents(foreign) for name in ("threads", "runs", "feedback")] == [0, 0, 0]


# -- a deleted thread -----------------------------------------------------------


async def test_deleted_thread_cannot_be_read_by_others(workers: Sequence[Gateway]) -> None:
    """Other users may still know its id."""
    async with _users(workers, 2) as [owner, other]:
        await asyncio.gather(_register(owner), _register(other))
        await _new_thread(owner, 0, owner.thread)
        await _run(owner, 0)
        await _vote(owner, 0, 1)
        await owner.ask(0, "DELETE", f"/api/threads/{owner.thread}")
        reads = [path for method, path, _ in _probes(other, owner) if method == "GET"]
        for worker, path in itertools.product(range(len(workers)), reads):
            await _probe(other, worker, owner, "GET", path)
        assert not other.found, "\n".join(other.found)
