"""What every part of the driver contract uses: storages on one driver, a proxy, servers that fail.

A part of the contract is a class of tests; `contract.py` joins the parts, and a test module per driver binds
them by naming the driver and its client.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar

import pytest

from deerflow_mongo import MongoStorage, StorageUnavailableError, create_storage
from deerflow_mongo.mongodb.drivers.errors import DuplicateKeyError as DuplicateKeyError  # for all parts

from ...faults.proxy import FaultProxy

Opener = Callable[..., MongoStorage]

BATCH = 100
"""Events that a server does not store as one unit."""

TIMEOUT_MS = 400
SLACK_S = 5.0
"""For a busy machine; the drivers' own default would be 30 s."""


def event(content: Any = "", thread_id: str = "t", run_id: str = "r", event_type: str = "said") -> Any:
    return {
        "thread_id": thread_id,
        "run_id": run_id,
        "event_type": event_type,
        "category": "message",
        "content": content,
    }


async def contents(storage: MongoStorage, thread_id: str = "t") -> list[Any]:
    """The contents of a thread's events in the order of their numbers, which have no gap."""
    rows = await storage.run_events.list_thread_events(thread_id, limit=100_000)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["content"] for row in rows]


async def close_client(client: Any) -> None:
    """Close a client that the test made; PyMongo's `close` is a coroutine, Motor's waits for an answer."""
    closing = await asyncio.to_thread(client.close)
    if closing is not None:
        await closing


async def assert_unavailable_in_time(call: Callable[[], Awaitable[Any]]) -> None:
    """It fails as unavailable about when `TIMEOUT_MS` is over, with the driver's error as its cause."""
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError, match="cannot be reached or did not answer in time") as error:
        await call()
    assert time.monotonic() - began < TIMEOUT_MS / 1000 + SLACK_S
    assert error.value.__cause__ is not None


class DriverFixtures:
    """The driver under test, and storages on it."""

    driver: ClassVar[str]
    client_class: ClassVar[Any]
    """The driver's own client, as a caller would build one."""

    @pytest.fixture
    def new_storage(self, mongodb_url: str, database_name: str) -> Opener:
        """A storage that is not open yet, on the test's database unless options say otherwise."""

        def build(*, client: Any = None, **options: Any) -> MongoStorage:
            config: dict[str, Any] = {"backend": "mongodb", "database": database_name}
            if client is None:
                config |= {"url": mongodb_url, "driver": self.driver}
            storage = create_storage({**config, **options}, client=client)
            assert isinstance(storage, MongoStorage)
            assert storage.driver.name == options.get("driver", self.driver)
            return storage

        return build

    @pytest.fixture
    async def storage(self, new_storage: Opener) -> AsyncIterator[MongoStorage]:
        async with new_storage() as opened:
            yield opened

    @pytest.fixture
    async def proxy(self, mongodb_url: str) -> AsyncIterator[FaultProxy]:
        async with FaultProxy(mongodb_url).running() as running:
            yield running

    @pytest.fixture
    def dead_port(self) -> int:
        """A port where nobody listens."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return listener.getsockname()[1]

    @pytest.fixture
    def silent_port(self) -> Iterator[int]:
        """A port that takes connections and never answers."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener.getsockname()[1]
