"""A storage for the demo's tests, on the tests' server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from deerflow_mongo import MongoStorage


@pytest_asyncio.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as opened:
        yield opened
