"""Votes and comments: one document per row; a unique index allows one vote of a user on a run."""

from __future__ import annotations

from collections.abc import Iterable

from ...contract import arguments
from ...contract.actor import UserId
from ...contract.errors import StorageError
from ...contract.protocols import FeedbackStore
from ...contract.rows import CreationOrder, FeedbackRow, FeedbackTotals
from ...contract.times import clock
from .. import queries
from ..documents.encoding import encode_text
from ..documents.feedback import (
    VOTE,
    feedback_row,
    feedback_totals,
    new_feedback,
    newest_by_run_pipeline,
    totals_pipeline,
    vote_update,
)
from ..documents.runs import EXPECTED_RUNS
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..queries import Query
from ..row_collection import RowCollection
from ..schema import FEEDBACK, FEEDBACK_BY_USER, NEWEST_FIRST, OLDEST_FIRST, VOTE_FIRST, Keys

_ORDERS: dict[str, Keys] = {"newest_first": NEWEST_FIRST, "oldest_first": OLDEST_FIRST}

_UPSERT_ATTEMPTS = 5
"""Two are enough after a lost race against another first vote (MongoDB's upsert with a partial index)."""


class MongoFeedbackStore(FeedbackStore):
    """`FeedbackStore` on MongoDB."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._rows = RowCollection(collection, FEEDBACK, feedback_row)

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
        document = new_feedback(
            thread_id=arguments.identifier("thread_id", thread_id),
            run_id=arguments.identifier("run_id", run_id),
            user_id=arguments.acting_user(user, "FeedbackStore.create"),
            message_id=arguments.optional_text("message_id", message_id),
            rating=arguments.rating(rating),
            comment=encode_text("comment", comment),
            stamp_us=clock.stamp_us(),
        )
        await self._collection.insert_one(document)
        return self._rows.row(document)

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
        update = vote_update(arguments.rating(rating), encode_text("comment", comment), clock.stamp_us())
        cause: BaseException | None = None
        for _ in range(_UPSERT_ATTEMPTS):
            try:
                return await self._rows.find_one_and_upsert(query, update, sort=VOTE_FIRST)
            except DuplicateKeyError as error:
                await self._rows.check_not_newer({**query, VOTE: True})
                cause = error.__cause__  # another first vote of this user was stored meanwhile: replace it
        raise StorageError(
            f"the vote on run {run_id!r} lost the race against another vote of the same user "
            f"{_UPSERT_ATTEMPTS} times; try again"
        ) from cause

    async def get(self, feedback_id: str, *, user_id: UserId = None) -> FeedbackRow | None:
        query = queries.feedback_by_id(feedback_id)
        queries.owned(query, user_id, "FeedbackStore.get")
        return await self._rows.find_one(query)

    async def delete(self, feedback_id: str, *, user_id: UserId = None) -> bool:
        query = queries.feedback_by_id(feedback_id)
        queries.owned(query, user_id, "FeedbackStore.delete")
        return await self._rows.delete_one(query)

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
        return await self._list(query, limit, order)

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
        return await self._list(query, limit, order)

    async def list_by_thread_grouped(self, thread_id: str, *, user_id: UserId) -> dict[str, FeedbackRow]:
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_thread_grouped")
        return await self._newest_by_run(queries.of_user_in_thread(thread_id, user))

    async def _newest_by_run(self, query: Query) -> dict[str, FeedbackRow]:
        pipeline = newest_by_run_pipeline(query, FEEDBACK_BY_USER.keys)
        groups = await self._collection.aggregate_few(pipeline, rows=EXPECTED_RUNS)
        rows = self._rows.rows(group["newest"] for group in groups)
        if len(rows) < len(groups):  # a run's newest row cannot be read: an older one may be
            rows = await self._rows.find(query, sort=OLDEST_FIRST, limit=arguments.MAX_LIMIT)
        return {row["run_id"]: row for row in rows}

    async def list_by_run_ids(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId
    ) -> dict[str, FeedbackRow]:
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_run_ids")
        query = queries.of_user_in_thread(thread_id, user)
        wanted = arguments.identifiers("run_ids", run_ids)
        return await self._newest_by_run(queries.of_runs(query, wanted)) if wanted else {}

    async def aggregate_by_run(self, thread_id: str, run_id: str) -> FeedbackTotals:
        query = queries.of_run(thread_id, run_id)
        groups = await self._collection.aggregate_few(totals_pipeline(query))
        return feedback_totals(arguments.identifier("run_id", run_id), groups)

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: UserId) -> bool:
        user = arguments.acting_user(user_id, "FeedbackStore.delete_by_run")
        query = queries.vote_of(thread_id, run_id, user)
        return await self._rows.find_one_and_delete(query, sort=VOTE_FIRST)

    async def _list(self, query: Query, limit: int, order: CreationOrder) -> list[FeedbackRow]:
        sort = _ORDERS[arguments.one_of("order", order, _ORDERS)]
        rows = arguments.row_limit("limit", limit)
        if rows == 0:
            return []
        return await self._rows.find(query, sort=sort, limit=rows)
