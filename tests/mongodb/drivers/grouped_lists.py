"""Lists that share an aggregation, and upserts that share a read and a write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, ThreadAccessError
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT
from deerflow_mongo.mongodb.drivers.groups.unions import MAX_LISTED

from .group_fixtures import GroupFixtures, SentCommands, answers_of, counts_of

BothWays = Callable[..., Awaitable[list[Any]]]

_MEBIBYTE = 1024 * 1024
_OWNERS: tuple[Any, ...] = ("alice", "bob", None, ["alice"], 5, "alice")


class GroupedListContract(GroupFixtures):
    async def test_each_list_has_its_own_documents_in_its_own_order(self, both_ways: BothWays) -> None:
        def prepare(database: Any) -> None:
            documents: list[Any] = [
                {
                    "_id": number,
                    "t": f"t-{number % 3}",
                    "user_id": _OWNERS[number % 6],
                    "n": (number * 7) % 10,
                }
                for number in range(30)
            ]
            documents += [{"_id": 100, "t": "t-0", "nested": {"list": 1, "a": [2]}}, {"_id": 101, "n": 5}]
            database["scratch"].insert_many(documents)

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            find = storage.driver.collection("scratch").find
            orders: list[Any] = [[("n", 1), ("_id", -1)], [("_id", -1)]]
            wanted: list[Any] = [{}, {"t": "t-0"}, {"t": "t-1", "user_id": "alice"}, {"user_id": None}]
            wanted += [{"t": {"$in": ["t-1", "t-2"]}, "n": {"$gt": 4}}, {"t": "none"}, {"t": "t-0"}]
            lists: list[Awaitable[Any]] = [
                find(query, sort=sort, limit=limit, skip=skip)
                for query in wanted
                for sort in orders
                for limit, skip in ((3, 0), (1, 2), (100, 1))
            ]
            lists.append(find({"t": "t-0"}, sort=orders[0], limit=5, projection=["n", "nested.a"]))
            lists.append(find({"t": {"$no": 1}}, sort=orders[0], limit=5))
            return lists

        answers = await both_ways(prepare, make)
        assert sum(len(answer) for answer in answers[:-1]) > 100

    async def test_lists_of_a_group_have_a_largest_number_of_documents(
        self, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        storage, sent = listened
        limit = MAX_LISTED // 3
        lists = [storage.runs.list_by_thread(f"{n}", limit=limit, user_id=None) for n in range(8)]
        lists.append(storage.runs.list_by_thread("many", limit=MAX_LISTED + 1, user_id=None))
        await asyncio.gather(*lists)
        groups = [
            sum("$unionWith" in stage for stage in command.parts) + 1 for command in sent.named("aggregate")
        ]
        assert max(groups) == 3
        assert sum(groups) + len(sent.named("find")) == len(lists)
        assert len(sent.named("find")) <= LEAST_IN_FLIGHT + 2  # one is too long, one may be the last

    async def test_each_aggregation_has_its_own_documents(self, both_ways: BothWays) -> None:
        def prepare(database: Any) -> None:
            documents = [{"_id": number, "t": number % 3, "n": number} for number in range(30)]
            database["scratch"].insert_many([*documents, {"_id": 100, "t": 5, "n": [1, {"list": 2}]}])

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            collect: Any = {"_id": "$t", "sum": {"$sum": "$n"}, "all": {"$push": "$n"}}
            by_t: list[list[Any]] = [
                [{"$match": query}, {"$group": collect}, {"$sort": {"_id": -1}}]
                for query in ({}, {"t": 1}, {"t": 7}, {"t": 5}, {"t": 1}, {"n": {"$no": 1}}, {"n": {1, 2}})
            ]
            few: Any = [{"$match": {"n": {"$lt": 3}}}, {"$count": "n"}]
            facets = {"few": few, "none": [{"$match": {"t": 9}}]}
            pipelines = [*by_t, [{"$match": {"t": 0}}, {"$facet": facets}], by_t[3]]
            aggregate = storage.driver.collection("scratch").aggregate_few
            return [aggregate(pipeline, rows=5) for pipeline in pipelines]

        answers = await both_ways(prepare, make)
        assert [len(answer) for answer in answers[:5]] == [4, 1, 0, 1, 1]
        errors = [position for position, answer in enumerate(answers) if isinstance(answer, Exception)]
        assert errors == [5, 6]

    @pytest.mark.usefixtures("forced")
    async def test_equal_lists_are_read_once_and_each_caller_has_rows_of_its_own(
        self, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        storage, sent = listened
        await storage.runs.create("r", "t", user_id="alice", metadata={"a": [1]})
        sent.clear()
        lists = [storage.runs.list_by_thread("t", limit=9, user_id="alice") for _ in range(5)]
        others = [storage.runs.list_by_thread("t", limit=9, user_id=user) for user in ("bob", None)]
        answers = await asyncio.gather(*lists, *others)
        [command] = sent.all
        assert sum("$unionWith" in stage for stage in command.parts) + 1 == 3
        assert [len(answer) for answer in answers] == [1] * 5 + [0, 1]
        metadata: Any = answers[0][0]["metadata"]
        metadata["a"].append(2)
        answers[0].clear()
        assert all(answer[0]["metadata"] == {"a": [1]} for answer in (*answers[1:5], answers[6]))

    @pytest.mark.usefixtures("forced")
    async def test_lists_that_exceed_one_answer_of_the_server_are_complete(
        self, storage: MongoStorage, raw_client: Any, database_name: str
    ) -> None:
        for number in range(4):
            large = {"_id": number, "t": number % 2, "k": "x" * (7 * _MEBIBYTE)}
            raw_client[database_name]["scratch"].insert_one(large)
        find = storage.driver.collection("scratch").find
        lists = await answers_of([find({"t": t}, sort=[("_id", 1)], limit=9) for t in (0, 1, 2, 0)])
        assert [[document["_id"] for document in found] for found in lists] == [[0, 2], [1, 3], [], [0, 2]]

    async def test_list_that_starts_after_an_acknowledged_write_shows_it(self, storage: MongoStorage) -> None:
        async def write_and_list(name: str) -> None:
            for number in range(10):
                await storage.runs.create(f"{name}-{number}", name, user_id="alice")
                rows = await storage.runs.list_by_thread(name, limit=20, user_id="alice")
                assert [row["run_id"] for row in rows] == [f"{name}-{n}" for n in range(number, -1, -1)]

        await asyncio.gather(*(write_and_list(f"t-{number}") for number in range(8)))
        assert counts_of(storage, "list")["groups"] > 0


class GroupedUpsertContract(GroupFixtures):
    @pytest.mark.parametrize("owner", ["alice", ["alice"], 5], ids=repr)
    async def test_upserts_answer_and_store_what_each_alone_does(
        self, owner: Any, both_ways: BothWays
    ) -> None:
        """New and existing documents, equal keys, another's document, one with fields of somebody else's."""
        known = {"schema_version": {"$not": {"$gt": 2}}}

        def prepare(database: Any) -> None:
            existing = {"schema_version": 2, "user_id": "alice", "n": 1}
            extras: list[dict[str, Any]] = [{}, {"more": 1}, {"user_id": owner}, {"schema_version": 99}, {}]
            extras.append({"more": 1})
            database["scratch"].insert_many(
                [{**existing, **extra, "_id": f"{number}"} for number, extra in enumerate(extras)]
            )

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            upsert = storage.driver.collection("scratch").find_one_and_upsert
            ids = ["0", "1", "2", "3", "new", "0"]
            # With a broken owner all go alone, and two that insert one id at once may collide.
            ids.append("new" if owner == "alice" else "1")
            new = {"schema_version": 2}
            calls: list[Awaitable[Any]] = []
            for name in ids:
                query = {"_id": name, "user_id": "alice", **known}
                calls.append(upsert(query, {"$setOnInsert": {**new, "n": 7}}))
            for name in ("4", "5", "newer"):
                query = {"_id": name, "user_id": "alice", **known}
                calls.append(upsert(query, {"$set": {"n": 5}, "$setOnInsert": new}))
            calls.append(upsert({"_id": "0", "user_id": "bob", **known}, {"$setOnInsert": new}))
            calls.append(upsert({"_id": "x", "user_id": "bob"}, {"$set": {"n": {1, 2}}}))
            return calls

        answers = await both_ways(prepare, make)
        errors = [number for number, answer in enumerate(answers) if isinstance(answer, BaseException)]
        assert errors == [*([2] if owner == 5 else []), 3, 10, 11]

    async def test_thread_that_many_ensure_at_once_belongs_to_one_user(self, storage: MongoStorage) -> None:
        users = [f"user-{number % 3}" for number in range(30)]
        for name in ("t", "s"):
            calls = [storage.threads.ensure_thread(thread_id=name, user_id=user) for user in users]
            answers = await answers_of(calls)
            threads = [answer for answer in answers if not isinstance(answer, BaseException)]
            assert len({thread.user_id for thread in threads}) == 1
            assert len(threads) == 10
            assert {type(answer) for answer in answers if answer not in threads} == {ThreadAccessError}

    async def test_votes_at_once_leave_one_vote_of_each_user_and_run(self, storage: MongoStorage) -> None:
        votes = [(f"run-{n % 5}", f"user-{n % 3}", 1 if n % 2 else -1) for n in range(90)]
        await asyncio.gather(
            *(
                storage.feedback.upsert(run_id=run, thread_id="t", rating=rating, user_id=user)
                for run, user, rating in votes
            )
        )
        rows = await storage.feedback.list_by_thread("t", limit=1_000)
        stored = [(row["run_id"], row["user_id"]) for row in rows]
        assert sorted(stored) == sorted({(run, user or "") for run, user, _ in votes})
        assert counts_of(storage, "upsert")["groups"] > 0
