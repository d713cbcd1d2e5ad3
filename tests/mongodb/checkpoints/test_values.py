"""Stored values: the bytes are serde's own, and what comes back is what serde gives for the whole value."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import json
import pickle
import random
import tracemalloc
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from deerflow_mongo import CorruptDocumentError
from deerflow_mongo.mongodb.documents.encoding import UnreadableError

from ...faults.settings import bounded

pytest.importorskip("langgraph.checkpoint.base")
messages: Any = pytest.importorskip("langchain_core.messages")

from langgraph.checkpoint.serde import types as serde_types  # noqa: E402
from langgraph.checkpoint.serde.base import CipherProtocol, SerializerCompat  # noqa: E402
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer  # noqa: E402
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer  # noqa: E402

from deerflow_mongo.mongodb.checkpoints import cutting, elements, values  # noqa: E402
from deerflow_mongo.mongodb.checkpoints.cached_piece import CachedPiece  # noqa: E402
from deerflow_mongo.mongodb.checkpoints.cutting import Piece, referenced_keys, split_keys  # noqa: E402
from deerflow_mongo.mongodb.checkpoints.values import (  # noqa: E402
    MAX_INLINE_BYTES,
    ValueCodec,
)

Delta: Any = getattr(serde_types, "_DeltaSnapshot", None)
needs_delta = pytest.mark.skipif(Delta is None, reason="this LangGraph has no delta channels")

PLACE = "thread 't', checkpoint 'c', channel 'messages'"
MIB = 1024 * 1024

Stored = dict[str, Any]
Pieces = dict[bytes, Piece]


def serde() -> JsonPlusSerializer:
    return JsonPlusSerializer(allowed_msgpack_modules=True)


def encode(value: object, codec: ValueCodec | None = None) -> tuple[Stored, Pieces]:
    encoder = (codec or ValueCodec(serde())).encoder(value)
    pieces = {piece.key: piece for piece in encoder.pieces()}
    return encoder.document, pieces


def read(piece: Piece) -> CachedPiece:
    return CachedPiece(piece.data, piece.elements)


def decode(document: Stored, pieces: Pieces, codec: ValueCodec | None = None) -> Any:
    decoder = (codec or ValueCodec(serde())).decoder(document, PLACE)
    if decoder.node_keys:
        decoder.feed_nodes([pieces[key].data for key in decoder.node_keys])
    for key in decoder.leaf_keys:
        decoder.feed(read(pieces[key]))
    return decoder.value()


def leaves_of(document: Stored, pieces: Pieces) -> list[Piece]:
    nodes, leaves = referenced_keys(document)
    return [
        pieces[key] for key in [*(key for node in nodes for key in split_keys(pieces[node].data)), *leaves]
    ]


def content_of(document: Stored, pieces: Pieces) -> bytes:
    """The bytes of the whole value, as serde gives them."""
    if "data" in document:
        return document["data"]
    content = b"".join(leaf.data for leaf in leaves_of(document, pieces)) + document.get("tail", b"")
    assert len(content) == document["size"]
    if document["shape"] == "blob":
        return content
    return values._HEADERS[document["shape"]](document["elements"], len(content)) + content


def chat(count: int, *, of: str = "", size: int = 1000) -> list[Any]:
    return [
        (messages.AIMessage if number % 2 else messages.HumanMessage)(
            content=f"{of}{number} " + f"word{number} " * (size // 8), id=f"id-{of}{number}"
        )
        for number in range(count)
    ]


# -- the bytes are serde's own ------------------------------------------------------------------------


class Model(BaseModel):
    name: str
    parts: list[int] = []


@dataclasses.dataclass
class Record:
    key: str
    value: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


class Color(Enum):
    RED = "red"


def human_message(text: str, id_: str | None) -> Any:
    return messages.HumanMessage(content=text, id=id_)


def ai_message(text: str, name: str) -> Any:
    return messages.AIMessage(
        content=[{"type": "text", "text": text}],
        tool_calls=[{"name": name, "args": {"q": text}, "id": "1", "type": "tool_call"}],
    )


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=300),
)
objects = st.one_of(
    scalars,
    st.builds(human_message, st.text(), st.none() | st.text()),
    st.builds(ai_message, st.text(), st.text(min_size=1)),
    st.builds(messages.ToolMessage, content=st.text(), tool_call_id=st.text()),
    st.builds(Model, name=st.text(), parts=st.lists(st.integers(0, 9))),
    st.builds(Record, st.text(), scalars),
    st.builds(Pair, scalars, scalars),
    st.builds(uuid.UUID, int=st.integers(0, 2**128 - 1)),
    st.sets(st.integers()).map(lambda numbers: {number % 1000 for number in numbers}),
    st.sampled_from(
        [Color.RED, Decimal("1.10"), datetime(2026, 1, 2, tzinfo=UTC), timedelta(1), (1, "two"), [], {}]
    ),
)
nested = st.recursive(
    objects,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=5,
)
keys = st.one_of(
    scalars, st.sampled_from([Color.RED, uuid.UUID(int=1), (1, 2), datetime(2026, 1, 2, tzinfo=UTC)])
)
lists = st.lists(nested, max_size=20) | st.lists(scalars, max_size=60)
dicts = st.dictionaries(keys, nested, max_size=20) | st.dictionaries(keys, scalars, max_size=60)
shapes = st.one_of(lists, dicts, *([lists.map(Delta)] if Delta is not None else []), nested)


@contextmanager
def small_limits() -> Generator[None]:
    """Limits under which the small values of a property test have several pieces, and nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "MAX_INLINE_BYTES", 60)
        patch.setattr(elements, "_MIN_SMALL_ELEMENTS", 20)
        patch.setattr(elements, "_SMALL_ELEMENT_BYTES", 12)
        patch.setattr(elements, "_BATCH", 7)
        patch.setattr(cutting, "AVERAGE_BYTES", 64)
        patch.setattr(cutting, "_AVERAGES_BEFORE", 8)
        patch.setattr(cutting, "MAX_TAIL_BYTES", 50)
        patch.setattr(cutting, "_MIN_PART_BYTES", 128)
        patch.setattr(cutting, "MAX_INLINE_KEYS", 6)
        patch.setattr(cutting, "_MIN_NODE_KEYS", 2)
        patch.setattr(cutting, "_NODE_END", 80)
        yield


@bounded(150, 1)
@given(shapes)
def test_pieces_are_the_bytes_of_serde_and_decode_as_the_whole_does(value: Any) -> None:
    kind, whole = serde().dumps_typed(value)

    with small_limits():
        document, pieces = encode(value)
        again = encode(value)

    assert (document["type"], content_of(document, pieces)) == (kind, whole)
    assert again == (document, pieces)
    # Compared by what serde gives for both: NaN is unequal to itself, and 1 equals 1.0 and True.
    decoded = decode(document, pieces)
    assert type(decoded) is type(serde().loads_typed((kind, whole)))
    assert serde().dumps_typed(decoded) == serde().dumps_typed(serde().loads_typed((kind, whole)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        "",
        b"",
        bytearray(b"x"),
        [],
        {},
        [None],
        {None: None},
        "text",
        [[]],
        Color.RED,
        {"a": [1]},
    ],
    ids=repr,
)
def test_small_value_stands_inline_as_serde_gives_it(value: object) -> None:
    kind, data = serde().dumps_typed(value)
    assert encode(value) == ({"type": kind, "data": bytes(data)}, {})
    assert decode({"type": kind, "data": bytes(data)}, {}) == value


Build = Callable[[Any], Any]
TEXTS: list[Build] = [
    lambda size: "x" * (size - 3),
    lambda size: ["x" * (size - 4)],
    lambda size: {1: "x" * (size - 5)},
]
WITH_BAD: list[Build] = [lambda bad: ["x" * 9000, bad], lambda bad: {"k": bad}, lambda bad: bad]


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("build", TEXTS)
def test_value_is_cut_above_the_inline_limit_and_not_at_it(build: Build, excess: int) -> None:
    value = build(MAX_INLINE_BYTES + excess)
    assert len(serde().dumps_typed(value)[1]) == MAX_INLINE_BYTES + excess
    document, pieces = encode(value)
    assert ("data" in document) == (not excess)
    assert decode(document, pieces) == value


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (chat(300), "list"),
        ({f"/file{number}": "line\n" * number for number in range(300)}, "dict"),
        ({number: str(number) for number in range(3000)}, "dict"),
        (["x" * 300_000, 1, "y" * 20_000], "list"),
        (list(range(50_000)), "list"),
        ([number / 7 for number in range(5000)], "list"),
        ("text " * 100_000, "blob"),
        (b"image" * 100_000, "blob"),
        (bytearray(b"image" * 10_000), "blob"),
        (tuple(chat(30)), "blob"),
        (Model(name="m" * 20_000), "blob"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 10 else type(value).__name__,
)
def test_large_value_comes_back(value: Any, shape: str) -> None:
    document, pieces = encode(value)
    assert document["shape"] == shape
    assert content_of(document, pieces) == serde().dumps_typed(value)[1]
    decoded = decode(document, pieces)
    expected = serde().loads_typed(serde().dumps_typed(value))
    assert (type(decoded), decoded) == (type(expected), expected)


@needs_delta
@pytest.mark.parametrize("count", [0, 1, 15, 16, 300])
def test_snapshot_of_a_delta_channel_is_cut_as_its_list(count: int) -> None:
    chatted = chat(count)
    document, pieces = encode(Delta(chatted))

    assert content_of(document, pieces) == serde().dumps_typed(Delta(chatted))[1]
    assert decode(document, pieces) == Delta(chatted)
    if count == 300:
        assert document["shape"] == "delta"
        assert set(pieces) == set(encode(chatted)[1])


def test_subclasses_of_list_and_dict_are_not_taken_apart() -> None:
    class Messages(list[Any]):
        pass

    value = Messages(["x" * 9000, "y" * 9000])
    document, pieces = encode(value)
    assert document["shape"] == "blob"
    assert decode(document, pieces) == serde().loads_typed(serde().dumps_typed(value))


def test_appended_message_adds_one_document_at_most() -> None:
    chatted = chat(500, size=2000)
    known = set(encode(chatted)[1])
    for number in range(50):
        chatted += chat(1, of=f"new{number}-", size=1000 if number % 2 else 4000)
        document, pieces = encode(chatted)
        nodes = referenced_keys(document)[0]
        new = set(pieces) - known
        assert len(new - set(nodes)) <= 1
        assert len(new) <= 2
        assert len(document.get("tail", b"")) <= 8 * 1024
        assert len(document.get("pieces", b"")) < 16 * 256
        known |= new


def test_list_that_changes_meanwhile_is_encoded_as_it_was() -> None:
    value = ["x" * 5000 for _ in range(50)]
    encoder = ValueCodec(serde()).encoder(value)
    pieces = encoder.pieces()
    first = next(pieces)
    value.append("y")
    stored = {piece.key: piece for piece in [first, *pieces]}
    assert decode(encoder.document, stored) == value[:-1]


def test_document_is_refused_before_the_pieces_are_consumed() -> None:
    encoder = ValueCodec(serde()).encoder(chat(50))
    next(encoder.pieces())
    with pytest.raises(RuntimeError, match="have not been consumed"):
        _ = encoder.document


def test_stored_document_is_the_format() -> None:
    """A change here needs a reader of the earlier format."""
    document, pieces = encode([*("ab" * 3000 for _ in range(3)), "end"])
    (piece,) = pieces.values()
    assert document == {
        "type": "msgpack",
        "shape": "list",
        "size": 3 * 6003 + 4,
        "elements": 4,
        "pieces": piece.key * 3,
        "tail": b"\xa3end",
    }
    assert piece == Piece(piece.key, b"\xda\x17\x70" + b"ab" * 3000, 1)


# -- other serdes -------------------------------------------------------------------------------------


class _Xor(CipherProtocol):
    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "xor", bytes(byte ^ 7 for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "xor"
        return self.encrypt(ciphertext)[1]


class _Json:
    def dumps(self, obj: Any) -> bytes:
        return json.dumps(obj).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class _Reversing(JsonPlusSerializer):
    """Gives msgpack, and not that of each element."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return super().dumps_typed(list(reversed(obj)))

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return list(reversed(super().loads_typed(data)))


@pytest.mark.parametrize(
    "other",
    [EncryptedSerializer(_Xor()), SerializerCompat(_Json()), _Reversing()],
    ids=["encrypted", "json", "subclass"],
)
@pytest.mark.parametrize("value", [["x"], ["x" * 50] * 3000, [[1, 2], "y" * 30_000]], ids=["1", "3000", "2"])
def test_other_serde_gets_the_whole_value(other: Any, value: Any) -> None:
    codec = ValueCodec(other)
    document, pieces = encode(value, codec)
    assert (document["type"], content_of(document, pieces)) == other.dumps_typed(value)
    assert document.get("shape", "blob") == "blob"
    assert decode(document, pieces, codec) == value


def test_encrypted_serde_reads_what_was_stored_without_encryption() -> None:
    chatted = chat(100)
    document, pieces = encode(chatted)
    assert decode(document, pieces, ValueCodec(EncryptedSerializer(_Xor()))) == chatted


class Unknown:
    """Nothing that msgpack can hold; pickle can."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unknown) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


@pytest.mark.parametrize("at", [0, 10, 99])
def test_list_with_one_element_for_pickle_is_pickled_whole(at: int) -> None:
    codec = ValueCodec(JsonPlusSerializer(pickle_fallback=True))
    value: list[Any] = ["x" * 1000 for _ in range(100)]
    value[at] = Unknown("u")
    document, pieces = encode(value, codec)
    assert (document["type"], content_of(document, pieces)) == ("pickle", pickle.dumps(value))
    assert {leaf.key for leaf in leaves_of(document, pieces)} == set(pieces)
    assert decode(document, pieces, codec) == value


@pytest.mark.parametrize("build", WITH_BAD)
def test_error_of_serde_is_raised_as_it_is(build: Build) -> None:
    value = build(Unknown("u"))
    with pytest.raises(TypeError) as expected:
        serde().dumps_typed(value)
    encoder = ValueCodec(serde()).encoder(value)
    with pytest.raises(TypeError) as raised:
        list(encoder.pieces())
    assert str(raised.value) == str(expected.value)
    with pytest.raises(RuntimeError):
        _ = encoder.document


def test_langgraph_without_delta_channels_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_DELTA_CLASS", None)
    chatted = chat(100)
    document, pieces = encode(chatted)
    assert decode(document, pieces) == chatted
    with pytest.raises(CorruptDocumentError, match="does not know"):
        decode({**document, "shape": "delta"}, pieces)


# -- damaged documents --------------------------------------------------------------------------------


def _without(field: str) -> Callable[[Stored], Stored]:
    return lambda document: {name: value for name, value in document.items() if name != field}


def _with(**changes: Any) -> Callable[[Stored], Stored]:
    return lambda document: {**document, **changes}


def _changed(field: str, change: Callable[[Any], Any]) -> Callable[[Stored], Stored]:
    return lambda document: {**document, field: change(document[field])}


DAMAGES: dict[str, tuple[Callable[[Stored], Stored], str]] = {
    "no type": (_without("type"), "type"),
    "type of another kind": (_with(type=1), "type"),
    "no size": (_without("size"), "size"),
    "size as text": (_with(size="1"), "size"),
    "another size": (_changed("size", lambda size: size + 1), "size"),
    "smaller size": (_changed("size", lambda size: size - 1), "size"),
    "no elements": (_without("elements"), "elements"),
    "negative elements": (_with(elements=-1), "elements"),
    "elements as boolean": (_with(elements=True), "elements"),
    "more elements": (_changed("elements", lambda count: count + 1), "tail"),
    "fewer elements": (_changed("elements", lambda count: count - 1), "tail"),
    "one element": (_with(elements=1), "elements"),
    "a billion elements": (_with(elements=10**9), "tail"),
    "unknown shape": (_with(shape="set"), "shape"),
    "shape of another kind": (_with(shape=None), "shape"),
    "shape of a map": (_with(shape="dict"), "pieces"),
    "no pieces": (_without("pieces"), "tail"),
    "pieces cut short": (_changed("pieces", lambda data: data[:-1]), "pieces"),
    "pieces as list": (_changed("pieces", lambda data: [data]), "pieces"),
    "one piece less": (_changed("pieces", lambda data: data[16:]), "tail"),
    "one piece twice": (_changed("pieces", lambda data: data + data[-16:]), "size"),
    "no tail": (_without("tail"), "elements"),
    "tail as text": (_with(tail="x"), "tail"),
    "tail cut short": (_changed("tail", lambda data: data[:-1]), "tail"),
    "tail that is no msgpack": (_changed("tail", lambda data: b"\xc1" * len(data)), "tail"),
}


@pytest.mark.parametrize(("damage", "field"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_document_is_corrupt_and_names_the_place(
    damage: Callable[[Stored], Stored], field: str
) -> None:
    document, pieces = encode(["x" * (1000 + number) for number in range(40)])
    assert {"pieces", "tail"} <= set(document)

    with pytest.raises(CorruptDocumentError) as raised:
        decode(damage(document), pieces)

    assert raised.value.document_id == PLACE
    assert raised.value.collection == "checkpoint_data"
    assert raised.value.field == field


PIECE_DAMAGES: dict[str, Callable[[bytes, int], tuple[Any, Any]]] = {
    "no data": lambda _, elements: (None, elements),
    "text": lambda _, elements: ("x", elements),
    "no elements": lambda data, _: (data, None),
    "elements as text": lambda data, _: (data, "1"),
    "negative elements": lambda data, _: (data, -1),
    "one element less": lambda data, elements: (data, elements - 1),
    "one element more": lambda data, elements: (data, elements + 1),
    "a billion elements": lambda data, _: (data, 10**9),
    "cut short": lambda data, elements: (data[:-1], elements),
    "empty": lambda _, elements: (b"", elements),
    "longer": lambda data, elements: (data + b"\x01", elements),
    "no msgpack": lambda data, elements: (b"\xc1" * len(data), elements),
}


@pytest.mark.parametrize("damage", PIECE_DAMAGES.values(), ids=PIECE_DAMAGES)
@pytest.mark.parametrize(
    "value", [["x" * 1000] * 40, {str(number): "x" * 900 for number in range(40)}, "x" * 60_000]
)
def test_damaged_piece_is_corrupt(damage: Callable[[bytes, int], tuple[Any, Any]], value: Any) -> None:
    document, pieces = encode(value)
    decoder = ValueCodec(serde(), "prefix_data").decoder(document, PLACE)
    last = len(decoder.leaf_keys) - 1

    def feed_all() -> None:
        for number, key in enumerate(decoder.leaf_keys):
            piece = pieces[key]
            data, elements = piece.data, piece.elements
            given = damage(data, elements) if number == last else (data, elements)
            decoder.feed(CachedPiece(*given))
        decoder.value()

    with pytest.raises(CorruptDocumentError) as raised:
        feed_all()
    assert (raised.value.collection, raised.value.document_id) == ("prefix_data", PLACE)


def test_fewer_or_more_pieces_than_keys_are_corrupt() -> None:
    document, pieces = encode(chat(100))
    decoder = ValueCodec(serde()).decoder(document, PLACE)
    for key in decoder.leaf_keys[:-1]:
        decoder.feed(read(pieces[key]))
    with pytest.raises(CorruptDocumentError, match="pieces"):
        decoder.value()
    last = pieces[decoder.leaf_keys[-1]]
    decoder.feed(read(last))
    with pytest.raises(CorruptDocumentError, match="pieces"):
        decoder.feed(read(last))


def test_damaged_nodes_are_corrupt() -> None:
    document, _ = encode(chat(2000))
    codec = ValueCodec(serde())
    count = len(codec.decoder(document, PLACE).node_keys)
    assert count > 2
    damages: list[list[object]] = [[], [b"x" * 16] * (count - 1), [b"x" * 17] * count, [None] * count]
    for damaged in damages:
        with pytest.raises(CorruptDocumentError, match="nodes"):
            codec.decoder(document, PLACE).feed_nodes(damaged)
    with pytest.raises(CorruptDocumentError, match="nodes"):
        codec.decoder({**document, "nodes": b"x"}, PLACE)


@pytest.mark.parametrize(
    "inline", [{}, {"type": "msgpack"}, {"type": "msgpack", "data": "x"}, {"data": b"\x01"}]
)
def test_damaged_inline_value_is_corrupt(inline: Stored) -> None:
    with pytest.raises(CorruptDocumentError):
        ValueCodec(serde()).decoder(inline, PLACE).value()


def test_inline_value_that_is_no_msgpack_is_corrupt() -> None:
    with pytest.raises(CorruptDocumentError, match="data cannot be decoded"):
        decode({"type": "msgpack", "data": b"\xc1"}, {})


def test_value_of_another_serde_is_not_called_corrupt() -> None:
    with pytest.raises(NotImplementedError, match="pickle"):
        decode({"type": "pickle", "data": pickle.dumps([1])}, {})


@pytest.mark.parametrize("damaged", [{"nodes": b"x"}, {"pieces": b"x"}, {"pieces": 1}, {"nodes": []}])
def test_sweep_refuses_references_that_it_cannot_read(damaged: Stored) -> None:
    with pytest.raises(UnreadableError):
        referenced_keys(damaged)


def test_sweep_finds_every_key() -> None:
    document, pieces = encode(chat(2000))
    nodes, leaves = referenced_keys(document)
    assert {*nodes, *leaves, *(key for node in nodes for key in split_keys(pieces[node].data))} == set(pieces)
    assert referenced_keys({"type": "null", "data": b""}) == ([], [])


# -- memory -------------------------------------------------------------------------------------------


def test_memory_of_encoding_and_decoding_is_some_pieces_beside_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elements, "_MIN_SMALL_ELEMENTS", 48)  # sampling needs no more memory either
    monkeypatch.setattr(values, "MAX_STATES_BYTES", 0)  # what is kept for later values has its own limit
    source = random.Random(1)  # noqa: S311 - the same elements in each run
    value = [source.randbytes(MIB) for _ in range(48)]
    codec = ValueCodec(serde())
    encoder = codec.encoder(value)
    tracemalloc.start()
    try:
        # The nodes come last and are as small as their keys.
        nodes = {piece.key: piece.data for piece in encoder.pieces() if len(piece.data) <= 4096}
        assert tracemalloc.get_traced_memory()[1] < 6 * MIB
        decoder = codec.decoder(encoder.document, PLACE)
        decoder.feed_nodes([nodes[key] for key in decoder.node_keys])
        pieces = codec.encoder(value).pieces()
        tracemalloc.reset_peak()
        for key in decoder.leaf_keys:
            piece = next(pieces)
            assert piece.key == key
            decoder.feed(read(piece))
            del piece
        decoded = decoder.value()
        assert tracemalloc.get_traced_memory()[1] < (48 + 8) * MIB
    finally:
        tracemalloc.stop()
    assert decoded == value
