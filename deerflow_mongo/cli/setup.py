"""`deerflow-mongo setup`: creates collections and indexes, and where asked for views and sharding."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import typer

from ..demo.text import counted
from ..mongodb.storage import MongoStorage
from .options import JsonOption
from .storage_options import StorageOptions
from .terminal import console_for, explained, json_of, status, stoppable


def setup(
    where: StorageOptions,
    views: Annotated[
        bool, typer.Option("--views", help="Create views for MongoDB Compass and Atlas Charts, too.")
    ] = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Shard the large collections; the URL names a mongos.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create collections, validators and indexes, as the start of a host does, and upgrade an older database.

    It changes only what is missing and may be repeated. What is not of deerflow-mongo is never changed: a
    collection or view that has one of the names is an error, before anything is written.
    """
    with explained():
        storage = where.storage_on_server("schema")
        changed, sharded = asyncio.run(stoppable(_set_up(storage, views=views, shard=shard)))
        name = storage.config.database
        if as_json:
            typer.echo(json_of({"database": name, "views": changed, "sharded": sharded}, indent=2))
        else:
            typer.echo(f"database {name}: collections and indexes are set up")
            if views:
                names = f": {', '.join(changed)}" if changed else ""
                typer.echo(f"{counted(len(changed), 'view')} created or changed{names}")
            if shard:
                names = f": {', '.join(sharded)}" if sharded else ""
                typer.echo(f"{counted(len(sharded), 'collection')} newly sharded{names}")


async def _set_up(storage: MongoStorage, *, views: bool, shard: bool) -> tuple[list[str], list[str]]:
    """The views that were created or changed, and the collections that were sharded."""
    async with contextlib.aclosing(storage):
        with status(console_for(stderr=True), "setting up"):
            if shard:
                await storage.check_sharded_cluster()
            await storage.upgrade()
            changed = await storage.set_up_views() if views else []
            return changed, await storage.shard_collections() if shard else []
