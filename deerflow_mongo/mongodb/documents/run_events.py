"""Run event documents, and the two other kinds of document in their collection.

An event's number `seq` is unique in its thread. A deleted event leaves a tombstone, which still occupies its
number. A thread's anchor (`seq` 0) stores where the numbers continue when all its events are gone. Which
number an event gets is decided in `events/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import bson
from bson import ObjectId

from ...contract.rows import RunEventRow
from ...contract.run_event_fields import CheckedRunEvent
from .encoding import (
    WHOLE,
    Document,
    UnreadableError,
    decode_content,
    decode_mapping,
    encode_content,
    encode_mapping,
    text_of,
)
from .stored_times import row_time, stamp_of, time_fields
from .version_1 import (
    ANCHOR_FIELDS_OF_VERSION_1,
    NUMBER_FIELDS_OF_VERSION_1,
    as_current,
    is_of_version_1,
    numbers_of_version_1,
)
from .versions import READABLE_FROM, SCHEMA_VERSION

ONCE = "once"
"""Present and true on an event that `put_if_absent` stored."""

ANCHOR_SEQ = 0
"""The anchor's number: below every event, so that the anchor sorts last only in an empty thread."""

VISIBLE_AI_TYPES = ("llm.ai.response", "ai_message")
"""The types of the messages that are a model's answers; the second is that of older releases of DeerFlow."""

_HIDDEN_CALLERS = ("middleware:", "middleware;")
"""Callers from the first to before the second: the texts that begin with "middleware:", and nothing else."""

EXPIRES_AT = "expires_at"
"""When the server removes a tombstone; null for never."""

DELETION = "deletion"
"""The call that left a tombstone, to count what it deleted after a lost answer."""

RESERVED = "reserved"
"""Present and true on a tombstone of a number that no event of this database has had."""

LAST_NUMBER_FIELDS = [
    "schema_version",
    "seq",
    "stored_at",
    "event_stored_at",
    "minimum_next_seq",
    "anchored_at",
    *NUMBER_FIELDS_OF_VERSION_1,
]
"""What is read of a thread's last document, which may be of any of the three kinds."""


class LastNumber(NamedTuple):
    """What a thread's last document says about its numbers."""

    seq: int
    stored_at: datetime
    """In UTC: when the event was stored (a tombstone's too), or when the anchor was created or renewed."""
    minimum_next_seq: int
    """Of an anchor: no number below it is given again; else 1."""
    is_event: bool


# As the driver returns dates.
_LONG_AGO = datetime(1970, 1, 1)  # noqa: DTZ001
_FIRST_DATE, _LAST_DATE = datetime(1, 1, 1), datetime(9999, 12, 31)  # noqa: DTZ001


def last_number(document: Document) -> LastNumber:
    """`LAST_NUMBER_FIELDS` of an event, a tombstone or an anchor; `queries.py` looks for numbers only.

    A broken document must not prevent the next event of its thread: what cannot be used is left out.
    """
    if is_of_version_1(document):
        document = numbers_of_version_1(document)
    times = (document.get(name) for name in ("stored_at", "event_stored_at", "anchored_at"))
    stored_at = next((time for time in times if isinstance(time, datetime)), _LONG_AGO)
    seq: Any = document["seq"]
    minimum: Any = document.get("minimum_next_seq")
    return LastNumber(
        +seq if type(seq) in WHOLE else int(float(str(seq))),  # a double or a decimal
        stored_at.replace(tzinfo=UTC),
        +minimum if type(minimum) in WHOLE else 1,
        "stored_at" in document,
    )


def new_event(fields: Mapping[str, Any]) -> Document:
    """An event's document before it has a number. `fields` are checked and encoded."""
    return {"_id": ObjectId(), "schema_version": READABLE_FROM, "seq": 0, **fields, "stored_at": None}


def encoded_event(event: CheckedRunEvent, now: Document) -> Document:
    """A checked event's document; `now` has the fields of the time of an event without one of its own."""
    created_at = event.created_at
    return new_event(
        {
            "thread_id": event.thread_id,
            "run_id": event.run_id,
            "event_type": event.event_type,
            "category": event.category,
            "content": encode_content(event.content),
            "metadata": encode_mapping(event.metadata),
            **(now if created_at is None else time_fields("created_at", stamp_of(created_at))),
            **({} if event.user_id is None else {"user_id": event.user_id}),
            **({} if event.event_id is None else {"event_id": event.event_id}),
        }
    )


def anchor_document(thread_id: str, anchored_at: datetime, minimum_next_seq: int = 1) -> Document:
    """What remains of a thread when all its events are gone: where its numbers continue."""
    return {
        "_id": ObjectId(),
        "schema_version": READABLE_FROM,
        "thread_id": thread_id,
        "seq": ANCHOR_SEQ,
        "minimum_next_seq": minimum_next_seq,
        "anchored_at": anchored_at,
    }


def new_minimum_update(minimum_next_seq: int, anchored_at: datetime) -> Document:
    """The update of an anchor whose thread continues at `minimum_next_seq` or above from now on."""
    return {
        "$set": {
            "schema_version": READABLE_FROM,
            "minimum_next_seq": minimum_next_seq,
            "anchored_at": anchored_at,
        },
        "$unset": dict.fromkeys(ANCHOR_FIELDS_OF_VERSION_1, ""),
    }


def reserved_number(thread_id: str, seq: int, now: datetime, expires_at: datetime | None) -> Document:
    """A tombstone without an event: its number is not given, until an import has the event of it."""
    return {
        "_id": ObjectId(),
        "schema_version": READABLE_FROM,
        "thread_id": thread_id,
        "seq": seq,
        "event_stored_at": now,
        EXPIRES_AT: expires_at,
        RESERVED: True,
    }


def tombstone_update(last_seq: int, expires_at: datetime, deletion: ObjectId) -> list[Document]:
    """The update that leaves an event's number occupied, and nothing else but the id of the deletion.

    Tombstones of numbers below `last_seq` are removed at `expires_at`. The others stay for ever, so that a
    thread's highest number is never lost.
    """
    number = {"_id": "$_id", "schema_version": READABLE_FROM, "thread_id": "$thread_id", "seq": "$seq"}
    expiry = {"$cond": [{"$lt": ["$seq", last_seq]}, expires_at, None]}
    # Of a broken event: this moment. One that the validator refuses would stop the deletion of the others.
    is_date = [{"$gte": ["$stored_at", _FIRST_DATE]}, {"$lte": ["$stored_at", _LAST_DATE]}]
    stored_at = {"$cond": [{"$and": is_date}, "$stored_at", datetime.now(UTC)]}
    tombstone = {**number, "event_stored_at": stored_at, EXPIRES_AT: expiry, DELETION: deletion}
    return [{"$replaceRoot": {"newRoot": tombstone}}]


def document_size_bytes(document: Document) -> int:
    return len(bson.encode(document))


def last_visible_seq_pipeline(query: Document) -> list[Document]:
    """The highest number for each run among the answers of `query` that no middleware asked for.

    The caller is compared in an expression, and not in the filter: an index then answers it alone.
    """
    first, behind = _HIDDEN_CALLERS
    is_hidden = {"$and": [{"$gte": ["$metadata.caller", first]}, {"$lt": ["$metadata.caller", behind]}]}
    seq = {"$max": {"$cond": [is_hidden, None, "$seq"]}}
    return [{"$match": query}, {"$group": {"_id": "$run_id", "seq": seq}}]


def last_visible_seqs(groups: Iterable[Document]) -> dict[str, int]:
    """The result of `last_visible_seq_pipeline`; a run without such an answer is left out."""
    return {group["_id"]: +group["seq"] for group in groups if type(group["seq"]) in WHOLE}


def event_row(document: Document) -> RunEventRow:
    if document["schema_version"] is not SCHEMA_VERSION:
        document = as_current(document, "created_at")
    thread_id, run_id, seq = document["thread_id"], document["run_id"], document["seq"]
    event_type, category = document["event_type"], document["category"]
    if (
        not (type(thread_id) is type(run_id) is type(event_type) is type(category) is str)
        or type(document["_id"]) is not ObjectId
        or type(document["stored_at"]) is not datetime
    ):
        raise UnreadableError
    row: RunEventRow = {
        "thread_id": thread_id,
        "run_id": run_id,
        "event_type": event_type,
        "category": category,
        "content": decode_content(document["content"]),
        "metadata": decode_mapping(document["metadata"]),
        "created_at": row_time(document["created_at"], document.get("created_at_us", 0)),
        "seq": seq | 0,  # a plain int of the driver's 64-bit one; raises for what is no whole number
    }
    if "user_id" in document:
        row["user_id"] = text_of(document["user_id"])
    if "event_id" in document:
        row["event_id"] = text_of(document["event_id"])
    return row
