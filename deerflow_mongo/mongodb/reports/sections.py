"""The sections of a report: which collection, which pipeline, and how a result becomes a row. Data only.

Each pipeline of a period begins with a range of an index over all threads; the sections without a period read
active runs, or an index, or what the server has counted. `report.py` sends them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ...contract.rows import CALLERS, UNKNOWN_MODEL
from ..documents.encoding import Document
from ..documents.run_ownership import CACHE_READ, KIND, OWNER, lease_left_ms, lease_state
from ..documents.runs import HAS_COUNTS, IS_WHOLE
from ..documents.stored_times import NOW, ORDER
from ..queries import Query
from ..schema import FEEDBACK, OLDEST_FIRST, RUNS
from . import queries, rows

Pipeline = list[Document]

MAX_GROUPS: Final = 20_000
"""Days times statuses of the longest period; more are cut off, so that a result stays one document batch."""

MAX_MODELS: Final = 100
MAX_ERROR_LENGTH: Final = 300
FAILED_STATUSES: Final = ("error", "timeout")

CANDIDATES: Final = 100
"""Threads whose events are counted to find the largest: those with the highest event numbers."""

FIRST_RESTARTED_SEQ: Final = 2**50
"""Event numbers from here up count microseconds since 1970: the thread once lost all its events."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a report covers: runs created from `since` (inclusive) to `until`, and the length of its lists."""

    since: datetime
    until: datetime
    listed: int
    prefix: str = ""

    @property
    def runs(self) -> Query:
        return queries.runs_of_period(self.since, self.until)


@dataclass(frozen=True, slots=True)
class Section:
    """One list of a report, read by one command."""

    collection: str
    pipeline: Callable[[Scope], Pipeline]
    row: Callable[[Document], Any]


def _sums(path: str) -> Document:
    return {name: {"$sum": f"{path}.{name}"} for name in ("input", "output", "total")}


_SUMS: Final = _sums("$tokens")


def runs_by_day(scope: Scope) -> Pipeline:
    day = {"$dateToString": {"date": "$created_at", "format": "%Y-%m-%d"}}
    by_caller = {str(caller): {"$sum": f"$tokens.by_caller.{caller}"} for caller in CALLERS}
    group = {"_id": {"day": day, "status": "$status"}, "runs": {"$sum": 1}, **_SUMS, **by_caller}
    return [{"$match": scope.runs}, {"$group": group}, {"$sort": {"_id": 1}}, {"$limit": MAX_GROUPS}]


def tokens_by_model(scope: Scope) -> Pipeline:
    own_model: Document = {"$ifNull": ["$model_name", UNKNOWN_MODEL]}
    names = ("input", "output", "total", "llm_calls")
    own = [{"v": {"model": own_model, **{name: f"$tokens.{name}" for name in names}}}]
    no_models: Document = {"$eq": ["$tokens.by_model", {}]}
    models: Document = {"$cond": [no_models, own, {"$objectToArray": "$tokens.by_model"}]}
    counted: Document = {f"models.v.{name}": IS_WHOLE for name in names}
    group: Document = {"_id": "$models.v.model", "runs": {"$sum": 1}, **_sums("$models.v")}
    group["llm_calls"] = {"$sum": "$models.v.llm_calls"}
    group["cache_read"] = {"$sum": f"$models.v.{CACHE_READ}"}
    return [
        {"$match": {**scope.runs, **{name: HAS_COUNTS[name] for name in HAS_COUNTS if name != "model_name"}}},
        {"$project": {"models": models}},
        {"$unwind": "$models"},
        {"$match": {"models.v.model": {"$type": "string"}, **counted}},
        {"$group": group},
        {"$sort": {"total": -1, "_id": 1}},
        {"$limit": MAX_MODELS},
    ]


def tokens_by_user(scope: Scope) -> Pipeline:
    failed = {"$sum": {"$cond": [{"$in": ["$status", list(FAILED_STATUSES)]}, 1, 0]}}
    return [
        {"$match": scope.runs},
        {"$group": {"_id": "$user_id", "runs": {"$sum": 1}, "failed": failed, **_SUMS}},
        {"$sort": {"total": -1, "runs": -1, "_id": 1}},
        {"$limit": scope.listed},
    ]


def votes_by_model(scope: Scope) -> Pipeline:
    """Begins with the runs, because votes have no index over all threads; looks them up once per thread."""
    run = {"id": "$_id", "model": {"$ifNull": ["$model_name", UNKNOWN_MODEL]}}
    votes = {
        "from": scope.prefix + FEEDBACK,
        "localField": "_id",
        "foreignField": "thread_id",
        "as": "vote",
    }
    of_vote = {"$filter": {"input": "$runs", "as": "run", "cond": {"$eq": ["$$run.id", "$vote.run_id"]}}}
    group = {
        "_id": "$run.model",
        "positive": {"$sum": {"$cond": [{"$eq": ["$rating", 1]}, 1, 0]}},
        "negative": {"$sum": {"$cond": [{"$eq": ["$rating", -1]}, 1, 0]}},
    }
    return [
        {"$match": scope.runs},
        {"$group": {"_id": "$thread_id", "runs": {"$push": run}}},
        {"$lookup": votes},
        {"$unwind": "$vote"},
        {"$project": {"_id": 0, "rating": "$vote.rating", "run": {"$first": of_vote}}},
        {"$match": {"run": {"$exists": True}}},  # else it is on a run of another time
        {"$group": group},
        {"$sort": {"positive": -1, "negative": -1, "_id": 1}},
        {"$limit": MAX_MODELS},
    ]


def slowest_runs(scope: Scope) -> Pipeline:
    fields = ("thread_id", "user_id", "status", "model_name", "created_at", "duration_ms", "tokens.total")
    return [
        {"$match": {**scope.runs, "duration_ms": IS_WHOLE}},
        {"$sort": {"duration_ms": -1, "_id": 1}},
        {"$limit": scope.listed},
        {"$project": dict.fromkeys(fields, 1)},
    ]


def failed_runs(scope: Scope) -> Pipeline:
    is_text = {"$eq": [{"$type": "$error"}, "string"]}
    error = {"$cond": [is_text, {"$substrCP": ["$error", 0, MAX_ERROR_LENGTH]}, None]}
    last = {"at": "$created_at", "run": "$_id", "thread": "$thread_id", "error": error}
    wanted: Query = {"status": {"$in": list(FAILED_STATUSES)}, "error_type": {"$type": ["string", "null"]}}
    key = {"status": "$status", "error_type": "$error_type"}
    return [
        {"$match": {**scope.runs, **wanted}},
        {"$group": {"_id": key, "runs": {"$sum": 1}, "last": {"$max": last}}},
        {"$sort": {"runs": -1, "_id": 1}},
        {"$limit": scope.listed},
    ]


def busiest_threads(scope: Scope) -> Pipeline:
    group = {"runs": {"$sum": 1}, "total": {"$sum": "$tokens.total"}, "user": {"$max": "$user_id"}}
    return [
        {"$match": scope.runs},
        {"$group": {"_id": "$thread_id", **group}},
        {"$sort": {"runs": -1, "total": -1, "_id": 1}},
        {"$limit": scope.listed},
    ]


SECTIONS: Final[Mapping[str, Section]] = {
    "runs_by_day": Section(RUNS, runs_by_day, rows.day_of_runs),
    "tokens_by_model": Section(RUNS, tokens_by_model, rows.model_tokens),
    "tokens_by_user": Section(RUNS, tokens_by_user, rows.user_tokens),
    "votes_by_model": Section(RUNS, votes_by_model, rows.model_votes),
    "slowest_runs": Section(RUNS, slowest_runs, rows.slow_run),
    "failed_runs": Section(RUNS, failed_runs, rows.failed_runs),
    "busiest_threads": Section(RUNS, busiest_threads, rows.busy_thread),
}
"""The sections that are one list over a period, by their names in a report."""


# -- without a period ------------------------------------------------------------------------------


def active_runs(now_us: int, listed: int, *, left_since_us: int | None = None) -> Pipeline:
    """What has not ended, oldest first: `listed` rows, and how many there are.

    With `left_since_us` only what was created before that stamp, or has a lease that expired.
    """
    project: Document = dict.fromkeys(("thread_id", "user_id", "status", "model_name", "created_at"), 1)
    project |= {ORDER: 1, "kind": f"${KIND}", "owner": f"${OWNER}", "total": "$tokens.total"}
    project |= {"age_ms": {"$subtract": [NOW, "$created_at"]}}
    project |= {"lease": lease_state(), "lease_left_ms": lease_left_ms()}
    left: Query = {"$or": [{ORDER: {"$lt": left_since_us}}, {"lease": "expired"}]}
    return [
        {"$match": queries.active_runs(now_us)},
        {"$project": project},
        *([] if left_since_us is None else [{"$match": left}]),
        {
            "$facet": {
                "rows": [{"$sort": dict(OLDEST_FIRST)}, {"$limit": listed}],
                "all": [{"$count": "runs"}],
            }
        },
    ]


def highest_numbers() -> Pipeline:
    """The threads with the highest event numbers, by one entry of the index for each thread.

    A thread's highest number is at least the count of its events. Those that were numbered anew are listed
    apart, because their numbers tell nothing about it.
    """
    numbered: Query = {"last": {**IS_WHOLE, "$lt": FIRST_RESTARTED_SEQ}}
    restarted: Query = {"last": {**IS_WHOLE, "$gte": FIRST_RESTARTED_SEQ}}
    first: Pipeline = [{"$sort": {"last": -1, "_id": 1}}, {"$limit": CANDIDATES}]
    return [
        {"$sort": {"thread_id": -1, "seq": -1}},  # with a filter the server would read every entry
        {"$group": {"_id": "$thread_id", "last": {"$first": "$seq"}}},
        {
            "$facet": {
                "numbered": [{"$match": numbered}, *first],
                "restarted": [{"$match": restarted}, *first],
            }
        },
    ]


def count_by_thread(query: Query) -> Pipeline:
    return [{"$match": query}, {"$group": {"_id": "$thread_id", "count": {"$sum": 1}}}]


def collection_sizes(names: list[str]) -> Pipeline:
    """What the server has counted: it reads no document. A sharded collection has a row for each shard."""
    stats = "$storageStats"
    return _of_each(
        names,
        lambda name: [
            {"$collStats": {"storageStats": {}}},
            {
                "$project": {
                    "collection": {"$literal": name},
                    "documents": f"{stats}.count",
                    "size": f"{stats}.size",
                    "storage": f"{stats}.storageSize",
                    "indexes": f"{stats}.nindexes",
                    "index_size": f"{stats}.totalIndexSize",
                    "index_sizes": f"{stats}.indexSizes",
                }
            },
        ],
    )


_SIZES: Final = ("documents", "size", "storage", "index_size")


def merged_sizes(found: list[Document]) -> list[Document]:
    """The result of `collection_sizes` with one document for each collection: the sums over its shards."""
    merged: dict[str, Document] = {}
    for document in found:
        empty = {**document, **dict.fromkeys(_SIZES, 0), "index_sizes": Counter[str]()}
        total = merged.setdefault(document["collection"], empty)
        total["index_sizes"].update(document["index_sizes"])
        for name in _SIZES:
            total[name] += document[name]
    return list(merged.values())


def index_uses(names: list[str]) -> Pipeline:
    return _of_each(
        names,
        lambda name: [
            {"$indexStats": {}},
            {"$project": {"_id": 0, "collection": {"$literal": name}, "name": 1, "key": 1, "accesses": 1}},
        ],
    )


def merged_uses(found: list[Document]) -> list[Document]:
    """The result of `index_uses` with one document for each index: the sums over its shards."""
    merged: dict[tuple[str, str], Document] = {}
    for document in found:
        key, accesses = (document["collection"], document["name"]), document["accesses"]
        if key in merged:
            total = merged[key]["accesses"]
            total["ops"] += accesses["ops"]
            total["since"] = max(total["since"], accesses["since"])
        else:
            merged[key] = document
    return list(merged.values())


def _of_each(names: list[str], stages: Callable[[str], Pipeline]) -> Pipeline:
    """One pipeline over several collections, for a command on the first."""
    first, *rest = names
    return [*stages(first), *({"$unionWith": {"coll": name, "pipeline": stages(name)}} for name in rest)]
