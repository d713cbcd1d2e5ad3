"""`deerflow-mongo transfer` on a real server: what it prints, its exit codes, interruptions and passes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pymongo
import pytest

from ..child_processes import communicate
from ..transfer.conversations import converse
from ..transfer.sql.sources import Source, event, fill, rows_of, run, thread, user
from .command import COMMAND, output_of
from .command import run as invoke

Client = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    source = Source(f"sqlite:///{tmp_path / 'deerflow.db'}", "0.1.7")
    source.create()
    return source


@pytest.fixture
def target(mongodb_url: str, database_name: str) -> list[str]:
    return ["--url", mongodb_url, "--database", database_name]


def report_of(source: Source, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = invoke("transfer", "--from", source.url, *arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def outcomes(report: dict[str, Any], name: str) -> dict[str, int]:
    return {table["kind"]: table[name] for table in report["tables"]}


def stored(raw_client: Client, database: str) -> dict[str, int]:
    collections = raw_client[database]
    counts = {kind: collections[kind].count_documents({}) for kind in rows_of()}
    return {**counts, "run_events": collections["run_events"].count_documents({"seq": {"$gt": 0}})}


def test_transfer_carries_tables_and_checkpoints_and_repeats_without_a_change(
    source: Source, target: list[str], raw_client: Client, database_name: str
) -> None:
    aio: Any = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    base: Any = pytest.importorskip("langgraph.checkpoint.base")
    fill(source)

    async def checkpoints() -> None:
        async with aio.AsyncSqliteSaver.from_conn_string(source.url.removeprefix("sqlite:///")) as saver:
            await converse(saver, "thread-1", turns=1)  # ends with a question, which may be replaced
            place: Any = {"configurable": {"thread_id": "thread-2", "checkpoint_ns": ""}}
            await saver.aput(place, base.empty_checkpoint(), {}, {})

    asyncio.run(checkpoints())
    report = report_of(source, *target)
    assert report["complete"]
    assert outcomes(report, "stored") == stored(raw_client, database_name) == rows_of()
    assert [one["result"] for one in report["checkpoints"]["threads"]] == ["copied", "copied"]

    printed = output_of("transfer", "--from", source.url, *target)
    assert "30 rows of threads with the same count" in printed
    assert "checkpoints: 1 thread with the same counts and newest checkpoint" in printed
    assert "everything is in the target" in printed
    again = report_of(source, *target, "--compare-all")
    assert outcomes(again, "unchanged") == rows_of()
    assert [one["result"] for one in again["checkpoints"]["threads"]] == ["unchanged", "unchanged"]
    for first, second in zip(report["tables"], again["tables"], strict=True):
        assert first["source_digest"] == first["target_digest"] == second["target_digest"]


def test_second_pass_carries_what_the_host_wrote_meanwhile(source: Source, target: list[str]) -> None:
    fill(source)
    report_of(source, *target)
    source.execute("UPDATE threads_meta SET display_name = 'later' WHERE thread_id = 'thread-2'")
    source.insert("run_events", [event(6, 2), event(1, 9)])
    source.insert("threads", [thread(9)])
    report = report_of(source, *target)
    assert report["complete"]
    assert outcomes(report, "stored") == {**dict.fromkeys(rows_of(), 0), "run_events": 2, "threads": 1}
    assert outcomes(report, "replaced") == {**dict.fromkeys(rows_of(), 0), "threads": 1}
    assert outcomes(report, "equal_by_summary")["run_events"] == 25


def test_row_that_was_changed_here_stays_and_is_listed(
    source: Source, target: list[str], raw_client: Client, database_name: str
) -> None:
    fill(source)
    report_of(source, *target)
    threads = raw_client[database_name]["threads"]
    threads.update_one({"_id": "thread-1"}, {"$set": {"display_name": "mine"}})
    source.execute("UPDATE threads_meta SET display_name = 'theirs' WHERE thread_id = 'thread-1'")
    printed = output_of("transfer", "--from", source.url, *target)
    assert "threads thread-1 changed in the target, left as it is" in printed
    assert "everything is in the target but for what was changed there" in printed
    found = threads.find_one({"_id": "thread-1"})
    assert found is not None
    assert found["display_name"] == "mine"


def test_rows_of_others_in_the_target_are_counted_and_left_alone(
    source: Source, target: list[str], tmp_path: Path
) -> None:
    other = Source(f"sqlite:///{tmp_path / 'other.db'}", "0.1.7")
    other.create()
    other.insert("threads", [thread(70), thread(71)])
    report_of(other, *target)
    fill(source)
    assert outcomes(report_of(source, *target), "only_here")["threads"] == 2


def test_refused_rows_are_listed_and_the_exit_code_is_1(source: Source, target: list[str]) -> None:
    source.insert("users", [user(1, email="Ann@example.com"), user(2, email="ann@example.com")])
    source.insert("runs", [run(number, 1, status="") for number in range(25)])
    printed = output_of("transfer", "--from", source.url, *target, exit_code=1)
    assert "not carried: users: 1 row: emails that differ in case only" in printed
    assert "users user-2 not carried" in printed
    assert "26 rows in all (26 not carried); --json lists them" in printed
    assert "not everything is in the target" in printed
    report = report_of(source, *target, exit_code=1)
    assert sum(len(table["differences"]) for table in report["tables"]) == 26


def test_event_beyond_16_mib_is_listed_and_the_others_arrive(source: Source, target: list[str]) -> None:
    source.insert(
        "run_events", [event(1, 1), event(2, 1, content="x" * (17 << 20), metadata={}), event(3, 1)]
    )
    report = report_of(source, *target, exit_code=1)
    [table] = [table for table in report["tables"] if table["kind"] == "run_events"]
    assert [difference["key"] for difference in table["differences"]] == [["thread-1", 2]]
    assert table["stored"] == 2
    [finding] = report["source"]["findings"]
    assert finding["prevents"]
    assert finding["named"][0].startswith("thread-1, 2, 2 (17,825")


def test_dry_run_needs_no_target_and_writes_nothing(
    source: Source, target: list[str], raw_client: Client, database_name: str
) -> None:
    fill(source)
    printed = output_of("transfer", "--from", source.url, "--dry-run")
    assert "30 0.0 MiB run_events" in printed
    assert "note: feedback: 1 row: votes that their user has replaced" in printed
    assert report_of(source, *target, "--dry-run")["dry_run"]
    assert raw_client[database_name].list_collection_names() == []


def test_wrong_source_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, target: list[str], raw_client: Client, database_name: str
) -> None:
    other = Source(f"sqlite:///{tmp_path / 'other.db'}", "0.1.7")
    other.execute("CREATE TABLE notes (id INTEGER)")
    printed = output_of("transfer", "--from", other.url, *target, exit_code=2)
    assert "is no database of DeerFlow: it needs the tables runs and threads_meta, and has notes" in printed
    assert raw_client[database_name].list_collection_names() == []


def test_checkpoints_of_another_database_need_its_tables(source: Source, target: list[str]) -> None:
    fill(source)
    printed = output_of("transfer", "--from", source.url, "--checkpoints", source.url, *target, exit_code=2)
    assert "has no checkpoints of LangGraph" in printed


def test_killed_transfer_continues(
    source: Source, target: list[str], raw_client: Client, database_name: str
) -> None:
    fill(source, threads=400, events=20)
    command = [*COMMAND, "transfer", "--from", source.url, *target]
    with subprocess.Popen(  # noqa: S603 - this package's own command
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ,
    ) as child:
        events = raw_client[database_name]["run_events"]
        while child.poll() is None and events.estimated_document_count() < 1_000:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        communicate(child)
    before = stored(raw_client, database_name)
    assert 0 < before["run_events"] < 8_000
    report = report_of(source, *target)
    assert report["complete"]
    assert stored(raw_client, database_name) == rows_of(threads=400, events=20)
    assert outcomes(report, "equal_by_summary")["run_events"] > 0
    assert outcomes(report, "equal_by_summary")["runs"] == 400
