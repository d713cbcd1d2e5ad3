"""A script of HTTP requests of three users to a DeerFlow gateway, the same ones whatever stores the data.

`run_script` sends them and returns the transcript: every request with its answer. `comparison.py` compares
two transcripts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

PASSWORD, NEW_PASSWORD = "correct horse battery", "staple battery horse"
ALICE, BOB, ADMIN = "alice@example.com", "bob@example.com", "admin@example.com"
ENDED = ("success", "error", "interrupted", "timeout")
RUN_TIMEOUT_S = 120.0
PAGE = 7
"""Checkpoints in a page of a conversation's history."""

MAX_PAGES = 20

ClientFactory = Callable[[], httpx.AsyncClient]


@dataclass(frozen=True)
class Exchange:
    """One request and its answer; for a stream, its frames in order."""

    step: str
    method: str
    path: str
    sent: Any
    status: int
    answer: Any


@dataclass
class Transcript:
    exchanges: list[Exchange] = field(default_factory=lambda: list[Exchange]())

    def answer(self, step: str) -> Any:
        """The answer to the step of this name."""
        [found] = [exchange for exchange in self.exchanges if exchange.step == step]
        return found.answer

    def lines(self) -> list[str]:
        """One line per request, with the beginning of its answer."""
        return [
            f"{e.status} {e.method} {e.path}  [{e.step}]  {json.dumps(e.answer, ensure_ascii=False)[:300]}"
            for e in self.exchanges
        ]


class Browser:
    """A user's cookies, and the CSRF token that DeerFlow requires with every write."""

    def __init__(self, client: httpx.AsyncClient, transcript: Transcript | None = None) -> None:
        self.client = client
        self._transcript = transcript

    async def send(self, method: str, path: str, *, step: str = "", **request: Any) -> Exchange:
        """Send one request; it is recorded if it has a step."""
        token = self.client.cookies.get("csrf_token")
        headers = {} if token is None else {"X-CSRF-Token": token}
        response = await self.client.request(method, path, headers=headers, **request)
        sent = next((request[name] for name in ("json", "data", "params") if name in request), None)
        exchange = Exchange(step, method, path, sent, response.status_code, _content(response))
        if step and self._transcript is not None:
            self._transcript.exchanges.append(exchange)
        return exchange

    async def ask(self, method: str, path: str, *, step: str = "", **request: Any) -> Any:
        """The answer of a request that must succeed."""
        exchange = await self.send(method, path, step=step, **request)
        assert exchange.status < 400, f"{method} {path}: {exchange.status} {exchange.answer}"
        return exchange.answer

    async def register(self, email: str, *, step: str = "") -> Exchange:
        return await self.send(
            "POST", "/api/v1/auth/register", step=step, json={"email": email, "password": PASSWORD}
        )

    async def login(self, email: str, password: str = PASSWORD, *, step: str = "") -> Exchange:
        form = {"username": email, "password": password}
        return await self.send("POST", "/api/v1/auth/login/local", step=step, data=form)

    async def wait_for_run(self, thread_id: str, run_id: str) -> None:
        """Wait for a run in the background to end."""
        until = time.monotonic() + RUN_TIMEOUT_S
        while (await self.ask("GET", f"/api/threads/{thread_id}/runs/{run_id}"))["status"] not in ENDED:
            assert time.monotonic() < until, f"run {run_id} has not ended"
            await asyncio.sleep(0.05)
        # The worker's last writes, of counts and of the thread, follow the status; then the stream ends.
        await self.ask("GET", f"/api/threads/{thread_id}/runs/{run_id}/join")


def _content(response: httpx.Response) -> Any:
    kind = response.headers.get("content-type", "")
    if kind.startswith("application/json"):
        return response.json()
    if kind.startswith("text/event-stream"):
        return frames(response.text)
    return response.text


def frames(stream: str) -> list[dict[str, Any]]:
    """The frames of an event stream: event, data and the number at the end of its id."""
    found: list[dict[str, Any]] = []
    for block in stream.strip().split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n")]
        frame: dict[str, Any] = {name: value for name, _, value in lines if name}
        if "data" in frame:
            frame["data"] = json.loads(frame["data"])
        if "id" in frame:
            frame["id"] = frame["id"].rpartition("-")[2]
        if frame:
            found.append(frame)
    return found


def run_body(text: str, **more: Any) -> dict[str, Any]:
    """A run's request body: what the user says to the scripted model."""
    return {
        "assistant_id": "lead_agent",
        "input": {"messages": [{"role": "user", "content": text}]},
        "context": {"model_name": "scripted"},
        "stream_mode": ["values", "messages-tuple"],
        **more,
    }


async def run_script(new_client: ClientFactory) -> Transcript:
    """The whole script; `new_client` gives a client without cookies."""
    transcript = Transcript()
    async with new_client() as first, new_client() as second, new_client() as third:
        alice, bob, admin = (Browser(client, transcript) for client in (first, second, third))
        await _accounts(alice, bob, admin)
        thread_id = await _threads(alice, bob)
        run_id = await _first_run(alice, thread_id)
        await _reading(alice, thread_id, run_id)
        await _votes(alice, thread_id, run_id)
        await _more_runs(alice, thread_id)
        await _cancelling(alice)
        await _searching(alice, thread_id)
        await _state(alice, thread_id)
        await _paging_back(alice, thread_id)
        await _editing_the_past(alice)
        await _without_thread(alice)
        await _probing(bob, thread_id, run_id)
        await _deleting(alice, thread_id)
        await _passwords(alice, new_client)
    return transcript


async def _accounts(alice: Browser, bob: Browser, admin: Browser) -> None:
    await alice.send("GET", "/api/v1/auth/setup-status", step="no admin yet")
    await alice.send("POST", "/api/threads/search", step="search without login", json={})
    await alice.register(ALICE, step="register")
    await bob.register(ALICE, step="register the same email")
    await bob.register("no email", step="register without an email")
    await bob.register(BOB, step="register another")
    new_admin = {"email": ADMIN, "password": PASSWORD}
    await admin.send("POST", "/api/v1/auth/initialize", step="first admin", json=new_admin)
    await admin.send("POST", "/api/v1/auth/initialize", step="second admin", json=new_admin)
    await alice.send("GET", "/api/v1/auth/setup-status", step="an admin now")
    await alice.send("POST", "/api/v1/auth/logout", step="log out")
    await alice.send("GET", "/api/v1/auth/me", step="who am I, logged out")
    await alice.login(ALICE, "wrong password", step="log in with a wrong password")
    await alice.login(ALICE, step="log in")
    await alice.send("GET", "/api/v1/auth/me", step="who am I")


async def _threads(alice: Browser, bob: Browser) -> str:
    metadata = {"project": "deer", "n": 1, "a.b": {"$gt": 1}}
    thread = await alice.ask("POST", "/api/threads", step="create a thread", json={"metadata": metadata})
    thread_id: str = thread["thread_id"]
    again = {"thread_id": thread_id, "metadata": {"project": "other"}}
    await alice.send("POST", "/api/threads", step="create it again", json=again)
    await alice.send("GET", f"/api/threads/{thread_id}", step="get the thread")
    await alice.send("GET", "/api/threads/none", step="get a thread that is not there")
    await bob.send("POST", "/api/threads", step="another user's thread", json={"metadata": {"n": 1}})
    return thread_id


async def _first_run(alice: Browser, thread_id: str) -> str:
    runs = f"/api/threads/{thread_id}/runs"
    await alice.send("POST", f"{runs}/stream", step="stream a run", json=run_body("hello there"))
    [run] = await alice.ask("GET", runs, step="list runs")
    return run["run_id"]


async def _reading(alice: Browser, thread_id: str, run_id: str) -> None:
    thread, run = f"/api/threads/{thread_id}", f"/api/threads/{thread_id}/runs/{run_id}"
    await alice.send("GET", run, step="get the run")
    await alice.send("GET", f"{thread}/runs/none", step="get a run that is not there")
    await alice.send("GET", f"{thread}/messages", step="messages of the thread")
    await alice.send("GET", f"{thread}/messages", step="two messages", params={"limit": 2})
    await alice.send(
        "GET", f"{thread}/messages", step="messages after 1", params={"after_seq": 1, "limit": 1}
    )
    await alice.send("GET", f"{thread}/messages", step="messages before 7", params={"before_seq": 7})
    await alice.send("GET", f"{run}/messages", step="messages of the run, a page", params={"limit": 1})
    await alice.send("GET", f"{run}/events", step="events of the run")
    wanted = {"event_types": "run.start,llm.ai.response"}
    await alice.send("GET", f"{run}/events", step="events of two types", params=wanted)
    await alice.send("GET", f"{thread}/token-usage", step="token usage")
    await alice.send("GET", f"/api/runs/{run_id}/messages", step="messages by run id alone")
    await alice.send("GET", "/api/runs/none/messages", step="messages of no run")


async def _votes(alice: Browser, thread_id: str, run_id: str) -> None:
    votes = f"/api/threads/{thread_id}/runs/{run_id}/feedback"
    await alice.send("GET", f"{votes}/stats", step="totals without votes")
    await alice.send("PUT", votes, step="vote up", json={"rating": 1, "comment": "good"})
    await alice.send("PUT", votes, step="vote down instead", json={"rating": -1})
    await alice.send("PUT", votes, step="vote 5", json={"rating": 5})
    await alice.send("PUT", votes.replace(run_id, "none"), step="vote on no run", json={"rating": 1})
    await alice.send("GET", votes, step="list votes")
    await alice.send("GET", f"{votes}/stats", step="totals of votes")
    await alice.send("GET", f"/api/threads/{thread_id}/messages", step="messages with the vote")
    await alice.send("DELETE", votes, step="take the vote back")
    await alice.send("DELETE", votes, step="take it back again")
    on_message = {"rating": 1, "message_id": "message-1", "comment": "this one"}
    row = await alice.ask("POST", votes, step="feedback on a message", json=on_message)
    await alice.send("GET", f"/api/runs/{run_id}/feedback", step="feedback by run id alone")
    await alice.send("DELETE", f"{votes}/{row['feedback_id']}", step="delete feedback")
    await alice.send("DELETE", f"{votes}/{row['feedback_id']}", step="delete feedback again")
    await alice.send("PUT", votes, step="vote again", json={"rating": 1})
    await alice.send("POST", votes, step="feedback on a message beside the vote", json=on_message)


async def _more_runs(alice: Browser, thread_id: str) -> None:
    runs = f"/api/threads/{thread_id}/runs"
    await alice.send("POST", f"{runs}/wait", step="a run with a tool", json=run_body("clarify: which deer?"))
    failing = run_body("hello", assistant_id="no-such-agent")
    await alice.send("POST", f"{runs}/stream", step="a run that fails", json=failing)
    unknown = run_body("hello", context={"model_name": "none"})
    await alice.send("POST", f"{runs}/stream", step="a run of an unknown model", json=unknown)
    marked = run_body("third time", metadata={"source": "script"}, stream_mode=["updates"])
    await alice.send("POST", f"{runs}/stream", step="a run with metadata", json=marked)
    await alice.send("GET", runs, step="list all runs")
    await alice.send("GET", f"/api/threads/{thread_id}/messages", step="messages of all runs")
    await alice.send("GET", f"/api/threads/{thread_id}/token-usage", step="token usage of all runs")
    await alice.send("GET", f"/api/threads/{thread_id}", step="the thread after its runs")


async def _cancelling(alice: Browser) -> None:
    thread_id = (await alice.ask("POST", "/api/threads", step="a thread to cancel in", json={}))["thread_id"]
    runs = f"/api/threads/{thread_id}/runs"
    run = await alice.ask("POST", runs, step="a run in the background", json=run_body("slowly 100: wait"))
    await alice.send("POST", runs, step="a second run meanwhile", json=run_body("me too"))
    await asyncio.sleep(0.5)
    cancel = f"{runs}/{run['run_id']}/cancel"
    await alice.send("POST", cancel, step="cancel", params={"wait": "true"})
    await alice.wait_for_run(thread_id, run["run_id"])
    await alice.send("GET", f"{runs}/{run['run_id']}", step="the cancelled run")
    await alice.send("POST", cancel, step="cancel again")
    await alice.send("POST", f"{runs}/none/cancel", step="cancel no run")
    await alice.send("GET", f"/api/threads/{thread_id}", step="the thread with the cancelled run")
    background = await alice.ask("POST", runs, step="another in the background", json=run_body("quick one"))
    await alice.wait_for_run(thread_id, background["run_id"])
    done = f"{runs}/{background['run_id']}"
    await alice.send("POST", f"{done}/cancel", step="cancel one that is over")
    await alice.send("GET", runs, step="runs of the second thread")
    await alice.send("GET", f"{done}/messages", step="messages of the background run")


async def _searching(alice: Browser, thread_id: str) -> None:
    for number in range(3):
        body = {"metadata": {"project": "deer", "n": number, "flag": bool(number), "none": None}}
        await alice.ask("POST", "/api/threads", step=f"thread {number} to find", json=body)
    searches: Mapping[str, dict[str, Any]] = {
        "all": {},
        "a page": {"limit": 2, "offset": 1},
        "by text": {"metadata": {"project": "deer"}},
        "by number": {"metadata": {"n": 1}},
        "by truth": {"metadata": {"flag": True}},
        "by nothing": {"metadata": {"none": None}},
        "by two": {"metadata": {"project": "deer", "n": 2}},
        "by text that is a number": {"metadata": {"n": "1"}},
        "by status": {"status": "idle"},
        "by another status": {"status": "interrupted"},
        "by an unsafe key": {"metadata": {"a.b": 1}},
        "by a list": {"metadata": {"n": [1]}},
    }
    for name, body in searches.items():
        await alice.send("POST", "/api/threads/search", step=f"search {name}", json=body)
    thread = f"/api/threads/{thread_id}"
    await alice.send(
        "PATCH", thread, step="merge metadata", json={"metadata": {"n": 9, "new": [1, {"x": 2}]}}
    )
    await alice.send("PATCH", "/api/threads/none", step="merge into no thread", json={"metadata": {"n": 1}})
    await alice.send("GET", thread, step="the merged thread")
    for value in (9, 1):
        await alice.send(
            "POST", "/api/threads/search", step=f"search n={value} after", json={"metadata": {"n": value}}
        )


async def _state(alice: Browser, thread_id: str) -> None:
    thread = f"/api/threads/{thread_id}"
    await alice.send("GET", f"{thread}/state", step="state")
    await alice.send("POST", f"{thread}/state", step="rename", json={"values": {"title": "A new title"}})
    await alice.send("GET", f"{thread}/state", step="state with the new title")
    await alice.send("POST", f"{thread}/history", step="history", json={"limit": 3})
    await alice.send("POST", "/api/threads/search", step="search the title", json={"limit": 1})


async def _paging_back(alice: Browser, thread_id: str) -> None:
    """All pages of the history, each from the last checkpoint of the one before it."""
    history = f"/api/threads/{thread_id}/history"
    page = await alice.ask("POST", history, step="newest page of history", json={"limit": PAGE})
    for number in range(2, MAX_PAGES):
        if not page:
            break
        before = page[-1]["checkpoint_id"]
        body = {"limit": PAGE, "before": before}
        page = await alice.ask("POST", history, step=f"page {number} of history", json=body)
        if not page or page[-1]["checkpoint_id"] == before:
            break  # DeerFlow's pages begin with the checkpoint that `before` names
    for before in ("00000000-0000-6000-8000-000000000000", "none"):
        body = {"limit": PAGE, "before": before}
        await alice.send("POST", history, step=f"history before {before}", json=body)


async def _editing_the_past(alice: Browser) -> None:
    """A new title for an earlier checkpoint, twice, and then a run from there."""
    thread_id = (await alice.ask("POST", "/api/threads", step="a thread to edit", json={}))["thread_id"]
    thread = f"/api/threads/{thread_id}"
    for text in ("first question", "second question"):
        await alice.send("POST", f"{thread}/runs/wait", step=f"ask: {text}", json=run_body(text))
    history = await alice.ask("POST", f"{thread}/history", step="history to edit", json={"limit": 100})
    past = history[len(history) // 2]["checkpoint_id"]
    for title in ("Edited", "Edited again"):
        edit = {"values": {"title": title}, "checkpoint_id": past}
        state = await alice.ask("POST", f"{thread}/state", step=f"state in the past: {title}", json=edit)
    await alice.send("GET", f"{thread}/state", step="state after the edits")
    await alice.send("POST", f"{thread}/history", step="history after the edits", json={"limit": 100})
    nowhere = {"values": {"title": "Nowhere"}, "checkpoint_id": "none"}
    await alice.send("POST", f"{thread}/state", step="edit a checkpoint that is not there", json=nowhere)
    there = state["checkpoint_id"]
    branch = run_body("go on", checkpoint_id=there, config={"configurable": {"checkpoint_id": there}})
    await alice.send("POST", f"{thread}/runs/wait", step="go on from the edited state", json=branch)
    await alice.send("GET", f"{thread}/state", step="state of the branch")
    await alice.send("POST", f"{thread}/history", step="history with the branch", json={"limit": 100})


async def _without_thread(alice: Browser) -> None:
    await alice.send("POST", "/api/runs/wait", step="a run without a thread", json=run_body("no thread"))
    found = await alice.ask("POST", "/api/threads/search", step="search its thread", json={"limit": 1})
    runs = f"/api/threads/{found[0]['thread_id']}/runs"
    unnamed = run_body("any model", context={})
    await alice.send("POST", f"{runs}/wait", step="a run without a model's name", json=unnamed)
    await alice.send("GET", runs, step="list it")
    await alice.send("GET", runs.replace("/runs", "/token-usage"), step="token usage with that run")


async def _probing(bob: Browser, thread_id: str, run_id: str) -> None:
    thread = f"/api/threads/{thread_id}"
    for path in (
        "",
        "/state",
        "/messages",
        "/runs",
        f"/runs/{run_id}",
        f"/runs/{run_id}/events",
        "/token-usage",
    ):
        await bob.send("GET", thread + path, step=f"another user reads {path or '/'}")
    await bob.send("GET", f"/api/runs/{run_id}/messages", step="another user reads by run id")
    await bob.send("PATCH", thread, step="another user merges", json={"metadata": {"mine": 1}})
    await bob.send("DELETE", thread, step="another user deletes")
    vote = {"rating": -1}
    await bob.send("PUT", f"{thread}/runs/{run_id}/feedback", step="another user votes", json=vote)
    await bob.send("POST", f"{thread}/runs/wait", step="another user runs", json=run_body("mine now"))
    await bob.send("POST", "/api/threads", step="another user takes the id", json={"thread_id": thread_id})
    await bob.send("POST", "/api/threads/search", step="another user searches", json={})


async def _deleting(alice: Browser, thread_id: str) -> None:
    await alice.send("DELETE", f"/api/threads/{thread_id}", step="delete the thread")
    await alice.send("DELETE", f"/api/threads/{thread_id}", step="delete it again")
    await alice.send("GET", f"/api/threads/{thread_id}", step="get the deleted thread")
    await alice.send("POST", "/api/threads/search", step="search after the deletion", json={"limit": 2})


async def _passwords(alice: Browser, new_client: ClientFactory) -> None:
    change = {"current_password": "not it", "new_password": NEW_PASSWORD}
    path = "/api/v1/auth/change-password"
    await alice.send("POST", path, step="change the password, wrongly", json=change)
    taken = {"current_password": PASSWORD, "new_password": NEW_PASSWORD, "new_email": BOB}
    await alice.send("POST", path, step="change to a taken email", json=taken)
    old = dict(alice.client.cookies)
    change["current_password"] = PASSWORD
    await alice.send("POST", path, step="change the password", json=change)
    await alice.send("GET", "/api/v1/auth/me", step="who am I, with the new password")
    async with new_client() as client:
        stale = Browser(client, alice._transcript)  # pyright: ignore[reportPrivateUsage]
        client.cookies.update(old)
        await stale.send("GET", "/api/v1/auth/me", step="who am I, with the old session")
        client.cookies.clear()
        await stale.login(ALICE, step="log in with the old password")
        await stale.login(ALICE, NEW_PASSWORD, step="log in with the new password")
