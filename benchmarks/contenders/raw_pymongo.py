"""Raw PyMongo: the headline operations on PyMongo's asyncio client, without deerflow-mongo's stores.

It stores the same documents in the same collections and shows what a program without groups costs: each call
is a command of its own. It is no lower bound, since calls that share commands cost less. Arguments are not
checked, payloads are not converted, errors are not translated, and documents are returned as stored. It
implements no contract.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.monitoring import CommandListener

from deerflow_mongo.contract.rows import MESSAGE
from deerflow_mongo.contract.times import clock
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.documents.encoding import Document
from deerflow_mongo.mongodb.documents.feedback import totals_pipeline, vote_update
from deerflow_mongo.mongodb.documents.runs import COUNT_PATHS, completion_update, new_run
from deerflow_mongo.mongodb.documents.stored_times import stamp_from_optional
from deerflow_mongo.mongodb.drivers.driver import DEFAULT_WRITE_CONCERN, DriverOptions
from deerflow_mongo.mongodb.drivers.pymongo_async import client_settings
from deerflow_mongo.mongodb.schema import (
    FEEDBACK,
    NEWEST_FIRST,
    RUN_EVENTS,
    RUNS,
    SEQ_FALLING,
    SEQ_RISING,
    THREADS,
    VOTE_FIRST,
    Keys,
)

from ..loading.mongodb import event_document

Call: TypeAlias = Callable[..., Awaitable[Any]]
Collection: TypeAlias = AsyncCollection[Document]
Events: TypeAlias = Sequence[Mapping[str, Any]]

COUNTERS = "counters"
"""The last number of each thread."""

_NEW_RUN: Mapping[str, Any] = {"status": "pending", "multitask_strategy": "reject"} | dict.fromkeys(
    ("model_name", "follow_up_to_run_id", "created_stamp_us", "started_stamp_us", "ended_stamp_us", "error")
)
_TEXTS = ("first_human_message", "last_ai_message", "error")


@asynccontextmanager
async def opened(
    url: str, database: str, *, event_listeners: Sequence[CommandListener] = ()
) -> AsyncGenerator[Mapping[str, Call]]:
    """Path -> call, on a client with the storage's settings. The schema must exist."""
    timeout_ms = mongo_config({"url": url, "database": database}).timeout_ms
    settings = client_settings(DriverOptions(url, database, timeout_ms))
    client: AsyncMongoClient[Document] = AsyncMongoClient(url, event_listeners=event_listeners, **settings)
    async with client:
        target = client.get_database(database, write_concern=DEFAULT_WRITE_CONCERN)
        await _initialize_counters(target)
        calls = _RawPyMongo(target)
        yield {
            "runs.get": calls.get_run,
            "runs.list_by_thread": calls.list_runs,
            "runs.create": calls.create_run,
            "runs.update_run_completion": calls.complete_run,
            "feedback.upsert": calls.upsert_vote,
            "feedback.aggregate_by_run": calls.count_votes,
            "threads.search_threads": calls.search_threads,
            "run_events.put_batch": calls.put_batch,
            "run_events.list_messages": calls.list_messages,
        }


async def _initialize_counters(database: AsyncDatabase[Document]) -> None:
    """Sets the counters to the last numbers that other writers have stored."""
    greater: Document = {"$set": {"seq": {"$max": ["$seq", "$$new.seq"]}}}
    found = await database[RUN_EVENTS].aggregate(
        [
            {"$sort": {"thread_id": -1, "seq": -1}},  # reads the index once per thread
            {"$group": {"_id": "$thread_id", "seq": {"$first": "$seq"}}},
            {"$merge": {"into": COUNTERS, "whenMatched": [greater]}},
        ]
    )
    await found.to_list(None)


def _owned(query: Document, user_id: str | None) -> Document:
    return query if user_id is None else {**query, "user_id": user_id}


async def _page(collection: Collection, query: Document, sort: Keys, limit: int) -> list[Document]:
    # Without a batch size, the server's first reply ends after 101 documents.
    return await collection.find(query, sort=sort, limit=limit, batch_size=limit + 1).to_list(limit)


class _RawPyMongo:
    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._runs = database[RUNS]
        self._feedback = database[FEEDBACK]
        self._threads = database[THREADS]
        self._events = database[RUN_EVENTS]
        self._counters = database[COUNTERS]

    async def get_run(self, *, run_id: str, user_id: str | None) -> Document | None:
        return await self._runs.find_one(_owned({"_id": run_id}, user_id))

    async def list_runs(self, *, thread_id: str, limit: int, user_id: str | None) -> list[Document]:
        return await _page(self._runs, _owned({"thread_id": thread_id}, user_id), NEWEST_FIRST, limit)

    async def create_run(self, **fields: Any) -> None:
        given: dict[str, Any] = {**_NEW_RUN, **fields, "stamp_us": clock.stamp_us()}
        await self._runs.insert_one(new_run(**given))

    async def complete_run(self, *, run_id: str, status: str, ended_at: Any = None, **fields: Any) -> bool:
        update = completion_update(
            status,
            counts={name: fields.get(name, 0) for name in COUNT_PATHS},
            by_model=fields.get("token_usage_by_model"),
            texts={name: fields.get(name) for name in _TEXTS},
            ended_stamp_us=stamp_from_optional("ended_at", ended_at),
        )
        return (await self._runs.update_one({"_id": run_id}, update)).matched_count == 1

    async def upsert_vote(
        self, *, run_id: str, thread_id: str, rating: int, user_id: str | None, comment: str | None
    ) -> Document:
        """Of two concurrent first votes, one is retried."""
        query = {"thread_id": thread_id, "run_id": run_id, "user_id": user_id, "message_id": None}
        update = vote_update(rating, comment, clock.stamp_us())
        try:
            return await self._upserted(self._feedback, query, update, VOTE_FIRST)
        except DuplicateKeyError:
            return await self._upserted(self._feedback, query, update, VOTE_FIRST)

    async def count_votes(self, *, thread_id: str, run_id: str) -> list[Document]:
        """One document per rating."""
        pipeline = totals_pipeline({"thread_id": thread_id, "run_id": run_id})
        return await (await self._feedback.aggregate(pipeline)).to_list(None)

    async def search_threads(self, *, user_id: str | None, limit: int) -> list[Document]:
        return await _page(self._threads, _owned({}, user_id), NEWEST_FIRST, limit)

    async def put_batch(self, *, events: Events) -> list[Document]:
        """Two round trips, whatever the size; all events belong to the first one's thread.

        Numbers from a counter are common practice and no lower bound: a writer that caches a thread's last
        number needs one round trip. A reader that pages by number can miss events: a writer may take its
        numbers earlier than another and store its events later.
        """
        update: Document = {"$inc": {"seq": len(events)}}
        last = (await self._upserted(self._counters, {"_id": events[0]["thread_id"]}, update))["seq"]
        documents = [event_document(event, seq) for seq, event in enumerate(events, last - len(events) + 1)]
        await self._events.insert_many(documents)
        return documents

    async def list_messages(
        self, *, thread_id: str, limit: int, after_seq: int | None = None
    ) -> list[Document]:
        query: Document = {"thread_id": thread_id, "category": MESSAGE}
        if after_seq is not None:
            return await _page(self._events, {**query, "seq": {"$gt": after_seq}}, SEQ_RISING, limit)
        return (await _page(self._events, query, SEQ_FALLING, limit))[::-1]

    @staticmethod
    async def _upserted(
        collection: Collection, query: Document, update: Document, sort: Keys | None = None
    ) -> Document:
        document: Any = await collection.find_one_and_update(
            query, update, sort=sort, upsert=True, return_document=ReturnDocument.AFTER
        )
        return document


# -- other ways to number run events --------------------------------------------------------------


@asynccontextmanager
async def in_transactions(url: str, database: str) -> AsyncGenerator[Mapping[str, Call]]:
    """With one transaction per batch, a common solution: correct, but with many write conflicts.

    A transaction reads the thread's last number and inserts the events after it; on a conflict it is retried
    at once.
    """
    client: AsyncMongoClient[Document] = AsyncMongoClient(url, timeoutMS=25_000)
    collection = client[database][RUN_EVENTS]

    async def try_insert(events: Events) -> list[Document] | None:
        """One attempt; None after a conflict with another writer."""
        thread = {"thread_id": events[0]["thread_id"]}
        try:
            async with (
                client.start_session() as session,
                await session.start_transaction(write_concern=DEFAULT_WRITE_CONCERN),
            ):
                last = await collection.find_one(thread, {"seq": 1}, sort=SEQ_FALLING, session=session)
                first = 1 if last is None else last["seq"] + 1
                documents = [event_document(event, seq) for seq, event in enumerate(events, first)]
                await collection.insert_many(documents, session=session)
        except OperationFailure as error:
            if isinstance(error, DuplicateKeyError) or error.has_error_label("TransientTransactionError"):
                return None
            raise
        return documents

    async def put_batch(*, events: Events) -> list[Document]:
        while (stored := await try_insert(events)) is None:
            pass
        return stored

    async with client, opened(url, database) as calls:
        yield {**calls, "run_events.put_batch": put_batch}


@asynccontextmanager
async def in_turn(url: str, database: str) -> AsyncGenerator[Mapping[str, Call]]:
    """With a lock per thread and process besides, so that only other processes conflict."""
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    async with in_transactions(url, database) as calls:

        async def put_batch(*, events: Events) -> Any:
            async with locks[events[0]["thread_id"]]:
                return await calls["run_events.put_batch"](events=events)

        yield {**calls, "run_events.put_batch": put_batch}
