"""The servers of the laboratory: a replica set of three members per test process, and one of one member.

A test that kills, freezes or deposes a member leaves repairing it to the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .servers import ReplicaSet


@pytest.fixture(scope="session")
def running_replica_set() -> Iterator[ReplicaSet]:
    with ReplicaSet(3) as cluster:
        yield cluster


@pytest.fixture
def replica_set(running_replica_set: ReplicaSet) -> Iterator[ReplicaSet]:
    """Three healthy members."""
    running_replica_set.repair()
    yield running_replica_set
    for member in running_replica_set.members:
        member.resume()


@pytest.fixture(scope="session")
def single_member() -> Iterator[ReplicaSet]:
    """A replica set of one member, to be reached through a proxy."""
    with ReplicaSet(1) as cluster:
        yield cluster
