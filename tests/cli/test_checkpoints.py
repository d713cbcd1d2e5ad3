"""`deerflow-mongo checkpoints`: copying, measuring, pruning, their exit codes, and no password in a text."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pymongo
import pytest

from ..transfer.conversations import build_graph, converse
from .command import UNREACHABLE, output_of, run

Client = pymongo.MongoClient[dict[str, Any]]

THREAD = "thread-1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of langgraph-checkpoint-sqlite with two threads."""
    aio: Any = pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    file = tmp_path_factory.mktemp("source") / "checkpoints.db"

    async def fill() -> None:
        async with aio.AsyncSqliteSaver.from_conn_string(str(file)) as saver:
            await converse(saver, THREAD, turns=1)
            await build_graph(saver).ainvoke({"notes": [0]}, {"configurable": {"thread_id": "thread-2"}})

    asyncio.run(fill())
    return file


@pytest.fixture
def target(mongodb_url: str, database_name: str) -> list[str]:
    return ["--url", mongodb_url, "--database", database_name]


@pytest.fixture
def source(file: Path) -> list[str]:
    return ["--from", f"sqlite:///{file}"]


def json_from(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = run("checkpoints", *arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


# -- copy ------------------------------------------------------------------------------------------


def test_repeated_copy_reports_what_is_there_already(source: list[str], target: list[str]) -> None:
    assert "15 checkpoints would be copied; nothing" in output_of(
        "checkpoints", "copy", *source, *target, "--dry-run"
    )
    first = output_of("checkpoints", "copy", *source, *target)
    assert first.startswith("2 threads: 2 copied. 15 checkpoints with states of 0.0 MiB in ")
    second = json_from("copy", *source, *target)
    assert [thread["result"] for thread in second["threads"]] == ["unchanged", "unchanged"]


def test_copy_of_named_threads_fails_for_an_absent_one(source: list[str], target: list[str]) -> None:
    threads = ["--thread", "thread-2", "--thread", "absent"]
    outcome = output_of("checkpoints", "copy", *source, *target, *threads, exit_code=1)
    assert "thread absent was not copied: the source has no checkpoints of this thread" in outcome
    assert "2 threads: 1 copied, 1 failed. 3 checkpoints" in outcome


def test_thread_that_differs_is_named_and_the_exit_code_is_1(
    source: list[str], target: list[str], raw_client: Client
) -> None:
    run("checkpoints", "copy", *source, *target)
    collection = raw_client[target[3]]["checkpoint_data"]
    collection.update_many({"parent": {"$ne": None}}, {"$set": {"parent": "another"}})
    outcome = output_of("checkpoints", "copy", *source, *target, exit_code=1)
    assert f"thread {THREAD} differs and was left alone: checkpoint" in outcome
    assert "2 different and left alone" in outcome
    assert "2 replaced" in output_of("checkpoints", "copy", *source, *target, "--overwrite")


def test_url_of_the_source_is_read_from_the_environment(
    source: list[str], target: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHECKPOINTS_URL", source[1])
    copied = output_of("checkpoints", "copy", "--from", "$CHECKPOINTS_URL", *target, "--thread", THREAD)
    assert "1 copied" in copied


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("checkpoints.db", "--from is no URL; expected sqlite:///file"),
        ("mysql://me:hunter2@host/db", "--from is mysql://...; expected sqlite:///file"),
        ("$CHECKPOINTS_URL", "the environment has no variable CHECKPOINTS_URL"),
        ("sqlite:///absent.db", "there is no file absent.db; an absolute path has four slashes"),
        ("sqlite://host/file", "expected sqlite:///file, or sqlite:////file for an absolute path"),
        ("postgresql://me:hunter2@127.0.0.1:9/db?password=hunter2", "***@127.0.0.1:9/db cannot be opened"),
        (
            f"mongodb-langgraph{UNREACHABLE[7:]}",
            "--from mongodb-langgraph://***@127.0.0.1:9/ cannot be opened",
        ),
    ],
)
def test_wrong_source_is_one_sentence_without_its_password(target: list[str], url: str, text: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    outcome = output_of("checkpoints", "copy", "--from", url, *target, exit_code=2)
    assert text in outcome
    assert "hunter2" not in outcome


def test_file_without_checkpoints_is_refused(target: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    outcome = output_of("checkpoints", "copy", "--from", url, *target, exit_code=2)
    assert "has no table 'checkpoints' of langgraph-checkpoint-sqlite" in outcome


def test_missing_library_is_named_with_its_command(
    source: list[str], target: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langgraph.checkpoint.sqlite", None)
    outcome = output_of("checkpoints", "copy", *source, *target, exit_code=2)
    assert "Install it with: pip install langgraph-checkpoint-sqlite" in outcome


def test_copy_onto_the_source_itself_is_refused(target: list[str]) -> None:
    url, _, options = target[1].partition("?")
    own = f"{url.rstrip('/')}/{target[3]}?{options}"
    outcome = output_of("checkpoints", "copy", "--from", own, *target, exit_code=2)
    assert "--from is the database that the copy would go to" in outcome


@pytest.mark.parametrize("command", ["copy", "stats", "prune"])
def test_database_must_be_named(source: list[str], command: str) -> None:
    given = {"copy": source, "stats": [], "prune": ["--keep-last", "1"]}[command]
    assert "name the database with --url" in output_of("checkpoints", command, *given, exit_code=2)
    mock = output_of("checkpoints", command, *given, "--driver", "mongomock", exit_code=2)
    assert "needs the backend mongodb, on a server" in mock


# -- stats -----------------------------------------------------------------------------------------


def test_stats_list_the_largest_threads_and_the_total(source: list[str], target: list[str]) -> None:
    run("checkpoints", "copy", *source, *target)
    lines = run("checkpoints", "stats", *target, "--limit", "1").output.splitlines()
    assert lines[0].startswith("2 threads with 15 checkpoints: 0.")
    assert lines[1].split()[-1] == "thread"
    assert [line.split()[-1] for line in lines[2:]] == [THREAD, "(total)"]
    assert [line.split()[1] for line in lines[2:]] == ["12", "15"]


def test_beginning_of_a_thread_that_has_only_checkpoints_is_looked_up(
    source: list[str], target: list[str]
) -> None:
    run("checkpoints", "copy", *source, *target)
    output = output_of("checkpoints", "stats", *target, "--thread", "thread", exit_code=2)
    assert output == "error: several threads begin with thread: thread-1, thread-2; give more of the id"
    [row] = json_from("stats", *target, "--thread", "thread-2")["largest"]
    assert row["thread"] == "thread-2"


def test_stats_of_named_threads_have_them_only(source: list[str], target: list[str]) -> None:
    run("checkpoints", "copy", *source, *target)
    found = json_from("stats", *target, "--thread", "thread-2", "--thread", "absent")
    assert [(row["thread"], row["checkpoints"]) for row in found["largest"]] == [
        ("thread-2", 3),
        ("absent", 0),
    ]
    assert found["total"]["checkpoints"] == 3


# -- prune -----------------------------------------------------------------------------------------


def test_prune_deletes_what_its_dry_run_counts(source: list[str], target: list[str]) -> None:
    run("checkpoints", "copy", *source, *target)
    by_age = output_of("checkpoints", "prune", *target, "--older-than", "1h", "--thread", THREAD)
    assert by_age.startswith("1 thread, 0 of them affected")
    dry = json_from("prune", *target, "--keep-last", "2", "--dry-run")
    assert json_from("stats", *target)["total"]["checkpoints"] == 15
    pruned = json_from("prune", *target, "--keep-last", "2")
    assert pruned["pruned"]["removed"]["checkpoints"] == dry["pruned"]["removed"]["checkpoints"] > 0
    assert pruned["threads"] == 2
    left = json_from("stats", *target)["total"]["checkpoints"]
    assert left == 15 - pruned["pruned"]["removed"]["checkpoints"]
    again = output_of("checkpoints", "prune", *target, "--keep-last", "2")
    assert again.startswith("2 threads, 0 of them affected: 0 checkpoints, 0 writes and 0 pieces (0.0 MiB")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "name what may be deleted with --keep-last, --older-than or both"),
        (["--older-than", "30"], "expected a number and a unit, such as 30d"),
        (["--keep-last", "0"], "--keep-last"),
    ],
)
def test_prune_without_a_rule_is_refused(target: list[str], options: list[str], text: str) -> None:
    assert text in output_of("checkpoints", "prune", *target, *options, exit_code=2)
