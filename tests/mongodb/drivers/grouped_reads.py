"""Reads that share a command: each caller gets what its own query would have given it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, cast

import bson
import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex

from deerflow_mongo import MongoStorage, ThreadMetaCreate
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT

from .group_fixtures import GroupFixtures, SentCommands, answers_of, counts_of

_MEBIBYTE = 1024 * 1024
_TASKS, _ROUNDS = 6, 12

_EVERY_TYPE: dict[str, Any] = {
    "text": "x",
    "null": None,
    "nested": {"list": [1, {"a": [ObjectId("6807f0ae0f1d2c3b4a596877")]}, []], "empty": {}},
    "numbers": [1, Int64(2**40), 1.5, Decimal128("1.10"), True],
    "others": [datetime(2026, 4, 22), Binary(b"x", 5), b"y", Regex("a"), bson.Timestamp(1, 2)],  # noqa: DTZ001
    "reference": bson.DBRef("c", 1),
}

_BROKEN_OWNERS: tuple[Any, ...] = (["alice"], ["alice", "bob"], [], [[]], 5, {"a": "alice"}, None, [None], "")


class GroupedReadContract(GroupFixtures):
    @pytest.mark.usefixtures("forced")
    async def test_row_that_two_users_ask_for_at_once_goes_to_its_owner_only(
        self, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        storage, sent = listened
        await storage.runs.create("r", "t", user_id="alice", metadata={"k": 1})
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id="t", user_id="alice"))
        vote = await storage.feedback.create(run_id="r", thread_id="t", rating=1, user_id="alice")
        reads: tuple[Callable[[Any], Awaitable[Any]], ...] = (
            lambda user: storage.runs.get("r", user_id=user),
            lambda user: storage.threads.get_thread("t", user_id=user),
            lambda user: storage.feedback.get(vote["feedback_id"], user_id=user),
        )
        for read in reads:
            sent.clear()
            owner, other, everybody, nobody = await answers_of(
                [read(user) for user in ("alice", "bob", None, "")]
            )
            assert len(sent.all) == 1
            assert owner is not None
            assert owner == everybody
            assert (other, nobody) == (None, None)

    @pytest.mark.usefixtures("forced")
    async def test_equal_reads_give_separate_rows(self, storage: MongoStorage) -> None:
        await storage.runs.create("r", "t", user_id="alice", metadata={"a": {"b": [1]}})
        rows: list[Any] = await answers_of([storage.runs.get("r", user_id="alice") for _ in range(4)])
        assert rows[1:] == rows[:1] * 3
        rows[0]["metadata"]["a"]["b"].append(2)
        rows[1]["metadata"]["a"]["c"] = 3
        assert [row["metadata"] for row in rows[2:]] == [{"a": {"b": [1]}}] * 2

    @pytest.mark.usefixtures("forced")
    async def test_equal_reads_share_no_list_and_no_subdocument(
        self, storage: MongoStorage, raw_client: Any, database_name: str
    ) -> None:
        raw_client[database_name]["scratch"].insert_one({"_id": "r", **_EVERY_TYPE})
        scratch = storage.driver.collection("scratch")
        documents = await answers_of([scratch.find_one({"_id": "r"}) for _ in range(3)])
        assert [bson.encode(document) for document in documents] == [bson.encode(documents[0])] * 3
        seen: list[int] = [id(part) for document in documents for part in _changeable_parts(document)]
        assert len(set(seen)) == len(seen) > 9

    async def test_equal_reads_are_one_clause(self, listened: tuple[MongoStorage, SentCommands]) -> None:
        """And equal conditions of several ids."""
        storage, sent = listened
        reads = [(f"r-{number % 3}", user) for number in range(30) for user in ("alice", "bob")]
        await asyncio.gather(*(storage.runs.get(run_id, user_id=user) for run_id, user in reads))
        assert [len(command.parts) for command in sent.all] == [1] * LEAST_IN_FLIGHT + [2 * 3]

    async def test_read_that_starts_after_an_acknowledged_write_sees_it(self, storage: MongoStorage) -> None:
        """While other reads and writes of the collections are waiting and under way."""
        is_over = asyncio.Event()

        async def read_others(number: int) -> None:
            while not is_over.is_set():
                await storage.runs.get(f"r-{number % _TASKS}", user_id=None)
                await storage.threads.get_thread_meta(f"r-{number % _TASKS}")

        async def write_and_read(name: str) -> None:
            runs, threads = storage.runs, storage.threads
            for number in range(_ROUNDS):
                await runs.create(name, name, user_id="alice", metadata={"n": -1})
                assert await runs.get(name, user_id="alice") is not None
                await runs.update_status(name, "running", metadata={"n": number})
                row = await runs.get(name, user_id="alice")
                assert row is not None
                assert row["metadata"] == {"n": number}
                await threads.create_thread_meta(ThreadMetaCreate(thread_id=name))
                await threads.update_thread_meta(name, owner_id="alice", status=f"s-{number}")
                found = await threads.get_thread(name, user_id="alice")
                assert found is not None
                assert found.status == f"s-{number}"
                assert await threads.get_thread(name, user_id="bob") is None
                assert await threads.delete_thread(name)
                assert await runs.delete(name, user_id="alice")
                assert await runs.get(name, user_id="alice") is None
                assert await threads.get_thread_meta(name) is None

        others = [asyncio.create_task(read_others(number)) for number in range(3 * _TASKS)]
        await asyncio.gather(*(write_and_read(f"r-{number}") for number in range(_TASKS)))
        is_over.set()
        await asyncio.gather(*others)
        assert counts_of(storage, "find")["largest"] >= _TASKS

    async def test_document_whose_owner_is_of_another_type_goes_to_whom_the_server_gives_it(
        self, both_ways: Callable[..., Awaitable[list[Any]]]
    ) -> None:
        """To the server, an array with a text in it is equal to the text."""
        owners = dict(enumerate(_BROKEN_OWNERS))

        def prepare(database: Any) -> None:
            for number, owner in owners.items():
                database["scratch"].insert_one({"_id": f"{number}", "user_id": owner})
            database["scratch"].insert_one({"_id": "none"})

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            scratch = storage.driver.collection("scratch")
            ids = [*map(str, owners), "none", "unknown"]
            users = [{"user_id": user} for user in ("alice", "bob", "", None)]
            return [scratch.find_one({"_id": name, **user}) for name in ids for user in [*users, {}]]

        answers = await both_ways(prepare, make)
        assert sum(answer is not None for answer in answers) == 17

    async def test_rows_that_cannot_be_read_are_reported_to_those_who_may_see_them(
        self, both_ways: Callable[..., Awaitable[list[Any]]], storage: MongoStorage, raw_client: Any
    ) -> None:
        await storage.runs.create("r", "t", user_id="alice")
        valid = raw_client[storage.config.database]["runs"].find_one({"_id": "r"})
        broken: tuple[Any, ...] = ({"user_id": ["alice"]}, {"status": 5}, {"schema_version": 99})

        def prepare(database: Any) -> None:
            documents = [{**valid, **change, "_id": f"r{number}"} for number, change in enumerate(broken)]
            runs = database["runs"].with_options()
            runs.insert_many([*documents, valid], bypass_document_validation=True)

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            ids = ["r", *(f"r{number}" for number in range(len(broken)))]
            return [storage.runs.get(name, user_id=user) for name in ids for user in ("alice", "bob", None)]

        answers = await both_ways(prepare, make)
        assert [type(answer).__name__ for answer in answers[3:6]] == [
            "CorruptDocumentError",
            "NoneType",
            "CorruptDocumentError",
        ]

    @pytest.mark.usefixtures("forced")
    async def test_reads_that_exceed_one_answer_of_the_server_are_all_answered(
        self, storage: MongoStorage, raw_client: Any, database_name: str
    ) -> None:
        scratch = raw_client[database_name]["scratch"]
        for number in range(4):
            scratch.insert_one({"_id": f"{number}", "k": f"{number}" * (7 * _MEBIBYTE)})
        collection = storage.driver.collection("scratch")
        found: list[Any] = await answers_of([collection.find_one({"_id": f"{n}"}) for n in range(5)])
        assert [None if document is None else document["k"][0] for document in found] == [*"0123", None]

    @pytest.mark.usefixtures("forced")
    async def test_ids_of_both_types_and_a_collection_that_is_missing(self, storage: MongoStorage) -> None:
        identifier = ObjectId()
        scratch, missing = storage.driver.collection("scratch"), storage.driver.collection("missing")
        await asyncio.gather(*(scratch.insert_one({"_id": name, "k": 1}) for name in (identifier, "x")))
        wanted: list[Any] = [identifier, "x", str(identifier)]
        found: list[Any] = await answers_of([scratch.find_one({"_id": name}) for name in wanted])
        assert [document and document["_id"] for document in found] == [identifier, "x", None]
        assert await answers_of([missing.find_one({"_id": name}) for name in wanted]) == [None] * 3


def _changeable_parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        items = list(cast("dict[str, Any]", value).values())
    elif isinstance(value, list):
        items = cast("list[Any]", value)
    else:
        return []
    return [cast("Any", value), *(part for item in items for part in _changeable_parts(item))]
