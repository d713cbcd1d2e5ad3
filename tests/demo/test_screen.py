"""The demo's screen: what it prints of a report, and which commands it prints for which database."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deerflow_mongo import MongoConfig
from deerflow_mongo.demo.consistency import ConsistencyReport, WriteCount
from deerflow_mongo.demo.screen import broken, next_commands, show_screen
from deerflow_mongo.demo.summary import ReplayResult, Summary, UserTotals

THREAD_ID = "5fa513dc-330c-5ef8-8d03-be66f959e8a2"
PROGRAM = "deerflow-mongo"

REPORT = ConsistencyReport(
    writers=32,
    users=3,
    runs=6,
    duration_ms=1_234,
    run_events=WriteCount(768, 0, 0),
    token_records=WriteCount(512, 0, 0),
    vote_upserts=WriteCount(530, 0, 0),
    missing_numbers=0,
    recorded_tokens=68_096,
    stored_tokens=68_096,
    expected_votes=18,
    stored_votes=18,
    differences=[],
    thread_ids=["a", "b", "c"],
)


def summary(**server: Any) -> Summary:
    users = ["alice", "bob", "carol"]
    empty: Any = {}
    return Summary(
        server={"version": "6.0.5", "url": "embedded", "data_dir": None, **server},
        replayed=ReplayResult(3, 9, 60, users, 211, []),
        by_user=[UserTotals(user, 1, 3, 20, 3_276) for user in users],
        runs_before=0,
        runs_now=9,
        runs_by_status={},
        events_before=0,
        events_now=60,
        events_by_category={},
        tokens=empty,
        newest_runs=[],
        votes=[],
        threads_now=3,
        threads=[],
        ownership={},
        story={},
        document={},
    )


def screen(report: ConsistencyReport, *, program: str = PROGRAM, width: int = 80) -> list[str]:
    output = io.StringIO()
    commands = next_commands(program, MongoConfig(url="embedded", database="deerflow_demo"), None, THREAD_ID)
    console = Console(file=output, width=width, markup=False, highlight=False, emoji=False)
    show_screen(console, summary(), report, commands)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_screen_as_it_is_printed() -> None:
    assert screen(REPORT) == [
        "Replayed 3 threads of 3 users at once on MongoDB 6.0.5 (temporary server):",
        "user           threads     runs   events   tokens",
        "alice                1        3       20    3,276",
        "bob                  1        3       20    3,276",
        "carol                1        3       20    3,276",
        "all                  3        9       60    9,828",
        "",
        "Consistency check: 32 writers at once on the same 6 runs for 1.2 s,",
        "then every acknowledged write was looked up in the database:",
        "writes         acknowledged     lost  doubled  in the database",
        "run events              768        0        0  numbers without a gap",
        "token records           512        0        0  68,096 of 68,096 tokens",
        "vote upserts            530        0        0  18 votes: one per user and run",
        "all                   1,810        0        0  PASSED",
        "",
        "Next, in this order:",
        "  deerflow-mongo demo --data-dir demo-db",
        f"  deerflow-mongo events {THREAD_ID} --data-dir demo-db",
        "  deerflow-mongo check --data-dir demo-db --database deerflow_demo",
        "  deerflow-mongo demo --verbose --data-dir demo-db",
    ]


def test_screen_of_python_m_fits_too() -> None:
    lines = screen(REPORT, program="python -m deerflow_mongo")
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80
    assert lines[17:19] == [f"  python -m deerflow_mongo events {THREAD_ID} \\", "      --data-dir demo-db"]


def test_differences_replace_the_commands() -> None:
    failed = replace(
        REPORT,
        run_events=WriteCount(768, 2, 1),
        missing_numbers=2,
        differences=[f"thread {number}: 1 run event lost" for number in range(9)],
    )
    lines = screen(failed)
    assert "run events              768        2        1  2 numbers missing" in lines
    assert "all                   1,810        2        1  FAILED" in lines
    assert "  thread 4: 1 run event lost" in lines
    assert "  ... and 4 more" in lines
    assert PROGRAM not in "\n".join(lines)
    assert len(lines) <= 24


@pytest.mark.parametrize(
    ("config", "url", "options"),
    [
        ({"url": "mongodb://host/"}, "mongodb://host/", "--url '$MONGODB_URL'"),
        ({"url": "mongodb://me:secret@host/"}, "$MY_URL", "--url '$MY_URL'"),
        ({"url": "mongodb://me:secret@host/"}, "mongodb://me:secret@host/", "--url '$MONGODB_URL'"),
        ({"url": "embedded", "data_dir": Path("a --b")}, None, "--data-dir 'a --b'"),
        ({"url": "embedded"}, None, "--data-dir demo-db"),
        ({"url": "embedded", "driver": "motor"}, None, "--data-dir demo-db --driver motor"),
        ({"driver": "mongomock"}, None, "--data-dir demo-db"),
    ],
)
def test_commands_name_the_database_of_the_demo(
    config: dict[str, Any], url: str | None, options: str
) -> None:
    commands = next_commands(PROGRAM, MongoConfig(database="d", **config), url, THREAD_ID)
    texts = [" ".join(command) for command in commands]
    assert f"{PROGRAM} events {THREAD_ID} {options} --database d" in texts
    assert f"{PROGRAM} check {options} --database d" in texts
    assert "secret" not in "".join(texts)
    assert (f"{PROGRAM} demo {options} --database d" in texts) == ("demo-db" in options)


def test_commands_name_the_demos_database_where_the_uri_names_another() -> None:
    url = "mongodb://host/mine"
    config = MongoConfig(url=url, database="deerflow_demo")
    texts = [" ".join(command) for command in next_commands(PROGRAM, config, url, THREAD_ID)]
    assert f"{PROGRAM} events {THREAD_ID} --url '$MONGODB_URL' --database deerflow_demo" in texts


@pytest.mark.parametrize(
    ("url", "first"),
    [
        ("mongodb://host/?w=3", "export MONGODB_URL='mongodb://host/?w=3'"),
        ("mongodb://me:secret@host/", "# with the URI of this demo in MONGODB_URL:"),
    ],
)
def test_first_line_sets_the_url_unless_it_has_a_password(url: str, first: str) -> None:
    commands = next_commands(PROGRAM, MongoConfig(url=url, database="d"), url, THREAD_ID)
    assert commands[0] == (first,)


def test_command_is_broken_before_an_option_that_does_not_fit() -> None:
    command = ("demo", "--one 1", "--two 2")
    assert broken(command, 22) == "  demo --one 1 --two 2"
    assert broken(command, 21) == "  demo --one 1 \\\n      --two 2"
    assert broken(command, 10) == "  demo \\\n      --one 1 \\\n      --two 2"
