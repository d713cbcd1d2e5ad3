"""The measuring processes: each opens one contender on one database and does as it is told."""

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

Order = dict[str, Any]
Answer = dict[str, Any]


class ChildError(RuntimeError):
    """A measuring process ended; its own words stand above."""


class Child:
    """One process; it measures only while it is asked to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, order: Order) -> Answer:
        self.tell(order)
        return self.answer()

    def tell(self, order: Order) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        with contextlib.suppress(BrokenPipeError):  # the answer then tells
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def answer(self) -> Answer:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"a measuring process ended with exit status {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def child(order: Order) -> Generator[Child]:
    """A process that has opened what `order` says; none is left afterwards, however this ends."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", _MODULE, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        text=True,
    )
    try:
        started = Child(process)
        started.answer()
        yield started
    except BaseException:
        process.kill()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
