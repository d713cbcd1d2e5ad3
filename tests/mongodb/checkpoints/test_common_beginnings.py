"""A value that begins as an earlier one did is stored as without that one, and little is serialised."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

pytest.importorskip("langgraph.checkpoint.base")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from deerflow_mongo.mongodb.checkpoints import cutting, elements
from deerflow_mongo.mongodb.checkpoints.cached_piece import CachedPiece
from deerflow_mongo.mongodb.checkpoints.cutting import Piece
from deerflow_mongo.mongodb.checkpoints.values import Before, ValueCodec, ValueEncoder

CODEC = ValueCodec(JsonPlusSerializer())

Pieces = dict[bytes, Piece]


def encoded(value: object, before: Before | None = None) -> tuple[ValueEncoder, Pieces]:
    encoder = CODEC.encoder(value, before)
    return encoder, {piece.key: piece for piece in encoder.pieces()}


def before(encoder: ValueEncoder, pieces: Pieces) -> Before | None:
    return Before(encoder.encoded, pieces) if encoder.encoded else None


def decoded(encoder: ValueEncoder, pieces: Pieces) -> Any:
    decoder = CODEC.decoder(encoder.document, "place")
    decoder.feed_nodes([pieces[key].data for key in decoder.node_keys])
    for key in decoder.leaf_keys:
        piece = pieces[key]
        decoder.feed(CachedPiece(piece.data, piece.elements))
    return decoder.value()


def texts(seed: int, count: int, largest: int) -> list[Any]:
    random_ = random.Random(seed)  # noqa: S311 - no secret
    return [random_.randbytes(random_.randrange(1, largest)).hex() for _ in range(count)]


def messages(seed: int, count: int, largest: int) -> list[Any]:
    kinds = (HumanMessage, AIMessage, SystemMessage)
    return [
        kinds[number % 3](content=text, id=f"{seed} {number}")
        for number, text in enumerate(texts(seed, count, largest))
    ]


Change = Callable[[list[Any]], list[Any]]

CHANGES: Mapping[str, Change] = {
    "appended": lambda items: [*items, "new" * 900],
    "many appended": lambda items: [*items, *texts(7, 60, 3_000)],
    "the same": lambda items: [*items],
    "the last edited": lambda items: [*items[:-1], "edited"],
    "one in the middle edited": lambda items: [*items[:40], "edited", *items[41:]],
    "the first removed": lambda items: items[1:],
    "cut off": lambda items: items[:30],
    "nearly nothing left": lambda items: items[:1],
    "emptied": lambda items: [],
    "grown beyond a batch": lambda items: [*items, *texts(8, 3_000, 8)],
}


@pytest.mark.parametrize("largest", [40, 3_000, 60_000], ids=["small", "usual", "large"])
@pytest.mark.parametrize("kind", [texts, messages])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_value_after_an_earlier_one_is_stored_as_without_it(
    change: Change, kind: Callable[[int, int, int], list[Any]], largest: int
) -> None:
    old = kind(1, 90, largest)
    first, pieces = encoded(old)
    new = change(old)
    alone, _ = encoded(new)
    after, new_pieces = encoded(new, before(first, pieces))
    assert after.document == alone.document
    assert after.encoded == alone.encoded
    assert decoded(after, {**pieces, **new_pieces}) == new
    assert set(after.reused_keys) <= set(pieces)
    assert set(after.reused_keys).isdisjoint(new_pieces)


def test_small_elements_are_compared_in_batches() -> None:
    old: list[Any] = list(range(20_000))
    first, pieces = encoded(old)
    new = [*old, 1, 2, 3]
    after, _ = encoded(new, before(first, pieces))
    assert after.document == encoded(new)[0].document
    assert len(after.reused_keys) > 5


def test_growing_list_is_stored_as_if_it_had_been_whole_at_once() -> None:
    """Also where its pieces grow with its size."""
    items: list[Any] = []
    pieces: Pieces = {}
    encoder, _ = encoded(items)
    for seed in range(40):
        items += messages(seed, 20, 60_000)
        encoder, new = encoded(items, before(encoder, pieces))
        pieces.update(new)
    assert encoder.document["size"] > 2 * 1024 * cutting.AVERAGE_BYTES
    assert encoder.document == encoded(items)[0].document


def test_states_end_at_their_limit_and_elements_behind_it_are_serialised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deerflow_mongo.mongodb.checkpoints.values.MAX_STATES_BYTES", 50_000)
    old = messages(1, 90, 3_000)
    first, pieces = encoded(old)
    new = [*old, "new"]
    after, _ = encoded(new, before(first, pieces))
    assert first.encoded is not None
    assert sum(map(len, first.encoded.states)) <= 50_000
    assert 0 < len(after.reused_keys) < len(first.encoded.pieces)
    assert after.document == encoded(new)[0].document


def test_pieces_that_are_not_stored_any_more_are_given_again() -> None:
    old = messages(1, 90, 3_000)
    first, pieces = encoded(old)
    assert first.encoded is not None
    lost = first.encoded.pieces[len(first.encoded.pieces) // 2].key
    kept = {key: piece for key, piece in pieces.items() if key != lost}
    after, given = encoded([*old, "new"], before(first, kept))
    assert lost in given
    assert lost not in after.reused_keys
    assert after.document == encoded([*old, "new"])[0].document


def test_dict_is_compared_as_well() -> None:
    old = dict(enumerate(texts(1, 90, 3_000)))
    first, pieces = encoded(old)
    new = {**old, 90: "new"}
    after, _ = encoded(new, before(first, pieces))
    assert after.reused_keys
    assert after.document == encoded(new)[0].document


def test_list_is_not_compared_with_a_dict() -> None:
    first, pieces = encoded(dict(enumerate(texts(1, 90, 3_000))))
    new = texts(1, 90, 3_000)
    after, _ = encoded(new, before(first, pieces))
    assert not after.reused_keys
    assert after.document == encoded(new)[0].document


# -- messages that are changed in place ---------------------------------------------------------------


class OwnMessage(HumanMessage):
    """A subclass may be serialised as it likes."""


def conversation() -> list[Any]:
    call = {"name": "search", "args": {"query": "q", "deep": {"count": 1}}, "id": "c", "type": "tool_call"}
    many = messages(1, 60, 3_000)
    many[5] = AIMessage(content="a" * 600, id="5", tool_calls=[call], additional_kwargs={"n": 1})
    many[6] = ToolMessage(
        content=[{"type": "text", "text": "t"}], id="6", tool_call_id="c", artifact={"a": 1}
    )
    many[7] = OwnMessage(content="own", id="7")
    many[8] = HumanMessage(content="extra", id="8", extra={"more": [1]})
    many[9] = {"role": "user", "parts": [1, 2]}
    return many


def set_extra(items: list[Any]) -> None:
    items[8].extra["more"].append(2)


Edit = Callable[[list[Any]], None]

EDITS: Mapping[str, Edit] = {
    "content": lambda items: setattr(items[0], "content", "changed"),
    "content of the same length": lambda items: setattr(items[0], "content", items[0].content[::-1]),
    "name": lambda items: setattr(items[5], "name", "n"),
    "nested argument": lambda items: items[5].tool_calls[0]["args"]["deep"].update(count=2),
    "equal value of another type": lambda items: items[5].additional_kwargs.update(n=True),
    "equal float": lambda items: items[5].additional_kwargs.update(n=1.0),
    "order of keys": lambda items: setattr(
        items[5], "tool_calls", [dict(reversed(items[5].tool_calls[0].items()))]
    ),
    "part of the content": lambda items: items[6].content[0].update(text="changed"),
    "artifact": lambda items: items[6].artifact.update(a=2),
    "artifact that is an object": lambda items: setattr(items[6], "artifact", HumanMessage("inner")),
    "subclass": lambda items: setattr(items[7], "content", "changed"),
    "extra field": set_extra,
    "plain value": lambda items: items[9]["parts"].append(3),
    "class": lambda items: items.__setitem__(3, SystemMessage(content=items[3].content, id=items[3].id)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_message_that_was_edited_in_place_is_stored_as_it_is_now(edit: Edit) -> None:
    items = conversation()
    first, pieces = encoded(items)
    edit(items)
    items.append(HumanMessage(content="next", id="next"))
    alone, _ = encoded(items)
    after, new = encoded(items, before(first, pieces))
    assert after.document == alone.document
    assert decoded(after, {**pieces, **new}) == CODEC.serde.loads_typed(CODEC.serde.dumps_typed(items))


def test_object_within_a_message_that_is_edited_in_place() -> None:
    """Its state is what serde gives for the message."""
    items = conversation()
    items[6].artifact = HumanMessage("inner")
    first, pieces = encoded(items)
    unchanged, _ = encoded(items, before(first, pieces))
    items[6].artifact.content = "changed"
    after, _ = encoded(items, before(first, pieces))
    assert len(unchanged.reused_keys) > len(after.reused_keys)
    assert after.document == encoded(items)[0].document


def test_unchanged_messages_are_not_serialised(monkeypatch: pytest.MonkeyPatch) -> None:
    items = messages(1, 90, 3_000)
    first, pieces = encoded(items)
    serialised: list[Any] = []
    dumps = elements.Elements._packed  # pyright: ignore[reportPrivateUsage]

    def counting(self: elements.Elements, element: Any) -> bytes:
        serialised.append(element)
        return dumps(self, element)

    monkeypatch.setattr(elements.Elements, "_packed", counting)
    items.append(HumanMessage(content="next", id="next"))
    encoded(items, before(first, pieces))
    assert 0 < len(serialised) < 20  # those of the last piece and behind it
    assert serialised == items[-len(serialised) :]


# -- any sequence of changes ----------------------------------------------------------------------------


def change_at_random(random_: random.Random, items: list[Any], number: int) -> None:
    """One step of a graph, or of whoever edits its state."""
    new = random_.choice((HumanMessage, AIMessage, OwnMessage))(
        content="n" * random_.randrange(1, 3_000), id=f"new {number}"
    )
    place = random_.randrange(len(items)) if items else 0
    action = random_.randrange(9)
    if action < 3 or not items:
        items.append(new)
    elif action == 3:
        items.insert(place, new)
    elif action == 4:
        items[place] = new
    elif action == 5:
        del items[place]
    elif action == 6:
        del items[place : place + 10]
    elif action == 7:
        items[place].additional_kwargs["edited"] = {"by": [number]}
    else:
        items[place] = items[place].model_copy(update={"content": f"edited {number}"})


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_changes_is_stored_as_if_each_value_were_the_first(seed: int) -> None:
    """Some pieces are lost on the way, as after a deletion that another process made."""
    random_ = random.Random(seed)  # noqa: S311 - no secret
    items = messages(seed, 60, 2_000)
    pieces: Pieces = {}
    earlier: Before | None = None
    for number in range(60):
        after, new = encoded(items, earlier)
        assert after.document == encoded(items)[0].document
        pieces.update(new)
        assert decoded(after, pieces) == items
        if number % 20 == 19:
            pieces = dict(random_.sample(sorted(pieces.items()), len(pieces) // 2))
        earlier = before(after, pieces)
        change_at_random(random_, items, number)
