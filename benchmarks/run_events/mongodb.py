"""Writers on MongoDB: ours, and those that people write themselves, on the same collection and indexes.

The others build the same documents with the same code as ours, ask for the same durability and give rows,
too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from pymongo import AsyncMongoClient, ReturnDocument, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern

from deerflow_mongo import codec
from deerflow_mongo.codec import Document
from deerflow_mongo.drivers.base import CODEC_OPTIONS
from deerflow_mongo.rows import RunEventFields
from deerflow_mongo.schema import RUN_EVENTS
from deerflow_mongo.serialization import to_json, to_json_mapping
from deerflow_mongo.storage import MongoStorage, create_mongo_storage
from deerflow_mongo.stores.event_log import utc_now
from deerflow_mongo.times import stored_now

from .workload import THREAD, Put, Target


def storage_of(target: Target) -> MongoStorage:
    return create_mongo_storage({"url": target.url, "database": target.database})


@asynccontextmanager
async def ours(target: Target) -> AsyncGenerator[Put]:
    async with storage_of(target) as storage:

        async def put(events: list[RunEventFields]) -> list[int]:
            return [row["seq"] for row in await storage.run_events.put_batch(events)]

        yield put


@asynccontextmanager
async def counter_then_insert(target: Target) -> AsyncGenerator[Put]:
    async with _database(target) as database:
        counters, collection = database["counters"], database[RUN_EVENTS]

        async def put(events: list[RunEventFields]) -> list[int]:
            documents = _documents(events)
            counter: Any = await counters.find_one_and_update(
                {"_id": THREAD},
                {"$inc": {"seq": len(documents)}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
            _number(documents, counter["seq"] - len(documents))
            await collection.insert_many(documents)
            return _numbers(documents)

        yield put


@asynccontextmanager
async def transaction(target: Target) -> AsyncGenerator[Put]:
    async with _database(target) as database:
        collection = database[RUN_EVENTS]

        async def put(events: list[RunEventFields]) -> list[int]:
            documents = _documents(events)
            async with database.client.start_session() as session:
                while not await _committed(session, collection, documents):
                    pass
            return _numbers(documents)

        yield put


@asynccontextmanager
async def queued_transaction(target: Target) -> AsyncGenerator[Put]:
    """The tasks of a process wait for each other, and so are only in the way of other processes."""
    async with transaction(target) as put:
        lock = asyncio.Lock()

        async def put_in_turn(events: list[RunEventFields]) -> list[int]:
            async with lock:
                return await put(events)

        yield put_in_turn


async def _committed(
    session: AsyncClientSession, collection: AsyncCollection[Document], documents: list[Document]
) -> bool:
    """Whether one try went through; False where another writer was in its way."""
    try:
        async with await session.start_transaction(write_concern=WriteConcern("majority")):
            last = await collection.find_one(
                {"thread_id": THREAD}, {"seq": 1}, sort=[("seq", -1)], session=session
            )
            _number(documents, 0 if last is None else last["seq"])
            await collection.insert_many(documents, session=session)
    except OperationFailure as error:
        if isinstance(error, DuplicateKeyError) or error.has_error_label("TransientTransactionError"):
            return False
        raise
    return True


@asynccontextmanager
async def _database(target: Target) -> AsyncGenerator[AsyncDatabase[Document]]:
    client: AsyncMongoClient[Document] = AsyncMongoClient(target.url, timeoutMS=25_000)
    async with client:
        yield client.get_database(
            target.database, codec_options=CODEC_OPTIONS, write_concern=WriteConcern("majority")
        )


def _documents(events: list[RunEventFields]) -> list[Document]:
    now = stored_now()
    return [_document(cast("Document", event), now) for event in events]


def _document(event: Document, now: str) -> Document:
    fields = {
        **event,
        "content": codec.encode_content(to_json(event["content"], "content")),
        "metadata": codec.encode_mapping(to_json_mapping(event["metadata"], "metadata")),
        "created_at": now,
    }
    return codec.new_event(fields)


def _number(documents: list[Document], last: int) -> None:
    stored_at = utc_now()
    for seq, document in enumerate(documents, last + 1):
        document["seq"], document["stored_at"] = seq, stored_at


def _numbers(documents: list[Document]) -> list[int]:
    return [row["seq"] for row in map(codec.event_row, documents)]


async def prepare(target: Target) -> None:
    async with storage_of(target):
        pass


async def stored_numbers(target: Target) -> list[int]:
    """The numbers of all events, in the order of the index; the thread's head is none."""
    async with _database(target) as database:
        found = database[RUN_EVENTS].find({"thread_id": THREAD, "seq": {"$gt": 0}}, {"seq": 1, "_id": 0})
        return [document["seq"] async for document in found.sort("seq", 1)]


async def drop(target: Target) -> None:
    async with _database(target) as database:
        await database.client.drop_database(target.database)


async def server_version(url: str) -> str:
    async with _database(Target(url, "admin")) as database:
        return (await database.command("buildInfo"))["version"]


class Reader:
    """Pages through a thread by `seq > last`, as clients do that follow a run."""

    _PAGE = 500

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._events = database.get_collection(RUN_EVENTS, read_concern=ReadConcern("majority"))
        self.seen = 0
        self.last = 0

    async def page(self) -> bool:
        """Read one page; whether there was anything new."""
        query = {"thread_id": THREAD, "seq": {"$gt": self.last}}
        found = await self._events.find(query, {"seq": 1, "_id": 0}).sort("seq", 1).to_list(self._PAGE)
        self.seen += len(found)
        self.last = found[-1]["seq"] if found else self.last
        return bool(found)


@asynccontextmanager
async def reader(target: Target) -> AsyncGenerator[Reader]:
    async with _database(target) as database:
        yield Reader(database)
