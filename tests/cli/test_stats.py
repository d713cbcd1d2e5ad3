"""`deerflow-mongo stats` and `top`: text, JSON, the page's file, a live terminal, and errors."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pymongo
import pytest
import pytest_asyncio

from deerflow_mongo import MongoStorage
from deerflow_mongo.cli import stats as stats_module
from deerflow_mongo.cli.top import lease_text
from deerflow_mongo.mongodb.reports.report import Report, read_report
from deerflow_mongo.mongodb.reports.rows import ActiveRun

from ..child_processes import communicate
from .command import COMMAND, UNREACHABLE, output_of, run

pytestmark = pytest.mark.usefixtures("emptied_database")

Client = pymongo.MongoClient[dict[str, Any]]


@pytest_asyncio.fixture
async def place(mongodb_url: str, database_name: str) -> list[str]:
    """A database with one run that failed, and one that is active."""
    async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as storage:
        await storage.runs.create("run-failed", "thread-1", user_id="alice", model_name="gpt-4.1")
        await storage.runs.record_token_usage(
            "run-failed", caller="lead_agent", model_name="gpt-4.1", input_tokens=1_200, output_tokens=34
        )
        await storage.runs.set_error("run-failed", "ValueError: no")
        await storage.runs.create_thread_operation_atomic(
            "run-active",
            thread_id="thread-2",
            owner_worker_id="worker-1",
            lease_expires_at="2999-01-01T00:00:00Z",
            user_id="bob",
        )
    return ["--url", mongodb_url, "--database", database_name]


def lines_after(output: str, title: str) -> list[list[str]]:
    """The words of the lines of a section."""
    section = output.split(f"\n{title}\n")[1].split("\n\n")[0]
    return [line.split() for line in section.splitlines()]


# -- stats -----------------------------------------------------------------------------------------


def test_text_has_every_section(place: list[str]) -> None:
    result = run("stats", *place)
    assert result.exit_code == 0, result.output
    first, facts, *_ = result.output.splitlines()
    assert first.startswith(f"Database {place[3]}, 30 days, ")
    assert facts.startswith("runs: 2, failed: 1 (50.0 %), tokens: 1,234, left running: 0, on disk: ")
    assert lines_after(result.output, "Tokens by model")[1][:2] == ["gpt-4.1", "1"]
    assert lines_after(result.output, "Failing runs by error type")[1][:3] == ["ValueError", "error", "1"]
    assert lines_after(result.output, "Votes by model") == [
        ["No", "votes", "on", "runs", "of", "this", "period."]
    ]
    assert ["runs", "by_time"] in [line[:2] for line in lines_after(result.output, "Indexes and their use")]


def test_json_has_the_report(place: list[str]) -> None:
    found = json.loads(run("stats", "--json", *place, "--left-after", "0m").output)
    assert (found["database"], found["days"], found["left_after_s"]) == (place[3], 30, 0)
    assert [row["total_tokens"] for row in found["tokens_by_model"]] == [1_234, 0]
    assert [row["run_id"] for row in found["left_running"]] == ["run-active"]
    assert found["checkpoints"] is None
    assert found["since"].endswith("T00:00:00Z")
    assert [row["run_id"] for row in found["slowest_runs"]] == ["run-failed"]


def test_period_and_lists_are_limited(place: list[str], raw_client: Client) -> None:
    raw_client[place[3]].runs.update_many(
        {}, [{"$set": {"created_at": {"$subtract": ["$$NOW", 3 * 86_400_000]}}}]
    )
    found = json.loads(run("stats", "--json", *place, "--days", "2").output)
    assert found["runs_by_day"] == []
    found = json.loads(run("stats", "--json", *place, "--days", "4", "--limit", "1").output)
    assert [len(found[name]) for name in ("runs_by_day", "tokens_by_user")] == [2, 1]


def test_checkpoints_are_measured_on_request(place: list[str]) -> None:
    found = json.loads(run("stats", "--json", "--checkpoints", *place).output)
    assert found["checkpoints"]["threads"] == 0
    assert "No checkpoints." in output_of("stats", "--checkpoints", *place)


def test_page_is_written_into_the_file(place: list[str], tmp_path: Path) -> None:
    file = tmp_path / "stats.html"
    file.write_text("older")
    assert output_of("stats", *place, "--html", str(file)).startswith(f"wrote {file}: 30 days, ")
    page = file.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert f"<h1>Database {place[3]}</h1>" in page
    assert "1,234" in page
    assert [path.name for path in tmp_path.iterdir()] == ["stats.html"]


@pytest.mark.parametrize(
    ("name", "text"), [("", "is a folder"), ("no/such.html", "its folder does not exist")]
)
def test_file_that_cannot_be_written_is_an_error_before_anything_is_read(
    tmp_path: Path, name: str, text: str
) -> None:
    assert text in output_of("stats", "--url", UNREACHABLE, "--html", str(tmp_path / name), exit_code=2)


def test_database_without_our_collections_is_named(mongodb_url: str) -> None:
    output = output_of("stats", "--url", mongodb_url, "--database", "no_such_database", exit_code=1)
    assert output == "error: database no_such_database has no collection of deerflow-mongo"
    assert "MongoDB cannot be reached" in output_of("stats", "--url", UNREACHABLE, exit_code=1)


def test_section_that_was_not_read_is_named_and_the_rest_is_printed(
    place: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def partly(*arguments: Any, **options: Any) -> Report:
        report = await read_report(*arguments, **options)
        report.slowest_runs, report.unavailable = [], {"slowest_runs": "not read within 30 s"}
        return report

    monkeypatch.setattr(stats_module, "read_report", partly)
    result = run("stats", *place)
    assert result.exit_code == 1
    assert lines_after(result.output, "Slowest runs") == [["not", "read", "within", "30", "s"]]
    assert "error: not everything was read: slowest_runs" in result.output
    assert lines_after(result.output, "Busiest threads")[1][0] == "thread-1"


# -- top -------------------------------------------------------------------------------------------


def test_snapshot_shows_active_runs(place: list[str]) -> None:
    headline, columns, row = run("top", *place).output.splitlines()
    assert headline.startswith(f"1 active in database {place[3]} at ")
    assert columns.split() == ["run", "thread", "user", "status", "age", "tokens", "model", "lease", "owner"]
    assert row.split()[:4] == ["run-acti", "thread-2", "bob", "pending"]
    assert row.endswith("worker-1")
    assert len(run("top", "--once", *place).output.splitlines()) == 3


def test_json_snapshot_has_whole_ids(place: list[str]) -> None:
    found = json.loads(run("top", "--json", *place).output)
    assert (found["database"], found["count"]) == (place[3], 1)
    [row] = found["runs"]
    assert (row["run_id"], row["lease"], row["owner"]) == ("run-active", "valid", "worker-1")


def test_more_active_runs_than_fit_are_counted(place: list[str], raw_client: Client) -> None:
    runs = raw_client[place[3]].runs
    active: Any = runs.find_one({"_id": "run-active"})
    for number in range(3):
        order = active["order"] + number + 1
        runs.insert_one({**active, "_id": f"more-{number}", "thread_id": f"t-{number}", "order": order})
    output = run("top", *place, "--limit", "2").output.splitlines()
    assert output[0].startswith("4 active")
    assert [line.split()[0] for line in output[2:]] == ["run-acti", "more-0", "and"]
    assert output[-1] == "and 2 more, newer ones"


def test_nothing_active_is_one_line(place: list[str], raw_client: Client) -> None:
    raw_client[place[3]].runs.delete_many({})
    [line] = run("top", *place).output.splitlines()
    assert line.startswith("0 active")


def test_terminal_is_refreshed_until_ctrl_c(place: list[str], raw_client: Client) -> None:
    controller, terminal = pty.openpty()
    command = [*COMMAND, "top", *place, "--interval", "0.2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen(  # noqa: S603
        command, stdout=terminal, stderr=subprocess.PIPE, text=True, env=environment
    ) as top:
        os.close(terminal)
        _until_shown(controller, b"run-acti")
        raw_client[place[3]].runs.update_one({"_id": "run-active"}, {"$set": {"tokens.total": 76_543}})
        _until_shown(controller, b"76,543")
        top.send_signal(signal.SIGINT)
        _, errors = communicate(top)
    os.close(controller)
    assert (top.returncode, errors) == (130, "error: stopped; the storage is closed\n")


def _until_shown(controller: int, text: bytes) -> None:
    shown = b""
    while text not in shown:
        shown += os.read(controller, 65_536)


def test_lease_is_named_by_its_state() -> None:
    def text_of(lease: Any, left_ms: int | None) -> str:
        times_and_tokens = (datetime(2026, 3, 14), 1, 2)  # noqa: DTZ001 - as rows have times
        return lease_text(
            ActiveRun("r", "t", None, "run", "running", None, *times_and_tokens, None, lease, left_ms)
        )

    assert text_of("none", None) == "-"
    assert text_of("valid", 25_000) == "valid, 25.0 s"
    assert text_of("expired", -182_000) == "expired 3 m 2 s ago"
