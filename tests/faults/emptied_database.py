"""New storages on a database that is emptied for each of them: ten times faster than a new database each."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from pymongo import AsyncMongoClient, MongoClient

from deerflow_mongo import Storage, create_storage

Opener: TypeAlias = Callable[[], Storage]


@contextmanager
def emptied_database(url: str, runner: asyncio.Runner) -> Generator[Opener]:
    """A function that empties the database and builds a storage on it, with a client that all of them share.

    A storage remembers the numbers of events, so each example has one of its own.
    """
    config: Mapping[str, Any] = {"backend": "mongodb", "database": f"property_{uuid.uuid4().hex[:12]}"}
    with MongoClient[dict[str, Any]](url) as raw:
        client = runner.run(_set_up(url, config))
        database = raw[config["database"]]
        collections = [database[name] for name in database.list_collection_names()]

        def build() -> Storage:
            for collection in collections:
                if collection.name != "schema_versions":
                    collection.delete_many({})
            return create_storage(config, client=client)

        yield build
        runner.run(client.close())
        raw.drop_database(config["database"])


async def _set_up(url: str, config: Mapping[str, Any]) -> AsyncMongoClient[dict[str, Any]]:
    client = AsyncMongoClient[dict[str, Any]](url)
    async with create_storage(config, client=client):
        return client
