"""DeerFlow's gateway under uvicorn as a process of its own, on our storage or on its own SQL.

Both get the same `config.yaml`, whose section `database:` names SQLite; ours gets one more section,
`storage:`. The child picks a free port itself and ends with the test.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ON_MONGODB = "deerflow_mongo.hosts.gateway"
ON_SQL = "app.gateway.app"
JWT_SECRET = "the same for all workers of a test, " * 2
START_TIMEOUT_S = 180.0
"""Importing DeerFlow takes about 8 s of CPU time: on a machine with other work, several times as much."""

STOP_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1

MODEL, PROVIDERS_MODEL = "scripted", "scripted-2026-01-01"
"""The model's name in DeerFlow, and the one in its responses."""

CONFIG: dict[str, Any] = {
    "models": [
        {"name": MODEL, "use": "tests.hosts.scripted_model:ScriptedChatModel", "model": PROVIDERS_MODEL}
    ],
    "sandbox": {"use": "deerflow.sandbox.local:LocalSandboxProvider"},
    "memory": {"enabled": False},
    "title": {"enabled": True},
    "database": {"backend": "sqlite", "sqlite_dir": ".deer-flow/data"},
    "run_events": {"backend": "db"},
}


def missing_deerflow() -> str | None:
    """Why DeerFlow's gateway cannot run here, or None where it can."""
    if sys.version_info < (3, 12):
        return f"DeerFlow needs Python 3.12 or newer, and this is {sys.version.split()[0]}"
    try:
        found = importlib.util.find_spec("app.gateway")
    except ImportError:
        found = None
    return None if found else "DeerFlow is not installed: install deerflow-kernel and deerflow-mongo[gateway]"


SLOW = pytest.mark.timeout(900)
"""For tests with several gateways: each takes its time to start on a machine with other work."""

needs_deerflow = pytest.mark.skipif(missing_deerflow() is not None, reason=str(missing_deerflow()))


def write_config(
    folder: Path,
    storage: Mapping[str, Any] | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """DeerFlow's configuration, with more sections if they are given; JSON is YAML too."""
    config = {**CONFIG, **(sections or {})}
    file = folder / "config.yaml"
    file.write_text(json.dumps(config if storage is None else {**config, "storage": dict(storage)}))
    return file


def environment(folder: Path) -> dict[str, str]:
    """The environment variables of a gateway in `folder`."""
    return {
        "DEER_FLOW_PROJECT_ROOT": str(folder),
        "DEER_FLOW_HOME": str(folder / "home"),
        "DEER_FLOW_CONFIG_PATH": str(folder / "config.yaml"),
        "AUTH_JWT_SECRET": JWT_SECRET,
        "LANGSMITH_TRACING": "false",
    }


@dataclass(frozen=True)
class Gateway:
    """A gateway that answers requests."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def kill(self) -> None:
        """`kill -9`: nothing is cleaned up."""
        self.process.kill()
        self.process.wait()


def start_gateway(folder: Path, module: str = ON_MONGODB, *, name: str = "gateway") -> Gateway:
    """Start the gateway of `module` in the folder of its configuration; returns when it answers."""
    log = folder / f"{name}.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("DEER_FLOW_")}
    paths = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    with log.open("a") as written:
        process = subprocess.Popen(  # noqa: S603 - this module itself
            [sys.executable, "-m", "tests.hosts.gateway_process", module, str(os.getpid())],
            cwd=folder,
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment(folder)},
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        )
    assert process.stdout is not None
    with process.stdout:
        url = process.stdout.readline().strip()
    _wait_until_ready(url, process, log)
    return Gateway(url, process, log)


def stop_gateway(gateway: Gateway) -> None:
    """Stop it with SIGTERM, as an operator does; kill it if it does not stop in time."""
    if gateway.process.poll() is None:
        gateway.process.send_signal(signal.SIGTERM)
        try:
            gateway.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            gateway.kill()


@contextmanager
def running_gateway(folder: Path, module: str = ON_MONGODB, *, name: str = "gateway") -> Generator[Gateway]:
    """A gateway for as long as the block lasts."""
    gateway = start_gateway(folder, module, name=name)
    try:
        yield gateway
    finally:
        stop_gateway(gateway)


def _wait_until_ready(url: str, process: subprocess.Popen[str], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    process.kill()
    process.wait()
    raise AssertionError(f"the gateway did not start:\n{log.read_text()[-4000:]}")


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, also when the test is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the test has ended")


def main(module: str, parent: str) -> None:
    """The child: writes its address to standard output, then serves."""
    _die_with(int(parent))
    uvicorn = cast("Any", importlib.import_module("uvicorn"))
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdout = sys.stderr  # the test reads one line and no more
    server = uvicorn.Server(uvicorn.Config(f"{module}:app", log_level="info"))
    server.run(sockets=[listening])
    sys.exit(0 if server.started else 3)


if __name__ == "__main__":
    main(*sys.argv[1:])
