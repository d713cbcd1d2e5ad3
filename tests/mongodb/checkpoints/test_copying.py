"""Copies of threads: beside deletions, into threads that have something, repeated, and of damaged ones."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage
from deerflow_mongo.contract.errors import CorruptDocumentError
from deerflow_mongo.mongodb.checkpoints import copying, pruning
from deerflow_mongo.mongodb.checkpoints.copying import copy_thread
from deerflow_mongo.mongodb.checkpoints.deletion import Collections
from deerflow_mongo.mongodb.checkpoints.pruning import LATEST
from deerflow_mongo.mongodb.checkpoints.saver import MongoCheckpointSaver
from deerflow_mongo.mongodb.drivers.driver import READ_COMMITTED
from deerflow_mongo.mongodb.schema import CHECKPOINTS

from .puts import listed, put, put_writes, texts, values_of

Raw = MongoClient[dict[str, Any]]


@pytest.fixture
async def collections(storage: MongoStorage) -> Collections:
    await storage.checkpointer()
    driver = storage.driver
    return Collections(driver.collection(CHECKPOINTS), driver.collection(CHECKPOINTS, READ_COMMITTED))


@pytest.fixture
async def saver(collections: Collections) -> Any:
    return MongoCheckpointSaver(*collections)


@pytest.fixture
def documents(raw_client: Raw, database_name: str) -> Any:
    return raw_client[database_name][CHECKPOINTS]


async def source_thread(saver: Any) -> tuple[str, dict[str, Any]]:
    """A thread with five checkpoints, with small and large writes, and their values."""
    thread, values = uuid.uuid4().hex, dict[str, Any]()
    parent = None
    for number in range(5):
        value = [*texts(thread), *texts(f"{thread}-{number}", 20)]
        parent = await put(saver, thread, value, parent=parent)
        values[parent] = value
        await put_writes(saver, thread, parent, "x" * (10 if number else 600_000))
    return thread, values


async def test_copy_has_values_writes_and_parts(saver: Any, collections: Collections, thread_id: str) -> None:
    source, values = await source_thread(saver)
    copied = await copy_thread(collections.data, source, thread_id)
    assert copied.checkpoints == len(values)
    await pruning.delete_thread(collections, source)
    rows = await listed(MongoCheckpointSaver(*collections), thread_id)
    assert {name: row.checkpoint["channel_values"]["value"] for name, row in rows.items()} == values
    sizes = {len(value) for row in rows.values() for _, _, value in row.pending_writes or ()}
    assert sizes == {10, 600_000}


async def test_copy_leaves_what_the_target_has_and_is_repeatable(
    saver: Any, collections: Collections, thread_id: str
) -> None:
    source, values = await source_thread(saver)
    own = await put(saver, thread_id, "own")
    replaced = next(iter(values))
    await put(saver, thread_id, "replaced", checkpoint_id=replaced)
    await copy_thread(collections.data, source, thread_id)
    assert await values_of(saver, thread_id) == {**values, own: "own"}
    again = await copy_thread(collections.data, source, thread_id)
    assert again.checkpoints == 0
    newest = await put(saver, source, "newest", parent=own)
    assert (await copy_thread(collections.data, source, thread_id)).checkpoints == 1
    assert newest in await listed(saver, thread_id)


@pytest.mark.parametrize("step", ["_copy_writes", "_copy_pieces", "_read_last_entry", "_replace"])
async def test_target_deleted_or_pruned_in_mid_copy(
    saver: Any, collections: Collections, thread_id: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source, values = await source_thread(saver)
    await copy_thread(collections.data, source, thread_id)
    await put(saver, thread_id, "replaced", checkpoint_id=next(iter(values)))
    original = getattr(copying._Copy, step)  # pyright: ignore[reportPrivateUsage]
    deletions = [
        lambda: pruning.delete_thread(collections, thread_id),
        lambda: pruning.prune(collections, [thread_id], LATEST),
    ]

    async def replaced(self: Any, *arguments: Any) -> Any:
        answer = await original(self, *arguments)
        if deletions:
            await deletions.pop()()
        return answer

    monkeypatch.setattr(copying._Copy, step, replaced)  # pyright: ignore[reportPrivateUsage]
    await copy_thread(collections.data, source, thread_id)
    rows = await values_of(MongoCheckpointSaver(*collections), thread_id)
    assert rows.items() <= values.items()


async def test_source_deleted_in_mid_copy_is_no_damage(
    saver: Any, collections: Collections, thread_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, values = await source_thread(saver)
    original: Callable[..., Any] = copying._Copy._copy_writes  # pyright: ignore[reportPrivateUsage]

    async def replaced(self: Any, *arguments: Any) -> None:
        await original(self, *arguments)
        await pruning.delete_thread(collections, source)

    monkeypatch.setattr(copying._Copy, "_copy_writes", replaced)  # pyright: ignore[reportPrivateUsage]
    await copy_thread(collections.data, source, thread_id)
    assert (await values_of(saver, thread_id)).items() <= values.items()


async def test_damaged_checkpoint_is_named_after_the_others_were_copied(
    saver: Any, collections: Collections, documents: Any, thread_id: str
) -> None:
    source, values = await source_thread(saver)
    damaged = await put(saver, source, texts("only here", 100))
    await put(saver, source, values[next(iter(values))], checkpoint_id="x")
    documents.delete_one(
        {
            "_id.thread": source,
            "_id.piece": documents.find_one({"_id": {"thread": source, "ns": "", "checkpoint": damaged}})[
                "channels"
            ][0]["pieces"][:16],
        }
    )
    with pytest.raises(CorruptDocumentError, match=damaged):
        await copy_thread(collections.data, source, thread_id)
    assert set(await listed(saver, thread_id)) == {*values, "x"}


async def test_copy_of_nothing_or_onto_itself_changes_nothing(
    saver: Any, collections: Collections, documents: Any, thread_id: str
) -> None:
    await copy_thread(collections.data, "no such thread", thread_id)
    assert documents.count_documents({"_id.thread": thread_id}) == 0
    source, values = await source_thread(saver)
    await copy_thread(collections.data, source, source)
    assert await values_of(saver, source) == values
