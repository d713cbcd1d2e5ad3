"""How LangGraph's checkpoints look stored: checkpoints, the writes of their tasks, pieces, deletion records.

All of them are documents of one collection, so that a checkpoint and its new pieces are one `insert`. Their
ids are embedded documents, which the server compares field by field:

    checkpoint        {thread, ns, checkpoint}
    writes of a task  {thread, ns, checkpoint, task}
    part of a write   {thread, ns, checkpoint, task, token, part}
    piece             {thread, piece}
    deletion record   {thread, record}

A checkpoint stands directly before the writes that belong to it; records stand before all checkpoints of
their thread, and pieces behind them. What remains of a deleted checkpoint is in `checkpoint_deletions.py`,
what a stored value holds in `checkpoints/values.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

from bson import Binary, Int64

from .encoding import Document, UnreadableError
from .versions import SCHEMA_VERSION

SEQ: Final = "seq"
"""Number of a checkpoint or a deletion record within its thread, from 1 up, in the order of insertion.

An array where a document occupies several: the highest is its own. A checkpoint that was stored again has
those that it had before, and a tombstone those of its checkpoint, so that no number is free again.
"""

GENERATION: Final = "generation"
"""The number of the thread's last deletion record that the writer of a document knew of; 0 without one."""

RUN_ID: Final = "run_id"
EXPIRES_AT: Final = "expires_at"
STORED_AT: Final = "stored_at"
METADATA: Final = "metadata"
DELTA: Final = "delta"

Typed = tuple[str, bytes]
"""A value as LangGraph's serde returns it: the name of the format, and the bytes."""


@dataclass(frozen=True, slots=True)
class StoredWrite:
    """One write of a task; `value` is `{type, data}`, or `{type, parts, token, size}` for a large one."""

    index: int
    channel: str
    value: Document


@dataclass(frozen=True, slots=True)
class TaskWrites:
    """The writes of one task at one checkpoint."""

    thread: str
    ns: str
    checkpoint: str
    task: str
    path: str
    writes: tuple[StoredWrite, ...]


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A checkpoint as it is stored, without its pending writes; the values are stored values.

    `body` is LangGraph's checkpoint without its `channel_values`, and `channels` maps a name to its value.
    """

    thread: str
    ns: str
    checkpoint: str
    seq: int
    generation: int
    parent: str | None
    run_id: str | None
    metadata: Document
    body: Document
    channels: Mapping[str, Document] = field(default_factory=dict[str, Document])
    delta: tuple[str, ...] = ()
    """The delta channels without a value here: an ancestor has it, and the writes since then."""


# -- ids -------------------------------------------------------------------------------------------


def checkpoint_key(thread: str, ns: str, checkpoint: str) -> Document:
    return {"thread": thread, "ns": ns, "checkpoint": checkpoint}


def writes_key(thread: str, ns: str, checkpoint: str, task: str) -> Document:
    return {**checkpoint_key(thread, ns, checkpoint), "task": task}


def part_key(writes: TaskWrites, token: bytes, part: int) -> Document:
    key = writes_key(writes.thread, writes.ns, writes.checkpoint, writes.task)
    return {**key, "token": Binary(token), "part": part}


def piece_key(thread: str, piece: bytes) -> Document:
    return {"thread": thread, "piece": Binary(piece)}


# -- documents -------------------------------------------------------------------------------------


def checkpoint_document(row: CheckpointRow) -> Document:
    document: Document = {
        "_id": checkpoint_key(row.thread, row.ns, row.checkpoint),
        "schema_version": SCHEMA_VERSION,
        SEQ: Int64(row.seq),
        GENERATION: Int64(row.generation),
        "parent": row.parent,
        "created_at": _now(),
        METADATA: row.metadata,
        "body": row.body,
        "channels": [{"name": name, **value} for name, value in row.channels.items()],
    }
    if row.run_id is not None:
        document[RUN_ID] = row.run_id
    if row.delta:
        document[DELTA] = list(row.delta)
    return document


def checkpoint_row(document: Document) -> CheckpointRow:
    """Raises one of `corruption.READ_ERRORS` for a document that cannot be read."""
    key = document["_id"]
    channels: dict[str, Document] = {}
    for value in document["channels"]:
        channels[value["name"]] = value
    return CheckpointRow(
        thread=key["thread"],
        ns=key["ns"],
        checkpoint=key["checkpoint"],
        seq=numbers_of(document)[-1],
        generation=int(document[GENERATION]),
        parent=document["parent"],
        run_id=document.get(RUN_ID),
        metadata=document[METADATA],
        body=document["body"],
        channels=channels,
        delta=tuple(document.get(DELTA, ())),
    )


def stored_values(document: Document) -> list[Document]:
    """Everything in a checkpoint's document that may refer to pieces."""
    return [document[METADATA], document["body"], *document["channels"]]


def numbers_of(document: Document) -> list[int]:
    """The numbers that a checkpoint or a deletion record occupies, its own one last."""
    seq = document[SEQ]
    if not isinstance(seq, list):
        return [int(seq)]
    return sorted(int(number) for number in cast("list[int]", seq))


def replacement_pipeline(document: Document) -> list[Document]:
    """Store a checkpoint again in the place of the one with its id, whose numbers it occupies as well."""
    before: Document = {"$cond": [{"$isArray": f"${SEQ}"}, f"${SEQ}", [f"${SEQ}"]]}
    numbers: Document = {"$concatArrays": [before, [document[SEQ]]]}
    return [{"$replaceWith": {"$mergeObjects": [{"$literal": document}, {SEQ: numbers}]}}]


def writes_document(writes: TaskWrites) -> Document:
    return {
        "_id": writes_key(writes.thread, writes.ns, writes.checkpoint, writes.task),
        "schema_version": SCHEMA_VERSION,
        "path": writes.path,
        "created_at": _now(),
        "writes": [_write_document(write) for write in writes.writes],
    }


def task_writes(document: Document) -> TaskWrites:
    """Raises one of `corruption.READ_ERRORS` for a document that cannot be read."""
    key = document["_id"]
    return TaskWrites(
        thread=key["thread"],
        ns=key["ns"],
        checkpoint=key["checkpoint"],
        task=key["task"],
        path=document["path"],
        writes=tuple(StoredWrite(int(write["idx"]), write["channel"], write) for write in document["writes"]),
    )


def merged_writes_pipeline(writes: TaskWrites) -> list[Document]:
    """Add writes to those of the task. They replace stored ones where all have negative indexes."""
    new: Document = {"$literal": [_write_document(write) for write in writes.writes]}
    indexes = [write.index for write in writes.writes]
    others: Document = {"$not": {"$in": ["$$write.idx", indexes]}}
    missing: Document = {"$not": {"$in": ["$$write.idx", "$writes.idx"]}}
    if all(index < 0 for index in indexes):
        merged = [_filtered("$writes", others), new]
    else:
        merged = ["$writes", _filtered(new, missing)]
    return [{"$set": {"writes": {"$concatArrays": merged}, "path": {"$literal": writes.path}}}]


def _filtered(writes: Any, condition: Document) -> Document:
    return {"$filter": {"input": writes, "as": "write", "cond": condition}}


def part_document(writes: TaskWrites, token: bytes, part: int, data: bytes) -> Document:
    return {
        "_id": part_key(writes, token, part),
        "schema_version": SCHEMA_VERSION,
        "data": Binary(data),
        STORED_AT: _now(),
    }


def piece_document(thread: str, piece: bytes, data: bytes, elements: int, generation: int) -> Document:
    return {
        "_id": piece_key(thread, piece),
        "schema_version": SCHEMA_VERSION,
        "data": Binary(data),
        "elements": elements,
        GENERATION: Int64(generation),
        STORED_AT: _now(),
    }


def piece_upsert(document: Document) -> Document:
    """Insert a piece, or raise the generation of the stored one, so that no earlier deletion removes it."""
    fields = {name: value for name, value in document.items() if name not in {"_id", GENERATION}}
    return {"$setOnInsert": fields, "$max": {GENERATION: document[GENERATION]}}


def generation_update(generation: int) -> Document:
    return {"$max": {GENERATION: Int64(generation)}}


def last_entry(document: Document | None) -> tuple[int, int]:
    """The number of a thread's last checkpoint or record, and of its last record; zeros without one."""
    if document is None:
        return 0, 0
    own = numbers_of(document)[-1]
    return own, own if "record" in document["_id"] else int(document[GENERATION])


# -- values ----------------------------------------------------------------------------------------


def typed_document(value: Typed) -> Document:
    return {"type": value[0], "data": Binary(value[1])}


def typed_value(document: Any) -> Typed:
    kind, data = document["type"], document["data"]
    if not isinstance(kind, str) or not isinstance(data, bytes):
        raise UnreadableError("a serialised value has the wrong type")
    return kind, bytes(data)


def _write_document(write: StoredWrite) -> Document:
    return {**write.value, "idx": write.index, "channel": write.channel}


PIECE_FIELDS: Final = ("data", "elements")
"""What a reader needs of a piece besides its id."""


def piece_data(documents: Sequence[Document]) -> dict[bytes, tuple[bytes, int]]:
    """Data and number of elements of pieces, by key."""
    return {
        bytes(document["_id"]["piece"]): (document["data"], document["elements"]) for document in documents
    }


def _now() -> datetime:
    return datetime.now(UTC)


# -- copies ----------------------------------------------------------------------------------------


def copied_checkpoint(document: Document, thread: str, seq: int, generation: int) -> Document:
    """The checkpoint as it stands in another thread."""
    return {
        **document,
        "_id": {**document["_id"], "thread": thread},
        SEQ: Int64(seq),
        GENERATION: Int64(generation),
    }


def is_copy(document: Document, other: Document) -> bool:
    """Whether two threads have the same checkpoint, apart from their numbers."""
    return _without_place(document) == _without_place(other)


def _without_place(document: Document) -> Document:
    return {name: value for name, value in document.items() if name not in {"_id", SEQ, GENERATION}}


def copies_of_pieces(query: Document, thread: str, generation: int, collection: str) -> list[Document]:
    """The pipeline that stores these pieces in another thread, or raises the generation of those it has."""
    raised: Document = {"$set": {GENERATION: {"$max": [f"${GENERATION}", f"$$new.{GENERATION}"]}}}
    return [
        {"$match": query},
        {"$set": {"_id.thread": {"$literal": thread}, GENERATION: Int64(generation), STORED_AT: "$$NOW"}},
        {"$merge": {"into": collection, "on": "_id", "whenMatched": [raised], "whenNotMatched": "insert"}},
    ]


def copies_of_writes(query: Document, thread: str, collection: str) -> list[Document]:
    """The pipeline that stores these writes, or parts of them, in another thread."""
    return [
        {"$match": query},
        {"$set": {"_id.thread": {"$literal": thread}}},
        {"$merge": {"into": collection, "on": "_id", "whenMatched": "replace", "whenNotMatched": "insert"}},
    ]
