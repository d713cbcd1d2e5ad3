"""One timeout for every child process of a test; its expiry also kills what the child has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from deerflow_mongo.testing.processes import CHILD_TIMEOUT_S

__all__ = ["CHILD_TIMEOUT_S", "communicate", "run_child"]


def run_child(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """What the command printed and how it ended; it runs in a process group of its own."""
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 - the tests' own commands
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options
    ) as child:
        output, errors = communicate(child)
    return subprocess.CompletedProcess(list(command), child.returncode, output, errors)


def communicate(child: subprocess.Popen[str]) -> tuple[str, str]:
    """What the child still prints until it ends by itself; killed, with its group, where it does not."""
    try:
        return child.communicate(timeout=CHILD_TIMEOUT_S)
    except BaseException:
        kill(child)
        raise


def kill(child: subprocess.Popen[Any]) -> None:
    """Kill the child, with its process group where that is its own."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(child.pid) == child.pid:
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
    child.wait()
