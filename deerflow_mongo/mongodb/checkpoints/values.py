"""A channel's value <-> the stored value in a checkpoint's document and its pieces.

A list, a dict and the snapshot of a delta channel are serialised element by element: msgpack arrays and maps
are a header and the concatenation of their elements, so the bytes are those of the whole value, and a large
state is never in memory a second time. This needs LangGraph's own msgpack serde. With any other serde, and
for any other value, the whole is serialised and cut into parts of a fixed size. Where pieces are stored and
fetched is not decided here.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple, TypeGuard, cast

from langgraph.checkpoint.serde import types as serde_types
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from ...contract.errors import CorruptDocumentError
from ..documents.encoding import WHOLE, Document, UnreadableError
from ..schema import CHECKPOINTS
from .cutting import (
    AVERAGE_BYTES,
    Buffer,
    Cutter,
    Piece,
    average_at,
    joined_keys,
    nodes_of,
    parts_of,
    split_keys,
)

MAX_INLINE_BYTES: Final = 8 * 1024

_MSGPACK: Final = "msgpack"
_LIST, _DICT, _DELTA, _WHOLE_VALUE = "list", "dict", "delta", "blob"

_HELD_BACK_BYTES: Final = 8 * 1024 * 1024
"""With a serde that pickles a value when msgpack fails, pieces up to this size wait until more are known."""

_MAX_COMPARED_BYTES: Final = 16 * 1024 * 1024
"""A larger value is not serialised whole, which would need the memory once more."""

_SAMPLED_ELEMENTS: Final = 32
_SMALL_ELEMENT_BYTES: Final = 32
_MIN_SMALL_ELEMENTS: Final = 1024
_BATCH: Final = 256
"""Many small elements are serialised in batches: a call of serde for each takes a hundred times as long."""

_DELTA_CLASS: Final[Callable[[Any], Any] | None] = getattr(serde_types, "_DeltaSnapshot", None)
"""Missing in releases of LangGraph without delta channels."""

_DELTA_CODE: Final = 7


class _NotByElementError(Exception):
    """Serde does not give msgpack for an element."""


class Before(NamedTuple):
    """How an earlier value was cut: its `stable_keys`, its size, and where the pieces may still be found."""

    keys: Sequence[bytes]
    size: int
    piece: Callable[[bytes], tuple[bytes, int] | None]


class ValueCodec:
    """Encodes and decodes values with one serde."""

    def __init__(self, serde: SerializerProtocol, collection: str = CHECKPOINTS) -> None:
        """`collection` is what a `CorruptDocumentError` names."""
        self.serde = serde
        self.collection = collection
        self._shapes = _shapes_by_element(serde)

    def encoder(self, value: object, before: Before | None = None) -> ValueEncoder:
        """`before` is how an earlier value was cut: what both begin with is not cut again."""
        return ValueEncoder(self.serde, value, self._shape_of(value), before)

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
        probes.append((_DELTA, _DELTA_CLASS([]), bytes((0xD4, _DELTA_CODE, 0x90))))
    return frozenset(
        shape for shape, probe, expected in probes if serde.dumps_typed(probe) == (_MSGPACK, expected)
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
        self.stable_keys: Sequence[bytes] = ()
        """The leaves that a longer value with the same beginning has as well."""

    @property
    def document(self) -> Document:
        """The stored value, once `pieces` is exhausted."""
        if self._document is None:
            raise RuntimeError("the pieces of the value have not been consumed yet")
        return self._document

    def pieces(self) -> Iterator[Piece]:
        """Every piece of the value, in no order that matters; none for a value that stands inline.

        It serialises as it goes, so that a caller may continue a large value in another thread. An error of
        serde is raised as it is, and the pieces before it are to be discarded.
        """
        if self._shape != _WHOLE_VALUE:
            pieces = self._by_element()
            try:
                yield from _held_back(pieces) if _may_pickle(self._serde) else pieces
                return
            except _NotByElementError:
                pass
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
            elements: list[Any] = list(value.items())
        else:
            elements = list(value.value if self._shape == _DELTA else value)
        common = self._common(elements)
        if common:
            yield from common
            cutter = Cutter()
            cutter.resume(common)
            yield from self._cut(cutter, self._units(elements[cutter.elements :]))
            return
        units = self._units(elements)
        first: list[tuple[Buffer, int]] = []
        size = 0
        for unit in units:
            first.append(unit)
            size += len(unit[0])
            if size > MAX_INLINE_BYTES:
                break
        else:
            data = _HEADERS[self._shape](len(elements), size) + b"".join(data for data, _ in first)
            if len(data) <= MAX_INLINE_BYTES:
                self._document = {"type": _MSGPACK, "data": data}
                return
        yield from self._cut(Cutter(), _chained(first, units))

    def _cut(self, cutter: Cutter, units: Iterable[tuple[Buffer, int]]) -> Iterator[Piece]:
        for data, count in units:
            yield from cutter.add(data, count)
        self.stable_keys = tuple(cutter.keys)
        yield from cutter.finish()
        yield from self._set_document(
            _MSGPACK, self._shape, cutter.size, cutter.elements, cutter.keys, cutter.tail
        )

    def _common(self, elements: Sequence[Any]) -> list[Piece]:
        """The pieces of the earlier value whose bytes this one begins with.

        Comparing the bytes of the whole value takes a fraction of the time that cutting and hashing takes.
        """
        before = self._before
        if before is None or not before.keys or before.size > _MAX_COMPARED_BYTES or self._shape == _DELTA:
            return []
        header = _PLAIN_HEADERS[self._shape](len(elements))
        kind, data = self._serde.dumps_typed(self._value)
        if kind != _MSGPACK or len(data) <= MAX_INLINE_BYTES or not data.startswith(header):
            return []
        common: list[Piece] = []
        position, complete = len(header), 0
        for key in before.keys:
            found = before.piece(key)
            if found is None or not data.startswith(found[0], position):
                break
            position += len(found[0])
            common.append(Piece(key, *found))
            if found[1]:  # not a part of an element that continues
                complete = len(common)
        return common[:complete]

    def _units(self, elements: Sequence[Any]) -> Iterator[tuple[Buffer, int]]:
        """The bytes of one element after the other, or of batches, with the number of elements in them."""
        batch = _BATCH if self._are_small(elements) else 1
        if batch == 1:
            dumps, one = self._serde.dumps_typed, _ONE_OF[self._shape]
            as_dict = self._shape == _DICT
            for element in elements:
                kind, data = dumps({element[0]: element[1]} if as_dict else [element])
                if kind != _MSGPACK or data[0] != one:
                    raise _NotByElementError
                yield memoryview(data)[1:], 1  # no copy
            return
        for start in range(0, len(elements), batch):
            some = elements[start : start + batch]
            yield self._content(some), len(some)

    def _are_small(self, elements: Sequence[Any]) -> bool:
        if len(elements) < _MIN_SMALL_ELEMENTS:
            return False
        sample = elements[:: max(1, len(elements) // _SAMPLED_ELEMENTS)]
        room = _SMALL_ELEMENT_BYTES * len(sample)
        for element in sample:  # one by one: a few of them may be large
            room -= len(self._content([element]))
            if room <= 0:
                return False
        return True

    def _content(self, elements: Sequence[Any]) -> bytes:
        """The bytes of some elements without the header before them."""
        kind, data = self._serde.dumps_typed(dict(elements) if self._shape == _DICT else list(elements))
        header = _PLAIN_HEADERS[self._shape](len(elements))
        if kind != _MSGPACK or not data.startswith(header):
            raise _NotByElementError
        return data[len(header) :]

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
    first: list[tuple[Buffer, int]], others: Iterable[tuple[Buffer, int]]
) -> Iterator[tuple[Buffer, int]]:
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
        self._parts = BytesIO()
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

    @property
    def stable_keys(self) -> Sequence[bytes]:
        """The leaves that a longer value with the same beginning has as well; fewer than there are."""
        if self._shape == _WHOLE_VALUE or average_at(self._size) > AVERAGE_BYTES:
            return ()  # the last ones are cut smaller than they would be with more behind them
        return self.leaf_keys if self._tail else self.leaf_keys[:-1]

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

    def feed(self, data: object, elements: object) -> None:
        """The next leaf, as it was read. Its elements are decoded at once, so that its bytes can go."""
        if type(data) is not bytes or not _is_count(elements):
            raise self._corrupt("pieces", "has a piece without data or number of elements")
        if self._fed_leaves == len(self.leaf_keys):
            raise self._corrupt("pieces", "has fewer keys than pieces were read")
        self._fed_leaves += 1
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
        if self._tail:
            self._add("tail", self._tail, self._elements - self._fed_elements)
        if self._fed_elements != self._elements:
            raise self._corrupt("elements", f"is {self._elements}, and {self._fed_elements} were found")
        if self._fed_bytes != self._size or self._parts.tell():
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

    def _add(self, field: str, data: bytes, elements: int) -> None:
        self._fed_bytes += len(data)
        if self._fed_bytes > self._size:
            raise self._corrupt("size", f"is {self._size}, and {self._fed_bytes} bytes were found")
        if elements == 0:
            self._parts.write(data)
            return
        self._fed_elements += elements
        if not 0 <= elements <= self._elements or self._fed_elements > self._elements:
            raise self._corrupt("elements", f"is {self._elements}, and {self._fed_elements} were found")
        if self._parts.tell():
            self._parts.write(data)
            data = self._parts.getvalue()
            self._parts = BytesIO()
        if elements > len(data):
            raise self._corrupt(field, f"states {elements} elements in {len(data)} bytes")
        if self._shape == _WHOLE_VALUE:
            self._whole = self._loads(field, data)
        elif self._shape == _DICT:
            self._add_items(field, data, elements)
        else:
            self._add_elements(field, data, elements)

    # msgpack's decoder ignores what follows the stated number of elements: an end mark makes that an error.

    def _add_elements(self, field: str, data: bytes, elements: int) -> None:
        decoded = self._loads(field, b"".join((_array_header(elements + 1), data, _PACKED_END)))
        last = decoded.pop()
        if type(last) is not bytes or last != _END:
            raise self._corrupt(field, f"has more than {elements} elements")
        self._list.extend(decoded)

    def _add_items(self, field: str, data: bytes, elements: int) -> None:
        decoded = self._loads(field, b"".join((_map_header(elements + 1), data, _PACKED_END, _PACKED_END)))
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


# -- the headers of msgpack --------------------------------------------------------------------------


def _array_header(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    return struct.pack(">BH", 0xDC, count) if count < 1 << 16 else struct.pack(">BI", 0xDD, count)


def _map_header(count: int) -> bytes:
    if count < 16:
        return bytes((0x80 | count,))
    return struct.pack(">BH", 0xDE, count) if count < 1 << 16 else struct.pack(">BI", 0xDF, count)


def _delta_header(count: int, size: int) -> bytes:
    array = _array_header(count)
    size += len(array)
    if size in _FIXED_EXTENSIONS:
        extension = bytes((_FIXED_EXTENSIONS[size],))
    elif size < 1 << 8:
        extension = struct.pack(">BB", 0xC7, size)
    elif size < 1 << 16:
        extension = struct.pack(">BH", 0xC8, size)
    else:
        extension = struct.pack(">BI", 0xC9, size)
    return extension + bytes((_DELTA_CODE,)) + array


_FIXED_EXTENSIONS: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
_PLAIN_HEADERS: Final = {_LIST: _array_header, _DELTA: _array_header, _DICT: _map_header}
_HEADERS: Final[dict[str, Callable[[int, int], bytes]]] = {
    _LIST: lambda count, _: _array_header(count),
    _DICT: lambda count, _: _map_header(count),
    _DELTA: _delta_header,
}
"""Shape -> the header before the elements, of their number and the size of their bytes."""

_END: Final = secrets.token_bytes(16)  # a key that no dict has; it is never stored
_PACKED_END: Final = bytes((0xC4, len(_END))) + _END

_ONE_OF: Final = {_LIST: 0x91, _DELTA: 0x91, _DICT: 0x81}
_SHAPES: Final = frozenset({_LIST, _DICT, _DELTA, _WHOLE_VALUE})
