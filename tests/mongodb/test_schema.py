"""The schema: what validators refuse, and that filters name every key of the unique indexes they rely on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import WriteError

from deerflow_mongo import MongoStorage
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.queries import user_by_oauth, vote_of
from deerflow_mongo.mongodb.schema import OAUTH_INDEX, VOTE_INDEX

Raw = MongoClient[dict[str, Any]]


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    opened = MongoStorage(mongo_config({"url": mongodb_url, "database": database_name}))
    yield opened
    await opened.aclose()


def _invalid(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Documents that `documents/` never writes: a field is missing or of another type."""
    invalid: list[tuple[str, dict[str, Any]]] = []
    for name in document:
        rest = {key: item for key, item in document.items() if key != name}
        if name not in ("_id", "vote", "order_tie", "pinned", "email_key") and not name.endswith("_us"):
            invalid.append((f"without {name}", rest))
        invalid.append(
            (f"other type in {name}", {**rest, name: False if name in ("vote", "pinned") else b"bytes"})
        )
        if name == "rating":
            invalid += [(f"rating {wrong}", {**rest, name: wrong}) for wrong in (0, 5, 1.5, "1", True)]
        if name.endswith("_at"):
            invalid.append((f"text in {name}", {**rest, name: "2026-01-01T00:00:00Z"}))
        if name.endswith("_us"):
            invalid += [(f"{wrong} in {name}", {**rest, name: wrong}) for wrong in (0, 1_000)]
    return invalid


@pytest.mark.parametrize("collection", ["runs", "feedback", "threads", "users", "schema_versions"])
async def test_validator_refuses_documents_that_the_stores_never_write(
    storage: MongoStorage, raw_client: Raw, database_name: str, collection: str
) -> None:
    await storage.setup()
    await storage.runs.create("r", "t", user_id="u")
    await storage.feedback.upsert(run_id="r", thread_id="t", rating=1, user_id="u")
    await storage.threads.ensure_thread(thread_id="t", user_id="u", metadata={"deerflow_pinned": True})
    await storage.users.create("u", email="u@example.org", oauth_provider="github", oauth_id="1")
    handle = raw_client[database_name][collection]
    [document] = handle.find()
    handle.delete_many({})
    handle.insert_one(dict(document))
    handle.delete_many({})
    for case, invalid in _invalid(document):
        with pytest.raises(WriteError) as refused:
            handle.insert_one(invalid)
        assert refused.value.code == 121, case


@pytest.mark.parametrize("collection", ["runs", "feedback", "threads", "run_events", "users"])
async def test_operators_own_fields_are_allowed_and_stay(
    storage: MongoStorage, raw_client: Raw, database_name: str, collection: str
) -> None:
    await storage.setup()
    await storage.runs.create("r", "t", user_id="u")
    vote: Any = {"run_id": "r", "thread_id": "t", "rating": 1, "user_id": "u"}
    await storage.feedback.upsert(**vote)
    await storage.threads.ensure_thread(thread_id="t", user_id="u")
    await storage.users.create("u", email="u@example.org")
    event: Any = {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "message"}
    await storage.run_events.put(**event)
    handle = raw_client[database_name][collection]
    handle.update_many({}, {"$set": {"team": "blue"}})
    await storage.runs.update_run_completion("r", status="success")
    await storage.feedback.upsert(**vote)
    await storage.threads.merge_thread_metadata("t", {"a": 1})
    assert await storage.runs.get("r", user_id="u") is not None
    assert len(await storage.feedback.list_by_thread("t")) == 1
    assert len(await storage.threads.search_threads(user_id="u")) == 1
    assert len(await storage.run_events.list_messages("t")) == 1
    assert await storage.users.get("u") is not None
    assert {document["team"] for document in handle.find()} == {"blue"}


async def test_validator_refuses_negative_and_incomplete_token_counts(
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


def test_oauth_filter_names_every_key_of_its_unique_index() -> None:
    assert set(user_by_oauth("p", "i")) == {name for name, _ in OAUTH_INDEX.keys}


def test_vote_upsert_filter_names_every_key_of_its_unique_index() -> None:
    keys = {name for name, _ in VOTE_INDEX.keys}
    # And message_id: feedback on a message is never the vote.
    assert set(vote_of("t", "r", "u")) == keys | {"message_id"}
