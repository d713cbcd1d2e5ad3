"""Batches of run events that are larger than what a server stores as one unit, through each driver."""

from __future__ import annotations

import pytest

from deerflow_mongo import MongoStorage

from ...faults.proxy import FaultProxy
from .fixtures import BATCH, DriverFixtures, Opener, contents, event

_MEBIBYTE = 1024 * 1024


class LargeBatchContract(DriverFixtures):
    @pytest.mark.parametrize("arrived", [True, False], ids=["request arrived", "request lost"])
    async def test_lost_connections_store_every_event_of_a_large_batch_once(
        self, new_storage: Opener, proxy: FaultProxy, arrived: bool
    ) -> None:
        """Whether the driver repeats an insert or the store does."""
        async with new_storage(url=proxy.url) as storage:
            await storage.run_events.put(**event("before"))
            proxy.lose("insert", 3, after_it_arrived=arrived)
            rows = await storage.run_events.put_batch([event(number) for number in range(BATCH)])
            assert [row["seq"] for row in rows] == list(range(2, 2 + BATCH))
            assert proxy.lost == 3
            assert await contents(storage) == ["before", *range(BATCH)]

    async def test_few_large_events_are_stored_in_one_batch(self, storage: MongoStorage) -> None:
        """Together they exceed one message to the server."""
        texts = [f"{number}" * (7 * _MEBIBYTE) for number in range(8)]
        rows = await storage.run_events.put_batch([event(text) for text in texts])
        assert [row["seq"] for row in rows] == list(range(1, 9))
        assert await contents(storage) == texts

    async def test_standalone_server_stores_a_large_batch(
        self, new_storage: Opener, standalone_url: str
    ) -> None:
        async with new_storage(url=standalone_url, database=f"{self.driver}_large") as storage:
            await storage.run_events.put_batch([event(number) for number in range(BATCH)])
            assert await contents(storage) == list(range(BATCH))
