"""The servers of the laboratory. A test that kills, freezes or deposes a member leaves the repair to them."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from .emptied_database import Opener, emptied_database
from .proxy import FaultProxy
from .servers import ReplicaSet


@pytest.fixture(scope="session")
def one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A lock file that pytest-xdist's processes share: two loads would slow down each other's elections."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (folder / "replica-set.lock").open("w") as lock:
        yield lock.fileno()


@pytest.fixture(scope="module")
def running_replica_set(one_at_a_time: int) -> Iterator[ReplicaSet]:
    fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
    try:
        with ReplicaSet(3) as cluster:
            yield cluster
    finally:
        fcntl.flock(one_at_a_time, fcntl.LOCK_UN)


@pytest.fixture
def replica_set(running_replica_set: ReplicaSet) -> ReplicaSet:
    """Three healthy members."""
    running_replica_set.repair()
    return running_replica_set


@pytest.fixture
async def proxy(mongodb_url: str) -> AsyncIterator[FaultProxy]:
    """In front of the tests' server, which is a replica set of one member."""
    async with FaultProxy(mongodb_url).running() as running:
        yield running


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


@pytest.fixture
def open_storage(mongodb_url: str, runner: asyncio.Runner) -> Iterator[Opener]:
    """Empties one database and builds a storage on it, at each call."""
    with emptied_database(mongodb_url, runner) as opener:
        yield opener
