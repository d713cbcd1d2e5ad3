"""Messages that are copied from a piece are those that serde gives, and belong to one reader."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

pytest.importorskip("langgraph.checkpoint.base")

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from deerflow_mongo.mongodb.checkpoints.cached_piece import CachedPiece
from deerflow_mongo.mongodb.checkpoints.values import ValueCodec

CODEC = ValueCodec(JsonPlusSerializer())

Cached = dict[bytes, CachedPiece]


def stored(value: object) -> tuple[dict[str, Any], Cached]:
    encoder = CODEC.encoder(value)
    pieces = {piece.key: CachedPiece(piece.data, piece.elements) for piece in encoder.pieces()}
    return encoder.document, pieces


def read(document: dict[str, Any], pieces: Cached, codec: ValueCodec = CODEC) -> Any:
    """As a reader does, with the copies in the place of the pieces afterwards."""
    decoder = codec.decoder(document, "place")
    if decoder.node_keys:
        decoder.feed_nodes([pieces[key].data for key in decoder.node_keys])
    for key in decoder.leaf_keys:
        decoder.feed(pieces[key])
    value = decoder.value()
    pieces.update(decoder.copies)
    return value


def conversation() -> list[Any]:
    call = {"name": "search", "args": {"query": "q"}, "id": "c", "type": "tool_call"}
    messages: list[Any] = []
    for number in range(40):
        messages += [
            HumanMessage(content=f"question {number}" * 50, id=f"h{number}", extra={"number": number}),
            AIMessage(content="", id=f"a{number}", tool_calls=[call], usage_metadata=None),
            ToolMessage(
                content=[{"type": "text", "text": "t" * 900}], tool_call_id="c", artifact={"a": number}
            ),
        ]
    return messages


def copied(pieces: Cached) -> list[CachedPiece]:
    return [piece for piece in pieces.values() if piece.messages() is not None]


def test_messages_are_copied_from_the_third_reading_on() -> None:
    document, pieces = stored(conversation())
    first = read(document, pieces)
    assert not copied(pieces)
    second = read(document, pieces)
    assert len(copied(pieces)) == len(pieces) > 5
    third = read(document, pieces)
    assert first == second == third == conversation()
    for one, other in zip(first, third, strict=True):
        assert type(one) is type(other)
        assert one.model_dump() == other.model_dump()
        assert one.model_fields_set == other.model_fields_set
        assert one.__pydantic_extra__ == other.__pydantic_extra__


def test_what_a_reader_changes_is_its_own() -> None:
    document, pieces = stored(conversation())
    for _ in range(4):
        found = read(document, pieces)
        assert found == conversation()
        found[0].content = "changed"
        found[1].tool_calls[0]["args"]["query"] = "changed"
        found[2].content[0]["text"] = "changed"
        found.clear()


def test_values_that_are_no_messages_are_decoded_each_time() -> None:
    document, pieces = stored([{"text": "t" * 900, "number": number} for number in range(40)])
    for _ in range(3):
        assert len(read(document, pieces)) == 40
    assert not copied(pieces)


def test_messages_that_hold_objects_are_decoded_each_time() -> None:
    """A copy of an object may be another one than serde makes."""
    messages = conversation()
    for message in messages[2::3]:
        message.artifact = datetime(2026, 1, 1, tzinfo=UTC)
    document, pieces = stored(messages)
    for _ in range(3):
        assert read(document, pieces) == messages
    assert not copied(pieces)


def test_message_of_several_pieces_is_decoded_each_time() -> None:
    messages = [*conversation(), HumanMessage(content="x" * 200_000, id="large"), *conversation()]
    document, pieces = stored(messages)
    for _ in range(4):
        assert read(document, pieces) == messages
    assert 0 < len(copied(pieces)) < len(pieces)


def test_copies_are_for_the_codec_that_has_accepted_the_messages() -> None:
    document, pieces = stored(conversation())
    for _ in range(3):
        read(document, pieces)
    other = ValueCodec(JsonPlusSerializer(allowed_msgpack_modules=None))
    assert all(piece.is_for(CODEC) and not piece.is_for(other) for piece in pieces.values())
