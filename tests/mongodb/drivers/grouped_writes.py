"""Inserts and updates that share a command: what is wrong with one reaches its own caller only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from pymongo.errors import DuplicateKeyError as DriverDuplicateKeyError

from deerflow_mongo import (
    ActiveRunError,
    CorruptDocumentError,
    InvalidPayloadError,
    MongoStorage,
    PayloadTooLargeError,
    RunExistsError,
    StorageConfigError,
    StorageError,
    ThreadMetaCreate,
)

from .fixtures import DuplicateKeyError, Opener
from .group_fixtures import GroupFixtures, Raw, answers_of, counts_of

BothWays = Callable[..., Awaitable[list[Any]]]

_MEBIBYTE = 1024 * 1024

UNSTORABLE: Mapping[str, Any] = {
    "an integer beyond 64 bits": 2**70,
    "a lone surrogate": "a\ud800b",
    "no type of BSON": {1, 2},
    "a key that is no text": {1: 2},
    "a key with NUL": {"a\0b": 1},
}

_BROKEN_OWNERS: tuple[Any, ...] = (["alice"], ["bob", "alice"], [], 5, {"a": "alice"}, None)


def _kinds(answers: Sequence[Any]) -> list[type]:
    return [type(answer) for answer in answers]


class GroupedInsertContract(GroupFixtures):
    async def test_insert_that_is_refused_fails_alone(self, both_ways: BothWays) -> None:
        """By a unique index, for a stored document or one of the group; by the driver; for its size."""

        def prepare(database: Any) -> None:
            database["scratch"].create_index("unique", unique=True, sparse=True)
            database["scratch"].insert_one({"_id": "stored", "unique": 1})

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            scratch = storage.driver.collection("scratch")
            documents: list[dict[str, Any]] = [
                {"_id": "first", "unique": 2},
                {"_id": "stored"},
                {"_id": "taken", "unique": 1},
                {"_id": "first"},
                {"_id": "too large", "k": "x" * (17 * _MEBIBYTE)},
                {"_id": "large", "k": "x" * (2 * _MEBIBYTE)},
                *({"_id": name, "k": value} for name, value in UNSTORABLE.items()),
                {"_id": "last", "k": {"$a.b": [1]}},
            ]
            return [scratch.insert_one(document) for document in documents]

        answers = await both_ways(prepare, make)
        unstorable = [InvalidPayloadError] * len(UNSTORABLE)
        assert _kinds(answers[:6]) == [
            type(None),
            DuplicateKeyError,
            DuplicateKeyError,
            DuplicateKeyError,
            PayloadTooLargeError,
            type(None),
        ]
        assert _kinds(answers[6:]) == [*unstorable, type(None)]
        assert [error.keys for error in answers[1:4]] == [("_id",), ("unique",), ("_id",)]

    async def test_insert_that_the_validator_refuses_fails_alone(
        self, both_ways: BothWays, storage: MongoStorage, raw_client: Raw
    ) -> None:
        await storage.runs.create("r", "t", user_id="alice")
        valid = raw_client[storage.config.database]["runs"].find_one({"_id": "r"})
        assert valid is not None

        def nothing(_: Any) -> None: ...

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            changes: list[dict[str, Any]] = [{}, {"status": 5}, {"user_id": ["alice"]}, {"user_id": "bob"}]
            runs = storage.driver.collection("runs")
            documents = [{**valid, **change, "_id": f"{n}"} for n, change in enumerate(changes)]
            return [runs.insert_one(document) for document in documents]

        answers = await both_ways(nothing, make)
        assert _kinds(answers) == [type(None), StorageError, StorageError, type(None)]

    @pytest.mark.usefixtures("forced")
    async def test_taken_id_is_the_stores_own_error_for_all_but_one(self, storage: MongoStorage) -> None:
        """With the driver's error as its cause; each caller has errors of its own."""
        create = storage.runs.create
        ids = [f"r-{number % 4}" for number in range(40)]
        answers = await answers_of([create(run_id, run_id, user_id=f"{n}") for n, run_id in enumerate(ids)])
        errors = [answer for answer in answers if answer is not None]
        assert _kinds(errors) == [RunExistsError] * 36
        assert len({id(error) for error in errors}) == len({id(error.__cause__) for error in errors}) == 36
        assert all(isinstance(error.__cause__, DriverDuplicateKeyError) for error in errors)
        rows = [await storage.runs.get(run_id, user_id=None) for run_id in ids[:4]]
        created = {answer: number for number, answer in enumerate(answers) if answer is None}
        assert {row and row["user_id"] for row in rows} == {"0", "1", "2", "3"}, created

    @pytest.mark.parametrize("w", ["3", "nosuchmode"])
    async def test_write_concern_that_cannot_be_satisfied_is_reported_to_each(
        self, w: str, storage: MongoStorage, new_storage: Opener, mongodb_url: str
    ) -> None:
        """What the server has refused is reported as such."""
        runs = ("r", "s", "taken")
        await storage.runs.create("taken", "t", user_id=None)
        async with new_storage() as _:
            other = new_storage(url=f"{mongodb_url}&w={w}")
            found: list[list[type]] = []
            for is_forced in (False, True):
                with self.forcing(is_forced):
                    names = [f"{name}-{is_forced}" if name != "taken" else name for name in runs]
                    creates = [other.runs.create(name, name, user_id=None) for name in names]
                    updates = [other.runs.update_model_name(name, "m") for name in names]
                    found.append(_kinds(await answers_of([*creates, *updates])))
            await other.aclose()
        assert found[0] == found[1]
        assert found[1][:2] == [StorageConfigError] * 2
        assert found[1][3:] == [StorageConfigError] * 3


class GroupedUpdateContract(GroupFixtures):
    async def test_update_that_matches_nothing_or_is_refused_answers_as_alone(
        self, both_ways: BothWays
    ) -> None:
        def prepare(database: Any) -> None:
            database["scratch"].create_index("unique", unique=True, sparse=True)
            documents: list[dict[str, Any]] = [
                {"_id": f"{number}", "schema_version": 2} for number in range(9)
            ]
            documents[1] |= {"unique": 1}
            documents[2] |= {"schema_version": 99}
            documents[3] |= {"text": "x"}
            documents[4] |= {"large": "x" * (16 * _MEBIBYTE - 1_000)}
            del documents[5]["schema_version"]
            database["scratch"].insert_many(documents)

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            update = storage.driver.collection("scratch").update_one
            known = {"schema_version": {"$not": {"$gt": 2}}}
            increase: Any = {"$inc": {"count": 1}, "$setOnInsert": {"created": True}}
            calls: list[Awaitable[Any]] = []
            calls += [update({"_id": f"{n}", **known}, increase) for n in (0, 0, 1, "missing", 0)]
            calls += [update({"_id": f"{n}", **known}, [{"$set": {"p": "$_id"}}]) for n in (0, "missing", 5)]
            calls += [
                update({"_id": "2", **known}, increase),
                update({"_id": "2", **known}, [{"$set": {"p": 1}}]),
                update({"_id": "0", "status": {"$in": ["a"]}}, increase),
                update({"_id": "0", "unique": {"$exists": False}, "text": None}, increase),
                update({"_id": "0", **known}, {"$set": {"unique": 1}}),
                update({"_id": "3", **known}, {"$inc": {"text": 1}}),
                update({"_id": "3", **known}, [{"$set": {"text": {"$add": ["$text", 1]}}}]),
                update({"_id": "4", **known}, {"$set": {"more": "x" * 2_000}}),
                update({"_id": "4", **known}, [{"$set": {"more": "x" * 2_000}}]),
                update({"_id": "5", **known}, increase),
                update({"_id": "6", **known}, {"$set": {"schema_version": 2}}),  # changes nothing
                *(update({"_id": "7"}, {"$set": {"k": value}}) for value in UNSTORABLE.values()),
                *(update({"_id": "7"}, [{"$set": {"k": value}}]) for value in UNSTORABLE.values()),
                update({"_id": "8", **known}, {"$set": {"k": "x" * (2 * _MEBIBYTE)}}),
            ]
            return calls

        answers = await both_ways(prepare, make)
        assert answers[:12] == [1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 0, 1]
        kinds = [DuplicateKeyError, StorageError, StorageError, PayloadTooLargeError, PayloadTooLargeError]
        assert _kinds(answers[12:17]) == kinds
        assert answers[17:19] == [1, 1]
        assert _kinds(answers[19:-1]) == [InvalidPayloadError] * 2 * len(UNSTORABLE)

    async def test_document_whose_owner_is_of_another_type_is_updated_as_alone(
        self, both_ways: BothWays
    ) -> None:
        def prepare(database: Any) -> None:
            for number, owner in enumerate(_BROKEN_OWNERS):
                database["scratch"].insert_one({"_id": f"{number}", "user_id": owner, "schema_version": 2})

        def make(storage: MongoStorage) -> list[Awaitable[Any]]:
            update = storage.driver.collection("scratch").update_one
            ids = [*map(str, range(len(_BROKEN_OWNERS))), "unknown"]
            return [
                update({"_id": name, "user_id": user}, {"$inc": {f"{user}": 1}})
                for name in ids
                for user in ("alice", "bob", None)
            ]

        assert sum(await both_ways(prepare, make)) == 4

    @pytest.mark.usefixtures("forced")
    async def test_status_that_may_not_be_set_reaches_its_own_caller(
        self, storage: MongoStorage, raw_client: Raw
    ) -> None:
        """And the upserts by which a group is sent have inserted nothing."""
        runs, raw = storage.runs, raw_client[storage.config.database]["runs"]
        names = ("plain", "ended", "newer", "active", "second", "broken")
        threads = {"active": "busy", "second": "busy"}
        for name in names:
            status = (
                "running" if name == "active" else "success" if name in ("ended", "second") else "pending"
            )
            await runs.put(name, thread_id=threads.get(name, name), status=status, user_id="alice")
        raw.update_one({"_id": "second"}, {"$set": {"status": "a host's own, which is no ending"}})
        raw.update_one({"_id": "newer"}, {"$set": {"schema_version": 99}}, bypass_document_validation=True)
        raw.update_one({"_id": "broken"}, {"$set": {"kwargs": 5}}, bypass_document_validation=True)
        answers = await answers_of(
            [
                runs.update_status("plain", "running", metadata={"k": 1}),
                runs.update_status("ended", "error", from_statuses=["pending", "running"]),
                runs.update_status("unknown", "success"),
                runs.update_status("newer", "success"),
                runs.update_status("second", "running", metadata={"k": 1}),
                runs.update_status("broken", "success"),
                runs.update_status("active", "running", metadata={"k": 1}),
                storage.driver.collection("runs").update_one({"_id": "active"}, {"$set": {"status": 5}}),
                runs.update_model_name("plain", "m"),
                runs.update_model_name("unknown", "m"),
            ]
        )
        assert answers[:3] == [True, False, False]
        assert _kinds(answers[3:6]) == [CorruptDocumentError, ActiveRunError, CorruptDocumentError]
        assert _kinds(answers[6:]) == [bool, StorageError, type(None), type(None)]
        assert sorted(raw.distinct("_id")) == sorted(names)
        plain = await runs.get("plain", user_id=None)
        assert plain is not None
        assert (plain["status"], plain["metadata"], plain["model_name"]) == ("running", {"k": 1}, "m")

    async def test_tokens_that_are_recorded_at_once_are_all_counted(self, storage: MongoStorage) -> None:
        """Also for a run that is missing at first."""
        calls, runs = 200, storage.runs
        await runs.create("r", "t", user_id=None)
        record: Any = {"caller": "subagent", "model_name": "m", "input_tokens": 1}
        missing = [runs.record_token_usage("s", **record) for _ in range(20)]
        await asyncio.gather(*missing, *(runs.record_token_usage("r", **record) for _ in range(calls)))
        assert await runs.get("s", user_id=None) is None
        row = await runs.get("r", user_id=None)
        assert row is not None
        assert (row["total_tokens"], row["llm_call_count"], row["subagent_tokens"]) == (calls, calls, calls)
        assert counts_of(storage, "update")["largest"] > 1

    async def test_transition_that_many_ask_for_has_one_winner(self, storage: MongoStorage) -> None:
        runs = storage.runs
        for name in ("r", "s"):
            await runs.create(name, name, user_id=None)
        changes: Any = {"from_statuses": ["pending"]}
        calls = [runs.update_status(n, "running", **changes, metadata={"k": 1}) for n in ("r", "s") * 40]
        answers = await asyncio.gather(*calls)
        assert [sum(answers[::2]), sum(answers[1::2])] == [1, 1]
        assert counts_of(storage, "update")["largest"] > 2

    @pytest.mark.usefixtures("forced")
    async def test_update_by_another_user_changes_nothing_of_the_owners_row(
        self, storage: MongoStorage
    ) -> None:
        threads = storage.threads
        await threads.create_thread_meta(ThreadMetaCreate(thread_id="t", user_id="alice"))
        updates = [
            threads.update_thread_meta("t", status=user, user_id=user) for user in ("bob", "alice", "bob")
        ]
        merges = [threads.merge_thread_metadata("t", {user: 1}, user_id=user) for user in ("bob", "alice")]
        await asyncio.gather(*updates, *merges)
        thread = await threads.get_thread("t", user_id="alice")
        assert thread is not None
        assert (thread.status, dict(thread.metadata), thread.user_id) == ("alice", {"alice": 1}, "alice")
