"""Feedback. Reimplements `FeedbackStoreAdapter` and the feedback repository below it.

Queries filter by run or thread only; all other filters and limits are applied in Python to the returned rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import TypedDict, TypeGuard, Unpack

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from deerflow_mongo import FeedbackRow, FeedbackTotals
from deerflow_mongo.contract.actor import UserId
from deerflow_mongo.contract.rows import CreationOrder

from .engine import Sessions
from .tables import Feedback


class _ListOptions(TypedDict, total=False):
    limit: int
    user_id: UserId
    order: CreationOrder


def _row(feedback: Feedback) -> FeedbackRow:
    return {
        "feedback_id": feedback.feedback_id,
        "run_id": feedback.run_id,
        "thread_id": feedback.thread_id,
        "user_id": feedback.user_id,
        "owner_id": feedback.user_id,
        "message_id": feedback.message_id,
        "rating": feedback.rating,
        "comment": feedback.comment,
        "created_at": feedback.created_time.isoformat(),
    }


def _check_rating(rating: int) -> None:
    if rating not in (1, -1):
        raise ValueError(f"rating must be 1 or -1, got {rating}")


async def _all(
    session: AsyncSession, condition: ColumnElement[bool], order: CreationOrder = "newest_first"
) -> Sequence[Feedback]:
    age = Feedback.created_time.asc() if order == "oldest_first" else Feedback.created_time.desc()
    query = select(Feedback).where(condition).order_by(age)
    return (await session.execute(query)).scalars().all()


async def _vote(session: AsyncSession, thread_id: str, run_id: str, user_id: UserId) -> Feedback | None:
    """The user's newest row on the run, with or without a message."""
    rows = await _all(session, Feedback.run_id == run_id)
    return next((row for row in rows if row.thread_id == thread_id and row.user_id == user_id), None)


async def _find(session: AsyncSession, feedback_id: str) -> Feedback | None:
    query = select(Feedback).where(Feedback.feedback_id == feedback_id)
    return (await session.execute(query)).scalar_one_or_none()


def _is_visible(feedback: Feedback | None, user_id: UserId) -> TypeGuard[Feedback]:
    return feedback is not None and user_id in (None, feedback.user_id)


async def _insert(session: AsyncSession, feedback: Feedback) -> FeedbackRow:
    session.add(feedback)
    await session.flush()
    await session.refresh(feedback)
    return _row(feedback)


async def _delete(session: AsyncSession, feedback_id: str, user_id: UserId = None) -> bool:
    if not _is_visible(await _find(session, feedback_id), user_id):
        return False
    await session.execute(delete(Feedback).where(Feedback.feedback_id == feedback_id))
    return True


class SqlFeedbackStore:
    """`FeedbackStore`, like the adapter."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

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
        _check_rating(rating)
        feedback = Feedback(
            feedback_id=str(uuid.uuid4()),
            run_id=run_id,
            thread_id=thread_id,
            rating=rating,
            user_id=user_id if user_id is not None else owner_id,
            message_id=message_id,
            comment=comment,
        )
        async with self._sessions.writing() as session:
            return await _insert(session, feedback)

    async def upsert(
        self, *, run_id: str, thread_id: str, rating: int, user_id: UserId, comment: str | None = None
    ) -> FeedbackRow:
        _check_rating(rating)
        async with self._sessions.writing() as session:
            existing = await _vote(session, thread_id, run_id, user_id)
            feedback_id = str(uuid.uuid4()) if existing is None else existing.feedback_id
            if existing is not None:
                await _delete(session, feedback_id)
            feedback = Feedback(
                feedback_id=feedback_id,
                run_id=run_id,
                thread_id=thread_id,
                rating=rating,
                user_id=user_id,
                comment=comment,
            )
            return await _insert(session, feedback)

    async def get(self, feedback_id: str, *, user_id: UserId = None) -> FeedbackRow | None:
        async with self._sessions.reading() as session:
            feedback = await _find(session, feedback_id)
        return _row(feedback) if _is_visible(feedback, user_id) else None

    async def delete(self, feedback_id: str, *, user_id: UserId = None) -> bool:
        async with self._sessions.writing() as session:
            return await _delete(session, feedback_id, user_id)

    async def list_by_run(
        self, thread_id: str, run_id: str, **options: Unpack[_ListOptions]
    ) -> list[FeedbackRow]:
        return await self._list(Feedback.run_id == run_id, thread_id, options)

    async def list_by_thread(self, thread_id: str, **options: Unpack[_ListOptions]) -> list[FeedbackRow]:
        return await self._list(Feedback.thread_id == thread_id, thread_id, options)

    async def _list(
        self, condition: ColumnElement[bool], thread_id: str, options: _ListOptions
    ) -> list[FeedbackRow]:
        async with self._sessions.reading() as session:
            rows = await _all(session, condition, options.get("order", "newest_first"))
        rows = [
            row for row in rows if row.thread_id == thread_id and _is_visible(row, options.get("user_id"))
        ]
        return [_row(row) for row in rows][: options.get("limit", 100)]

    async def list_by_thread_grouped(self, thread_id: str, *, user_id: UserId) -> dict[str, FeedbackRow]:
        rows = await self.list_by_thread(thread_id)
        return {row["run_id"]: row for row in rows if row["user_id"] == user_id}

    async def list_by_run_ids(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId
    ) -> dict[str, FeedbackRow]:
        wanted = set(run_ids)
        if not wanted:
            return {}
        async with self._sessions.reading() as session:
            rows = await _all(session, Feedback.run_id.in_(wanted), "oldest_first")
        own = (row for row in rows if row.thread_id == thread_id and row.user_id == user_id)
        return {row.run_id: _row(row) for row in own}

    async def aggregate_by_run(self, thread_id: str, run_id: str) -> FeedbackTotals:
        ratings = [row["rating"] for row in await self.list_by_run(thread_id, run_id)]
        return {
            "run_id": run_id,
            "total": len(ratings),
            "positive": ratings.count(1),
            "negative": ratings.count(-1),
        }

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: UserId) -> bool:
        async with self._sessions.writing() as session:
            existing = await _vote(session, thread_id, run_id, user_id)
            return existing is not None and await _delete(session, existing.feedback_id)
