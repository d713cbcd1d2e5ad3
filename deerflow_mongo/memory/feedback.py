"""Votes and comments. Which row is the user's vote on a run is stored beside the rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from ..contract import arguments
from ..contract.actor import UserId
from ..contract.protocols import FeedbackStore
from ..contract.rows import CreationOrder, FeedbackRow, FeedbackTotals
from .data import MemoryStore, is_visible, newest_first, now, oldest_first, visible_of_thread

_ORDERS = {"newest_first": newest_first, "oldest_first": oldest_first}


class MemoryFeedbackStore(MemoryStore, FeedbackStore):
    """`FeedbackStore` in memory."""

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
        user = arguments.acting_user(owner if user_id is None else user_id, "FeedbackStore.create")
        return self._store(_new_row(thread_id, run_id, user, rating, comment, message_id))

    async def upsert(
        self, *, run_id: str, thread_id: str, rating: int, user_id: UserId, comment: str | None = None
    ) -> FeedbackRow:
        user = arguments.acting_user(user_id, "FeedbackStore.upsert")
        row = _new_row(thread_id, run_id, user, rating, comment, message_id=None)
        replaced = self._vote(thread_id, run_id, user)
        if replaced is not None:
            row["feedback_id"] = replaced["feedback_id"]
        self._data.votes.add(row["feedback_id"])
        return self._store(row)

    async def get(self, feedback_id: str, *, user_id: UserId = None) -> FeedbackRow | None:
        row = self._find(feedback_id, arguments.acting_user(user_id, "FeedbackStore.get"))
        return None if row is None else row.copy()

    async def delete(self, feedback_id: str, *, user_id: UserId = None) -> bool:
        return self._delete(self._find(feedback_id, arguments.acting_user(user_id, "FeedbackStore.delete")))

    async def list_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_run")
        run_id = arguments.identifier("run_id", run_id)
        return _first(visible_of_thread(self._data.feedback, thread_id, user, run_id), limit, order)

    async def list_by_thread(
        self,
        thread_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_thread")
        return _first(visible_of_thread(self._data.feedback, thread_id, user), limit, order)

    async def list_by_thread_grouped(self, thread_id: str, *, user_id: UserId) -> dict[str, FeedbackRow]:
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_thread_grouped")
        of_thread = oldest_first(visible_of_thread(self._data.feedback, thread_id, None))
        return {row["run_id"]: row.copy() for row in of_thread if row["user_id"] == user}

    async def list_by_run_ids(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId
    ) -> dict[str, FeedbackRow]:
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_run_ids")
        wanted = arguments.identifiers("run_ids", run_ids)
        newest = await self.list_by_thread_grouped(thread_id, user_id=user)
        return {run_id: row for run_id, row in newest.items() if run_id in wanted}

    async def aggregate_by_run(self, thread_id: str, run_id: str) -> FeedbackTotals:
        run_id = arguments.identifier("run_id", run_id)
        of_run = visible_of_thread(self._data.feedback, thread_id, None, run_id)
        ratings = [row["rating"] for row in of_run]
        positive, negative = ratings.count(1), ratings.count(-1)
        return {"run_id": run_id, "total": len(ratings), "positive": positive, "negative": negative}

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: UserId) -> bool:
        user = arguments.acting_user(user_id, "FeedbackStore.delete_by_run")
        return self._delete(self._vote(thread_id, run_id, user))

    def _store(self, row: FeedbackRow) -> FeedbackRow:
        """Store the row and return a copy."""
        self._data.feedback[row["feedback_id"]] = row
        return row.copy()

    def _find(self, feedback_id: str, user: str | None) -> FeedbackRow | None:
        """The stored row itself, if it exists for this user."""
        row = self._data.feedback.get(arguments.identifier("feedback_id", feedback_id))
        return row if row is not None and is_visible(row["user_id"], user) else None

    def _vote(self, thread_id: str, run_id: str, user: str | None) -> FeedbackRow | None:
        """The user's vote on the run, else the newest row that can become it: one not on a message.

        None is the anonymous user.
        """
        run_id = arguments.identifier("run_id", run_id)
        candidates = [
            row
            for row in visible_of_thread(self._data.feedback, thread_id, None, run_id)
            if row["user_id"] == user and row["message_id"] is None
        ]
        votes = [row for row in candidates if row["feedback_id"] in self._data.votes]
        return next(iter(votes or newest_first(candidates)), None)

    def _delete(self, row: FeedbackRow | None) -> bool:
        if row is None:
            return False
        del self._data.feedback[row["feedback_id"]]
        self._data.votes.discard(row["feedback_id"])
        return True


def _new_row(
    thread_id: str, run_id: str, user: str | None, rating: int, comment: str | None, message_id: str | None
) -> FeedbackRow:
    return {
        "feedback_id": str(uuid.uuid4()),
        "run_id": arguments.identifier("run_id", run_id),
        "thread_id": arguments.identifier("thread_id", thread_id),
        "user_id": user,
        "owner_id": user,
        "message_id": arguments.optional_text("message_id", message_id),
        "rating": arguments.rating(rating),
        "comment": arguments.long_text("comment", comment),
        "created_at": now().isoformat(),
    }


def _first(found: Iterable[FeedbackRow], limit: int, order: CreationOrder) -> list[FeedbackRow]:
    """Copies of the first `limit` rows in this order."""
    in_order = _ORDERS[arguments.one_of("order", order, _ORDERS)]
    count = arguments.row_limit("limit", limit)
    return [row.copy() for row in in_order(found)[:count]]
