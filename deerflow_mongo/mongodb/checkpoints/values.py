"""A channel's value <-> the stored value in a checkpoint's document and its pieces.

A list, a dict and the snapshot of a delta channel are serialised element by element: msgpack arrays and maps
are a header and the concatenation of their elements, so the bytes are those of the whole value, and a large
state is never in memory a second time. This needs LangGraph's own msgpack serde. With any other serde, and
for any other value, the whole is serialised and cut into parts of a fixed size. Where pieces are stored and
fetched is not decided here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple, TypeGuard, cast

from langgraph.checkpoint.serde import types as serde_types
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from ...contract.errors import CorruptDocumentError
from ..documents.encoding import WHOLE, Document, UnreadableError
from ..schema import CHECKPOINTS
from .cached_piece import CachedPiece
from .cutting import Buffer, CutPiece, Cutter, Piece, joined_keys, nodes_of, parts_of, split_keys
from .elements import MAX_STATES_BYTES, MSGPACK, Elements, Encoded, NotByElementError, State
from .headers import DELTA_CODE, array_header, delta_header, map_header

MAX_INLINE_BYTES: Final = 8 * 1024

_LIST, _DICT, _DELTA, _WHOLE_VALUE = "list", "dict", "delta", "blob"

_HELD_BACK_BYTES: Final = 8 * 1024 * 1024
"""With a serde that pickles a value when msgpack fails, pieces up to this size wait until more are known."""

_DECODED_BYTES: Final = 1024 * 1024
"""Pieces up to this size in all are joined and decoded by one call of serde."""

_HEADERS: Final[dict[str, Callable[[int, int], bytes]]] = {
    _LIST: lambda count, _: array_header(count),
    _DICT: lambda count, _: map_header(count),
    _DELTA: delta_header,
}
"""Shape -> the header before the elements, of their number and the size of their bytes."""

_END: Final = secrets.token_bytes(16)  # a key that no dict has; it is never stored
_PACKED_END: Final = bytes((0xC4, len(_END))) + _END

_SHAPES: Final = frozenset({_LIST, _DICT, _DELTA, _WHOLE_VALUE})

_DELTA_CLASS: Final[Callable[[Any], Any] | None] = getattr(serde_types, "_DeltaSnapshot", None)
"""Missing in releases of LangGraph without delta channels."""


class Before(NamedTuple):
    """How an earlier value was encoded, and the keys of the pieces that are stored."""

    encoded: Encoded
    stored: Container[bytes]


class ValueCodec:
    """Encodes and decodes values with one serde."""

    def __init__(self, serde: SerializerProtocol, collection: str = CHECKPOINTS) -> None:
        """`collection` is what a `CorruptDocumentError` names."""
        self.serde = serde
        self.collection = collection
        self._shapes = _shapes_by_element(serde)

    def encoder(self, value: object, before: Before | None = None) -> ValueEncoder:
        """`before` is how an earlier value was encoded: what both begin with is not serialised again."""
        return ValueEncoder(self.serde, value, self._shape_of(value), before)

    def inline(self, value: object) -> Document | None:
        """The stored value of one that is mostly small, by one call of serde; None if it is not."""
        kind, data = self.serde.dumps_typed(value)
        # A copy of a bytearray, which serde returns as it is.
        return {"type": kind, "data": bytes(data)} if len(data) <= MAX_INLINE_BYTES else None

    def decoder(self, stored: Document, place: str) -> ValueDecoder:
        """`place` is the thread, checkpoint and channel, as the text of an error shows them."""
        return ValueDecoder(self, stored, place)

    def _shape_of(self, value: Any) -> str:
        shape = _WHOLE_VALUE
        if type(value) is list:
            shape = _LIST
        elif type(value) is dict:
            shape = _DICT
        elif type(value) is _DELTA_CLASS and type(value.value) is list:
            shape = _DELTA
        return shape if shape in self._shapes else _WHOLE_VALUE


def _shapes_by_element(serde: SerializerProtocol) -> frozenset[str]:
    """The shapes whose elements this serde serialises as it does within the whole value.

    A subclass or a wrapper with its own `dumps_typed` may do anything to a list, so it gets whole values.
    """
    own = getattr(serde.dumps_typed, "__func__", None), getattr(serde.loads_typed, "__func__", None)
    if own != (JsonPlusSerializer.dumps_typed, JsonPlusSerializer.loads_typed):
        return frozenset()
    probes = [(_LIST, [1], b"\x91\x01"), (_DICT, {1: 1}, b"\x81\x01\x01")]
    if _DELTA_CLASS is not None:
        probes.append((_DELTA, _DELTA_CLASS([]), bytes((0xD4, DELTA_CODE, 0x90))))
    return frozenset(
        shape for shape, probe, expected in probes if serde.dumps_typed(probe) == (MSGPACK, expected)
    )


class ValueEncoder:
    """One value on its way to the database. `pieces` may be iterated once."""

    def __init__(
        self, serde: SerializerProtocol, value: object, shape: str, before: Before | None = None
    ) -> None:
        self._serde = serde
        self._value = value
        self._shape = shape
        self._before = before
        self._document: Document | None = None
        self.encoded: Encoded | None = None
        """For the encoder of a later value, once `pieces` is exhausted; None for a value without pieces."""
        self.reused_keys: Sequence[bytes] = ()
        """Of the pieces that an earlier value has as well: they are among those of the document."""

    @property
    def document(self) -> Document:
        """The stored value, once `pieces` is exhausted."""
        if self._document is None:
            raise RuntimeError("the pieces of the value have not been consumed yet")
        return self._document

    def pieces(self) -> Iterator[Piece]:
        """Every piece of the value but the reused ones, in no order that matters; none for an inline value.

        It serialises as it goes, so that a caller may continue a large value in another thread. An error of
        serde is raised as it is, and the pieces before it are to be discarded.
        """
        if self._shape != _WHOLE_VALUE:
            pieces = self._by_element()
            try:
                yield from _held_back(pieces) if _may_pickle(self._serde) else pieces
                return
            except NotByElementError:
                self.reused_keys, self.encoded = (), None
        yield from self._whole()

    def _whole(self) -> Iterator[Piece]:
        kind, data = self._serde.dumps_typed(self._value)
        data = bytes(data)  # a bytearray comes back as itself
        if len(data) <= MAX_INLINE_BYTES:
            self._document = {"type": kind, "data": data}
            return
        keys: list[bytes] = []
        for piece in parts_of(data):
            keys.append(piece.key)
            yield piece
        yield from self._set_document(kind, _WHOLE_VALUE, len(data), 1, keys, b"")

    def _by_element(self) -> Iterator[Piece]:
        value: Any = self._value
        # A copy: the value may change while another thread serialises it.
        if self._shape == _DICT:
            copied: list[Any] = list(value.items())
        else:
            copied = list(value.value if self._shape == _DELTA else value)
        elements = Elements(self._serde, copied, is_dict=self._shape == _DICT)
        before, cutter = self._before, Cutter()
        pieces, states = elements.common(before.encoded, before.stored) if before else ([], [])
        if sum(piece.size for piece in pieces) <= MAX_INLINE_BYTES:
            pieces, states = [], []  # the whole may be small enough to stand inline
        cutter.resume(pieces)
        self.reused_keys = [piece.key for piece in pieces]
        units = elements.serialised(cutter.elements)
        if not pieces:
            first: list[tuple[State, Buffer, int]] = []
            size = 0
            for unit in units:
                first.append(unit)
                size += len(unit[1])
                if size > MAX_INLINE_BYTES:
                    break
            else:
                data = _HEADERS[self._shape](len(copied), size) + b"".join(data for _, data, _ in first)
                if len(data) <= MAX_INLINE_BYTES:
                    self._document = {"type": MSGPACK, "data": data}
                    return
            units = _chained(first, units)
        room = MAX_STATES_BYTES - sum(map(len, states))
        for state, data, count in units:
            room -= len(state)
            if room >= 0:
                states.append(state)
            for piece in cutter.add(data, count):
                pieces.append(CutPiece(piece.key, len(piece.data), piece.elements))
                yield piece
        self.encoded = elements.encoded(states, pieces)
        yield from cutter.finish()
        yield from self._set_document(
            MSGPACK, self._shape, cutter.size, cutter.elements, cutter.keys, cutter.tail
        )

    def _set_document(
        self, kind: str, shape: str, size: int, elements: int, keys: Sequence[bytes], tail: bytes
    ) -> Iterable[Piece]:
        """Fill the document; returns the node pieces."""
        nodes, rest = nodes_of(keys)
        document: Document = {"type": kind, "shape": shape, "size": size, "elements": elements}
        if nodes:
            document["nodes"] = joined_keys(node.key for node in nodes)
        if rest:
            document["pieces"] = joined_keys(rest)
        if tail:
            document["tail"] = tail
        self._document = document
        return nodes


def _may_pickle(serde: SerializerProtocol) -> bool:
    return bool(getattr(serde, "pickle_fallback", True))


def _chained(
    first: list[tuple[State, Buffer, int]], others: Iterable[tuple[State, Buffer, int]]
) -> Iterator[tuple[State, Buffer, int]]:
    yield from first
    first.clear()
    yield from others


def _held_back(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces; none before the first 8 MiB or all of them exist."""
    first: list[Piece] = []
    size = 0
    for piece in pieces:
        first.append(piece)
        size += len(piece.data)
        if size >= _HELD_BACK_BYTES:
            break
    first.reverse()
    while first:
        yield first.pop()
    yield from pieces


class ValueDecoder:
    """One value on its way from the database. Feed the nodes, if any, then each leaf in order."""

    def __init__(self, codec: ValueCodec, stored: Document, place: str) -> None:
        self._codec = codec
        self._place = place
        self._stored = stored
        self._fed_leaves = 0
        self._fed_elements = 0
        self._fed_bytes = 0
        self._undecoded = BytesIO()
        self._undecoded_elements = 0
        self._undecoded_pieces: list[tuple[bytes, CachedPiece]] = []
        self.copies: list[tuple[bytes, CachedPiece]] = []
        """For the next readers: pieces by their keys, in the place of those that were fed."""
        self._list: list[Any] = []
        self._dict: dict[Any, Any] = {}
        self._whole: Any = None
        self.node_keys: list[bytes] = []
        self.leaf_keys: list[bytes] = []
        self._own_leaf_keys: list[bytes] = []
        self._kind: str = self._checked("type", str)
        self._shape = _WHOLE_VALUE
        if "shape" not in stored:
            self._checked("data", bytes)
            return
        self._shape = self._checked("shape", str)
        if self._shape not in _SHAPES:
            raise self._corrupt("shape", f"is {self._shape!r}, which no release writes")
        self._elements = self._count("elements")
        self._size = self._count("size")
        self._tail: bytes = self._checked("tail", bytes) if "tail" in stored else b""
        self.node_keys = self._keys("nodes")
        self._own_leaf_keys = self._keys("pieces")
        if not self.node_keys:
            self.leaf_keys = self._own_leaf_keys

    def feed_nodes(self, data: Sequence[object]) -> None:
        """The data of the nodes, as it was read, in the order of `node_keys`."""
        if len(data) != len(self.node_keys):
            raise self._corrupt("nodes", f"has {len(self.node_keys)} keys, of which {len(data)} were found")
        keys: list[bytes] = []
        for node in data:
            try:
                keys.extend(split_keys(node))
            except UnreadableError:
                raise self._corrupt("nodes", "has a piece that is no list of keys") from None
        self.leaf_keys = [*keys, *self._own_leaf_keys]

    def feed(self, piece: CachedPiece) -> None:
        """The next leaf, as it was read. Its elements are decoded soon, so that its bytes can go."""
        if self._fed_leaves == len(self.leaf_keys):
            raise self._corrupt("pieces", "has fewer keys than pieces were read")
        self._fed_leaves += 1
        messages = piece.messages()
        if messages is not None:
            if self._undecoded_elements:
                self._decode("pieces")
            self._count_in(piece.size, piece.elements)
            self._list.extend(messages)
            return
        data, elements = piece.data, piece.elements
        if type(data) is not bytes or not _is_count(elements):
            raise self._corrupt("pieces", "has a piece without data or number of elements")
        self._undecoded_pieces.append((self.leaf_keys[self._fed_leaves - 1], piece))
        self._add("pieces", data, elements)

    def value(self) -> Any:
        """The value, when every leaf was fed."""
        if "shape" not in self._stored:
            return self._loads("data", self._stored["data"])
        if self.node_keys and not self.leaf_keys:
            raise RuntimeError("the nodes of the value have not been fed yet")
        if self._fed_leaves != len(self.leaf_keys):
            raise self._corrupt(
                "pieces", f"has {len(self.leaf_keys)} keys, {self._fed_leaves} pieces were read"
            )
        if self._undecoded_elements:
            self._decode("pieces")
        if self._tail:
            self._add("tail", self._tail, self._elements - self._fed_elements)
            if self._undecoded_elements:
                self._decode("tail")
        if self._fed_elements != self._elements:
            raise self._corrupt("elements", f"is {self._elements}, and {self._fed_elements} were found")
        if self._fed_bytes != self._size or self._undecoded.tell():
            raise self._corrupt("size", f"is {self._size}, and {self._fed_bytes} bytes were found")
        if self._shape == _DICT:
            return self._dict
        if self._shape == _LIST:
            return self._list
        if self._shape == _DELTA:
            if _DELTA_CLASS is None:
                raise self._corrupt(
                    "shape", "is a delta snapshot, which the installed LangGraph does not know"
                )
            return _DELTA_CLASS(self._list)
        return self._whole

    def _count_in(self, size: int, elements: int) -> None:
        self._fed_bytes += size
        if self._fed_bytes > self._size:
            raise self._corrupt("size", f"is {self._size}, and {self._fed_bytes} bytes were found")
        self._fed_elements += elements
        if not 0 <= elements <= self._elements or self._fed_elements > self._elements:
            raise self._corrupt("elements", f"is {self._elements}, and {self._fed_elements} were found")

    def _add(self, field: str, data: bytes, elements: int) -> None:
        self._count_in(len(data), elements)
        self._undecoded.write(data)
        self._undecoded_elements += elements
        # A piece without elements is a part of one that continues.
        if elements and self._undecoded.tell() >= _DECODED_BYTES:
            self._decode(field)

    def _decode(self, field: str) -> None:
        """What was fed since the last time: one call of serde for many pieces."""
        data, elements = self._undecoded.getvalue(), self._undecoded_elements
        self._undecoded, self._undecoded_elements = BytesIO(), 0
        pieces, self._undecoded_pieces = self._undecoded_pieces, []
        if elements > len(data):
            raise self._corrupt(field, f"states {elements} elements in {len(data)} bytes")
        if self._shape == _WHOLE_VALUE:
            self._whole = self._loads(field, data)
        elif self._shape == _DICT:
            self._add_items(field, data, elements)
        else:
            begin = len(self._list)
            self._add_elements(field, data, elements)
            self._copy(pieces, begin)

    def _copy(self, pieces: Sequence[tuple[bytes, CachedPiece]], begin: int) -> None:
        """Offer each of these pieces its elements, which begin there in the list."""
        continues = False
        for key, piece in pieces:
            end = begin + piece.elements
            if piece.elements and not continues:
                copy = piece.copied(self._codec, self._list[begin:end])
                if copy is not None:
                    self.copies.append((key, copy))
            begin, continues = end, not piece.elements

    # msgpack's decoder ignores what follows the stated number of elements: an end mark makes that an error.

    def _add_elements(self, field: str, data: bytes, elements: int) -> None:
        decoded = self._loads(field, b"".join((array_header(elements + 1), data, _PACKED_END)))
        last = decoded.pop()
        if type(last) is not bytes or last != _END:
            raise self._corrupt(field, f"has more than {elements} elements")
        self._list.extend(decoded)

    def _add_items(self, field: str, data: bytes, elements: int) -> None:
        decoded = self._loads(field, b"".join((map_header(elements + 1), data, _PACKED_END, _PACKED_END)))
        if decoded.pop(_END, None) != _END:
            raise self._corrupt(field, f"has more than {elements} elements")
        self._dict.update(decoded)

    def _loads(self, field: str, data: bytes) -> Any:
        try:
            return self._codec.serde.loads_typed((self._kind, data))
        except (NotImplementedError, MemoryError):
            raise  # serde does not know the type: another serde has written it, and nothing is damaged
        except Exception as error:
            raise self._corrupt(field, f"cannot be decoded ({type(error).__name__}: {error})") from error

    def _checked(self, field: str, kind: type) -> Any:
        value = self._stored.get(field)
        if type(value) is not kind:
            raise self._corrupt(field, f"is of type {type(value).__name__}, expected {kind.__name__}")
        return value

    def _count(self, field: str) -> int:
        value = self._stored.get(field)
        if not _is_count(value):
            raise self._corrupt(field, "is no whole number of at least 0")
        return value

    def _keys(self, field: str) -> list[bytes]:
        try:
            return split_keys(self._stored[field]) if field in self._stored else []
        except UnreadableError:
            raise self._corrupt(field, "is no list of keys") from None

    def _corrupt(self, field: str, reason: str) -> CorruptDocumentError:
        return CorruptDocumentError(self._codec.collection, self._place, field, reason)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) in WHOLE and cast("int", value) >= 0
