"""Rows in bulk on Motor; PyMongo, the mock and memory have the whole conformance suite."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pymongo
import pytest

from deerflow_mongo.testing import BulkRowsContract


@pytest.fixture(scope="module")
def reused_database(mongodb_url: str) -> Iterator[Any]:
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        database = client[f"bulk_{uuid.uuid4().hex[:12]}"]
        yield database
        client.drop_database(database)


class TestMotor(BulkRowsContract):
    @pytest.fixture
    def storage_config(self, mongodb_url: str, reused_database: Any) -> Mapping[str, Any]:
        for collection in reused_database.list_collection_names():
            reused_database[collection].delete_many({})
        return {
            "backend": "mongodb",
            "driver": "motor",
            "url": mongodb_url,
            "database": reused_database.name,
        }
