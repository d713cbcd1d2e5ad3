"""What a second pass reads and carries: rows whose summaries differ, and no other row whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import ActorContext, MongoStorage, bind_actor_context, reset_actor_context
from deerflow_mongo.contract.bulk_rows import RowKind
from deerflow_mongo.contract.checked_rows import key_of
from deerflow_mongo.mongodb.documents.row_summaries import LENGTH, SUMMARY_FIELDS, summary_of_row
from deerflow_mongo.transfer.sql import reading
from deerflow_mongo.transfer.sql.databases import SqlDatabase
from deerflow_mongo.transfer.sql.layouts import LAYOUTS
from deerflow_mongo.transfer.sql.outcomes import TableOutcome
from deerflow_mongo.transfer.sql.stored import StoredSummaries

from .conftest import NewSource
from .dict_target import DictTarget
from .passes import one_pass
from .sources import RELEASES, Source, at, event, fill, run, thread, user, vote

KINDS: tuple[RowKind, ...] = ("users", "threads", "runs", "feedback")
KEYS = {"users": "id", "threads": "thread_id", "runs": "run_id", "feedback": "feedback_id"}
CHANGED = {"users": "user-1", "threads": "thread-1", "runs": "run-1", "feedback": "vote-1"}
"""The row of each kind that a test changes."""


def layout_of(release: str) -> Any:
    return LAYOUTS[list(RELEASES).index(release)]


# -- each column -----------------------------------------------------------------------------------

TIMED = {"runs": "updated_at", "threads": "updated_time"}
"""The field that every update of DeerFlow's sets, but for one: `update_metadata(touch=False)` of a thread."""

OTHER_TIME = "'2026-09-01 10:00:00.000001'"
OTHER_VALUES: Mapping[str, str] = {
    **dict.fromkeys(("created_at", "updated_at", "created_time", "updated_time"), OTHER_TIME),
    **dict.fromkeys(("lease_expires_at", "cancel_requested_at"), OTHER_TIME),
    **dict.fromkeys(("metadata", "kwargs"), """'{"n": 7}'"""),
    "token_usage_by_model": """'{"m": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}'""",
    "rating": "-1",
    "needs_setup": "NOT needs_setup",
    "operation_kind": "'compact'",
    "cancel_action": "'rollback'",
    "email": "'changed@example.com'",
}
"""Field -> another value in SQL; a count is raised by 1, any other text gets a letter more."""


def change_of(field: str, column: str, stored: Any) -> str:
    if field in OTHER_VALUES:
        return OTHER_VALUES[field]
    if isinstance(stored, int):
        return f"{column} + 1"
    return "'other'" if stored is None else f"'{stored}x'"


def columns() -> list[Any]:
    """Every column of every table that has summaries, but the keys."""
    return [
        pytest.param(release, table.kind, column, id=f"{release}-{table.kind}-{column.name}")
        for release in RELEASES
        for table in layout_of(release).tables
        for column in table.columns
        if table.kind in KINDS and column.name not in table.key
    ]


@pytest.mark.parametrize(("release", "kind", "column"), columns())
async def test_change_of_each_column_is_carried(
    new_sqlite: NewSource, release: str, kind: RowKind, column: Any
) -> None:
    source, target = new_sqlite(release), DictTarget()
    fill(source)
    await one_pass(source, target)
    key, name = CHANGED[kind], KEYS[kind]
    where = f"WHERE {name} = '{key}'"
    table = source.table(kind)
    [(stored,)] = source.execute(f"SELECT {column.name} FROM {table} {where}")  # noqa: S608
    changes = {column.name: change_of(column.field, column.name, stored)}
    if not is_summarised(kind, column.field):  # which DeerFlow changes together with the time
        [time] = [each.name for each in layout_of(release).table(kind).columns if each.field == TIMED[kind]]
        changes[time] = OTHER_TIME
    before = target.rows[kind][key,]
    assignments = ", ".join(f"{each} = {value}" for each, value in changes.items())
    source.execute(f"UPDATE {table} SET {assignments} {where}")  # noqa: S608
    outcome = (await one_pass(source, target))[kind]
    assert target.rows[kind][key,][column.field] != before[column.field]
    assert outcome.replaced == 1
    assert outcome.equal_by_summary == outcome.rows - 1
    assert outcome.is_complete


def is_summarised(kind: RowKind, field: str) -> bool:
    return field in [name.removesuffix(LENGTH) for name in SUMMARY_FIELDS[kind]]


def test_only_fields_of_runs_are_missing_in_summaries() -> None:
    given = [each.values[1:] for each in columns()]
    assert {kind for kind, column in given if not is_summarised(kind, column.field)} == {"runs"}


async def test_metadata_that_is_changed_without_a_time_is_carried(new_source: NewSource) -> None:
    source, target = new_source("main"), DictTarget()
    source.insert("threads", [thread(1), thread(2, metadata={"deerflow_pinned": True, "n": 1})])
    await one_pass(source, target)
    source.execute(
        """UPDATE threads_meta SET metadata_json = '{"deerflow_pinned": false, "n": 1}' """
        "WHERE thread_id = 'thread-2'"
    )
    outcome = (await one_pass(source, target))["threads"]
    assert (outcome.replaced, outcome.equal_by_summary) == (1, 1)
    assert target.rows["threads"]["thread-2",]["metadata"] == {"deerflow_pinned": False, "n": 1}


async def test_vote_becomes_feedback_though_its_own_row_is_the_same(new_source: NewSource) -> None:
    source, target = new_source("seed"), DictTarget()
    source.insert("feedback", [vote(1, 0), vote(2, 2)])
    await one_pass(source, target)
    source.insert("feedback", [vote(3, 0, created_at=at(60))])
    outcome = (await one_pass(source, target))["feedback"]
    assert (outcome.stored, outcome.replaced, outcome.equal_by_summary) == (1, 1, 1)
    assert target.rows["feedback"]["vote-1",]["is_vote"] is False


# -- on a real server ------------------------------------------------------------------------------


class CommandLog(CommandListener):
    """The commands that read or write documents, by their name and collection."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def started(self, event: CommandStartedEvent) -> None:
        collection = event.command.get(event.command_name)
        if isinstance(collection, str):
            self.sent.append((event.command_name, collection))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


@pytest.fixture
async def logged(mongodb_url: str, new_database: str) -> AsyncIterator[tuple[MongoStorage, CommandLog]]:
    log = CommandLog()
    async with (
        AsyncMongoClient[dict[str, Any]](mongodb_url, event_listeners=[log]) as client,
        MongoStorage.open({"database": new_database}, client=client) as storage,
    ):
        yield storage, log


async def pass_into(source: Source, storage: MongoStorage, **options: Any) -> dict[str, TableOutcome]:
    return await one_pass(source, storage, stored=StoredSummaries(storage), **options)


async def test_unchanged_second_pass_reads_summaries_and_no_row_whole(
    new_source: NewSource,
    release: str,
    logged: tuple[MongoStorage, CommandLog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, log = logged
    source = new_source(release)
    fill(source, threads=25)
    await pass_into(source, storage)
    monkeypatch.setattr(reading, "SUMMARY_ROWS", 10)
    rows_read: list[int] = []
    queries_sent: list[str] = []
    page, all_rows = SqlDatabase.page, SqlDatabase.all_rows

    async def counted_page(self: SqlDatabase, *arguments: Any, **options: Any) -> Any:
        found = await page(self, *arguments, **options)
        rows_read.append(len(found.rows))
        return found

    async def counted_rows(self: SqlDatabase, query: Any) -> Any:
        queries_sent.append(str(query))
        return await all_rows(self, query)

    monkeypatch.setattr(SqlDatabase, "page", counted_page)
    monkeypatch.setattr(SqlDatabase, "all_rows", counted_rows)
    log.sent.clear()
    outcomes = await pass_into(source, storage)
    for outcome in outcomes.values():
        assert outcome.equal_by_summary == outcome.rows > 0
        assert (outcome.unchanged, outcome.stored, outcome.replaced) == (0, 0, 0)
    assert rows_read == []
    # Of 25 threads and runs three pages; of votes one of those that are none, and three of the others.
    # Of events each page is two commands: counts from an index, and the last events.
    pages = {"threads": 3, "runs": 3, "feedback": 4, "run_events": 6}
    if release != "seed":
        pages["users"] = 1
    summaries = [collection for name, collection in log.sent if name == "aggregate"]
    assert {kind: summaries.count(kind) for kind in pages} == pages
    # Whether the target has any rows at all is asked once a table, and of votes and other feedback.
    finds = [collection for name, collection in log.sent if name == "find"]
    assert sorted(finds) == sorted(kind for kind in pages if kind != "run_events")
    assert {name for name, _ in log.sent} == {"aggregate", "find"}
    selects = [query for query in queries_sent if "ORDER BY" in query]
    assert len(selects) == sum(pages.values()) - pages["run_events"] // 2


async def test_first_pass_asks_for_no_summary(
    new_sqlite: NewSource, logged: tuple[MongoStorage, CommandLog]
) -> None:
    storage, log = logged
    source = new_sqlite("0.1.7")
    fill(source)
    log.sent.clear()
    await pass_into(source, storage)
    aggregates = {collection for name, collection in log.sent if name == "aggregate"}
    assert aggregates.isdisjoint(KINDS)


async def test_row_that_was_refused_is_refused_again(
    new_sqlite: NewSource, logged: tuple[MongoStorage, CommandLog]
) -> None:
    storage, _ = logged
    source = new_sqlite("0.1.7")
    fill(source)
    source.execute("UPDATE threads_meta SET metadata_json = '[1]' WHERE thread_id = 'thread-2'")
    source.execute("UPDATE threads_meta SET created_at = 'yesterday' WHERE thread_id = 'thread-3'")
    source.execute("UPDATE runs SET status = '' WHERE run_id = 'run-4'")
    first = await pass_into(source, storage)
    second = await pass_into(source, storage)
    for kind, refused in (("threads", 2), ("runs", 1)):
        assert len(second[kind].differences) == refused
        assert sorted(second[kind].differences, key=str) == sorted(first[kind].differences, key=str)
        assert (second[kind].equal_by_summary, second[kind].is_complete) == (6 - refused, False)


async def test_changed_rows_alone_are_read_and_replaced(
    new_source: NewSource, release: str, logged: tuple[MongoStorage, CommandLog]
) -> None:
    storage, _ = logged
    source = new_source(release)
    fill(source, threads=40)
    await pass_into(source, storage)
    source.execute(f"UPDATE {source.table('threads')} SET status = 'busy' WHERE thread_id = 'thread-31'")  # noqa: S608
    source.execute("UPDATE runs SET total_tokens = 5 WHERE run_id IN ('run-3', 'run-30')")
    source.execute("UPDATE feedback SET rating = -1 WHERE feedback_id = 'vote-17'")
    source.insert("runs", [run(99, 39)])
    source.insert("run_events", [event(6, 39)])
    outcomes = await pass_into(source, storage)
    assert all(outcome.is_complete for outcome in outcomes.values())
    assert {kind: outcome.replaced for kind, outcome in outcomes.items() if outcome.replaced} == {
        "threads": 1,
        "runs": 2,
        "feedback": 1,
    }
    assert (outcomes["runs"].stored, outcomes["run_events"].stored) == (1, 1)
    assert outcomes["runs"].equal_by_summary == 38
    assert all(outcome.source_digest == outcome.target_digest for outcome in outcomes.values())
    compared = await pass_into(source, storage, compare_all=True)
    assert all(outcome.unchanged == outcome.rows for outcome in compared.values())


async def test_summary_of_a_document_is_that_of_its_row(
    new_sqlite: NewSource, release: str, logged: tuple[MongoStorage, CommandLog]
) -> None:
    storage, _ = logged
    source = new_sqlite(release)
    texts = {"error": "ü" * 5, "first_human_message": "", "last_ai_message": None}
    lease = {"owner_worker_id": "w", "lease_expires_at": at(9.000001), "cancel_requested_at": at(8)}
    fill(source)
    source.insert("runs", [run(50, 5, stop_reason="max_turns", cancel_action="interrupt", **texts, **lease)])
    await pass_into(source, storage)
    for kind in KINDS:
        async for rows in storage.export_rows(kind):
            keys = [str(key_of(kind, row)[0]) for row in rows]
            found = await StoredSummaries(storage).rows(kind, keys)
            expected = [summary_of_row(kind, row) for row in rows]
            assert list(map(found.get, keys)) == expected


@pytest.fixture
async def carried(
    new_sqlite: NewSource, logged: tuple[MongoStorage, CommandLog]
) -> tuple[Source, MongoStorage]:
    source, (storage, _) = new_sqlite("main"), logged
    source.insert("users", [user(1)])
    source.insert("threads", [thread(1, user_id="user-1")])
    source.insert("runs", [run(1, 1, user_id="user-1", status="running", owner_worker_id="w")])
    source.insert("feedback", [vote(1, 1, thread_id="thread-1", user_id="user-1")])
    await pass_into(source, storage)
    return source, storage


async def set_status(storage: MongoStorage) -> None:
    await storage.runs.update_status("run-1", "success")


async def set_model(storage: MongoStorage) -> None:
    await storage.runs.update_model_name("run-1", "other")


async def merge_metadata_of_run(storage: MongoStorage) -> None:
    await storage.runs.update_status("run-1", "running", metadata={"n": 9})


async def rename(storage: MongoStorage) -> None:
    await storage.threads.update_thread_meta("thread-1", display_name="mine")


async def pin(storage: MongoStorage) -> None:
    await storage.threads.merge_thread_metadata("thread-1", {"deerflow_pinned": False}, touch=False)


async def replace_vote(storage: MongoStorage) -> None:
    await storage.feedback.upsert(
        thread_id="thread-1", run_id="run-1", rating=1, comment="comment 2", user_id="user-1"
    )


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("runs", set_status),
        ("runs", set_model),
        ("runs", merge_metadata_of_run),
        ("threads", rename),
        ("threads", pin),
        ("feedback", replace_vote),
    ],
)
async def test_row_that_a_gateway_changed_in_the_target_is_listed(
    carried: tuple[Source, MongoStorage], kind: RowKind, change: Any
) -> None:
    source, storage = carried
    token = bind_actor_context(ActorContext(user_id="user-1"))
    try:
        await change(storage)
    finally:
        reset_actor_context(token)
    outcomes = await pass_into(source, storage)
    [difference] = outcomes[kind].differences
    assert difference.reason == "changed_here"
    assert sum(len(outcome.differences) for outcome in outcomes.values()) == 1


async def test_payload_that_another_program_changed_in_the_target_needs_compare_all(
    carried: tuple[Source, MongoStorage],
) -> None:
    source, storage = carried
    runs = storage.driver.collection(storage.config.collection_prefix + "runs")
    await runs.update_one({"_id": "run-1"}, {"$set": {"kwargs": {"other": 1}}})
    assert (await pass_into(source, storage))["runs"].differences == []
    [difference] = (await pass_into(source, storage, compare_all=True))["runs"].differences
    assert difference.reason == "changed_here"
