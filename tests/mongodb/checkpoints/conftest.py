"""The saver under test on both drivers, in one database per module; each test has threads of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage

pytest.importorskip("langgraph.checkpoint.base")

DRIVERS = ("pymongo", "motor")


@pytest.fixture(scope="module")
def database_name(raw_client: MongoClient[dict[str, Any]]) -> Iterator[str]:
    """Replaces the database per test: creating the collections takes longer than most tests here."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    raw_client.drop_database(name)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def storage(new_storage: Callable[..., MongoStorage], driver: str) -> AsyncIterator[MongoStorage]:
    async with new_storage(driver=driver) as opened:
        yield opened


@pytest.fixture
async def saver(storage: MongoStorage) -> Any:
    return await storage.checkpointer()


@pytest.fixture
def thread_id() -> str:
    return uuid.uuid4().hex
