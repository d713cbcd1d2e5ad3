"""Deletions beside writers: every order of their steps that could leave a checkpoint without a piece.

The steps are the methods of `Deletion`; what happens between two of them is done before or after a call.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from pymongo import MongoClient

from deerflow_mongo import MongoStorage, StorageUnavailableError
from deerflow_mongo.mongodb.checkpoints import deletion, pruning, writer
from deerflow_mongo.mongodb.checkpoints.deletion import Collections, Deletion
from deerflow_mongo.mongodb.checkpoints.pruning import Rule
from deerflow_mongo.mongodb.checkpoints.saver import MongoCheckpointSaver
from deerflow_mongo.mongodb.checkpoints.writer import CheckpointWriter
from deerflow_mongo.mongodb.drivers.driver import READ_COMMITTED
from deerflow_mongo.mongodb.schema import CHECKPOINTS

from .puts import listed, put, put_writes, read_each, texts, values_of

Raw = MongoClient[dict[str, Any]]
Action = Callable[[], Awaitable[object]]

STEPS = ("begin", "_entomb", "_entombed", "_remove_writes", "_unreferenced", "_delete_pieces")
MOMENTS = [*((step, "before") for step in STEPS), (STEPS[-1], "after")]
DELETIONS = ("prune", "delete_runs", "delete_thread")
WRITES = ("put_deleted_value", "fork", "put_again")
SHARED, DELETED, LAST = texts("shared"), texts("deleted"), texts("last")


class Scene:
    """A thread with checkpoints of two processes: `writer` does not know what `other` has put since."""

    def __init__(self, storage: MongoStorage, documents: Any) -> None:
        self.thread = uuid.uuid4().hex
        self.documents = documents
        driver = storage.driver
        self.collections = Collections(
            driver.collection(CHECKPOINTS), driver.collection(CHECKPOINTS, READ_COMMITTED)
        )
        self.writer, self.other = self.saver(), self.saver()
        self.put: dict[str, Any] = {}

    def saver(self) -> MongoCheckpointSaver:
        """One that knows nothing and has no piece in memory, as another process has it."""
        return MongoCheckpointSaver(*self.collections)

    async def build(self) -> None:
        self.first = await self.add(self.writer, [*SHARED, *DELETED], run_id="run-1")
        await put_writes(self.writer, self.thread, self.first, "first")
        self.second = await self.add(self.other, [*SHARED, "second"], parent=self.first, run_id="run-2")
        self.last = await self.add(self.other, [*SHARED, *LAST], parent=self.second, run_id="run-3")
        await put_writes(self.other, self.thread, self.last, "pending")

    async def add(self, saver: Any, value: Any, **options: Any) -> str:
        checkpoint = await put(saver, self.thread, value, **options)
        self.put[checkpoint] = value
        return checkpoint

    # What a writer does with old knowledge.

    async def put_deleted_value(self) -> None:
        await self.add(self.writer, [*SHARED, *DELETED, "again"], parent=self.last)

    async def fork(self) -> None:
        await self.add(self.writer, [*SHARED, *DELETED], parent=self.first)

    async def put_again(self) -> None:
        self.put[self.first] = [*DELETED, *SHARED]
        await put(self.writer, self.thread, self.put[self.first], checkpoint_id=self.first)

    # What deletes.

    async def prune(self) -> None:
        await pruning.prune(self.collections, [self.thread], Rule(keep_last=1))

    async def delete_runs(self) -> None:
        await pruning.delete_for_runs(self.collections, ["run-1", "run-2"])

    async def delete_thread(self) -> None:
        await pruning.delete_thread(self.collections, self.thread)

    # What must hold.

    async def check(self) -> None:
        """Everything that is listed is what was put, and nothing is stored that nobody can reach."""
        for checkpoint, value in (await values_of(self.saver(), self.thread)).items():
            assert value == self.put[checkpoint]
        reachable = set(await listed(self.saver(), self.thread))
        kinds = {
            document["_id"]["checkpoint"]
            for document in self.documents.find({"_id.thread": self.thread, "metadata": {"$exists": True}})
        }
        assert kinds == reachable, "a checkpoint is damaged: it is stored and not listed"

    def count(self, name: str) -> int:
        return self.documents.count_documents({"_id.thread": self.thread, f"_id.{name}": {"$exists": True}})


NewScene = Callable[[], Awaitable[Scene]]


@pytest.fixture
async def new_scene(
    new_storage: Callable[..., MongoStorage], raw_client: Raw, database_name: str
) -> AsyncIterator[NewScene]:
    async with new_storage() as storage:
        documents = raw_client[database_name][CHECKPOINTS]
        if len(documents.index_information()) < 2:
            await storage.setup()

        async def build() -> Scene:
            built = Scene(storage, documents)
            await built.build()
            return built

        yield build


@pytest.fixture
async def scene(new_scene: NewScene) -> Scene:
    return await new_scene()


def interrupt(
    monkeypatch: pytest.MonkeyPatch, step: str, moment: str, action: Action, owner: type = Deletion
) -> list[str]:
    """Do something once before or after the first call of a step; what is returned is filled then."""
    original = getattr(owner, step)
    done: list[str] = []

    async def replaced(self: Any, *arguments: Any, **options: Any) -> Any:
        is_first = not done
        if is_first:
            done.append(step)
        if is_first and moment == "before":
            await action()
        answer = await original(self, *arguments, **options)
        if is_first and moment == "after":
            await action()
        return answer

    monkeypatch.setattr(owner, step, replaced)
    return done


@pytest.mark.parametrize(("step", "moment"), MOMENTS)
async def test_checkpoint_put_between_two_steps_is_whole(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch, step: str, moment: str
) -> None:
    for writes, deletes in product(WRITES, DELETIONS):
        scene = await new_scene()
        with monkeypatch.context() as patched:
            done = interrupt(patched, step, moment, getattr(scene, writes))
            await getattr(scene, deletes)()
        assert done or (step, deletes) == ("_unreferenced", "delete_thread")
        await scene.check()


@pytest.mark.parametrize(("step", "moment"), MOMENTS)
async def test_two_deletions_at_once_leave_whole_checkpoints(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch, step: str, moment: str
) -> None:
    for second in DELETIONS:
        scene = await new_scene()

        async def meanwhile(scene: Scene = scene, second: str = second) -> None:
            await getattr(scene, second)()
            await scene.put_deleted_value()

        with monkeypatch.context() as patched:
            interrupt(patched, step, moment, meanwhile)
            await scene.prune()
        await scene.check()
        assert len(await listed(scene.saver(), scene.thread)) >= 1


class _KilledError(Exception):
    """In the place of `kill -9`: nothing more happens."""


async def kill() -> None:
    raise _KilledError


@pytest.mark.parametrize(("step", "moment"), MOMENTS)
async def test_killed_deletion_is_completed_by_the_next(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch, step: str, moment: str
) -> None:
    monkeypatch.setattr(deletion, "ORPHAN_AGE", timedelta(0))
    for deletes in DELETIONS:
        if (step, deletes) == ("_unreferenced", "delete_thread"):
            continue
        scene = await new_scene()
        with monkeypatch.context() as patched:
            interrupt(patched, step, moment, kill)
            with pytest.raises(_KilledError):
                await getattr(scene, deletes)()
        await scene.check()
        await getattr(scene, deletes)()
        await scene.prune()
        remaining = await listed(scene.saver(), scene.thread)
        assert set(remaining) == (set() if deletes == "delete_thread" else {scene.last})
        assert scene.count("task") == len(remaining)
        if deletes == "delete_thread":
            assert scene.count("piece") == 0


async def test_writer_with_old_knowledge_puts_after_a_killed_and_a_whole_deletion(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number behind the last one that it knows of is a deleted checkpoint's, and not free."""
    with monkeypatch.context() as patched:
        interrupt(patched, "_entomb", "after", kill)
        with pytest.raises(_KilledError):
            await pruning.delete_for_runs(scene.collections, ["run-2"])
    await scene.prune()
    await scene.put_deleted_value()
    await scene.check()


async def test_deletion_between_a_writers_draft_and_its_insert(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "ORPHAN_AGE", timedelta(0))
    for writes, deletes in product(WRITES, DELETIONS):
        scene = await new_scene()
        with monkeypatch.context() as patched:
            done = interrupt(patched, "_insert", "before", getattr(scene, deletes), CheckpointWriter)
            await getattr(scene, writes)()
        assert done
        await scene.check()


async def test_deletion_between_two_batches_of_new_pieces(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces that a put under way has stored are not referred to by anything yet."""
    monkeypatch.setattr(deletion, "ORPHAN_AGE", timedelta(0))
    monkeypatch.setattr(writer, "MAX_COMMAND_BYTES", 4_000)
    done = interrupt(monkeypatch, "_upsert", "after", scene.prune, CheckpointWriter)
    await scene.add(scene.writer, texts("large", 200))
    assert done
    await scene.check()


async def test_checkpoint_read_beside_a_deletion_is_no_proof_of_its_pieces(scene: Scene) -> None:
    """A saver that reads a checkpoint of before the deletion claims the pieces again before it uses them."""
    await pruning.delete_for_runs(scene.collections, ["run-2"])
    reader = scene.saver()
    assert scene.first in await read_each(reader, scene.thread, [scene.first])
    await scene.add(reader, [*SHARED, *DELETED, "third"], parent=scene.first)
    pieces = scene.documents.find({"_id.thread": scene.thread, "_id.piece": {"$exists": True}})
    newest = scene.documents.find_one({"_id.thread": scene.thread, "parent": scene.first, "seq": {"$gte": 5}})
    assert newest["generation"] == 4
    assert sum(piece["generation"] == 4 for piece in pieces) >= 5


async def test_deletion_of_a_thread_with_nothing_stores_nothing(scene: Scene) -> None:
    thread = uuid.uuid4().hex
    await pruning.delete_thread(scene.collections, thread)
    await pruning.prune(scene.collections, [thread], Rule(keep_last=1))
    await pruning.delete_for_runs(scene.collections, [uuid.uuid4().hex])
    assert scene.documents.count_documents({"_id.thread": thread}) == 0


async def test_prune_without_anything_to_remove_stores_no_record(scene: Scene) -> None:
    await pruning.prune(scene.collections, [scene.thread], Rule(keep_last=3))
    assert scene.count("record") == 0


async def test_deletion_that_cannot_see_its_record_deletes_no_piece(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover, on a primary that does not know yet what is committed."""
    original = Deletion.begin

    async def begin(self: Deletion, at_least: int = 0) -> None:
        await original(self, at_least)
        scene.documents.delete_many({"_id.thread": scene.thread, "_id.record": {"$exists": True}})

    pieces = scene.count("piece")
    monkeypatch.setattr(Deletion, "begin", begin)
    with pytest.raises(StorageUnavailableError, match="not committed"):
        await scene.prune()
    assert scene.count("piece") == pieces
    await scene.check()


async def test_thread_that_was_deleted_begins_anew_though_all_records_have_expired(scene: Scene) -> None:
    await scene.delete_thread()
    scene.documents.delete_many({"_id.thread": scene.thread})  # as the server does after a day
    await scene.add(scene.saver(), [*SHARED, *DELETED])
    await scene.check()
    await scene.delete_thread()
    assert scene.count("piece") == 0


async def test_pieces_of_a_higher_generation_go_with_their_thread(scene: Scene) -> None:
    scene.documents.update_many(
        {"_id.thread": scene.thread, "_id.piece": {"$exists": True}}, {"$set": {"generation": 40}}
    )
    await scene.delete_thread()
    assert scene.count("piece") == 0


async def test_put_while_leftover_pieces_of_a_deleted_thread_are_removed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces of a put that died are of the deletion's generation; a second record is for them."""
    original = Deletion.begin
    begun: list[int] = []

    async def begin(self: Deletion, at_least: int = 0) -> None:
        if begun:
            await scene.put_deleted_value()
        await original(self, at_least)
        if not begun:
            orphan = {"thread": scene.thread, "piece": b"0" * 16}
            fields = {"schema_version": 2, "data": b"x", "elements": 1, "stored_at": datetime.now(UTC)}
            scene.documents.insert_one({"_id": orphan, "generation": self.number, **fields})
        begun.append(self.number)

    monkeypatch.setattr(Deletion, "begin", begin)
    await scene.delete_thread()
    assert len(begun) == 2
    await scene.check()
    assert len(await listed(scene.saver(), scene.thread)) == 1


async def test_saver_that_knows_the_last_deletion_claims_pieces_of_older_checkpoints(scene: Scene) -> None:
    await pruning.delete_for_runs(scene.collections, ["run-2"])
    saver = scene.saver()
    await scene.add(saver, ["knows the deletion"], parent=scene.last)
    await read_each(saver, scene.thread, [scene.first])
    newest = await scene.add(saver, [*SHARED, *DELETED, "third"], parent=scene.first)
    stored = scene.documents.find_one({"_id": {"thread": scene.thread, "ns": "", "checkpoint": newest}})
    (channel,) = stored["channels"]
    keys = [channel["pieces"][start : start + 16] for start in range(0, len(channel["pieces"]), 16)]
    pieces = scene.documents.find({"_id": {"$in": [{"thread": scene.thread, "piece": key} for key in keys]}})
    assert {piece["generation"] for piece in pieces} == {stored["generation"]}


async def test_checkpoint_that_is_put_again_after_the_record_stays(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, "begin", "after", scene.put_again)
    await scene.prune()
    assert scene.first in await listed(scene.saver(), scene.thread)
    await scene.check()
