"""Digests of thread metadata: equal only for equal values, and found by their key."""

from __future__ import annotations

import tracemalloc
from typing import Any

from deerflow_mongo.contract.payloads import equal_json
from deerflow_mongo.mongodb.documents.digests import KEY_DIGEST_LENGTH, metadata_digests


def test_digests_are_equal_only_for_equal_values() -> None:
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
    digests = [metadata_digests({"k": value})[0] for value in values]
    assert len(set(digests)) == len(values)
    equal: list[tuple[Any, Any]] = [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        (-0.0, 0.0),
        ([{"x": [-0.0]}], [{"x": [0.0]}]),
    ]
    for left, right in equal:
        assert metadata_digests({"k": left}) == metadata_digests({"k": right})
    assert metadata_digests({"a": "b"}) != metadata_digests({"b": "a"})


def test_prefix_of_a_digest_depends_on_the_key_alone() -> None:
    """A merge finds the digests that it replaces by the prefix; the rest depends on key and value."""
    keys = ["k", "K", "k ", "", "a.b", "$k", "a\0b", "é", "e\u0301", "\ud800", '"k"', "k" * 2_000]
    values: list[Any] = [1, {"x": None}]
    digests = [metadata_digests({key: value}) for key in keys for value in values]
    assert {len(digest) for [digest] in digests} == {40}
    prefixes = [digest[:KEY_DIGEST_LENGTH] for [digest] in digests]
    assert KEY_DIGEST_LENGTH == 16
    assert prefixes[::2] == prefixes[1::2]
    assert len(set(prefixes)) == len(keys)
    assert len({digest for [digest] in digests}) == 2 * len(keys)


def test_long_keys_are_not_cached() -> None:
    """Keys come from users and have any length, so the cache's memory is bounded."""
    length, keys = 100_000, 100
    tracemalloc.start()
    try:
        for number in range(keys):
            metadata_digests({f"{number}{'k' * length}": 1})
        cached_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cached_bytes < 10 * length


VALUES: list[Any] = [
    *(1, 1.0, True, None, "1", "", 0, 0.0, -0.0, False, 2**70, float(2**70), "é"),
    *([], {}, [1], [True], [[1], 2], [1, [2]], {"a": 1}, {"a": 1.0}, {"a": None}),
    *({"a": 1, "b": 2}, {"b": 2, "a": 1}),
]


def test_digests_are_equal_exactly_where_the_contract_calls_values_equal() -> None:
    """`equal_json` is how backends without digests compare."""
    for one in VALUES:
        for other in VALUES:
            same = metadata_digests({"k": one}) == metadata_digests({"k": other})
            assert same == equal_json(one, other), (one, other)
