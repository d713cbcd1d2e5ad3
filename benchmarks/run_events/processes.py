"""Runs children that start together and hands back what they measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_MODULE = "benchmarks.run_events.child"

Order = dict[str, Any]
Answer = dict[str, Any]


def run(orders: Sequence[Order]) -> list[Answer]:
    """One child for each order; none is left when this returns or is interrupted."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_child(order)) for order in orders]
        for child in children:
            if _line(child) != "ready":
                raise RuntimeError("a measuring process ended before it was ready")
        for child in children:
            _tell(child)
        return [json.loads(_line(child)) for child in children]


@contextlib.contextmanager
def _child(order: Order) -> Generator[subprocess.Popen[str]]:
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", _MODULE, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        text=True,
    )
    try:
        yield child
    except BaseException:
        child.kill()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.communicate()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None  # noqa: S101 - it was asked for
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"a measuring process ended with exit status {child.wait()}")
    return line.strip()


def _tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None  # noqa: S101 - it was asked for
    child.stdin.write("go\n")
    child.stdin.flush()
