"""The check of the load: what it must find, where it is there."""

from __future__ import annotations

from typing import Any

import pymongo
import pytest

from deerflow_mongo import RunExistsError

from .load import THREADS, Ledger, Load, Sum, Written

Raw = pymongo.MongoClient[dict[str, Any]]
WRITES = 100


async def test_load_without_faults_finds_nothing(mongodb_url: str, database_name: str) -> None:
    async with Load(mongodb_url, database=database_name) as load:
        await load.until_written(WRITES)
        await load.stop()
        figures = await load.check()
    assert figures.broken == []
    assert figures.errors == {}
    assert figures.acknowledged_writes >= WRITES
    assert figures.events > 0


async def test_check_finds_what_is_lost_doubled_inexact_or_missed(
    mongodb_url: str, database_name: str, raw_client: Raw
) -> None:
    async with Load(mongodb_url, database=database_name) as load:
        await load.until_written(WRITES)
        await load.stop()
        await load.check()  # readers read the rest
        load.readers[0].seen.discard(1)
        texts = _tamper(raw_client[database_name])
        figures = await load.check()
    assert [text for text in texts["lost"] if not any(text in found for found in figures.lost)] == []
    assert [text for text in texts["doubled"] if not any(text in found for found in figures.doubled)] == []
    assert [text.split()[1] for text in figures.inexact] == ["writer-0-0-0", "shared-thread-0"]
    assert figures.readers_that_missed >= 1
    assert [line.split(" (")[0].split(":")[0] for line in figures.broken] == [
        "acknowledged and lost",
        "stored twice",
        "inexact",
        "readers that missed an event",
    ]


def _tamper(database: Any) -> dict[str, list[str]]:
    """Change what is stored; what the check must find."""
    runs, feedback, events = (database[name] for name in ("runs", "feedback", "run_events"))
    lost, comment = "writer-0-1-0", feedback.find_one({"message_id": {"$ne": None}})
    event, again = events.find({"event_type": "said", "thread_id": THREADS[0]}).limit(2)
    runs.delete_one({"_id": lost})
    feedback.insert_one({**comment, "_id": "another"})
    feedback.delete_one({"run_id": lost, "vote": True})
    events.update_one({"_id": event["_id"]}, {"$set": {"content": again["content"]}})
    runs.update_one({"_id": "writer-0-0-0"}, {"$set": {"status": "running"}})
    runs.update_one({"_id": f"shared-{THREADS[0]}"}, {"$inc": {"tokens.total": -1}})
    return {
        "lost": [f"run {lost}", f"vote on {lost}", f"event {event['content']}"],
        "doubled": [f"event {again['content']}", f"{comment['comment']}"],
    }


async def test_error_that_no_fault_excuses_is_a_broken_promise() -> None:
    ledger = Ledger()

    async def refused() -> None:
        raise RunExistsError("r")

    assert await ledger.write("runs.create", refused()) == (False, None)
    assert list(ledger.wrong) == [f"runs.create: RunExistsError: {RunExistsError('r')}"]


@pytest.mark.parametrize(("value", "is_right"), [(2, False), (3, True), (5, True), (6, False)])
def test_sum_admits_what_may_have_been_counted(value: int, is_right: bool) -> None:
    assert Sum(acknowledged=3, uncertain=2).admits(value) == is_right


def test_field_admits_the_last_acknowledged_value_and_uncertain_ones() -> None:
    written = Written("running", {"success"})
    assert [written.admits(value) for value in ("pending", "running", "success")] == [False, True, True]
