"""Starts measuring processes, one or more for each contender, and sends them requests.

A contender's first process serves all cases, one after another: importing DeerFlow takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from .payloads import Payloads

_ROOT = Path(__file__).parents[1]
_MODULE = "benchmarks.child"

Request = dict[str, Any]
Response = dict[str, Any]


class ChildError(RuntimeError):
    """A measuring process ended; its error is on stderr."""


class Child:
    """One process; it is idle between requests."""

    def __init__(self, contender: str, payloads: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", _MODULE, contender, payloads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )

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
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise ChildError(f"a measuring process ended with exit status {self._process.wait()}")

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class Children:
    """The processes of all contenders. Those without a database wait for the next case."""

    def __init__(self, payloads: Payloads) -> None:
        self._idle: dict[str, list[Child]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="bench-payloads-"))
        self._payloads = self._folder / "payloads"
        self._payloads.write_bytes(pickle.dumps(payloads))

    def start(self, contender: str, count: int = 1) -> None:
        """Starts what is missing; the processes import their packages meanwhile."""
        idle = self._idle.setdefault(contender, [])
        idle += [Child(contender, self._payloads) for _ in range(count - len(idle))]

    @contextlib.contextmanager
    def opened(self, contender: str, count: int, url: str, database: str) -> Generator[list[Child]]:
        """Processes that have opened the contender on this database; after an error they are stopped."""
        self.start(contender, count)
        idle = self._idle[contender]
        children = [idle.pop(0) for _ in range(count)]
        try:
            _request_all(children, {"do": "open", "url": url, "database": database})
            yield children
            _request_all(children, {"do": "close"})
            idle.append(children.pop(0))
        finally:
            for one in children:
                one.stop()

    def stop(self) -> None:
        for idle in self._idle.values():
            for one in idle:
                one.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _request_all(children: Sequence[Child], request: Request) -> None:
    for one in children:
        one.send(request)
    for one in children:
        one.receive()
