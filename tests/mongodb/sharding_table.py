"""What each operation becomes in a sharded cluster, from the commands that it sends; printed in the README.

`python -m tests.mongodb.sharding_table` writes the table into `deerflow_mongo/mongodb/README.md`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import MongoStorage
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.embedded import start_embedded
from deerflow_mongo.mongodb.schema import COLLECTIONS
from tests.mongodb.documents.pinned import README, readme_with

from .test_commands import OPERATIONS, OWNERSHIP_OPERATIONS, USER_OPERATIONS, fill

Document = dict[str, Any]

MARKS: Final = ("<!-- sharded operations: begin -->", "<!-- sharded operations: end -->")
PRIMARY, ONE, ALL = "the primary shard", "one shard", "all shards"


class SentCommands(CommandListener):
    """The commands of the stores, as documents."""

    def __init__(self) -> None:
        self.sent: list[Document] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name in ("find", "aggregate", "insert", "update", "delete", "findAndModify"):
            self.sent.append(dict(event.command))

    def succeeded(self, event: CommandSucceededEvent) -> None: ...

    def failed(self, event: CommandFailedEvent) -> None: ...


def target(command: Document) -> str:
    """Where a `mongos` sends the command: to the shards that may have what its filters name."""
    collection = str(next(iter(command.values())))
    schema = next(schema for schema in COLLECTIONS if schema.name == collection)
    if not schema.shard_key:
        return PRIMARY
    values = [[_value(query, key) for key, _ in schema.shard_key] for query in _filters(command)]
    if any(None in found for found in values):
        return ALL
    return ONE if all(found == values[0] for found in values) else ALL


def _filters(command: Document) -> list[Document]:
    """What the command selects by; of an insert, the documents."""
    match next(iter(command)):
        case "find":
            return [command["filter"]]
        case "aggregate":
            return [command["pipeline"][0].get("$match", {})]
        case "insert":
            return list(command["documents"])
        case "findAndModify":
            return [command["query"]]
        case name:
            return [item["q"] for item in command[f"{name}s"]]


def _value(query: Document, key: str) -> object:
    """The value that the query demands of the key, all conditions of an `$and` together; None for none."""
    found: list[object] = [query.get(key), *(_value(condition, key) for condition in query.get("$and", ()))]
    return next((value for value in found if isinstance(value, str)), None)


async def commands_of_methods(storage: MongoStorage, log: SentCommands) -> dict[str, list[Document]]:
    """The commands of each method of the four stores and of accounts, over all of their examples."""
    await fill(storage)
    found: dict[str, list[Document]] = {}
    await storage.users.create("user-0", email="0@example.org")
    examples: list[tuple[str, Any, Any]] = [
        *((name, operation, storage) for name, (_, operation) in OPERATIONS.items()),
        *((f"runs.{name}", operation, storage.runs) for name, (_, operation) in OWNERSHIP_OPERATIONS.items()),
        *((f"users.{name}", operation, storage.users) for name, (_, operation) in USER_OPERATIONS.items()),
    ]
    for name, operation, argument in examples:
        log.sent.clear()
        await operation(argument)
        found.setdefault(name.partition(",")[0], []).extend(log.sent)
    return found


def table(commands: dict[str, list[Document]]) -> str:
    """A row for each method, those of one store and target together."""
    rows: dict[tuple[str, str], list[str]] = {}
    for method, sent in commands.items():
        store, _, name = method.partition(".")
        rows.setdefault((store, where(sent)), []).append(f"`{name}`")
    head = ["| store | methods | go to |", "| --- | --- | --- |"]
    return "\n".join([*head, *(f"| `{s}` | {', '.join(names)} | {to} |" for (s, to), names in rows.items())])


def where(sent: Iterable[Document]) -> str:
    """The widest of the commands' targets."""
    targets = {target(command) for command in sent}
    return next(place for place in (ALL, ONE, PRIMARY) if place in targets)


async def _printed(url: str) -> str:
    log = SentCommands()
    name = f"table_{uuid.uuid4().hex[:8]}"
    async with (
        AsyncMongoClient[Document](url, event_listeners=[log]) as client,
        MongoStorage(mongo_config({"database": name}), client=client) as storage,
    ):
        return table(await commands_of_methods(storage, log))


def _write() -> None:
    server = start_embedded()
    try:
        README.write_text(readme_with(asyncio.run(_printed(server.url)), *MARKS), encoding="utf-8")
    finally:
        server.release()


if __name__ == "__main__":
    _write()
