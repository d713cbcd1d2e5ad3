"""Distributes the large collections over the shards of a cluster, by the keys that `schema.py` has.

A collection without a shard key there stays on the database's primary shard. Nothing here splits, moves or
reshards: the cluster's balancer does, and a key that differs from ours is the operator's.
"""

from __future__ import annotations

from ..contract.errors import StorageConfigError
from . import queries
from .documents.encoding import Document
from .drivers.driver import Driver
from .schema import COLLECTIONS, CollectionSchema


async def check_sharded_cluster(driver: Driver) -> None:
    """Raise `StorageConfigError` unless a `mongos` answers."""
    hello = await driver.command({"hello": 1}, database="admin")
    if hello.get("msg") == "isdbgrid":
        return
    name = hello.get("setName")
    found = "a single server" if name is None else f"a member of the replica set {name}"
    raise StorageConfigError(
        f"sharding needs a sharded cluster, whose `mongos` the URL names; this is {found}; nothing changed"
    )


async def shard_collections(driver: Driver, prefix: str) -> list[str]:
    """Shard the collections that have a shard key and exist already; the names of those that were not.

    Idempotent. Raises `StorageConfigError`, and changes nothing, without a `mongos`, and where a collection
    is sharded by another key.
    """
    await check_sharded_cluster(driver)
    schemas = [schema for schema in COLLECTIONS if schema.shard_key]
    found = [await _stored_key(driver, prefix + schema.name) for schema in schemas]
    for schema, key in zip(schemas, found, strict=True):
        if key is not None and list(key.items()) != list(schema.shard_key):
            raise StorageConfigError(
                f"collection {prefix + schema.name!r} is sharded by {key}, and not by "
                f"{dict(schema.shard_key)}; nothing was changed. Reshard it with `reshardCollection`, or "
                "use it without sharding by deerflow-mongo"
            )
    missing = [schema for schema, key in zip(schemas, found, strict=True) if key is None]
    if missing:
        # Needed by servers before 6.0, and changes nothing where it was done.
        await driver.command({"enableSharding": driver.database_name}, database="admin")
    for schema in missing:
        await _shard(driver, prefix + schema.name, schema)
    return [prefix + schema.name for schema in missing]


async def _shard(driver: Driver, name: str, schema: CollectionSchema) -> None:
    if schema.shard_index is not None:
        await driver.create_indexes(name, [schema.shard_index.specification()])
    namespace = f"{driver.database_name}.{name}"
    await driver.command({"shardCollection": namespace, "key": dict(schema.shard_key)}, database="admin")


async def _stored_key(driver: Driver, name: str) -> Document | None:
    """The key by which the collection is sharded; None where it is not."""
    query = queries.sharded_collection(f"{driver.database_name}.{name}")
    answer = await driver.command({"find": "collections", "filter": query, "limit": 1}, database="config")
    batch = answer["cursor"]["firstBatch"]
    return batch[0]["key"] if batch else None
