"""Which databases are read, that they stay as they are, and one sentence about those that are not."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo.contract.errors import (
    MissingDependencyError,
    StorageConfigError,
    StorageUnavailableError,
)
from deerflow_mongo.transfer.sql import databases, reading
from deerflow_mongo.transfer.sql.databases import open_database
from deerflow_mongo.transfer.sql.layouts import LAYOUTS
from deerflow_mongo.transfer.sql.recognition import Recognised, recognise

from .conftest import NewSource
from .dict_target import DictTarget
from .passes import one_pass, surveyed
from .sources import Source, event, fill, run, thread, user


async def recognised(source: Source) -> Recognised:
    database = await open_database(source.url)
    try:
        return await recognise(database)
    finally:
        await database.aclose()


def file_of(source: Source) -> Path:
    return Path(source.url.removeprefix("sqlite:///"))


async def test_release_is_recognised_by_its_tables_and_columns(new_source: NewSource, release: str) -> None:
    source = new_source(release)
    index = ["seed", "0.1.7", "2.0.0", "main"].index(release)
    assert (await recognised(source)).layout is LAYOUTS[index]


async def test_database_between_two_releases_is_read_as_the_later_one(new_sqlite: NewSource) -> None:
    source, target = new_sqlite("main"), DictTarget()
    source.insert("runs", [run(1, 1)])
    source.execute(
        "ALTER TABLE runs DROP COLUMN operation_kind", "ALTER TABLE runs DROP COLUMN cancel_action"
    )
    assert (await one_pass(source, target))["runs"].is_complete
    assert target.rows["runs"]["run-1",]["operation_kind"] == "run"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DROP TABLE threads_meta", "is no database of DeerFlow"),
        ("ALTER TABLE runs DROP COLUMN status", "is no database of DeerFlow"),
        ("INSERT INTO alembic_version VALUES ('0099_future')", "revision '0099_future': this release"),
        ("ALTER TABLE runs ADD COLUMN mood TEXT NOT NULL DEFAULT 'good'", r"values in runs\.mood"),
    ],
)
async def test_other_and_newer_databases_are_refused(
    new_source: NewSource, statement: str, sentence: str
) -> None:
    source = new_source("main")
    source.insert("runs", [run(1, 1)])
    source.execute(statement)
    with pytest.raises(StorageConfigError, match=sentence):
        await recognised(source)


async def test_unknown_column_without_values_is_no_obstacle(new_sqlite: NewSource) -> None:
    source = new_sqlite("main")
    source.insert("runs", [run(1, 1)])
    source.execute("ALTER TABLE runs ADD COLUMN mood TEXT")
    assert (await recognised(source)).layout.release.startswith("DeerFlow main")


async def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("these are notes, and long enough to be looked at as a header of a database file " * 20)
    with pytest.raises(StorageUnavailableError, match="file is not a database"):
        await open_database(f"sqlite:///{file}")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:///missing.db", "there is no file missing.db"),
        ("mysql://me:hunter2@host/db", r"--from is mysql://\.\.\.; expected sqlite"),
        ("$NO_SUCH_URL", "NO_SUCH_URL"),
        ("deerflow.db", "--from is no URL"),
        ("postgresql://me:hunter2@127.0.0.1:9/deerflow", r"127\.0\.0\.1:9/deerflow cannot be read"),
        ("postgresql://me:hunter2%@127.0.0.1:9/deerflow", "percent-encoded"),
        ("postgresql://me:hunter2@hunter2@127.0.0.1:9/deerflow", "percent-encoded"),
    ],
)
async def test_wrong_urls_are_one_sentence_without_a_password(url: str, sentence: str) -> None:
    with pytest.raises((StorageConfigError, StorageUnavailableError), match=sentence) as error:
        await open_database(url)
    assert "hunter2" not in str(error.value)


async def test_schema_that_changes_while_it_is_read_ends_the_transfer(
    new_sqlite: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_ROWS", 4)
    source, target = new_sqlite("0.1.7"), DictTarget()
    fill(source, threads=20)
    imported = target.import_rows

    async def upgrade(kind: Any, rows: Any, **options: Any) -> Any:
        if kind == "runs" and target.calls < 100:
            target.calls = 100
            source.execute("ALTER TABLE run_events ADD COLUMN mood TEXT")
        return await imported(kind, rows, **options)

    monkeypatch.setattr(target, "import_rows", upgrade)
    with pytest.raises(StorageUnavailableError, match="changed its schema"):
        await one_pass(source, target)
    assert not target.rows["run_events"]


@pytest.mark.parametrize(
    ("url", "package"), [("sqlite:///{file}", "sqlalchemy"), ("postgresql://h/d", "psycopg")]
)
async def test_missing_package_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, package: str
) -> None:
    imported = databases.importlib.import_module

    def without(name: str, *arguments: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return imported(name, *arguments)

    (tmp_path / "x.db").touch()
    monkeypatch.setattr(databases.importlib, "import_module", without)
    with pytest.raises(MissingDependencyError, match=r"deerflow-mongo\[transfer\]"):
        await open_database(url.format(file=tmp_path / "x.db"))


# -- the survey ------------------------------------------------------------------------------------


async def test_survey_counts_and_names_what_is_not_carried(new_source: NewSource) -> None:
    source = new_source("main")
    fill(source)
    source.insert("users", [user(7, email="A@x.org"), user(8, email="a@x.org")])
    source.insert("runs", [run(70, 7, status="running")])
    source.execute(
        "INSERT INTO agents VALUES ('a')", "CREATE TABLE notes (id INTEGER)", "INSERT INTO notes VALUES (1)"
    )
    found = await surveyed(source)
    assert {table.table: table.rows for table in found.tables} == {
        "users": 5,
        "threads_meta": 6,
        "runs": 7,
        "feedback": 8,
        "run_events": 30,
    }
    assert all(table.size_bytes > 0 for table in found.tables)
    assert {(finding.table, finding.rows, finding.prevents) for finding in found.findings} == {
        ("users", 1, True),
        ("runs", 1, False),
        ("feedback", 1, False),
        ("agents", 1, True),
        ("notes", 1, True),
    }
    named = {finding.table: finding.named for finding in found.findings}
    assert named["runs"] == ["run run-70 of thread thread-7, running"]
    assert named["users"] == ["a@x.org (2 accounts)"]


async def test_survey_names_rows_beyond_the_limit(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deerflow_mongo.transfer.sql.survey.MAX_ROW_BYTES", 2_000)
    source = new_source("0.1.7")
    source.insert("run_events", [event(1, 0), event(2, 0, content="é" * 1_000)])
    [finding] = (await surveyed(source)).findings
    assert finding.prevents
    assert finding.named[0].startswith("thread-0, 2, 2")


async def test_survey_does_not_count_repeated_numbers_that_the_database_refuses(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Any) -> Any:
        raise AssertionError("events are read for nothing")

    monkeypatch.setattr("deerflow_mongo.transfer.sql.queries.repeated_numbers", refused)
    source = new_source("0.1.7")
    source.execute("CREATE UNIQUE INDEX numbers ON run_events (thread_id, seq)")
    fill(source)
    assert [finding.table for finding in (await surveyed(source)).findings] == ["feedback"]


# -- the source stays as it is ---------------------------------------------------------------------


def state_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(params=["delete", "wal"])
def stopped(request: pytest.FixtureRequest, new_sqlite: NewSource) -> Source:
    """The database of a host that has stopped."""
    source = new_sqlite("0.1.7")
    with closing(sqlite3.connect(file_of(source))) as connection:
        connection.execute(f"PRAGMA journal_mode={request.param}")
    fill(source)
    return source


async def test_source_of_a_stopped_host_is_not_changed_and_nothing_is_left_beside_it(stopped: Source) -> None:
    folder = file_of(stopped).parent
    before = state_of(folder)
    assert list(before) == ["deerflow.db"]
    await surveyed(stopped)
    assert (await one_pass(stopped, DictTarget()))["run_events"].is_complete
    assert state_of(folder) == before


@pytest.fixture
def running_host(new_sqlite: NewSource) -> Iterator[tuple[Source, sqlite3.Connection]]:
    """A database in WAL mode, and the connection of its host."""
    source = new_sqlite("0.1.7")
    with closing(sqlite3.connect(file_of(source), timeout=0, isolation_level=None)) as host:
        host.execute("PRAGMA journal_mode=wal")
        yield source, host


async def test_host_can_write_while_its_database_is_read(
    running_host: tuple[Source, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_ROWS", 3)
    source, host = running_host
    fill(source, threads=10)
    target = DictTarget()
    imported = target.import_rows

    async def write_and_import(kind: Any, rows: Any, **options: Any) -> Any:
        host.execute("UPDATE runs SET message_count = message_count + 1")
        return await imported(kind, rows, **options)

    monkeypatch.setattr(target, "import_rows", write_and_import)
    await one_pass(source, target)
    monkeypatch.setattr(target, "import_rows", imported)
    outcomes = await one_pass(source, target)
    assert all(outcome.is_complete for outcome in outcomes.values())
    assert host.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


async def test_host_that_starts_while_its_database_is_read_is_noticed(
    new_sqlite: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_ROWS", 3)
    source = new_sqlite("0.1.7")
    fill(source, threads=10)
    with closing(sqlite3.connect(file_of(source))) as connection:
        connection.execute("PRAGMA journal_mode=wal")
    target, hosts = DictTarget(), list[sqlite3.Connection]()
    imported = target.import_rows

    async def start_host(kind: Any, rows: Any, **options: Any) -> Any:
        if not hosts:
            hosts.append(sqlite3.connect(file_of(source), isolation_level=None))
            hosts[0].execute(
                "INSERT INTO threads_meta SELECT 'zz', assistant_id, user_id, display_name, "
                "status, metadata_json, created_at, updated_at FROM threads_meta LIMIT 1"
            )
        return await imported(kind, rows, **options)

    monkeypatch.setattr(target, "import_rows", start_host)
    outcomes = await one_pass(source, target)
    hosts[0].close()
    assert ("zz",) in target.rows["threads"]
    assert outcomes["threads"].rows == 11


async def test_postgresql_is_read_in_a_transaction_that_cannot_write(new_postgresql: NewSource) -> None:
    source = new_postgresql("0.1.7")
    source.insert("threads", [thread(1)])
    database = await open_database(source.url)
    try:
        await recognise(database)
        with pytest.raises(StorageUnavailableError, match="read-only transaction"):
            await database.run(lambda connection: connection.exec_driver_sql("DELETE FROM threads_meta"))
    finally:
        await database.aclose()


async def test_postgresql_is_read_as_it_was_at_the_beginning(new_postgresql: NewSource) -> None:
    source, target = new_postgresql("0.1.7"), DictTarget()
    fill(source)
    imported = target.import_rows

    async def write_and_import(kind: Any, rows: Any, **options: Any) -> Any:
        source.execute("DELETE FROM run_events")
        return await imported(kind, rows, **options)

    target.import_rows = write_and_import
    assert (await one_pass(source, target))["run_events"].stored == 30
