"""Read-only views of the data for MongoDB Compass, Atlas Charts and mongosh, and the code that creates them.

A view is a stored pipeline: it takes no space, and every read computes its rows. `setup(views=True)` creates
those of `VIEWS` under the storage's prefix. One of ours is known by its name and by the comment in its first
stage; anything else of such a name is another program's and never changed. Days are in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ..contract.errors import StorageConfigError, StorageError
from ..contract.rows import ACTIVE_STATUSES
from .database_state import concurrently
from .documents.encoding import Document
from .documents.run_ownership import KIND, OWNER, lease_has_expired
from .documents.stored_times import NOW, ORDER, ORDER_TIE
from .documents.threads import IS_PINNED
from .drivers.driver import Driver
from .drivers.errors import code_of
from .foreign_collections import WAY_OUT
from .schema import FEEDBACK, RUNS, THREADS

VIEWS_VERSION: Final = 1
"""Raised when a definition changes; a newer release's view is left as it is."""

PERIOD_DAYS: Final = 90
"""How far back the views of days look, so that they read runs and votes by an index on their time."""

_MARK = "deerflow-mongo, view version"
_COLLECTION_EXISTS_CODE = 48


@dataclass(frozen=True, slots=True)
class View:
    name: str
    source: str
    """The collection, without its prefix."""
    about: str
    stages: tuple[Document, ...]
    columns: Mapping[str, str]
    """Each column with its type or unit."""
    index: str
    """The source's index by which it is read."""

    def pipeline(self, prefix: str) -> list[Document]:
        """The stages, whose first one marks the view as ours, with the names of other collections."""
        mark: Document = {"$match": {"$comment": f"{_MARK} {VIEWS_VERSION}"}}
        return [mark, *(_with_prefix(stage, prefix) for stage in self.stages)]


def _with_prefix(stage: Document, prefix: str) -> Document:
    lookup = stage.get("$lookup")
    return stage if lookup is None else {"$lookup": {**lookup, "from": prefix + lookup["from"]}}


# -- parts of pipelines ----------------------------------------------------------------------------

_FIRST_DAY: Document = {
    "$dateTrunc": {
        "date": {"$dateSubtract": {"startDate": NOW, "unit": "day", "amount": PERIOD_DAYS}},
        "unit": "day",
    }
}
_IN_PERIOD: Document = {
    # The type, because `$expr` compares values of every type: one broken date would make a view fail.
    "created_at": {"$type": "date"},
    "$expr": {"$gte": ["$created_at", _FIRST_DAY]},
}
_RUNS_ONLY: Document = {KIND: {"$in": [None, "run"]}}
_DAY: Document = {"$dateTrunc": {"date": "$created_at", "unit": "day"}}
_HAS_MODELS: Document = {"tokens.by_model": {"$type": "object"}}

# A run without counts by model counts under its own model.
_OWN_MODEL: Document = {"$ifNull": ["$model_name", "unknown"]}
_OWN_COUNTS: Document = {name: f"$tokens.{name}" for name in ("input", "output", "total", "llm_calls")}
_MODELS: Document = {
    "$cond": [
        {"$eq": ["$tokens.by_model", {}]},
        [{"v": {"model": _OWN_MODEL, **_OWN_COUNTS}}],
        {"$objectToArray": "$tokens.by_model"},
    ]
}


def _sums(path: str) -> Document:
    """The token counts below a path; `$sum` leaves out what is no number."""
    return {
        "runs": {"$sum": 1},
        "input_tokens": {"$sum": f"{path}.input"},
        "output_tokens": {"$sum": f"{path}.output"},
        "total_tokens": {"$sum": f"{path}.total"},
        "llm_calls": {"$sum": f"{path}.llm_calls"},
    }


def _columns_of_group(*keys: str, **others: Any) -> Document:
    """The stage that makes columns of the keys of a `$group`; each other column is 1 or an expression."""
    return {"$project": {"_id": 0, **{key: f"$_id.{key}" for key in keys}, **others}}


def _seconds(start: object, end: object) -> Document:
    """Between two times; null where one of them is no date."""
    both = [{"$eq": [{"$type": value}, "date"]} for value in (start, end)]
    milliseconds = {"$subtract": [end, start]}
    return {"$cond": [{"$and": both}, {"$divide": [milliseconds, 1_000]}, None]}


def _number(path: str) -> Document:
    return {"$cond": [{"$isNumber": path}, path, None]}


def _votes(rating: int) -> Document:
    return {"$sum": {"$cond": [{"$eq": ["$rating", rating]}, 1, 0]}}


_RATED: Document = {"rating": {"$in": [1, -1]}}
_COUNTS = ("runs", "input_tokens", "output_tokens", "total_tokens", "llm_calls")
_COUNT_COLUMNS: Final = {
    "runs": "number",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
    "total_tokens": "tokens",
    "llm_calls": "number",
}

# -- views -----------------------------------------------------------------------------------------

VIEWS: Final = (
    View(
        "runs_per_day",
        RUNS,
        "runs by the day of their creation and by status",
        (
            {"$match": {**_IN_PERIOD, **_RUNS_ONLY}},
            {
                "$group": {
                    "_id": {"day": _DAY, "status": "$status"},
                    "runs": {"$sum": 1},
                    "total_tokens": {"$sum": "$tokens.total"},
                    "average_ms": {"$avg": "$duration_ms"},
                }
            },
            _columns_of_group(
                "day",
                "status",
                runs=1,
                total_tokens=1,
                average_duration_s={"$divide": ["$average_ms", 1_000]},
            ),
        ),
        {
            "day": "date, UTC",
            "status": "text",
            "runs": "number",
            "total_tokens": "tokens",
            "average_duration_s": "seconds; null where no run has ended",
        },
        "by_time",
    ),
    View(
        "tokens_per_model_and_day",
        RUNS,
        "what each model was used for",
        (
            {"$match": {**_IN_PERIOD, **_RUNS_ONLY, **_HAS_MODELS}},
            {"$project": {"created_at": 1, "models": _MODELS}},
            {"$unwind": "$models"},
            {"$group": {"_id": {"day": _DAY, "model": "$models.v.model"}, **_sums("$models.v")}},
            _columns_of_group("day", "model", **dict.fromkeys(_COUNTS, 1)),
        ),
        {"day": "date, UTC", "model": "text", **_COUNT_COLUMNS},
        "by_time",
    ),
    View(
        "tokens_per_user_and_day",
        RUNS,
        "what each user has used",
        (
            {"$match": {**_IN_PERIOD, **_RUNS_ONLY}},
            {"$group": {"_id": {"day": _DAY, "user_id": "$user_id"}, **_sums("$tokens")}},
            _columns_of_group("day", "user_id", **dict.fromkeys(_COUNTS, 1)),
        ),
        {"day": "date, UTC", "user_id": "text; null for runs of nobody", **_COUNT_COLUMNS},
        "by_time",
    ),
    View(
        "votes_per_model",
        FEEDBACK,
        "votes by the day they were given and the model of the run",
        (
            {"$match": {**_IN_PERIOD, **_RATED}},
            {
                "$lookup": {
                    "from": RUNS,
                    "localField": "run_id",
                    "foreignField": "_id",
                    "pipeline": [{"$project": {"model_name": 1}}],
                    "as": "run",
                }
            },
            {
                "$group": {
                    "_id": {
                        "day": _DAY,
                        "model": {"$ifNull": [{"$first": "$run.model_name"}, "unknown"]},
                    },
                    "up": _votes(1),
                    "down": _votes(-1),
                }
            },
            _columns_of_group(
                "day",
                "model",
                up=1,
                down=1,
                up_percent={"$multiply": [100, {"$divide": ["$up", {"$add": ["$up", "$down"]}]}]},
            ),
        ),
        {
            "day": "date, UTC",
            "model": "text; unknown where the run has none, or is gone",
            "up": "votes",
            "down": "votes",
            "up_percent": "percent",
        },
        "by_time",
    ),
    View(
        "failing_runs",
        RUNS,
        "runs that ended with an error or by a timeout",
        (
            {"$match": {**_IN_PERIOD, **_RUNS_ONLY, "status": {"$in": ["error", "timeout"]}}},
            {
                "$project": {
                    "_id": 0,
                    "run_id": "$_id",
                    "thread_id": 1,
                    "user_id": 1,
                    "model_name": 1,
                    "status": 1,
                    "error_type": 1,
                    "error": 1,
                    "created_at": 1,
                    "duration_s": {"$divide": [_number("$duration_ms"), 1_000]},
                }
            },
        ),
        {
            "run_id": "text",
            "thread_id": "text",
            "user_id": "text or null",
            "model_name": "text or null",
            "status": "text",
            "error_type": "text or null",
            "error": "text or null",
            "created_at": "date, UTC",
            "duration_s": "seconds",
        },
        "by_time",
    ),
    View(
        "active_runs",
        RUNS,
        "runs that have not ended, of any age; one whose worker died has an expired lease",
        (
            {"$match": {"status": {"$in": list(ACTIVE_STATUSES)}, **_RUNS_ONLY}},
            {
                "$project": {
                    "_id": 0,
                    "run_id": "$_id",
                    "thread_id": 1,
                    "user_id": 1,
                    "model_name": 1,
                    "status": 1,
                    "created_at": 1,
                    "active_s": _seconds({"$ifNull": ["$started_at", "$created_at"]}, NOW),
                    "worker": {"$ifNull": [f"${OWNER}", None]},
                    "lease_has_expired": lease_has_expired(0),
                }
            },
        ),
        {
            "run_id": "text",
            "thread_id": "text",
            "user_id": "text or null",
            "model_name": "text or null",
            "status": "text",
            "created_at": "date, UTC",
            "active_s": "seconds since the start",
            "worker": "text or null",
            "lease_has_expired": "truth; true without a lease",
        },
        "active",
    ),
    View(
        "thread_overview",
        THREADS,
        "threads with their newest run and counts; filter by thread_id or user_id, or limit it",
        (
            {
                "$lookup": {
                    "from": RUNS,
                    "localField": "_id",
                    "foreignField": "thread_id",
                    "pipeline": [
                        {"$match": _RUNS_ONLY},
                        {"$sort": {ORDER: -1, ORDER_TIE: -1}},
                        {"$limit": 1},
                        {"$project": {"status": 1, "created_at": 1}},
                    ],
                    "as": "newest",
                }
            },
            {
                "$lookup": {
                    "from": RUNS,
                    "localField": "_id",
                    "foreignField": "thread_id",
                    "pipeline": [{"$match": _RUNS_ONLY}, {"$count": "runs"}],
                    "as": "counted",
                }
            },
            {
                "$lookup": {
                    "from": FEEDBACK,
                    "localField": "_id",
                    "foreignField": "thread_id",
                    "pipeline": [{"$group": {"_id": None, "up": _votes(1), "down": _votes(-1)}}],
                    "as": "votes",
                }
            },
            {
                "$project": {
                    "_id": 0,
                    "thread_id": "$_id",
                    "user_id": 1,
                    "display_name": 1,
                    "status": 1,
                    "is_pinned": {"$eq": [f"${IS_PINNED}", True]},
                    "created_at": 1,
                    "updated_at": 1,
                    "runs": {"$ifNull": [{"$first": "$counted.runs"}, 0]},
                    "newest_run_id": {"$ifNull": [{"$first": "$newest._id"}, None]},
                    "newest_run_status": {"$ifNull": [{"$first": "$newest.status"}, None]},
                    "newest_run_at": {"$ifNull": [{"$first": "$newest.created_at"}, None]},
                    "up": {"$ifNull": [{"$first": "$votes.up"}, 0]},
                    "down": {"$ifNull": [{"$first": "$votes.down"}, 0]},
                }
            },
        ),
        {
            "thread_id": "text",
            "user_id": "text or null",
            "display_name": "text or null",
            "status": "text",
            "is_pinned": "truth",
            "created_at": "date, UTC",
            "updated_at": "date, UTC",
            "runs": "number",
            "newest_run_id": "text; null without a run",
            "newest_run_status": "text; null without a run",
            "newest_run_at": "date, UTC; null without a run",
            "up": "votes",
            "down": "votes",
        },
        "by_user",
    ),
)


# -- creating them ---------------------------------------------------------------------------------


async def set_up_views(driver: Driver, prefix: str) -> list[str]:
    """Create the views, and change those of an older release; the names of what was created or changed.

    Idempotent, and many processes may do it at once. Raises `StorageConfigError`, and changes nothing, where
    a collection or a view that is not ours has one of the names.
    """
    existing = await driver.list_collections([prefix + view.name for view in VIEWS])
    foreign = [name for name, found in existing.items() if _version_of(found) is None]
    if foreign:
        names = ", ".join(sorted(foreign))
        raise StorageConfigError(
            f"the names of views are in use by what deerflow-mongo has not created: {names}; nothing was "
            f"changed. {WAY_OUT}"
        )
    changed = await concurrently(
        _set_up_view(driver, prefix, view, existing.get(prefix + view.name)) for view in VIEWS
    )
    return [name for name in changed if name is not None]


async def _set_up_view(driver: Driver, prefix: str, view: View, found: Document | None) -> str | None:
    name, definition = prefix + view.name, _definition(view, prefix)
    if found is None:
        try:
            await driver.command({"create": name, **definition})
        except StorageError as error:
            if code_of(error) != _COLLECTION_EXISTS_CODE:
                raise
            await set_up_views(driver, prefix)  # another process was first, of this package or not
        return name
    stored: Document = {key: found["options"].get(key) for key in definition}
    if stored == definition or (_version_of(found) or 0) > VIEWS_VERSION:
        return None
    await driver.command({"collMod": name, **definition})
    return name


def _definition(view: View, prefix: str) -> Document:
    return {"viewOn": prefix + view.source, "pipeline": view.pipeline(prefix)}


def _version_of(found: Document) -> int | None:
    """The version of a view of ours; None for anything else."""
    if found.get("type") != "view":
        return None
    first = next(iter(found["options"].get("pipeline", ())), None)
    match = cast("Document", first).get("$match") if isinstance(first, dict) else None
    comment = cast("Document", match).get("$comment") if isinstance(match, dict) else None
    marked = re.fullmatch(rf"{_MARK} (\d+)", comment) if isinstance(comment, str) else None
    return None if marked is None else int(marked[1])
