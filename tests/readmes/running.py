"""Runs the blocks of one Markdown file, in order, in a folder with a database; see the package."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pymongo
from pymongo.errors import PyMongoError

from ..child_processes import kill
from . import checking, demo_data, mongosh, stand_ins
from .blocks import (
    CHECKED,
    DATA,
    EXECUTED_BY,
    MONGOSH,
    OUTPUT,
    PYTHON,
    ROOT,
    SERVER,
    SHELL,
    STOPPED,
    Block,
    ReadmeError,
)

BLOCK_TIMEOUT_S = 120.0
SERVER_START_S = 180.0
PORT = "8001"

_LOCALHOST = re.compile(r"mongodb://localhost(?::27017)?(?P<database>/\w*)?(?:\?[^\s\"'`]*)?")
_PLACEHOLDER = re.compile(rf"\b({'|'.join(demo_data.PLACEHOLDERS)})\b")
_PRELUDE = (
    "set -Eeuo pipefail; trap 'echo \"line $LINENO: $BASH_COMMAND\" >&2' ERR; "
    'trap \'{ export -p; printf "cd %q\\n" "$PWD"; } > "$README_STATE"\' EXIT; . "$README_STATE"'
)

_ADVICE: Final = (
    "The blocks of a file run in order in a temporary folder (tests/readmes/__init__.py has the rules). One "
    "that no test machine can run has the line `<!-- checked: why -->` before it."
)


class Reader:
    """Somebody who follows one Markdown file, block by block."""

    def __init__(self, folder: Path, config: Mapping[str, Any], *, test: str = "") -> None:
        """`test` is the name of the test that executes what is only checked otherwise."""
        self._folder = folder
        self._work = folder / "work"
        self._state = folder / "state"
        self._config = dict(config)
        self._test = test
        self._output = ""
        self._port = _free_port()
        self._servers: list[subprocess.Popen[str]] = []
        separator = "" if self._config["url"].partition("://")[2].count("/") else "/"
        self._url = self._url_of(self._config["database"], separator)
        self._environment = self._prepare()

    def follow(self, blocks: Sequence[Block]) -> list[ReadmeError]:
        """Run or check each block; returns what is wrong, and goes on after a failure."""
        problems: list[ReadmeError] = []
        with contextlib.ExitStack() as at_the_end:
            at_the_end.callback(self._stop_servers)
            for block in blocks:
                try:
                    self._take(block)
                except ReadmeError as error:
                    problems.append(error)
        return problems

    def _take(self, block: Block) -> None:
        executed_by = block.notes.get(EXECUTED_BY, self._test)
        if CHECKED in block.notes or executed_by != self._test:
            checking.check(block)
            self._output = ""
        elif block.language in PYTHON:
            self._run_python(block)
        elif block.language in SHELL:
            self._run_shell(block)
        elif block.language in MONGOSH:
            self._run_mongosh(block)
        elif block.language in DATA:
            checking.check(block)
            if block.file_name:
                self._write(block.file_name, block.text)
        elif block.language in OUTPUT:
            self._compare_output(block)

    # -- the folder ---------------------------------------------------------------------------------------

    def _prepare(self) -> dict[str, str]:
        programs = self._folder / "bin"
        programs.mkdir(parents=True)
        quoted = shlex.quote(sys.executable)
        commands = {name: f"{quoted} -m tests.readmes.stand_ins {name}" for name in stand_ins.PROGRAMS}
        commands |= {"deerflow-mongo": f"{quoted} -m deerflow_mongo", "python": quoted, "python3": quoted}
        commands["uvicorn"] = f"{quoted} -m uvicorn"
        for name, command in commands.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (programs / name).chmod(0o755)
        self._work.mkdir()
        self._state.write_text(f"cd {shlex.quote(str(self._work))}\n")
        self._write("config.yaml", json.dumps({"storage": self._config}, indent=2))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DEER_FLOW_")}
        return {
            **inherited,
            "HOME": str(self._folder),
            "PATH": os.pathsep.join([str(programs), inherited.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]),
            "MONGODB_URL": self._url,
            "README_STATE": str(self._state),
            "COLUMNS": "200",
            "LANGSMITH_TRACING": "false",
        }

    def _current_folder(self) -> Path:
        """Where the last block of commands has ended."""
        return Path(shlex.split(self._state.read_text().splitlines()[-1])[1])

    def _write(self, name: str, text: str) -> Path:
        path = self._current_folder() / name
        path.write_text(self._replaced(text, in_command=False), encoding="utf-8")
        return path

    def _url_of(self, database: str, separator: str = "") -> str:
        address, _, options = str(self._config["url"]).partition("?")
        return f"{address}{separator}{database}{'?' if options else ''}{options}"

    def _replaced(self, text: str, *, in_command: bool) -> str:
        """The text for this machine: its server, a free port, and ids that the database has."""
        text = _LOCALHOST.sub(lambda _: self._url, text)
        text = re.sub(rf"\b{PORT}\b", str(self._port), text)
        if in_command:
            text = _PLACEHOLDER.sub(lambda match: demo_data.PLACEHOLDERS[match[1]], text)
        return text

    # -- what is executed ---------------------------------------------------------------------------------

    def _run_python(self, block: Block) -> None:
        name = block.file_name or f"{block.module_name}.py"
        path = self._write(name, block.text)
        program = [sys.executable, str(path)]
        if block.file_name:
            program = [sys.executable, "-c", f"import runpy; runpy.run_path({str(path)!r})"]
        self._run(block, ["bash", "-c", '. "$README_STATE"; exec "$@"', "bash", *program])

    def _run_shell(self, block: Block) -> None:
        script = self._folder / f"{block.module_name}.sh"
        text = self._replaced(block.text, in_command=True)
        script.write_text(_PRELUDE + "\n" * (block.line - 1) + text)
        program = ["bash", str(script)]
        if SERVER in block.notes:
            self._start_server(block, program)
        elif STOPPED in block.notes:
            self._run_until_stopped(block, program)
        else:
            self._run(block, program)

    def _run(self, block: Block, program: list[str]) -> None:
        child = self._start(program)
        try:
            self._output, _ = child.communicate(timeout=BLOCK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            kill(child)
            raise self._failure(block, f"did not end within {BLOCK_TIMEOUT_S:g} s") from None
        except BaseException:
            kill(child)
            raise
        if child.returncode:
            raise self._failure(block, f"exited {child.returncode}:\n{self._output[-3000:]}")

    def _run_until_stopped(self, block: Block, program: list[str]) -> None:
        seconds = re.search(r"\d+(?:\.\d+)?", block.notes[STOPPED])
        if seconds is None:
            raise ReadmeError(f"{block.place}: write `stopped: after 3 s`")
        child = self._start(program)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(float(seconds[0]))
            ended_by_itself = child.poll() is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)
            self._output, _ = child.communicate(timeout=BLOCK_TIMEOUT_S)
        finally:
            kill(child)
        if ended_by_itself:
            raise self._failure(block, f"ended by itself:\n{self._output[-3000:]}")
        if child.returncode not in {0, 130, -signal.SIGINT} or "Traceback" in self._output:
            raise self._failure(block, f"exited {child.returncode} at Ctrl-C:\n{self._output[-3000:]}")

    def _start_server(self, block: Block, program: list[str]) -> None:
        address = self._replaced(block.notes[SERVER], in_command=False)
        log = self._folder / f"{block.module_name}.log"
        with log.open("w") as written:
            child = self._start(program, written)
        self._servers.append(child)
        until = time.monotonic() + SERVER_START_S
        while child.poll() is None and time.monotonic() < until:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(address, timeout=5).close()  # noqa: S310 - http, of the README
                return
            time.sleep(0.1)
        kill(child)
        raise self._failure(block, f"{address} does not answer:\n{log.read_text()[-3000:]}")

    def _stop_servers(self) -> None:
        for child in reversed(self._servers):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(60)
            kill(child)

    def _start(self, program: list[str], output: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603 - what the README has
            program,
            cwd=self._current_folder(),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _run_mongosh(self, block: Block) -> None:
        try:
            commands = mongosh.commands_of(block.text, self._config["database"])
        except ValueError as error:
            raise self._failure(block, str(error)) from error
        with pymongo.MongoClient[dict[str, Any]](self._config["url"]) as client:
            for found in commands:
                try:
                    client[found.database].command(found.command)
                except PyMongoError as error:
                    raise self._failure(block, f"{mongosh.shown(found)}: {error}") from error

    def _compare_output(self, block: Block) -> None:
        lines = iter([line.rstrip() for line in self._output.splitlines()])
        for wanted in block.text.splitlines():
            if wanted.strip() and not _occurs(wanted.rstrip(), lines):
                raise self._failure(block, f"not in the output: {wanted}\n{self._output[-3000:]}")

    def _failure(self, block: Block, what: str) -> ReadmeError:
        return ReadmeError(f"{block.place}: this {block.language} block {what}")


def report(problems: Sequence[ReadmeError]) -> str:
    """The text for whoever wrote the blocks."""
    return "\n\n".join([*map(str, problems), _ADVICE])


def _occurs(wanted: str, lines: Iterator[str]) -> bool:
    """Whether a line follows that matches; `...` is any text."""
    pattern = "*".join(re.sub(r"([*?\[])", r"[\1]", part) for part in wanted.split("..."))
    return any(fnmatchcase(line, pattern) for line in lines)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
