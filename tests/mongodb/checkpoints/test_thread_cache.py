"""The caches of a saver: bounded by bytes, least recently used first, the entries of each thread apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from deerflow_mongo.mongodb.checkpoints.thread_cache import ENTRY_BYTES, ThreadCache

KIB = 1024
PIECE = b"x" * (KIB - ENTRY_BYTES)
"""With its entry, one KiB."""

Cache = ThreadCache[bytes, bytes]


def cache_of(max_bytes: int = 64 * KIB) -> Cache:
    return Cache(max_bytes, share=16)


def put(cache: Cache, thread: str, number: int, data: bytes = PIECE) -> None:
    cache.put(thread, key(number), data, len(data))


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_piece_is_found_by_thread_and_key() -> None:
    cache = cache_of()
    put(cache, "t1", 1, b"data")

    assert cache.get("t1", key(1)) == b"data"
    assert cache.get("t2", key(1)) is None
    assert cache.get("t1", key(2)) is None


def test_least_recently_used_pieces_go_when_the_bytes_are_used_up() -> None:
    cache = cache_of(16 * KIB)
    for number in range(16):
        put(cache, "t", number)
    assert cache.get("t", key(0)) is not None
    put(cache, "t", 1)

    put(cache, "t", 16)
    put(cache, "t", 17)

    missing = [number for number in range(18) if cache.get("t", key(number)) is None]
    assert missing == [2, 3]
    assert cache.size_bytes == 16 * KIB


def test_piece_larger_than_a_sixteenth_is_not_stored() -> None:
    cache = cache_of(16 * KIB)
    put(cache, "t", 1, PIECE + b"x")
    put(cache, "t", 2)

    assert cache.get("t", key(1)) is None
    assert cache.get("t", key(2)) is not None


def test_entry_takes_the_place_of_the_one_under_its_key() -> None:
    cache = cache_of()
    put(cache, "t", 1)
    put(cache, "t", 1, b"new")

    assert cache.get("t", key(1)) == b"new"
    assert (len(cache), cache.size_bytes) == (1, ENTRY_BYTES + 3)

    put(cache, "t", 1, b"x" * 4 * KIB)  # too large: the earlier one is not right any more

    assert cache.get("t", key(1)) is None
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_dropped_thread_leaves_the_pieces_of_others() -> None:
    cache = cache_of()
    for thread in ("t1", "t2"):
        for number in range(3):
            put(cache, thread, number)

    cache.drop_thread("t1")
    cache.drop_thread("unknown")

    assert [cache.get("t1", key(number)) for number in range(3)] == [None] * 3
    assert cache.get("t2", key(2)) == PIECE
    assert (len(cache), cache.size_bytes) == (3, 3 * KIB)


def test_displaced_pieces_of_a_dropped_thread_are_not_counted_twice() -> None:
    cache = cache_of(16 * KIB)
    for number in range(20):
        put(cache, f"t{number}", number)

    for number in range(20):
        cache.drop_thread(f"t{number}")

    assert (len(cache), cache.size_bytes) == (0, 0)


def test_cache_without_room_stores_nothing() -> None:
    cache = cache_of(0)
    put(cache, "t", 1, b"")

    assert cache.get("t", key(1)) is None


def test_size_stays_exact_under_concurrent_use() -> None:
    cache = cache_of(64 * KIB)

    def use(worker: int) -> None:
        for number in range(1000):
            put(cache, f"t{number % 7}", number % 100)
            cache.get(f"t{worker}", key(number % 90))
            if number % 100 == worker:
                cache.drop_thread(f"t{worker}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))

    assert cache.size_bytes == len(cache) * KIB <= 64 * KIB
