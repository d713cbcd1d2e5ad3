"""Who may use a thread's events: shared reads of its owner answer every call, whatever happens to them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from pymongo import MongoClient

from deerflow_mongo import (
    CorruptDocumentError,
    MongoStorage,
    StorageError,
    StorageUnavailableError,
    ThreadAccessError,
)
from deerflow_mongo.contract.actor import BoundActor
from deerflow_mongo.mongodb.events.thread_access import ThreadOwners

Raw = MongoClient[dict[str, Any]]

ALICE = BoundActor("alice")
WAIT_S = 20


def event(thread_id: str) -> Any:
    return {"thread_id": thread_id, "run_id": "r", "event_type": "said", "category": "message"}


CALLS: dict[str, Callable[[MongoStorage, str], Awaitable[Any]]] = {
    "list_messages": lambda s, t: s.run_events.list_messages(t),
    "list_messages_by_run": lambda s, t: s.run_events.list_messages_by_run(t, "r"),
    "list_events": lambda s, t: s.run_events.list_events(t, "r"),
    "list_thread_events": lambda s, t: s.run_events.list_thread_events(t),
    "count_messages": lambda s, t: s.run_events.count_messages(t),
    "put": lambda s, t: s.run_events.put(**event(t)),
    "put_batch": lambda s, t: s.run_events.put_batch([event(t), event("other")]),
    "put_if_absent": lambda s, t: s.run_events.put_if_absent(**event(t)),
    "delete_by_run": lambda s, t: s.run_events.delete_by_run(t, "r"),
    "delete_by_thread": lambda s, t: s.run_events.delete_by_thread(t),
    "follow": lambda s, t: anext(s.run_events.follow(t)),
}
"""Every call that asks for a thread's owner, the deleting ones last."""


@pytest.mark.parametrize(
    "stored", [{}, {"user_id": 5}, {"user_id": b"alice"}, {"user_id": {"$ne": 1}}], ids=str
)
async def test_unreadable_owner_refuses_only_its_own_thread(
    stored: dict[str, Any], storage: MongoStorage, raw_client: Raw, database_name: str, alice: None
) -> None:
    for thread_id in ("good", "bad"):
        await storage.threads.ensure_thread(thread_id=thread_id, user_id="alice")
        await storage.run_events.put(**event(thread_id))
    update = {"$set": stored} if stored else {"$unset": {"user_id": ""}}
    raw_client[database_name].command(
        {
            "update": "threads",
            "updates": [{"q": {"_id": "bad"}, "u": update}],
            "bypassDocumentValidation": True,
        }
    )
    for name, call in CALLS.items():
        async with asyncio.timeout(WAIT_S):
            answers = await asyncio.gather(
                *(call(storage, thread_id) for thread_id in ("good", "bad", "good", "bad")),
                return_exceptions=True,
            )
        for answer in answers[::2]:
            assert not isinstance(answer, BaseException), name
        for answer in answers[1::2]:
            assert isinstance(answer, CorruptDocumentError), name
            assert (answer.collection, answer.document_id, answer.field) == ("threads", "bad", "user_id")
        assert answers[1] is not answers[3]
        await storage.run_events.put(**event("good"))
    assert storage.run_events.backlog == 0
    query = {"thread_id": "bad", "run_id": {"$exists": True}}
    assert raw_client[database_name]["run_events"].count_documents(query) == 1


class Threads:
    """The collection as the owners read it; `answer` is what a read does."""

    name = "threads"

    def __init__(self, answer: Callable[[], Awaitable[list[dict[str, Any]]]]) -> None:
        self.answer = answer
        self.reads = 0

    async def find(self, query: object, **_: object) -> list[dict[str, Any]]:
        self.reads += 1
        return await self.answer()


def owners_of(answer: Callable[[], Awaitable[list[dict[str, Any]]]]) -> tuple[ThreadOwners, Threads]:
    threads = Threads(answer)
    return ThreadOwners(cast("Any", threads)), threads


async def _never() -> list[dict[str, Any]]:
    await asyncio.sleep(3_600)
    return []


async def _all_answered(owners: ThreadOwners) -> list[Any]:
    calls = [asyncio.create_task(owners.first_refused([f"t{n % 3}"], ALICE)) for n in range(6)]
    await asyncio.sleep(0)
    return cast("list[Any]", calls)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
async def test_cancelled_read_of_the_owners_fails_its_callers(steps: int) -> None:
    """Also a read that is cancelled before its first step; the next call reads again."""
    owners, threads = owners_of(_never)
    calls = await _all_answered(owners)
    for _ in range(steps):
        await asyncio.sleep(0)
    assert owners._reader is not None
    owners._reader.cancel()
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
    assert {type(answer) for answer in answers} == {StorageUnavailableError}
    assert len({id(answer) for answer in answers}) == len(answers)

    async def of_bob() -> list[dict[str, Any]]:
        return [{"_id": "t0", "user_id": "bob"}]

    threads.answer = of_bob
    assert await asyncio.wait_for(owners.first_refused(["t1", "t0"], ALICE), WAIT_S) == "t0"


@pytest.mark.parametrize(
    "found", [[{"user_id": "alice"}], [{"_id": ["t0"], "user_id": None}], None, [None]], ids=str
)
async def test_unexpected_answer_of_the_server_fails_the_callers(found: Any) -> None:
    async def answer() -> list[dict[str, Any]]:
        return found

    owners, _ = owners_of(answer)
    calls = await _all_answered(owners)
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
    assert {type(answer) for answer in answers} == {StorageError}


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), StorageUnavailableError("lost"), KeyError("user_id")]
)
async def test_error_of_the_read_fails_its_callers_and_no_later_one(error: Exception) -> None:
    async def fail() -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        raise error

    owners, threads = owners_of(fail)
    calls = await _all_answered(owners)
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
    assert all(isinstance(answer, StorageError) for answer in answers)

    async def nothing() -> list[dict[str, Any]]:
        return []

    threads.answer = nothing
    assert await asyncio.wait_for(owners.first_refused(["t0"], ALICE), WAIT_S) is None


async def test_cancelled_caller_leaves_the_other_callers_of_its_read() -> None:
    gate = asyncio.Event()

    async def wait() -> list[dict[str, Any]]:
        await gate.wait()
        return []

    owners, threads = owners_of(wait)
    calls = await _all_answered(owners)
    calls[0].cancel()
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [None] * 5
    assert threads.reads <= 2


async def test_calls_at_every_moment_of_a_read_are_answered() -> None:
    """Also one that comes while the reader ends."""

    async def nothing() -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return []

    owners, _ = owners_of(nothing)
    for pause in range(12):
        first = asyncio.create_task(owners.first_refused(["t0"], ALICE))
        for _ in range(pause):
            await asyncio.sleep(0)
        second = asyncio.create_task(owners.first_refused(["t1"], ALICE))
        assert await asyncio.wait_for(asyncio.gather(first, second), WAIT_S) == [None, None]


async def test_refused_thread_of_a_batch_is_named(storage: MongoStorage, alice: None) -> None:
    await storage.threads.ensure_thread(thread_id="bobs", user_id="bob")
    with pytest.raises(ThreadAccessError, match="bobs"):
        await storage.run_events.put_batch([event("own"), event("bobs")])
