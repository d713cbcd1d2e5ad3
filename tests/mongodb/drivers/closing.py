"""Opening and closing: whose client it is, what a closed storage answers, how long closing may take."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from deerflow_mongo import StorageError, StorageUnavailableError, __version__
from deerflow_mongo.mongodb.embedded import EmbeddedServer, start_embedded
from deerflow_mongo.testing.methods import METHODS
from deerflow_mongo.testing.network import no_connections

from ...busy_machine import until_answered
from .fixtures import (
    SLACK_S,
    TIMEOUT_MS,
    DriverFixtures,
    Opener,
    assert_unavailable_in_time,
    close_client,
    event,
)


class ClosingContract(DriverFixtures):
    async def test_building_and_closing_an_unused_storage_connects_to_nothing(
        self, new_storage: Opener
    ) -> None:
        with no_connections():
            storage = await asyncio.to_thread(new_storage)
            await storage.aclose()
            await storage.aclose()

    async def test_closing_is_idempotent(self, new_storage: Opener) -> None:
        storage = new_storage()
        await storage.setup()
        await asyncio.gather(storage.aclose(), storage.aclose())
        await storage.aclose()

    async def test_every_method_of_a_closed_storage_raises(self, new_storage: Opener) -> None:
        storage = new_storage()
        await storage.setup()
        await storage.runs.get("r", user_id=None)
        await storage.aclose()
        for method in METHODS:
            with pytest.raises(StorageError, match="closed"):
                await method(storage)
        for call in (
            storage.setup,
            storage.inspect,
            storage.checkpointer,
            lambda: storage.users.get("u"),
            lambda: anext(storage.run_events.follow("t")),
            lambda: storage.run_events.put_batch([event()]),
        ):
            with pytest.raises(StorageError, match="closed"):
                await call()

    async def test_a_client_that_the_caller_made_is_used_and_never_closed(
        self, mongodb_url: str, database_name: str, new_storage: Opener
    ) -> None:
        """And what it decodes to by itself does not change what the storage gives."""
        client = self.client_class(mongodb_url, tz_aware=True)
        for run_id in ("first", "second"):
            async with new_storage(client=client) as storage:
                created = await storage.runs.create(run_id, "t", user_id="u", metadata={"k": run_id})
                await storage.run_events.put(**event())
            assert created is None
            with pytest.raises(StorageError, match="this storage is closed"):
                await storage.runs.get(run_id, user_id="u")
        async with new_storage() as storage, new_storage(client=client) as other:
            rows = await storage.runs.list_by_thread("t", user_id="u")
            assert await other.runs.list_by_thread("t", user_id="u") == rows
            events = await storage.run_events.list_messages("t")
            assert await other.run_events.list_messages("t") == events
        assert await client[database_name]["runs"].count_documents({}) == 2
        await close_client(client)

    async def test_entering_the_context_fails_within_the_timeout_and_closes(
        self, new_storage: Opener, dead_port: int
    ) -> None:
        storage = new_storage(url=f"mongodb://127.0.0.1:{dead_port}", timeout_ms=TIMEOUT_MS)
        await assert_unavailable_in_time(storage.__aenter__)
        with pytest.raises(StorageError, match="this storage is closed"):
            await storage.runs.get("r", user_id=None)

    async def test_closing_after_the_server_stopped_is_bounded(
        self, new_storage: Opener, tmp_path: Path
    ) -> None:
        server = start_embedded(tmp_path / "server")
        async with new_storage(url=server.url) as ready:
            await ready.runs.create("r", "t", user_id=None)
        storage = new_storage(url=server.url, timeout_ms=TIMEOUT_MS)
        await until_answered(storage.ping)
        await asyncio.to_thread(server.release)
        await assert_unavailable_in_time(lambda: storage.runs.get("r", user_id=None))
        began = time.monotonic()
        await storage.aclose()
        assert time.monotonic() - began < SLACK_S

    async def test_closing_before_a_silent_server_answers_is_bounded(
        self, new_storage: Opener, silent_port: int
    ) -> None:
        storage = new_storage(url=f"mongodb://127.0.0.1:{silent_port}", timeout_ms=2_000)
        calls = [asyncio.create_task(storage.runs.get("r", user_id=None)) for _ in range(3)]
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await storage.aclose()
        assert time.monotonic() - began < SLACK_S
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, StorageError) for answer in answers)

    async def test_closing_under_calls_leaves_each_answered(self, new_storage: Opener) -> None:
        """With what was asked, or with an error of the package; accepted events are written."""
        storage = new_storage()
        await storage.setup()
        reads = [asyncio.create_task(storage.runs.get("r", user_id=None)) for _ in range(20)]
        writes = [asyncio.create_task(storage.run_events.put(**event(number))) for number in range(20)]
        await asyncio.sleep(0)
        await storage.aclose()
        for answer in await asyncio.gather(*reads, return_exceptions=True):
            assert answer is None or isinstance(answer, StorageError)
        rows = await asyncio.gather(*writes, return_exceptions=True)
        assert not [row for row in rows if isinstance(row, StorageUnavailableError)]
        stored = sum(isinstance(row, dict) for row in rows)
        async with new_storage() as other:
            assert await other.run_events.count_messages("t") == stored

    async def test_server_log_names_the_package_and_the_driver(
        self, new_storage: Opener, server: EmbeddedServer
    ) -> None:
        async with new_storage():
            pass
        log = (server.data_dir / "mongod.log").read_text(encoding="utf-8")
        names = [line for line in log.splitlines() if "client metadata" in line and "deerflow-mongo" in line]
        is_motor = self.driver == "motor"
        assert any(__version__ in line and ("Motor" in line) == is_motor for line in names)

    async def test_writes_are_acknowledged_by_a_majority(self, new_storage: Opener, mongodb_url: str) -> None:
        """Unless the URI says another write concern."""
        for url, concern in ((mongodb_url, {"w": "majority"}), (f"{mongodb_url}&w=1", {"w": 1})):
            storage = new_storage(url=url)
            assert (await storage.driver.opened()).write_concern.document == concern
            await storage.aclose()
