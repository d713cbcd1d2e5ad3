"""Votes and comments. Which row is the user's vote on a run is stored beside the rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from ..contract import arguments
from ..contract.actor import UserId
from ..contract.protocols import FeedbackStore
from ..contract.rows import CreationOrder, FeedbackRow, FeedbackTotals
from .data import Memory, is_visible, newest_first, now, oldest_first

_ORDERS = {"newest_first": newest_first, "oldest_first": oldest_first}
_VoteKey = tuple[str, str, str | None]
"""A thread, a run in it, and the user whose vote it is; None is the anonymous user."""


def _created_at(row: FeedbackRow) -> str:
    return row["created_at"]


class MemoryFeedbackStore(FeedbackStore):
    """`FeedbackStore` in memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

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
        row = self._new_row(
            arguments.identifier("thread_id", thread_id),
            arguments.identifier("run_id", run_id),
            user,
            message_id=arguments.optional_text("message_id", message_id),
            rating=arguments.rating(rating),
            comment=arguments.long_text("comment", comment),
        )
        return row.copy()

    async def upsert(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        user_id: UserId,
        comment: str | None = None,
    ) -> FeedbackRow:
        key = _vote_key(thread_id, run_id, arguments.acting_user(user_id, "FeedbackStore.upsert"))
        rating = arguments.rating(rating)
        text = arguments.long_text("comment", comment)
        vote = self._vote(key)
        if vote is None:
            vote = self._new_row(*key, message_id=None, rating=rating, comment=text)
        else:
            vote["rating"], vote["comment"], vote["created_at"] = rating, text, now().isoformat()
        self._memory.data.votes.add(vote["feedback_id"])
        return vote.copy()

    async def get(self, feedback_id: str, *, user_id: UserId = None) -> FeedbackRow | None:
        row = self._find(feedback_id, arguments.acting_user(user_id, "FeedbackStore.get"))
        return None if row is None else row.copy()

    async def delete(self, feedback_id: str, *, user_id: UserId = None) -> bool:
        row = self._find(feedback_id, arguments.acting_user(user_id, "FeedbackStore.delete"))
        return row is not None and self._remove(row)

    async def list_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        thread_id = arguments.identifier("thread_id", thread_id)
        run_id = arguments.identifier("run_id", run_id)
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_run")
        return self._listed(
            lambda row: (
                row["thread_id"] == thread_id and row["run_id"] == run_id and is_visible(row["user_id"], user)
            ),
            limit,
            order,
        )

    async def list_by_thread(
        self,
        thread_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        thread_id = arguments.identifier("thread_id", thread_id)
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_thread")
        return self._listed(
            lambda row: row["thread_id"] == thread_id and is_visible(row["user_id"], user), limit, order
        )

    async def list_by_thread_grouped(self, thread_id: str, *, user_id: UserId) -> dict[str, FeedbackRow]:
        thread_id = arguments.identifier("thread_id", thread_id)
        user = arguments.acting_user(user_id, "FeedbackStore.list_by_thread_grouped")
        own = [
            row
            for row in self._memory.data.feedback.values()
            if row["thread_id"] == thread_id and row["user_id"] == user
        ]
        return {row["run_id"]: row.copy() for row in oldest_first(own, _created_at)}

    async def aggregate_by_run(self, thread_id: str, run_id: str) -> FeedbackTotals:
        thread_id = arguments.identifier("thread_id", thread_id)
        run_id = arguments.identifier("run_id", run_id)
        ratings = [
            row["rating"]
            for row in self._memory.data.feedback.values()
            if row["thread_id"] == thread_id and row["run_id"] == run_id
        ]
        positive, negative = ratings.count(1), ratings.count(-1)
        return {"run_id": run_id, "total": len(ratings), "positive": positive, "negative": negative}

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: UserId) -> bool:
        user = arguments.acting_user(user_id, "FeedbackStore.delete_by_run")
        vote = self._vote(_vote_key(thread_id, run_id, user))
        return vote is not None and self._remove(vote)

    def _new_row(
        self,
        thread_id: str,
        run_id: str,
        user: str | None,
        *,
        message_id: str | None,
        rating: int,
        comment: str | None,
    ) -> FeedbackRow:
        row: FeedbackRow = {
            "feedback_id": str(uuid.uuid4()),
            "run_id": run_id,
            "thread_id": thread_id,
            "user_id": user,
            "owner_id": user,
            "message_id": message_id,
            "rating": rating,
            "comment": comment,
            "created_at": now().isoformat(),
        }
        self._memory.data.feedback[row["feedback_id"]] = row
        return row

    def _find(self, feedback_id: str, user: str | None) -> FeedbackRow | None:
        feedback_id = arguments.identifier("feedback_id", feedback_id)
        row = self._memory.data.feedback.get(feedback_id)
        return row if row is not None and is_visible(row["user_id"], user) else None

    def _listed(
        self, matches: Callable[[FeedbackRow], bool], limit: int, order: CreationOrder
    ) -> list[FeedbackRow]:
        in_order = _ORDERS[arguments.one_of("order", order, _ORDERS)]
        rows = arguments.row_limit("limit", limit)
        found = in_order(filter(matches, self._memory.data.feedback.values()), _created_at)
        return [row.copy() for row in found[:rows]]

    def _vote(self, key: _VoteKey) -> FeedbackRow | None:
        """The user's vote on the run, else the newest row that can become it: one not on a message."""
        data = self._memory.data
        candidates = [
            row
            for row in data.feedback.values()
            if (row["thread_id"], row["run_id"], row["user_id"]) == key and row["message_id"] is None
        ]
        votes = [row for row in candidates if row["feedback_id"] in data.votes]
        return next(iter(votes or newest_first(candidates, _created_at)), None)

    def _remove(self, row: FeedbackRow) -> bool:
        del self._memory.data.feedback[row["feedback_id"]]
        self._memory.data.votes.discard(row["feedback_id"])
        return True


def _vote_key(thread_id: str, run_id: str, user: str | None) -> _VoteKey:
    return arguments.identifier("thread_id", thread_id), arguments.identifier("run_id", run_id), user
