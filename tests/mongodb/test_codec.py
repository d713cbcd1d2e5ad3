"""Payloads: what is stored natively, what as marked JSON, and that everything comes back as it went in."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any, cast

import bson
import pytest

from deerflow_mongo.contract.rows import CALLERS, COMPLETION_COUNTS
from deerflow_mongo.mongodb import codec
from deerflow_mongo.mongodb.drivers.base import CODEC_OPTIONS

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
def test_what_bson_gives_back_is_stored_natively(value: Any) -> None:
    assert codec.encode_value(value) is value
    assert _identical(codec.decode_mapping(_through_bson(codec.encode_mapping({"k": value}))), {"k": value})


@pytest.mark.parametrize("value", MARKED, ids=lambda value: repr(value)[:40])
def test_what_bson_would_change_or_refuse_is_stored_as_marked_json(value: Any) -> None:
    stored = codec.encode_value(value)
    assert list(stored) == ["_json"]
    assert stored["_json"].isascii()
    assert _identical(codec.decode_mapping(_through_bson(codec.encode_mapping({"k": value}))), {"k": value})


@pytest.mark.parametrize(
    "key", ["", "a.b", "$set", "$ref", "$id", "_json", '_json"x"', "_jsonx", "n\0l", "\ud800", "键", "\\"]
)
def test_any_key_comes_back(key: str) -> None:
    payload: dict[str, Any] = {"before": 1, key: {key: key}, "after": 2}
    assert _identical(codec.decode_mapping(_through_bson(codec.encode_mapping(payload))), payload)


def test_a_key_is_always_encoded_in_the_same_way_so_that_a_merge_meets_it() -> None:
    [first] = codec.encode_mapping({"n\0l": 1})
    [second] = codec.encode_mapping({"n\0l": 2**80})
    assert first == second


@pytest.mark.parametrize("payload", [{"n": 2**40}, {"l": [[2**40]]}, {"d": {"l": [{"n": 2**40}]}, "b": 1}])
def test_a_64_bit_integer_comes_back_as_a_plain_one_however_deep(payload: dict[str, Any]) -> None:
    stored = _through_bson(codec.encode_mapping(payload))
    assert not _identical(stored, payload)  # the driver's own kind of integer
    assert _identical(codec.decode_mapping(stored), payload)


def test_a_rows_figures_are_plain_integers_however_large() -> None:
    fields = dict.fromkeys(
        ("assistant_id", "user_id", "model_name", "follow_up_to_run_id", "started_at", "ended_at")
    )
    given: dict[str, Any] = {**fields, "status": "s", "multitask_strategy": "m", "created_at": "t"}
    document = codec.new_run("r", "t", {**given, "metadata": {}, "kwargs": {}}, 2**50)
    document["message_count"] = 2**40
    document["tokens"] |= {"input": 2**40, "output": 2**40, "total": 2**41, "llm_calls": 2**40}
    document["tokens"]["by_caller"] = dict.fromkeys(CALLERS, 2**40)
    row = cast("dict[str, Any]", codec.run_row(_through_bson(document)))
    assert {type(row[name]) for name in COMPLETION_COUNTS} == {int}


def test_one_odd_value_leaves_the_others_native() -> None:
    assert codec.encode_mapping({"a": 1, "b": 2**70, "c": {"d": 1}}) == {
        "a": 1,
        "b": {"_json": str(2**70)},
        "c": {"d": 1},
    }


def test_every_figure_of_a_completion_has_a_path() -> None:
    assert list(codec.FIGURE_PATHS) == list(COMPLETION_COUNTS)


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


def test_two_thousand_random_payloads_come_back_identical() -> None:
    rng = random.Random(20261123)  # noqa: S311 - repeatable, not secret
    for _ in range(2_000):
        payload = {_random_text(rng): _random_value(rng, 4) for _ in range(rng.randrange(5))}
        back = codec.decode_mapping(_through_bson(codec.encode_mapping(payload)))
        assert _identical(back, payload), payload


@pytest.mark.parametrize("name", ["gpt-4.1", "a$b", "", "%", "%2E", "n\0l", "0", "a..b", "模型", "%25"])
def test_model_keys_are_one_step_of_a_path_and_never_meet(name: str) -> None:
    key = codec.model_key(name)
    assert key
    assert not set(key) & set(".$\0")
    others = ["gpt-4.1", "gpt-4%2E1", "a$b", "", "%", "%2E", "n\0l", "0", "a..b", "%25"]
    assert [other for other in others if codec.model_key(other) == key] in ([name], [])


def test_digests_are_equal_for_equal_values_only() -> None:
    values: list[Any] = [
        1,
        True,
        1.0,
        "1",
        None,
        [1],
        [True],
        {"a": 1},
        {"a": 1.0},
        {"a": None},
        {},
        [],
        0,
        False,
    ]
    digests = [codec.metadata_digests({"k": value})[0] for value in values]
    assert len(set(digests)) == len(values)
    equal: list[tuple[Any, Any]] = [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        (-0.0, 0.0),
        ([{"x": [-0.0]}], [{"x": [0.0]}]),
    ]
    for left, right in equal:
        assert codec.metadata_digests({"k": left}) == codec.metadata_digests({"k": right})
    assert codec.metadata_digests({"a": "b"}) != codec.metadata_digests({"b": "a"})


def test_a_digest_begins_with_what_its_key_alone_gives() -> None:
    """So that a merge finds what it replaces; the rest tells the key and the value."""
    keys = ["k", "K", "k ", "", "a.b", "$k", "a\0b", "é", "e\u0301", "\ud800", '"k"', "k" * 2_000]
    values: list[Any] = [1, {"x": None}]
    digests = [codec.metadata_digests({key: value}) for key in keys for value in values]
    assert {len(digest) for [digest] in digests} == {40}
    beginnings = [digest[: codec.KEY_DIGEST_LENGTH] for [digest] in digests]
    assert codec.KEY_DIGEST_LENGTH == 16
    assert beginnings[::2] == beginnings[1::2]
    assert len(set(beginnings)) == len(keys)
    assert len({digest for [digest] in digests}) == 2 * len(keys)


def test_digests_keep_no_long_keys_in_memory() -> None:
    """Keys are a user's, of any length: what is remembered of them has an end."""
    length, keys = 100_000, 100
    tracemalloc.start()
    try:
        for number in range(keys):
            codec.metadata_digests({f"{number}{'k' * length}": 1})
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 10 * length
