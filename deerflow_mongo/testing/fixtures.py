"""Fixtures for a host's own tests: one MongoDB server for a whole test run, an empty database for each test.

A host activates them in its top-level conftest.py:

    pytest_plugins = ["deerflow_mongo.testing.fixtures"]

Under pytest-xdist each worker has a server of its own. A server keeps the files of dropped databases open for
a while, so tests share one database, which is emptied before each of them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from typing import Any, cast

import pytest
import pytest_asyncio

from ..contract.factory import create_storage
from ..contract.protocols import Storage
from .contract import needs_new_database

URL_VARIABLE = "DEERFLOW_MONGO_TEST_URL"
"""Names a running server for the tests; without it they start an embedded one in a temporary folder."""

_Command = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


@pytest.fixture(scope="session")
def mongodb_server() -> Iterator[str]:
    """The URL of the test run's server, which is stopped and removed at the end, also of a killed run."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        yield url
        return
    from .. import start_embedded

    server = start_embedded()
    yield server.url
    server.release()


class _Databases:
    """The databases of one test run, emptied and dropped by a storage that runs in a thread of its own.

    The event loop of a test is not ours to use. The client opens no connection in the background, where some
    tests of the suite promise that none is made.
    """

    def __init__(self, url: str) -> None:
        self.reused = f"deerflow_test_{uuid.uuid4().hex[:12]}"
        self.new = f"{self.reused}_new"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._storage = create_storage(
            {"backend": "mongodb", "url": _without_monitoring(url), "database": self.reused}
        )

    def empty(self) -> None:
        self._run(self._empty())

    def drop(self, database: str) -> None:
        self._run(self._command({"dropDatabase": 1}, database=database))

    def close(self) -> None:
        for database in (self.reused, self.new):
            self.drop(database)
        self._run(self._storage.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def _command(self) -> _Command:
        return cast("Any", self._storage).driver.command

    async def _empty(self) -> None:
        listed = await self._command({"listCollections": 1, "nameOnly": True, "cursor": {"batchSize": 1_000}})
        for collection in listed["cursor"]["firstBatch"]:
            await self._command({"delete": collection["name"], "deletes": [{"q": {}, "limit": 0}]})

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _without_monitoring(url: str) -> str:
    server, _, options = url.partition("?")
    path = "" if "/" in server.partition("://")[2] else "/"
    return f"{server}{path}?{options}{'&' if options else ''}serverMonitoringMode=poll"


@pytest.fixture(scope="session")
def _mongodb_databases(mongodb_server: str) -> Iterator[_Databases]:  # pyright: ignore[reportUnusedFunction] - a fixture
    databases = _Databases(mongodb_server)
    yield databases
    databases.close()


@pytest.fixture
def mongodb_database(request: pytest.FixtureRequest, _mongodb_databases: _Databases) -> Iterator[str]:
    """The name of an empty database; of a new one for a test of the suite that needs it."""
    if needs_new_database(request):
        yield _mongodb_databases.new
        _mongodb_databases.drop(_mongodb_databases.new)
        return
    _mongodb_databases.empty()
    yield _mongodb_databases.reused


@pytest.fixture
def storage_config(mongodb_server: str, mongodb_database: str) -> Mapping[str, Any]:
    """The configuration of an empty database; a host may override it to add its own options."""
    return {"backend": "mongodb", "url": mongodb_server, "database": mongodb_database}


@pytest_asyncio.fixture
async def storage(storage_config: Mapping[str, Any]) -> AsyncGenerator[Storage]:
    """The storage, opened and closed as hosts do."""
    async with create_storage(storage_config) as opened:
        yield opened
