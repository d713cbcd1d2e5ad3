"""The filters of lists and reports over all threads; a caller's values are checked first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ...contract.arguments import identifier, names
from ..documents.stored_times import ORDER
from ..queries import NO_RESERVATION, Query, active_until, changeable, runs_of_thread
from ..schema import IS_CHECKPOINT

# -- lists and reports over all threads -------------------------------------------------------------

_HIGHEST_CHARACTER = "\U0010ffff"


def beginning_with(name: str, prefix: str, *, after: str | None = None) -> Query:
    """Documents in which the text of this name begins with `prefix`, behind `after`: a range of an index.

    Of the documents of checkpoints, only those that are checkpoints.
    """
    start: Query = {"$gte": prefix} if after is None else {"$gt": after}
    only = IS_CHECKPOINT if name == "_id.thread" else {}
    return {name: {**start, "$lt": prefix + _HIGHEST_CHARACTER}, **only}


def threads_listed(*, user_id: object, statuses: object, since_us: int | None) -> Query:
    """Threads that match everything given; None matches any. They were created at the stamp or later."""
    return _listed({}, user_id, statuses, {} if since_us is None else {ORDER: {"$gte": since_us}})


def runs_listed(
    *, thread_id: object, user_id: object, statuses: object, since: datetime | None = None
) -> Query:
    """Runs, and no reservations, that match everything given; None matches any."""
    query = dict(NO_RESERVATION) if thread_id is None else runs_of_thread(thread_id)
    return _listed(query, user_id, statuses, {} if since is None else {"created_at": {"$gte": since}})


def _listed(query: Query, user_id: object, statuses: object, bounds: Query) -> Query:
    if user_id is not None:
        query["user_id"] = identifier("user_id", user_id)
    wanted = names("statuses", statuses)
    if wanted:
        query["status"] = wanted[0] if len(wanted) == 1 else {"$in": wanted}
    return {**query, **bounds}


# -- reports ---------------------------------------------------------------------------------------

_TEXT_OR_NULL = ("string", "null")
_REPORTED_TYPES: dict[str, Sequence[str]] = {
    "created_at": ("date",),
    "status": ("string",),
    "thread_id": ("string",),
    "user_id": _TEXT_OR_NULL,
    "model_name": _TEXT_OR_NULL,
}


def _of_reported_types() -> Query:
    """Runs that a report can show. By an expression, since a filter by `$type` invites other indexes."""
    return {
        "$expr": {
            "$and": [{"$in": [{"$type": f"${name}"}, types]} for name, types in _REPORTED_TYPES.items()]
        }
    }


def runs_of_period(since: datetime, until: datetime) -> Query:
    """Runs created in a period, and no reservations; without broken ones, and those of a newer release."""
    query = {"created_at": {"$gte": since, "$lt": until}, **NO_RESERVATION, **_of_reported_types()}
    return changeable(query)


def active_runs(stamp_us: int) -> Query:
    """As `active_until`, without broken documents, and those of a newer release."""
    return changeable({**active_until(stamp_us), **_of_reported_types()})


def events_of_threads(thread_ids: Sequence[str]) -> Query:
    """The events of these threads, counted from an index alone."""
    return {"thread_id": {"$in": list(thread_ids)}, "run_id": {"$gt": ""}}


def runs_of_threads(thread_ids: Sequence[str]) -> Query:
    """The runs of these threads, and no reservations."""
    return {"thread_id": {"$in": list(thread_ids)}, **NO_RESERVATION}
