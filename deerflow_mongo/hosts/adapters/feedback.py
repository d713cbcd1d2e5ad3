"""DeerFlow's `FeedbackRepository` over our feedback.

DeerFlow has no interface for it, only a class whose constructor needs SQL: the adapter has its methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...contract.actor import bound_user_id
from ...contract.arguments import MAX_LIMIT, is_valid_id
from ...contract.protocols import FeedbackStore
from ...contract.rows import FeedbackRow
from ..encodable import encodable
from .actors import AUTO, acting_user


def _row(row: FeedbackRow) -> dict[str, Any]:
    return encodable({name: value for name, value in row.items() if name != "owner_id"})


class FeedbackRepositoryAdapter:
    """Votes and comments with DeerFlow's names and rows, lists oldest first."""

    def __init__(self, feedback: FeedbackStore) -> None:
        self._feedback = feedback

    async def create(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        user_id: Any = AUTO,
        message_id: str | None = None,
        comment: str | None = None,
    ) -> dict[str, Any]:
        """Store one more row. Raises `ValueError` for a rating other than 1 and -1.

        DeerFlow's SQL has one row per thread, run and user, and answers a second one with an error 500. Here
        it is stored as well, one per message, say; `upsert` is the one vote on the run.
        """
        row = await self._feedback.create(
            run_id=run_id,
            thread_id=thread_id,
            rating=rating,
            user_id=acting_user(user_id, "FeedbackRepository.create"),
            message_id=message_id,
            comment=comment,
        )
        return _row(row)

    async def get(self, feedback_id: str, *, user_id: Any = AUTO) -> dict[str, Any] | None:
        user = acting_user(user_id, "FeedbackRepository.get")
        if not is_valid_id(feedback_id):
            return None
        row = await self._feedback.get(feedback_id, user_id=user)
        return None if row is None else _row(row)

    async def list_by_run(
        self, thread_id: str, run_id: str, *, limit: int = 100, user_id: Any = AUTO
    ) -> list[dict[str, Any]]:
        user = acting_user(user_id, "FeedbackRepository.list_by_run")
        if not is_valid_id(thread_id, run_id):
            return []
        rows = await self._feedback.list_by_run(
            thread_id, run_id, limit=limit, user_id=user, order="oldest_first"
        )
        return [_row(row) for row in rows]

    async def list_by_thread(
        self, thread_id: str, *, limit: int = 100, user_id: Any = AUTO
    ) -> list[dict[str, Any]]:
        user = acting_user(user_id, "FeedbackRepository.list_by_thread")
        if not is_valid_id(thread_id):
            return []
        rows = await self._feedback.list_by_thread(thread_id, limit=limit, user_id=user, order="oldest_first")
        return [_row(row) for row in rows]

    async def delete(self, feedback_id: str, *, user_id: Any = AUTO) -> bool:
        user = acting_user(user_id, "FeedbackRepository.delete")
        return is_valid_id(feedback_id) and await self._feedback.delete(feedback_id, user_id=user)

    async def upsert(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        user_id: Any = AUTO,
        comment: str | None = None,
    ) -> dict[str, Any]:
        """Create or replace the user's one vote on the run; concurrent calls leave one vote."""
        row = await self._feedback.upsert(
            run_id=run_id,
            thread_id=thread_id,
            rating=rating,
            user_id=acting_user(user_id, "FeedbackRepository.upsert"),
            comment=comment,
        )
        return _row(row)

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: Any = AUTO) -> bool:
        """Delete the user's vote on the run, else their newest row on a message of it; False without any."""
        user = acting_user(user_id, "FeedbackRepository.delete_by_run")
        if not is_valid_id(thread_id, run_id):
            return False
        if await self._feedback.delete_by_run(thread_id=thread_id, run_id=run_id, user_id=user):
            return True
        rows = await self._feedback.list_by_run(
            thread_id, run_id, limit=MAX_LIMIT if user is None else 1, user_id=user
        )
        newest = next((row["feedback_id"] for row in rows if row["user_id"] == user), None)
        return newest is not None and await self._feedback.delete(newest, user_id=user)

    async def list_by_thread_grouped(
        self, thread_id: str, *, user_id: Any = AUTO
    ) -> dict[str, dict[str, Any]]:
        """The user's newest row for each run of the thread; with None, the newest of all users."""
        user = acting_user(user_id, "FeedbackRepository.list_by_thread_grouped")
        if not is_valid_id(thread_id):
            return {}
        if user is None:
            rows = await self._feedback.list_by_thread(
                thread_id, limit=MAX_LIMIT, user_id=None, order="oldest_first"
            )
            return {row["run_id"]: _row(row) for row in rows}
        grouped = await self._feedback.list_by_thread_grouped(thread_id, user_id=user)
        return {run_id: _row(row) for run_id, row in grouped.items()}

    async def list_by_run_ids(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: Any = AUTO
    ) -> dict[str, dict[str, Any]]:
        """The user's newest row for each of these runs; with None, the newest of all users."""
        wanted = {run_id for run_id in run_ids if is_valid_id(run_id)}
        if not wanted:
            return {}
        user = acting_user(user_id, "FeedbackRepository.list_by_run_ids")
        if not is_valid_id(thread_id):
            return {}
        if user is None:
            newest = await self.list_by_thread_grouped(thread_id, user_id=None)
            return {run_id: row for run_id, row in newest.items() if run_id in wanted}
        rows = await self._feedback.list_by_run_ids(thread_id, wanted, user_id=user)
        return {run_id: _row(row) for run_id, row in rows.items()}

    async def aggregate_by_run(self, thread_id: str, run_id: str) -> dict[str, Any]:
        """The counts of all users' rows. Raises `ActorMissingError` for an actor without an id."""
        bound_user_id("FeedbackRepository.aggregate_by_run")
        if not is_valid_id(thread_id, run_id):
            return {"run_id": run_id, "total": 0, "positive": 0, "negative": 0}
        return {**await self._feedback.aggregate_by_run(thread_id, run_id)}
