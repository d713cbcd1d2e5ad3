"""Feedback documents: one per row. The one that is its user's vote on a run has the field `vote`.

A partial unique index covers that field. A row gets it when `FeedbackStore.upsert` first finds it; a row on a
message never does.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from ...contract.rows import FeedbackRow, FeedbackTotals
from .encoding import Document, decode_text
from .stored_times import ORDER, created_fields, row_time_of_stamp
from .version_1 import as_current
from .versions import READABLE_FROM, SCHEMA_VERSION

VOTE = "vote"
"""Present and true on the one feedback document that is a user's vote on a run."""


def new_feedback(
    *,
    thread_id: str,
    run_id: str,
    user_id: str | None,
    message_id: str | None,
    rating: int,
    comment: Any,
    stamp_us: int,
) -> Document:
    """Feedback that is not a vote, created at the clock's stamp."""
    return {
        "_id": str(uuid.uuid4()),
        "schema_version": READABLE_FROM,
        "thread_id": thread_id,
        "run_id": run_id,
        "user_id": user_id,
        "message_id": message_id,
        **_content(rating, comment, stamp_us),
    }


def vote_update(rating: int, comment: Any, stamp_us: int) -> Document:
    """The upsert that makes the document it finds, or a new one, the vote; the filter names the rest."""
    return {
        "$set": {VOTE: True, **_content(rating, comment, stamp_us)},
        "$setOnInsert": {"_id": str(uuid.uuid4()), "schema_version": READABLE_FROM},
    }


def _content(rating: int, comment: Any, stamp_us: int) -> Document:
    return {"rating": rating, "comment": comment, **created_fields(stamp_us)}


def feedback_row(document: Document) -> FeedbackRow:
    if document["schema_version"] != SCHEMA_VERSION:
        document = as_current(document)
    user_id = document["user_id"]
    return {
        "feedback_id": document["_id"],
        "run_id": document["run_id"],
        "thread_id": document["thread_id"],
        "user_id": user_id,
        "owner_id": user_id,
        "message_id": document["message_id"],
        "rating": +document["rating"],
        "comment": decode_text(document["comment"]),
        "created_at": row_time_of_stamp(document[ORDER]),
    }


# -- by run and by rating --------------------------------------------------------------------------


def newest_by_run_pipeline(query: Document, order: Iterable[tuple[str, int]]) -> list[Document]:
    """The newest document of each run; `order` is that of an index, which then gives one entry a run."""
    return [
        {"$match": query},
        {"$sort": dict(order)},
        {"$group": {"_id": "$run_id", "newest": {"$first": "$$ROOT"}}},
    ]


def newest_by_run(groups: Iterable[Document]) -> dict[str, FeedbackRow]:
    """The result of `newest_by_run_pipeline`."""
    return {group["_id"]: feedback_row(group["newest"]) for group in groups}


def totals_pipeline(query: Document) -> list[Document]:
    return [{"$match": query}, {"$group": {"_id": "$rating", "count": {"$sum": 1}}}]


def feedback_totals(run_id: str, groups: Iterable[Document]) -> FeedbackTotals:
    """The result of `totals_pipeline` for one run."""
    by_rating: dict[Any, int] = {group["_id"]: group["count"] for group in groups}
    positive, negative = +by_rating.get(1, 0), +by_rating.get(-1, 0)
    return {"run_id": run_id, "total": positive + negative, "positive": positive, "negative": negative}
