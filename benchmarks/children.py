"""Starts measuring processes, one or more for each contender, and sends them requests as pickled dicts.

A contender's first process serves all cases, one after another: importing DeerFlow takes seconds.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .dataset import Payloads

_ROOT = Path(__file__).parents[1]

Request = Mapping[str, Any]
Response = dict[str, Any]


class ChildError(RuntimeError):
    """A measuring process ended; its error is on stderr."""


class Child:
    """One process; it is idle between requests."""

    def __init__(self, contender: str, program: str = "benchmarks.child") -> None:
        command = [sys.executable, "-m", program, contender]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=_ROOT)  # noqa: S603 - our own

    def request(self, request: Request) -> Response:
        self.send(request)
        return self.receive()

    def send(self, request: Request) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened with PIPE
        with contextlib.suppress(BrokenPipeError):  # `receive` reports it
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()

    def receive(self) -> Response:
        assert self._process.stdout is not None  # noqa: S101 - opened with PIPE
        try:
            return pickle.load(self._process.stdout)  # noqa: S301 - from our own process
        except (EOFError, pickle.UnpicklingError):
            status = self._process.wait()
            raise ChildError(f"a measuring process ended with exit status {status}") from None

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def request_all(children: Sequence[Child], request: Request) -> list[Response]:
    """Requests all processes at once; each gets its number."""
    for number, child in enumerate(children):
        child.send({**request, "process": number})
    return [child.receive() for child in children]


class Children:
    """The processes of all contenders. Those without a database wait for the next case."""

    def __init__(self, payloads: Payloads, program: str = "benchmarks.child") -> None:
        self._idle: dict[str, list[Child]] = {}
        self._program = program
        self._payloads = payloads

    def start(self, contender: str, count: int = 1) -> None:
        """Starts what is missing; the processes import their packages meanwhile."""
        idle = self._idle.setdefault(contender, [])
        idle += [Child(contender, self._program) for _ in range(count - len(idle))]

    @contextlib.contextmanager
    def opened(self, contender: str, count: int, url: str, database: str) -> Generator[list[Child]]:
        """Processes that have opened the contender on this database; after an error they are stopped."""
        self.start(contender, count)
        idle = self._idle[contender]
        children = [idle.pop(0) for _ in range(count)]
        try:
            request_all(children, {"url": url, "database": database, "payloads": self._payloads})
            yield children
            request_all(children, {"do": "close"})
            idle.append(children.pop(0))
        finally:
            for child in children:
                child.stop()

    def stop(self) -> None:
        for idle in self._idle.values():
            for child in idle:
                child.stop()
