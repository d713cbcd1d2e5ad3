"""A mongod to test with, and a sandbox for each test; without a mongod, every test here is skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deerflow_mongo.contract.errors import MissingDependencyError
from deerflow_mongo.mongodb.embedded import EmbeddedServer, find_mongod

from .sandbox import Sandbox, sandbox_in


@pytest.fixture(scope="session", autouse=True)
def mongod() -> Path:
    if sys.platform == "win32":
        pytest.skip("the embedded server needs a Unix system")
    try:
        return find_mongod()
    except MissingDependencyError:
        pytest.skip("no mongod on this machine")


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox_in(tmp_path) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def running(mongod: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server for the tests that leave it running."""
    assert mongod
    with sandbox_in(tmp_path_factory.mktemp("running")) as sandbox:
        yield sandbox.start()
