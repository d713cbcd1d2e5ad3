"""One call is one command, and 64 at once of a kind that shares commands are at most four."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient

from deerflow_mongo import MongoStorage, RunOwnership
from deerflow_mongo.contract.methods import METHOD_KINDS
from deerflow_mongo.mongodb.stores.users import MongoUserStore

from .commands_at_once import CALLS, COMMANDS, METHODS, CommandCounts, count_commands, table_of
from .drivers.fixtures import close_client

READ_FIRST = {"run_events.delete_by_run", "run_events.delete_by_thread"}
"""The last number of the thread's events, unless it is known for a few seconds."""


@pytest.fixture(params=[AsyncMongoClient, AsyncIOMotorClient], ids=["pymongo", "motor"])
async def counted(
    request: pytest.FixtureRequest, mongodb_url: str, database_name: str
) -> AsyncIterator[tuple[MongoStorage, CommandCounts]]:
    sent = CommandCounts()
    client: Any = request.param(mongodb_url, event_listeners=[sent])
    async with MongoStorage.open({"database": database_name}, client=client) as storage:
        yield storage, sent
    await close_client(client)


@pytest.mark.usefixtures("nearby")
async def test_calls_at_once_send_as_many_commands_as_the_table_says(
    counted: tuple[MongoStorage, CommandCounts],
) -> None:
    counts = await count_commands(*counted)
    print(f"\n{table_of(counts)}")  # noqa: T201
    alone = {name: sent.total() for name, (sent, _) in counts.items()}
    assert all(alone.pop(name) in (1, 2) for name in READ_FIRST)
    assert alone == dict.fromkeys(alone, 1)
    for kind, methods in METHODS.items():
        together = {name: counts[name][1].total() for name in methods}
        if kind in COMMANDS:
            assert together == dict.fromkeys(methods, COMMANDS[kind])
        else:
            assert min(together.values()) >= CALLS, together


def test_every_method_is_in_the_table() -> None:
    methods = {name for kind in METHODS.values() for name in kind}
    assert len(methods) == sum(map(len, METHODS.values()))
    owners = {f"runs.{name}" for name in dir(RunOwnership) if not name.startswith("_")}
    users = {f"users.{name}" for name in dir(MongoUserStore) if not name.startswith("_")}
    assert methods == {*METHOD_KINDS, *owners, *users}
