"""Collections of our names that another program uses: setup and inspect name them, and nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from mongomock_motor import AsyncMongoMockClient  # pyright: ignore[reportMissingTypeStubs]
from pymongo import MongoClient
from pymongo.database import Database

from deerflow_mongo import MongoStorage, StorageConfigError
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.database_state import LIBRARY_COLLECTIONS
from deerflow_mongo.mongodb.schema import COLLECTIONS

from . import version_1

Document = dict[str, Any]
Raw = MongoClient[Document]

OURS = [schema.name for schema in COLLECTIONS]


@pytest.fixture
def database(raw_client: Raw, database_name: str) -> Database[Document]:
    return raw_client[database_name]


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    opened = MongoStorage(mongo_config({"url": mongodb_url, "database": database_name}))
    yield opened
    await opened.aclose()


def everything(database: Database[Document]) -> Document:
    """All collections of a database with their documents, options and indexes."""
    found: Document = {}
    for item in database.list_collections():
        name = item["name"]
        indexes: Any = {} if item["type"] == "view" else database[name].index_information()
        found[name] = (list(database[name].find()), item["options"], indexes)
    return found


async def assert_refused(storage: MongoStorage, database: Database[Document], *words: str) -> None:
    before = everything(database)
    with pytest.raises(StorageConfigError) as refused:
        await storage.setup()
    sentence = str(refused.value)
    assert all(word in sentence for word in (*words, "nothing was changed. Set `collection_prefix`")), (
        sentence
    )
    assert "\n" not in sentence
    assert "duplicates" not in sentence
    report = await storage.inspect()
    assert not report.complete
    assert all(any(word in found for found in report.foreign) for word in words), report.foreign
    assert everything(database) == before


# -- documents -------------------------------------------------------------------------------------

FOREIGN_DOCUMENTS: dict[str, Document] = {
    "any": {"title": "of another application"},
    "with a schema version of its own": {"_id": "r", "schema_version": 2, "km": 12.5},
    "with an old schema version of its own": {"_id": "r", "schema_version": 1, "thread_id": "t"},
    "almost ours": {
        "_id": "r",
        "schema_version": 2,
        "thread_id": "t",
        "user_id": "u",
        "seq": 1,
        "email": "e",
    },
}


@pytest.mark.parametrize("document", FOREIGN_DOCUMENTS.values(), ids=FOREIGN_DOCUMENTS)
@pytest.mark.parametrize("name", OURS)
async def test_collection_with_foreign_documents_is_refused_and_nothing_is_changed(
    storage: MongoStorage, database: Database[Document], name: str, document: Document
) -> None:
    database[name].insert_one(dict(document))
    await assert_refused(storage, database, f"collection '{name}' is in use")


async def test_collections_of_langgraphs_library_are_reported_and_not_changed(
    storage: MongoStorage, database: Database[Document]
) -> None:
    for name in LIBRARY_COLLECTIONS:
        database[name].insert_one({"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "c"})
        database[name].create_index([("thread_id", 1), ("checkpoint_id", -1)], unique=True)
    before = everything(database)
    await storage.setup()
    report = await storage.inspect()
    assert report.complete
    assert report.library_collections == list(LIBRARY_COLLECTIONS)
    assert {name: found for name, found in everything(database).items() if name in before} == before


async def test_other_collections_with_the_librarys_names_are_not_reported_as_its(
    storage: MongoStorage, database: Database[Document]
) -> None:
    database["checkpoints"].insert_one({"flight": "of another application"})
    database.create_collection("checkpoint_writes", viewOn="others", pipeline=[])
    await storage.setup()
    report = await storage.inspect()
    assert report.complete
    assert report.library_collections == []


async def test_foreign_document_beside_ours_is_found(
    storage: MongoStorage, database: Database[Document]
) -> None:
    """The stores were used without a setup, in a collection that another application uses too."""
    await storage.runs.create("r", "t", user_id="u")
    database["runs"].insert_one({"km": 12.5})
    await assert_refused(storage, database, "collection 'runs' is in use")


async def test_several_foreign_collections_are_named_in_one_sentence(
    storage: MongoStorage, database: Database[Document]
) -> None:
    for name in ("runs", "threads", "users"):
        database[name].insert_one({"title": "t"})
    await assert_refused(storage, database, "'runs'", "'threads'", "'users'")


async def test_documents_of_stores_that_were_used_without_setup_are_ours(
    storage: MongoStorage, database: Database[Document]
) -> None:
    event: Any = {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "message"}
    await storage.runs.create("r", "t", user_id="u", metadata={"a.b": 2**70})
    await storage.threads.ensure_thread(thread_id="t", user_id="u")
    await storage.feedback.upsert(run_id="r", thread_id="t", rating=1, user_id="u")
    await storage.users.create("u", email="u@example.org")
    await storage.run_events.put(**event)
    await storage.run_events.put(**event)
    await storage.run_events.delete_by_run("t", "r")
    await storage.setup()
    assert (await storage.inspect()).complete


async def test_prefix_is_the_way_out(
    mongodb_url: str, database_name: str, database: Database[Document]
) -> None:
    for name in OURS:
        database[name].insert_one({"title": "of another application"})
    before = everything(database)
    options = {"url": mongodb_url, "database": database_name, "collection_prefix": "df_"}
    async with MongoStorage(mongo_config(options)) as storage:
        await storage.runs.create("r", "t", user_id="u")
    assert {name: found for name, found in everything(database).items() if name in OURS} == before


async def test_collection_of_another_program_in_the_place_of_one_of_ours_is_refused(
    storage: MongoStorage, database: Database[Document]
) -> None:
    await storage.setup()
    database["users"].drop()
    database["users"].insert_one({"name": "of another application", "schema_version": 2})
    await assert_refused(storage, database, "collection 'users' is in use")


async def test_broken_document_of_ours_does_not_make_its_collection_foreign(
    storage: MongoStorage, database: Database[Document]
) -> None:
    """Also where an operator has removed the validator."""
    await storage.setup()
    for run_id in ("r", "s"):
        await storage.runs.create(run_id, "t", user_id="u")
    database.command({"collMod": "runs", "validator": {}})
    database["runs"].update_one({"_id": "r"}, {"$unset": {"schema_version": 1, "tokens": 1}})
    await storage.setup()
    assert (await storage.inspect()).complete


# -- options, validators and indexes ---------------------------------------------------------------

KINDS: dict[str, Document] = {
    "is a view": {"viewOn": "others", "pipeline": []},
    "is a view, ": {"viewOn": "others", "pipeline": [{"$match": {"$expr": {"$divide": [1, 0]}}}]},
    "is a capped collection": {"capped": True, "size": 4096},
    "is a time series": {"timeseries": {"timeField": "t"}},
    "is a clustered collection": {"clusteredIndex": {"key": {"_id": 1}, "unique": True}},
    "has a collation": {"collation": {"locale": "en", "strength": 2}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["runs", "schema_versions", "checkpoint_data"])
async def test_collection_of_another_kind_is_refused(
    storage: MongoStorage, database: Database[Document], name: str, kind: str
) -> None:
    database.create_collection(name, **KINDS[kind])
    with pytest.raises(StorageConfigError, match=f"'{name}' {kind.rstrip(', ')}.*nothing was changed"):
        await storage.setup()
    assert (await storage.inspect()).foreign
    created = {
        name,
        *(("system.buckets." + name, "system.views") if "view" in kind or "time" in kind else ()),
    }
    assert set(database.list_collection_names()) <= created


async def test_view_of_a_set_up_database_is_refused(
    storage: MongoStorage, database: Database[Document]
) -> None:
    await storage.setup()
    database["users"].drop()
    database.create_collection("users", viewOn="runs")
    with pytest.raises(StorageConfigError, match="collection 'users' is a view; nothing was changed"):
        await storage.setup()


@pytest.mark.parametrize("name", OURS)
async def test_validator_of_another_program_is_not_replaced(
    storage: MongoStorage, database: Database[Document], name: str
) -> None:
    database.create_collection(name, validator={"$jsonSchema": {"title": "of theirs"}})
    await assert_refused(storage, database, f"collection '{name}' has a validator")


FOREIGN_INDEXES: dict[str, tuple[str, Any, Document]] = {
    "unique": ("runs", [("name", 1)], {"unique": True, "name": "by_name"}),
    "TTL": ("threads", [("created_at", 1)], {"expireAfterSeconds": 60, "name": "old"}),
    "TTL, versions": ("schema_versions", [("updated_at", 1)], {"expireAfterSeconds": 60, "name": "old"}),
    "2dsphere": ("runs", [("metadata", "2dsphere")], {"name": "places"}),
    "text": ("run_events", [("content", "text")], {"name": "words"}),
    "in the place": ("runs", [("thread_id", 1)], {"name": "by_thread"}),
    "in the place, unique": ("users", [("email", 1)], {"name": "e", "unique": True, "expireAfterSeconds": 9}),
    "TTL, checkpoints": ("checkpoint_data", [("created_at", 1)], {"expireAfterSeconds": 60, "name": "old"}),
    "unique, checkpoints": ("checkpoint_data", [("name", 1)], {"unique": True, "name": "by_name"}),
}


@pytest.mark.parametrize("kind", FOREIGN_INDEXES)
async def test_index_that_would_refuse_or_remove_our_documents_is_refused(
    storage: MongoStorage, database: Database[Document], kind: str
) -> None:
    """On a collection that is empty, too."""
    name, keys, options = FOREIGN_INDEXES[kind]
    database[name].create_index(keys, **options)
    await assert_refused(storage, database, f"collection '{name}' has ", kind.partition(",")[0])


async def test_empty_collections_with_harmless_options_and_indexes_are_used(
    storage: MongoStorage, database: Database[Document]
) -> None:
    """As an operator prepares them for shards or change streams."""
    database.create_collection("runs", changeStreamPreAndPostImages={"enabled": True})
    database["runs"].create_index([("thread_id", "hashed")])
    database["runs"].create_index([("thread_id", 1), ("order", -1), ("order_tie", -1)], name="by_thread")
    database["users"].create_index([("email", 1)], unique=True, name="theirs")
    await storage.setup()
    assert (await storage.inspect()).complete


async def test_operators_indexes_in_a_collection_of_ours_are_allowed_and_reported(
    storage: MongoStorage, database: Database[Document]
) -> None:
    await storage.setup()
    database["runs"].create_index("own", unique=True, sparse=True, name="own")
    database["feedback"].create_index("own", expireAfterSeconds=60, name="own")
    database["feedback"].create_index("other", name="other")
    await storage.setup()
    report = await storage.inspect()
    assert report.complete
    assert report.restricting_indexes == ["runs.own (unique)", "feedback.own (TTL)"]
    assert sorted(report.operator_indexes) == ["feedback.other", "feedback.own", "runs.own"]


# -- the version document --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"_id": 1, "version": "0001_initial"},
        {"version": 2, "readable_from": 2, "updated_at": None},
        {"_id": "deerflow-mongo", "version": "1.2"},
        {"_id": "deerflow-mongo", "version": 2, "readable_from": 2, "migrating_from": "1"},
        {"_id": "deerflow-mongo"},
    ],
)
async def test_schema_versions_of_another_program_is_refused(
    storage: MongoStorage, database: Database[Document], document: Document
) -> None:
    database["schema_versions"].insert_one(document)
    await assert_refused(storage, database, "collection 'schema_versions' ")


async def test_document_of_another_program_beside_our_version_document_is_refused(
    storage: MongoStorage, database: Database[Document]
) -> None:
    version_1.load(database)
    database.command({"collMod": "schema_versions", "validator": {}})
    database["schema_versions"].insert_one({"_id": "of another program"})
    await assert_refused(storage, database, "collection 'schema_versions' is in use")


# -- races and other drivers -----------------------------------------------------------------------


async def test_collection_that_appears_during_the_setup_is_not_taken(
    storage: MongoStorage, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = storage.driver.create_collection

    async def create_after_another(name: str, validator: Document) -> None:
        if name == "users":
            database["users"].insert_one({"title": "of another application"})
        await create(name, validator)

    monkeypatch.setattr(storage.driver, "create_collection", create_after_another)
    with pytest.raises(StorageConfigError, match="collection 'users' is in use"):
        await storage.setup()
    assert not database["users"].options()
    assert set(database["users"].index_information()) == {"_id_"}


def _on_motor(mongodb_url: str, database_name: str) -> MongoStorage:
    return MongoStorage(mongo_config({"url": mongodb_url, "database": database_name, "driver": "motor"}))


async def test_foreign_documents_are_refused_on_motor(
    mongodb_url: str, database_name: str, database: Database[Document]
) -> None:
    database["threads"].insert_one({"title": "forum thread"})
    storage = _on_motor(mongodb_url, database_name)
    await assert_refused(storage, database, "collection 'threads' is in use")
    await storage.aclose()


@pytest.mark.parametrize("name", OURS)
async def test_foreign_documents_are_refused_on_the_mock(name: str) -> None:
    client: Any = cast("Any", AsyncMongoMockClient)()
    await client["d"][name].insert_one({"schema_version": 2, "title": "of another application"})
    storage = MongoStorage(mongo_config({"driver": "mongomock", "database": "d"}), client=client)
    with pytest.raises(StorageConfigError, match=f"collection '{name}' is in use.*nothing was changed"):
        await storage.setup()
    assert await client["d"].list_collection_names() == [name]
    await client["d"][name].delete_many({})
    await asyncio.gather(storage.setup(), storage.setup())
    await storage.runs.create("r", "t", user_id="u")
    await storage.setup()
    assert not (await storage.inspect()).foreign
    await storage.aclose()
