"""The stored documents, pinned: a format must not change by accident (a change is a new schema version)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, Storage, StorageError, create_storage
from deerflow_mongo.mongodb.documents.versions import SCHEMA_VERSION

Raw = MongoClient[dict[str, Any]]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[Storage]:
    config = {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    async with create_storage(config) as opened:
        yield opened


def test_pinned_documents_are_of_schema_version_1() -> None:
    assert SCHEMA_VERSION == 1


async def test_run_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    await storage.runs.create(
        "r",
        "t",
        user_id="alice",
        assistant_id="lead",
        model_name="gpt-4.1",
        created_at="2026-04-22T11:26:38+08:00",
        metadata={"source": "web", "a.b": {"$gt": 1}, "big": 2**70, "n\0l": 1, "_json": "x"},
        kwargs={"input": {"messages": [{"$ref": "x", "$id": 1}]}},
    )
    await storage.runs.update_status("r", "running", started_at="2026-04-22T03:26:39.5Z")
    await storage.runs.record_token_usage(
        "r", caller="lead_agent", model_name="gpt-4.1", input_tokens=7, output_tokens=5
    )
    await storage.runs.set_error("r", "lone \udc00")
    document = raw_client[database_name]["runs"].find_one({"_id": "r"}) or {}
    assert TIME.fullmatch(document.pop("updated_at"))
    assert isinstance(document.pop("order"), int)
    assert document == {
        "_id": "r",
        "schema_version": 1,
        "thread_id": "t",
        "user_id": "alice",
        "assistant_id": "lead",
        "status": "error",
        "model_name": "gpt-4.1",
        "multitask_strategy": "reject",
        "follow_up_to_run_id": None,
        "metadata": {
            "source": "web",
            "a.b": {"$gt": 1},
            "big": {"_json": "1180591620717411303424"},
            '_json"n\\u0000l"': 1,
            '_json"_json"': "x",
        },
        "kwargs": {"input": {"_json": '{"messages":[{"$ref":"x","$id":1}]}'}},
        "created_at": "2026-04-22T03:26:38.000000+00:00",
        "started_at": "2026-04-22T03:26:39.500000+00:00",
        "ended_at": None,
        "error": {"_json": '"lone \\udc00"'},
        "tokens": {
            "input": 7,
            "output": 5,
            "total": 12,
            "llm_calls": 1,
            "by_caller": {"lead_agent": 12, "subagent": 0, "middleware": 0},
            "by_model": {
                "gpt-4%2E1": {"model": "gpt-4.1", "input": 7, "output": 5, "total": 12, "llm_calls": 1}
            },
        },
        "message_count": 0,
        "first_human_message": None,
        "last_ai_message": None,
    }


async def test_feedback_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    row = await storage.feedback.upsert(run_id="r", thread_id="t", rating=-1, user_id=None, comment="no")
    document = raw_client[database_name]["feedback"].find_one({"_id": row["feedback_id"]}) or {}
    assert TIME.fullmatch(document.pop("created_at"))
    assert isinstance(document.pop("order"), int)
    assert document == {
        "_id": row["feedback_id"],
        "schema_version": 1,
        "run_id": "r",
        "thread_id": "t",
        "user_id": None,
        "message_id": None,
        "rating": -1,
        "comment": "no",
        "vote": True,
    }


async def test_feedback_that_is_not_the_vote_has_no_vote_field(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    row = await storage.feedback.create(run_id="r", thread_id="t", rating=1, user_id="a", message_id="m")
    document = raw_client[database_name]["feedback"].find_one({"_id": row["feedback_id"]}) or {}
    assert "vote" not in document
    assert document["message_id"] == "m"


async def test_thread_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    await storage.threads.ensure_thread(
        thread_id="t", user_id="alice", assistant_id="lead", metadata={"source": "web", "n": 1}
    )
    await storage.threads.sync_thread_title(thread_id="t", title="A title")
    document = raw_client[database_name]["threads"].find_one({"_id": "t"}) or {}
    for name in ("created_at", "updated_at"):
        assert TIME.fullmatch(document.pop(name))
    assert isinstance(document.pop("order"), int)
    assert document == {
        "_id": "t",
        "schema_version": 1,
        "user_id": "alice",
        "assistant_id": "lead",
        "display_name": "A title",
        "status": "idle",
        "metadata": {"source": "web", "n": 1},
        # BLAKE2b-64 of the JSON text "source" and BLAKE2b-96 of ["source","web"]; of "n" and ["n",1].
        # They are stored, so the way they are computed must not change.
        "metadata_digests": [
            "0f0bd31dd81b3045f2ce9504dde4b939b6724cae",
            "fd661c26408c6ed2b88170f9cb4d5cff493f0fe9",
        ],
    }


async def test_merged_thread_metadata_has_one_digest_for_each_key(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    """After fifty merges of one key; the digests are those of the same metadata written at once."""
    await storage.threads.ensure_thread(thread_id="t", user_id=None, metadata={"source": "web", "n": 1})
    merges = (storage.threads.merge_thread_metadata("t", {"a.b": number, "n": 2}) for number in range(50))
    await asyncio.gather(*merges)
    threads = raw_client[database_name]["threads"]
    merged = threads.find_one({"_id": "t"}) or {}
    assert list(merged["metadata"]) == ["source", "n", "a.b"]
    await storage.threads.ensure_thread(thread_id="at-once", user_id=None, metadata=merged["metadata"])
    at_once = threads.find_one({"_id": "at-once"}) or {}
    assert sorted(merged["metadata_digests"]) == sorted(at_once["metadata_digests"])
    assert merged["metadata_digests"][0] == "0f0bd31dd81b3045f2ce9504dde4b939b6724cae"
    assert len(at_once["metadata_digests"]) == 3


async def test_user_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    assert isinstance(storage, MongoStorage)
    await storage.users.create(
        "u",
        email="alice@example.org",
        password_hash="$2b$12$hash",  # noqa: S106 - made up
        system_role="admin",
        created_at="2026-04-22T11:26:38+08:00",
        oauth_provider="github",
        oauth_id="4711",
        needs_setup=True,
    )
    await storage.users.create("v", email="bob@example.org")
    users = raw_client[database_name]["users"]
    assert users.find_one({"_id": "u"}) == {
        "_id": "u",
        "schema_version": 1,
        "email": "alice@example.org",
        "password_hash": "$2b$12$hash",
        "system_role": "admin",
        "created_at": "2026-04-22T03:26:38.000000+00:00",
        "oauth_provider": "github",
        "oauth_id": "4711",
        "needs_setup": True,
        "token_version": 0,
    }
    document = users.find_one({"_id": "v"}) or {}
    assert TIME.fullmatch(document["created_at"])
    nothing = ("password_hash", "oauth_provider", "oauth_id")
    assert {name: document[name] for name in nothing} == dict.fromkeys(nothing)


async def test_event_stored_for_a_user_has_the_user_id(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    """An event without a user has no such field."""
    event: Any = {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "message"}
    for user_id in ("alice", None, ""):
        await storage.run_events.put(**event, user_id=user_id)
    _, *events = raw_client[database_name]["run_events"].find().sort("seq")
    assert [stored.get("user_id", "none") for stored in events] == ["alice", "none", ""]
    common = {"_id", "schema_version", "thread_id", "seq", "stored_at", "run_id", "event_type", "category"}
    assert set(events[0]) == common | {"content", "metadata", "created_at", "user_id"}
    await storage.run_events.delete_by_run("t", "r", user_id="alice")
    tombstone = raw_client[database_name]["run_events"].find_one({"seq": 1}) or {}
    assert "user_id" not in tombstone


async def test_event_and_anchor_documents(storage: Storage, raw_client: Raw, database_name: str) -> None:
    await storage.run_events.put(
        thread_id="t",
        run_id="r",
        event_type="ai_message",
        category="message",
        content={"text": "hi", "a.b": {"$gt": 1}, "big": 2**70},
        metadata={"caller": "lead_agent"},
        created_at="2026-04-22T11:26:38+08:00",
    )
    await storage.run_events.put_if_absent(thread_id="t", run_id="r", event_type="end", category="lifecycle")
    anchor, first, second = raw_client[database_name]["run_events"].find().sort("seq")
    ids = {anchor.pop("_id"), first.pop("_id"), second.pop("_id")}
    assert {type(document_id) for document_id in ids} == {ObjectId}
    moments = {anchor.pop("founded_at"), first.pop("stored_at")}
    assert len(moments) == 1
    assert all(isinstance(moment, datetime) for moment in moments)
    assert anchor == {"schema_version": 1, "thread_id": "t", "seq": 0, "floor": 0}
    assert first == {
        "schema_version": 1,
        "thread_id": "t",
        "seq": 1,
        "run_id": "r",
        "event_type": "ai_message",
        "category": "message",
        "content": {"text": "hi", "a.b": {"$gt": 1}, "big": {"_json": "1180591620717411303424"}},
        "metadata": {"caller": "lead_agent"},
        "created_at": "2026-04-22T03:26:38.000000+00:00",
    }
    assert (second["seq"], second["content"], second["once"]) == (2, "", True)


async def test_tombstone_of_a_deleted_event(storage: Storage, raw_client: Raw, database_name: str) -> None:
    """The tombstone of the thread's last number never expires, the others after a day."""
    event: Any = {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "message"}
    await storage.run_events.put_batch([event, event])
    collection = raw_client[database_name]["run_events"]
    before = {item["seq"]: item for item in collection.find({"seq": {"$gt": 0}})}
    await storage.run_events.delete_by_run("t", "r")
    first, last = collection.find({"seq": {"$gt": 0}}).sort("seq")
    lifetime = first.pop("forget_at") - before[1]["stored_at"]
    assert timedelta(days=1) <= lifetime < timedelta(days=1, minutes=5)
    assert last.pop("forget_at") is None
    for tombstone in (first, last):
        event_before = before[tombstone["seq"]]
        unchanged = {name: event_before[name] for name in ("_id", "schema_version", "thread_id", "seq")}
        assert tombstone == {**unchanged, "was_stored_at": event_before["stored_at"]}


async def test_schema_version_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    document = raw_client[database_name]["schema_versions"].find_one() or {}
    assert TIME.fullmatch(document.pop("updated_at"))
    assert document == {"_id": "deerflow-mongo", "version": 1}


async def test_stored_payloads_and_counts_can_be_queried(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    for number in range(3):
        await storage.runs.create(f"r{number}", "t", user_id="a", metadata={"n": number, "huge": 10**30})
        await storage.runs.record_token_usage(f"r{number}", caller="subagent", input_tokens=number)
    runs = raw_client[database_name]["runs"]
    assert [run["_id"] for run in runs.find({"metadata.n": {"$gte": 2}})] == ["r2"]
    assert [run["_id"] for run in runs.find({"tokens.by_caller.subagent": 1})] == ["r1"]
    assert runs.count_documents({"created_at": {"$gt": "2020-01-01", "$lt": "2999"}}) == 3


async def test_document_with_a_newer_schema_version_is_refused(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    await storage.runs.create("r", "t", user_id="a")
    raw_client[database_name]["runs"].update_one({"_id": "r"}, {"$set": {"schema_version": 99}})
    with pytest.raises(StorageError, match=r"'r' has schema version 99.*upgrade"):
        await storage.runs.get("r", user_id="a")
