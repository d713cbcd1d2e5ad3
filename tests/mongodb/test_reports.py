"""Reports over a whole database: what they count, by which indexes, and what they leave out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import MongoStorage, StorageError, StorageUnavailableError
from deerflow_mongo.contract.times import system_clock_us
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.documents.versions import SCHEMA_VERSION
from deerflow_mongo.mongodb.reports import queries, sections
from deerflow_mongo.mongodb.reports.activity import active_of
from deerflow_mongo.mongodb.reports.report import Report, ReportOptions, read_report
from deerflow_mongo.mongodb.reports.sections import SECTIONS, Scope

from .plans import plan_of_read, winning_stages

pytestmark = pytest.mark.usefixtures("emptied_database")

Raw = MongoClient[dict[str, Any]]
Document = dict[str, Any]

OTHER_RUNS = 10
FOREVER = "2999-01-01T00:00:00Z"


class CommandLog(CommandListener):
    """The commands that a client sent."""

    def __init__(self) -> None:
        self.commands: list[Document] = []

    @property
    def names(self) -> list[str]:
        return [next(iter(command)) for command in self.commands]

    def started(self, event: CommandStartedEvent) -> None:
        self.commands.append(dict(event.command))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


@pytest.fixture
async def storage(mongodb_url: str, database_name: str, log: CommandLog) -> AsyncIterator[MongoStorage]:
    config = mongo_config({"url": mongodb_url, "database": database_name})
    async with (
        AsyncMongoClient[Document](mongodb_url, event_listeners=[log]) as client,
        MongoStorage(config, client=client) as opened,
    ):
        await _fill(opened)
        yield opened


@pytest.fixture
def log() -> CommandLog:
    return CommandLog()


async def _fill(storage: MongoStorage) -> None:
    """Six runs of yesterday in three threads, an active one of today, and others of long ago."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for number in range(OTHER_RUNS):
        await storage.runs.create(
            f"other-{number}", "t-old", user_id="bob", status="success", created_at="2020-01-01"
        )
    for number in range(6):
        run_id, thread = f"run-{number}", f"thread-{number % 3}"
        await storage.runs.create(
            run_id, thread, user_id=("alice", "carol")[number % 2], created_at=yesterday, model_name="own"
        )
        if number < 2:
            await storage.runs.record_token_usage(
                run_id, caller="subagent", model_name="gpt-4.1", input_tokens=10, output_tokens=1
            )
        failed = number in (1, 2, 4)
        await storage.runs.update_status(
            run_id,
            "error" if failed else "success",
            started_at=yesterday,
            ended_at=yesterday + timedelta(seconds=number),
            error=f"{'RateLimitError' if number < 4 else 'ValueError'}: no {number}" if failed else None,
        )
        await storage.feedback.upsert(
            run_id=run_id, thread_id=thread, rating=-1 if number == 0 else 1, user_id="dora"
        )
    await storage.runs.create_thread_operation_atomic(
        "owned", thread_id="thread-9", owner_worker_id="worker-1", lease_expires_at=FOREVER, user_id="alice"
    )
    events: list[Any] = [
        {"thread_id": f"thread-{number % 3}", "run_id": "run-0", "event_type": "e", "category": "trace"}
        for number in range(10)
    ]
    await storage.run_events.put_batch(events)


async def report_of(storage: MongoStorage, **options: Any) -> Report:
    return await read_report(storage.driver, "", ReportOptions(**options))


# -- what is counted -------------------------------------------------------------------------------


async def test_runs_of_the_period_are_counted_by_day_and_status(storage: MongoStorage) -> None:
    report = await report_of(storage)
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    counted = {(day.day, day.status): (day.runs, day.total_tokens) for day in report.runs_by_day}
    today = datetime.now(UTC).date().isoformat()
    assert counted == {
        (yesterday, "error"): (3, 11),
        (yesterday, "success"): (3, 11),
        (today, "pending"): (1, 0),
    }
    callers = [day.tokens_by_caller for day in report.runs_by_day if day.day == yesterday]
    assert [caller["subagent"] for caller in callers] == [11, 11]
    assert report.unavailable == {}


async def test_tokens_votes_and_users_of_the_period(storage: MongoStorage) -> None:
    report = await report_of(storage)
    models = {row.model: (row.runs, row.input_tokens, row.total_tokens) for row in report.tokens_by_model}
    assert models == {"gpt-4.1": (2, 20, 22), "own": (4, 0, 0), "unknown": (1, 0, 0)}
    assert [(row.model, row.positive, row.negative) for row in report.votes_by_model] == [("own", 5, 1)]
    users = [(row.user_id, row.runs, row.failed_runs, row.total_tokens) for row in report.tokens_by_user]
    assert users == [("alice", 4, 2, 11), ("carol", 3, 1, 11)]
    assert len((await report_of(storage, listed=1)).tokens_by_user) == 1


async def test_slowest_and_failed_runs_of_the_period(storage: MongoStorage) -> None:
    report = await report_of(storage, listed=3)
    assert [(run.run_id, run.duration_ms) for run in report.slowest_runs] == [
        ("run-5", 5_000),
        ("run-4", 4_000),
        ("run-3", 3_000),
    ]
    failed = [(row.error_type, row.runs, row.last_error) for row in report.failed_runs]
    assert failed == [
        ("RateLimitError", 2, "RateLimitError: no 2"),
        ("ValueError", 1, "ValueError: no 4"),
    ]


async def test_threads_collections_and_indexes(storage: MongoStorage) -> None:
    report = await report_of(storage)
    assert [(row.thread_id, row.events, row.runs) for row in report.largest_threads] == [
        ("thread-0", 4, 2),
        ("thread-1", 3, 2),
        ("thread-2", 3, 2),
    ]
    assert {(row.thread_id, row.runs) for row in report.busiest_threads} == {
        *((f"thread-{number}", 2) for number in range(3)),
        ("thread-9", 1),
    }
    documents = {row.collection: row.documents for row in report.collections}
    assert (documents["runs"], documents["run_events"], documents["users"]) == (OTHER_RUNS + 7, 13, 0)
    uses = {(row.collection, row.index): row.uses for row in report.indexes}
    assert uses["runs", "by_time"] >= 7
    assert uses["users", "by_role"] == 0
    assert all(row.size_bytes > 0 for row in report.indexes)


async def test_thread_that_is_numbered_anew_is_counted_by_its_events(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    events = raw_client[database_name]["run_events"]
    events.update_one({"thread_id": "thread-1", "seq": 3}, {"$set": {"seq": 1_795_778_388_844_066}})
    events.insert_one({"thread_id": "thread-broken", "seq": "x"}, bypass_document_validation=True)
    report = await report_of(storage)
    assert [(row.thread_id, row.events) for row in report.largest_threads] == [
        ("thread-0", 4),
        ("thread-1", 3),
        ("thread-2", 3),
    ]


async def test_runs_left_running_are_old_or_have_lost_their_lease(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    assert (await report_of(storage)).left_running == []
    [row] = (await report_of(storage, left_after=timedelta(0))).left_running
    assert (row.run_id, row.owner, row.lease, row.kind) == ("owned", "worker-1", "valid", "run")
    raw_client[database_name]["runs"].update_one({"_id": "owned"}, {"$set": {"lease_ms": -60_000}})
    report = await report_of(storage)
    assert report.left_running_count == 1
    [row] = report.left_running
    assert row.lease == "expired"
    assert row.lease_left_ms is not None
    assert row.lease_left_ms <= -60_000


BROKEN: list[Document] = [
    {"status": 7},
    {"thread_id": 7},
    {"user_id": ["x"]},
    {"model_name": {"$gt": 1}},
    {"schema_version": SCHEMA_VERSION + 1},
    {"created_at": "yesterday"},
]


@pytest.mark.parametrize("broken", BROKEN, ids=[next(iter(fields)) for fields in BROKEN])
async def test_broken_and_newer_documents_are_left_out(
    storage: MongoStorage, raw_client: Raw, database_name: str, broken: Document
) -> None:
    runs = raw_client[database_name]["runs"]
    runs.update_one({"_id": "run-5"}, {"$set": broken}, bypass_document_validation=True)
    runs.update_one({"_id": "run-0"}, {"$set": {"tokens.by_model": 7}}, bypass_document_validation=True)
    report = await report_of(storage)
    assert report.unavailable == {}
    assert sum(day.runs for day in report.runs_by_day) == 6
    assert report.slowest_runs[0].run_id == "run-4"
    assert sum(row.runs for row in report.tokens_by_model) == 5


async def test_empty_database_has_an_empty_report(mongodb_url: str, new_database: str) -> None:
    place = {"url": mongodb_url, "database": new_database}
    async with contextlib.aclosing(MongoStorage.open(place)) as storage:
        with pytest.raises(StorageError, match=f"database {new_database} has no collection"):
            await report_of(storage)
        await storage.setup()
        report = await report_of(storage, checkpoints=True)
    lists = [name for name, value in asdict(report).items() if isinstance(value, list) and value]
    assert lists == ["collections", "indexes"]
    assert report.checkpoints is not None
    assert report.checkpoints.threads == 0


# -- how it is read --------------------------------------------------------------------------------


def explained(raw: Raw, database: str, collection: str, pipeline: list[Document]) -> Document:
    command: Document = {"aggregate": collection, "pipeline": pipeline, "cursor": {}}
    return plan_of_read(raw[database].command({"explain": command, "verbosity": "executionStats"}))


def indexes_of(plan: Document) -> set[str]:
    stages = winning_stages(plan)
    assert "COLLSCAN" not in {stage["stage"] for stage in stages}
    return {stage["indexName"] for stage in stages if "indexName" in stage}


@pytest.mark.parametrize("name", SECTIONS)
async def test_section_of_a_period_reads_only_its_runs(
    storage: MongoStorage, raw_client: Raw, database_name: str, name: str
) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    pipeline = SECTIONS[name].pipeline(Scope(now - timedelta(days=2), now + timedelta(days=1), 10))
    plan = explained(raw_client, database_name, "runs", pipeline)
    assert indexes_of(plan) == {"by_time"}
    assert plan["executionStats"]["totalDocsExamined"] == 7


async def test_votes_on_runs_are_found_by_an_index(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    pipeline = sections.votes_by_model(Scope(now - timedelta(days=2), now, 10))
    command: Document = {"aggregate": "runs", "pipeline": pipeline, "cursor": {}}
    stages = raw_client[database_name].command({"explain": command, "verbosity": "executionStats"})["stages"]
    [lookup] = [stage for stage in stages if "$lookup" in stage]
    assert lookup["collectionScans"] == 0
    assert lookup["totalDocsExamined"] == 6


async def test_active_runs_are_read_by_their_index(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    plan = explained(raw_client, database_name, "runs", sections.active_runs(system_clock_us(), 10))
    assert indexes_of(plan) == {"active"}
    assert plan["executionStats"]["totalDocsExamined"] == 1


async def test_largest_threads_are_found_from_indexes_alone(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    plan = explained(raw_client, database_name, "run_events", sections.highest_numbers())
    assert indexes_of(plan) == {"thread_seq"}
    assert plan["executionStats"]["totalKeysExamined"] <= 2 * 3  # of the three threads' 13 documents
    assert plan["executionStats"]["totalDocsExamined"] == 0
    counting = sections.count_by_thread(queries.events_of_threads(["thread-0", "thread-1"]))
    plan = explained(raw_client, database_name, "run_events", counting)
    assert plan["executionStats"]["totalDocsExamined"] == 0


async def test_ids_by_their_beginning_read_one_entry_for_each(
    storage: MongoStorage, raw_client: Raw, database_name: str
) -> None:
    places = (("runs", "_id"), ("run_events", "thread_id"), ("checkpoint_data", "_id.thread"))
    for collection, field in places:
        query = queries.beginning_with(field, "t", after="thread-0")
        command: Document = {"find": collection, "filter": query, "sort": {field: 1}, "limit": 1}
        found = raw_client[database_name].command({"explain": command, "verbosity": "executionStats"})
        assert found["executionStats"]["totalKeysExamined"] <= 2
        assert not {"COLLSCAN", "SORT"} & {stage["stage"] for stage in winning_stages(found)}


async def test_report_is_one_command_per_section(storage: MongoStorage, log: CommandLog) -> None:
    seen: list[str] = []
    log.commands.clear()
    await read_report(storage.driver, "", ReportOptions(), on_section=seen.append)
    assert len(seen) == len(SECTIONS) + 4
    assert log.names == ["listCollections", *["aggregate"] * (len(seen) + 2)]
    assert all(command["allowDiskUse"] for command in log.commands[1:])


async def test_section_that_takes_too_long_is_named_and_the_others_are_read(
    storage: MongoStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[Document] = [
        {"$match": {"$expr": {"$function": {"body": "function() { sleep(1000) }", "args": [], "lang": "js"}}}}
    ]
    section = SECTIONS["slowest_runs"]
    changed = {**SECTIONS, "slowest_runs": sections.Section(section.collection, lambda _: slow, section.row)}
    monkeypatch.setattr("deerflow_mongo.mongodb.reports.report.SECTIONS", changed)
    report = await report_of(storage, section_timeout_s=0.4)
    assert report.unavailable == {"slowest_runs": "not read within 0.4 s, the limit of a section"}
    assert len(report.failed_runs) == 2


async def test_server_that_cannot_be_reached_is_an_error(tmp_path: Any) -> None:
    socket = str(tmp_path / "none.sock").replace("/", "%2F")
    async with contextlib.aclosing(MongoStorage.open(f"mongodb://{socket}/?timeoutMS=200")) as storage:
        with pytest.raises(StorageUnavailableError):
            await report_of(storage)


def test_count_of_active_runs_is_that_of_all() -> None:
    assert active_of([{"rows": [], "all": [{"runs": 7}]}]) == ([], 7)
    assert active_of([{"rows": [], "all": []}]) == ([], 0)
