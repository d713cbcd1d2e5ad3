"""Starts measuring processes, each with one contender on one database, and sends them requests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_MODULE = "benchmarks.child"

Request = dict[str, Any]
Response = dict[str, Any]


class ChildError(RuntimeError):
    """A measuring process ended; its error is on stderr."""


class Child:
    """One process; it is idle between requests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def request(self, request: Request) -> Response:
        self.send(request)
        return self.receive()

    def send(self, request: Request) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened with PIPE
        with contextlib.suppress(BrokenPipeError):  # `receive` reports it
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Response:
        assert self._process.stdout is not None  # noqa: S101 - opened with PIPE
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"a measuring process ended with exit status {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def child(request: Request) -> Generator[Child]:
    """A process that has opened the contender in `request`; it is always stopped afterwards."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", _MODULE, json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        text=True,
    )
    try:
        started = Child(process)
        started.receive()
        yield started
    except BaseException:
        process.kill()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
