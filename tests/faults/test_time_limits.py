"""Every call ends within `timeout_ms` when the server stops answering, whatever the URI sets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deerflow_mongo import MongoConfig, MongoStorage, StorageError, StorageUnavailableError, create_storage
from deerflow_mongo.testing.methods import METHODS

from ..busy_machine import until_answered
from .proxy import FaultProxy

TIMEOUT_S = 1.0
SLACK_S = 3.0
"""For a busy machine: all methods are called at the same time."""
CLOSE_S = 2.0 + 1.0
CLOSED_TIMEOUT_MS = 4_000
"""Of calls that are under way when the storage is closed: longer than closing may take."""

URI_OPTIONS = (
    "",
    "&serverSelectionTimeoutMS=60000",
    "&socketTimeoutMS=0",
    "&socketTimeoutMS=60000&connectTimeoutMS=60000",
    "&timeoutMS=0",
    "&retryReads=false&retryWrites=false",
    "&maxPoolSize=3",
    "&w=1",
    "&wTimeoutMS=60000",
)


Opener = Callable[..., MongoStorage]


@pytest.fixture
async def new_storage(proxy: FaultProxy, mongodb_url: str, database_name: str) -> Opener:
    """A storage behind the proxy, on a database that is set up; `options` are those of the URI."""
    names = {"backend": "mongodb", "database": database_name}
    async with create_storage({**names, "url": mongodb_url}):
        pass

    def build(options: str = "", **config: Any) -> MongoStorage:
        url = proxy.url + options
        storage = create_storage({**names, "url": url, **config})
        assert isinstance(storage, MongoStorage)
        return storage

    return build


def _limit_s(path: str) -> float:
    """Of one call; a write of run events is repeated for as long, and the last try may take as long again."""
    return 2 * TIMEOUT_S if path.startswith("run_events.put") else TIMEOUT_S


async def _timed(call: Awaitable[Any]) -> tuple[float, Any]:
    """How long the call took and its error, or what it returned."""
    began = time.monotonic()
    try:
        outcome = await asyncio.wait_for(call, 4 * TIMEOUT_S + SLACK_S)
    except StorageError as error:
        outcome = error
    except TimeoutError:
        outcome = "still waiting"
    return time.monotonic() - began, outcome


async def _late_or_wrong(storage: MongoStorage) -> list[str]:
    """Those of all methods that did not fail as unavailable in time."""
    timed = await asyncio.gather(*(_timed(method(storage)) for method in METHODS))
    return [
        f"{method.path}: {outcome!r} after {seconds:.1f} s"
        for method, (seconds, outcome) in zip(METHODS, timed, strict=True)
        if not isinstance(outcome, StorageUnavailableError) or seconds > _limit_s(method.path) + SLACK_S
    ]


@pytest.mark.parametrize("options", URI_OPTIONS)
def test_uri_leaves_the_default_time_limit_in_force(options: str) -> None:
    url = f"mongodb://127.0.0.1:1/?directConnection=true{options}"
    assert MongoConfig(url=url).timeout_ms == 25_000


@pytest.mark.parametrize(
    ("driver", "options"), [*(("pymongo", options) for options in URI_OPTIONS), ("motor", URI_OPTIONS[1])]
)
async def test_every_call_to_a_server_that_stops_answering_ends_in_time(
    new_storage: Opener, proxy: FaultProxy, driver: str, options: str
) -> None:
    storage = new_storage(options, driver=driver, timeout_ms=int(TIMEOUT_S * 1000))
    await until_answered(storage.ping)
    proxy.stall()
    assert await _late_or_wrong(storage) == []
    began = time.monotonic()
    await storage.aclose()
    assert time.monotonic() - began < CLOSE_S


async def test_storage_works_again_when_the_server_answers_again(
    new_storage: Opener, proxy: FaultProxy
) -> None:
    storage = new_storage(timeout_ms=int(TIMEOUT_S * 1000))
    await until_answered(storage.ping)
    rule = proxy.stall()
    _, outcome = await _timed(storage.runs.create("r", "t", user_id="u"))
    assert isinstance(outcome, StorageUnavailableError)
    assert rule.hits >= 1
    proxy.clear()
    await until_answered(storage.ping)
    await storage.runs.create("r", "t", user_id="u")
    assert await storage.runs.get("r", user_id="u") is not None
    await storage.aclose()


async def test_closing_does_not_wait_for_calls_that_are_not_answered(
    new_storage: Opener, proxy: FaultProxy
) -> None:
    """They end in their time, with an error of the package."""
    storage = new_storage(timeout_ms=CLOSED_TIMEOUT_MS)
    await until_answered(storage.ping)
    rule = proxy.stall()
    calls = [asyncio.create_task(_timed(method(storage))) for method in METHODS]
    async with asyncio.timeout(CLOSED_TIMEOUT_MS / 1000):
        while not rule.hits:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    began = time.monotonic()
    await storage.aclose()
    assert time.monotonic() - began < CLOSE_S
    outcomes = [outcome for _, outcome in await asyncio.gather(*calls)]
    assert [outcome for outcome in outcomes if not isinstance(outcome, StorageError)] == []
