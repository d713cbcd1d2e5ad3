"""Retention: which rows the server removes by age and which stay, and what an option changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from deerflow_mongo import MongoStorage, StorageConfigError
from deerflow_mongo.mongodb.schema import DAY_S, RETENTIONS, Retention

Raw = MongoClient[dict[str, Any]]
Opener = Callable[..., MongoStorage]

by_option = pytest.mark.parametrize("retention", RETENTIONS, ids=lambda retention: retention.option)


@pytest.fixture
def database(raw_client: Raw, database_name: str) -> Database[dict[str, Any]]:
    return raw_client[database_name]


def _expiries(database: Database[dict[str, Any]], retention: Retention) -> set[int | None]:
    """The ages of the retention's indexes, None for one that does not exist."""
    indexes = database[retention.collection].index_information()
    return {indexes.get(expiry.index_name, {}).get("expireAfterSeconds") for expiry in retention.expiries}


@by_option
async def test_retention_is_off_by_default_and_can_change_on_a_live_collection(
    new_storage: Opener, database: Database[dict[str, Any]], retention: Retention
) -> None:
    async with new_storage():
        assert _expiries(database, retention) == {None}
    for days in (30, 7, None, 90, 90, None):
        async with new_storage(**{retention.option: days}) as storage:
            assert _expiries(database, retention) == {None if days is None else days * DAY_S}
            report = await storage.inspect()
            assert report.retention_days == ({} if days is None else {retention.collection: days})
            assert report.complete
            assert report.operator_indexes == []


@by_option
async def test_absent_retention_leaves_what_is_in_force(
    new_storage: Opener, database: Database[dict[str, Any]], retention: Retention
) -> None:
    """A process without the option does not end the retention that another one has set."""
    async with new_storage(**{retention.option: 30}), new_storage() as other:
        assert (await other.inspect()).retention_days == {retention.collection: 30}
        assert other.config.retention == {}
        await other.setup()
        assert _expiries(database, retention) == {30 * DAY_S}
    async with new_storage(**{retention.option: None}):
        assert _expiries(database, retention) == {None}


@by_option
async def test_operators_own_retention_is_reported_and_left(
    new_storage: Opener, database: Database[dict[str, Any]], retention: Retention
) -> None:
    """An index of the same keys under another name; setup cannot create a different one beside it."""
    [own, *_] = retention.indexes(7)
    async with new_storage() as storage:
        collection = database[retention.collection]
        options = {key: value for key, value in own.specification().items() if key not in ("key", "name")}
        collection.create_index(list(own.keys), name="own", **options)
        assert (await storage.inspect()).retention_days == {retention.collection: 7}
    async with new_storage(**{retention.option: 7}) as same:
        assert own.name not in collection.index_information()
        assert (await same.inspect()).retention_days == {retention.collection: 7}
    with pytest.raises(
        StorageConfigError, match=f"'retention' of collection '{retention.collection}' cannot"
    ):
        async with new_storage(**{retention.option: 9}):
            pass


async def test_six_storages_can_set_every_retention_at_once(
    new_storage: Opener, database: Database[dict[str, Any]]
) -> None:
    options = {retention.option: 30 for retention in RETENTIONS}
    storages = [new_storage(**options) for _ in range(6)]
    await asyncio.gather(*(storage.setup() for storage in storages))
    await asyncio.gather(*(storage.aclose() for storage in storages))
    assert [_expiries(database, retention) for retention in RETENTIONS] == [{30 * DAY_S}] * len(RETENTIONS)


@by_option
def test_retention_of_less_than_a_day_is_refused(new_storage: Opener, retention: Retention) -> None:
    for days in (0, -1, 0.5, "soon", True, 20_001):
        with pytest.raises(StorageConfigError, match=retention.option):
            new_storage(**{retention.option: days})


# -- what the server removes -----------------------------------------------------------------------

OLD = datetime.now(UTC) - timedelta(days=3)
GONE, ACTIVE, YOUNG = "gone", "active", "young"


async def _runs(storage: MongoStorage, database: Database[dict[str, Any]]) -> None:
    """Old runs in every state and by every way of ending, and young ones."""
    runs = storage.runs
    endings: dict[str, Callable[[str], Awaitable[Any]]] = {
        "completed": lambda run_id: runs.update_run_completion(run_id, status="success"),
        "failed": lambda run_id: runs.set_error(run_id, "boom"),
        "interrupted": lambda run_id: runs.update_status(run_id, "interrupted"),
        "ended by its host": lambda run_id: runs.update_status(run_id, "cancelled"),
    }
    for name, end in endings.items():
        for age in (GONE, YOUNG):
            await runs.create(f"{age}, {name}", f"t {name}", user_id="u", status="running")
            await end(f"{age}, {name}")
    await runs.create("gone, created after its end", "t", user_id="u", status="success", created_at=OLD)
    for status in ("pending", "starting", "running"):
        await runs.create(f"{ACTIVE}, {status}", "t", user_id="u", status=status, created_at=OLD)
    await runs.update_status("active, running", "running", ended_at=OLD)
    await runs.create("active, restarted by its host", "t", user_id="u", status="running", created_at=OLD)
    await runs.update_status("active, restarted by its host", "cancelled")
    await runs.update_status("active, restarted by its host", "running")
    await runs.put(
        "gone, dead and taken over", thread_id="d", user_id="u", owner_worker_id="w", lease_expires_at=OLD
    )
    await runs.claim_for_takeover("gone, dead and taken over", grace_seconds=0, error="lost")
    await runs.put(
        "active, of a dead worker", thread_id="e", user_id="u", owner_worker_id="w", lease_expires_at=OLD
    )
    # A young run was created long ago and changed lately.
    database["runs"].update_many(
        {"_id": {"$regex": "^young"}}, {"$set": {"created_at": OLD, "ended_at": OLD}}
    )
    database["runs"].update_many(
        {"_id": {"$regex": "^(gone|active)"}, "updated_at": {"$ne": None}},
        {"$set": {"created_at": OLD, "updated_at": OLD}},
    )


async def _rows(storage: MongoStorage, database: Database[dict[str, Any]]) -> None:
    await _runs(storage, database)
    for age in (GONE, YOUNG):
        await storage.feedback.create(run_id=age, thread_id="t", rating=1, user_id="u")
        await storage.threads.ensure_thread(thread_id=age, user_id="u")
    await storage.threads.ensure_thread(thread_id="pinned", user_id="u", metadata={"deerflow_pinned": True})
    await storage.threads.ensure_thread(
        thread_id="gone, was pinned", user_id="u", metadata={"deerflow_pinned": True}
    )
    await storage.threads.merge_thread_metadata("gone, was pinned", {"deerflow_pinned": False})
    database["feedback"].update_one({"run_id": GONE}, {"$set": {"created_at": OLD}})
    database["threads"].update_many({"_id": {"$ne": YOUNG}}, {"$set": {"updated_at": OLD, "created_at": OLD}})


def _ttl_passes(database: Database[dict[str, Any]]) -> int:
    return database.client.admin.command("serverStatus")["metrics"]["ttl"]["passes"]


@pytest.mark.timeout(240)
async def test_server_removes_old_ended_runs_feedback_and_threads_and_nothing_else(
    new_storage: Opener, database: Database[dict[str, Any]]
) -> None:
    """By its own TTL monitor, which the tests' server runs every second."""
    async with new_storage() as storage:
        await _rows(storage, database)
    before = {document["_id"] for document in database["runs"].find()}
    async with new_storage(runs_ttl_days=2, feedback_ttl_days=2, threads_ttl_days=2):
        gone = {"$or": [{"_id": {"$regex": "^gone"}}, {"run_id": GONE}]}
        while any(database[name].count_documents(gone) for name in ("runs", "feedback", "threads")):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        passes = _ttl_passes(database)
        while _ttl_passes(database) < passes + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    left = {document["_id"] for document in database["runs"].find()}
    assert left == {run_id for run_id in before if not run_id.startswith(GONE)}
    assert [document["run_id"] for document in database["feedback"].find()] == [YOUNG]
    assert {document["_id"] for document in database["threads"].find()} == {YOUNG, "pinned"}
