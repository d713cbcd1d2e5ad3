"""The cache of pieces: bounded by bytes, least recently used first, with the entries of each thread apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from deerflow_mongo.mongodb.checkpoints.piece_cache import ENTRY_BYTES, PieceCache

KIB = 1024
PIECE = b"x" * (KIB - ENTRY_BYTES)
"""With its entry, one KiB."""


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_piece_is_found_by_thread_and_key() -> None:
    cache = PieceCache()
    cache.put("t1", key(1), b"data", 3)

    assert cache.get("t1", key(1)) == (b"data", 3)
    assert cache.get("t2", key(1)) is None
    assert cache.get("t1", key(2)) is None


def test_least_recently_used_pieces_go_when_the_bytes_are_used_up() -> None:
    cache = PieceCache(16 * KIB)
    for number in range(16):
        cache.put("t", key(number), PIECE, 1)
    assert cache.get("t", key(0)) is not None
    cache.put("t", key(1), PIECE, 1)

    cache.put("t", key(16), PIECE, 1)
    cache.put("t", key(17), PIECE, 1)

    missing = [number for number in range(18) if cache.get("t", key(number)) is None]
    assert missing == [2, 3]
    assert cache.size_bytes == 16 * KIB


def test_piece_larger_than_a_sixteenth_is_not_stored() -> None:
    cache = PieceCache(16 * KIB)
    cache.put("t", key(1), PIECE + b"x", 1)
    cache.put("t", key(2), PIECE, 1)

    assert cache.get("t", key(1)) is None
    assert cache.get("t", key(2)) is not None


def test_dropped_thread_leaves_the_pieces_of_others() -> None:
    cache = PieceCache()
    for thread in ("t1", "t2"):
        for number in range(3):
            cache.put(thread, key(number), PIECE, number)

    cache.drop_thread("t1")
    cache.drop_thread("unknown")

    assert [cache.get("t1", key(number)) for number in range(3)] == [None] * 3
    assert cache.get("t2", key(2)) == (PIECE, 2)
    assert (len(cache), cache.size_bytes) == (3, 3 * KIB)


def test_displaced_pieces_of_a_dropped_thread_are_not_counted_twice() -> None:
    cache = PieceCache(16 * KIB)
    for number in range(20):
        cache.put(f"t{number}", key(number), PIECE, 1)

    for number in range(20):
        cache.drop_thread(f"t{number}")

    assert (len(cache), cache.size_bytes) == (0, 0)


def test_cache_without_room_stores_nothing() -> None:
    cache = PieceCache(0)
    cache.put("t", key(1), b"", 1)

    assert cache.get("t", key(1)) is None


def test_size_stays_exact_under_concurrent_use() -> None:
    cache = PieceCache(64 * KIB)

    def use(worker: int) -> None:
        for number in range(1000):
            cache.put(f"t{number % 7}", key(number % 100), PIECE, 1)
            cache.get(f"t{worker}", key(number % 90))
            if number % 100 == worker:
                cache.drop_thread(f"t{worker}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))

    assert cache.size_bytes == len(cache) * KIB <= 64 * KIB
