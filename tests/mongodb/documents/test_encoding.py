"""Payloads: what is stored natively, what as marked JSON, and that every payload is read back unchanged."""

from __future__ import annotations

import random
from typing import Any, cast

import bson
import pytest

from deerflow_mongo.mongodb.documents.encoding import decode_mapping, encode_mapping, encode_value
from deerflow_mongo.mongodb.drivers.driver import CODEC_OPTIONS

NATIVE: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63 - 1,
    -(2**63),
    1.0,
    -0.0,
    1e308,
    "",
    "text with \0",
    "多字节 🦌",
    [],
    {},
    [1, [2, {"": {"a.b": {"$set": None}}}]],
    {"$id": 1, "$db": 2},
    {"deeper": {"_json": "only a mark at the top"}},
]
MARKED: list[Any] = [
    2**63,
    -(2**63) - 1,
    10**4299,
    "\ud800",
    ["\udfff"],
    {"\ud800": 1},
    {"n\0": 1},
    {"$ref": "c", "$id": 1},
    [[{"$ref": None}]],
    {"_json": "x"},
    {"_json": 1, "b": 2},
    {"deep": [{"er": 2**64}]},
]


def _through_bson(document: dict[str, Any]) -> dict[str, Any]:
    return bson.decode(bson.encode(document), CODEC_OPTIONS)  # pyright: ignore[reportUnknownMemberType]


def _identical(left: Any, right: Any) -> bool:
    """Equal in value, in the order of keys and in plain type, all the way down."""
    return _shape(left) == _shape(right)


def _shape(value: Any) -> Any:
    if type(value) is dict:
        items = cast("dict[str, Any]", value).items()
        return "dict", [(key, _shape(item)) for key, item in items]
    if type(value) is list:
        return "list", [_shape(item) for item in cast("list[Any]", value)]
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("value", NATIVE, ids=repr)
def test_value_that_bson_returns_unchanged_is_stored_natively(value: Any) -> None:
    assert encode_value(value) is value
    assert _identical(decode_mapping(_through_bson(encode_mapping({"k": value}))), {"k": value})


@pytest.mark.parametrize("value", MARKED, ids=lambda value: repr(value)[:40])
def test_value_that_bson_changes_or_refuses_is_stored_as_marked_json(value: Any) -> None:
    stored = encode_value(value)
    assert list(stored) == ["_json"]
    assert stored["_json"].isascii()
    assert _identical(decode_mapping(_through_bson(encode_mapping({"k": value}))), {"k": value})


@pytest.mark.parametrize(
    "key", ["", "a.b", "$set", "$ref", "$id", "_json", '_json"x"', "_jsonx", "n\0l", "\ud800", "键", "\\"]
)
def test_any_key_is_read_back_unchanged(key: str) -> None:
    payload: dict[str, Any] = {"before": 1, key: {key: key}, "after": 2}
    assert _identical(decode_mapping(_through_bson(encode_mapping(payload))), payload)


def test_key_is_encoded_the_same_for_every_value_so_that_a_merge_finds_it() -> None:
    [first] = encode_mapping({"n\0l": 1})
    [second] = encode_mapping({"n\0l": 2**80})
    assert first == second


@pytest.mark.parametrize("payload", [{"n": 2**40}, {"l": [[2**40]]}, {"d": {"l": [{"n": 2**40}]}, "b": 1}])
def test_64_bit_integers_are_read_as_plain_int_at_any_depth(payload: dict[str, Any]) -> None:
    stored = _through_bson(encode_mapping(payload))
    assert not _identical(stored, payload)  # the driver's own integer type
    assert _identical(decode_mapping(stored), payload)


def test_one_marked_value_leaves_the_others_native() -> None:
    assert encode_mapping({"a": 1, "b": 2**70, "c": {"d": 1}}) == {
        "a": 1,
        "b": {"_json": str(2**70)},
        "c": {"d": 1},
    }


def _random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 7)
    if kind >= 7:
        size = rng.randrange(4)
        if kind == 7:
            return [_random_value(rng, depth - 1) for _ in range(size)]
        return {_random_text(rng): _random_value(rng, depth - 1) for _ in range(size)}
    return [
        None,
        True,
        False,
        rng.randrange(-(2**70), 2**70),
        rng.random(),
        _random_text(rng),
        rng.randrange(9),
    ][kind]


def _random_text(rng: random.Random) -> str:
    return "".join(rng.choice("ab.$\0_é\ud800鹿🦌") for _ in range(rng.randrange(4)))


def test_two_thousand_random_payloads_are_read_back_identical() -> None:
    rng = random.Random(20261123)  # noqa: S311 - repeatable, not secret
    for _ in range(2_000):
        payload = {_random_text(rng): _random_value(rng, 4) for _ in range(rng.randrange(5))}
        decoded = decode_mapping(_through_bson(encode_mapping(payload)))
        assert _identical(decoded, payload), payload
