"""Users of a gateway: each has an account, a client of `langgraph-sdk`, and conversations.

DeerFlow's gateway takes the cookies of its own login, and a token in every write; the client takes them as
headers. `agreement` gives what a conversation leaves behind, comparable between two gateways.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, cast

MODEL = "echo"
_PASSWORD = "correct horse battery"  # noqa: S105 - of an account that lives for seconds
_AGREED_TURNS = 3
_REGISTER_TIMEOUT_S = 60.0
_MESSAGE = (
    "Turn {number}: compare the two proposals with regard to cost, effort and risk, name the assumptions "
    "behind each estimate, and recommend one of them in a paragraph that a manager without a technical "
    "background understands. Add a table of the costs per year, and mark every number that is a guess. "
)
"""What a user writes, which the model repeats; about 300 characters."""

_IGNORED = frozenset({"latency_ms", "content_is_dict", "content_is_json"})
"""Fields that differ in every run, and those in which DeerFlow's SQL marks how it stores a content."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")


@dataclass(slots=True)
class Tally:
    """The turns of a measurement."""

    latencies_us: list[int] = field(default_factory=lambda: list[int]())
    failures: Counter[str] = field(default_factory=lambda: Counter[str]())


class User:
    """One account at one gateway."""

    def __init__(self, url: str, cookies: Mapping[str, str]) -> None:
        sdk: Any = importlib.import_module("langgraph_sdk")
        cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
        headers = {"Cookie": cookie, "X-CSRF-Token": cookies["csrf_token"]}
        self.client: Any = sdk.get_client(url=f"{url}/api", api_key=None, headers=headers)

    @classmethod
    async def registered(cls, url: str, name: str) -> User:
        return cls(url, await asyncio.to_thread(_register, url, f"{name}@example.com"))

    async def aclose(self) -> None:
        await self.client.aclose()

    async def new_thread(self) -> str:
        return str((await self.client.threads.create())["thread_id"])

    async def turn(self, thread_id: str, number: int) -> list[tuple[str, Any]]:
        """One question and its answer: the events of the stream until its end."""
        stream = self.client.runs.stream(
            thread_id,
            "lead_agent",
            input={"messages": [{"role": "user", "content": _MESSAGE.format(number=number)}]},
            context={"model_name": MODEL},
            stream_mode=["values", "messages-tuple"],
        )
        return [(part.event, part.data) async for part in stream]

    async def converse(self, thread_id: str, numbers: range, tally: Tally) -> None:
        """Turns one after the other; one without its answer has failed."""
        for number in numbers:
            began = time.perf_counter()
            try:
                events = await self.turn(thread_id, number)
            except Exception as error:  # noqa: BLE001 - failures are a result
                tally.failures[type(error).__name__] += 1
                continue
            if _answer(events) == f"echo: {_MESSAGE.format(number=number)}":
                tally.latencies_us.append(int((time.perf_counter() - began) * 1e6))
            else:
                tally.failures["turn without its answer"] += 1

    async def agreement(self, folder: Path) -> Any:
        """The events of a short conversation and what can be read of it afterwards, made comparable."""
        thread_id = await self.new_thread()
        turns = [await self.turn(thread_id, number) for number in range(_AGREED_TURNS)]
        found = {
            "turns": turns,
            "thread": await self.client.threads.get(thread_id),
            "state": await self.client.threads.get_state(thread_id),
            "history": await self.client.threads.get_history(thread_id, limit=50),
            "runs": await self.client.runs.list(thread_id),
            "messages": await self.client.http.get(f"/threads/{thread_id}/messages"),
        }
        return comparable(found, str(folder))


def _register(url: str, email: str) -> dict[str, str]:
    """The cookies of a new account."""
    body = json.dumps({"email": email, "password": _PASSWORD}).encode()
    request = urllib.request.Request(  # noqa: S310 - http
        f"{url}/api/v1/auth/register", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_REGISTER_TIMEOUT_S) as response:  # noqa: S310
        headers: list[str] = response.headers.get_all("Set-Cookie") or []
    cookies = [SimpleCookie(header) for header in headers]
    return {name: morsel.value for cookie in cookies for name, morsel in cookie.items()}


def _answer(events: Sequence[tuple[str, Any]]) -> str | None:
    """The last message of the last state in a stream."""
    states = [data for event, data in events if event == "values"]
    messages = states[-1].get("messages") if states else None
    return str(messages[-1].get("content")) if messages else None


def comparable(value: Any, folder: str) -> Any:
    """The value without what differs in every run: generated ids, times, and the gateway's folder."""
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {name: comparable(item, folder) for name, item in items if name not in _IGNORED}
    if isinstance(value, list | tuple):
        return [comparable(item, folder) for item in cast("list[Any]", value)]
    if isinstance(value, str):
        return _TIME.sub("<time>", _UUID.sub("<id>", value.replace(folder, "<folder>")))
    return value
