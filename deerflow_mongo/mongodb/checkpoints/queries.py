"""The filters for checkpoints, their writes, pieces and deletion records; those for other collections are in
`mongodb/queries.py`. Identifiers are checked by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bson import MaxKey

from ..documents import checkpoints
from ..queries import Query, changeable
from ..schema import IS_CHECKPOINT, IS_NUMBERED

# -- checkpoints -----------------------------------------------------------------------------------

_NO_PARTS: Query = {"_id.part": {"$exists": False}, checkpoints.EXPIRES_AT: {"$exists": False}}
_HIGHEST = MaxKey()


def checkpoints_with_writes(
    thread: str, ns: str, *, before: str | None = None, checkpoint: str | None = None
) -> Query:
    """Checkpoints of a namespace and their writes, by `_id`: one of them, or those below `before`.

    Sorted by `_id` downwards, a checkpoint follows its writes.
    """
    if checkpoint is not None:
        key = checkpoints.checkpoint_key(thread, ns, checkpoint)
        bounds: Query = {"$gte": key, "$lte": {**key, "task": _HIGHEST}}
    else:
        end = _HIGHEST if before is None else before
        bounds = {
            "$gte": {"thread": thread, "ns": ns, "checkpoint": ""},
            "$lt": {"thread": thread, "ns": ns, "checkpoint": end},
        }
    return {"_id": bounds, **_NO_PARTS}


def checkpoints_and_writes_below(thread: str, ns: str, key: Query) -> Query:
    """Those of a namespace whose `_id` sorts below `key`, to read on from there."""
    return {"_id": {"$gte": {"thread": thread, "ns": ns, "checkpoint": ""}, "$lt": key}, **_NO_PARTS}


def checkpoints_over_namespaces(
    thread: str | None,
    *,
    ns: str | None = None,
    checkpoint: str | None = None,
    before: str | None = None,
    up_to: str | None = None,
    without: Sequence[Query] = (),
) -> Query:
    """Checkpoints of a thread, or of all, without their writes, for a list by their own id.

    `up_to` and `without` read on: at most this id, and none of the documents with these keys.
    """
    query: Query = dict(IS_CHECKPOINT)
    if thread is not None:
        query["_id.thread"] = thread
    if ns is not None:
        query["_id.ns"] = ns
    bounds: Query = {}
    if checkpoint is not None:
        bounds["$eq"] = checkpoint
    if before is not None:
        bounds["$lt"] = before
    if up_to is not None:
        bounds["$lte"] = up_to
    if bounds:
        query["_id.checkpoint"] = bounds
    if without:
        query["_id"] = {"$nin": list(without)}
    return query


def writes_of_checkpoints(keys: Sequence[Query]) -> Query:
    """The writes of these checkpoints."""
    return {"$or": [{"_id": {"$gt": key, "$lte": {**key, "task": _HIGHEST}}} for key in keys], **_NO_PARTS}


def by_keys(keys: Sequence[Query]) -> Query:
    return {"_id": {"$in": list(keys)}}


def by_key(key: Query) -> Query:
    return {"_id": key}


def of_generation(query: Query, generation: int) -> Query:
    """Those of these pieces that the deletion of this number, and earlier ones, leave alone."""
    return {**query, checkpoints.GENERATION: {"$gte": generation}}


def numbered_after(thread: str, seq: int) -> Query:
    """Checkpoints and deletion records of a thread with a higher number."""
    return {"_id.thread": thread, checkpoints.SEQ: {"$exists": True, "$gt": seq}}


def numbered(thread: str) -> Query:
    return {"_id.thread": thread, **IS_NUMBERED}


# -- copies of checkpoints -------------------------------------------------------------------------


def checkpoints_by_thread() -> list[Query]:
    """The pipeline that counts the checkpoints of each thread; reads no piece."""
    return [
        {"$match": {**IS_CHECKPOINT, "_id.checkpoint": {"$gte": ""}}},
        {"$group": {"_id": "$_id.thread", "checkpoints": {"$sum": 1}}},
        {"$sort": {"_id": 1}},
    ]


def keys_of_checkpoints(thread: str) -> list[Query]:
    """The pipeline that lists a thread's checkpoints with their parents and nothing else."""
    return [{"$match": checkpoints_over_namespaces(thread)}, {"$project": {"parent": 1}}]


def places_of_writes(key: Query) -> list[Query]:
    """The pipeline that lists the writes of a checkpoint, without their values."""
    return [
        {"$match": writes_of_checkpoints([key])},
        {"$project": {"path": 1, "writes.idx": 1, "writes.channel": 1}},
    ]


def summaries_of_checkpoints(threads: Sequence[str]) -> list[Query]:
    """Of each of these threads: its checkpoints, the highest id of one, and its pending writes."""
    is_checkpoint = {"$ne": [{"$type": f"${checkpoints.METADATA}"}, "missing"]}
    return [
        {"$match": {"$or": [keys_of_writes(thread, None) for thread in threads], **_NO_PARTS}},
        {
            "$group": {
                "_id": "$_id.thread",
                "checkpoints": {"$sum": {"$cond": [is_checkpoint, 1, 0]}},
                "last_id": {"$max": {"$cond": [is_checkpoint, "$_id.checkpoint", None]}},
                "writes": {"$sum": {"$cond": [{"$isArray": "$writes"}, {"$size": "$writes"}, 0]}},
            }
        },
    ]


# -- deletions of checkpoints ----------------------------------------------------------------------


def live_checkpoints(thread: str, before_number: int | None = None) -> Query:
    """The checkpoints of a thread, or those that were stored before this deletion record."""
    query: Query = {"_id.thread": thread, **IS_CHECKPOINT}
    if before_number is not None:
        query[checkpoints.SEQ] = {"$not": {"$gte": before_number}}
    return query


def live(query: Query) -> Query:
    """Those of these documents that are checkpoints."""
    return {**query, **IS_CHECKPOINT}


def checkpoints_of_runs(run_ids: Sequence[str], thread: str | None = None) -> Query:
    """The checkpoints of these runs, in a thread or in all."""
    query: Query = {**IS_CHECKPOINT, checkpoints.RUN_ID: {"$in": list(run_ids), "$gte": ""}}
    return query if thread is None else {"_id.thread": thread, **query}


def removable_checkpoints(keys: Sequence[Query], number: int) -> Query:
    """Those of these checkpoints that were not stored again after the deletion record of this number."""
    # `$not` excludes a document with any such number.
    return changeable({**by_keys(keys), **IS_CHECKPOINT, checkpoints.SEQ: {"$not": {"$gte": number}}})


def tombstones(query: Query) -> Query:
    """Those of these documents that are tombstones of checkpoints."""
    return {**query, checkpoints.EXPIRES_AT: {"$exists": True}, "_id.ns": {"$exists": True}}


def writes_of(key: Query) -> Query:
    """The writes of the checkpoint with this `_id`, and their parts."""
    return {"_id": {"$gt": key, "$lte": {**key, "task": _HIGHEST}}}


def parts(query: Query) -> Query:
    """Those of these documents that are parts of writes."""
    return {**query, "_id.part": {"$exists": True}}


def without_parts(query: Query) -> Query:
    return {**query, "_id.part": {"$exists": False}}


def any_of(some: Sequence[Query]) -> Query:
    return {"$or": list(some)}


def stored_until(query: Query, at: datetime) -> Query:
    """Those of these writes, parts or pieces that were not stored later, by their clients' clocks."""
    names = ("created_at", checkpoints.STORED_AT)
    return {**query, "$nor": [{name: {"$gt": at}} for name in names]}


def keys_of_writes(thread: str, after: Query | None) -> Query:
    """Checkpoints, tombstones, writes and parts of a thread behind this `_id`."""
    start = {"thread": thread, "ns": ""} if after is None else after
    return {"_id": {"$gt": start, "$lt": {"thread": thread, "piece": b""}}}


def pieces_of(thread: str, after: bytes = b"") -> Query:
    """Pieces of a thread with a higher key."""
    return {"_id": {"$gt": {"thread": thread, "piece": after}, "$lt": {"thread": thread, "piece": _HIGHEST}}}


def removable_pieces(query: Query, number: int) -> Query:
    """Those of these pieces that no writer has claimed who knew of the deletion of this number."""
    return changeable({**query, checkpoints.GENERATION: {"$lt": number}})


def documents_of(thread: str) -> Query:
    """Everything that a thread has, records and tombstones included."""
    return {"_id": {"$gt": {"thread": thread}, "$lt": {"thread": thread, "": _HIGHEST}}}


def total_size(query: Query) -> list[Query]:
    """The pipeline that counts and measures these documents."""
    size: Query = {"$sum": {"$bsonSize": "$$ROOT"}}
    return [{"$match": query}, {"$group": {"_id": None, "count": {"$sum": 1}, "size_bytes": size}}]


def statistics(query: Query, largest: int) -> list[Query]:
    """The pipeline that counts and measures the documents by thread: the `largest` ones, and all together."""
    kind: Query = {
        "$switch": {
            "branches": [
                {"case": {"$ne": [{"$type": "$_id.piece"}, "missing"]}, "then": "pieces"},
                {"case": {"$ne": [{"$type": "$_id.part"}, "missing"]}, "then": "parts"},
                {"case": {"$ne": [{"$type": "$_id.task"}, "missing"]}, "then": "writes"},
                {"case": {"$ne": [{"$type": f"${checkpoints.METADATA}"}, "missing"]}, "then": "checkpoints"},
            ],
            "default": "deleted",
        }
    }
    kinds = ("checkpoints", "writes", "parts", "pieces", "deleted")
    sums: Query = {"size_bytes": {"$sum": "$size"}}
    for name in kinds:
        of_kind: Query = {"$eq": ["$kind", name]}
        sums[name] = {"$sum": {"$cond": [of_kind, 1, 0]}}
        sums[f"{name}_bytes"] = {"$sum": {"$cond": [of_kind, "$size", 0]}}
    totals: Query = {name: {"$sum": f"${name}"} for name in sums}
    return [
        {"$match": query},
        {"$project": {"_id": 0, "thread": "$_id.thread", "kind": kind, "size": {"$bsonSize": "$$ROOT"}}},
        {"$group": {"_id": "$thread", **sums}},
        {
            "$facet": {
                "largest": [{"$sort": {"size_bytes": -1, "_id": 1}}, {"$limit": largest}],
                "totals": [{"$group": {"_id": None, "threads": {"$sum": 1}, **totals}}],
            }
        },
    ]


def without_deletions(query: Query) -> Query:
    """Those of these documents that are neither deletion records nor tombstones."""
    return {**query, checkpoints.EXPIRES_AT: {"$exists": False}}


def documents_behind(thread: str | None) -> Query:
    """What follows the documents of a thread in the order of `_id`; everything with None."""
    return {} if thread is None else {"_id": {"$gt": {"thread": thread, "": _HIGHEST}}}


def new_record(key: Query) -> Query:
    """No document: an upsert with it inserts one of this id, or is refused."""
    return {"_id": key, "schema_version": {"$in": []}}
