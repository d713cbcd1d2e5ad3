"""Without telemetry nothing of it is loaded or attached; with it, a storage is what it was."""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import pytest

from deerflow_mongo import (
    Accounts,
    Checkpointing,
    Following,
    MongoConfig,
    MongoStorage,
    RunOwnership,
    StorageConfigError,
)
from deerflow_mongo.contract.capabilities import missing_capabilities
from deerflow_mongo.mongodb.observation import unobserved
from deerflow_mongo.mongodb.stores.runs import MongoRunStore

from ...child_processes import run_child
from .conftest import OpenObserved

PLAIN = "{'backend': 'mongodb', 'driver': 'mongomock'}"


def test_storage_without_telemetry_loads_nothing_of_it() -> None:
    code = f"""
import asyncio, sys
UNWANTED = ("deerflow_mongo.mongodb.telemetry", "opentelemetry", "prometheus")
from deerflow_mongo import create_storage

async def main():
    async with create_storage({PLAIN}) as storage:
        await storage.runs.create("run-1", "thread-1", user_id="alice")

asyncio.run(main())
loaded = [name for name in sys.modules if name.startswith(UNWANTED)]
assert loaded == [], loaded
"""
    done = run_child([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


async def test_storage_without_telemetry_has_no_listener_and_its_own_classes(
    mongodb_url: str, emptied_database: str
) -> None:
    async with MongoStorage.open({"url": mongodb_url, "database": emptied_database}) as storage:
        database = await storage.driver.opened()
        assert database.client.options.event_listeners == []
        assert storage.driver.observer is None
        assert type(storage) is MongoStorage
        assert type(storage.runs) is MongoRunStore
        assert storage.run_events._writer.observe is unobserved  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("options", "listeners"),
    [({"slow_ms": 100}, 1), ({"metrics": True}, 2), ({"telemetry": "otel"}, 3)],
    ids=str,
)
async def test_each_option_registers_only_what_it_needs(
    mongodb_url: str, emptied_database: str, options: dict[str, object], listeners: int
) -> None:
    config = {"url": mongodb_url, "database": emptied_database, **options}
    async with MongoStorage.open(config) as storage:
        database = await storage.driver.opened()
        assert len(database.client.options.event_listeners) == listeners


def test_observed_storage_has_the_same_capabilities_names_and_signatures(open_observed: OpenObserved) -> None:
    storage = open_observed()
    assert isinstance(storage, MongoStorage)
    assert missing_capabilities(storage, Accounts, Checkpointing, Following, RunOwnership) == []
    assert isinstance(storage.runs, MongoRunStore)
    assert type(storage.runs).__name__ == "MongoRunStore"
    assert repr(storage).startswith("MongoStorage(")
    for name in ("get", "create", "update_status"):
        expected, found = getattr(MongoRunStore, name), getattr(storage.runs, name)
        assert inspect.iscoroutinefunction(found)
        assert found.__doc__ == expected.__doc__
        assert list(inspect.signature(found).parameters) == list(inspect.signature(expected).parameters)[1:]
    assert inspect.isasyncgenfunction(storage.run_events.follow)


async def test_copy_of_an_observed_saver_uses_its_own_serializer(open_observed: OpenObserved) -> None:
    async with open_observed() as storage:
        saver = await storage.checkpointer()
        clone = copy.copy(saver)
        clone.serde = copy.copy(saver.serde)
        assert clone.aput.__self__ is clone  # pyright: ignore[reportFunctionMemberAccess]
        assert clone.serde is not saver.serde


def test_options_are_off_by_default_and_checked() -> None:
    config = MongoConfig(url="mongodb://h")
    assert (config.telemetry, config.metrics, config.slow_ms, config.is_observed) == (
        None,
        False,
        None,
        False,
    )
    wrong: dict[str, Any]
    for wrong in ({"telemetry": "jaeger"}, {"metrics": "perhaps"}, {"slow_ms": 0}, {"slow_ms": True}):
        with pytest.raises(StorageConfigError, match=next(iter(wrong))):
            MongoConfig(url="mongodb://h", **wrong)
