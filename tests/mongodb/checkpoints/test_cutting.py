"""Cutting: boundaries follow the content, so that a change of a value changes the pieces near it only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deerflow_mongo.mongodb.checkpoints.cutting import (
    AVERAGE_BYTES,
    MAX_AVERAGE_BYTES,
    MAX_INLINE_KEYS,
    MAX_PIECE_BYTES,
    MAX_TAIL_BYTES,
    Cutter,
    Piece,
    average_at,
    nodes_of,
    part_size,
    parts_of,
    piece_key,
    split_keys,
)
from deerflow_mongo.mongodb.documents.encoding import UnreadableError

from ...faults.settings import bounded

KIB, MIB = 1024, 1024 * 1024


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same elements in each run


def cut(elements: Iterable[bytes]) -> tuple[list[Piece], Cutter]:
    cutter = Cutter()
    pieces = [piece for element in elements for piece in cutter.add(element)]
    pieces.extend(cutter.finish())
    assert [piece.key for piece in pieces] == cutter.keys
    return pieces, cutter


def elements_of(total: int, *sizes: int, seed: int = 1) -> list[bytes]:
    """Random elements of the sizes in turn, of `total` bytes together."""
    source = seeded(seed)
    return [
        source.randbytes(sizes[number % len(sizes)]) for number in range(total * len(sizes) // sum(sizes))
    ]


def new_bytes(before: Sequence[Piece], after: Sequence[Piece]) -> tuple[int, int]:
    """The number of pieces that the second list has and the first has not, and of their bytes."""
    known = {piece.key for piece in before}
    new = [piece for piece in after if piece.key not in known]
    return len(new), sum(len(piece.data) for piece in new)


def appended(elements: list[bytes], source: random.Random) -> list[bytes]:
    return [*elements, source.randbytes(source.choice((1024, 4096)))]


def edited(elements: list[bytes], source: random.Random) -> list[bytes]:
    at = source.randrange(len(elements))
    return [*elements[:at], source.randbytes(2000), *elements[at + 1 :]]


def removed(elements: list[bytes], source: random.Random) -> list[bytes]:
    at = source.randrange(len(elements))
    return [*elements[:at], *elements[at + 1 :]]


def inserted(elements: list[bytes], source: random.Random) -> list[bytes]:
    at = source.randrange(len(elements))
    return [*elements[:at], source.randbytes(2000), *elements[at:]]


CHANGES = [appended, edited, removed, inserted]


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_one_element_makes_few_new_pieces(
    change: Callable[[list[bytes], random.Random], list[bytes]],
) -> None:
    source = seeded(2)
    elements = elements_of(MIB, 1024, 4096)
    pieces, _ = cut(elements)
    for _ in range(50):
        elements = change(elements, source)
        before, (pieces, _) = pieces, cut(elements)
        assert new_bytes(before, pieces)[0] <= (1 if change is appended else 4)


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_one_small_element_makes_few_new_pieces(
    change: Callable[[list[bytes], random.Random], list[bytes]],
) -> None:
    source = seeded(3)
    elements = elements_of(MIB // 4, 100, 300)
    pieces, _ = cut(elements)
    for _ in range(50):
        elements = change(elements, source)
        before, (pieces, _) = pieces, cut(elements)
        assert new_bytes(before, pieces)[0] <= (1 if change is appended else 8)


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_a_large_value_makes_few_new_pieces_though_their_sizes_differ(
    change: Callable[[list[bytes], random.Random], list[bytes]],
) -> None:
    """Pieces grow with their offset: the offsets where they do move with an insertion, and little else."""
    source = seeded(4)
    elements = elements_of(10 * MIB, 4096, 16384)
    pieces, _ = cut(elements)
    assert average_at(10 * MIB) == 4 * AVERAGE_BYTES
    for _ in range(6):
        elements = change(elements, source)
        before, (pieces, _) = pieces, cut(elements)
        assert new_bytes(before, pieces)[0] <= (1 if change is appended else 12)


def test_growing_value_is_never_cut_anew() -> None:
    elements = elements_of(6 * MIB, 1024, 8192)
    known: set[bytes] = set()
    stored = 0
    for count in range(100, len(elements), 50):
        for piece in cut(elements[:count])[0]:
            if piece.key not in known:
                known.add(piece.key)
                stored += len(piece.data)
    assert stored < 1.6 * 6 * MIB  # where pieces are large, an element is in a small one first


def test_average_grows_in_powers_of_two() -> None:
    averages = [average_at(offset) for offset in range(0, 1024 * MIB, MIB)]
    assert averages == sorted(averages)
    assert set(averages) == {AVERAGE_BYTES << shift for shift in range(9)}
    assert average_at(4 * MIB - 1) == AVERAGE_BYTES
    assert averages[-1] == MAX_AVERAGE_BYTES
    # A value of 1 GiB has some thousands of pieces.
    assert sum(MIB / average for average in averages) < 5200


@pytest.mark.parametrize("sizes", [(100,), (1000,), (1024, 4096), (2500,), (3000, 500, 500)])
def test_pieces_have_about_the_average_size(sizes: tuple[int, ...]) -> None:
    pieces, _ = cut(elements_of(2 * MIB, *sizes))
    average = sum(len(piece.data) for piece in pieces) / len(pieces)
    assert average == pytest.approx(AVERAGE_BYTES, rel=0.3)
    assert max(len(piece.data) for piece in pieces) <= 4 * AVERAGE_BYTES


def test_large_element_becomes_parts_of_which_the_last_counts_it() -> None:
    small, large = b"small", seeded(5).randbytes(MIB)
    pieces, cutter = cut([small, large, small])

    assert [piece.elements for piece in pieces] == [1, *[0] * 7, 1]
    assert {len(piece.data) for piece in pieces[1:]} == {128 * KIB}
    assert (cutter.tail, cutter.elements, cutter.size) == (small, 3, MIB + 10)


@pytest.mark.parametrize("size", [0, 1, 16 * KIB, 16 * KIB + 1, MIB, 40 * MIB, 1024 * MIB, 5 * 1024 * MIB])
def test_part_is_never_larger_than_a_piece_may_be(size: int) -> None:
    assert 16 * KIB <= part_size(size) <= MAX_PIECE_BYTES


def test_text_that_grows_has_its_parts_in_common() -> None:
    text = seeded(6).randbytes(300 * KIB)
    before, after = list(parts_of(text)), list(parts_of(text + b"more"))
    assert new_bytes(before, after)[0] == 1


def test_small_rest_is_the_tail_and_a_large_one_a_piece() -> None:
    element = b"e" * (AVERAGE_BYTES // 4 - 1)  # below the minimum: it ends no piece alone
    pieces, cutter = cut([element])
    assert (pieces, cutter.tail) == ([], element)

    # Elements of 200 bytes with a large checksum end no piece.
    source = seeded(7)
    rest = [data for data in (source.randbytes(200) for _ in range(500)) if crc32(data) >= 1 << 31]
    rest = rest[: MAX_TAIL_BYTES // 200 + 1]
    pieces, cutter = cut(rest)
    assert [piece.data for piece in pieces] == [b"".join(rest)]
    assert cutter.tail == b""
    assert cut(rest[1:])[1].tail == b"".join(rest[1:])


@bounded(50, 1)
@given(st.lists(st.binary(min_size=1, max_size=40).map(lambda seed: seed * 997), max_size=12))
def test_pieces_and_tail_are_the_elements_in_order(elements: list[bytes]) -> None:
    pieces, cutter = cut(elements)

    assert b"".join(piece.data for piece in pieces) + cutter.tail == b"".join(elements)
    assert cutter.size == sum(map(len, elements))
    assert cutter.elements == len(elements)
    ends = set(accumulate(map(len, elements)))
    start = 0
    for piece in pieces:
        end = start + len(piece.data)
        assert piece.elements == len(ends.intersection(range(start + 1, end + 1)))
        assert len(piece.data) <= MAX_PIECE_BYTES
        start = end


def test_key_depends_on_data_and_elements() -> None:
    keys = {piece_key(b"a", 0), piece_key(b"a", 1), piece_key(b"b", 1), piece_key(b"", 1)}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}


def test_few_keys_stand_in_the_document() -> None:
    keys = keys_of(MAX_INLINE_KEYS)
    assert nodes_of(keys) == ([], keys)


def test_many_keys_stand_in_nodes_and_the_last_in_the_document() -> None:
    keys = keys_of(5000)
    nodes, rest = nodes_of(keys)

    assert [key for node in nodes for key in split_keys(node.data)] + rest == keys
    assert all(node.elements * 16 == len(node.data) for node in nodes)
    assert 40 <= len(nodes) <= 100
    assert len(rest) < 256


def test_change_of_one_key_makes_few_new_nodes() -> None:
    source = seeded(8)
    keys = keys_of(5000)
    nodes, _ = nodes_of(keys)
    for _ in range(50):
        at = source.randrange(len(keys))
        keys = [*keys[:at], source.randbytes(16), *keys[at + source.randrange(2) :]]
        before, (nodes, _) = nodes, nodes_of(keys)
        assert new_bytes(before, nodes)[0] <= 4


def keys_of(count: int) -> list[bytes]:
    source = seeded(9)
    return [source.randbytes(16) for _ in range(count)]


@pytest.mark.parametrize("data", [b"", b"x" * 15, b"x" * 17, "x" * 16, None, [b"x" * 16]])
def test_bytes_that_are_no_keys_are_refused(data: object) -> None:
    with pytest.raises(UnreadableError):
        split_keys(data)


def test_boundaries_and_keys_are_the_stored_format() -> None:
    """A change here makes a release that shares no piece with what an earlier one has stored."""
    pieces, cutter = cut(elements_of(64 * KIB, 500, 3000, 20000))

    turn = [(3500, 2), (16384, 0), (3616, 1)]
    assert [(len(piece.data), piece.elements) for piece in pieces] == [*turn, *turn, (3500, 2)]
    assert (pieces[0].key.hex(), len(cutter.tail)) == ("190bb82de1b4f73f8e18dd2cb1e30671", 0)
