"""Copying checkpoints: everything arrives, an interrupted copy continues, nothing is overwritten unasked."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.types import Command

from deerflow_mongo import MongoStorage
from deerflow_mongo.contract.errors import StorageUnavailableError
from deerflow_mongo.mongodb.checkpoints.saver import MongoCheckpointSaver
from deerflow_mongo.transfer.checkpoints import (
    CheckpointCopy,
    CopiedThread,
    CopyOptions,
    parents_first,
    write_calls,
)
from deerflow_mongo.transfer.sources import Source, open_source
from deerflow_mongo.transfer.stored_values import Key, ListedCheckpoint, Write

from . import conversations
from .conftest import OtherSaver
from .conversations import build_graph, converse

Saver = BaseCheckpointSaver[Any]


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Source]:
    source = await open_source(url)
    try:
        yield source
    finally:
        await source.aclose()


async def copied(url: str, target: Saver, thread_id: str = "t", **options: Any) -> CopiedThread:
    async with opened(url) as source:
        return await CheckpointCopy(source, target, CopyOptions(**options)).copy(thread_id)


async def listed(saver: Saver, thread_id: str = "t") -> list[CheckpointTuple]:
    return [found async for found in saver.alist({"configurable": {"thread_id": thread_id}})]


def comparable(found: Iterable[CheckpointTuple]) -> list[Any]:
    """Checkpoints as they are compared; langgraph-checkpoint-mongodb returns writes in another order."""
    return [
        (
            one.config.get("configurable"),
            one.checkpoint,
            one.metadata,
            one.parent_config,
            sorted(one.pending_writes or [], key=repr),
        )
        for one in found
    ]


def executed(saver: OtherSaver, *statements: str) -> list[Any]:
    """The rows of the last of the statements in a SQLite source's file."""
    rows: list[Any] = []
    with closing(sqlite3.connect(file_of(saver))) as connection, connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def file_of(saver: OtherSaver) -> Path:
    return Path(saver.url.removeprefix("sqlite:///"))


def digest(saver: OtherSaver) -> str:
    return hashlib.sha256(file_of(saver).read_bytes()).hexdigest()


# -- what arrives ----------------------------------------------------------------------------------


async def test_copy_lists_what_the_source_lists(other: OtherSaver, storage: MongoStorage) -> None:
    await converse(other.saver, "t", turns=1)
    target = await storage.checkpointer()
    async with opened(other.url) as source:
        assert [tuple(thread) for thread in await source.threads()] == [("t", len(await listed(other.saver)))]
        reader = MongoCheckpointSaver(storage.driver.collection("checkpoint_data"))
        copy = CheckpointCopy(source, target, CopyOptions(), reader=reader)
        assert (await copy.copy("t")).result == "copied"
        assert (await copy.copy("t")).result == "unchanged"
    assert comparable(await listed(target)) == comparable(await listed(other.saver))
    # And it goes on as it would have in the source.
    config = {"configurable": {"thread_id": "t"}}
    answers: list[Any] = [
        await build_graph(saver).ainvoke(Command(resume="full"), config) for saver in (other.saver, target)
    ]
    assert answers[0]["notes"] == answers[1]["notes"]
    assert "half full" in answers[1]["notes"]


async def test_writes_have_the_same_places_and_paths(sqlite: OtherSaver, storage: MongoStorage) -> None:
    await converse(sqlite.saver, "t")
    await copied(sqlite.url, await storage.checkpointer())
    expected = executed(
        sqlite, "SELECT checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel FROM writes"
    )
    data = storage.driver.collection("checkpoint_data")
    documents = await data.aggregate([{"$match": {"writes": {"$exists": True}}}, {"$unwind": "$writes"}])
    stored = {
        (key["ns"], key["checkpoint"], key["task"], document["path"], write["idx"], write["channel"])
        for document in documents
        for key, write in [(document["_id"], document["writes"])]
    }
    assert stored == set(expected)
    assert any(index < 0 for *_, index, _ in stored)


async def test_class_that_cannot_be_imported_is_copied(
    sqlite: OtherSaver, storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await converse(sqlite.saver, "t", turns=1)
    target = await storage.checkpointer()
    with monkeypatch.context() as patch:
        patch.delattr(conversations, "Artifact")
        assert (await copied(sqlite.url, target)).result == "copied"
    newest = await target.aget_tuple({"configurable": {"thread_id": "t"}})
    assert newest is not None
    assert newest.checkpoint["channel_values"]["artifact"] == conversations.Artifact("file", {"a"})


async def test_value_in_another_form_is_copied_as_it_is(sqlite: OtherSaver, in_memory: Any) -> None:
    await converse(sqlite.saver, "t", turns=1)
    executed(sqlite, "UPDATE writes SET type = 'pickle', value = x'00ff' WHERE channel = 'notes'")
    assert (await copied(sqlite.url, in_memory)).result == "copied"
    rows = await in_memory.conn.execute_fetchall(
        "SELECT DISTINCT type, value FROM writes WHERE channel = 'notes'"
    )
    assert list(rows) == [("pickle", b"\x00\xff")]


# -- repeated copies -------------------------------------------------------------------------------


async def test_interrupted_copy_continues(sqlite: OtherSaver, in_memory: Saver) -> None:
    await converse(sqlite.saver, "t")
    written: list[int] = []

    def interrupt(size_bytes: int) -> None:
        written.append(size_bytes)
        if len(written) == 5:
            raise asyncio.CancelledError

    async with opened(sqlite.url) as source:
        copy = CheckpointCopy(source, in_memory, CopyOptions(), on_checkpoint=interrupt)
        with pytest.raises(asyncio.CancelledError):
            await copy.copy("t")
        total = len(await listed(sqlite.saver))
        assert (await copy.copy("t"))[:3] == ("t", "continued", total - 5)
    assert comparable(await listed(in_memory)) == comparable(await listed(sqlite.saver))


async def test_what_the_source_gets_meanwhile_is_copied_next_time(
    sqlite: OtherSaver, in_memory: Saver
) -> None:
    await converse(sqlite.saver, "t", turns=1)
    await copied(sqlite.url, in_memory)
    newest = (await listed(sqlite.saver))[0].config
    await sqlite.saver.aput_writes(newest, [("notes", ["late"])], "late-task")
    await converse(sqlite.saver, "t", turns=1)
    assert (await copied(sqlite.url, in_memory)).result == "continued"
    assert comparable(await listed(in_memory)) == comparable(await listed(sqlite.saver))


async def test_target_that_went_on_is_left_alone(sqlite: OtherSaver, in_memory: Saver) -> None:
    await converse(sqlite.saver, "t", turns=1)
    await copied(sqlite.url, in_memory)
    await in_memory.aput_writes((await listed(in_memory))[0].config, [("notes", ["new"])], "new-task")
    await converse(in_memory, "t", turns=1)
    before = comparable(await listed(in_memory))
    assert (await copied(sqlite.url, in_memory, overwrite=True)).result == "ahead"
    assert comparable(await listed(in_memory)) == before


@pytest.mark.parametrize("change", ["value", "checkpoints"])
async def test_thread_that_differs_is_only_replaced_when_asked(
    sqlite: OtherSaver, in_memory: Saver, change: str
) -> None:
    await converse(sqlite.saver, "t", turns=1)
    await copied(sqlite.url, in_memory)
    if change == "value":
        newest = (await listed(in_memory))[0]
        other = {**newest.checkpoint, "channel_values": {"notes": ["other"]}}
        await in_memory.aput(newest.parent_config or {}, other, newest.metadata, {})  # type: ignore[arg-type]
    else:
        await converse(in_memory, "t", turns=1)
        await converse(sqlite.saver, "t", turns=1)
    before = comparable(await listed(in_memory))
    report = await copied(sqlite.url, in_memory)
    assert report.result == "different"
    assert ("value of channel" if change == "value" else "only in the source") in report.reason
    assert comparable(await listed(in_memory)) == before
    assert (await copied(sqlite.url, in_memory, overwrite=True)).result == "overwritten"
    assert comparable(await listed(in_memory)) == comparable(await listed(sqlite.saver))


async def test_dry_run_writes_nothing(sqlite: OtherSaver, in_memory: Saver) -> None:
    await converse(sqlite.saver, "t", turns=1)
    report = await copied(sqlite.url, in_memory, dry_run=True)
    assert (report.result, report.checkpoints) == ("copied", len(await listed(sqlite.saver)))
    assert await listed(in_memory) == []


# -- failures --------------------------------------------------------------------------------------


async def test_value_that_arrives_otherwise_fails_the_thread(
    sqlite: OtherSaver, in_memory: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await converse(sqlite.saver, "t", turns=1)

    async def lose(*_: object) -> None:
        pass

    monkeypatch.setattr(type(in_memory), "aput_writes", lose)
    report = await copied(sqlite.url, in_memory)
    assert report.result == "failed"
    assert "compared after the copy" in report.reason
    assert "pending writes" in report.reason


async def test_unreadable_thread_does_not_stop_the_next(sqlite: OtherSaver, in_memory: Saver) -> None:
    for thread_id in ("bad", "good"):
        await converse(sqlite.saver, thread_id, turns=1)
    executed(sqlite, "UPDATE checkpoints SET checkpoint = x'c1' WHERE thread_id = 'bad'")
    assert (await copied(sqlite.url, in_memory, "bad")).result == "failed"
    assert (await copied(sqlite.url, in_memory, "good")).result == "copied"
    assert (await copied(sqlite.url, in_memory, "absent")).result == "failed"


async def test_lost_source_ends_the_copy(sqlite: OtherSaver, in_memory: Saver) -> None:
    await converse(sqlite.saver, "t", turns=1)
    source = await open_source(sqlite.url)
    await source.aclose()
    with pytest.raises(StorageUnavailableError, match="the source cannot be read any more"):
        await CheckpointCopy(source, in_memory, CopyOptions()).copy("t")


@pytest.mark.parametrize("is_in_use", [True, False])
async def test_file_of_the_source_is_not_changed(
    sqlite: OtherSaver, in_memory: Saver, tmp_path: Path, is_in_use: bool
) -> None:
    await converse(sqlite.saver, "t", turns=1)
    executed(sqlite, "ALTER TABLE writes DROP COLUMN task_path")  # of an older release
    if not is_in_use:
        executed(sqlite, f"VACUUM INTO '{tmp_path / 'unused.db'}'")
        sqlite.url = f"sqlite:///{tmp_path / 'unused.db'}"  # without WAL mode
    before = digest(sqlite)
    assert (await copied(sqlite.url, in_memory)).result == "copied"
    assert digest(sqlite) == before
    assert (tmp_path / "unused.db-wal").exists() is False


# -- orders ----------------------------------------------------------------------------------------


def test_parents_precede_their_children_whatever_their_ids() -> None:
    def checkpoint(checkpoint_id: str, parent_id: str | None, namespace: str = "") -> ListedCheckpoint:
        return ListedCheckpoint(Key(namespace, checkpoint_id), parent_id)

    given = [
        checkpoint("2", "5"),
        checkpoint("5", "4"),
        checkpoint("4", "absent"),
        checkpoint("3", None, "inner"),
        checkpoint("6", "7"),
        checkpoint("7", "6"),
    ]
    ordered = [checkpoint.key.checkpoint_id for checkpoint in parents_first(given)]
    assert ordered == ["4", "5", "2", "3", "7", "6"]


def test_gap_in_the_places_is_filled_by_a_special_write() -> None:
    def write(index: int, channel: str, path: str = "p") -> Write:
        return Write("task", path, index, channel, channel)

    writes = [write(-4, "__resume__"), write(2, "a"), write(3, "b")]
    assert [channel for channel, _ in write_calls(writes)[0].writes] == ["__resume__", "__resume__", "a", "b"]
    two_paths = [write(0, "a"), write(-1, "__error__"), write(1, "b", "q")]
    assert [[channel for channel, _ in call.writes] for call in write_calls(two_paths)] == [
        ["a", "__error__"],
        ["a", "b"],
    ]
