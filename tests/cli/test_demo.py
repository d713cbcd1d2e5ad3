"""`deerflow-mongo demo`: its screen, its long output, its JSON, its exit code, and the commands it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

import pymongo
import pytest

import deerflow_mongo
from deerflow_mongo.demo.recording import SAMPLE
from deerflow_mongo.mongodb.stores.runs import MongoRunStore

from ..demo.recordings import copied_sample, counted_by_hand, sample
from .command import output_of, process, run, summary_of

Client = pymongo.MongoClient[dict[str, Any]]

pytestmark = pytest.mark.usefixtures("short_check")


# -- the screen ------------------------------------------------------------------------------------

SCREEN_LINES, SCREEN_COLUMNS = 24, 80


def lines_of(*arguments: str) -> list[str]:
    result = run("demo", *arguments)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    return result.output.splitlines()


@pytest.mark.parametrize("users", ["1", "3", "25"])
def test_output_fits_one_screen(
    mongodb_url: str, database_name: str, users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(SCREEN_COLUMNS))
    lines = lines_of("--url", mongodb_url, "--database", database_name, "--users", users)
    [export] = [line for line in lines if line.startswith("  export MONGODB_URL=")]  # as long as the URL is
    assert max(len(line) for line in lines if line != export) <= SCREEN_COLUMNS
    wrapped = -(-len(export) // SCREEN_COLUMNS) - 1
    assert len(lines) + wrapped < SCREEN_LINES


def test_screen_has_the_users_and_what_the_database_contains_of_them(
    mongodb_url: str, database_name: str
) -> None:
    lines = lines_of("--url", mongodb_url, "--database", database_name, "--users", "5")
    assert lines[0].startswith("Replayed 5 threads of 5 users at once on MongoDB ")
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:6]}
    assert list(rows) == ["user", "alice", "bob", "3", "all"]
    assert rows["alice"] == ["1", "3", "20", "3,276"]
    assert rows["all"] == ["5", "15", "100", "16,380"]
    again = lines_of("--url", mongodb_url, "--database", database_name, "--users", "5")
    assert again[2].split() == ["alice", "1", "6", "40", "6,552"]


def test_screen_and_json_have_the_result_of_the_check(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    report = summary_of(*place)["consistency"]
    assert report["passed"] is True
    assert (report["writers"], report["users"], report["differences"]) == (32, 3, [])
    assert report["run_events"] == {"acknowledged": 128, "lost": 0, "doubled": 0}
    screen = "\n".join(lines_of(*place))
    assert "32 writers at once" in screen
    rows = {line[:13].strip(): line[13:].split() for line in screen.splitlines()}
    assert rows["run events"] == ["128", "0", "0", "numbers", "without", "a", "gap"]
    assert rows["all"][1:] == ["0", "0", "PASSED"]


def test_lost_write_is_on_the_screen_and_in_the_exit_code(
    mongodb_url: str, database_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = MongoRunStore.record_token_usage, list[str]()

    async def lossy(self: MongoRunStore, run_id: str, **counts: Any) -> None:
        if counts["model_name"] == "model-a" and not lost:
            lost.append(run_id)
        else:
            await real(self, run_id, **counts)

    monkeypatch.setattr(MongoRunStore, "record_token_usage", lossy)
    result = run("demo", "--url", mongodb_url, "--database", database_name)
    assert result.exit_code == 1
    rows = {line[:13].strip(): line[13:].split() for line in result.output.splitlines()}
    assert rows["token records"][:3] == ["64", "1", "0"]
    assert rows["all"][1:] == ["1", "0", "FAILED"]
    assert f"run {lost[0]}: llm_call_count is" in result.output
    assert "error: the consistency check failed: 1 lost, 0 doubled" in result.output
    assert "Next, in this order" not in result.output


# -- the printed commands --------------------------------------------------------------------------


def printed_commands(output: str) -> str:
    _, _, commands = output.partition("Next, in this order:\n")
    return commands


def run_in_shell(commands: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the text as if it were pasted into a shell in which the package is installed."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, code in (
        ("deerflow-mongo", "exec python -c 'from deerflow_mongo.cli import main; main()' \"$@\""),
        ("python", f'exec {quote(sys.executable)} "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{code}\n")
        (programs / name).chmod(0o755)
    package = Path(deerflow_mongo.__file__).parents[1]
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(package), "COLUMNS": "80"}
    return subprocess.run(  # noqa: S603
        ["/bin/sh", "-e", "-c", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, **path, **environment},
    )


def test_demo_fits_one_screen_and_its_printed_commands_work_in_sequence(tmp_path: Path) -> None:
    first = run_in_shell("deerflow-mongo demo", tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    lines = first.stdout.splitlines()
    assert len(lines) <= SCREEN_LINES - 2  # the prompt with the command, and the next prompt
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    commands = printed_commands(first.stdout)
    assert len(commands.splitlines()) == 4
    done = run_in_shell(commands, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert " human_message " in done.stdout
    assert "A host would work." in done.stdout
    assert "Runs before: 9; now: 18." in done.stdout
    assert (tmp_path / "demo-db").is_dir()


def test_commands_printed_by_python_m_for_a_url_work(
    mongodb_url: str, database_name: str, tmp_path: Path
) -> None:
    done = process("demo", "--url", "$SOME_URL", "--database", database_name, SOME_URL=mongodb_url)
    assert done.returncode == 0, done.stderr
    commands = printed_commands(done.stdout)
    assert "python -m deerflow_mongo events" in commands
    assert mongodb_url not in commands
    again = run_in_shell(commands, tmp_path, SOME_URL=mongodb_url)
    assert (again.returncode, again.stderr) == (0, "")
    assert "Runs before: 9; now: 18." in again.stdout


# -- the long output and JSON ----------------------------------------------------------------------


def test_json_has_token_counts_equal_to_those_counted_by_hand(mongodb_url: str, database_name: str) -> None:
    shown = summary_of("--url", mongodb_url, "--database", database_name, "--users", "2")
    by_caller, by_model = counted_by_hand(SAMPLE)
    assert shown["tokens"]["by_caller"] == {caller: 2 * tokens for caller, tokens in by_caller.items()}
    assert {model: usage["tokens"] for model, usage in shown["tokens"]["by_model"].items()} == {
        model: 2 * tokens for model, tokens in by_model.items()
    }
    assert shown["runs_by_status"] == {"success": 4, "interrupted": 2}
    assert {(vote["positive"], vote["negative"]) for vote in shown["votes"]} == {(1, 1), (2, 0), (0, 2)}


def test_json_has_the_document_as_it_is_stored(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    shown = summary_of("--url", mongodb_url, "--database", database_name)
    stored = raw_client[database_name]["runs"].find_one({"_id": shown["document"]["_id"]}) or {}
    times = {name: f"{value.isoformat()}Z" for name, value in stored.items() if isinstance(value, datetime)}
    assert stored | times == shown["document"]
    assert shown["ownership"]["owner_sees"] == 3
    assert shown["ownership"]["other_sees"] == 0
    assert {thread["user_id"] for thread in shown["threads"]} == {"alice", "bob", "carol"}


def test_verbose_prints_tables_that_fit_80_columns(mongodb_url: str, database_name: str) -> None:
    result = run("demo", "--verbose", "--url", mongodb_url, "--database", database_name)
    assert result.exit_code == 0, result.output
    tables, _, _ = result.output.partition("as it is stored")
    assert max(map(len, tables.splitlines())) <= 80
    assert "\x1b" not in result.output
    for text in ("Runs before: 0; now: 9.", "kimi-k2.5", "subagent", "4 bytes of UTF-8", "Runs by status"):
        assert text in result.output


def test_second_demo_counts_the_runs_of_the_first_too(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    assert summary_of(*place)["runs_before"] == 0
    again = summary_of(*place)
    assert (again["runs_before"], again["runs_now"], again["threads_now"]) == (9, 18, 3)


def test_every_recorded_message_is_a_run_event(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    messages = len(sample()["values"]["messages"])
    shown = summary_of(*place)
    assert shown["replayed"]["events"] == shown["events_now"] == 3 * messages
    assert shown["events_by_category"] == {"message": 51, "trace": 9}
    assert summary_of(*place)["events_before"] == 3 * messages


def test_messages_of_one_thread_are_listed_page_by_page(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    story = summary_of(*place)["story"]
    pages = [[line["seq"] for line in page["messages"]] for page in story["pages"]]
    assert pages == [[1, 3, 4, 5, 6], [8, 9, 10, 11, 12], [13, 14, 15, 16, 18], [19, 20]]
    assert [page["after_seq"] for page in story["pages"]] == [0, 6, 12, 18]
    assert story["messages"] == 17
    again = output_of("demo", "--verbose", *place)
    assert "... and 9 more" in again


def test_messages_that_cannot_be_stored_are_reported_and_the_others_are_stored(
    mongodb_url: str, database_name: str
) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    odd: dict[str, Any] = {
        "type": "ai",
        "content": "",
        "artifact": [float("nan"), "\ud800", 2**70],
        "tool_calls": [{"id": []}],
    }
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    unstorable: dict[str, Any] = {"type": "tool", "content": "", "\x00\x1b[31m": deep, "tool_call_id": []}
    with copied_sample(messages=[odd, unstorable]) as file:
        result = run("demo", "--verbose", *place, str(file))
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "1 write could not be stored; see above" in result.output
    assert "with 21 run events" in " ".join(result.output.split())
    assert "deep" in result.output
    assert "running" not in result.output


def test_data_folder_has_the_data_of_the_last_demo(tmp_path: Path) -> None:
    place = ("--data-dir", str(tmp_path / "data"))
    assert summary_of(*place)["runs_now"] == 9
    assert summary_of(*place)["runs_before"] == 9
    assert "version 2, 7 collections" in output_of("check", *place, "--database", "deerflow_demo")


def test_verbose_lists_twenty_rows_and_counts_the_rest(mongodb_url: str, database_name: str) -> None:
    output = output_of(
        "demo", "--verbose", "--url", mongodb_url, "--database", database_name, "--users", "25"
    )
    assert "... and 55 more" in output  # of 75 runs
    assert "... and 5 more" in output  # of 25 threads
    assert "user25" in output


def test_thread_of_another_user_stays_with_its_owner(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    summary_of(*place, str(SAMPLE))
    with copied_sample(thread_id="other") as first:
        shown = summary_of(*place, str(first), str(SAMPLE))
        assert shown["replayed"]["other_owners"] == [[sample()["metadata"]["thread_id"], "alice"]]
        output = output_of("demo", "--verbose", *place, str(first), str(SAMPLE))
        assert "and its new runs belong to its owner, alice" in output


def test_titles_with_wide_and_control_characters_are_printed_in_one_line(
    mongodb_url: str, database_name: str
) -> None:
    title = "苏超联赛酷炫网站设计[red]\x1b[31m\n" * 9
    with copied_sample(title=title) as file:
        result = run("demo", "--verbose", "--url", mongodb_url, "--database", database_name, str(file))
    assert result.exit_code == 0
    assert "苏超联赛酷炫网站设计[red] [31m 苏超" in result.output
    assert "\x1b" not in result.output


def test_demo_on_mongomock_needs_no_server() -> None:
    output = output_of("demo", "--driver", "mongomock", "--users", "1")
    assert "on mongomock, without a server" in output
    assert "PASSED" in output


def test_demo_on_motor_stores_the_same(mongodb_url: str, database_name: str) -> None:
    shown = summary_of("--url", mongodb_url, "--database", database_name, "--driver", "motor")
    assert shown["tokens"]["total_tokens"] == 3 * counted_by_hand(SAMPLE)[0].total()


def test_bad_file_is_named_before_anything_is_written(
    mongodb_url: str, database_name: str, raw_client: Client, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text("{}")
    place = ("demo", "--url", mongodb_url, "--database", database_name)
    assert "odd.json is not a recorded thread" in output_of(*place, str(SAMPLE), str(odd), exit_code=2)
    assert "none.json cannot be read" in output_of(*place, str(tmp_path / "none.json"), exit_code=2)
    assert "are recordings of the same thread" in output_of(*place, str(SAMPLE), str(SAMPLE), exit_code=2)
    assert database_name not in raw_client.list_database_names()
