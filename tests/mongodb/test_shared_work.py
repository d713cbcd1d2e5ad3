"""Work that several calls wait for: whichever task of it fails or is cancelled, each call gets an outcome."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from deerflow_mongo import (
    MongoStorage,
    StorageError,
    StorageUnavailableError,
    create_storage,
)
from deerflow_mongo.mongodb.drivers.driver import DriverOptions
from deerflow_mongo.mongodb.drivers.pymongo_async import PyMongoDriver

WAIT_S = 30
TIMEOUT_MS = 20_000
_SHARED = {"ThreadOwners._read", "_Stream._run", "_Stream._read"}
"""The coroutines of tasks whose results several calls wait for; those of writes have tests of their own."""


def event(thread_id: str) -> Any:
    return {"thread_id": thread_id, "run_id": "r", "event_type": "said", "category": "message"}


@pytest.fixture(params=["pymongo", "motor"])
async def storage(
    request: pytest.FixtureRequest, mongodb_url: str, database_name: str
) -> AsyncIterator[MongoStorage]:
    options = {"backend": "mongodb", "url": mongodb_url, "database": database_name, "driver": request.param}
    opened = create_storage(options)
    assert isinstance(opened, MongoStorage)
    async with opened:
        yield opened


CALLS: tuple[Callable[[MongoStorage, str], Awaitable[Any]], ...] = (
    lambda s, t: s.run_events.list_messages(t),
    lambda s, t: s.run_events.count_messages(t),
    lambda s, t: s.run_events.list_thread_events(t),
    lambda s, t: s.run_events.delete_by_run(t, "unknown"),
    lambda s, t: anext(s.run_events.follow(t)),
    lambda s, t: anext(s.run_events.follow(t, run_id="r", until_run_ends=True)),
)


def _shared_tasks() -> list[asyncio.Task[Any]]:
    tasks = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") in _SHARED]
    return sorted(tasks, key=lambda task: task.get_name())


async def test_cancelled_shared_task_leaves_no_caller_behind(storage: MongoStorage, alice: None) -> None:
    rng = random.Random(13)  # noqa: S311 - not for security
    for thread_id in ("a", "b", "c"):
        await storage.run_events.put(**event(thread_id))
    cancelled = 0
    for _ in range(25):
        calls = [asyncio.ensure_future(call(storage, rng.choice("abc"))) for call in rng.choices(CALLS, k=12)]
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        shared = _shared_tasks()
        for task in rng.sample(shared, min(len(shared), 2)):
            cancelled += task.cancel()
        done, pending = await asyncio.wait(calls, timeout=WAIT_S)
        assert not pending
        for call in done:
            assert not call.cancelled()
            assert isinstance(call.exception(), StorageError | None)
    assert cancelled > 5
    assert len(await storage.run_events.list_messages("a")) == 1


# -- opening a client ------------------------------------------------------------------------------


class Options:
    """Where a driver gets its options from; each call waits for `go_on`, then fails with `error`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls = 0
        self.go_on = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self) -> DriverOptions:
        self.calls += 1
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return DriverOptions(self.url, "d", TIMEOUT_MS)


async def test_cancelled_first_call_leaves_those_that_wait_for_the_client(mongodb_url: str) -> None:
    options = Options(mongodb_url)
    driver = PyMongoDriver(options, TIMEOUT_MS)
    calls = [asyncio.create_task(driver.opened()) for _ in range(5)]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[3].cancel()
    await asyncio.sleep(0)
    options.go_on.set()
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert options.calls == 2
    await driver.close()


@pytest.mark.parametrize("error", [StorageUnavailableError("no server"), OSError("broken"), KeyError("url")])
async def test_failed_opening_of_the_client_fails_each_call_and_is_tried_again(
    error: Exception, mongodb_url: str
) -> None:
    options = Options(mongodb_url)
    driver = PyMongoDriver(options, TIMEOUT_MS)
    options.error = error
    options.go_on.set()
    calls = [asyncio.create_task(driver.opened()) for _ in range(5)]
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
    assert {type(answer) for answer in answers} == {type(error)}
    options.error = None
    assert await asyncio.wait_for(driver.opened(), WAIT_S) is not None
    await driver.close()
