"""Votes and comments. One document per row; the one vote of a user on a run is kept single by a unique index.

A row becomes the vote when `upsert` first meets it: it gets the field `vote`, which a partial unique index
covers. Rows on a message never do.
"""

from __future__ import annotations

import uuid
from typing import Any

from ...contract import arguments
from ...contract.actor import UserId
from ...contract.errors import StorageError
from ...contract.protocols import FeedbackStore
from ...contract.rows import CreationOrder, FeedbackRow, FeedbackTotals
from ...contract.times import clock
from .. import codec, queries
from ..codec import VOTE, Document
from ..documents.stored_times import stored_from_stamp
from ..drivers.base import Collection, DuplicateKeyError
from ..schema import NEWEST_FIRST, OLDEST_FIRST, Keys

# The row that is the vote already, else the newest that may become it.
_VOTE_FIRST = ((VOTE, -1), *NEWEST_FIRST)

_ORDERS: dict[str, Keys] = {"newest_first": NEWEST_FIRST, "oldest_first": OLDEST_FIRST}

_UPSERT_TRIES = 5
"""One more is enough after a lost race against another first vote (MongoDB's upsert with a partial index)."""


def _content(rating: object, comment: object) -> Document:
    order = clock.stamp_us()
    return {
        "rating": arguments.rating(rating),
        "comment": codec.encode_text("comment", comment),
        "created_at": stored_from_stamp(order),
        "order": order,
    }


class MongoFeedbackStore(FeedbackStore):
    """`FeedbackStore` on MongoDB."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def create(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        owner_id: str | None = None,
        user_id: UserId = None,
        message_id: str | None = None,
        comment: str | None = None,
    ) -> FeedbackRow:
        owner = arguments.optional_text("owner_id", owner_id)
        user = owner if user_id is None else user_id
        document: Document = {
            "_id": str(uuid.uuid4()),
            "schema_version": codec.SCHEMA_VERSION,
            **queries.of_run(thread_id, run_id),
            "user_id": arguments.acting_user(user, "FeedbackStore.create"),
            "message_id": arguments.optional_text("message_id", message_id),
            **_content(rating, comment),
        }
        await self._collection.insert_one(document)
        return codec.feedback_row(document)

    async def upsert(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        user_id: UserId,
        comment: str | None = None,
    ) -> FeedbackRow:
        user = arguments.acting_user(user_id, "FeedbackStore.upsert")
        query = queries.vote_of(thread_id, run_id, user)
        update: Document = {
            "$set": {VOTE: True, **_content(rating, comment)},
            "$setOnInsert": {"_id": str(uuid.uuid4()), "schema_version": codec.SCHEMA_VERSION},
        }
        for _ in range(_UPSERT_TRIES):
            try:
                return codec.feedback_row(
                    await self._collection.find_one_and_upsert(query, update, sort=_VOTE_FIRST)
                )
            except DuplicateKeyError:
                continue  # another first vote of this user was stored meanwhile: replace that one
        raise StorageError(f"the vote on run {run_id!r} met another one {_UPSERT_TRIES} times; try again")

    async def get(self, feedback_id: str, *, user_id: UserId = None) -> FeedbackRow | None:
        query = queries.feedback_by_id(feedback_id)
        queries.owned(query, user_id, "FeedbackStore.get")
        document = await self._collection.find_one(query)
        return None if document is None else codec.feedback_row(document)

    async def delete(self, feedback_id: str, *, user_id: UserId = None) -> bool:
        query = queries.feedback_by_id(feedback_id)
        queries.owned(query, user_id, "FeedbackStore.delete")
        return await self._collection.delete_one(query)

    async def list_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        query = queries.of_run(thread_id, run_id)
        queries.owned(query, user_id, "FeedbackStore.list_by_run")
        return await self._rows(query, limit, order)

    async def list_by_thread(
        self,
        thread_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        query = queries.of_thread(thread_id)
        queries.owned(query, user_id, "FeedbackStore.list_by_thread")
        return await self._rows(query, limit, order)

    async def list_by_thread_grouped(self, thread_id: str, *, user_id: UserId) -> dict[str, FeedbackRow]:
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_thread_grouped")
        query = queries.of_user_in_thread(thread_id, user)
        newest = await self._collection.aggregate(
            [
                {"$match": query},
                # In the order of the index `user_run_newest`, which then gives one entry a run.
                {"$sort": {"thread_id": 1, "user_id": 1, "run_id": 1, **dict(NEWEST_FIRST)}},
                {"$group": {"_id": "$run_id", "newest": {"$first": "$$ROOT"}}},
            ],
            batch_size=_GROUPED_BATCH,
        )
        return {group["_id"]: codec.feedback_row(group["newest"]) for group in newest}

    async def aggregate_by_run(self, thread_id: str, run_id: str) -> FeedbackTotals:
        query = queries.of_run(thread_id, run_id)
        counts = await self._collection.aggregate(
            [{"$match": query}, {"$group": {"_id": "$rating", "count": {"$sum": 1}}}]
        )
        by_rating: dict[Any, int] = {group["_id"]: group["count"] for group in counts}
        positive, negative = +by_rating.get(1, 0), +by_rating.get(-1, 0)
        return {
            "run_id": query["run_id"],
            "total": positive + negative,
            "positive": positive,
            "negative": negative,
        }

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: UserId) -> bool:
        user = arguments.acting_user(user_id, "FeedbackStore.delete_by_run")
        query = queries.vote_of(thread_id, run_id, user)
        return await self._collection.find_one_and_delete(query, sort=_VOTE_FIRST) is not None

    async def _rows(self, query: Document, limit: int, order: CreationOrder) -> list[FeedbackRow]:
        sort = _ORDERS[arguments.one_of("order", order, _ORDERS)]
        rows = arguments.row_limit("limit", limit)
        if rows == 0:
            return []
        documents = await self._collection.find(query, sort=sort, limit=rows)
        return [codec.feedback_row(document) for document in documents]


_GROUPED_BATCH = 100_000
"""Runs of a thread in one answer of the server, unless they exceed 16 MiB."""
