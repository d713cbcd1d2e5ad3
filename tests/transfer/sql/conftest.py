"""Sources of every release, in SQLite and PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .sources import RELEASES, Source

NewSource = Callable[[str], Source]


@pytest.fixture
def new_sqlite(tmp_path: Path) -> NewSource:
    """Makes an empty database of a release."""

    def make(release: str) -> Source:
        source = Source(f"sqlite:///{tmp_path / 'deerflow.db'}", release)
        source.create()
        return source

    return make


@pytest.fixture
def new_postgresql(postgresql_server: str) -> NewSource:
    """Each source is a schema of its own, which costs less than a database."""
    psycopg: Any = pytest.importorskip("psycopg")
    url = postgresql_server.format(database="postgres")

    def make(release: str) -> Source:
        name = f"source_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        source = Source(f"{url}&options=-csearch_path%3D{name}", release)
        source.create()
        return source

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def new_source(request: pytest.FixtureRequest) -> NewSource:
    return request.getfixturevalue(f"new_{request.param}")


@pytest.fixture(params=list(RELEASES))
def release(request: pytest.FixtureRequest) -> str:
    return request.param
