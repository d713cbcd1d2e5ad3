"""What a gateway answers while its storage is unavailable: 503, and when to try again.

DeerFlow's routes know no such state: an error of a store becomes an error 500 with a traceback, or is caught,
and the answer is that a run does not exist. Here the stores are watched (`HealthReportingStore`), each
request records what its calls of them found, and the middleware replaces its answer. Nothing is buffered: a
response that has begun, such as an event stream, passes through.

Other errors of the storage that a route has caught are answered with 500: DeerFlow acknowledges the deletion
of a thread, say, that the storage refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from ..contract.errors import (
    CorruptDocumentError,
    StorageAccessError,
    StorageClosedError,
    StorageError,
    StorageUnavailableError,
)
from .store_proxy import StoreProxy

RETRY_AFTER: Final = "2"
"""Seconds, for the header `Retry-After`."""

HEALTH_PATH: Final = "/health"
HEALTH_TIMEOUT_S: Final = 1.0
"""How long the health check waits for the storage: Kubernetes waits one second for the answer by default."""

GRACE_S: Final = 1.0
"""After the first error a request waits up to this time for a ping: one lost connection refuses nobody."""

PING_INTERVAL_S: Final = 1.0
"""Between the pings while the storage is unavailable."""

_UNAVAILABLE: Final = (StorageUnavailableError, StorageClosedError)
_FAULTS: Final = (*_UNAVAILABLE, StorageAccessError, CorruptDocumentError)
"""Errors that no request is the reason of, and `StorageError` itself."""

_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
"""Methods whose successful answer is replaced too if a store failed: DeerFlow may have caught the error."""

_UNHEALTHY: Final = {"status": "unhealthy", "service": "deer-flow-gateway", "storage": "unavailable"}
"""DeerFlow's own answer has the first two keys."""

_EVENT_STREAM: Final = b"text/event-stream"

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)


class Pingable(Protocol):
    """What is needed of a storage here."""

    async def ping(self) -> None: ...


class StorageHealth:
    """Whether the storage answers, as far as the latest calls and pings know; logs each change once."""

    def __init__(self) -> None:
        self._storage: Pingable | None = None
        self._down_since: float | None = None
        self._ping: asyncio.Task[StorageError | None] | None = None
        self._recovery: asyncio.Task[None] | None = None

    @property
    def is_available(self) -> bool:
        return self._down_since is None

    def watch(self, storage: Pingable) -> None:
        """Begin to watch this storage, which is open."""
        self._storage = storage
        self._down_since = None

    async def aclose(self) -> None:
        """Stop watching; idempotent."""
        self._storage = None
        tasks = [task for task in (self._recovery, self._ping) if task is not None]
        self._recovery = self._ping = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def report_unavailable(self, error: StorageUnavailableError) -> None:
        """A call has failed: ping the storage in the background until it answers."""
        if self._storage is None or self._down_since is not None:
            return
        self._down_since = time.monotonic()
        logger.warning("the storage is unavailable; requests that need it are answered with 503: %s", error)
        self._recovery = asyncio.create_task(self._recover())

    async def answers_soon(self) -> bool:
        """Whether the storage is available, or becomes so within `GRACE_S` of the first error."""
        if self._down_since is not None and self._recovery is not None:
            remaining_s = self._down_since + GRACE_S - time.monotonic()
            if remaining_s > 0:
                await asyncio.wait({self._recovery}, timeout=remaining_s)
        return self._down_since is None

    async def check(self, timeout_s: float = HEALTH_TIMEOUT_S) -> bool:
        """Whether the storage answers a ping in time. Concurrent checks share one ping."""
        if self._storage is None:
            return False
        ping = self._ping
        if ping is None or ping.done():
            ping = self._ping = asyncio.create_task(self._pinged(self._storage))
        # Not cancelled after the time: its own error reports the storage as unavailable. Meanwhile another
        # check may have begun the next ping.
        done, _ = await asyncio.wait({ping}, timeout=timeout_s)
        return bool(done) and not ping.cancelled() and ping.result() is None

    async def _pinged(self, storage: Pingable) -> StorageError | None:
        try:
            await storage.ping()
        except StorageError as error:
            if isinstance(error, StorageUnavailableError):
                self.report_unavailable(error)
            return error
        return None

    async def _recover(self) -> None:
        while (storage := self._storage) is not None:
            began = time.monotonic()
            if await self._pinged(storage) is None:
                break
            await asyncio.sleep(max(0.0, began + PING_INTERVAL_S - time.monotonic()))
        down_since, self._down_since = self._down_since, None
        if self._storage is not None and down_since is not None:
            logger.warning("the storage is available again after %.1f s", time.monotonic() - down_since)


# -- what one request has found ---------------------------------------------------------------------


@dataclass(slots=True)
class _Request:
    """What the store calls of one request have found; a task that outlives the request is not part of it."""

    failure: StorageError | None = None
    has_ended: bool = False
    granted: set[tuple[str, str | None]] = field(default_factory=set[tuple[str, str | None]])
    """The existing threads that a check has found a user may use."""

    @property
    def is_unavailable(self) -> bool:
        return isinstance(self.failure, _UNAVAILABLE)


_request: ContextVar[_Request | None] = ContextVar("deerflow_mongo_request", default=None)


def end_request_tracking() -> None:
    """What the current context does from now on, such as executing a run, is not part of a request."""
    _request.set(None)


def grant_access(thread_id: str, user_id: str | None) -> None:
    """A check has found that the user may use this existing thread; the current request asks once."""
    request = _request.get()
    if request is not None:
        request.granted.add((thread_id, user_id))


def is_access_granted(thread_id: str, user_id: str | None) -> bool:
    """Whether an earlier check of the current request has found so; False where there is no request."""
    request = _request.get()
    return request is not None and not request.has_ended and (thread_id, user_id) in request.granted


class HealthReportingStore(StoreProxy):
    """A store whose unavailability is reported to a `StorageHealth` and recorded for the current request.

    A call of a request fails at once where the storage is known to be unavailable; one that is not part of a
    request, as those of a run in the background, waits for the storage as long as it may.
    """

    health: StorageHealth

    @classmethod
    def over(cls, store: Any, health: StorageHealth) -> Any:
        """The proxy of this store that reports to `health`."""
        proxy = cls.of(store)
        proxy.health = health
        return proxy

    async def _call(self, method: Callable[..., Awaitable[Any]], /, *arguments: Any, **options: Any) -> Any:
        request = _request.get()
        if request is not None and not request.has_ended:
            await self._check(request)
        try:
            return await method(*arguments, **options)
        except StorageError as error:
            if request is not None and (isinstance(error, _FAULTS) or type(error) is StorageError):
                request.failure = error
            if isinstance(error, StorageUnavailableError):
                self.health.report_unavailable(error)
            raise

    async def _check(self, request: _Request) -> None:
        if not request.is_unavailable and await self.health.answers_soon():
            return
        request.failure = StorageUnavailableError("the storage is unavailable")
        raise request.failure


# -- the middleware ---------------------------------------------------------------------------------


class AvailabilityMiddleware:
    """503 with `Retry-After` for requests that the storage could not serve, and for the health check."""

    def __init__(self, app: ASGIApp, *, health: StorageHealth) -> None:
        self._app = app
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].rstrip("/") == HEALTH_PATH and not await self._health.check():
            await _send_unavailable(scope, send, _UNHEALTHY)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request()
        token = _request.set(request)
        answer = _Answer(scope, send, self._health, request)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if answer.is_replaced:
                return
            if answer.has_begun or not await answer.is_unavailable(500):
                raise
            await answer.replace()
        finally:
            request.has_ended = True
            _request.reset(token)


class _Answer:
    """The response of one request, which is replaced if the storage was unavailable."""

    def __init__(self, scope: Scope, send: Send, health: StorageHealth, request: _Request) -> None:
        self.has_begun = False
        self.is_replaced = False
        self._scope = scope
        self._send = send
        self._health = health
        self._request = request

    async def send(self, message: Message) -> None:
        if self.is_replaced:
            return
        if message["type"] == "http.response.start" and await self._must_replace(message):
            await self.replace()
            return
        self.has_begun = True
        await self._send(message)

    async def is_unavailable(self, status: int) -> bool:
        """Whether the storage is the reason of this status; asks it where no store has reported it.

        The checkpoint saver is not watched and reports nothing.
        """
        if self._request.is_unavailable:
            return True
        return status >= 500 and not (self._health.is_available and await self._health.check())

    async def replace(self) -> None:
        """503; or 500 where the storage is available and a route has caught another error of it."""
        self.is_replaced = self.has_begun = True
        failure = self._request.failure
        if failure is None or self._request.is_unavailable:
            await _send_unavailable(
                self._scope, self._send, {"detail": "the storage is unavailable, try again"}
            )
            return
        logger.error("%s %s is answered with 500: %s", self._scope["method"], self._scope["path"], failure)
        await _send_json(self._scope, self._send, 500, {"detail": "the storage failed"})

    async def _must_replace(self, start: Message) -> bool:
        status: int = start["status"]
        if status < 400 and (self._scope["method"] not in _REPEATABLE or _is_event_stream(start)):
            return False
        if self._request.failure is not None:
            return self._request.is_unavailable or status < 500
        return status != 503 and await self.is_unavailable(status)


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(_EVENT_STREAM)
        for name, value in start["headers"]
    )


async def _send_unavailable(scope: Scope, send: Send, content: dict[str, str]) -> None:
    await _send_json(scope, send, 503, content, (b"retry-after", RETRY_AFTER.encode()))


async def _send_json(
    scope: Scope, send: Send, status: int, content: dict[str, str], *more_headers: tuple[bytes, bytes]
) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *more_headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
