"""The upgrade of a database of version 1: online, resumable, and without a difference in any row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from bson import Int64
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import WriteError

from deerflow_mongo import MongoStorage, StorageError
from deerflow_mongo.mongodb import upgrades
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.schema import COLLECTIONS

from . import version_1

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]

COPIES = 40
TIMES = ("created_at", "updated_at", "started_at", "ended_at", "retention_since")


@pytest.fixture
def database(raw_client: Raw, database_name: str) -> Database[Document]:
    return raw_client[database_name]


def _storage(mongodb_url: str, database_name: str) -> MongoStorage:
    config = {"url": mongodb_url, "database": database_name, "run_events_ttl_days": 30}
    return MongoStorage(mongo_config(config))


@pytest.fixture
async def storage(mongodb_url: str, database_name: str) -> AsyncIterator[MongoStorage]:
    opened = _storage(mongodb_url, database_name)
    yield opened
    await opened.aclose()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrades, "BATCH_DOCUMENTS", 25)


def _assert_upgraded(database: Database[Document]) -> None:
    for schema in COLLECTIONS:
        collection = database[schema.name]
        for document in collection.find():
            assert document.get("schema_version", 2) == 2, document
            for name in TIMES:
                assert not isinstance(document.get(name), str), document
        options = collection.options()
        assert options["validator"] == schema.stored_validator
        assert options.get("validationLevel", "strict") == "strict"
        known = {index.name for index in schema.indexes} | {"_id_", "retention"}
        assert set(collection.index_information()) <= known
    version = database["schema_versions"].find_one() or {}
    assert (version["version"], version["readable_from"]) == (2, 2)
    assert "migrating_from" not in version
    assert isinstance(version["retention_since"], datetime)


async def test_rows_of_version_1_are_read_before_the_upgrade(
    storage: MongoStorage, database: Database[Document]
) -> None:
    version_1.load(database)
    assert await version_1.rows(storage) == version_1.ROWS


async def test_upgrade_changes_no_row(storage: MongoStorage, database: Database[Document]) -> None:
    version_1.load(database, copies=COPIES)
    await storage.setup()
    assert await version_1.rows(storage) == version_1.ROWS
    _assert_upgraded(database)
    assert (await storage.inspect()).complete
    before = {schema.name: list(database[schema.name].find()) for schema in COLLECTIONS}
    await storage.setup()
    unchanged = [schema.name for schema in COLLECTIONS if schema.name != "schema_versions"]
    assert all(list(database[name].find()) == before[name] for name in unchanged)


async def test_upgraded_documents_equal_new_ones(storage: MongoStorage, database: Database[Document]) -> None:
    """In names and types of fields, and in what a new document derives from others."""
    version_1.load(database)
    await storage.setup()
    run = database["runs"].find_one({"_id": "run-ended"}) or {}
    assert (run["duration_ms"], run["error_type"]) == (23_000, "RateLimitError")
    assert (run["started_at_us"], "ended_at_us" in run) == (500, False)
    assert type(run["order"]) is type(run["order_tie"]) is Int64
    error_types = {item["_id"]: item["error_type"] for item in database["runs"].find()}
    assert error_types.pop("run-ended") == "RateLimitError"
    assert set(error_types.values()) == {None}
    durations = {item["_id"]: item["duration_ms"] for item in database["runs"].find()}
    assert {name for name, duration in durations.items() if duration is None} == {
        "run-running",
        "run-pending",
    }
    anchor = database["run_events"].find_one({"thread_id": "thread-emptied", "seq": 0}) or {}
    assert set(anchor) == {"_id", "schema_version", "thread_id", "seq", "minimum_next_seq", "anchored_at"}
    assert anchor["minimum_next_seq"] == 1776828398123457
    tombstones = list(database["run_events"].find({"event_stored_at": {"$exists": True}}).sort("seq"))
    names = {"_id", "schema_version", "thread_id", "seq", "event_stored_at", "expires_at"}
    assert [set(tombstone) for tombstone in tombstones] == [names] * 5
    [user] = database["users"].find({"_id": "u1"})
    assert user["order"] == 1776828398000001


async def test_numbers_continue_after_the_upgrade(
    storage: MongoStorage, database: Database[Document]
) -> None:
    version_1.load(database)
    event: Any = {"run_id": "r", "event_type": "said", "category": "message"}
    await storage.setup()
    assert (await storage.run_events.put(**event, thread_id="thread-1"))["seq"] == 9
    assert (await storage.run_events.put(**event, thread_id="thread-emptied"))["seq"] == 4


async def test_upgrade_interrupted_before_each_command_continues(
    mongodb_url: str,
    database_name: str,
    database: Database[Document],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each try ends some commands later; in between, this release reads the same rows."""
    version_1.load(database, copies=COPIES)
    reader = _storage(mongodb_url, database_name)
    allowed = interruptions = 0
    while True:
        allowed, sent = allowed + 3, 0

        def count(allowed: int = allowed) -> None:
            nonlocal sent
            sent += 1
            if sent > allowed:
                raise StorageError("interrupted")

        storage = _storage(mongodb_url, database_name)
        _count_commands(storage, count)
        [error] = await asyncio.gather(storage.setup(), return_exceptions=True)
        await storage.aclose()
        if error is None:
            break
        assert str(error) == "interrupted", error
        interruptions += 1
        if interruptions % 4 == 0:
            _assert_same_rows(await version_1.rows(reader), database)
        version = (database["schema_versions"].find_one() or {})["version"]
        if version == 1:  # an old release may still be used: no document is newer
            assert not database["runs"].count_documents({"schema_version": 2})
    await reader.aclose()
    assert interruptions > 10
    _assert_upgraded(database)


def _assert_same_rows(rows: Document, database: Database[Document]) -> None:
    expected = dict(version_1.ROWS)
    if len(database["threads"].distinct("schema_version")) == 2:
        # The server sorts all dates before all texts, so threads of version 1 come last for so long.
        rows["last_updated"], expected["last_updated"] = (
            set(rows["last_updated"]),
            set(expected["last_updated"]),
        )
    assert rows == expected


def _count_commands(storage: MongoStorage, count: Any) -> None:
    """Call `count` before each command of the setup."""
    driver = storage.driver
    command, collection = driver.command, driver.collection

    async def counted_command(*args: Any, **kwargs: Any) -> Any:
        count()
        return await command(*args, **kwargs)

    def counted_collection(*args: Any, **kwargs: Any) -> Any:
        found = collection(*args, **kwargs)
        run = found.run

        async def counted_run(*args: Any, **kwargs: Any) -> Any:
            count()
            return await run(*args, **kwargs)

        found.run = counted_run
        return found

    driver.command, driver.collection = counted_command, counted_collection


async def test_writes_of_this_release_during_the_upgrade_are_not_lost(
    mongodb_url: str,
    database_name: str,
    database: Database[Document],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every run, thread and vote of version 1 is updated while the documents are converted."""
    version_1.load(database, copies=COPIES)
    run_ids = [run["_id"] for run in database["runs"].find()]
    thread_ids = [thread["_id"] for thread in database["threads"].find()]
    converting = asyncio.Event()
    convert = upgrades._convert  # pyright: ignore[reportPrivateUsage]

    async def announced(*args: Any) -> int:
        converting.set()
        return await convert(*args)

    monkeypatch.setattr(upgrades, "_convert", announced)
    async with _unset(mongodb_url, database_name) as writer:
        setup = asyncio.create_task(_setup(mongodb_url, database_name))
        await converting.wait()
        for run_id in run_ids:
            await writer.runs.record_token_usage(run_id, caller="subagent", input_tokens=3, model_name="m")
            await writer.runs.update_status(run_id, "running", metadata={"seen": True})
            await writer.runs.update_run_completion(run_id, status="success", total_tokens=1)
        for thread_id in thread_ids:
            await writer.threads.merge_thread_metadata(thread_id, {"seen": True})
            event: Any = {"run_id": "r", "event_type": "said", "category": "message"}
            await writer.run_events.put(**event, thread_id=thread_id)
            await writer.feedback.upsert(run_id="run-ended", thread_id=thread_id, rating=-1, user_id="alice")
            await writer.runs.create(f"new in {thread_id}", thread_id, user_id=None)
        await setup
        _assert_upgraded(database)
        for run_id in run_ids:
            row = await writer.runs.get(run_id, user_id=None)
            assert row is not None
            assert (row["status"], row["total_tokens"], row["metadata"]["seen"]) == ("success", 1, True)
            assert row["ended_at"] is not None
        for thread_id in thread_ids:
            thread = await writer.threads.get_thread_meta(thread_id)
            assert thread is not None
            assert thread.metadata["seen"] is True
            votes = await writer.feedback.list_by_run(thread_id, "run-ended", user_id="alice")
            assert len([vote for vote in votes if vote["message_id"] is None]) == 1
            assert await writer.runs.get(f"new in {thread_id}", user_id=None) is not None
    missing = database["runs"].count_documents({"status": "success", "duration_ms": None})
    assert missing == 0


def _unset(mongodb_url: str, database_name: str) -> MongoStorage:
    """A storage that is opened without `setup()`, as one that was opened before the upgrade began."""

    class Opened(MongoStorage):
        async def setup(self, *, views: bool = False, shard: bool = False) -> None:
            pass

    return Opened(mongo_config({"url": mongodb_url, "database": database_name}))


async def _setup(mongodb_url: str, database_name: str) -> None:
    async with _storage(mongodb_url, database_name):
        pass


async def test_six_storages_can_upgrade_at_once(
    mongodb_url: str, database_name: str, database: Database[Document], storage: MongoStorage
) -> None:
    version_1.load(database, copies=COPIES)
    await asyncio.gather(*(_setup(mongodb_url, database_name) for _ in range(6)))
    _assert_upgraded(database)
    assert await version_1.rows(storage) == version_1.ROWS


async def test_older_release_cannot_insert_documents_after_the_upgrade(
    storage: MongoStorage, database: Database[Document]
) -> None:
    """Its process may still run; what it inserts would never be converted."""
    version_1.load(database)
    old = database["runs"].find_one({"_id": "run-ended"}) or {}
    await storage.setup()
    with pytest.raises(WriteError) as refused:
        database["runs"].insert_one({**old, "_id": "of the older release"})
    assert refused.value.code == 121


async def test_upgrade_is_logged(
    storage: MongoStorage, database: Database[Document], caplog: pytest.LogCaptureFixture
) -> None:
    version_1.load(database)
    with caplog.at_level(logging.INFO, "deerflow_mongo"):
        await storage.setup()
    begin, end = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "is being upgraded from schema version 1 to 2" in begin
    assert "documents were converted" in end


async def test_broken_document_of_version_1_stays_and_does_not_stop_the_upgrade(
    storage: MongoStorage, database: Database[Document], caplog: pytest.LogCaptureFixture
) -> None:
    version_1.load(database, copies=COPIES)
    broken: Document = {"_id": "run-broken", "schema_version": 1, "metadata": "no object"}
    database.command({"insert": "runs", "documents": [broken], "bypassDocumentValidation": True})
    with caplog.at_level(logging.ERROR, "deerflow_mongo"):
        await storage.setup()
    assert database["runs"].find_one({"_id": "run-broken"}) == broken
    assert "a document of runs is broken and was not converted" in caplog.text
    database["runs"].delete_one({"_id": "run-broken"})
    _assert_upgraded(database)
    assert await version_1.rows(storage) == version_1.ROWS


def test_every_older_version_has_a_step() -> None:
    assert [step.from_version for step in upgrades.STEPS] == [1]
