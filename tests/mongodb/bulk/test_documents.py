"""Documents of imported rows, by which index an export reads, and the numbers that writers get meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any

import pymongo
import pytest
from bson import ObjectId

from deerflow_mongo import CorruptDocumentError, MongoStorage
from deerflow_mongo.contract.bulk_rows import Imported, RowKind
from deerflow_mongo.mongodb.bulk import queries
from deerflow_mongo.mongodb.documents.run_events import LAST_NUMBER_FIELDS
from deerflow_mongo.mongodb.schema import EVENT_NUMBERS
from deerflow_mongo.testing.exported_rows import event_row, run_row, thread_row

from ..documents import pinned
from ..plans import Document, plan_of_read, winning_stages

THREAD = "thread-1"
DAY = timedelta(days=1)

Opener = Callable[..., MongoStorage]
Raw = pymongo.MongoClient[Document]


@pytest.fixture
def database(raw_client: Raw, database_name: str) -> Any:
    return raw_client[database_name]


@pytest.fixture
async def other(new_storage: Opener) -> AsyncIterator[MongoStorage]:
    """Another process that writes to the same database."""
    async with new_storage() as opened:
        yield opened


async def put(storage: MongoStorage, thread_id: str = THREAD) -> int:
    event: Any = {"run_id": "r", "event_type": "x", "category": "message", "content": ""}
    return (await storage.run_events.put(thread_id=thread_id, **event))["seq"]


async def store(storage: MongoStorage, kind: RowKind, *rows: Any) -> Imported:
    return await storage.import_rows(kind, rows)


async def exported(storage: MongoStorage, kind: RowKind) -> list[Any]:
    return [row async for batch in storage.export_rows(kind) for row in batch]


# -- documents -------------------------------------------------------------------------------------

# What is of the import: the time that breaks ties, the renewal of a lease, what identifies an event.
_OF_IMPORT = ("imported", "order_tie", "lease_renewed_at", "lease_ms")
_OF_EVENT_IMPORT = ("_id", "stored_at")

_DOCUMENTS: dict[RowKind, tuple[Document, ...]] = {
    "users": (pinned.USER,),
    "threads": (pinned.THREAD,),
    "runs": (pinned.RUN, pinned.OWNED_RUN),
    "feedback": (pinned.VOTE,),
    "run_events": (pinned.EVENT,),
}


async def test_imported_documents_are_those_of_the_stores(
    storage: MongoStorage, new_storage: Opener, database: Any
) -> None:
    async with new_storage(collection_prefix="target_") as target:
        for kind, documents in _DOCUMENTS.items():
            database[kind].insert_many([dict(document) for document in documents])
            outcome = await target.import_rows(kind, await exported(storage, kind))
            assert outcome == Imported(stored=len(documents)), kind
            query = {"run_id": {"$exists": True}} if kind == "run_events" else {}
            stored = list(database[f"target_{kind}"].find(query).sort("_id"))
            left_out = _OF_EVENT_IMPORT if kind == "run_events" else _OF_IMPORT
            assert _without(stored, left_out) == _without(documents, left_out)


def _without(documents: Any, names: tuple[str, ...]) -> list[Document]:
    found = [{key: document[key] for key in sorted(document) if key not in names} for document in documents]
    return sorted(found, key=lambda document: str(document.get("_id")))


async def test_fields_of_other_programs_survive_a_replacement(storage: MongoStorage, database: Any) -> None:
    await store(storage, "runs", run_row())
    database["runs"].update_one({}, {"$set": {"note": "an operator's"}})
    assert await store(storage, "runs", run_row(status="success")) == Imported(replaced=1)
    assert database["runs"].find_one()["note"] == "an operator's"


async def test_change_between_read_and_replacement_is_not_lost(
    storage: MongoStorage, other: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by the command that replaces, and the row is then one that was changed here."""
    await store(storage, "threads", thread_row())
    await store(storage, "runs", run_row())
    for kind, row, change in (
        ("threads", thread_row(status="busy"), _merge_metadata),
        ("runs", run_row(status="success"), _set_error),
    ):
        bulk: Any = storage
        collection = bulk._bulk_rows._collections[kind]
        replace = collection.replace_one
        changes = [change]

        async def changed_before(
            query: Document, document: Document, replace: Any = replace, changes: list[Any] = changes
        ) -> int:
            for one in changes:
                await one(other)
            changes.clear()
            return await replace(query, document)

        monkeypatch.setattr(collection, "replace_one", changed_before)
        outcome = await bulk.import_rows(kind, [row])
        assert (outcome.replaced, len(outcome.changed_here)) == (0, 1), kind


async def _merge_metadata(storage: MongoStorage) -> None:
    await storage.threads.merge_thread_metadata(THREAD, {"new": 1}, touch=False)


async def _set_error(storage: MongoStorage) -> None:
    await storage.runs.set_error("run-1", "E: here")


async def test_unreadable_document_ends_an_export(storage: MongoStorage, database: Any) -> None:
    await store(storage, "runs", run_row("a"), run_row("b"))
    runs = database.get_collection("runs")
    runs.database.command({"collMod": "runs", "validationLevel": "off"})
    broken = ObjectId()
    runs.insert_one({**runs.find_one({"_id": "a"}), "_id": broken})
    with pytest.raises(CorruptDocumentError, match=str(broken)):
        await exported(storage, "runs")
    runs.delete_one({"_id": broken})
    runs.update_one({"_id": "b"}, {"$set": {"status": 5}})
    with pytest.raises(CorruptDocumentError, match="status"):
        await exported(storage, "runs")


# -- indexes ---------------------------------------------------------------------------------------


async def test_exports_read_by_an_index_in_its_order(storage: MongoStorage) -> None:
    rows = [event_row(seq, thread_id=f"t-{name}") for name in range(20) for seq in range(1, 21)]
    await store(storage, "run_events", *rows)
    keys = dict(EVENT_NUMBERS.keys)
    commands: dict[str, tuple[Document, int]] = {
        "first page of events": (_find(queries.events_behind(None), keys, 10), 12),
        "next page of events": (_find(queries.events_behind(("t-5", 18)), keys, 10), 12),
        "page of anchors": (_find(queries.anchors_behind("t-5"), keys, 10), 10),
        "last numbers": (
            {"aggregate": "run_events", "pipeline": queries.last_numbers(["t-1", "t-2"], LAST_NUMBER_FIELDS)},
            2,
        ),
        "compared": (_find(queries.at_numbers(["t-1", "t-3"], [3, 4]), {}, 10), 4),
    }
    for name, (command, documents) in commands.items():
        command.setdefault("cursor", {}) if "aggregate" in command else None
        explained = await storage.driver.command({"explain": command, "verbosity": "executionStats"})
        plan = plan_of_read(explained)
        stages = winning_stages(plan)
        names = [stage["stage"] for stage in stages]
        assert "SORT" not in names, name
        assert "COLLSCAN" not in names, name
        used = {stage["indexName"] for stage in stages if "indexName" in stage}
        assert used == {EVENT_NUMBERS.name}, name
        assert plan["executionStats"]["totalDocsExamined"] <= documents, name


def _find(query: Document, sort: Document, limit: int) -> Document:
    return {"find": "run_events", "filter": query, "sort": sort, "limit": limit}


# -- numbers ---------------------------------------------------------------------------------------


async def test_other_process_continues_behind_imported_numbers(
    storage: MongoStorage, other: MongoStorage
) -> None:
    """It has cached the thread's last number, below a gap that the source has."""
    assert await put(other) == 1
    await store(storage, "run_events", event_row(10), event_row(12))
    assert await put(other) == 13
    await store(storage, "event_numbers", {"thread_id": THREAD, "next_seq": 20})
    assert await put(other) == 20
    assert await put(storage) == 21


async def test_numbers_are_given_once_while_events_are_imported(
    storage: MongoStorage, other: MongoStorage, database: Any
) -> None:
    """Whoever gets a number first has it: the other's event gets another one, or is refused."""
    rows = [event_row(seq) for seq in range(1, 200, 3)]

    async def write() -> list[int]:
        return [await put(other) for _ in range(40)]

    async def load() -> Imported:
        total = Imported()
        for start in range(0, len(rows), 7):
            total.add(await store(storage, "run_events", *rows[start : start + 7]))
        return total

    given, outcome = await asyncio.gather(write(), load())
    assert len(set(given)) == 40
    assert given == sorted(given)
    assert outcome.stored + len(outcome.refused) == len(rows)
    assert all(row.key[1] in given for row in outcome.refused)
    is_event = {"run_id": {"$exists": True}}
    assert database["run_events"].count_documents(is_event) == 40 + outcome.stored
    last = max(
        *given, *(row["seq"] for row in rows if (THREAD, row["seq"]) not in {r.key for r in outcome.refused})
    )
    assert await put(other) == last + 1


async def test_retention_removes_imported_events_from_the_front(storage: MongoStorage, database: Any) -> None:
    """Also those that were imported below older ones."""
    await store(storage, "run_events", event_row(5), event_row(6))
    old = datetime(2026, 1, 1)  # noqa: DTZ001 - as the driver returns dates
    database["run_events"].update_many({"run_id": {"$exists": True}}, {"$set": {"stored_at": old}})
    await store(storage, "run_events", *(event_row(seq) for seq in (1, 2, 5, 6, 7)))
    found = list(database["run_events"].find({"run_id": {"$exists": True}}).sort("seq"))
    assert [event["seq"] for event in found] == [1, 2, 5, 6, 7]
    times = [event["stored_at"] for event in found]
    assert times == sorted(times)
    assert times[1] == old < times[-1]


async def test_numbers_after_retention_exceed_those_that_are_gone(new_storage: Opener, database: Any) -> None:
    """An export of a thread whose events retention has removed; so does its import."""
    async with new_storage(run_events_ttl_days=1) as storage:
        await put(storage)
        long_ago = datetime(2026, 1, 1)  # noqa: DTZ001 - as the driver returns dates
        database["run_events"].delete_many({"run_id": {"$exists": True}})
        database["run_events"].update_many({}, {"$set": {"anchored_at": long_ago}})
        [row] = await exported(storage, "event_numbers")
        assert row["next_seq"] > long_ago.timestamp() * 1_000_000
        assert await exported(storage, "event_numbers") == [row]
        async with new_storage(collection_prefix="target_") as target:
            assert await store(target, "event_numbers", row) == Imported(stored=1)
            assert await exported(target, "event_numbers") == [row]
            assert await put(target) == row["next_seq"]
