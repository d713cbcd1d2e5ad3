"""Runs commands in forks of one process, since importing the command takes longer than most of them.

`python -m tests.cli.forked CASE COMMANDS` runs a list of commands, as JSON, and prints how each ended.
CASE is `closed-pipe`, where nobody reads what a command prints, or `interrupted`, where it gets a SIGINT once
it has connected to a server that never answers: its arguments have that server's URL for the word URL.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from typing import IO, NamedTuple, cast

from deerflow_mongo.cli import main
from deerflow_mongo.cli.app import app as app  # imported once, before the forks

DEADLINE_S = 60


class Ended(NamedTuple):
    exit_code: int
    errors: str


def _started(arguments: list[str], output: int, errors: IO[str]) -> int:
    """The pid of the fork, which never returns from here."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.dup2(output, 1)
        os.dup2(errors.fileno(), 2)
        sys.argv = ["deerflow-mongo", *arguments]
        main()
        raise AssertionError("it returned")
    return pid


def _ended(pid: int, errors: IO[str]) -> Ended:
    _, status = os.waitpid(pid, 0)
    errors.seek(0)
    return Ended(os.waitstatus_to_exitcode(status), errors.read())


def closed_pipe(commands: list[list[str]]) -> list[Ended]:
    ended: list[Ended] = []
    for arguments in commands:
        reading, writing = os.pipe()
        os.close(reading)
        with tempfile.TemporaryFile("w+") as errors:
            pid = _started(arguments, writing, errors)
            os.close(writing)
            ended.append(_ended(pid, errors))
    return ended


def interrupted(commands: list[list[str]]) -> list[Ended]:
    """All at once, because each takes a second to close its client."""
    with contextlib.ExitStack() as stack:
        output = os.open(os.devnull, os.O_WRONLY)
        started: list[tuple[int, socket.socket, IO[str]]] = []
        for arguments in commands:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server.settimeout(DEADLINE_S)
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            url = f"mongodb://127.0.0.1:{server.getsockname()[1]}/?timeoutMS=60000&directConnection=true"
            given = [url if argument == "URL" else argument for argument in arguments]
            started.append((_started(given, output, errors), server, errors))
        for pid, server, _ in started:
            stack.enter_context(server.accept()[0])
            os.kill(pid, signal.SIGINT)
        return [_ended(pid, errors) for pid, _, errors in started]


CASES = {"closed-pipe": closed_pipe, "interrupted": interrupted}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands = cast("list[list[str]]", json.loads(sys.argv[2]))
    print(json.dumps(CASES[sys.argv[1]](commands)))  # noqa: T201
