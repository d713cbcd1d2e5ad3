"""How the deletion of checkpoints looks stored: deletion records, and the tombstones of checkpoints.

A record `{thread, record}` occupies the next number of its thread, which refuses every writer that does not
know of the deletion yet. A tombstone is what remains of a deleted checkpoint: it goes on to occupy the
checkpoint's numbers, so that no such writer finds one of them free below the record. The server removes both
after a day, by its own clock. Why that is enough is in `checkpoints/deletion.py`; checkpoints themselves are
in `checkpoints.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from bson import Int64

from .checkpoints import EXPIRES_AT, GENERATION, SEQ, numbers_of, piece_key
from .encoding import Document
from .stored_times import NOW
from .versions import SCHEMA_VERSION

LIFETIME: Final = timedelta(days=1)
"""Of records and tombstones: far above the time that a writer relies on its knowledge of a thread."""

_EXPIRY: Final[Document] = {"$add": [NOW, Int64(LIFETIME // timedelta(milliseconds=1))]}


def record_key(thread: str, number: int) -> Document:
    return {"thread": thread, "record": Int64(number)}


def record_pipeline(numbers: Sequence[int]) -> list[Document]:
    """For the upsert of a record. The highest of `numbers` is its own; it occupies the others as well."""
    seq = [Int64(number) for number in numbers]
    return [
        {
            "$set": {
                "schema_version": SCHEMA_VERSION,
                SEQ: seq[0] if len(seq) == 1 else seq,
                GENERATION: seq[-1],
                EXPIRES_AT: _EXPIRY,
            }
        }
    ]


def tombstone_pipeline(generation: int) -> list[Document]:
    """Make checkpoints tombstones of the deletion of this number."""
    fields: Document = {
        "_id": "$_id",
        "schema_version": "$schema_version",
        SEQ: f"${SEQ}",
        GENERATION: Int64(generation),
        EXPIRES_AT: _EXPIRY,
    }
    return [{"$replaceWith": fields}]


def highest_number(document: Document | None) -> int:
    """The last number that a checkpoint, a tombstone or a record occupies; 0 without a document."""
    return 0 if document is None else numbers_of(document)[-1]


def piece_of(document: Document) -> bytes:
    """The key of a piece within its thread."""
    return bytes(document["_id"]["piece"])


def piece_keys(thread: str, pieces: Sequence[bytes]) -> list[Document]:
    return [piece_key(thread, piece) for piece in pieces]
