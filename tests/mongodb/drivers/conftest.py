"""The databases of the driver contract, and a server that is no replica set."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import find_mongod

Raw = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture
def database_name(emptied_database: str) -> str:
    """The module's database, emptied."""
    return emptied_database


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
