"""A value that begins as an earlier one did is cut as it would be without that one, and compared instead."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest

pytest.importorskip("langgraph.checkpoint.base")

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from deerflow_mongo.mongodb.checkpoints import cutting
from deerflow_mongo.mongodb.checkpoints.values import Before, ValueCodec, ValueEncoder

CODEC = ValueCodec(JsonPlusSerializer())

Cache = dict[bytes, tuple[bytes, int]]


def encoded(value: object, before: Before | None = None) -> tuple[ValueEncoder, Cache]:
    encoder = CODEC.encoder(value, before)
    return encoder, {piece.key: (piece.data, piece.elements) for piece in encoder.pieces()}


def before(encoder: ValueEncoder, cache: Cache) -> Before:
    return Before(encoder.stable_keys, encoder.document.get("size", 0), cache.get)


def texts(seed: int, count: int, largest: int) -> list[str]:
    random_ = random.Random(seed)  # noqa: S311 - no secret
    return [random_.randbytes(random_.randrange(1, largest)).hex() for _ in range(count)]


Change = Callable[[list[str]], list[str]]

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
}


@pytest.mark.parametrize("largest", [40, 3_000, 60_000], ids=["small", "messages", "large"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_value_after_an_earlier_one_is_stored_as_without_it(change: Change, largest: int) -> None:
    old = texts(1, 90, largest)
    first, cache = encoded(old)
    new = change(old)
    alone, _ = encoded(new)
    after, pieces = encoded(new, before(first, cache))
    assert after.document == alone.document
    assert after.stable_keys == alone.stable_keys
    decoder = CODEC.decoder(after.document, "place")
    decoder.feed_nodes([pieces[key][0] for key in decoder.node_keys])
    for key in decoder.leaf_keys:
        decoder.feed(*pieces[key])
    assert decoder.value() == new


def test_growing_list_is_stored_as_if_it_had_been_whole_at_once() -> None:
    """Also where its pieces grow with its size."""
    items: list[str] = []
    cache: Cache = {}
    encoder, _ = encoded(items)
    for seed in range(40):
        items += texts(seed, 20, 60_000)
        encoder, pieces = encoded(items, before(encoder, cache))
        cache.update(pieces)
    assert encoder.document["size"] > 2 * 1024 * cutting.AVERAGE_BYTES
    assert encoder.document == encoded(items)[0].document


def test_pieces_that_the_cache_dropped_are_cut_again() -> None:
    old = texts(1, 90, 3_000)
    first, cache = encoded(old)
    del cache[first.stable_keys[len(first.stable_keys) // 2]]
    new = [*old, "new"]
    assert encoded(new, before(first, cache))[0].document == encoded(new)[0].document


def test_dict_is_compared_as_well() -> None:
    old = dict(enumerate(texts(1, 90, 3_000)))
    first, cache = encoded(old)
    assert first.stable_keys
    new = {**old, 90: "new"}
    assert encoded(new, before(first, cache))[0].document == encoded(new)[0].document


def test_decoder_names_only_leaves_that_stay() -> None:
    for count in range(60, 90):
        old = texts(1, count, 3_000)
        first, _ = encoded(old)
        stable = CODEC.decoder(first.document, "place").stable_keys
        assert set(stable) <= set(first.stable_keys)
        assert len(stable) >= len(first.stable_keys) - 1
