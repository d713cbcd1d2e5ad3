"""Setup: what it creates, races, versions, conflicts with existing indexes, and the report of a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from deerflow_mongo import MongoStorage, StorageAccessError, StorageConfigError, StorageUnavailableError
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.schema import COLLECTIONS, RETENTIONS, Index

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


# The finds are of the version document, and of an account without a key of its email.
_READS = ["listCollections", "find", "find", *["listIndexes"] * len(COLLECTIONS)]

RETENTION_OPTIONS: list[dict[str, Any]] = [
    {},
    {retention.option: 30 for retention in RETENTIONS},
    {retention.option: None for retention in RETENTIONS},
]


@pytest.mark.parametrize("options", RETENTION_OPTIONS)
@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_setup_of_a_complete_database_is_one_round_of_reads(
    mongodb_url: str, database_name: str, driver: str, options: dict[str, Any]
) -> None:
    """All of them are sent before the first answer."""
    config = {"url": mongodb_url, "database": database_name, "driver": driver, **options}
    async with MongoStorage(mongo_config(config)) as storage:
        sent = _hold_commands(storage, expected=3 + len(COLLECTIONS))
        await asyncio.wait_for(storage.setup(), 20)
    assert sorted(sent) == sorted(_READS)


async def test_first_setup_is_four_rounds(storage: MongoStorage) -> None:
    """Reads; collections; for each of them all indexes in one command; the version document."""
    sent = _hold_commands(storage, expected=0)
    await storage.setup()
    creates = ["create"] * len(COLLECTIONS)
    indexes = ["createIndexes"] * sum(bool(schema.indexes) for schema in COLLECTIONS)
    assert sorted(sent) == sorted([*_READS, *creates, *indexes, "findAndModify"])
    assert sent[: len(_READS)] == _READS
    assert sent[-1] == "findAndModify"


async def test_setup_only_adds_what_is_missing(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    database = raw_client[database_name]
    database["runs"].drop_index("by_time")
    database["runs"].drop_index("active")
    database["users"].drop()
    database.command({"collMod": "threads", "validator": {}})
    sent = _hold_commands(storage, expected=0)
    await storage.setup()
    reads = {"listCollections", "find", "listIndexes"}
    changes = sorted(name for name in sent if name not in reads)
    assert changes == ["collMod", "create", "createIndexes", "createIndexes"]
    assert (await storage.inspect()).complete


async def test_refused_read_is_reported_before_the_connections_that_it_closed(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(name: str) -> Any:
        if name == "runs":
            raise StorageAccessError("refused")
        raise StorageUnavailableError("connection pool paused")

    monkeypatch.setattr(storage.driver, "list_indexes", refused)
    with pytest.raises(StorageAccessError, match="refused"):
        await storage.setup()


def _hold_commands(storage: MongoStorage, *, expected: int) -> list[str]:
    """The names of the commands that the storage sends from now on, none before so many are started."""
    sent: list[str] = []
    all_started = asyncio.Event()
    driver: Any = storage.driver
    command, collection = driver.command, driver.collection

    async def started(name: str) -> None:
        sent.append(name)
        if len(sent) >= expected:
            all_started.set()
        await all_started.wait()

    async def held_command(document: dict[str, Any], **options: Any) -> Any:
        await started(next(iter(document)))
        return await command(document, **options)

    def held_collection(*args: Any) -> Any:
        found = collection(*args)
        run = found.run

        async def held_run(operation: str, *args: Any) -> Any:
            await started(operation)
            return await run(operation, *args)

        found.run = held_run
        return found

    driver.command, driver.collection = held_command, held_collection
    return sent


async def test_existing_duplicates_of_every_unique_index_are_found_before_anything_is_changed(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    database = raw_client[database_name]
    for schema in COLLECTIONS:
        for index in schema.indexes:
            if not index.unique:
                continue
            database[schema.name].drop_index(index.name)
            documents = [_colliding(index, number) for number in range(2)]
            inserted = database.command(
                {"insert": schema.name, "documents": documents, "bypassDocumentValidation": True}
            )
            assert inserted["n"] == 2
            before = _everything(database)
            with pytest.raises(StorageConfigError, match=rf"'{index.name}' of .* contains duplicates"):
                await storage.setup()
            assert _everything(database) == before
            database[schema.name].delete_many({})
            await storage.setup()


def _colliding(index: Index, number: int) -> dict[str, Any]:
    """A document that collides with those of other numbers in this index, and in no other."""
    keys = {key for schema in COLLECTIONS for other in schema.indexes for key, _ in other.keys}
    partial = {
        key: "same" if isinstance(value, dict) else value for key, value in (index.partial or {}).items()
    }
    return dict.fromkeys(keys, number) | {key: "same" for key, _ in index.keys} | partial | {"_id": number}


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
    await storage.setup()
    database = raw_client[database_name]
    database["runs"].drop_index("by_thread")
    database["threads"].drop_index("by_time")
    database["runs"].create_index(list(keys.items()), **options)
    before = _everything(database)
    with pytest.raises(StorageConfigError, match="index 'by_thread' of collection 'runs'"):
        await storage.setup()
    assert _everything(database) == before


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
    await storage.setup()
    database = raw_client[database_name]
    database["feedback"].drop_index("one_vote_per_user")
    database["runs"].drop_index("by_time")
    await storage.feedback.upsert(thread_id="t", run_id="r", rating=1, user_id="u")
    [stored] = database["feedback"].find()
    database["feedback"].insert_one({**stored, "_id": "second"})
    before = _everything(database)
    with pytest.raises(StorageConfigError, match=r"one_vote_per_user.*duplicates"):
        await storage.setup()
    assert _everything(database) == before
