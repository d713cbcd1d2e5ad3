"""An upgrade beside processes of the old and of this release: no error, nothing lost; and after a kill."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Self

import pytest
from bson import Int64, ObjectId
from pymongo import MongoClient
from pymongo.database import Database

from deerflow_mongo import MongoStorage, StorageConfigError
from deerflow_mongo.mongodb import migrations, upgrades
from deerflow_mongo.mongodb.documents import versions
from deerflow_mongo.mongodb.schema import COLLECTIONS, RUNS, CollectionSchema, Index, schema_of
from deerflow_mongo.mongodb.upgrades import Progress

from ..child_processes import kill
from . import version_1

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]
Opener = Callable[..., MongoStorage]

COPIES = 25


@pytest.fixture
def database(raw_client: Raw, database_name: str) -> Database[Document]:
    return raw_client[database_name]


class OldRelease:
    """A thread that stores documents of version 1, each time with an update of the one before.

    As that release did, it writes times as texts, and changes no document of a newer version.
    """

    def __init__(self, database: Database[Document]) -> None:
        self._database = database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._next = threading.Event()
        self.stored: list[int] = []
        self.errors: list[Exception] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_next(self) -> None:
        """Wait until it has stored one more number, or has ended."""
        self._next.clear()
        while self._thread.is_alive() and not self._next.wait(0.1):
            pass

    def _work(self) -> None:
        for number in itertools.count():
            try:
                self._store(number)
            except Exception as error:  # noqa: BLE001 - any is what a client of the old release sees
                self.errors.append(error)
                return
            self.stored.append(number)
            self._next.set()
            if self._stop.wait(0.002):
                return

    def _store(self, number: int) -> None:
        now = datetime.now(UTC)
        times: Document = {"created_at": now.isoformat(timespec="microseconds")}
        order: Document = {"order": Int64(now.timestamp() * 1_000_000)}
        of_thread: Document = {"thread_id": f"old thread {number}", **times}
        documents: dict[str, Document] = {
            "threads": {"_id": f"old thread {number}", "updated_at": times["created_at"], **times, **order},
            "runs": {"_id": f"old run {number}", **of_thread, **order},
            "run_events": {"_id": ObjectId(), **of_thread, "seq": 1, "run_id": f"old run {number}"},
            "feedback": {"_id": f"old vote {number}", **of_thread, **order, "run_id": f"old run {number}"},
        }
        for name, fields in documents.items():
            self._database[name].insert_one({**version_1.first_document(name), **fields})
        self._database["runs"].update_one(
            {"_id": f"old run {number - 1}", "schema_version": 1},
            {"$set": {"updated_at": now.isoformat(timespec="microseconds"), "message_count": 77}},
        )


class NewRelease:
    """A task that stores and reads rows of every kind by this release until it is stopped."""

    def __init__(self, storage: MongoStorage) -> None:
        self._storage = storage
        self.stored = 0
        self._is_stopped = False

    async def work(self) -> None:
        storage = self._storage
        for number in itertools.count():
            ids: Any = {"run_id": f"new run {number}", "thread_id": f"new thread {number}"}
            await storage.threads.ensure_thread(thread_id=ids["thread_id"], user_id="alice")
            await storage.runs.create(ids["run_id"], ids["thread_id"], user_id="alice", status="running")
            await storage.run_events.put(**ids, event_type="said", category="message")
            await storage.runs.update_run_completion(ids["run_id"], status="success", total_tokens=number)
            await storage.feedback.upsert(**ids, rating=1, user_id="alice")
            assert len(await storage.runs.list_by_thread(ids["thread_id"], user_id="alice")) == 1
            assert await storage.runs.get("run-ended", user_id=None) is not None
            self.stored += 1
            if self._is_stopped:
                return

    async def stop(self, working: asyncio.Task[None]) -> None:
        self._is_stopped = True
        await working


@pytest.fixture
async def unset_storage(new_storage: Opener) -> AsyncIterator[MongoStorage]:
    """A storage without `setup()`."""
    async with contextlib.aclosing(new_storage()) as storage:
        yield storage


async def test_upgrade_beside_old_and_new_processes_shows_no_error_and_loses_nothing(
    new_storage: Opener,
    unset_storage: MongoStorage,
    database: Database[Document],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old process is there from before the upgrade until all is converted that was found.

    The new one comes once the validators accept documents of both versions.
    """
    monkeypatch.setattr(upgrades, "BATCH_DOCUMENTS", 25)
    version_1.load(database, copies=COPIES)
    new = NewRelease(unset_storage)
    with OldRelease(database) as old:
        working: list[asyncio.Task[None]] = []
        actions: list[str] = []

        def report(progress: Progress) -> None:
            actions.append(progress.action)
            if progress.action == "convert":
                if not working:
                    working.append(asyncio.create_task(new.work()))
                old.wait_for_next()  # however slow the machine is, they work at the same time
            if progress.action == "drop_index":
                old.stop()

        async with contextlib.aclosing(new_storage()) as upgrading:
            await upgrading.upgrade(report)
        await new.stop(working[0])
    assert old.errors == []
    assert len(old.stored) > 20
    assert new.stored > 5
    assert list(dict.fromkeys(actions)) == [
        "validate",
        "create",
        "index",
        "convert",
        "drop_index",
        "convert_late",
    ]
    await _assert_nothing_is_lost(unset_storage, database, old, new)


async def _assert_nothing_is_lost(
    storage: MongoStorage, database: Database[Document], old: OldRelease, new: NewRelease
) -> None:
    assert {d.get("schema_version") for s in COLLECTIONS for d in database[s.name].find()} <= {2, None}
    for number in old.stored:
        run, thread = f"old run {number}", f"old thread {number}"
        row = await storage.runs.get(run, user_id=None)
        assert row is not None
        assert await storage.threads.get_thread_meta(thread) is not None
        assert len(await storage.run_events.list_thread_events(thread)) == 1
        assert len(await storage.feedback.list_by_thread(thread)) == 1
    for number in range(new.stored):
        row = await storage.runs.get(f"new run {number}", user_id=None)
        assert row is not None
        assert (row["status"], row["total_tokens"]) == ("success", number)
        assert len(await storage.run_events.list_thread_events(f"new thread {number}")) == 1
    assert (await storage.inspect()).complete


async def test_old_process_whose_documents_came_after_another_upgrade_ended_is_converted_by_the_next(
    new_storage: Opener, database: Database[Document]
) -> None:
    """A process that died in the middle has left validators that accept old documents."""
    version_1.load(database)
    async with new_storage():
        pass
    validator = schema_of(RUNS).transitional_validator(1)
    database.command({"collMod": "runs", "validator": validator})
    database["runs"].insert_one({**version_1.first_document("runs"), "_id": "late"})
    async with new_storage() as storage:
        assert await storage.runs.get("late", user_id=None) is not None
    assert database["runs"].count_documents({"schema_version": 1}) == 0
    assert database["runs"].options()["validator"] == schema_of(RUNS).stored_validator


_UPGRADE = """
import sys
from deerflow_mongo.mongodb import upgrades
from deerflow_mongo.cli.app import app
upgrades.BATCH_DOCUMENTS = 2
app(["schema", "upgrade", *sys.argv[1:]])
"""


@pytest.mark.parametrize("collection", ["run_events"])
async def test_upgrade_that_was_killed_is_continued_by_the_next(
    mongodb_url: str,
    database_name: str,
    unset_storage: MongoStorage,
    database: Database[Document],
    collection: str,
) -> None:
    version_1.load(database, copies=COPIES)
    place = ["--url", mongodb_url, "--database", database_name]
    with subprocess.Popen([sys.executable, "-c", _UPGRADE, *place], start_new_session=True) as child:  # noqa: ASYNC220, S603
        while not database[collection].count_documents({"schema_version": 2}):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        kill(child)
    converted, total = (database[collection].count_documents(q) for q in ({"schema_version": 2}, {}))
    assert 0 < converted < total
    assert (database["schema_versions"].find_one() or {})["migrating_from"] == 1
    plan = await unset_storage.plan_upgrade()
    left = {step.collection: step.documents for step in plan.steps if step.action == "convert"}
    assert left[collection] == total - converted
    await unset_storage.upgrade()
    assert database[collection].count_documents({"schema_version": 2}) == total
    assert await version_1.rows(unset_storage) == version_1.ROWS


# -- a release that can read and write beside this one -----------------------------------------------


def _schema_of_next_release() -> tuple[CollectionSchema, ...]:
    """With an index and a field more."""
    new_index = Index(
        "by_next_release", (("next_field", 1), ("thread_id", 1)), "a method of the next release"
    )
    next_runs = schema_of(RUNS)
    validator = {**next_runs.validator}
    validator["properties"] = {**validator["properties"], "next_field": {"bsonType": "string"}}
    changed = CollectionSchema(RUNS, validator, (*next_runs.indexes, new_index))
    return tuple(changed if schema.name == RUNS else schema for schema in COLLECTIONS)


async def test_upgrade_by_a_release_of_the_same_format_shows_processes_of_this_one_no_error(
    new_storage: Opener, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_storage() as older, new_storage() as opened_later:
        for number in range(200):
            await older.runs.create(f"before {number}", f"t{number}", user_id="u")
        await older.runs.create("run-ended", "t", user_id="alice")
        load = NewRelease(older)
        working = asyncio.create_task(load.work())
        with monkeypatch.context() as patched:
            patched.setattr(migrations, "COLLECTIONS", _schema_of_next_release())
            patched.setattr(versions, "SCHEMA_VERSION", 3)
            async with contextlib.aclosing(new_storage()) as newer:
                await newer.upgrade()
        assert (database["schema_versions"].find_one() or {})["version"] == 3
        assert "by_next_release" in database["runs"].index_information()
        await opened_later.setup()
        assert "by_next_release" in database["runs"].index_information()
        await load.stop(working)
        assert load.stored > 0


# -- `upgrade_at_start: false` ----------------------------------------------------------------------


async def test_start_refuses_what_takes_long_where_upgrade_at_start_is_false(
    new_storage: Opener, database: Database[Document]
) -> None:
    version_1.load(database)
    async with contextlib.aclosing(new_storage(upgrade_at_start=False)) as manual:
        await _assert_refused_until_upgraded(manual, database)


async def _assert_refused_until_upgraded(manual: MongoStorage, database: Database[Document]) -> None:
    with pytest.raises(
        StorageConfigError, match=r"has schema version 1.*run `deerflow-mongo schema upgrade`"
    ):
        await manual.setup()
    assert (database["schema_versions"].find_one() or {})["version"] == 1
    await manual.upgrade()
    await manual.setup()
    database["runs"].drop_index("by_user")
    with pytest.raises(StorageConfigError, match=r"lacks indexes \(runs.by_user\)"):
        await manual.setup()
    database["runs"].drop()  # building the indexes of a new collection takes no time
    await manual.setup()
    assert (await manual.inspect()).complete


async def test_new_database_is_set_up_where_upgrade_at_start_is_false(new_storage: Opener) -> None:
    async with new_storage(upgrade_at_start=False) as storage:
        assert (await storage.inspect()).complete
