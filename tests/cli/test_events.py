"""`deerflow-mongo events`: stored and new events, across server crashes, of any backend; read-only."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
import pytest_asyncio
from rich.cells import cell_len

from deerflow_mongo import MongoStorage, RunEventRow
from deerflow_mongo.cli import events as events_module
from deerflow_mongo.cli.events import line_of
from deerflow_mongo.cli.terminal import json_of
from deerflow_mongo.demo.text import first_words

from ..child_processes import CHILD_TIMEOUT_S
from .command import COMMAND, output_of, process, run

Client = pymongo.MongoClient[dict[str, Any]]
DEADLINE_S = CHILD_TIMEOUT_S


def event(number: int, *, run_id: str = "run-a", thread_id: str = "t") -> Any:
    return {
        "thread_id": thread_id,
        "run_id": run_id,
        "event_type": "ai_message",
        "category": "message",
        "content": {"type": "ai", "content": f"word {number}\n苏超\x1b[31m", "price.$": 2**70},
    }


def storage_at(**place: Any) -> MongoStorage:
    return MongoStorage.open(place)


@pytest_asyncio.fixture
async def place(mongodb_url: str, database_name: str) -> list[str]:
    """Options that lead to 250 events of thread t, every second one of run-b."""
    async with storage_at(url=mongodb_url, database=database_name) as storage:
        await storage.run_events.put_batch([event(i, run_id="run-" + "ab"[i % 2]) for i in range(250)])
    return ["--url", mongodb_url, "--database", database_name]


def rows_of(output: str) -> list[RunEventRow]:
    return [json.loads(line) for line in output.splitlines()]


def numbers(*arguments: str) -> list[int]:
    result = run("events", "t", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [row["seq"] for row in rows_of(result.output)]


# -- stored events ----------------------------------------------------------------------------------


def test_every_event_is_one_line_in_rising_seq(place: list[str]) -> None:
    result = run("events", "t", *place)
    lines = result.output.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, 251))
    assert lines[1].split()[2:] == ["run-b", "message", "ai_message", "word", "1", "苏超", "[31m"]
    assert "\x1b" not in result.output


async def test_json_has_each_row_as_the_store_returns_it(place: list[str]) -> None:
    output = process("events", "t", *place, "--json").stdout
    async with storage_at(url=place[1], database=place[3]) as storage:
        assert rows_of(output) == await storage.run_events.list_thread_events("t")


CONTROLS = "\u2028\u2029\x85\x9b31m\x7f\x1b\x00\u202e\ufeff\x1c\v"


async def test_json_of_an_event_is_one_line_that_controls_no_terminal(
    mongodb_url: str, database_name: str
) -> None:
    rows: list[Any] = [{**event(1), "content": f"a{CONTROLS}b", "metadata": {CONTROLS: [CONTROLS]}}, event(2)]
    async with storage_at(url=mongodb_url, database=database_name) as storage:
        await storage.run_events.put_batch(rows)
    output = process("events", "t", "--url", mongodb_url, "--database", database_name, "--json").stdout
    assert len(output.splitlines()) == 2
    assert all(c.isprintable() or c == "\n" for c in output)
    assert "苏超" in output
    first = rows_of(output)[0]
    assert (first["content"], first["metadata"]) == (rows[0]["content"], rows[0]["metadata"])


def test_json_of_the_command_line_is_always_encodable() -> None:
    values = {"half an emoji": "\ud83d", CONTROLS: [CONTROLS, {"苏超": None}]}
    for indent in (None, 2):
        text = json_of(values, indent=indent)
        assert json.loads(text) == values
        assert len(text.encode().decode().splitlines()) == len(text.split("\n"))


def test_database_of_the_uri_is_read(place: list[str]) -> None:
    _, mongodb_url, _, database_name = place
    of_database = mongodb_url.replace("/?", f"/{database_name}?")
    assert numbers("--url", of_database, "--after", "248") == [249, 250]
    assert f"in database {database_name}" in output_of("events", "none", "--url", of_database, exit_code=1)
    assert "in database other" in output_of(
        "events", "t", "--url", of_database, "--database", "other", exit_code=1
    )
    assert "in database deerflow_demo" in output_of("events", "none", "--url", mongodb_url, exit_code=1)


def test_json_is_escaped_on_an_ascii_terminal(place: list[str]) -> None:
    output = process("events", "t", *place, "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="0").stdout
    assert output.isascii()
    assert "苏超" in str(rows_of(output)[0]["content"])


def test_after_limit_and_run_select_events(place: list[str]) -> None:
    assert numbers(*place, "--after", "240") == list(range(241, 251))
    assert numbers(*place, "--limit", "101") == list(range(1, 102))
    assert numbers(*place, "--run", "run-b", "--after", "245") == [246, 248, 250]
    assert numbers(*place, "--after", "9999") == []
    assert numbers(*place, "--follow", "--after", "248", "--limit", "2") == [249, 250]


def test_thread_or_run_without_events_is_an_error(place: list[str]) -> None:
    result = process("events", "nobody", *place)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: thread nobody has no events in database {place[3]}\n"
    assert "run x in thread t has no events" in output_of("events", "t", "--run", "x", *place, exit_code=1)


@pytest.mark.parametrize("name", ["", "x" * 1_025, "\udcff"])
def test_invalid_thread_id_is_a_usage_error(name: str) -> None:
    assert "Invalid value" in output_of("events", name, "--driver", "mongomock", exit_code=2)


def test_reading_changes_nothing(mongodb_url: str, database_name: str, raw_client: Client) -> None:
    output_of("events", "t", "--url", mongodb_url, "--database", database_name, exit_code=1)
    assert database_name not in raw_client.list_database_names()


def test_no_data_folder_is_created(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        output = output_of("events", "t", "--data-dir", str(tmp_path / name), exit_code=2)
        assert f"{name} has no data of an embedded server" in output
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    assert "name the server with --url" in output_of("events", "t", exit_code=2)


def test_events_are_read_from_the_storage_in_a_hosts_configuration_file(
    place: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"runs:\n  backend: mongodb\n  url: {place[1]}\n  database: {place[3]}\n")
    config = ("--config", str(file), "--section", "runs")
    assert numbers(*config, "--after", "249") == [250]
    assert "--config has the whole" in output_of("events", "t", *config, *place, exit_code=2)


def test_closed_pipe_ends_the_command_without_output(place: list[str]) -> None:
    for more in ([], ["--json"], ["--follow"]):
        command = [*COMMAND, "events", "t", *place, *more]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:  # noqa: S603
            assert reader.stdout is not None
            assert reader.stderr is not None
            reader.stdout.close()
            assert reader.stderr.read() == ""


def test_line_is_cut_to_the_width_of_the_terminal() -> None:
    row: RunEventRow = {
        "thread_id": "t",
        "run_id": "苏超" * 9,
        "event_type": "x" * 99,
        "category": "c",
        "content": "苏超 " * 99,
        "metadata": {},
        "created_at": "2026-04-22T03:26:38.123456+00:00",
        "seq": 7,
    }
    start = "    7 2026-04-22T03:26:38Z 苏超苏超 c       xxxxxxxxxxxxx 苏超 苏超"
    assert line_of(row, 80).startswith(start)
    assert cell_len(line_of(row, 80)) <= 80 < cell_len(line_of(row, None))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\n b", "a b"),
        ("", ""),
        ({"content": [{"type": "text", "text": "hello"}]}, "hello"),
        ({"content": "", "tool_calls": [{"name": "ls"}, {"name": "cat"}, 7]}, "calls ls, cat"),
        ({"step": 1}, '{"step": 1}'),
        ([None], "[null]"),
        ("x" * 1_000, "x" * 159 + "…"),
    ],
)
def test_first_words_of_a_content(content: Any, words: str) -> None:
    assert first_words(content) == words


# -- other backends --------------------------------------------------------------------------------


class OtherStorage:
    """A storage of another backend; its `run_events` may be a store that cannot be followed."""

    def __init__(self, storage: MongoStorage, run_events: object) -> None:
        self._storage = storage
        self.run_events = run_events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def test_storage_of_another_backend_that_can_be_followed_works(
    place: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(_: object) -> Any:
        storage = storage_at(url=place[1], database=place[3])
        return OtherStorage(storage, storage.run_events)

    monkeypatch.setattr(events_module, "create_storage", create)
    assert numbers("--after", "248") == [249, 250]
    assert numbers("--after", "248", "--follow", "--limit", "1") == [249]
    output = output_of("events", "nobody", exit_code=1)
    assert "thread nobody has no events in this OtherStorage" in output


def test_storage_that_cannot_be_followed_is_refused_in_one_sentence(
    place: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(_: object) -> Any:
        return OtherStorage(storage_at(url=place[1], database=place[3]), object())

    monkeypatch.setattr(events_module, "create_storage", create)
    output = output_of("events", "t", exit_code=2)
    assert output.startswith("error: deerflow-mongo events needs following run events")
    assert "which OtherStorage does not have" in output


# -- new events ------------------------------------------------------------------------------------


@pytest.fixture
def following() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `events t --follow`, which reacts to Ctrl-C and ends with the test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as started:

        def start(*arguments: str) -> subprocess.Popen[str]:
            command = [*COMMAND, "events", "t", "--follow", *arguments]
            pipe = subprocess.PIPE
            process = started.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))  # noqa: S603
            started.callback(process.kill)
            late = threading.Timer(DEADLINE_S, process.kill)
            started.callback(late.cancel)
            late.start()
            return process

        yield start
    signal.signal(signal.SIGINT, before)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


async def test_following_waits_for_the_first_event_and_ends_with_ctrl_c(
    mongodb_url: str, database_name: str, following: Callable[..., subprocess.Popen[str]]
) -> None:
    reader = following("--url", mongodb_url, "--database", database_name, "--json")
    assert reader.stderr is not None
    assert reader.stderr.readline() == "thread t has no events yet; waiting for the first\n"
    async with storage_at(url=mongodb_url, database=database_name) as storage:
        for seq in (1, 2):
            await storage.run_events.put_batch([event(seq)])
            assert json.loads(line(reader))["seq"] == seq
    reader.send_signal(signal.SIGINT)
    output, errors = reader.communicate(timeout=DEADLINE_S)
    assert (reader.returncode, output) == (130, "")
    assert errors == "error: stopped; the storage is closed\n"


async def test_following_across_server_crashes_prints_every_event_once(
    tmp_path: Path, following: Callable[..., subprocess.Popen[str]]
) -> None:
    folder, written = tmp_path / "data", 1
    async with storage_at(url="embedded", data_dir=folder, database="d") as storage:
        await storage.run_events.put_batch([event(0)])
        reader = following("--data-dir", str(folder), "--database", "d", "--json")
        seen = [json.loads(line(reader))["seq"]]
        for _ in range(2):
            for batch in range(40):
                if batch == 20:
                    kill_mongod(folder)
                await storage.run_events.put_batch([event(written), event(written + 1)])
                written += 2
        seen += [json.loads(line(reader))["seq"] for _ in range(written - 1)]
        reader.send_signal(signal.SIGINT)
        rest, errors = reader.communicate(timeout=DEADLINE_S)
    assert seen == list(range(1, written + 1))
    assert (reader.returncode, rest) == (130, ""), errors


def kill_mongod(folder: Path) -> None:
    """Kill the server as a crash would; its supervisor starts another."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(json.loads((folder / "server.json").read_text())["pid"]), signal.SIGKILL)
            return
        time.sleep(0.1)
    pytest.fail("no server to kill")


def test_unreachable_server_is_reported_once_and_retried(
    tmp_path: Path, following: Callable[..., subprocess.Popen[str]]
) -> None:
    socket = str(tmp_path / "none.sock").replace("/", "%2F")
    reader = following("--url", f"mongodb://{socket}/?timeoutMS=100")
    assert reader.stderr is not None
    assert "cannot be reached" in reader.stderr.readline()
    time.sleep(2)
    assert reader.poll() is None
    reader.send_signal(signal.SIGINT)
    _, errors = reader.communicate(timeout=DEADLINE_S)
    assert (reader.returncode, errors) == (130, "error: stopped; the storage is closed\n")
