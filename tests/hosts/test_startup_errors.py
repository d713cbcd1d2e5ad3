"""A refused start: one sentence, exit code 3, no traceback, under one worker and under several."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo import StorageConfigError, StorageUnavailableError
from deerflow_mongo.hosts.startup_errors import StartupErrors

from .gateway_process import ROOT, needs_deerflow

UNFIT = """
from deerflow_mongo.contract.errors import StorageConfigError
from deerflow_mongo.hosts.startup_errors import exit_with

def __getattr__(name):
    if name != "app":
        raise AttributeError(name)
    exit_with(StorageConfigError("this release does not fit"))
"""


def served(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """uvicorn with an application that is refused when it is imported."""
    (folder / "unfit.py").write_text(UNFIT)
    return subprocess.run(  # noqa: S603 - uvicorn
        [sys.executable, "-m", "uvicorn", "unfit:app", "--port", "0", *options],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@needs_deerflow  # which brings uvicorn
def test_refused_import_ends_uvicorn_with_the_sentence_and_code_3(tmp_path: Path) -> None:
    ended = served(tmp_path)
    assert ended.returncode == 3
    assert ended.stderr.splitlines() == ["error: this release does not fit"]


@needs_deerflow
def test_refused_import_stops_the_supervisor_of_several_workers(tmp_path: Path) -> None:
    ended = served(tmp_path, "--workers", "2", "--timeout-worker-healthcheck", "60")
    assert 1 <= ended.stderr.count("error: this release does not fit") <= 2
    assert "Traceback" not in ended.stderr
    assert "Stopping parent process" in ended.stderr


async def message_after(error: BaseException) -> str:
    """What the server is sent where the lifespan ends with this error, as Starlette sends it."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(type(error)):
            try:
                await fail()
            finally:
                await send({"type": "lifespan.startup.failed", "message": "Traceback of it"})

    async def fail() -> None:
        raise error

    async def send(message: Any) -> None:
        sent.append(message["message"])

    await StartupErrors(app)({"type": "lifespan"}, None, send)
    return sent[0]


@pytest.mark.parametrize(
    "error", [StorageConfigError("wrong url"), StorageUnavailableError("wrong url"), SystemExit("wrong url")]
)
async def test_refusal_in_the_lifespan_is_its_sentence(error: BaseException) -> None:
    assert await message_after(error) == "wrong url"


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3)])
async def test_any_other_error_in_the_lifespan_has_its_traceback(error: BaseException) -> None:
    assert await message_after(error) == "Traceback of it"
