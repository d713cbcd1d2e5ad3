"""What importing an adapter needs, and the error text if that is missing."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from deerflow_mongo.hosts import adapters

from .gateway_process import ROOT, START_TIMEOUT_S
from .host_stores import FEEDBACK, RUN_EVENTS, RUNS, THREADS, USERS

MODULES = [kind.ours.partition(":")[0] for kind in (RUNS, RUN_EVENTS, THREADS, FEEDBACK, USERS)]
WITHOUT_DEERFLOW = "import sys; sys.modules.update(deerflow=None, app=None)\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("module", MODULES)
def test_adapter_without_deerflow_names_what_to_install(module: str) -> None:
    ended = python(f"{WITHOUT_DEERFLOW}import {module}")
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("deerflow_mongo.contract.errors.StorageConfigError")
    assert "Install DeerFlow, one of deerflow-kernel" in last


def test_other_modules_import_without_deerflow() -> None:
    others = "deerflow_mongo, deerflow_mongo.hosts, deerflow_mongo.hosts.adapters, deerflow_mongo.testing"
    ended = python(f"{WITHOUT_DEERFLOW}import {others}")
    assert ended.returncode == 0, ended.stderr


def test_every_adapter_has_tests() -> None:
    package = {f"{adapters.__name__}.{module.name}" for module in pkgutil.iter_modules(adapters.__path__)}
    parts = (
        "actors",
        "counts_by_model",
        "duplicate_keys",
        "event_ids",
        "run_rows",
        "run_writes",
        "truncation",
    )
    others = {f"{adapters.__name__}.{name}" for name in parts}
    assert package - set(MODULES) == others
