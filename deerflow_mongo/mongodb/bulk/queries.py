"""The filters of bulk export and import; a caller's values are checked before."""

from __future__ import annotations

from collections.abc import Sequence

from ...contract.rows import MAX_COUNT
from ..documents.run_events import ANCHOR_SEQ, RESERVED
from ..documents.users import EMAIL_KEY
from ..queries import Query


def with_other_ids() -> Query:
    """Broken documents whose id is no text, which `after_id` of a text leaves out."""
    return {"_id": {"$not": {"$type": "string"}}}


def as_read(document: Query, fields: Sequence[str]) -> Query:
    """The document, if these fields are as they were when it was read."""
    values: Query = {name: {"$eq": document[name]} for name in fields if name in document}
    absent: Query = {name: {"$exists": False} for name in fields if name not in document}
    return {"_id": document["_id"], **values, **absent}


def users_by_email_keys(keys: Sequence[str]) -> Query:
    return {EMAIL_KEY: {"$in": list(keys)}}


def events_behind(key: tuple[str, int] | None) -> Query:
    """The events of all threads behind this thread and number; all with None."""
    is_event: Query = {"run_id": {"$exists": True}}
    if key is None:
        return is_event
    thread_id, seq = key
    rest: list[Query] = [{"thread_id": thread_id, "seq": {"$gt": seq}}, {"thread_id": {"$gt": thread_id}}]
    return {"$or": rest, **is_event}


def anchors_behind(thread_id: str | None) -> Query:
    """The anchors of all threads behind this one; of all threads with None."""
    return {"thread_id": {"$gte": ""} if thread_id is None else {"$gt": thread_id}, "seq": ANCHOR_SEQ}


def anchors_of_threads(thread_ids: Sequence[str]) -> Query:
    return {"thread_id": {"$in": list(thread_ids)}, "seq": ANCHOR_SEQ}


def last_numbers(thread_ids: Sequence[str], fields: Sequence[str]) -> list[Query]:
    """The pipeline that reads these fields of the last document of each of these threads."""
    of_threads: Query = {"thread_id": {"$in": list(thread_ids)}, "seq": {"$gte": 0, "$lte": MAX_COUNT}}
    # Absent fields as null: mongomock would take them from the next document that has them.
    last: Query = {name: {"$first": {"$ifNull": [f"${name}", None]}} for name in fields}
    return [
        {"$match": of_threads},
        {"$sort": {"thread_id": -1, "seq": -1}},
        {"$group": {"_id": "$thread_id", **last}},
    ]


def at_numbers(thread_ids: Sequence[str], seqs: Sequence[int]) -> Query:
    """What occupies any of these numbers in any of these threads."""
    return {"thread_id": {"$in": list(thread_ids)}, "seq": {"$in": list(seqs)}}


def numbers_above(thread_id: str, seq: int) -> Query:
    return {"thread_id": thread_id, "seq": {"$gt": seq, "$lte": MAX_COUNT}}


def numbers_below(thread_id: str, seq: int) -> Query:
    return {"thread_id": thread_id, "seq": {"$gte": 0, "$lt": seq}}


def reserved_number(document: Query) -> Query:
    """The tombstone of a number that no event has had, as long as it is one."""
    return {"_id": document["_id"], RESERVED: True}
