"""How every command ends: on a closed pipe, on Ctrl-C; and shell completion, which only reads the options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest_asyncio

from deerflow_mongo import MongoStorage, ThreadMetaCreate
from deerflow_mongo.cli.app import COMMANDS, GROUPS

from ..child_processes import CHILD_TIMEOUT_S, run_child
from .command import output_of
from .forked import Ended

THREAD = "thread-1"

ARGUMENTS = {
    "demo": ["--users", "1"],
    "check": [],
    "threads": [],
    "runs": [THREAD],
    "events": [THREAD],
    "top": [],
    "stats": ["--json"],
    "purge": ["--user", "nobody", "--dry-run"],
    "export": ["-", "--no-checkpoints"],
    "schema status": [],
    "checkpoints stats": [],
    "checkpoints prune": ["--keep-last", "1"],
}
"""The arguments of commands that can be run on any database; of others the help text is printed."""


def ends(case: str, commands: list[list[str]]) -> dict[str, Ended]:
    """How each command ended, by its words."""
    child = run_child([sys.executable, "-m", "tests.cli.forked", case, json.dumps(commands)])
    assert child.returncode == 0, child.stderr
    found = [Ended(*ended) for ended in json.loads(child.stdout)]
    return {" ".join(command): ended for command, ended in zip(commands, found, strict=True)}


@pytest_asyncio.fixture
async def place(mongodb_url: str, database_name: str) -> list[str]:
    """A database in which every command finds something to print."""
    async with MongoStorage.open({"url": mongodb_url, "database": database_name}) as storage:
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=THREAD))
        await storage.runs.create("run-1", THREAD, user_id="alice")
        events: list[Any] = [
            {
                "thread_id": THREAD,
                "run_id": "run-1",
                "event_type": "e",
                "category": "trace",
                "content": "x" * 99,
            }
            for _ in range(1_200)
        ]
        await storage.run_events.put_batch(events)
    return ["--url", mongodb_url, "--database", database_name]


def test_closed_pipe_ends_every_command_without_a_word(place: list[str]) -> None:
    commands = [["--help"], ["--version"], *([group, "--help"] for group in GROUPS)]
    commands += [[*path.split(), "--help"] for path in COMMANDS if path not in ARGUMENTS]
    commands += [[*path.split(), *arguments, *place] for path, arguments in ARGUMENTS.items()]
    found = ends("closed-pipe", commands)
    assert {command: ended for command, ended in found.items() if ended != Ended(141, "")} == {}


def test_reader_that_leaves_after_one_line_gets_that_line(place: list[str]) -> None:
    command = [sys.executable, "-m", "deerflow_mongo", "events", THREAD, *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as events:  # noqa: S603
        assert events.stdout is not None
        assert events.stdout.readline().split()[0] == "1"
        events.stdout.close()
        assert events.stderr is not None
        assert events.stderr.read() == ""
        assert events.wait(CHILD_TIMEOUT_S) == 141


def test_ctrl_c_ends_every_command_with_one_line() -> None:
    commands = [[*path.split(), *arguments, "--url", "URL"] for path, arguments in ARGUMENTS.items()]
    commands.append(["events", THREAD, "--follow", "--url", "URL"])
    found = ends("interrupted", commands)
    stopped = Ended(130, "error: stopped; the storage is closed\n")
    assert {command: ended for command, ended in found.items() if ended != stopped} == {}


# -- shell completion ------------------------------------------------------------------------------


def test_bash_completes_commands_and_options_without_a_server(tmp_path: Path) -> None:
    program = tmp_path / "deerflow-mongo"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from deerflow_mongo.cli import main; main()" "$@"\n'
    )
    program.chmod(0o755)
    script = """
        eval "$(_DEERFLOW_MONGO_COMPLETE=source_bash deerflow-mongo)"
        function=$(complete -p deerflow-mongo | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
        for line in "deerflow-mongo ev" "deerflow-mongo events th-1 --url mongodb://127.0.0.1:1 --ta"; do
            COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            "$function" deerflow-mongo
            echo "${COMPREPLY[@]}"
        done
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    completed = run_child(["bash", "-c", script], env=environment)
    assert (completed.stdout, completed.stderr) == ("events\n--tail\n", "")


def test_help_names_the_options_that_install_completion() -> None:
    help_text = output_of("--help")
    assert "--install-completion" in help_text
    assert "--show-completion" in help_text


def test_every_command_prints_json() -> None:
    missing = [path for path in COMMANDS if "--json" not in output_of(*path.split(), "--help")]
    assert missing == []
