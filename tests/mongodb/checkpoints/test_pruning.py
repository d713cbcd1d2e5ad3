"""Which checkpoints a thread loses, what a prune reports, retention, and statistics."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, StorageConfigError
from deerflow_mongo.contract.errors import ArgumentTypeError, ArgumentValueError
from deerflow_mongo.mongodb.checkpoints import deletion, pruning
from deerflow_mongo.mongodb.checkpoints.deletion import Collections, Removed
from deerflow_mongo.mongodb.checkpoints.pruning import LATEST, Progress, Rule
from deerflow_mongo.mongodb.checkpoints.retention import Retention, rules_of
from deerflow_mongo.mongodb.checkpoints.saver import MongoCheckpointSaver
from deerflow_mongo.mongodb.checkpoints.statistics import statistics, statistics_of_thread
from deerflow_mongo.mongodb.drivers.driver import READ_COMMITTED
from deerflow_mongo.mongodb.schema import CHECKPOINTS

from .puts import listed, new_checkpoint, put, put_writes, texts

Raw = MongoClient[dict[str, Any]]


@pytest.fixture
async def collections(storage: MongoStorage) -> Collections:
    await storage.checkpointer()
    driver = storage.driver
    return Collections(driver.collection(CHECKPOINTS), driver.collection(CHECKPOINTS, READ_COMMITTED))


@pytest.fixture
async def saver(collections: Collections) -> AsyncIterator[Any]:
    opened = MongoCheckpointSaver(*collections)
    yield opened
    await opened.aclose()


@pytest.fixture
def documents(raw_client: Raw, database_name: str) -> Any:
    return raw_client[database_name][CHECKPOINTS]


async def chain(saver: Any, thread: str, count: int, *, ns: str = "", **metadata: Any) -> list[str]:
    """Checkpoints one after another, each with writes, as a graph leaves them; oldest first."""
    names: list[str] = []
    for number in range(count):
        parent = names[-1] if names else None
        value = texts(f"{thread}-{number // 2}")
        names.append(await put(saver, thread, value, parent=parent, ns=ns, **metadata))
        await put_writes(saver, thread, names[-1], "x", ns)
    return names


async def test_keep_last_leaves_the_newest_of_each_namespace(
    saver: Any, collections: Collections, thread_id: str
) -> None:
    root = await chain(saver, thread_id, 5)
    child = await chain(saver, thread_id, 3, ns="child:1")
    await pruning.prune(collections, [thread_id], Rule(keep_last=2))
    assert set(await listed(saver, thread_id)) == {*root[-2:], *child[-2:]}


async def test_checkpoint_with_pending_writes_stays(
    saver: Any, collections: Collections, thread_id: str
) -> None:
    names = await chain(saver, thread_id, 3)
    interrupted = await put(saver, thread_id, "fork", parent=names[0])
    await put_writes(saver, thread_id, interrupted, "pending")
    await put(saver, thread_id, "abandoned", parent=names[0])
    newest = await put(saver, thread_id, "newest", parent=names[-1])
    await pruning.prune(collections, [thread_id], Rule(keep_last=1))
    assert set(await listed(saver, thread_id)) == {interrupted, newest}
    await pruning.prune(collections, [thread_id], LATEST)
    assert set(await listed(saver, thread_id)) == {newest}


async def test_ancestors_stay_back_to_the_snapshot_of_a_delta_channel(
    saver: Any, collections: Collections, thread_id: str
) -> None:
    names: list[str] = []
    for number in range(8):
        is_snapshot = number in (0, 4)
        checkpoint = await _put_delta(saver, thread_id, names, is_snapshot=is_snapshot)
        names.append(checkpoint)
    await pruning.prune(collections, [thread_id], LATEST)
    assert set(await listed(saver, thread_id)) == set(names[4:])
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": names[-1]}}
    history = await saver.aget_delta_channel_history(config=config, channels=["value"])
    assert history["value"]["seed"] == "snapshot"
    assert [write[2] for write in history["value"]["writes"]] == [4, 5, 6]


async def _put_delta(saver: Any, thread: str, names: list[str], *, is_snapshot: bool) -> str:
    """A checkpoint of a graph with a delta channel, which has its value in snapshots only."""
    checkpoint = new_checkpoint({"value": "snapshot"})
    metadata: dict[str, Any] = {"step": len(names)}
    if not is_snapshot:
        checkpoint["channel_values"] = {}
        metadata["counters_since_delta_snapshot"] = {"value": [1, 1]}
    configurable = {"thread_id": thread, "checkpoint_ns": ""}
    if names:
        configurable["checkpoint_id"] = names[-1]
    await saver.aput({"configurable": configurable}, checkpoint, metadata, checkpoint["channel_versions"])
    await put_writes(saver, thread, checkpoint["id"], len(names))
    return checkpoint["id"]


async def test_older_than_takes_by_the_time_of_storing(
    saver: Any, collections: Collections, documents: Any, thread_id: str
) -> None:
    names = await chain(saver, thread_id, 4)
    month = datetime.now(UTC) - timedelta(days=31)
    old = {"_id.thread": thread_id, "_id.checkpoint": {"$in": [*names[:2], names[3]]}}
    documents.update_many({**old, "metadata": {"$exists": True}}, {"$set": {"created_at": month}})
    await pruning.prune(collections, [thread_id], Rule(keep_last=3, older_than=timedelta(days=30)))
    assert set(await listed(saver, thread_id)) == set(names[1:]), "both conditions have to be met"
    await pruning.prune(collections, [thread_id], Rule(older_than=timedelta(days=30)))
    assert set(await listed(saver, thread_id)) == set(names[2:]), "the newest stays however old it is"


async def test_dry_run_counts_what_the_prune_then_removes(
    saver: Any, collections: Collections, documents: Any, thread_id: str
) -> None:
    await chain(saver, thread_id, 12)
    before = documents.count_documents({"_id.thread": thread_id})
    progress: list[Progress] = []
    expected = await pruning.prune(collections, [thread_id], Rule(keep_last=3), dry_run=True)
    assert documents.count_documents({"_id.thread": thread_id}) == before
    done = await pruning.prune(collections, [thread_id], Rule(keep_last=3), on_progress=progress.append)
    assert done == expected
    assert done.threads == [thread_id]
    assert (done.removed.checkpoints, done.removed.writes) == (9, 9)
    assert done.removed.pieces > 0
    assert done.removed.size_bytes > 0
    assert progress == [Progress(1, 1, done.removed)]
    assert (await pruning.prune(collections, [thread_id], Rule(keep_last=3))).removed == Removed()


async def test_dry_run_of_strategy_delete_counts_everything(
    saver: Any, collections: Collections, thread_id: str
) -> None:
    await chain(saver, thread_id, 4)
    expected = await pruning.prune(collections, [thread_id], pruning.DELETE, dry_run=True)
    done = await pruning.prune(collections, [thread_id], pruning.DELETE)
    assert done == expected
    assert await listed(saver, thread_id) == {}


async def test_orphans_of_killed_puts_go_after_an_hour(
    saver: Any, collections: Collections, documents: Any, thread_id: str
) -> None:
    names = await chain(saver, thread_id, 2)
    fields = {"schema_version": 2, "data": b"x", "elements": 1, "generation": 0}
    young, old = (datetime.now(UTC) - timedelta(minutes=minutes) for minutes in (50, 70))
    for piece, stored_at in ((b"y" * 16, young), (b"o" * 16, old)):
        key = {"thread": thread_id, "piece": piece}
        documents.insert_one({"_id": key, "stored_at": stored_at, **fields})
    await put_writes(saver, thread_id, "no such checkpoint", "x")
    lost = {"_id.thread": thread_id, "_id.checkpoint": "no such checkpoint"}
    documents.update_many(lost, {"$set": {"created_at": old}})
    done = await pruning.prune(collections, [thread_id], Rule(keep_last=5))
    assert (done.removed.checkpoints, done.removed.writes, done.removed.pieces) == (0, 1, 1)
    assert documents.count_documents({"_id": {"thread": thread_id, "piece": b"y" * 16}}) == 1
    assert set(await listed(saver, thread_id)) == set(names)


async def test_runs_are_deleted_in_all_threads_that_are_then_named(
    saver: Any, collections: Collections
) -> None:
    run, first, second = (uuid.uuid4().hex for _ in range(3))
    await chain(saver, first, 2, run_id=run)
    remaining = await chain(saver, first, 1, run_id="other")
    await chain(saver, second, 1, run_id=run)
    done = await pruning.delete_for_runs(collections, [run, run])
    assert done.threads == sorted([first, second])
    assert done.removed.checkpoints == 3
    assert set(await listed(saver, first)) == set(remaining)
    assert await listed(saver, second) == {}


async def test_checkpoint_of_a_newer_release_stays_with_all_pieces(
    saver: Any, collections: Collections, documents: Any, thread_id: str
) -> None:
    names = await chain(saver, thread_id, 3)
    newer = {"_id": {"thread": thread_id, "ns": "", "checkpoint": names[0]}}
    documents.update_one(newer, {"$set": {"schema_version": 99}})
    pieces = documents.count_documents({"_id.thread": thread_id, "_id.piece": {"$exists": True}})
    await pruning.delete_thread(collections, thread_id)
    assert documents.count_documents(newer) == 1
    assert documents.count_documents({"_id.thread": thread_id, "_id.piece": {"$exists": True}}) == pieces


async def test_large_thread_is_pruned_in_rounds(
    saver: Any, collections: Collections, thread_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await chain(saver, thread_id, 12)
    values = {
        name: row.checkpoint["channel_values"] for name, row in (await listed(saver, thread_id)).items()
    }
    monkeypatch.setattr(deletion, "MAX_CANDIDATES", 3)
    monkeypatch.setattr(pruning, "_BATCH", 2)
    await pruning.prune(collections, [thread_id], Rule(keep_last=2))
    rows = await listed(MongoCheckpointSaver(*collections), thread_id)
    assert {name: row.checkpoint["channel_values"] for name, row in rows.items()} == {
        name: values[name] for name in names[-2:]
    }


# -- retention -------------------------------------------------------------------------------------


async def test_retention_prunes_in_the_background(
    new_storage: Callable[..., MongoStorage], thread_id: str
) -> None:
    async with new_storage(checkpoints_keep_last=3) as storage:
        saver: Any = await storage.checkpointer()
        names = [await put(saver, thread_id, number) for number in range(60)]
        await saver.retention.drain()
        remaining = await listed(saver, thread_id)
        assert len(remaining) < 60
        assert set(names[-3:]) <= set(remaining)


async def test_retention_is_off_by_default(collections: Collections) -> None:
    assert rules_of(None, None) == []
    retention = Retention(collections, [])
    retention.note_put("thread")
    assert not retention.is_on
    await retention.close()


@pytest.mark.parametrize("option", ["checkpoints_keep_last", "checkpoints_ttl_days"])
@pytest.mark.parametrize("value", [0, -1, True, "many"])
def test_retention_of_nothing_is_refused(
    new_storage: Callable[..., MongoStorage], option: str, value: Any
) -> None:
    with pytest.raises(StorageConfigError, match=option):
        new_storage(**{option: value})


# -- arguments and statistics ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"keep_last": 0}, {"older_than": timedelta(seconds=-1)}])
def test_rule_that_takes_the_newest_or_says_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentValueError):
        Rule(**options)


async def test_wrong_arguments_are_refused_before_anything_is_deleted(collections: Collections) -> None:
    with pytest.raises(ArgumentValueError, match="keep_latest"):
        await pruning.prune(collections, ["t"], "newest")
    with pytest.raises(ArgumentTypeError, match="thread_ids"):
        await pruning.prune(collections, "thread", LATEST)
    with pytest.raises(ArgumentTypeError, match="run_ids"):
        await pruning.delete_for_runs(collections, "run")


async def test_statistics_count_and_measure_by_thread(saver: Any, collections: Collections) -> None:
    threads = [uuid.uuid4().hex for _ in range(2)]
    await chain(saver, threads[0], 6)
    await chain(saver, threads[1], 2)
    await pruning.prune(collections, [threads[0]], LATEST)
    rows = [await statistics_of_thread(collections.data, thread) for thread in threads]
    assert [(row.checkpoints, row.writes) for row in rows] == [(1, 1), (2, 2)]
    assert rows[0].deleted == 6
    assert rows[1].size_bytes == sum((rows[1].checkpoints_bytes, rows[1].writes_bytes, rows[1].pieces_bytes))
    everything = await statistics(collections.data, largest=1)
    assert everything.threads >= 2
    assert len(everything.largest) == 1
    assert everything.total.size_bytes >= everything.largest[0].size_bytes
    assert await statistics_of_thread(collections.data, "no such thread") == type(rows[0])("no such thread")
