"""Sharding: what a cluster demands of keys and filters, and the commands sent to one.

No `mongos` is at hand: it is stood in for by one that answers the four commands that are sent to it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from deerflow_mongo import MongoStorage, StorageConfigError
from deerflow_mongo.contract.methods import METHOD_KINDS, OWNERSHIP_KINDS
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.schema import COLLECTIONS, RUN_EVENTS

from . import sharding_table
from .sharding_table import ONE, PRIMARY, SentCommands, commands_of_methods, where

Document = dict[str, Any]
Opener = Callable[..., MongoStorage]

SHARDED = [schema for schema in COLLECTIONS if schema.shard_key]


def test_unique_indexes_of_sharded_collections_begin_with_the_shard_key() -> None:
    for schema in SHARDED:
        for index in schema.indexes:
            if index.unique:
                assert index.keys[: len(schema.shard_key)] == schema.shard_key, index.name


def test_every_shard_key_is_supported_by_an_index_that_is_not_partial() -> None:
    for schema in SHARDED:
        indexes = [*schema.indexes, *([schema.shard_index] if schema.shard_index else [])]
        assert any(
            index.partial is None and index.keys[: len(schema.shard_key)] == schema.shard_key
            for index in indexes
        ), schema.name


@pytest.fixture
async def commands(mongodb_url: str, database_name: str) -> AsyncIterator[dict[str, list[Document]]]:
    log = SentCommands()
    async with (
        AsyncMongoClient[Document](mongodb_url, event_listeners=[log]) as client,
        MongoStorage(mongo_config({"database": database_name}), client=client) as storage,
    ):
        yield await commands_of_methods(storage, log)


async def test_every_method_goes_to_one_shard(commands: dict[str, list[Document]]) -> None:
    """All of the contract; and the README has the table."""
    assert set(METHOD_KINDS) | set(OWNERSHIP_KINDS) <= set(commands)
    for method, sent in commands.items():
        assert where(sent) == (ONE if method.startswith(RUN_EVENTS) else PRIMARY), method
    printed = sharding_table.readme_with(sharding_table.table(commands), *sharding_table.MARKS)
    assert sharding_table.README.read_text(encoding="utf-8") == printed


# -- the commands of setup(shard=True) ---------------------------------------------------------------


class Cluster:
    """Answers as a `mongos` would what is sent to the databases `admin` and `config`."""

    def __init__(self, storage: MongoStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: dict[str, Document] = {}
        self.sent: list[Document] = []
        self._command = storage.driver.command
        monkeypatch.setattr(storage.driver, "command", self._answer)

    async def _answer(self, document: Document, *, database: str | None = None) -> Document:
        if database is None:
            return await self._command(document)
        match next(iter(document)):
            case "hello":
                return {"msg": "isdbgrid"}
            case "find":
                key = self.keys.get(document["filter"]["_id"])
                return {"cursor": {"firstBatch": [] if key is None else [{"key": key}]}}
            case "shardCollection":
                self.keys[document["shardCollection"]] = document["key"]
            case _:
                pass
        self.sent.append(document)
        return {"ok": 1}


async def test_setup_shards_the_large_collections_once(
    new_storage: Opener, database_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_storage(collection_prefix="p_") as storage:
        cluster = Cluster(storage, monkeypatch)
        await storage.setup(shard=True)
        assert cluster.sent == [
            {"enableSharding": database_name},
            {"shardCollection": f"{database_name}.p_run_events", "key": {"thread_id": 1}},
            {"shardCollection": f"{database_name}.p_checkpoint_data", "key": {"_id.thread": 1}},
        ]
        assert "shard_key" in {i["name"] for i in await storage.driver.list_indexes("p_checkpoint_data")}
        cluster.sent.clear()
        assert await storage.shard_collections() == []
        assert cluster.sent == []
        report = await storage.inspect()
        assert (report.complete, report.operator_indexes) == (True, [])


async def test_another_shard_key_is_refused_before_anything_is_sharded(
    new_storage: Opener, database_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_storage() as storage:
        cluster = Cluster(storage, monkeypatch)
        cluster.keys[f"{database_name}.checkpoint_data"] = {"_id": "hashed"}
        with pytest.raises(StorageConfigError, match=r"'checkpoint_data' is sharded by .*hashed.*not by"):
            await storage.setup(shard=True)
        assert cluster.sent == []


async def test_sharding_without_a_mongos_is_refused_before_anything_is_created(
    new_storage: Opener, raw_client: Any, database_name: str
) -> None:
    storage = new_storage()
    with pytest.raises(StorageConfigError, match=r"needs a sharded cluster.* a member of the replica set"):
        await storage.setup(shard=True)
    assert database_name not in raw_client.list_database_names()
    await storage.aclose()
