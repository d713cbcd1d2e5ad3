"""A real server for the tests: one private `mongod` for the whole run, which dies with it.

Under pytest-xdist each worker is a run of its own, with a server of its own.
"""

from __future__ import annotations

import gc
import signal
import uuid
from collections.abc import Generator, Iterator
from typing import Any, cast

import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer, start_embedded


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A report may quote a lone surrogate, which pytest-xdist cannot send."""
    return _without_surrogates((yield))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {_without_surrogates(key): _without_surrogates(item) for key, item in items}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in cast("list[Any]", value)]
    if isinstance(value, tuple):
        return tuple(_without_surrogates(item) for item in cast("tuple[Any, ...]", value))
    return value


@pytest.fixture(scope="session", autouse=True)
def children_react_to_interrupts() -> Iterator[None]:
    """Also where the tests run in the background of a script, which ignores SIGINT."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A server in a temporary folder; its supervisor stops it, also when the tests are killed."""
    started = start_embedded()
    with pymongo.MongoClient[dict[str, Any]](started.url) as client:
        # In effect after the first minute.
        client.admin.command({"setParameter": 1, "ttlMonitorSleepSecs": 1})
    yield started
    started.release()


@pytest.fixture(scope="session")
def mongodb_url(server: EmbeddedServer) -> str:
    return server.url


@pytest.fixture(scope="session")
def raw_client(mongodb_url: str) -> Generator[pymongo.MongoClient[dict[str, Any]]]:
    """A plain client beside the storage under test, to see what is really stored."""
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        yield client


@pytest.fixture
def new_database(raw_client: pymongo.MongoClient[dict[str, Any]]) -> Iterator[str]:
    """A database of the test's own, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    raw_client.drop_database(name)


@pytest.fixture(scope="module")
def reused_database(raw_client: pymongo.MongoClient[dict[str, Any]]) -> Iterator[str]:
    """The module's database, which stays set up from one test to the next."""
    name = f"reused_{uuid.uuid4().hex[:12]}"
    yield name
    raw_client.drop_database(name)


@pytest.fixture
def emptied_database(raw_client: pymongo.MongoClient[dict[str, Any]], reused_database: str) -> str:
    """The module's database without a document: ten times faster than creating every index for each test."""
    database = raw_client[reused_database]
    for collection in database.list_collection_names():
        database[collection].delete_many({})
    return reused_database


@pytest.fixture
def database_name(request: pytest.FixtureRequest) -> str:
    """An empty database: a new one, or the emptied one for tests that are marked to use that.

    A test of a marked module that changes collections or indexes, or may still write after its end, is
    marked to use `new_database`.
    """
    used = set(request.fixturenames)
    reuses = "emptied_database" in used and "new_database" not in used
    return request.getfixturevalue("emptied_database" if reuses else "new_database")
