"""The databases of the driver contract, and a server that is no replica set."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import find_mongod

Raw = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture(scope="module")
def reused_database(raw_client: Raw) -> Iterator[str]:
    """One database that stays set up: emptying it is ten times faster than a new one for each test."""
    name = f"driver_{uuid.uuid4().hex[:12]}"
    yield name
    raw_client.drop_database(name)


@pytest.fixture
def database_name(raw_client: Raw, reused_database: str) -> str:
    """The module's database, emptied."""
    database = raw_client[reused_database]
    for collection in database.list_collection_names():
        database[collection].delete_many({})
    return reused_database


@pytest.fixture
def new_database(raw_client: Raw) -> Iterator[str]:
    """A database of the test's own, for writes that may still arrive after their test."""
    name = f"driver_{uuid.uuid4().hex[:12]}"
    yield name
    raw_client.drop_database(name)


@pytest.fixture(scope="module")
def standalone_url() -> Iterator[str]:
    """A server without change streams and retried writes."""
    folder = Path(tempfile.mkdtemp(prefix="standalone-"))
    address = folder / "s.sock"
    options = ["--dbpath", str(folder), "--bind_ip", str(address), "--nounixsocket", "--quiet"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([str(find_mongod()), *options], stdout=log, stderr=log)  # noqa: S603
    url = f"mongodb://{quote(str(address), safe='')}/?directConnection=true"
    try:
        with Raw(url, serverSelectionTimeoutMS=60_000) as client:
            client.admin.command("ping")
        yield f"{url}&retryWrites=false"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)
