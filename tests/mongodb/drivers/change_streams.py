"""`run_events.follow`, which stands on `Collection.changes`: the driver's change streams."""

from __future__ import annotations

import asyncio

import pytest

from deerflow_mongo import MongoStorage, StorageError, StorageUnavailableError

from ...busy_machine import connected, until_answered
from ...faults.proxy import FaultProxy
from .conftest import Raw
from .fixtures import DriverFixtures, Opener, event

WAIT_S = 60


async def _follow(storage: MongoStorage, last: int, after_seq: int = 0) -> list[int]:
    """The numbers that a follower sees, up to `last`."""
    seen: list[int] = []
    async for row in storage.run_events.follow("t", after_seq=after_seq):
        seen.append(row["seq"])
        if row["seq"] == last:
            break
    return seen


class ChangeStreamContract(DriverFixtures):
    async def test_following_gives_what_is_there_and_what_comes(self, storage: MongoStorage) -> None:
        await storage.run_events.put_batch([event()] * 700)
        async with asyncio.timeout(WAIT_S):
            followers = [asyncio.create_task(_follow(storage, 800, after)) for after in (0, 10, 650)]
            for _ in range(50):
                await storage.run_events.put_batch([event()] * 2)
            seen = await asyncio.gather(*followers)
        assert seen == [list(range(after + 1, 801)) for after in (0, 10, 650)]

    async def test_follower_wakes_up_for_one_event_at_a_time(self, storage: MongoStorage) -> None:
        rows = storage.run_events.follow("t")
        async with asyncio.timeout(WAIT_S):
            for number in range(1, 6):
                waiting = asyncio.ensure_future(anext(rows))
                await asyncio.sleep(0.05)
                assert not waiting.done()
                await storage.run_events.put(**event(number))
                assert (await waiting)["content"] == number
        await rows.aclose()

    @pytest.mark.parametrize("command", ["getMore", "aggregate"])
    async def test_lost_connection_misses_and_repeats_no_event(
        self, storage: MongoStorage, new_storage: Opener, proxy: FaultProxy, command: str
    ) -> None:
        async with new_storage(url=proxy.url) as reader, asyncio.timeout(WAIT_S):
            follower = asyncio.create_task(_follow(reader, 40))
            for number in range(20):
                if number % 5 == 0:
                    proxy.lose(command)
                await storage.run_events.put_batch([event()] * 2)
                await asyncio.sleep(0.02)
            assert await follower == list(range(1, 41))
        assert proxy.lost >= 1

    async def test_following_a_server_that_goes_away_is_unavailable(
        self, storage: MongoStorage, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        await storage.run_events.put(**event())
        async with connected(new_storage(url=proxy.url, timeout_ms=2_000)) as reader:
            rows = reader.run_events.follow("t")
            assert (await anext(rows))["seq"] == 1
            proxy.go_down()
            with pytest.raises(StorageUnavailableError):
                await asyncio.wait_for(anext(rows), WAIT_S)
            proxy.is_down = False
            await until_answered(reader.ping)
            assert await _follow(reader, 1) == [1]

    async def test_following_ends_when_the_collection_is_dropped(
        self, new_storage: Opener, raw_client: Raw, new_database: str
    ) -> None:
        """It neither hangs nor spins."""
        async with new_storage(database=new_database) as storage:
            await storage.run_events.put(**event())
            rows = storage.run_events.follow("t")
            assert (await anext(rows))["seq"] == 1
            raw_client.drop_database(new_database)
            with pytest.raises(StorageError):
                await asyncio.wait_for(anext(rows), WAIT_S)

    async def test_follower_that_leaves_gives_its_connection_back(
        self, new_storage: Opener, mongodb_url: str
    ) -> None:
        async with new_storage(url=f"{mongodb_url}&maxPoolSize=1") as storage:
            await storage.run_events.put(**event())
            assert await _follow(storage, 1) == [1]
            rows = storage.run_events.follow("t")
            assert (await anext(rows))["seq"] == 1
            await rows.aclose()
            await asyncio.gather(*(storage.runs.get("r", user_id=None) for _ in range(10)))

    async def test_cancelled_follower_ends(self, storage: MongoStorage) -> None:
        """Also when the cancellation comes together with a change."""
        for _ in range(10):
            follower = asyncio.create_task(_follow(storage, 10_000))
            await asyncio.sleep(0.05)
            writing = asyncio.create_task(storage.run_events.put(**event()))
            await asyncio.sleep(0.001)
            follower.cancel()
            await writing
            done, _ = await asyncio.wait({follower}, timeout=WAIT_S)
            assert done
            assert follower.cancelled()

    async def test_closing_the_storage_ends_its_followers(self, new_storage: Opener) -> None:
        storage = new_storage()
        await storage.setup()
        await storage.run_events.put(**event())
        followers = [asyncio.create_task(_follow(storage, 10_000)) for _ in range(3)]
        await asyncio.sleep(0.3)
        await storage.aclose()
        ended = await asyncio.wait_for(asyncio.gather(*followers, return_exceptions=True), WAIT_S)
        assert all(isinstance(error, StorageError) for error in ended), ended

    async def test_standalone_server_has_no_change_streams(
        self, new_storage: Opener, standalone_url: str
    ) -> None:
        async with new_storage(url=standalone_url, database=f"{self.driver}_changes") as storage:
            with pytest.raises(StorageError, match="change streams") as refused:
                await anext(storage.run_events.follow("t"))
            assert refused.value.__cause__ is not None
            assert type(refused.value) is StorageError
