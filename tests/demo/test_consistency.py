"""The consistency check: it passes on a storage that keeps its promises and reports one that breaks them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pymongo
import pytest

from deerflow_mongo import MongoStorage, Storage, StorageUnavailableError
from deerflow_mongo.contract.rows import FeedbackRow, RunEventFields, RunEventRow
from deerflow_mongo.demo.consistency import ConsistencyReport, check_consistency

pytestmark = pytest.mark.usefixtures("emptied_database")

Client = pymongo.MongoClient[dict[str, Any]]
USERS = ["alice", "bob"]
FAULTY_CALL = 7


class Delegate:
    """An object with some attributes replaced."""

    def __init__(self, target: object, **replaced: object) -> None:
        self._target = target
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(self._target, name)


def with_fault(storage: MongoStorage, store: str, method: str, fault: Callable[..., Any]) -> Storage:
    """The storage, with `fault` in place of the seventh call of a method."""
    real = getattr(getattr(storage, store), method)
    calls = 0

    async def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return await (fault if calls == FAULTY_CALL else real)(*args, **kwargs)

    return cast("Storage", Delegate(storage, **{store: Delegate(getattr(storage, store), **{method: call})}))


async def report_of(storage: Storage) -> ConsistencyReport:
    return await check_consistency(storage, USERS, writers=4, steps=5)


async def test_check_passes_and_deletes_what_it_wrote(
    storage: MongoStorage, raw_client: Client, database_name: str
) -> None:
    steps: list[None] = []
    report = await check_consistency(storage, USERS, writers=8, steps=5, on_step=lambda: steps.append(None))
    assert report.passed
    assert (report.writers, report.users, report.runs, len(steps)) == (8, 2, 4, 40)
    assert (report.total.lost, report.total.doubled, report.missing_numbers) == (0, 0, 0)
    assert report.run_events.acknowledged == 8 * (2 * 3 + 3)
    assert report.token_records.acknowledged == 40
    assert report.vote_upserts.acknowledged == 40 + 8
    assert report.stored_tokens == report.recorded_tokens > 0
    assert report.stored_votes == report.expected_votes == 8
    database = raw_client[database_name]
    assert [database[name].count_documents({}) for name in ("runs", "feedback", "threads")] == [0, 0, 0]
    assert database["run_events"].count_documents({"category": {"$exists": True}}) == 0


async def test_check_of_many_users_writes_as_the_first_four(storage: MongoStorage) -> None:
    report = await check_consistency(storage, [f"user{i}" for i in range(40)], writers=4, steps=2)
    assert (report.users, report.runs, report.passed) == (4, 8, True)


async def test_lost_run_event_is_reported_and_the_data_stays(
    storage: MongoStorage, raw_client: Client, database_name: str
) -> None:
    async def lose(events: Sequence[RunEventFields]) -> list[RunEventRow]:
        rows = await storage.run_events.put_batch(events)
        numbers = {"thread_id": rows[0]["thread_id"], "seq": rows[0]["seq"]}
        assert raw_client[database_name]["run_events"].delete_one(numbers).deleted_count == 1
        return rows

    report = await report_of(with_fault(storage, "run_events", "put_batch", lose))
    assert not report.passed
    assert (report.run_events.lost, report.run_events.doubled) == (1, 0)
    assert any("1 run event lost" in difference for difference in report.differences)
    stored = [await storage.threads.get_thread_meta(thread_id) for thread_id in report.thread_ids]
    assert None not in stored


async def test_run_event_that_is_stored_twice_is_reported(storage: MongoStorage) -> None:
    async def double(events: Sequence[RunEventFields]) -> list[RunEventRow]:
        await storage.run_events.put_batch(events)
        return await storage.run_events.put_batch(events)

    report = await report_of(with_fault(storage, "run_events", "put_batch", double))
    assert not report.passed
    assert report.run_events.lost == 0
    assert report.run_events.doubled in (1, 3)  # the batch has one event or three
    assert report.missing_numbers == 0


async def test_gap_in_event_numbers_is_reported(
    storage: MongoStorage, raw_client: Client, database_name: str
) -> None:
    async def leave_gap(events: Sequence[RunEventFields]) -> list[RunEventRow]:
        [row] = await storage.run_events.put_batch([{**events[0], "content": "to be deleted"}])
        rows = await storage.run_events.put_batch(events)
        raw_client[database_name]["run_events"].delete_one({"thread_id": row["thread_id"], "seq": row["seq"]})
        return rows

    report = await report_of(with_fault(storage, "run_events", "put_batch", leave_gap))
    assert (report.run_events.lost, report.run_events.doubled) == (0, 0)
    assert report.missing_numbers == 1
    assert report.differences == [f"thread {_thread_in(report)}: 1 event number missing"]


async def test_event_stored_under_another_number_is_reported(storage: MongoStorage) -> None:
    async def renumber(events: Sequence[RunEventFields]) -> list[RunEventRow]:
        rows = await storage.run_events.put_batch(events)
        return [{**row, "seq": row["seq"] + 1} for row in rows]

    report = await report_of(with_fault(storage, "run_events", "put_batch", renumber))
    assert any("with another number than acknowledged" in text for text in report.differences)


@pytest.mark.parametrize(("times", "lost", "doubled"), [(0, 1, 0), (2, 0, 1)])
async def test_token_record_that_is_lost_or_doubled_is_reported(
    storage: MongoStorage, times: int, lost: int, doubled: int
) -> None:
    async def record(run_id: str, **counts: Any) -> None:
        for _ in range(times):
            await storage.runs.record_token_usage(run_id, **counts)

    report = await report_of(with_fault(storage, "runs", "record_token_usage", record))
    assert not report.passed
    assert (report.token_records.lost, report.token_records.doubled) == (lost, doubled)
    assert (report.stored_tokens > report.recorded_tokens) == bool(doubled)
    assert (report.stored_tokens < report.recorded_tokens) == bool(lost)


async def test_wrong_sum_of_tokens_is_reported(storage: MongoStorage) -> None:
    async def record(run_id: str, **counts: Any) -> None:
        counts["input_tokens"] = 1
        await storage.runs.record_token_usage(run_id, **counts)

    report = await report_of(with_fault(storage, "runs", "record_token_usage", record))
    assert (report.token_records.lost, report.token_records.doubled) == (0, 0)
    assert any("total_input_tokens is" in difference for difference in report.differences)


async def test_two_votes_of_one_user_on_one_run_are_reported(storage: MongoStorage) -> None:
    async def create(**vote: Any) -> FeedbackRow:
        for _ in range(2):
            await storage.feedback.create(**vote)
        return await storage.feedback.create(**vote)

    report = await report_of(with_fault(storage, "feedback", "upsert", create))
    assert not report.passed
    assert report.vote_upserts.doubled >= 1
    assert report.stored_votes > report.expected_votes


async def test_lost_vote_is_reported(storage: MongoStorage) -> None:
    real = storage.feedback.upsert

    async def upsert(**vote: Any) -> FeedbackRow:
        if vote["comment"] != "last vote" or vote["user_id"] != "bob":
            return await real(**vote)
        [row] = await storage.feedback.list_by_run(vote["thread_id"], vote["run_id"], user_id="bob")
        return {**row, "rating": vote["rating"], "comment": vote["comment"]}

    feedback = Delegate(storage.feedback, upsert=upsert)
    report = await report_of(cast("Storage", Delegate(storage, feedback=feedback)))
    assert (report.vote_upserts.lost, report.vote_upserts.doubled) == (4, 0)
    assert sum("1 vote of bob lost" in difference for difference in report.differences) == 4


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # PyMongo's, of a connection cancelled while it is made
async def test_cancelled_check_deletes_what_it_wrote(
    storage: MongoStorage, raw_client: Client, database_name: str
) -> None:
    stop = asyncio.Event()
    check = asyncio.create_task(check_consistency(storage, USERS, writers=4, steps=50, on_step=stop.set))
    await stop.wait()
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    database = raw_client[database_name]
    assert [database[name].count_documents({}) for name in ("runs", "threads")] == [0, 0]


async def test_error_of_a_writer_is_raised_as_it_is(storage: MongoStorage) -> None:
    cause = OSError("connection reset")

    async def fail(*_: object, **__: object) -> None:
        raise StorageUnavailableError("MongoDB cannot be reached") from cause

    with pytest.raises(StorageUnavailableError, match="cannot be reached") as raised:
        await report_of(with_fault(storage, "runs", "record_token_usage", fail))
    assert raised.value.__cause__ is cause


def _thread_in(report: ConsistencyReport) -> str:
    [thread_id] = [x for x in report.thread_ids if any(x in text for text in report.differences)]
    return thread_id
