"""Opens each contender's checkpoint saver on a database, set up as its users set it up.

LangGraph's PostgreSQL saver has DeerFlow's pool of four connections, without DeerFlow's check of a connection
before each use, which would cost it a round trip.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias, cast

from pymongo import MongoClient

from deerflow_mongo import create_storage
from deerflow_mongo.contract.capabilities import Checkpointing

from ..contenders.known import CONTENDERS, OURS

POOL_SIZE: Final = 4

_LANGGRAPH: Final = ("langgraph.graph", "langgraph.checkpoint.base")
MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    OURS: _LANGGRAPH,
    "langgraph-sqlite": (*_LANGGRAPH, "langgraph.checkpoint.sqlite"),
    "langgraph-postgresql": (*_LANGGRAPH, "langgraph.checkpoint.postgres", "psycopg_pool"),
    "langgraph-mongodb": (*_LANGGRAPH, "langgraph.checkpoint.mongodb"),
    "langgraph-memory": _LANGGRAPH,
}
"""Contender -> the modules that measuring its saver needs, besides those of its server."""


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def sqlite_path(url: str) -> str:
    return url.partition(":///")[2]


def libpq_url(url: str) -> str:
    return url.replace("+asyncpg", "", 1)


@contextlib.asynccontextmanager
async def _ours(url: str, database: str) -> AsyncGenerator[Any]:
    config = CONTENDERS[OURS].config(url, database)
    async with create_storage(config) as storage:
        yield await cast("Checkpointing", storage).checkpointer()


@contextlib.asynccontextmanager
async def _sqlite(url: str, _database: str) -> AsyncGenerator[Any]:
    saver_class: Any = importlib.import_module("langgraph.checkpoint.sqlite.aio").AsyncSqliteSaver
    async with saver_class.from_conn_string(sqlite_path(url)) as saver:
        await saver.setup()
        yield saver


@contextlib.asynccontextmanager
async def _postgresql(url: str, _database: str) -> AsyncGenerator[Any]:
    saver_class: Any = importlib.import_module("langgraph.checkpoint.postgres.aio").AsyncPostgresSaver
    pool_class: Any = importlib.import_module("psycopg_pool").AsyncConnectionPool
    rows: Any = importlib.import_module("psycopg.rows")
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": rows.dict_row}
    async with pool_class(libpq_url(url), kwargs=settings, min_size=POOL_SIZE, max_size=POOL_SIZE) as pool:
        saver = saver_class(conn=pool)
        await saver.setup()
        yield saver


@contextlib.asynccontextmanager
async def _mongodb(url: str, database: str) -> AsyncGenerator[Any]:
    saver_class: Any = importlib.import_module("langgraph.checkpoint.mongodb").MongoDBSaver
    with MongoClient[Any](url) as client:
        yield saver_class(client, database)


@contextlib.asynccontextmanager
async def _memory(_url: str, _database: str) -> AsyncGenerator[Any]:
    yield importlib.import_module("langgraph.checkpoint.memory").InMemorySaver()


_Opener: TypeAlias = Callable[[str, str], AbstractAsyncContextManager[Any]]

_OPENERS: Mapping[str, _Opener] = {
    OURS: _ours,
    "langgraph-sqlite": _sqlite,
    "langgraph-postgresql": _postgresql,
    "langgraph-mongodb": _mongodb,
    "langgraph-memory": _memory,
}


def opened(name: str, url: str, database: str) -> AbstractAsyncContextManager[Any]:
    """The contender's saver on this database; its client is closed afterwards."""
    return _OPENERS[name](url, database)
