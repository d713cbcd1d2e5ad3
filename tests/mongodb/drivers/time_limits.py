"""Every call ends within `timeout_ms`, whatever the URI or a caller's client sets, and closing within 2 s."""

from __future__ import annotations

import asyncio
import time

import pytest

from deerflow_mongo import StorageUnavailableError
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT

from ...busy_machine import until_answered
from ...faults.proxy import FaultProxy
from .fixtures import DriverFixtures, Opener, close_client, event

_TIMEOUT_MS = 300
_SLACK_S = 5.0
"""For a busy machine; the drivers' own default would be 30 s."""
CLOSE_S = 2.0 + 1.0

URI_TIMEOUTS = (
    "",
    "timeoutMS=0",
    "serverSelectionTimeoutMS=30000",
    "serverSelectionTimeoutMS=30000&socketTimeoutMS=0&connectTimeoutMS=0",
    "serverSelectionTimeoutMS=30000&socketTimeoutMS=60000&waitQueueTimeoutMS=60000",
)


class TimeLimitContract(DriverFixtures):
    @pytest.mark.parametrize("options", URI_TIMEOUTS)
    async def test_call_without_an_answer_ends_within_the_timeout(
        self, options: str, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        storage = new_storage(url=f"{proxy.url}&{options}".rstrip("&"), timeout_ms=_TIMEOUT_MS)
        await until_answered(storage.ping)
        proxy.stall("find", "aggregate", "listCollections")
        for call in (
            storage.runs.get("r", user_id=None),
            storage.runs.token_usage_by_thread("t", user_id=None),
            storage.driver.command({"listCollections": 1}),
        ):
            began = time.monotonic()
            with pytest.raises(StorageUnavailableError, match="did not answer in time") as error:
                await call
            assert time.monotonic() - began < _TIMEOUT_MS / 1000 + _SLACK_S
            assert error.value.__cause__ is not None
        proxy.clear()
        assert await until_answered(lambda: storage.runs.get("r", user_id=None)) is None
        await storage.aclose()

    async def test_call_on_a_client_without_timeouts_ends_within_the_timeout(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        client = self.client_class(proxy.url, connectTimeoutMS=0)
        storage = new_storage(client=client, timeout_ms=_TIMEOUT_MS)
        await until_answered(storage.ping)
        proxy.stall("find", "ping")
        with pytest.raises(StorageUnavailableError, match=r"`find` on `.*\.runs`: no answer within 300 ms"):
            await storage.runs.get("r", user_id=None)
        with pytest.raises(StorageUnavailableError, match=r"`ping` on .*: no answer within 300 ms"):
            await storage.ping()
        await storage.aclose()
        await close_client(client)

    async def test_callers_own_timeout_and_cancellation_stay_theirs(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        storage = new_storage(url=proxy.url, timeout_ms=10_000)
        await storage.ping()
        proxy.stall("find")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(storage.runs.get("r", user_id=None), 0.1)
        call = asyncio.create_task(storage.runs.get("r", user_id=None))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await storage.aclose()

    async def test_server_that_is_not_found_is_reported_after_its_own_timeout(
        self, new_storage: Opener, dead_port: int
    ) -> None:
        url = f"mongodb://127.0.0.1:{dead_port}/?serverSelectionTimeoutMS=200"
        storage = new_storage(url=url, timeout_ms=20_000)
        began = time.monotonic()
        with pytest.raises(StorageUnavailableError, match="cannot be reached"):
            await storage.runs.get("r", user_id=None)
        assert time.monotonic() - began < 0.2 + _SLACK_S
        await storage.aclose()

    async def test_closing_with_unwritten_events_on_a_silent_server_takes_at_most_two_seconds(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        storage = new_storage(url=proxy.url)
        await storage.run_events.put(**event())
        following = storage.run_events.follow("t")
        assert (await anext(following))["seq"] == 1
        proxy.stall("getMore", "aggregate", "killCursors", "endSessions")
        stalled = proxy.stall("insert", "find")  # a thread's last number is read first
        puts = [asyncio.create_task(storage.run_events.put(**event(thread_id=f"t{n}"))) for n in range(5)]
        async with asyncio.timeout(60):
            while stalled.hits < LEAST_IN_FLIGHT:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        began = time.monotonic()
        await storage.aclose()
        assert time.monotonic() - began < CLOSE_S
        for put in puts:
            with pytest.raises(StorageUnavailableError, match="may be stored or not"):
                await put
