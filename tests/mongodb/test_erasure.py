"""An erasure on a server: checkpoints, batches, damaged documents, interruptions, and what a search finds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.database import Database as AnyDatabase

from deerflow_mongo import CorruptDocumentError, MongoStorage, ThreadMetaCreate
from deerflow_mongo.contract.erasure import Erased
from deerflow_mongo.mongodb import erasure
from deerflow_mongo.mongodb.events import store as event_store

from ..child_processes import kill
from ..database_search import documents_with

Database = AnyDatabase[dict[str, Any]]

USER, EMAIL, WORDS = "user-7c1e", "alice@secret.example", "a sentence of the user"
THREAD = "thread-1"


@pytest.fixture
def database(raw_client: MongoClient[dict[str, Any]], database_name: str) -> Database:
    return raw_client[database_name]


async def _converse(storage: MongoStorage, thread_id: str, user_id: str, *, events: int = 3) -> None:
    """A thread with a run, its events, a vote and a checkpoint, each with the user's words."""
    meta = ThreadMetaCreate(thread_id=thread_id, user_id=user_id, display_name=WORDS, metadata={"of": WORDS})
    await storage.threads.create_thread_meta(meta)
    run_id = f"run-of-{thread_id}"
    await storage.runs.create(run_id, thread_id, user_id=user_id, kwargs={"input": WORDS})
    await storage.runs.update_run_completion(run_id, status="success", first_human_message=WORDS)
    message: Any = {"event_type": "human", "category": "message", "content": WORDS, "user_id": user_id}
    message |= {"thread_id": thread_id, "run_id": run_id}
    await storage.run_events.put_batch([message] * events)
    await storage.feedback.upsert(
        run_id=run_id, thread_id=thread_id, rating=1, user_id=user_id, comment=WORDS
    )
    await _checkpoint(storage, thread_id, run_id)


async def _checkpoint(storage: MongoStorage, thread_id: str, run_id: str) -> None:
    base: Any = pytest.importorskip("langgraph.checkpoint.base")
    saver: Any = await storage.checkpointer()
    checkpoint = {**base.empty_checkpoint(), "channel_values": {"messages": [WORDS] * 2_000}}
    checkpoint["channel_versions"] = {"messages": "1"}
    config = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    config = await saver.aput(config, checkpoint, {"run_id": run_id, "source": WORDS}, {"messages": "1"})
    await saver.aput_writes(config, [("messages", WORDS)], "task-1")


def _found(database: Database, *texts: str) -> set[str]:
    """The collections in which a document has one of these texts."""
    return {name for text in texts for name in documents_with(database, text)}


async def test_search_of_every_collection_finds_nothing_of_an_erased_user(
    storage: MongoStorage, database: Database
) -> None:
    await storage.users.create(USER, email=EMAIL, password_hash=f"hash of {EMAIL}")
    await _converse(storage, THREAD, USER)
    await _converse(storage, "thread-of-bob", "bob")
    event: Any = {"thread_id": "thread-of-bob", "run_id": "run-of-thread-of-bob", "category": "message"}
    await storage.run_events.put(**event, event_type="human", user_id=USER)
    database["threads"].update_one({"_id": "thread-of-bob"}, {"$set": {"display_name": "", "metadata": {}}})
    assert _found(database, USER, EMAIL) == {"users", "threads", "runs", "run_events", "feedback"}
    assert "checkpoint_data" in _found(database, WORDS)

    erased = await storage.erase_user(USER)
    assert erased == Erased(threads=1, runs=1, run_events=4, feedback=1, checkpoints=1, accounts=1)
    assert _found(database, USER, EMAIL) == set()
    await storage.purge_thread("thread-of-bob")
    assert _found(database, WORDS) == set()


async def test_purge_of_a_thread_erases_its_checkpoints(storage: MongoStorage, database: Database) -> None:
    await _converse(storage, THREAD, USER)
    await _converse(storage, "other", USER)
    saver: Any = await storage.checkpointer()
    there = Erased(threads=1, runs=1, run_events=3, feedback=1, checkpoints=1)
    assert await storage.count_thread(THREAD) == there
    assert await storage.purge_thread(THREAD) == there
    assert await saver.aget_tuple({"configurable": {"thread_id": THREAD}}) is None
    assert await saver.aget_tuple({"configurable": {"thread_id": "other"}}) is not None
    assert database["checkpoint_data"].count_documents({"_id.thread": THREAD, "expires_at": None}) == 0


async def test_erasure_works_in_batches(storage: MongoStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((erasure, "_BATCH"), (erasure, "_SCANNED"), (event_store, "_ERASED_AT_ONCE")):
        monkeypatch.setattr(module, name, 3)
    for number in range(7):
        await _converse(storage, f"thread-{number}", USER, events=10)
        await storage.feedback.create(run_id="another", thread_id="x", rating=1, user_id=USER)
    there = Erased(threads=7, runs=7, run_events=70, feedback=14, checkpoints=7)
    assert await storage.count_user(USER) == there
    assert await storage.erase_user(USER) == there
    assert await storage.count_user(USER) == Erased()


async def test_document_of_a_newer_version_stays_and_is_named(
    storage: MongoStorage, database: Database
) -> None:
    await _converse(storage, THREAD, USER)
    database["runs"].update_one({"_id": f"run-of-{THREAD}"}, {"$set": {"schema_version": 99}})
    with pytest.raises(CorruptDocumentError, match=r"run-of-thread-1.*newer release"):
        await storage.purge_thread(THREAD)
    assert database["runs"].count_documents({}) == 1
    assert await storage.count_thread(THREAD) == Erased()
    assert await storage.threads.get_thread_meta(THREAD) is None


async def test_damaged_documents_are_erased_too(storage: MongoStorage, database: Database) -> None:
    await _converse(storage, THREAD, USER)
    for name in ("runs", "feedback", "threads", "run_events"):
        database.command({"collMod": name, "validationLevel": "off"})
        database[name].update_many({}, {"$unset": {"created_at": "", "schema_version": ""}})
    first = database["run_events"].find_one({"seq": 1})
    assert first is not None
    database["run_events"].update_one({"_id": first["_id"]}, {"$set": {"seq": "broken"}})
    await storage.purge_thread(THREAD)
    assert _found(database, WORDS) == set()


async def test_damaged_documents_without_a_thread_are_erased_with_their_user(
    storage: MongoStorage, database: Database
) -> None:
    await _converse(storage, THREAD, USER)
    for name in ("runs", "feedback", "run_events"):
        database.command({"collMod": name, "validationLevel": "off"})
        database[name].update_many({}, {"$unset": {"thread_id": ""}})
    there = Erased(threads=1, runs=1, run_events=3, feedback=1, checkpoints=1)
    assert await storage.count_user(USER) == there
    assert await storage.erase_user(USER) == there
    assert _found(database, USER, WORDS) == set()


async def test_events_that_are_put_during_an_erasure_keep_their_numbers(
    storage: MongoStorage, new_storage: Callable[..., MongoStorage]
) -> None:
    """The next erasure removes them; no number is given twice."""
    seen: list[int] = []

    async def write(writer: MongoStorage) -> None:
        message: Any = {"thread_id": THREAD, "run_id": "r", "event_type": "human", "category": "message"}
        for _ in range(40):
            row = await writer.run_events.put(**message)
            seen.append(row["seq"])

    async def erase() -> None:
        for _ in range(10):
            await storage.purge_thread(THREAD)

    async with new_storage() as other:
        await asyncio.gather(write(storage), write(other), erase())
    assert len(set(seen)) == len(seen) == 80
    await storage.purge_thread(THREAD)
    assert await storage.count_thread(THREAD) == Erased()


_ERASE = """
import asyncio, json, sys
from deerflow_mongo import create_storage
from deerflow_mongo.mongodb import erasure
from deerflow_mongo.mongodb.events import store

async def main(url, database):
    erasure._BATCH = store._ERASED_AT_ONCE = 1
    async with create_storage({"backend": "mongodb", "url": url, "database": database}) as storage:
        await storage.ping()
        print("ready", flush=True)
        await storage.erase_user("user-7c1e")

asyncio.run(main(*sys.argv[1:]))
"""


class _Load:
    """Another user who writes all the time; `run_ids` are those that were acknowledged."""

    def __init__(self, storage: MongoStorage) -> None:
        self._storage = storage
        self.run_ids: list[str] = []

    async def write(self) -> None:
        for number in range(100_000):
            await self._storage.runs.create(run_id := f"run-of-bob-{number}", "of-bob", user_id="bob")
            message: Any = {"event_type": "human", "category": "message", "user_id": "bob"}
            await self._storage.run_events.put(**message, thread_id="of-bob", run_id=run_id)
            self.run_ids.append(run_id)

    async def check(self) -> None:
        runs = await self._storage.runs.list_by_thread("of-bob", limit=100_000, user_id="bob")
        events = await self._storage.run_events.list_messages("of-bob", limit=100_000)
        assert {row["run_id"] for row in runs} >= set(self.run_ids)
        assert {row["run_id"] for row in events} >= set(self.run_ids)


async def test_erasure_that_was_killed_under_load_is_completed_by_the_next_one(
    storage: MongoStorage, database: Database, mongodb_url: str
) -> None:
    await storage.users.create(USER, email=EMAIL)
    for number in range(20):
        await _converse(storage, f"thread-{number}", USER, events=20)
    there, load = await storage.count_user(USER), _Load(storage)
    writing = asyncio.create_task(load.write())
    await _erase_until_killed(mongodb_url, database.name, lambda: storage.count_user(USER))
    left = await storage.count_user(USER)
    assert Erased() != left != there
    assert left.accounts == 1
    await storage.erase_user(USER)
    writing.cancel()
    await asyncio.wait({writing})
    assert _found(database, USER, EMAIL, WORDS) == set()
    assert len(load.run_ids) > 10
    await load.check()


async def _erase_until_killed(url: str, database: str, count: Callable[[], Awaitable[Erased]]) -> None:
    """Start an erasure in another process, and kill it once it has erased something."""
    there = await count()
    with subprocess.Popen(  # noqa: ASYNC220, S603 - our own code
        [sys.executable, "-c", _ERASE, url, database], stdout=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout is not None
            await asyncio.to_thread(child.stdout.readline)
            while await count() == there:
                assert child.poll() is None
        finally:
            kill(child)
