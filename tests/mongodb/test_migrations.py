"""Setup: what it creates, races, versions, conflicts with existing indexes, and the report of a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

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
    assert after.missing_collections == after.missing_indexes == after.conflicting_indexes == []
    database = raw_client[database_name]
    for schema in COLLECTIONS:
        assert database[schema.name].options()["validator"] == schema.stored_validator
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


def _everything(database: Database[dict[str, Any]]) -> dict[str, Any]:
    """All documents, options and indexes of a database."""
    return {
        name: (
            list(database[name].find()),
            database[name].options(),
            {} if "viewOn" in database[name].options() else database[name].index_information(),
        )
        for name in database.list_collection_names()
    }


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            {"version": 99, "readable_from": 3},
            r"schema version 99.* from version 3 on .*upgrade deerflow-mongo",
        ),
        ({"version": 3, "readable_from": 3, "migrating_from": 2}, "upgrade deerflow-mongo"),
        ({"version": 99}, "not written by deerflow-mongo"),
        ({"version": "1.2", "readable_from": 1}, "not written by deerflow-mongo"),
        ({"version": True}, "not written by deerflow-mongo"),
        ({"version": None}, "not written by deerflow-mongo"),
        ({"version": 2, "readable_from": "2"}, "not written by deerflow-mongo"),
        ({"version": 0, "readable_from": 0}, "schema version 0, which .* cannot upgrade"),
        (
            {"version": 2, "readable_from": 2, "migrating_from": 0},
            "schema version 0, which .* cannot upgrade",
        ),
    ],
)
async def test_database_that_this_release_cannot_read_is_refused_and_not_changed(
    storage: MongoStorage, raw_client: Raw, database_name: str, document: dict[str, Any], text: str
) -> None:
    database = raw_client[database_name]
    database["schema_versions"].insert_one({"_id": "deerflow-mongo", **document})
    database["runs"].insert_one({"_id": "r", "schema_version": 99})
    before = _everything(database)
    with pytest.raises(StorageConfigError, match=text) as refused:
        await storage.setup()
    assert "\n" not in str(refused.value)
    assert _everything(database) == before


async def test_newer_database_that_this_release_can_read_is_used_and_not_changed(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """Its validators, indexes and version are the newer release's; rows of this release are stored in it."""
    database = raw_client[database_name]
    await storage.setup()
    database["schema_versions"].update_one({}, {"$set": {"version": 99}})
    database.command({"collMod": "runs", "validator": {"$jsonSchema": {"title": "newer"}}})
    database["runs"].drop_index("by_user")
    database["runs"].create_index([("user_id", 1), ("by_the_newer", 1)], name="by_user")
    before = _everything(database)
    await storage.setup()
    assert _everything(database) == before
    report = await storage.inspect()
    assert (report.version, report.readable_from, report.complete) == (99, 2, True)
    await storage.runs.create("r", "t", user_id="u")
    assert await storage.runs.get("r", user_id="u") is not None


async def test_document_of_a_newer_release_that_this_one_can_read_is_read(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    await storage.runs.create("r", "t", user_id="u")
    raw_client[database_name]["runs"].update_one({"_id": "r"}, {"$set": {"of_a_newer_release": 1}})
    assert await storage.runs.get("r", user_id="u") is not None


@pytest.mark.parametrize("collection", [schema.name for schema in COLLECTIONS])
async def test_collection_with_foreign_documents_is_refused_and_nothing_is_changed(
    storage: MongoStorage, raw_client: Raw, database_name: str, collection: str
) -> None:
    database = raw_client[database_name]
    database[collection].insert_one({"name": "of another application"})
    before = _everything(database)
    with pytest.raises(StorageConfigError, match=rf"'{collection}' is in use.*collection_prefix") as refused:
        await storage.setup()
    assert "\n" not in str(refused.value)
    assert _everything(database) == before


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"viewOn": "others"}, "a view"),
        ({"capped": True, "size": 4096}, "a capped collection"),
        ({"timeseries": {"timeField": "t"}}, "a time series"),
    ],
)
async def test_collection_of_another_kind_is_refused(
    storage: MongoStorage, raw_client: Raw, database_name: str, options: dict[str, Any], kind: str
) -> None:
    raw_client[database_name].create_collection("threads", **options)
    with pytest.raises(StorageConfigError, match=f"'threads' is {kind}; nothing was changed"):
        await storage.setup()


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"thread_id": 1}, {"name": "by_thread"}),
        ({"thread_id": 1, "order": -1, "order_tie": -1}, {"name": "by_thread", "unique": True}),
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
    with pytest.raises(StorageConfigError, match="index 'by_thread' of collection 'runs'"):
        await storage.setup()


async def test_operators_own_indexes_are_left_as_they_are(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """One with the keys and options of ours serves in its place, whatever its name is."""
    runs = raw_client[database_name]["runs"]
    runs.create_index([("status", 1)], name="own")
    runs.create_index([("thread_id", 1), ("order", -1), ("order_tie", -1)], name="own_by_thread")
    await storage.setup()
    await storage.setup()
    report = await storage.inspect()
    assert report.complete
    assert report.operator_indexes == ["runs.own"]
    assert "runs.by_thread" in report.indexes
    assert {"own", "own_by_thread"} <= set(runs.index_information())
    assert "by_thread" not in runs.index_information()


async def test_inspect_reports_missing_and_conflicting_indexes(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    runs = raw_client[database_name]["runs"]
    runs.drop_index("by_thread")
    assert (await storage.inspect()).missing_indexes == ["runs.by_thread"]
    runs.create_index([("thread_id", 1)], name="by_thread")
    report = await storage.inspect()
    assert (report.conflicting_indexes, report.missing_indexes) == (["runs.by_thread"], [])
    assert not report.complete


async def test_existing_duplicate_votes_are_an_error_that_names_the_index(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    vote = {"schema_version": 2, "thread_id": "t", "run_id": "r", "user_id": "u", "vote": True}
    raw_client[database_name]["feedback"].insert_many([dict(vote), dict(vote)])
    with pytest.raises(StorageConfigError, match=r"one_vote_per_user.*duplicates"):
        await storage.setup()
