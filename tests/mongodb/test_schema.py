"""The schema: what setup makes, what validators refuse, versions and conflicts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import WriteError

from deerflow_mongo import MongoStorage, StorageConfigError, StorageError
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.queries import user_by_email, user_by_oauth, vote_of
from deerflow_mongo.mongodb.schema import COLLECTIONS, EMAIL_INDEX, OAUTH_INDEX, VOTE_INDEX

Raw = MongoClient[dict[str, Any]]


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    opened = MongoStorage(mongo_config({"url": mongodb_url, "database": database_name}))
    yield opened
    await opened.aclose()


async def test_setup_makes_every_collection_index_and_validator(
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
        made = set(database[schema.name].index_information()) - {"_id_"}
        assert made == {index.name for index in schema.indexes}


async def test_setup_again_changes_nothing(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    before = [sorted(raw_client[database_name][s.name].index_information()) for s in COLLECTIONS]
    await storage.setup()
    assert [sorted(raw_client[database_name][s.name].index_information()) for s in COLLECTIONS] == before


async def test_setup_raced_by_twenty_storages_is_harmless(mongodb_url: str, database_name: str) -> None:
    config = mongo_config({"url": mongodb_url, "database": database_name})
    storages = [MongoStorage(config) for _ in range(20)]
    await asyncio.gather(*(storage.setup() for storage in storages))
    assert (await storages[0].inspect()).complete
    await asyncio.gather(*(storage.aclose() for storage in storages))


async def test_setup_makes_indexes_in_a_collection_that_exists_already(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name].create_collection("runs")
    await storage.setup()
    assert (await storage.inspect()).complete
    assert raw_client[database_name]["runs"].options()["validator"]


async def test_prefix_keeps_two_storages_of_one_database_apart(
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


async def test_newer_schema_version_is_refused_before_anything_changes(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    raw_client[database_name]["schema_versions"].insert_one({"_id": "deerflow-mongo", "version": 99})  # pyright: ignore[reportArgumentType]
    with pytest.raises(StorageConfigError, match=r"version 99.*upgrade deerflow-mongo"):
        await storage.setup()
    assert raw_client[database_name].list_collection_names() == ["schema_versions"]


async def test_document_of_a_newer_version_is_refused(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    await storage.runs.create("r", "t", user_id="a")
    raw_client[database_name]["runs"].update_one({"_id": "r"}, {"$set": {"schema_version": 99}})
    with pytest.raises(StorageError, match=r"'r' has schema version 99.*upgrade"):
        await storage.runs.get("r", user_id="a")


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({"thread_id": 1}, {"name": "thread_newest"}),
        ({"thread_id": 1, "created_at": -1, "order": -1}, {"name": "somebody_elses"}),
        ({"thread_id": 1, "created_at": -1, "order": -1}, {"name": "thread_newest", "unique": True}),
    ],
)
async def test_index_with_other_options_is_an_error_that_names_it(
    storage: MongoStorage,
    raw_client: Raw,
    database_name: str,
    keys: dict[str, int],
    options: dict[str, Any],
) -> None:
    raw_client[database_name]["runs"].create_index(list(keys.items()), **options)
    with pytest.raises(StorageConfigError, match="index 'thread_newest' of collection 'runs'"):
        await storage.setup()


async def test_inspect_tells_another_index_of_the_same_name(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    runs = raw_client[database_name]["runs"]
    runs.drop_index("thread_newest")
    assert (await storage.inspect()).missing_indexes == ["runs.thread_newest"]
    runs.create_index([("thread_id", 1)], name="thread_newest")
    assert (await storage.inspect()).other_indexes == ["runs.thread_newest"]
    runs.drop_index("thread_newest")
    runs.create_index([("thread_id", 1), ("created_at", -1), ("order", -1)], name="somebody_elses")
    report = await storage.inspect()
    assert report.renamed_indexes == ["runs.somebody_elses"]
    assert not report.complete


async def test_duplicate_votes_already_there_are_an_error_that_says_so(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    vote = {"thread_id": "t", "run_id": "r", "user_id": "u", "vote": True}
    raw_client[database_name]["feedback"].insert_many([dict(vote), dict(vote)])
    with pytest.raises(StorageConfigError, match=r"one_vote_per_user.*duplicates"):
        await storage.setup()


def _damaged(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Documents that no codec of ours writes: a field missing, one too many, or one of another type."""
    odd: list[tuple[str, dict[str, Any]]] = [("too many", {**document, "surplus": 1})]
    for name in document:
        rest = {key: item for key, item in document.items() if key != name}
        if name not in ("_id", "vote"):
            odd.append((f"without {name}", rest))
        odd.append((f"odd {name}", {**rest, name: False if name == "vote" else b"bytes"}))
        if name == "rating":
            odd += [(f"rating {wrong}", {**rest, name: wrong}) for wrong in (0, 5, 1.5, "1", True)]
        if name.endswith("_at"):
            odd.append((f"other time in {name}", {**rest, name: "2026-01-01T00:00:00Z"}))
    return odd


@pytest.mark.parametrize("collection", ["runs", "feedback", "threads", "users", "schema_versions"])
async def test_validator_refuses_what_no_codec_writes(
    storage: MongoStorage, raw_client: Raw, database_name: str, collection: str
) -> None:
    await storage.setup()
    await storage.runs.create("r", "t", user_id="u")
    await storage.feedback.upsert(run_id="r", thread_id="t", rating=1, user_id="u")
    await storage.threads.ensure_thread(thread_id="t", user_id="u")
    await storage.users.create("u", email="u@example.org", oauth_provider="github", oauth_id="1")
    handle = raw_client[database_name][collection]
    [document] = handle.find()
    handle.delete_many({})
    handle.insert_one(dict(document))
    handle.delete_many({})
    for case, odd in _damaged(document):
        with pytest.raises(WriteError) as refused:
            handle.insert_one(odd)
        assert refused.value.code == 121, case


async def test_validator_refuses_negative_and_partial_token_figures(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    await storage.setup()
    await storage.runs.create("r", "t", user_id="u")
    runs = raw_client[database_name]["runs"]
    for change in (
        {"$set": {"tokens.total": -1}},
        {"$unset": {"tokens.by_caller.subagent": 1}},
        {"$set": {"tokens.by_model.m": {"input": 1}}},
        {"$set": {"error": {"_json": 1}}},
    ):
        with pytest.raises(WriteError):
            runs.update_one({"_id": "r"}, change)


def test_the_accounts_reads_name_every_key_of_their_unique_indexes() -> None:
    for index, query in ((EMAIL_INDEX, user_by_email("e")), (OAUTH_INDEX, user_by_oauth("p", "i"))):
        assert set(query) == {name for name, _ in index.keys}


def test_the_upserts_filter_names_every_key_of_its_unique_index() -> None:
    keys = {name for name, _ in VOTE_INDEX.keys}
    # message_id besides: feedback on a message is never the vote (CONTRACT section 4).
    assert set(vote_of("t", "r", "u")) == keys | {"message_id"}
