"""The stored documents, pinned: a format must not change by accident (a change is a new schema version).

The documents themselves are in `pinned.py`, from which the README prints them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Int64
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, Storage, create_storage
from deerflow_mongo.mongodb.documents.versions import SCHEMA_VERSION

from . import pinned

pytestmark = pytest.mark.usefixtures("emptied_database")

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]

THREAD, RUN = "thread-1", "run-1"
CREATED_AT = "2026-04-22T11:26:38.123456+08:00"


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    config = {"backend": "mongodb", "url": mongodb_url, "database": database_name}
    async with create_storage(config) as opened:
        assert isinstance(opened, MongoStorage)
        yield opened


def _settled(document: Document | None, expected: Document, *names: str) -> Document:
    """The document with the values of these fields, which depend on the clock, replaced by the pinned ones.

    What lies below a millisecond may be absent, where it is zero.
    """
    assert document is not None
    settled = dict(document)
    for name in names:
        if name.endswith("_us"):
            assert 1 <= settled.get(name, 1) <= 999
        else:
            assert type(settled[name]) is type(expected[name])
        settled[name] = expected[name]
    return settled


def test_pinned_documents_are_of_this_schema_version() -> None:
    versions = {document.get("schema_version", SCHEMA_VERSION) for _, _, document in pinned.KINDS}
    assert versions == {SCHEMA_VERSION}


def test_readme_prints_the_pinned_documents() -> None:
    """`python -m tests.mongodb.documents.pinned` writes them."""
    assert pinned.README.read_text(encoding="utf-8") == pinned.readme_with_documents()


async def test_run_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    await storage.runs.create(
        RUN,
        THREAD,
        user_id="alice",
        assistant_id="lead_agent",
        created_at=CREATED_AT,
        metadata={"source": "web", "a.b": {"$gt": 1}, "big": 2**70, "n\0l": 1, "_json": "x"},
        kwargs={"input": {"messages": [{"$ref": "x", "$id": 1}]}},
    )
    await storage.runs.update_model_name(RUN, "gpt-4.1")
    await storage.runs.update_status(RUN, "running", started_at="2026-04-22T03:26:38.2Z")
    await storage.runs.record_token_usage(
        RUN, caller="lead_agent", model_name="gpt-4.1", input_tokens=7, output_tokens=5
    )
    await storage.runs.update_status(
        RUN, "error", ended_at="2026-04-22T03:27:02.000017Z", error="RateLimitError: the model is busy"
    )
    document = raw_client[database_name]["runs"].find_one({"_id": RUN})
    assert _settled(document, pinned.RUN, "updated_at", "updated_at_us", "order_tie") == pinned.RUN


async def test_document_of_a_run_with_an_owner(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    """However it was written first: by an admission, or by `put`."""
    runs, owner = storage.runs, "host-1:4f2a"
    lease = datetime.now(UTC) + timedelta(seconds=30)
    names: dict[str, Any] = {
        "thread_id": THREAD,
        "user_id": "alice",
        "assistant_id": "lead_agent",
        "multitask_strategy": "interrupt",
        "created_at": "2026-04-22T03:30:00Z",
        "owner_worker_id": owner,
        "lease_expires_at": lease,
        "idempotency_key": "mcp-task:7:1:1",
    }
    spent: Any = {"gpt-4.1": {"input_tokens": 9, "cache_read_tokens": 4}}
    for store in (runs.create_thread_operation_atomic, runs.put):
        await store("run-2", **names)
        await runs.start_run("run-2")
        await runs.request_cancel("run-2", action="rollback")
        await runs.update_run_progress(
            "run-2", total_tokens=9, total_input_tokens=9, token_usage_by_model=spent
        )
        await runs.renew_lease("run-2", owner_worker_id=owner, lease_expires_at=lease)
        document = raw_client[database_name]["runs"].find_one({"_id": "run-2"})
        times = ("updated_at", "started_at", "lease_expires_at", "cancel_requested_at")
        by_clock = (*times, *(f"{name}_us" for name in times), "lease_renewed_at", "order_tie", "lease_ms")
        assert document is not None
        assert 28_000 < document["lease_ms"] <= 30_000
        assert _settled(document, pinned.OWNED_RUN, *by_clock) == pinned.OWNED_RUN
        await runs.delete("run-2", user_id=None)


async def test_run_created_now_has_no_order_tie_and_no_duration(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    await storage.runs.create(RUN, THREAD, user_id=None)
    document = raw_client[database_name]["runs"].find_one({"_id": RUN}) or {}
    absent = {"order_tie", "updated_at_us", "started_at_us", "ended_at_us"}
    assert absent.isdisjoint(document)
    assert set(pinned.RUN) - set(document) == {"order_tie", "updated_at_us", "ended_at_us"}
    assert [document[name] for name in ("duration_ms", "error_type", "started_at", "updated_at")] == [
        None
    ] * 4
    _assert_created_now(document)


def _assert_created_now(document: Document) -> None:
    """`order` has the microseconds of `created_at`, which has the milliseconds."""
    assert type(document["order"]) is Int64
    since_1970 = document["created_at"] - datetime(1970, 1, 1)  # noqa: DTZ001 - as the driver returns dates
    assert since_1970 // timedelta(milliseconds=1) == document["order"] // 1_000


async def test_feedback_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    row = await storage.feedback.upsert(
        run_id=RUN, thread_id=THREAD, rating=-1, user_id="alice", comment="too long"
    )
    document = raw_client[database_name]["feedback"].find_one({"_id": row["feedback_id"]})
    assert _settled(document, pinned.VOTE, "_id", "created_at", "order") == pinned.VOTE
    _assert_created_now(document or {})


async def test_feedback_that_is_not_the_vote_has_no_vote_field(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    row = await storage.feedback.create(run_id="r", thread_id="t", rating=1, user_id="a", message_id="m")
    document = raw_client[database_name]["feedback"].find_one({"_id": row["feedback_id"]}) or {}
    assert set(pinned.VOTE) - set(document) == {"vote"}
    assert document["message_id"] == "m"


async def test_thread_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    await storage.threads.ensure_thread(
        thread_id=THREAD, user_id="alice", assistant_id="lead_agent", metadata={"source": "web", "n": 1}
    )
    await storage.threads.sync_thread_title(thread_id=THREAD, title="A title")
    document = raw_client[database_name]["threads"].find_one({"_id": THREAD})
    by_clock = ("created_at", "order", "updated_at", "updated_at_us")
    assert _settled(document, pinned.THREAD, *by_clock) == pinned.THREAD
    _assert_created_now(document or {})


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
        pinned.USER["_id"],
        email="alice@example.org",
        password_hash="$2b$12$hash",  # noqa: S106 - made up
        system_role="admin",
        created_at="2026-04-22T11:20:00+08:00",
        oauth_provider="github",
        oauth_id="4711",
        needs_setup=True,
    )
    await storage.users.create("v", email="bob@example.org")
    users = raw_client[database_name]["users"]
    document = users.find_one({"email": "alice@example.org"})
    assert document == pinned.USER
    document = users.find_one({"_id": "v"}) or {}
    nothing = ("password_hash", "oauth_provider", "oauth_id")
    assert {name: document[name] for name in nothing} == dict.fromkeys(nothing)
    _assert_created_now(document)


async def test_event_stored_for_a_user_has_the_user_id(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    """An event without a user has no such field."""
    event: Any = {"thread_id": "t", "run_id": "r", "event_type": "said", "category": "message"}
    for user_id in ("alice", None, ""):
        await storage.run_events.put(**event, user_id=user_id)
    _, *events = raw_client[database_name]["run_events"].find().sort("seq")
    assert [stored.get("user_id", "none") for stored in events] == ["alice", "none", ""]
    await storage.run_events.delete_by_run("t", "r", user_id="alice")
    tombstone = raw_client[database_name]["run_events"].find_one({"seq": 1}) or {}
    assert "user_id" not in tombstone


async def test_event_and_anchor_documents(storage: Storage, raw_client: Raw, database_name: str) -> None:
    await storage.run_events.put(
        thread_id=THREAD,
        run_id=RUN,
        event_type="ai_message",
        category="message",
        content={"text": "Hello", "a.b": {"$gt": 1}, "big": 2**70},
        metadata={"caller": "lead_agent"},
        created_at="2026-04-22T11:26:40.500007+08:00",
        user_id="alice",
    )
    await storage.run_events.put_if_absent(
        thread_id=THREAD, run_id=RUN, event_type="end", category="lifecycle"
    )
    anchor, first, second = raw_client[database_name]["run_events"].find().sort("seq")
    assert anchor["anchored_at"] == first["stored_at"]
    assert _settled(anchor, pinned.ANCHOR, "_id", "anchored_at") == pinned.ANCHOR
    assert _settled(first, pinned.EVENT, "_id", "stored_at") == pinned.EVENT
    assert (second["seq"], second["content"], second["once"]) == (2, "", True)


async def test_tombstone_of_a_deleted_event(storage: Storage, raw_client: Raw, database_name: str) -> None:
    """The tombstone of the thread's last number never expires, the others after a day."""
    event: Any = {"thread_id": THREAD, "run_id": RUN, "event_type": "said", "category": "message"}
    await storage.run_events.put_batch([event, event])
    collection = raw_client[database_name]["run_events"]
    before = {item["seq"]: item for item in collection.find({"seq": {"$gt": 0}})}
    await storage.run_events.delete_by_run(THREAD, RUN)
    first, last = collection.find({"seq": {"$gt": 0}}).sort("seq")
    new = ("_id", "event_stored_at", "expires_at", "deletion")
    assert _settled(first, pinned.TOMBSTONE, *new) == pinned.TOMBSTONE
    assert first["deletion"] == last["deletion"]
    lifetime = first["expires_at"] - before[1]["stored_at"]
    assert timedelta(days=1) <= lifetime < timedelta(days=1, minutes=5)
    assert last["expires_at"] is None
    for tombstone in (first, last):
        event_before = before[tombstone["seq"]]
        assert tombstone["_id"] == event_before["_id"]
        assert tombstone["event_stored_at"] == event_before["stored_at"]


async def test_schema_version_document(storage: Storage, raw_client: Raw, database_name: str) -> None:
    document = raw_client[database_name]["schema_versions"].find_one()
    assert _settled(document, pinned.VERSION, "updated_at", "updated_at_us") == pinned.VERSION


async def test_stored_payloads_and_counts_can_be_queried(
    storage: Storage, raw_client: Raw, database_name: str
) -> None:
    for number in range(3):
        await storage.runs.create(f"r{number}", "t", user_id="a", metadata={"n": number, "huge": 10**30})
        await storage.runs.record_token_usage(f"r{number}", caller="subagent", input_tokens=number)
    runs = raw_client[database_name]["runs"]
    assert [run["_id"] for run in runs.find({"metadata.n": {"$gte": 2}})] == ["r2"]
    assert [run["_id"] for run in runs.find({"tokens.by_caller.subagent": 1})] == ["r1"]
    since, until = (datetime(year, 1, 1, tzinfo=UTC) for year in (2020, 2999))
    assert runs.count_documents({"created_at": {"$gt": since, "$lt": until}}) == 3
