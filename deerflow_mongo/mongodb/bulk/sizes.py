"""How much of an import one command has, and the documents that are too large for any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from ...contract.bulk_rows import Key, RefusedRow
from ..documents.encoding import Document
from ..documents.run_events import document_size_bytes
from ..drivers.errors import DRIVER_ERRORS, MAX_DOCUMENT_BYTES, too_large, translate
from ..events.batch import MAX_PART_BYTES, MAX_PART_EVENTS

MAX_PART_ROWS: Final = MAX_PART_EVENTS

_STORED_AT_BYTES: Final = 64
"""What a document may gain between its check and its insert."""

_Item = TypeVar("_Item")


def size_or_refusal(key: Key, document: Document) -> int | RefusedRow:
    """A document's size, or why no command can store it."""
    try:
        size_bytes = document_size_bytes(document)
    except DRIVER_ERRORS as error:
        return RefusedRow(key, str(translate(error, written=document)))
    if size_bytes + _STORED_AT_BYTES > MAX_DOCUMENT_BYTES:
        return RefusedRow(key, str(too_large(document)))
    return size_bytes


def parts(items: Sequence[_Item], size_of: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """The items in their order, each part small enough for one insert."""
    part: list[_Item] = []
    size_bytes = 0
    for item in items:
        size = size_of(item)
        if part and (len(part) == MAX_PART_ROWS or size_bytes + size > MAX_PART_BYTES):
            yield part
            part, size_bytes = [], 0
        part.append(item)
        size_bytes += size
    if part:
        yield part
