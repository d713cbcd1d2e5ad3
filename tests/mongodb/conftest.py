"""Storages on the test's database, a proxy in front of the server, its distance, and an actor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from deerflow_mongo import (
    ActorContext,
    MongoStorage,
    bind_actor_context,
    create_storage,
    reset_actor_context,
)
from deerflow_mongo.mongodb.drivers.driver import Driver

from ..faults.proxy import FaultProxy


@pytest.fixture
def new_storage(mongodb_url: str, database_name: str) -> Callable[..., MongoStorage]:
    """Another storage on the test's database, as another process would have it; not open yet."""

    def build(client: Any = None, **options: Any) -> MongoStorage:
        config = {"backend": "mongodb", "url": mongodb_url, "database": database_name, **options}
        storage = create_storage(config, client=client)
        assert isinstance(storage, MongoStorage)
        return storage

    return build


@pytest.fixture
async def storage(new_storage: Callable[..., MongoStorage]) -> AsyncIterator[MongoStorage]:
    async with new_storage() as opened:
        yield opened


@pytest.fixture
async def proxy(mongodb_url: str) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(mongodb_url).running() as running:
        yield running


@pytest.fixture
def alice() -> Iterator[None]:
    """Alice is the bound actor."""
    token = bind_actor_context(ActorContext(user_id="alice"))
    yield
    reset_actor_context(token)


@pytest.fixture
def nearby(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the numbers of commands exact: on a busy machine the driver may measure a long way."""

    def round_trip_s(_: Driver) -> float:
        return 0.0

    monkeypatch.setattr(Driver, "_round_trip_s", round_trip_s)
