"""Feedback documents: one per row. The one that is its user's vote on a run has the field `vote`.

A partial unique index covers that field. A row gets it when `FeedbackStore.upsert` first finds it; a row on a
message never does.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ...contract.arguments import RATINGS
from ...contract.rows import FeedbackRow, FeedbackTotals
from .encoding import WHOLE, Document, UnreadableError, decode_text
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
    feedback_id: str | None = None,
    created_stamp_us: int | None = None,
    is_vote: bool = False,
) -> Document:
    """Feedback with a new id, created at the clock's stamp, where no others are given."""
    created = created_fields(stamp_us)
    if created_stamp_us is not None:
        created = created_fields(created_stamp_us, stamp_us)
    return {
        "_id": feedback_id or str(uuid.uuid4()),
        "schema_version": READABLE_FROM,
        "thread_id": thread_id,
        "run_id": run_id,
        "user_id": user_id,
        "message_id": message_id,
        **_content(rating, comment, created),
        **({VOTE: True} if is_vote else {}),
    }


def vote_update(rating: int, comment: Any, stamp_us: int) -> Document:
    """The upsert that makes the document it finds, or a new one, the vote; the filter names the rest."""
    return {
        "$set": {VOTE: True, **_content(rating, comment, created_fields(stamp_us))},
        "$setOnInsert": {"_id": str(uuid.uuid4()), "schema_version": READABLE_FROM},
    }


def _content(rating: int, comment: Any, created: Document) -> Document:
    return {"rating": rating, "comment": comment, **created}


def feedback_row(document: Document) -> FeedbackRow:
    if document["schema_version"] is not SCHEMA_VERSION:
        document = as_current(document)
    feedback_id, run_id, thread_id = document["_id"], document["run_id"], document["thread_id"]
    user_id, message_id, rating = document["user_id"], document["message_id"], document["rating"]
    order = document[ORDER]
    if (
        not (type(feedback_id) is type(run_id) is type(thread_id) is str)
        or (user_id is not None and type(user_id) is not str)
        or (message_id is not None and type(message_id) is not str)
        or type(rating) not in WHOLE
        or rating not in RATINGS
        or type(order) not in WHOLE
        or type(document["created_at"]) is not datetime
    ):
        raise UnreadableError
    return {
        "feedback_id": feedback_id,
        "run_id": run_id,
        "thread_id": thread_id,
        "user_id": user_id,
        "owner_id": user_id,
        "message_id": message_id,
        "rating": +rating,
        "comment": decode_text(document["comment"]),
        "created_at": row_time_of_stamp(order),
    }


# -- by run and by rating --------------------------------------------------------------------------


def newest_by_run_pipeline(query: Document, order: Iterable[tuple[str, int]]) -> list[Document]:
    """The newest document of each run; `order` is that of an index, which then gives one entry a run."""
    return [
        {"$match": query},
        {"$sort": dict(order)},
        {"$group": {"_id": "$run_id", "newest": {"$first": "$$ROOT"}}},
    ]


def totals_pipeline(query: Document) -> list[Document]:
    return [{"$match": query}, {"$group": {"_id": "$rating", "count": {"$sum": 1}}}]


def feedback_totals(run_id: str, groups: Iterable[Document]) -> FeedbackTotals:
    """The result of `totals_pipeline` for one run; what is no rating is not counted."""
    totals: dict[int, int] = dict.fromkeys(RATINGS, 0)
    for group in groups:
        rating = group["_id"]
        if isinstance(rating, int | float) and not isinstance(rating, bool) and rating in totals:
            totals[int(rating)] += +group["count"]
    positive, negative = totals[1], totals[-1]
    return {"run_id": run_id, "total": positive + negative, "positive": positive, "negative": negative}
