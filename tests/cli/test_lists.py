"""`deerflow-mongo threads`, `runs`, `events --tail`, and ids by their beginning."""

from __future__ import annotations

import json
from typing import Any

import pymongo
import pytest
import pytest_asyncio

from deerflow_mongo import MongoStorage, ThreadMetaCreate
from deerflow_mongo.cli.tables import Column, bytes_text, seconds_text, shortened, table_lines

from .command import output_of, process, run

pytestmark = pytest.mark.usefixtures("emptied_database")

Client = pymongo.MongoClient[dict[str, Any]]

OLD, NEW = "2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"


def message(run_id: str, thread_id: str) -> Any:
    return {"thread_id": thread_id, "run_id": run_id, "event_type": "ai_message", "category": "message"}


async def _fill(storage: MongoStorage) -> None:
    await storage.setup()
    for thread, user in (("thread-aa-1", "alice"), ("thread-ab-2", "bob"), ("thread-ab", "alice")):
        data = ThreadMetaCreate(thread_id=thread, user_id=user, display_name=f"title of {thread}")
        await storage.threads.create_thread_meta(data)
    for number, (thread, status) in enumerate(
        [("thread-aa-1", "success"), ("thread-aa-1", "error"), ("thread-ab-2", "success")]
    ):
        await storage.runs.create(
            f"run-{number}-of-{thread}",
            thread,
            status=status,
            user_id="alice" if thread == "thread-aa-1" else "bob",
            created_at=OLD if number == 0 else NEW,
            ended_at=None if number == 0 else "2026-03-01T00:02:05Z",
            error="RateLimitError: busy\x1b[31m" if status == "error" else None,
        )
    await storage.run_events.put_batch([message(f"run-{i % 2}-of-events", "events-only") for i in range(250)])


@pytest_asyncio.fixture
async def place(mongodb_url: str, database_name: str) -> list[str]:
    async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as storage:
        await _fill(storage)
    return ["--url", mongodb_url, "--database", database_name]


def rows(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines()]


def ids(*arguments: str) -> list[str]:
    return [row["run_id" if arguments[0] == "runs" else "thread_id"] for row in rows(*arguments)]


# -- lists -----------------------------------------------------------------------------------------


def test_threads_are_listed_newest_first_and_selected(place: list[str]) -> None:
    assert ids("threads", *place) == ["thread-ab", "thread-ab-2", "thread-aa-1"]
    assert ids("threads", *place, "--user", "alice", "--limit", "1") == ["thread-ab"]
    assert ids("threads", *place, "--since", "1h", "--status", "idle", "--status", "busy") != []
    assert "no such thread" in output_of("threads", *place, "--status", "busy", exit_code=1)
    assert "no such thread" in output_of("threads", *place, "--since", "2999-01-01", exit_code=1)


def test_threads_table_has_short_ids_and_titles(place: list[str]) -> None:
    lines = run("threads", *place).output.splitlines()
    assert lines[0].split() == ["thread", "user", "status", "created", "updated", "title"]
    assert [line.split()[0] for line in lines[1:]] == ["thread-ab", "thread-ab-", "thread-aa"]
    assert lines[1].endswith("title of thread-ab")


def test_runs_are_listed_over_all_threads_and_selected(place: list[str]) -> None:
    assert ids("runs", *place)[-1] == "run-0-of-thread-aa-1"
    assert ids("runs", *place, "--since", "2026-02-01", "--user", "alice") == ["run-1-of-thread-aa-1"]
    assert ids("runs", "thread-aa-1", *place) == ["run-1-of-thread-aa-1", "run-0-of-thread-aa-1"]
    assert ids("runs", *place, "--status", "error") == ["run-1-of-thread-aa-1"]
    assert len(ids("runs", *place, "--limit", "2")) == 2
    assert "no such run" in output_of("runs", "nobody", *place, exit_code=1)


def test_runs_table_has_durations_and_errors_that_control_no_terminal(place: list[str]) -> None:
    result = run("runs", *place, "--status", "error")
    assert "\x1b" not in result.output
    [line] = result.output.splitlines()[1:]
    assert line.split()[:4] == ["run-1-of", "thread-a", "alice", "error"]
    assert "2 m 5 s" in line
    assert line.endswith("RateLimitError: busy [31m")


def test_broken_documents_are_reported_and_left_out(place: list[str], raw_client: Client) -> None:
    raw_client[place[3]].runs.update_one(
        {"_id": "run-1-of-thread-aa-1"}, {"$set": {"tokens": 7}}, bypass_document_validation=True
    )
    done = process("runs", *place, "--json")
    assert [json.loads(line)["run_id"] for line in done.stdout.splitlines()] == [
        "run-2-of-thread-ab-2",
        "run-0-of-thread-aa-1",
    ]
    assert "run-1-of-thread-aa-1" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("value", ["soon", "2026-13-01", "9", "999999w"])
def test_invalid_time_is_a_usage_error(value: str) -> None:
    assert "Invalid value for '--since'" in output_of("runs", "--since", value, exit_code=2)


def test_lists_need_a_named_database_on_a_server() -> None:
    for command in ("threads", "runs"):
        assert "name the database" in output_of(command, exit_code=2)
        assert "on a server" in output_of(command, "--driver", "mongomock", exit_code=2)


# -- ids by their beginning ------------------------------------------------------------------------


def test_unique_beginning_of_an_id_is_accepted(place: list[str]) -> None:
    assert ids("runs", "thread-aa", *place) == ids("runs", "thread-aa-1", *place)
    assert ids("threads", "--user", "alic", *place) == ids("threads", "--user", "alice", *place)
    assert len(rows("events", "even", "--run", "run-1-of-events", *place)) == 125


def test_exact_id_wins_over_longer_ones(place: list[str]) -> None:
    assert "no such run" in output_of("runs", "thread-ab", *place, exit_code=1)
    assert ids("runs", "thread-ab-", *place) == ["run-2-of-thread-ab-2"]


def test_exact_id_of_a_thread_that_has_only_events_wins(place: list[str], raw_client: Client) -> None:
    raw_client[place[3]].threads.insert_one(
        {**(raw_client[place[3]].threads.find_one() or {}), "_id": "events-only-not"}
    )
    assert len(rows("events", "events-only", *place)) == 250
    assert "several threads begin with events-on" in output_of("events", "events-on", *place, exit_code=2)


def test_ambiguous_beginning_lists_the_candidates(place: list[str]) -> None:
    output = output_of("runs", "thread-a", *place, exit_code=2)
    assert output == (
        "error: several threads begin with thread-a: thread-aa-1, thread-ab, thread-ab-2; give more of the id"
    )
    assert "run-0-of-thread-aa-1, run-1-of-thread-aa-1" in output_of(
        "events", "events-only", "--run", "run-", *place, exit_code=2
    )


def test_fewer_than_four_characters_are_a_whole_id(place: list[str]) -> None:
    assert "thread eve has no events" in output_of("events", "eve", *place, exit_code=1)


# -- the end of a thread ---------------------------------------------------------------------------


def test_tail_starts_with_the_last_events(place: list[str]) -> None:
    def numbers(*arguments: str) -> list[int]:
        return [row["seq"] for row in rows("events", "events-only", *place, *arguments)]

    assert numbers("--tail", "3") == [248, 249, 250]
    assert numbers("--tail", "2", "--run", "run-0-of-events") == [247, 249]
    assert numbers("--tail", "9999") == list(range(1, 251))
    assert numbers("--tail", "3", "--limit", "1") == [248]
    assert numbers("--tail", "2", "--follow", "--limit", "2") == [249, 250]
    assert "omit one" in output_of("events", "e", *place, "--tail", "1", "--after", "1", exit_code=2)


# -- cells -----------------------------------------------------------------------------------------


def test_shortened_ids_tell_each_other_apart() -> None:
    given = ["run-1", "run-10", "0a07e462-387c", "0a07e462-3999", "x", None]
    assert shortened(given) == {
        None: "-",
        "run-1": "run-1",
        "run-10": "run-10",
        "0a07e462-387c": "0a07e462-38",
        "0a07e462-3999": "0a07e462-39",
        "x": "x",
    }


def test_table_is_cut_to_a_terminal_and_whole_in_a_pipe() -> None:
    columns = (Column("n", is_number=True), Column("text"))
    rows = [("7", "苏超" * 20), ("1,234", "short")]
    assert list(table_lines(columns, rows, None)) == ["    n  text", f"    7  {'苏超' * 20}", "1,234  short"]
    assert list(table_lines(columns, rows, 20))[1] == "    7  苏超苏超苏超…"


def test_numbers_have_units() -> None:
    assert [seconds_text(s) for s in (0.0421, 4.24, 125, 3_600, 273_600, 1e9)] == [
        *("42 ms", "4.2 s", "2 m 5 s", "1 h", "3 d 4 h", "11,574 d 1 h"),
    ]
    assert [bytes_text(size) for size in (0, 1_023, 1_536, 3 * 2**30, 2**55)] == [
        *("0 B", "1,023 B", "1.5 KiB", "3.0 GiB", "32,768.0 TiB"),
    ]
