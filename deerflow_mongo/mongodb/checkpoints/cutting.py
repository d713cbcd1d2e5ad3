"""Cuts a serialised value into pieces, so that a change of the value changes the pieces near it only.

A piece is a run of whole elements. It ends where the checksum of its last element demands it, whatever stands
before, so that two values with the same elements have the same pieces there. Pure computation: what an
element is and how it is serialised is decided in `values.py`, and nothing here knows LangGraph or a database.
The boundaries are part of the format: other ones would read the same and share nothing with what is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

from ..documents.encoding import Document, UnreadableError

KEY_BYTES: Final = 16

MAX_PIECE_BYTES: Final = 4 * 1024 * 1024
MAX_TAIL_BYTES: Final = 8 * 1024
"""An open rest up to this size stands in the checkpoint's document; a larger one becomes a piece."""

AVERAGE_BYTES: Final = 4 * 1024
MAX_AVERAGE_BYTES: Final = 1024 * 1024
_AVERAGES_BEFORE: Final = 512
_MIN_PART_BYTES: Final = 16 * 1024
_PARTS_PER_ELEMENT: Final = 8

MAX_INLINE_KEYS: Final = 128
"""A value with more pieces than this has node pieces."""

_MIN_NODE_KEYS: Final = 16
_MAX_NODE_KEYS: Final = 256
_NODE_END: Final = 4  # of 256: a node ends after every 64th key on average, from the minimum on


Buffer: TypeAlias = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Piece:
    """One document's worth of a value. `elements` is how many elements end in it."""

    key: bytes
    data: bytes
    elements: int


class CutPiece(NamedTuple):
    """A piece without its data, which has `size` bytes."""

    key: bytes
    size: int
    elements: int


def piece_key(data: bytes, elements: int) -> bytes:
    digest = hashlib.sha256(elements.to_bytes(8, "big"), usedforsecurity=False)
    digest.update(data)
    return digest.digest()[:KEY_BYTES]


def new_piece(data: bytes, elements: int) -> Piece:
    return Piece(piece_key(data, elements), data, elements)


def average_at(offset: int) -> int:
    """The average size of a piece that starts at `offset`: it grows in powers of two with the offset.

    It depends on what stands before and not on the whole size, which is unknown until everything is
    serialised: nothing is cut anew when a value grows.
    """
    share = offset // _AVERAGES_BEFORE
    return min(max(_power_of_two(share), AVERAGE_BYTES), MAX_AVERAGE_BYTES)


def part_size(size: int) -> int:
    """The size of the parts of one element (or of a whole value) of `size` bytes."""
    share = size // _PARTS_PER_ELEMENT
    return min(max(_power_of_two(share), _MIN_PART_BYTES), MAX_PIECE_BYTES)


def _power_of_two(number: int) -> int:
    """The largest power of two up to `number`, or 0."""
    return 1 << number.bit_length() >> 1


def parts_of(data: Buffer, elements: int = 1) -> Iterator[Piece]:
    """Parts of a fixed size; only the last one counts the elements."""
    step, end = part_size(len(data)), len(data)
    view = memoryview(data)
    for start in range(0, end, step):
        yield new_piece(bytes(view[start : start + step]), elements if start + step >= end else 0)


class Cutter:
    """Groups elements into pieces. `add` each in order, then `finish`; both return the pieces that closed."""

    def __init__(self) -> None:
        self.size = 0
        self.elements = 0
        self.keys: list[bytes] = []
        self.tail = b""
        self._open: list[Buffer] = []
        self._open_counts: list[int] = []
        self._open_size = 0
        self._set_limits()

    def resume(self, pieces: Sequence[CutPiece]) -> None:
        """Begin with pieces that another cutter has closed, before `finish`, for the same elements."""
        for key, size, elements in pieces:
            self.keys.append(key)
            self.size += size
            self.elements += elements
        self._set_limits()

    def add(self, data: Buffer, elements: int = 1) -> Sequence[Piece]:
        """Add the bytes of one element, or of some that are never separated."""
        size = len(data)
        closed: Sequence[Piece] = ()
        if self._open_size + size > self._maximum:
            closed = self._close()
            if size > self._maximum:
                return [*closed, *self._add_parts(data, elements)]
        self.size += size
        self.elements += elements
        self._open.append(data)
        self._open_counts.append(elements)
        self._open_size += size
        if self._open_size < self._minimum or (
            # Closing is as likely as the element is large, so that the pieces have the average size.
            size < self._span and crc32(data) * self._span >= size << 32
        ):
            return closed
        return [*closed, *self._close()]

    def finish(self) -> Sequence[Piece]:
        """Cut the open rest: into pieces of the smallest average, and a tail that is no piece.

        Where pieces are large, the rest is large too and would be stored anew after each appended element.
        """
        if self._average > AVERAGE_BYTES:
            rest = Cutter()
            counted = zip(self._open, self._open_counts, strict=True)
            pieces = [piece for data, elements in counted for piece in rest.add(data, elements)]
            pieces.extend(rest.finish())
            self.keys.extend(rest.keys)
            self.tail = rest.tail
            return pieces
        if self._open_size > MAX_TAIL_BYTES:
            return self._close()
        self.tail = b"".join(self._open)
        return ()

    def _close(self) -> Sequence[Piece]:
        """The open elements as a piece."""
        if not self._open:
            return ()
        piece = new_piece(b"".join(self._open), sum(self._open_counts))
        self.keys.append(piece.key)
        self._open.clear()
        self._open_counts.clear()
        self._open_size = 0
        self._set_limits()
        return (piece,)

    def _add_parts(self, data: Buffer, elements: int) -> Sequence[Piece]:
        parts = list(parts_of(data, elements))
        self.size += len(data)
        self.elements += elements
        self.keys.extend(part.key for part in parts)
        self._set_limits()
        return parts

    def _set_limits(self) -> None:
        """The limits of the next piece."""
        self._average = average_at(self.size)
        self._minimum = self._average // 4
        self._span = self._average - self._minimum
        self._maximum = self._average * 4


def nodes_of(keys: Sequence[bytes]) -> tuple[list[Piece], list[bytes]]:
    """The node pieces that hold the first of `keys`, and the keys after the last node."""
    if len(keys) <= MAX_INLINE_KEYS:
        return [], list(keys)
    nodes: list[Piece] = []
    start = 0
    for end, key in enumerate(keys, 1):
        count = end - start
        if count >= _MIN_NODE_KEYS and (key[0] < _NODE_END or count == _MAX_NODE_KEYS):
            nodes.append(new_piece(b"".join(keys[start:end]), count))
            start = end
    return nodes, list(keys[start:])


def joined_keys(keys: Iterable[bytes]) -> bytes:
    return b"".join(keys)


def split_keys(data: object) -> list[bytes]:
    """The keys in the bytes of a node, or of a document's field."""
    if not isinstance(data, bytes) or not data or len(data) % KEY_BYTES:
        raise UnreadableError
    return [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]


def referenced_keys(stored: Document) -> tuple[list[bytes], list[bytes]]:
    """The keys of nodes and of leaves that stand in a stored value. Raises `UnreadableError`."""
    return (
        split_keys(stored["nodes"]) if "nodes" in stored else [],
        split_keys(stored["pieces"]) if "pieces" in stored else [],
    )
