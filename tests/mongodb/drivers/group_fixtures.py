"""What the parts of the contract about groups use: calls that were made one by one, and as a group."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import pymongo
import pytest
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import MongoStorage
from deerflow_mongo.mongodb.drivers.groups.lane import GroupCounts

from .fixtures import DriverFixtures, Opener, close_client
from .forced_groups import forced_groups

Raw: TypeAlias = pymongo.MongoClient[dict[str, Any]]
MakeCalls: TypeAlias = Callable[[MongoStorage], Sequence[Awaitable[Any]]]

KINDS = ("find", "list", "aggregate", "insert", "update", "upsert")


@dataclass(frozen=True)
class Sent:
    """A command that a client sent, and the size of what it writes."""

    name: str
    collection: str
    parts: Sequence[Any]
    """Its documents, updates or stages, or the ids that it reads."""


class SentCommands(CommandListener):
    """The commands that a client sent, and how many were under way at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Motor sends from several threads
        self._under_way = 0
        self.all: list[Sent] = []
        self.most_under_way = 0

    def started(self, event: CommandStartedEvent) -> None:
        command: dict[str, Any] = dict(event.command)
        parts: Any = (
            command.get("documents")
            or command.get("updates")
            or command.get("pipeline")
            or _ids(command.get("filter", {}))
        )
        with self._lock:
            self.all.append(Sent(event.command_name, str(command[event.command_name]), parts))
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._end()

    def failed(self, event: CommandFailedEvent) -> None:
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._under_way -= 1

    def named(self, name: str) -> list[Sent]:
        return [sent for sent in self.all if sent.name == name]

    def clear(self) -> None:
        self.all.clear()
        self.most_under_way = 0


def _ids(query: dict[str, Any]) -> list[Any]:
    clauses: list[dict[str, Any]] = query.get("$or", [query])
    wanted: list[Any] = [clause.get("_id") for clause in clauses]
    each: list[list[Any]] = [ids["$in"] if isinstance(ids, dict) else [ids] for ids in wanted]
    return [name for ids in each for name in ids]


async def answers_of(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """What calls that were made at once answered; an error is an answer."""
    return await asyncio.gather(*calls, return_exceptions=True)


def described(answer: Any) -> Any:
    """An answer that can be compared with that of another storage; of an error its type, text and cause."""
    if isinstance(answer, BaseException):
        return type(answer).__name__, str(answer), type(answer.__cause__).__name__
    return answer


def counts_of(storage: MongoStorage, kind: str) -> GroupCounts:
    """The counts of one kind, of all collections together."""
    found = [kinds[kind] for kinds in storage.statistics().values()]
    return {
        "alone": sum(counts["alone"] for counts in found),
        "groups": sum(counts["groups"] for counts in found),
        "grouped": sum(counts["grouped"] for counts in found),
        "largest": max((counts["largest"] for counts in found), default=0),
        "waited_seconds": sum(counts["waited_seconds"] for counts in found),
    }


@pytest.mark.usefixtures("nearby")
class GroupFixtures(DriverFixtures):
    """The parts below it compare a group with calls that were made one after the other, without groups."""

    @staticmethod
    def forcing(is_forced: bool) -> AbstractContextManager[None]:
        return forced_groups() if is_forced else nullcontext()

    @pytest.fixture
    def forced(self) -> Iterator[None]:
        with forced_groups():
            yield

    @pytest.fixture
    async def both_ways(
        self, storage: MongoStorage, new_storage: Opener, raw_client: Raw, database_name: str
    ) -> Callable[..., Awaitable[list[Any]]]:
        """Compares the answers and what is stored afterwards; the answers of the group."""
        database = raw_client[database_name]

        async def once(prepare: Callable[[Any], None], make: MakeCalls, *, grouped: bool) -> tuple[Any, Any]:
            for name in database.list_collection_names():
                if name != "schema_versions":
                    database[name].delete_many({})
            prepare(database)
            async with new_storage(groups=grouped) as tested:
                if grouped:
                    with forced_groups():
                        answers = await answers_of(make(tested))
                    assert sum(counts_of(tested, kind)["largest"] for kind in KINDS) > 1, "no group was sent"
                else:
                    answers = [(await answers_of([call]))[0] for call in make(tested)]
            stored = {
                name: list(database[name].find(sort=[("_id", 1)]))
                for name in database.list_collection_names()
            }
            return answers, stored

        async def compare(prepare: Callable[[Any], None], make: MakeCalls) -> list[Any]:
            alone, stored_alone = await once(prepare, make, grouped=False)
            together, stored_together = await once(prepare, make, grouped=True)
            assert len(alone) == len(together)
            for position, (one, other) in enumerate(zip(alone, together, strict=True)):
                assert described(other) == described(one), f"call {position}"
            assert stored_together == stored_alone
            return together

        return compare

    @pytest.fixture
    async def listened(self, new_storage: Opener, mongodb_url: str) -> Any:
        """A storage, and the commands that it sends."""
        sent = SentCommands()
        client = self.client_class(mongodb_url, event_listeners=[sent])
        async with new_storage(client=client) as storage:
            sent.clear()
            yield storage, sent
        await close_client(client)
