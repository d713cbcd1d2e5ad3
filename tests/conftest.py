"""A real server for the tests: one private `mongod` for the whole run, which dies with it.

Under pytest-xdist each worker is a run of its own, with a server of its own.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Generator, Iterator
from typing import Any, cast

import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer, start_embedded


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
def database_name(raw_client: pymongo.MongoClient[dict[str, Any]]) -> Iterator[str]:
    """An empty database, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    raw_client.drop_database(name)
