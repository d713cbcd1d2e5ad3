"""While the storage is unavailable: 503 at once, one log line when it goes and one when it is back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from deerflow_mongo import (
    ActorMissingError,
    InvalidPayloadError,
    StorageAccessError,
    StorageUnavailableError,
    ThreadExistsError,
)
from deerflow_mongo.hosts import availability
from deerflow_mongo.hosts.availability import (
    AvailabilityMiddleware,
    HealthReportingStore,
    StorageHealth,
    end_request_tracking,
)

TIMEOUT_S = 0.3
"""Of the storage below."""
SLACK_S = 3.0
"""For a busy machine."""


@dataclass
class FlakyStorage:
    """A storage with one method beside `ping`; both wait and then fail while it is down."""

    error: Exception | None = None
    calls: int = 0
    pings: int = 0
    timeout_s: float = TIMEOUT_S

    async def ping(self) -> None:
        self.pings += 1
        await self._answer()

    async def read(self) -> str:
        self.calls += 1
        await self._answer()
        return "row"

    async def _answer(self) -> None:
        if self.error is not None:
            await asyncio.sleep(self.timeout_s)
        if self.error is not None:
            raise self.error

    def go(self) -> None:
        self.error = StorageUnavailableError("mongodb://***@host: no server")


@dataclass
class Gateway:
    """The middleware around an application."""

    storage: FlakyStorage
    health: StorageHealth
    store: Any
    app: Callable[..., Awaitable[None]] | None = None
    messages: list[dict[str, Any]] = field(default_factory=lambda: list[dict[str, Any]]())

    async def request(self, method: str = "GET", path: str = "/api/threads") -> tuple[int, bytes]:
        """Status and body of the answer."""
        self.messages = []

        async def send(message: Any) -> None:
            self.messages.append(message)

        assert self.app is not None
        middleware = AvailabilityMiddleware(self.app, health=self.health)
        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
        await middleware(scope, _no_body, send)
        starts = [message for message in self.messages if message["type"] == "http.response.start"]
        assert len(starts) == 1
        return starts[0]["status"], b"".join(message.get("body", b"") for message in self.messages[1:])

    def header(self, name: bytes) -> bytes | None:
        return dict(self.messages[0]["headers"]).get(name)


async def _no_body() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Gateway]:
    for name in ("GRACE_S", "PING_INTERVAL_S"):
        monkeypatch.setattr(availability, name, 0.05)
    storage, health = FlakyStorage(), StorageHealth()
    health.watch(storage)
    yield Gateway(storage, health, HealthReportingStore.over(storage, health))
    await health.aclose()


async def answer(send: Any, status: int, body: bytes = b"body", content_type: bytes = b"text/plain") -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}
    )
    await send({"type": "http.response.body", "body": body})


def reading(gateway: Gateway, status: int = 200) -> Callable[..., Awaitable[None]]:
    """An application that reads from the store and lets its error pass."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gateway.store.read()
        await answer(send, status)

    return app


def catching(gateway: Gateway, status: int) -> Callable[..., Awaitable[None]]:
    """An application that catches every error, as DeerFlow's routes do, and reads twice."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = status
        for _ in range(2):
            with suppress(Exception):
                await gateway.store.read()
                found = 200
        await answer(send, found)

    return app


async def until_available(health: StorageHealth) -> None:
    for _ in range(500):
        if health.is_available:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the storage did not become available")


async def test_available_storage_changes_no_answer(gateway: Gateway) -> None:
    for status in (200, 404, 422):
        gateway.app = reading(gateway, status)
        assert await gateway.request() == (status, b"body")
    assert gateway.storage.pings == 0


async def test_unavailable_storage_is_answered_with_503_and_retry_after(gateway: Gateway) -> None:
    gateway.app = reading(gateway)
    gateway.storage.go()
    status, body = await gateway.request()
    assert (status, body) == (503, b'{"detail": "the storage is unavailable, try again"}')
    assert gateway.header(b"retry-after") == b"2"
    assert gateway.header(b"content-length") == str(len(body)).encode()


@pytest.mark.parametrize(
    ("method", "status", "sent"),
    [
        ("GET", 500, 503),
        ("GET", 404, 503),
        ("GET", 401, 503),
        ("GET", 200, 503),
        ("DELETE", 200, 503),
        ("POST", 500, 503),
        ("POST", 404, 503),
        ("POST", 200, 200),
    ],
)
async def test_answer_of_a_route_that_catches_the_error_is_replaced(
    gateway: Gateway, method: str, status: int, sent: int
) -> None:
    gateway.app = catching(gateway, status)
    gateway.storage.go()
    began = time.monotonic()
    assert (await gateway.request(method))[0] == sent
    assert gateway.storage.calls == 1  # the second call of a request fails at once
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S


@pytest.mark.parametrize(
    ("method", "status", "sent"),
    [("DELETE", 200, 500), ("GET", 404, 500), ("GET", 500, 500), ("POST", 200, 200), ("POST", 404, 500)],
)
async def test_other_fault_that_a_route_catches_is_not_acknowledged(
    gateway: Gateway, method: str, status: int, sent: int
) -> None:
    gateway.app = catching(gateway, status)
    gateway.storage.timeout_s = 0.0
    gateway.storage.error = StorageAccessError("not authorized on d.threads")
    answered, body = await gateway.request(method)
    assert answered == sent
    assert b"d.threads" not in body
    assert gateway.health.is_available


async def test_errors_of_the_request_leave_the_answer_to_the_route(gateway: Gateway) -> None:
    gateway.app = catching(gateway, 409)
    gateway.storage.timeout_s = 0.0
    for error in (ThreadExistsError("t"), InvalidPayloadError("metadata", "NaN"), ActorMissingError("get")):
        gateway.storage.error = error
        assert await gateway.request("PUT") == (409, b"body")


async def test_known_outage_is_answered_at_once(gateway: Gateway) -> None:
    gateway.app = reading(gateway)
    gateway.storage.go()
    await gateway.request()
    await asyncio.sleep(0.06)  # the grace
    calls = gateway.storage.calls
    gateway.storage.timeout_s = 2 * SLACK_S
    began = time.monotonic()
    assert (await gateway.request())[0] == 503
    assert time.monotonic() - began < SLACK_S
    assert gateway.storage.calls == calls


async def test_requests_that_need_no_storage_are_served_during_an_outage(gateway: Gateway) -> None:
    gateway.app = reading(gateway)
    gateway.storage.go()
    await gateway.request()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200)

    gateway.app = app
    assert await gateway.request() == (200, b"body")


async def test_outage_and_recovery_are_logged_once(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.app = reading(gateway)
    with caplog.at_level(logging.INFO):
        gateway.storage.go()
        for _ in range(5):
            assert (await gateway.request())[0] == 503
        gateway.storage.error = None
        await until_available(gateway.health)
        assert (await gateway.request())[0] == 200
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    gone, back = (record.getMessage() for record in caplog.records)
    assert gone.startswith("the storage is unavailable; requests that need it are answered with 503")
    assert back.startswith("the storage is available again after ")


async def test_one_failed_call_refuses_nobody_else(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "GRACE_S", 2.0)
    gateway.storage.timeout_s = 0.0
    gateway.app = reading(gateway)
    gateway.storage.go()
    assert (await gateway.request())[0] == 503
    gateway.storage.error = None
    assert (await gateway.request())[0] == 200
    assert gateway.health.is_available


async def test_health_names_the_storage(gateway: Gateway) -> None:
    gateway.app = reading(gateway)
    assert await gateway.request(path="/health") == (200, b"body")
    gateway.storage.go()
    status, body = await gateway.request(path="/health")
    unhealthy = b'{"status": "unhealthy", "service": "deer-flow-gateway", "storage": "unavailable"}'
    assert (status, body) == (503, unhealthy)
    assert await gateway.request("HEAD", "/health") == (503, b"")
    gateway.storage.error = None
    await until_available(gateway.health)
    assert (await gateway.request(path="/health"))[0] == 200


async def test_health_answers_before_a_frozen_storage_does(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability.StorageHealth.check, "__defaults__", (0.05,))
    gateway.app = reading(gateway)
    gateway.storage.timeout_s = 2 * SLACK_S
    gateway.storage.go()
    began = time.monotonic()
    answers = await asyncio.gather(*(replace(gateway).request(path="/health") for _ in range(5)))
    assert [status for status, _ in answers] == [503] * 5
    assert time.monotonic() - began < SLACK_S
    assert gateway.storage.pings == 1  # checks share it
    assert gateway.health.is_available  # slow is not unavailable: other requests are tried


async def test_check_ends_while_another_one_begins_the_next_ping(gateway: Gateway) -> None:
    async def check_again_and_again() -> None:
        for _ in range(5):
            assert await gateway.health.check()

    # Each check returns in the turn in which others find the ping done and begin the next one.
    await asyncio.gather(*(check_again_and_again() for _ in range(5)))


async def test_health_reports_a_storage_that_refuses_the_login(gateway: Gateway) -> None:
    gateway.app = reading(gateway)
    gateway.storage.error = StorageAccessError("authentication failed")
    assert (await gateway.request(path="/health"))[0] == 503


async def test_error_500_of_another_part_is_503_if_the_storage_does_not_answer(gateway: Gateway) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 500)  # as after an error of the checkpointer, which is not watched

    gateway.app = app
    assert (await gateway.request())[0] == 500
    gateway.storage.go()
    assert (await gateway.request())[0] == 503


async def test_other_errors_pass_through(gateway: Gateway) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("a fault of the route")

    gateway.app = app
    with pytest.raises(KeyError):
        await gateway.request()


async def test_stream_is_passed_on_piece_by_piece(gateway: Gateway) -> None:
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"data", "more_body": True})
            seen.append(len(gateway.messages))
            if number == 0:
                gateway.storage.go()
                with pytest.raises(StorageUnavailableError):
                    await gateway.store.read()
        await send({"type": "http.response.body", "body": b""})

    gateway.app = app
    assert await gateway.request() == (200, b"datadatadata")
    assert seen == [2, 3, 4]


async def test_run_in_the_background_waits_for_the_storage(gateway: Gateway) -> None:
    runs: list[asyncio.Task[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        end_request_tracking()
        runs.append(asyncio.create_task(gateway.store.read()))
        await answer(send, 200)

    gateway.app = reading(gateway)
    gateway.storage.go()
    await gateway.request()
    gateway.app = app
    assert (await gateway.request("POST"))[0] == 200
    await asyncio.sleep(0.01)
    gateway.storage.error = None
    assert await runs[0] == "row"


async def test_closed_health_check_pings_no_more(gateway: Gateway) -> None:
    gateway.app = reading(gateway)
    gateway.storage.go()
    await gateway.request()
    await gateway.health.aclose()
    await gateway.health.aclose()
    pings = gateway.storage.pings
    await asyncio.sleep(0.1)
    assert gateway.storage.pings == pings
    assert (await gateway.request(path="/health"))[0] == 503
