"""Gateways on our storage: one with a folder and an empty database, and one for tests of several modules."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer

from .gateway_process import Gateway, running_gateway, write_config

SHARED_DATABASE = "test_shared_gateway"


@pytest.fixture(scope="session")
def shared_gateway(
    tmp_path_factory: pytest.TempPathFactory,
    server: EmbeddedServer,
    raw_client: pymongo.MongoClient[dict[str, Any]],
) -> Iterator[Gateway]:
    """One gateway for tests that have users of their own; its database is `SHARED_DATABASE`."""
    folder = tmp_path_factory.mktemp("shared")
    write_config(folder, {"url": server.url, "database": SHARED_DATABASE})
    with running_gateway(folder) as started:
        yield started
    raw_client.drop_database(SHARED_DATABASE)


@pytest.fixture
def gateway_folder(tmp_path: Path, mongodb_url: str, database_name: str) -> Path:
    """A folder with the configuration of a gateway on an empty database."""
    write_config(tmp_path, {"url": mongodb_url, "database": database_name})
    return tmp_path


@pytest.fixture
def gateway(gateway_folder: Path) -> Generator[Gateway]:
    """Our gateway under uvicorn, in that folder."""
    with running_gateway(gateway_folder) as started:
        yield started
