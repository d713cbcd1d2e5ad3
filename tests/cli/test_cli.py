"""The command line: what it prints, what it exits with, and that it never shows a password or a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
import pytest
from pymongo.errors import PyMongoError
from typer.testing import CliRunner, Result

from deerflow_mongo import __version__
from deerflow_mongo.cli.app import app
from deerflow_mongo.cli.check import (
    Finding,
    login_finding,
    topology_finding,
    version_finding,
    version_of_schema,
)
from deerflow_mongo.cli.demo import SAMPLE
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.embedded import find_mongod
from deerflow_mongo.mongodb.migrations import SchemaReport

from ..demo.test_replay import counted_by_hand

UNREACHABLE = "mongodb://me:hunter2@127.0.0.1:9/?timeoutMS=300"
COMMAND = [sys.executable, "-m", "deerflow_mongo.cli"]

Client = pymongo.MongoClient[dict[str, Any]]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def output_of(*arguments: str, exit_code: int = 0) -> str:
    result = run(*arguments)
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


def summary_of(*arguments: str) -> dict[str, Any]:
    result = run("demo", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


# -- demo ------------------------------------------------------------------------------------------


def test_demo_shows_figures_equal_to_those_counted_by_hand(mongodb_url: str, database_name: str) -> None:
    shown = summary_of("--url", mongodb_url, "--database", database_name, "--users", "2")
    by_caller, by_model = counted_by_hand(SAMPLE)
    assert shown["tokens"]["by_caller"] == {caller: 2 * figure for caller, figure in by_caller.items()}
    assert {model: figures["tokens"] for model, figures in shown["tokens"]["by_model"].items()} == {
        model: 2 * figure for model, figure in by_model.items()
    }
    assert shown["runs_by_status"] == {"success": 4, "interrupted": 2}
    assert {(vote["positive"], vote["negative"]) for vote in shown["votes"]} == {(1, 1), (2, 0), (0, 2)}


def test_demo_shows_what_is_stored(mongodb_url: str, database_name: str, raw_client: Client) -> None:
    shown = summary_of("--url", mongodb_url, "--database", database_name)
    stored = raw_client[database_name]["runs"].find_one({"_id": shown["document"]["_id"]})
    assert stored == shown["document"]
    assert shown["ownership"]["owner_sees"] == 3
    assert shown["ownership"]["other_sees"] == 0
    assert {thread["user_id"] for thread in shown["threads"]} == {"alice", "bob", "carol"}


def test_demo_prints_tables_that_fit_80_columns(mongodb_url: str, database_name: str) -> None:
    result = run("demo", "--url", mongodb_url, "--database", database_name)
    assert result.exit_code == 0, result.output
    tables, _, _ = result.output.partition("as it is stored")
    assert max(map(len, tables.splitlines())) <= 80
    assert "\x1b" not in result.output
    for text in ("Runs before: 0; now: 9.", "kimi-k2.5", "subagent", "4 bytes of UTF-8", "Runs by status"):
        assert text in result.output


def test_demo_again_shows_the_runs_of_before_too(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    assert summary_of(*place)["runs_before"] == 0
    again = summary_of(*place)
    assert (again["runs_before"], again["runs_now"], again["threads_now"]) == (9, 18, 3)


def test_demo_counts_every_recorded_message_as_a_run_event(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    messages = len(recorded()["values"]["messages"])
    shown = summary_of(*place)
    assert shown["replayed"]["events"] == shown["events_now"] == 3 * messages
    assert shown["events_by_category"] == {"message": 51, "trace": 9}
    assert summary_of(*place)["events_before"] == 3 * messages


def test_demo_tells_one_threads_story_page_by_page(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    story = summary_of(*place)["story"]
    pages = [[line["seq"] for line in page["messages"]] for page in story["pages"]]
    assert pages == [[1, 3, 4, 5, 6], [8, 9, 10, 11, 12], [13, 14, 15, 16, 18], [19, 20]]
    assert [page["after_seq"] for page in story["pages"]] == [0, 6, 12, 18]
    assert story["messages"] == 17
    again = output_of("demo", *place)
    assert "... and 9 more" in again
    assert f"events {story['thread_id']} --url {mongodb_url}" in again.replace("'", "")


def test_demo_stores_what_it_can_of_an_odd_recording(mongodb_url: str, database_name: str) -> None:
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
        result = run("demo", *place, str(file))
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "1 write could not be stored, as told above" in result.output
    assert "with 21 run events" in " ".join(result.output.split())
    assert "deep" in result.output
    assert "running" not in result.output


def test_demo_keeps_data_in_its_folder_for_the_next_time(tmp_path: Path) -> None:
    place = ("--data-dir", str(tmp_path / "data"))
    assert summary_of(*place)["runs_now"] == 9
    assert summary_of(*place)["runs_before"] == 9
    assert "version 1, 6 collections" in output_of("check", *place, "--database", "deerflow_demo")


def test_demo_lists_twenty_rows_and_counts_the_rest(mongodb_url: str, database_name: str) -> None:
    output = output_of("demo", "--url", mongodb_url, "--database", database_name, "--users", "25")
    assert "... and 55 more" in output  # of 75 runs
    assert "... and 5 more" in output  # of 25 threads
    assert "user25" in output


def test_demo_leaves_a_thread_to_its_owner(mongodb_url: str, database_name: str) -> None:
    place = ("--url", mongodb_url, "--database", database_name)
    summary_of(*place, str(SAMPLE))
    with copied_sample(thread_id="other") as first:
        shown = summary_of(*place, str(first), str(SAMPLE))
        assert shown["replayed"]["kept_owners"] == [[recorded()["metadata"]["thread_id"], "alice"]]
        assert "stays with its owner, alice" in output_of("demo", *place, str(first), str(SAMPLE))


def test_demo_shows_wide_and_hostile_titles_in_line(mongodb_url: str, database_name: str) -> None:
    title = "苏超联赛酷炫网站设计[red]\x1b[31m\n" * 9
    with copied_sample(title=title) as file:
        result = run("demo", "--url", mongodb_url, "--database", database_name, str(file))
    assert result.exit_code == 0
    assert "苏超联赛酷炫网站设计[red] [31m 苏超" in result.output
    assert "\x1b" not in result.output


def test_demo_on_mongomock_needs_no_server() -> None:
    assert "mongomock, no server" in output_of("demo", "--driver", "mongomock")


def test_demo_on_motor_shows_the_same(mongodb_url: str, database_name: str) -> None:
    shown = summary_of("--url", mongodb_url, "--database", database_name, "--driver", "motor")
    assert shown["tokens"]["total_tokens"] == 3 * counted_by_hand(SAMPLE)[0].total()


def test_a_bad_file_is_named_before_anything_is_written(
    mongodb_url: str, database_name: str, raw_client: Client, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text("{}")
    place = ("demo", "--url", mongodb_url, "--database", database_name)
    assert "odd.json is not a recorded thread" in output_of(*place, str(SAMPLE), str(odd), exit_code=2)
    assert "none.json cannot be read" in output_of(*place, str(tmp_path / "none.json"), exit_code=2)
    assert "record the same thread" in output_of(*place, str(SAMPLE), str(SAMPLE), exit_code=2)
    assert database_name not in raw_client.list_database_names()


def recorded() -> dict[str, Any]:
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


@contextlib.contextmanager
def copied_sample(
    *, thread_id: str = "copy", title: str = "Copy", messages: list[dict[str, Any]] | None = None
) -> Generator[Path]:
    """The sample under another name, with more `messages` at its end."""
    state = recorded()
    state["metadata"]["thread_id"] = thread_id
    state["values"]["title"] = title
    state["values"]["messages"] += messages or []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "copy.json"
        file.write_text(json.dumps(state))
        yield file


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["demo", "--url", UNREACHABLE], 1, "MongoDB cannot be reached"),
        (["demo", "--url", "$NO_SUCH_VARIABLE"], 2, "no variable NO_SUCH_VARIABLE"),
        (["demo", "--url", "http://me:hunter2@host/"], 2, "url is not a MongoDB URI"),
        (["demo", "--url", UNREACHABLE, "--data-dir", "x"], 2, "`data_dir` goes with `url: embedded` only"),
        (["demo", "--driver", "odbc"], 2, "`driver`"),
        (["demo", "--users", "0"], 2, "--users"),
        (["check", "--config", "no-such.yaml"], 2, "no-such.yaml cannot be read"),
        (["check", "--config", "x.yaml", "--url", UNREACHABLE], 2, "--config holds the whole configuration"),
        (["check", "--url", UNREACHABLE], 1, "Start it"),
    ],
)
def test_errors_are_a_sentence_without_a_password(arguments: list[str], exit_code: int, text: str) -> None:
    output = output_of(*arguments, exit_code=exit_code)
    assert text in output
    assert "hunter2" not in output


def test_help_explains_every_option() -> None:
    for command in ("demo", "check", "events"):
        output = output_of(command, "--help")
        assert "--url" in output
        assert "--database" in output


def test_version_is_shown() -> None:
    assert output_of("--version") == f"deerflow-mongo {__version__}"


# -- check -----------------------------------------------------------------------------------------


def test_check_changes_nothing_and_setup_makes_what_is_missing(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output = output_of(*place)
    assert "missing: runs, feedback, threads, run_events, users, schema_versions" in output
    assert "A host would work, with 2 notes." in output
    assert database_name not in raw_client.list_database_names()
    assert "version 1, 6 collections, 22 indexes A host would work." in output_of(*place, "--setup")


def test_check_reads_a_hosts_file(
    mongodb_url: str, database_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEERFLOW_TEST_URL", mongodb_url)
    file = tmp_path / "config.yaml"
    file.write_text(
        f"runs:\n  backend: mongodb\n  url: $DEERFLOW_TEST_URL\n  database: {database_name}\n"
        "  collection_prefix: x_\n"
    )
    output = output_of("check", "--config", str(file), "--section", "runs")
    assert "collection_prefix x_" in output
    assert "missing: x_runs" in output
    assert "no section `storage:`" in output_of("check", "--config", str(file), exit_code=2)


def test_check_tells_how_long_run_events_are_kept(
    mongodb_url: str, database_name: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    options = f"storage:\n  backend: mongodb\n  url: {mongodb_url}\n  database: {database_name}\n"
    place = ("check", "--config", str(file))
    file.write_text(options + "  run_events_ttl_days: 30\n")
    assert "kept for ever; a host's start changes that to 30 days" in output_of(*place)
    assert "run events are kept 30 days A host would work." in output_of(*place, "--setup")
    file.write_text(options)
    assert "kept 30 days; a host's start changes that to for ever" in output_of(*place)


def test_check_names_indexes_that_stand_in_the_way(
    mongodb_url: str, database_name: str, raw_client: Client
) -> None:
    database = raw_client[database_name]
    database["runs"].create_index([("thread_id", 1)], name="thread_newest")
    database["threads"].create_index([("created_at", -1), ("order", -1)], name="mine")
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output = output_of(*place, exit_code=1)
    assert "runs.thread_newest has our name and other keys" in output
    assert 'drop it with db.getCollection("threads").dropIndex("mine")' in output
    assert "A host would fail: 2 problems." in output
    # Each of the two does stop a host.
    database["runs"].drop_index("thread_newest")
    assert "cannot be created" in output_of("demo", *place[1:], exit_code=2)


def test_check_refuses_a_newer_schema(mongodb_url: str, database_name: str, raw_client: Client) -> None:
    place = ("check", "--url", mongodb_url, "--database", database_name)
    output_of(*place, "--setup")
    raw_client[database_name]["schema_versions"].update_one({}, {"$set": {"version": 99}})
    assert "upgrade deerflow-mongo" in output_of(*place, exit_code=1)


def test_check_notes_what_weakens_writes(mongodb_url: str) -> None:
    output = output_of("check", "--url", f"{mongodb_url}&w=1&retryWrites=false")
    assert "lost in a failover" in output
    assert "may count tokens twice" in output


def test_check_hides_secrets_of_a_url() -> None:
    secret = "tls=true&tlsCertificateKeyFilePassword=hunter2&timeoutMS=300"  # noqa: S105
    output = output_of("check", "--url", f"mongodb://me:hunter2@127.0.0.1:9/?{secret}", exit_code=1)
    assert "hunter2" not in output
    assert "***@127.0.0.1:9" in output


def test_check_of_the_mock_says_there_is_no_server() -> None:
    assert "mongomock has no server" in output_of("check", "--driver", "mongomock")


def test_check_makes_no_data_folder(tmp_path: Path) -> None:
    assert "a host's start makes it" in output_of("check", "--data-dir", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_check_says_when_the_data_folder_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "PROBLEM" in output_of("check", "--data-dir", str(tmp_path / "file"), exit_code=1)


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (version_finding({"version": "4.4.29"}), "PROBLEM"),
        (version_finding({"version": "5.0.0"}), "ok"),
        (version_finding({"version": "8.2.1-rc0"}), "ok"),
        (topology_finding({"isWritablePrimary": True, "msg": "isdbgrid"}), "ok"),
        (topology_finding({"isWritablePrimary": True}), "note"),
        (topology_finding({"isWritablePrimary": False}), "PROBLEM"),
        (topology_finding({"isWritablePrimary": True, "setName": "s", "hosts": ["a:1"]}), "ok"),
        (topology_finding({"isWritablePrimary": False, "setName": "s", "hosts": ["a:1"]}), "PROBLEM"),
        (topology_finding({"isWritablePrimary": False, "isreplicaset": True}), "PROBLEM"),
        (version_of_schema(SchemaReport(version=None), "d"), "note"),
        (version_of_schema(SchemaReport(version=1), "d"), "ok"),
        (version_of_schema(SchemaReport(version=2), "d"), "PROBLEM"),
    ],
)
def test_each_answer_of_a_server_has_its_level(finding: Finding, level: str) -> None:
    assert finding.level == level


@pytest.mark.parametrize(
    ("resource", "actions", "level"),
    [
        ({"db": "d", "collection": ""}, "find insert update remove createIndex createCollection", "ok"),
        ({"db": "", "collection": ""}, "find insert update remove createIndex createCollection", "ok"),
        ({"anyResource": True}, "find insert update remove createIndex createCollection", "ok"),
        ({"db": "d", "collection": ""}, "find insert update remove createIndex", "PROBLEM"),
        ({"db": "other", "collection": ""}, "find insert update remove createIndex", "PROBLEM"),
        ({"db": "d", "collection": "runs"}, "find insert update remove createIndex", "PROBLEM"),
        ({"cluster": True}, "find insert update remove createIndex createCollection", "PROBLEM"),
    ],
)
def test_privileges_are_those_a_host_needs(resource: dict[str, Any], actions: str, level: str) -> None:
    login = {
        "authenticatedUsers": [{"user": "u", "db": "admin"}],
        "authenticatedUserPrivileges": [{"resource": resource, "actions": actions.split()}],
    }
    config = mongo_config({"url": "mongodb://host/d"})
    assert login_finding(login, config, SchemaReport(missing_collections=["runs"])).level == level


# -- check: a server with access control -----------------------------------------------------------

USERS = {"root": "root", "writer": "readWrite", "reader": "read"}
PASSWORD = "hunter2"  # noqa: S105


@pytest.fixture(scope="module")
def locked_address() -> Iterator[str]:
    """The address of a standalone server that asks for a login, and has the users above."""
    folder = Path(tempfile.mkdtemp(prefix="locked-"))
    socket = folder / "s.sock"
    options = [
        "--dbpath",
        str(folder),
        "--bind_ip",
        str(socket),
        "--port",
        "27017",
        "--nounixsocket",
        "--auth",
    ]
    log = (folder / "log").open("wb")
    server = subprocess.Popen([str(find_mongod()), *options], stdout=log, stderr=log)  # noqa: S603
    address = quote(str(socket), safe="")
    try:
        with Client(f"mongodb://{address}", serverSelectionTimeoutMS=30_000) as client:
            _make_users(client)
        with Client(f"mongodb://root:{PASSWORD}@{address}") as client:
            for name in ("writer", "reader"):
                client["d"].command("createUser", name, pwd=PASSWORD, roles=[USERS[name]])
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()
        shutil.rmtree(folder)


def _make_users(client: Client) -> None:
    for _ in range(100):
        with contextlib.suppress(PyMongoError):
            client["admin"].command("createUser", "root", pwd=PASSWORD, roles=["root"])
            return
        time.sleep(0.1)
    pytest.fail("the server with access control did not start")


def test_check_of_a_server_with_access_control(locked_address: str) -> None:
    def check(login: str, exit_code: int) -> str:
        output = output_of("check", "--url", f"mongodb://{login}{locked_address}/d", exit_code=exit_code)
        assert PASSWORD not in output
        return output

    writer = check(f"writer:{PASSWORD}@", 0)
    assert "as writer@d, who may do all that a host does" in writer
    assert "standalone: no retryable writes" in writer
    assert "who may not insert, update, remove, createIndex, createCollection" in check(
        f"reader:{PASSWORD}@", 1
    )
    assert "Check the user, the password and authSource" in check("writer:wrong@", 1)
    assert "Log in" in check("", 1)


def test_demo_works_for_a_user_with_read_write_on_a_standalone(locked_address: str) -> None:
    url = f"mongodb://writer:{PASSWORD}@{locked_address}/?authSource=d"
    assert summary_of("--url", url, "--database", "d")["runs_now"] == 9
    assert "refused the login or the operation" in output_of("demo", "--url", url, exit_code=1)


# -- the process -----------------------------------------------------------------------------------


def test_a_pipe_gets_plain_text_and_errors_go_to_stderr(mongodb_url: str, database_name: str) -> None:
    good = process("demo", "--url", mongodb_url, "--database", database_name, TERM="xterm-256color")
    assert (good.returncode, good.stderr) == (0, "")
    assert "\x1b" not in good.stdout
    bad = process("demo", "--url", UNREACHABLE)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: MongoDB cannot be reached")
    assert bad.stderr.count("\n") == 1


def test_an_ascii_terminal_gets_through(mongodb_url: str, database_name: str) -> None:
    with copied_sample(title="苏超联赛") as file:
        place = ("--url", mongodb_url, "--database", database_name)
        done = process("demo", *place, str(file), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_without_its_packages_the_command_names_the_extra() -> None:
    code = "import sys; sys.modules['typer'] = None; from deerflow_mongo.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "the command deerflow-mongo needs typer, which is not installed. "
        "Install it with: pip install 'deerflow-mongo[cli]'\n"
    )


def test_a_closed_pipe_leaves_no_traceback(mongodb_url: str, database_name: str) -> None:
    command = [*COMMAND, "demo", "--url", mongodb_url, "--database", database_name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:  # noqa: S603
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.close()
        assert "Traceback" not in demo.stderr.read()


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """Children heed SIGINT, also where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_ctrl_c")
def test_ctrl_c_stops_the_replay_and_the_embedded_server(tmp_path: Path) -> None:
    place = ["--data-dir", str(tmp_path / "data"), "--users", "1000"]
    controller, terminal = pty.openpty()
    command = [*COMMAND, "demo", *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True) as demo:  # noqa: S603
        os.close(terminal)
        _until_shown(controller, b"replaying")
        pid = int(json.loads((tmp_path / "data" / "server.json").read_text())["pid"])
        demo.send_signal(signal.SIGINT)
        told = _rest_of(controller)
        output, _ = demo.communicate(timeout=60)
    assert (demo.returncode, output) == (130, ""), told
    assert b"Traceback" not in told
    assert b"stopped; the storage is closed" in told
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _until_shown(controller: int, text: bytes) -> None:
    shown = b""
    while text not in shown:
        shown += os.read(controller, 65_536)


def _rest_of(controller: int) -> bytes:
    told = b""
    with contextlib.suppress(OSError):  # the terminal's other end is gone
        while part := os.read(controller, 65_536):
            told += part
    os.close(controller)
    return told
