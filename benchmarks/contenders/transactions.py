"""Numbers run events in one transaction per batch, a common solution: correct, but with many write conflicts.

A transaction reads the thread's last number and inserts the events after it; on a conflict it is retried at
once. `in_turn` adds a lock per thread and process, so that only other processes conflict.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure

from deerflow_mongo.mongodb.documents.encoding import Document
from deerflow_mongo.mongodb.drivers.driver import DEFAULT_WRITE_CONCERN
from deerflow_mongo.mongodb.schema import RUN_EVENTS, SEQ_FALLING

from ..loading.mongodb import event_document
from . import raw_pymongo
from .raw_pymongo import Call

Events = Sequence[Mapping[str, Any]]


@asynccontextmanager
async def opened(url: str, database: str) -> AsyncGenerator[Mapping[str, Call]]:
    """Raw PyMongo's calls with another `run_events.put_batch`."""
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

    async with client, raw_pymongo.opened(url, database) as calls:
        yield {**calls, "run_events.put_batch": put_batch}


@asynccontextmanager
async def in_turn(url: str, database: str) -> AsyncGenerator[Mapping[str, Call]]:
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    async with opened(url, database) as calls:

        async def put_batch(*, events: Events) -> Any:
            async with locks[events[0]["thread_id"]]:
                return await calls["run_events.put_batch"](events=events)

        yield {**calls, "run_events.put_batch": put_batch}
