"""`Collection.insert_all_or_none`, and the large batches of run events that stand on it."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import MongoStorage

from ..lossy_proxy import LossyProxy
from .fixtures import DriverFixtures, DuplicateKeyError, Opener, close_client, contents, event

BATCH = 100
"""More than what a server stores as one unit without a transaction."""


class _Commits(CommandListener):
    """The write concerns of the transactions that a client committed."""

    def __init__(self) -> None:
        self.write_concerns: list[Any] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name == "commitTransaction":
            self.write_concerns.append(event.command.get("writeConcern"))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


class TransactionContract(DriverFixtures):
    async def test_insert_all_or_none_stores_all(self, storage: MongoStorage) -> None:
        scratch = storage.driver.collection("scratch")
        await scratch.insert_all_or_none([{"_id": number} for number in range(BATCH)])
        rows = await scratch.find({}, sort=[("_id", 1)], limit=1_000)
        assert [row["_id"] for row in rows] == list(range(BATCH))
        assert storage.driver.has_transactions

    async def test_insert_all_or_none_stores_none_where_one_is_refused(self, storage: MongoStorage) -> None:
        scratch = storage.driver.collection("scratch")
        await scratch.insert_one({"_id": 50})
        for _ in range(3):
            with pytest.raises(DuplicateKeyError) as refused:
                await scratch.insert_all_or_none([{"_id": number} for number in range(BATCH)])
            assert refused.value.stored == 0
            assert refused.value.__cause__ is not None
            assert await scratch.find({}, sort=[("_id", 1)], limit=1_000) == [{"_id": 50}]
        await scratch.insert_all_or_none([{"_id": number} for number in range(51, 60)])
        assert len(await scratch.find({}, sort=[("_id", 1)], limit=1_000)) == 10

    @pytest.mark.parametrize("arrived", [True, False], ids=["request arrived", "request lost"])
    @pytest.mark.parametrize("command", ["commitTransaction", "insert"])
    async def test_lost_connection_never_stores_a_large_batch_twice_or_in_part(
        self, new_storage: Opener, proxy: LossyProxy, command: str, arrived: bool
    ) -> None:
        async with new_storage(url=proxy.url) as storage:
            await storage.run_events.put(**event("before"))
            proxy.lose(command, 3, after_it_arrived=arrived)
            rows = await storage.run_events.put_batch([event(command)] * BATCH)
            assert [row["seq"] for row in rows] == list(range(2, 2 + BATCH))
            assert proxy.lost == 3
            assert await contents(storage) == ["before"] + [command] * BATCH

    async def test_commit_waits_for_a_majority(self, new_storage: Opener, mongodb_url: str) -> None:
        """Unless the caller's client says another write concern."""
        for url, concern in ((mongodb_url, {"w": "majority"}), (f"{mongodb_url}&w=1", {"w": 1})):
            commits = _Commits()
            client = self.client_class(url, event_listeners=[commits])
            async with new_storage(client=client) as storage:
                await storage.run_events.put_batch([event()] * BATCH)
            assert commits.write_concerns == [concern]
            await close_client(client)

    async def test_standalone_server_stores_a_large_batch_without_a_transaction(
        self, new_storage: Opener, standalone_url: str
    ) -> None:
        async with new_storage(url=standalone_url, database=f"{self.driver}_transactions") as storage:
            await storage.run_events.put_batch([event(number) for number in range(BATCH)])
            assert await contents(storage) == list(range(BATCH))
            assert not storage.driver.has_transactions
            scratch = storage.driver.collection("scratch")
            with pytest.raises(DuplicateKeyError) as refused:
                await scratch.insert_all_or_none([{"_id": 1}, {"_id": 2}, {"_id": 1}])
            assert refused.value.stored == 2
