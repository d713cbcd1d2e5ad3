"""Raw PyMongo: the stores' operations on PyMongo's asyncio client, without deerflow-mongo.

It uses the same collections, validators and indexes, and shows the limit of the client and the server.
Arguments are not checked, errors are not translated, and documents are returned as stored. Values that BSON
or an update path would change, and keys with dots, are not handled. It implements no contract.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias

from bson import ObjectId
from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError
from pymongo.monitoring import CommandListener

from deerflow_mongo.contract.rows import ThreadMetaCreate
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.drivers.collection import Document
from deerflow_mongo.mongodb.drivers.driver import DEFAULT_WRITE_CONCERN, DriverOptions
from deerflow_mongo.mongodb.drivers.pymongo_async import client_settings
from deerflow_mongo.mongodb.schema import FEEDBACK, RUN_EVENTS, RUNS, THREADS

Call: TypeAlias = Callable[..., Awaitable[Any]]
Collection: TypeAlias = AsyncCollection[Document]

COUNTERS = "counters"
"""The last number of each thread."""

_NEWEST_FIRST = [("created_at", -1), ("order", -1)]
_ASCENDING, _DESCENDING = [("seq", 1)], [("seq", -1)]
_GROUPED_BATCH = 100_000


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
        yield _calls(target)


def _calls(database: AsyncDatabase[Document]) -> Mapping[str, Call]:
    stores = {
        "runs": _Runs(database[RUNS]),
        "feedback": _Feedback(database[FEEDBACK]),
        "threads": _Threads(database[THREADS]),
        "run_events": _RunEvents(database[RUN_EVENTS], database[COUNTERS]),
    }
    return {
        f"{name}.{method}": getattr(store, method)
        for name, store in stores.items()
        for method in vars(type(store))
        if not method.startswith("_")
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


def _order_and_time() -> tuple[int, str]:
    """The current time in microseconds since 1970 and as text."""
    return time.time_ns() // 1_000, _now()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _text_of(moment: datetime | str) -> str:
    known = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return known.astimezone(UTC).isoformat(timespec="microseconds")


def _owned(query: Document, user_id: str | None) -> Document:
    if user_id is not None:
        query["user_id"] = user_id
    return query


async def _page(collection: Collection, query: Document, sort: Any, limit: int) -> list[Document]:
    # Without a batch size, the server's first reply ends after 101 documents.
    cursor = collection.find(query, sort=sort, limit=limit, batch_size=limit + 1)
    return await cursor.to_list(limit)


async def _upserted(collection: Collection, query: Document, update: Document) -> Document:
    document: Any = await collection.find_one_and_update(
        query, update, upsert=True, return_document=ReturnDocument.AFTER
    )
    return document


class _Runs:
    def __init__(self, runs: Collection) -> None:
        self._collection = runs

    async def get(self, *, run_id: str, user_id: str | None) -> Document | None:
        return await self._collection.find_one(_owned({"_id": run_id}, user_id))

    async def list_by_thread(self, *, thread_id: str, limit: int, user_id: str | None) -> list[Document]:
        return await _page(self._collection, _owned({"thread_id": thread_id}, user_id), _NEWEST_FIRST, limit)

    async def create(
        self,
        *,
        run_id: str,
        thread_id: str,
        user_id: str | None,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        model_name: str | None = None,
        follow_up_to_run_id: str | None = None,
    ) -> None:
        order, now = _order_and_time()
        await self._collection.insert_one(
            {
                "_id": run_id,
                "schema_version": 1,
                "thread_id": thread_id,
                "user_id": user_id,
                "assistant_id": assistant_id,
                "status": "pending",
                "model_name": model_name,
                "multitask_strategy": "reject",
                "follow_up_to_run_id": follow_up_to_run_id,
                "metadata": metadata or {},
                "kwargs": kwargs or {},
                "created_at": now,
                "started_at": None,
                "ended_at": None,
                "order": order,
                "updated_at": None,
                "error": None,
                "tokens": {
                    "input": 0,
                    "output": 0,
                    "total": 0,
                    "llm_calls": 0,
                    "by_caller": {"lead_agent": 0, "subagent": 0, "middleware": 0},
                    "by_model": {},
                },
                "message_count": 0,
                "first_human_message": None,
                "last_ai_message": None,
            }
        )

    async def update_status(
        self,
        *,
        run_id: str,
        status: str,
        started_at: datetime | str | None = None,
        ended_at: datetime | str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        changes: Document = {"status": status, "updated_at": _now()}
        if started_at is not None:
            changes["started_at"] = _text_of(started_at)
        if ended_at is not None:
            changes["ended_at"] = _text_of(ended_at)
        if metadata:
            changes |= {f"metadata.{key}": value for key, value in metadata.items()}
        await self._collection.update_one({"_id": run_id}, {"$set": changes})

    async def set_error(self, *, run_id: str, error: str) -> None:
        changes = {"status": "error", "error": error, "updated_at": _now()}
        await self._collection.update_one({"_id": run_id}, {"$set": changes})

    async def update_run_completion(
        self,
        *,
        run_id: str,
        status: str,
        total_input_tokens: int = 0,
        total_output_tokens: int = 0,
        total_tokens: int = 0,
        llm_call_count: int = 0,
        lead_agent_tokens: int = 0,
        subagent_tokens: int = 0,
        middleware_tokens: int = 0,
        message_count: int = 0,
        first_human_message: str | None = None,
        last_ai_message: str | None = None,
        error: str | None = None,
        ended_at: datetime | str | None = None,
    ) -> None:
        now = _now()
        changes = {
            "status": status,
            "tokens.input": total_input_tokens,
            "tokens.output": total_output_tokens,
            "tokens.total": total_tokens,
            "tokens.llm_calls": llm_call_count,
            "tokens.by_caller.lead_agent": lead_agent_tokens,
            "tokens.by_caller.subagent": subagent_tokens,
            "tokens.by_caller.middleware": middleware_tokens,
            "message_count": message_count,
            "first_human_message": first_human_message,
            "last_ai_message": last_ai_message,
            "error": error,
            "ended_at": now if ended_at is None else _text_of(ended_at),
            "updated_at": now,
        }
        await self._collection.update_one({"_id": run_id}, {"$set": changes})

    async def delete(self, *, run_id: str, user_id: str | None) -> bool:
        return (await self._collection.delete_one(_owned({"_id": run_id}, user_id))).deleted_count == 1

    async def record_token_usage(
        self,
        *,
        run_id: str,
        caller: str,
        model_name: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        llm_calls: int = 1,
    ) -> None:
        total = input_tokens + output_tokens
        increments = {
            "tokens.input": input_tokens,
            "tokens.output": output_tokens,
            "tokens.total": total,
            "tokens.llm_calls": llm_calls,
            f"tokens.by_caller.{caller}": total,
        }
        changes: Document = {"updated_at": _now()}
        if model_name is not None:
            # A dot ("gpt-4.1") would be a path separator, and the validator would reject the result.
            path = f"tokens.by_model.{model_name.replace('.', '%2E')}"
            increments[f"{path}.input"] = input_tokens
            increments[f"{path}.output"] = output_tokens
            increments[f"{path}.total"] = total
            increments[f"{path}.llm_calls"] = llm_calls
            changes[f"{path}.model"] = model_name
        await self._collection.update_one({"_id": run_id}, {"$inc": increments, "$set": changes})

    async def token_usage_by_thread(self, *, thread_id: str, user_id: str | None) -> Document:
        """One document with `totals` (a list of at most one) and `models` (one for each model)."""
        query = _owned({"thread_id": thread_id}, user_id)
        found = await self._collection.aggregate([{"$match": query}, *_TOKEN_USAGE])
        return (await found.to_list(1))[0]


def _sums(prefix: str) -> Document:
    return {name: {"$sum": f"{prefix}.{name}"} for name in ("input", "output", "total", "llm_calls")}


_OWN_MODEL: Document = {
    "model": {"$ifNull": ["$model_name", "unknown"]},
    "input": "$tokens.input",
    "output": "$tokens.output",
    "total": "$tokens.total",
    "llm_calls": "$tokens.llm_calls",
}
_TOKEN_USAGE: list[Document] = [
    {"$project": {"tokens": 1, "model_name": 1, "models": {"$objectToArray": "$tokens.by_model"}}},
    {
        "$facet": {
            "totals": [
                {
                    "$group": {
                        "_id": None,
                        "runs": {"$sum": 1},
                        **_sums("$tokens"),
                        "lead_agent": {"$sum": "$tokens.by_caller.lead_agent"},
                        "subagent": {"$sum": "$tokens.by_caller.subagent"},
                        "middleware": {"$sum": "$tokens.by_caller.middleware"},
                    }
                }
            ],
            "models": [
                {"$project": {"of": {"$cond": [{"$eq": ["$models", []]}, [_OWN_MODEL], "$models.v"]}}},
                {"$unwind": "$of"},
                {"$group": {"_id": "$of.model", "runs": {"$sum": 1}, **_sums("$of")}},
            ],
        }
    },
]


class _Feedback:
    def __init__(self, feedback: Collection) -> None:
        self._collection = feedback

    async def create(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        user_id: str | None,
        message_id: str | None = None,
        comment: str | None = None,
    ) -> Document:
        order, now = _order_and_time()
        document: Document = {
            "_id": str(uuid.uuid4()),
            "schema_version": 1,
            "thread_id": thread_id,
            "run_id": run_id,
            "user_id": user_id,
            "message_id": message_id,
            "rating": rating,
            "comment": comment,
            "created_at": now,
            "order": order,
        }
        await self._collection.insert_one(document)
        return document

    async def upsert(
        self, *, run_id: str, thread_id: str, rating: int, user_id: str | None, comment: str | None = None
    ) -> Document:
        """Rows of `create` are not replaced. Of two concurrent first votes, one is retried."""
        try:
            return await self._vote(run_id, thread_id, rating, user_id, comment)
        except DuplicateKeyError:
            return await self._vote(run_id, thread_id, rating, user_id, comment)

    async def _vote(
        self, run_id: str, thread_id: str, rating: int, user_id: str | None, comment: str | None
    ) -> Document:
        order, now = _order_and_time()
        return await _upserted(
            self._collection,
            {"thread_id": thread_id, "run_id": run_id, "user_id": user_id, "vote": True},
            {
                "$set": {"rating": rating, "comment": comment, "created_at": now, "order": order},
                "$setOnInsert": {"_id": str(uuid.uuid4()), "schema_version": 1, "message_id": None},
            },
        )

    async def get(self, *, feedback_id: str) -> Document | None:
        return await self._collection.find_one({"_id": feedback_id})

    async def delete(self, *, feedback_id: str) -> bool:
        return (await self._collection.delete_one({"_id": feedback_id})).deleted_count == 1

    async def list_by_run(
        self, *, thread_id: str, run_id: str, limit: int, user_id: str | None = None
    ) -> list[Document]:
        query = _owned({"thread_id": thread_id, "run_id": run_id}, user_id)
        return await _page(self._collection, query, _NEWEST_FIRST, limit)

    async def list_by_thread(self, *, thread_id: str, limit: int) -> list[Document]:
        return await _page(self._collection, {"thread_id": thread_id}, _NEWEST_FIRST, limit)

    async def list_by_thread_grouped(self, *, thread_id: str, user_id: str | None) -> dict[str, Document]:
        found = await self._collection.aggregate(
            [{"$match": {"thread_id": thread_id, "user_id": user_id}}, *_NEWEST_PER_RUN],
            batchSize=_GROUPED_BATCH,
        )
        return {group["_id"]: group["newest"] for group in await found.to_list(None)}

    async def aggregate_by_run(self, *, thread_id: str, run_id: str) -> dict[int, int]:
        """Rating -> count."""
        found = await self._collection.aggregate(
            [
                {"$match": {"thread_id": thread_id, "run_id": run_id}},
                {"$group": {"_id": "$rating", "count": {"$sum": 1}}},
            ]
        )
        return {group["_id"]: group["count"] for group in await found.to_list(None)}

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: str | None) -> bool:
        vote = {"thread_id": thread_id, "run_id": run_id, "user_id": user_id, "vote": True}
        return (await self._collection.delete_one(vote)).deleted_count == 1


_NEWEST_PER_RUN: list[Document] = [
    {"$sort": {"thread_id": 1, "user_id": 1, "run_id": 1, "created_at": -1, "order": -1}},
    {"$group": {"_id": "$run_id", "newest": {"$first": "$$ROOT"}}},
]


def _digests(metadata: Mapping[str, Any]) -> list[str]:
    """The indexed digests of the metadata; -0.0 is not normalized."""
    return [
        _digest(json.dumps(key), 8)
        + _digest(json.dumps([key, value], sort_keys=True, separators=(",", ":")), 12)
        for key, value in metadata.items()
    ]


def _digest(text: str, size_bytes: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size_bytes).hexdigest()


class _Threads:
    def __init__(self, threads: Collection) -> None:
        self._collection = threads

    async def create_thread_meta(self, *, data: ThreadMetaCreate) -> Document:
        order, now = _order_and_time()
        document: Document = {
            "_id": data.thread_id,
            "user_id": data.user_id,
            "schema_version": 1,
            "assistant_id": data.assistant_id,
            "display_name": data.display_name,
            "status": data.status,
            "metadata": data.metadata,
            "metadata_digests": _digests(data.metadata),
            "created_at": now,
            "updated_at": now,
            "order": order,
        }
        await self._collection.insert_one(document)
        return document

    async def get_thread_meta(self, *, thread_id: str) -> Document | None:
        return await self._collection.find_one({"_id": thread_id})

    async def get_thread(self, *, thread_id: str, user_id: str | None) -> Document | None:
        return await self._collection.find_one(_owned({"_id": thread_id}, user_id))

    async def update_thread_meta(
        self,
        *,
        thread_id: str,
        display_name: str | None = None,
        status: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        assistant_id: str | None = None,
    ) -> None:
        changes: Document = {"updated_at": _now()}
        if display_name is not None:
            changes["display_name"] = display_name
        if status is not None:
            changes["status"] = status
        if metadata is not None:
            changes["metadata"] = metadata
            changes["metadata_digests"] = _digests(metadata)
        if assistant_id is not None:
            changes["assistant_id"] = assistant_id
        await self._collection.update_one({"_id": thread_id}, {"$set": changes})

    async def ensure_thread(
        self,
        *,
        thread_id: str,
        user_id: str | None,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Document:
        """Raises the driver's error if the thread belongs to another user."""
        query = _owned({"_id": thread_id}, user_id)
        new = _new_thread(assistant_id, metadata or {})
        new["status"], new["updated_at"] = "idle", new["created_at"]
        if user_id is None:
            new["user_id"] = None
        return await _upserted(self._collection, query, {"$setOnInsert": new})

    async def ensure_thread_running(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Document:
        """A new thread has no owner; the actor is not read."""
        new = {**_new_thread(assistant_id, metadata or {}), "user_id": None}
        changes = {"status": "running", "updated_at": new["created_at"]}
        return await _upserted(self._collection, {"_id": thread_id}, {"$set": changes, "$setOnInsert": new})

    async def sync_thread_title(self, *, thread_id: str, title: str) -> None:
        changes = {"display_name": title, "updated_at": _now()}
        await self._collection.update_one({"_id": thread_id}, {"$set": changes})

    async def sync_thread_status(self, *, thread_id: str, status: str) -> None:
        changes = {"status": status, "updated_at": _now()}
        await self._collection.update_one({"_id": thread_id}, {"$set": changes})

    async def search_threads(
        self,
        *,
        user_id: str | None,
        limit: int,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
    ) -> list[Document]:
        query = _owned({}, user_id)
        if status is not None:
            query["status"] = status
        if metadata:
            query["metadata_digests"] = {"$all": _digests(metadata)}
        return await _page(self._collection, query, _NEWEST_FIRST, limit)

    async def delete_thread(self, *, thread_id: str) -> bool:
        return (await self._collection.delete_one({"_id": thread_id})).deleted_count == 1


def _new_thread(assistant_id: str | None, metadata: Mapping[str, Any]) -> Document:
    order, now = _order_and_time()
    return {
        "schema_version": 1,
        "assistant_id": assistant_id,
        "display_name": None,
        "metadata": metadata,
        "metadata_digests": _digests(metadata),
        "created_at": now,
        "order": order,
    }


def _event_document(event: Mapping[str, Any], seq: int, now: datetime, created_at: str) -> Document:
    return {
        "_id": ObjectId(),
        "schema_version": 1,
        "seq": seq,
        "thread_id": event["thread_id"],
        "run_id": event["run_id"],
        "event_type": event["event_type"],
        "category": event["category"],
        "content": event["content"],
        "metadata": event["metadata"],
        "created_at": created_at,
        "stored_at": now,
    }


class _RunEvents:
    """Numbers come from one counter per thread; deleted events leave no tombstone.

    `put` and `put_batch` follow common practice and are not a lower bound: a writer that caches a thread's
    last number needs one round trip.
    """

    def __init__(self, events: Collection, counters: Collection) -> None:
        self._collection = events
        self._counters = counters

    async def put_batch(self, *, events: Sequence[Mapping[str, Any]]) -> list[Document]:
        """Two round trips, whatever the size; all events belong to the first one's thread.

        A reader that pages by number can miss events: a writer may take its numbers earlier than another and
        store its events later. A batch larger than one server write can be visible, or stored, in part.
        """
        if not events:
            return []
        last = await self._reserve(events[0]["thread_id"], len(events))
        now = datetime.now(UTC)
        created_at = now.isoformat(timespec="microseconds")
        documents = [
            _event_document(event, seq, now, created_at)
            for seq, event in enumerate(events, last - len(events) + 1)
        ]
        await self._collection.insert_many(documents)
        return documents

    async def put(self, **event: Any) -> Document:
        """Two round trips, like `put_batch`."""
        seq = await self._reserve(event["thread_id"], 1)
        now = datetime.now(UTC)
        document = _event_document(event, seq, now, now.isoformat(timespec="microseconds"))
        await self._collection.insert_one(document)
        return document

    async def put_if_absent(
        self,
        *,
        thread_id: str,
        run_id: str,
        event_type: str,
        category: str,
        content: Any = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> tuple[Document, bool]:
        """One upsert, so the number is the clock's in nanoseconds, greater than all counted ones.

        The filter has exactly the unique index's keys, so that the server retries a lost race itself.
        """
        now = datetime.now(UTC)
        own_id = ObjectId()
        document = await _upserted(
            self._collection,
            {"thread_id": thread_id, "run_id": run_id, "event_type": event_type},
            {
                "$setOnInsert": {
                    "_id": own_id,
                    "schema_version": 1,
                    "seq": time.time_ns(),
                    "category": category,
                    "content": content,
                    "metadata": metadata or {},
                    "created_at": now.isoformat(timespec="microseconds"),
                    "stored_at": now,
                    "once": True,
                }
            },
        )
        return document, document["_id"] == own_id

    async def list_messages(
        self, *, thread_id: str, limit: int, before_seq: int | None = None, after_seq: int | None = None
    ) -> list[Document]:
        query: Document = {"thread_id": thread_id, "category": "message"}
        return await self._messages(query, limit, before_seq, after_seq)

    async def list_events(
        self, *, thread_id: str, run_id: str, limit: int, event_types: Sequence[str] | None = None
    ) -> list[Document]:
        query: Document = {"thread_id": thread_id, "run_id": run_id}
        if event_types is not None:
            query["event_type"] = {"$in": event_types}
        return await _page(self._collection, query, _ASCENDING, limit)

    async def list_messages_by_run(
        self,
        *,
        thread_id: str,
        run_id: str,
        limit: int,
        before_seq: int | None = None,
        after_seq: int | None = None,
    ) -> list[Document]:
        query: Document = {"thread_id": thread_id, "run_id": run_id, "category": "message"}
        return await self._messages(query, limit, before_seq, after_seq)

    async def count_messages(self, *, thread_id: str) -> int:
        return await self._collection.count_documents({"thread_id": thread_id, "category": "message"})

    async def delete_by_thread(self, *, thread_id: str) -> int:
        # Numbers below 1 are the anchors of deerflow-mongo's threads.
        return (await self._collection.delete_many({"thread_id": thread_id, "seq": {"$gt": 0}})).deleted_count

    async def delete_by_run(self, *, thread_id: str, run_id: str) -> int:
        return (await self._collection.delete_many({"thread_id": thread_id, "run_id": run_id})).deleted_count

    async def _reserve(self, thread_id: str, numbers: int) -> int:
        """Reserves this many numbers; returns the last one."""
        update = {"$inc": {"seq": numbers}}
        return (await _upserted(self._counters, {"_id": thread_id}, update))["seq"]

    async def _messages(
        self, query: Document, limit: int, before_seq: int | None, after_seq: int | None
    ) -> list[Document]:
        if after_seq is not None:
            query["seq"] = {"$gt": after_seq}
            return await _page(self._collection, query, _ASCENDING, limit)
        if before_seq is not None:
            query["seq"] = {"$lt": before_seq}
        return (await _page(self._collection, query, _DESCENDING, limit))[::-1]
