"""A gateway under uvicorn as a process of its own: `python -m benchmarks.gateway.process MODULE PARENT`.

The child picks a free port itself, writes its address to standard output, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 180.0
"""Importing DeerFlow takes about 8 s of CPU time: on a machine with other work, several times as much."""

STOP_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1


class GatewayError(RuntimeError):
    """A gateway cannot be started; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that answers requests."""

    url: str
    process: subprocess.Popen[str]

    def cpu_s(self) -> float:
        """CPU time of the process with all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def reset_peak_memory(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1_024


@contextlib.contextmanager
def running(folder: Path, module: str, variables: Mapping[str, str]) -> Generator[Gateway]:
    """The gateway of `module` for as long as the block lasts; `folder` has its configuration and its log."""
    log = folder / "gateway.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEER_FLOW_")}
    paths = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    with log.open("w") as written:
        process = subprocess.Popen(  # noqa: S603 - this module itself
            [sys.executable, "-m", "benchmarks.gateway.process", module, str(os.getpid())],
            cwd=folder,
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **variables},
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        )
    try:
        assert process.stdout is not None  # noqa: S101 - opened with PIPE
        with process.stdout:
            url = process.stdout.readline().strip()
        if not _becomes_ready(url, process):
            raise GatewayError(f"the gateway of {module} does not start:\n{log.read_text()[-4_000:]}")
        yield Gateway(url, process)
    finally:
        _stop(process)


def _becomes_ready(url: str, process: subprocess.Popen[str]) -> bool:
    until = time.monotonic() + START_TIMEOUT_S
    while url and process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 - http
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[str]) -> None:
    """With SIGTERM, as an operator does; killed if it does not stop in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, also when that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent has ended")


def _main(module: str, parent: str) -> None:
    _die_with(int(parent))
    uvicorn = cast("Any", importlib.import_module("uvicorn"))
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdout = sys.stderr  # the parent reads one line and no more
    server = uvicorn.Server(uvicorn.Config(f"{module}:app", log_level="warning"))
    server.run(sockets=[listening])
    sys.exit(0 if server.started else 3)


if __name__ == "__main__":
    _main(*sys.argv[1:])
