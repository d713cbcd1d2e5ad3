"""Setup: what it creates, races, versions, conflicts with existing indexes, and the report of a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, StorageConfigError
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.schema import COLLECTIONS

Raw = MongoClient[dict[str, Any]]


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    opened = MongoStorage(mongo_config({"url": mongodb_url, "database": database_name}))
    yield opened
    await opened.aclose()


async def test_setup_creates_every_collection_index_and_validator(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    before = await storage.inspect()
    assert not before.complete
    assert before.version is None
    await storage.setup()
    after = await storage.inspect()
    assert after.complete
    assert after.missing_collections == after.missing_indexes == after.other_indexes == []
    database = raw_client[database_name]
    for schema in COLLECTIONS:
        assert database[schema.name].options()["validator"] == {"$jsonSchema": schema.validator}
        created = set(database[schema.name].index_information()) - {"_id_"}
        assert created == {index.name for index in schema.indexes}


async def test_setup_again_changes_nothing(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    before = [sorted(raw_client[database_name][s.name].index_information()) for s in COLLECTIONS]
    await storage.setup()
    assert [sorted(raw_client[database_name][s.name].index_information()) for s in COLLECTIONS] == before


async def test_twenty_storages_can_run_setup_at_once(mongodb_url: str, database_name: str) -> None:
    config = mongo_config({"url": mongodb_url, "database": database_name})
    storages = [MongoStorage(config) for _ in range(20)]
    await asyncio.gather(*(storage.setup() for storage in storages))
    assert (await storages[0].inspect()).complete
    await asyncio.gather(*(storage.aclose() for storage in storages))


async def test_setup_creates_indexes_in_an_existing_collection(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name].create_collection("runs")
    await storage.setup()
    assert (await storage.inspect()).complete
    assert raw_client[database_name]["runs"].options()["validator"]


async def test_prefix_separates_two_storages_in_one_database(
    mongodb_url: str, raw_client: Raw, database_name: str
) -> None:
    for prefix in ("a_", "b-"):
        config = mongo_config({"url": mongodb_url, "database": database_name, "collection_prefix": prefix})
        async with MongoStorage(config) as storage:
            await storage.runs.create("r", "t", user_id=prefix)
            assert [run["user_id"] for run in await storage.runs.list_by_thread("t", user_id=None)] == [
                prefix
            ]
    names = {prefix + schema.name for prefix in ("a_", "b-") for schema in COLLECTIONS}
    assert set(raw_client[database_name].list_collection_names()) == names


async def test_setup_refuses_a_newer_database_and_changes_nothing(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name]["schema_versions"].insert_one({"_id": "deerflow-mongo", "version": 99})  # pyright: ignore[reportArgumentType]
    with pytest.raises(StorageConfigError, match=r"version 99.*upgrade deerflow-mongo"):
        await storage.setup()
    assert raw_client[database_name].list_collection_names() == ["schema_versions"]


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"thread_id": 1}, {"name": "thread_newest"}),
        ({"thread_id": 1, "created_at": -1, "order": -1}, {"name": "foreign"}),
        ({"thread_id": 1, "created_at": -1, "order": -1}, {"name": "thread_newest", "unique": True}),
    ],
)
async def test_conflicting_index_is_an_error_that_names_it(
    storage: MongoStorage,
    raw_client: Raw,
    database_name: str,
    keys: dict[str, int],
    options: dict[str, Any],
) -> None:
    raw_client[database_name]["runs"].create_index(list(keys.items()), **options)
    with pytest.raises(StorageConfigError, match="index 'thread_newest' of collection 'runs'"):
        await storage.setup()


async def test_inspect_reports_missing_different_and_renamed_indexes(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    runs = raw_client[database_name]["runs"]
    runs.drop_index("thread_newest")
    assert (await storage.inspect()).missing_indexes == ["runs.thread_newest"]
    runs.create_index([("thread_id", 1)], name="thread_newest")
    assert (await storage.inspect()).other_indexes == ["runs.thread_newest"]
    runs.drop_index("thread_newest")
    runs.create_index([("thread_id", 1), ("created_at", -1), ("order", -1)], name="foreign")
    report = await storage.inspect()
    assert report.renamed_indexes == ["runs.foreign"]
    assert not report.complete


async def test_existing_duplicate_votes_are_an_error_that_names_the_index(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    vote = {"thread_id": "t", "run_id": "r", "user_id": "u", "vote": True}
    raw_client[database_name]["feedback"].insert_many([dict(vote), dict(vote)])
    with pytest.raises(StorageConfigError, match=r"one_vote_per_user.*duplicates"):
        await storage.setup()
