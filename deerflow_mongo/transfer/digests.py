"""Compares two sets of rows by counts and digests per kind and thread, in whatever order the rows are read.

Digests are added modulo 2^128, so that the order does not count and a row that is there twice does. Memory is
bounded: totals of threads beyond `MAX_TOTALS_IN_MEMORY` go to a temporary file, which is removed at the end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from ..contract.row_digests import DIGEST_BYTES
from ..contract.row_digests import row_digest as row_digest

MAX_TOTALS_IN_MEMORY: Final = 50_000

_MODULUS: Final = 1 << (8 * DIGEST_BYTES)
_NO_THREAD: Final = ""


class Total(NamedTuple):
    """The number of rows, and the sum of their digests."""

    rows: int
    sum: int

    def plus(self, other: Total) -> Total:
        return Total(self.rows + other.rows, (self.sum + other.sum) % _MODULUS)

    @property
    def digest(self) -> str:
        """The sum as text."""
        return f"{self.sum:0{2 * DIGEST_BYTES}x}"


NOTHING: Final = Total(0, 0)


class Difference(NamedTuple):
    """Rows of one kind that differ: of this thread, or of none, as accounts are."""

    kind: str
    thread_id: str | None
    here: Total
    there: Total


class Digests:
    """Totals of rows by kind and thread; to be closed, or used with `with`.

    Not for several threads at once.
    """

    def __init__(self, max_totals_in_memory: int = MAX_TOTALS_IN_MEMORY) -> None:
        self._max_totals = max_totals_in_memory
        self._kinds: dict[str, Total] = {}
        self._threads: dict[tuple[str, str], Total] = {}
        # A database without a name is a temporary file, which SQLite creates once its cache is full.
        self._file = sqlite3.connect("", check_same_thread=False)
        self._file.execute(
            "CREATE TABLE totals (kind TEXT, thread BLOB, rows INTEGER, sum BLOB, PRIMARY KEY (kind, thread))"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        """Add a row to the totals of its kind and of its `thread_id`."""
        self.add_digest(kind, row.get("thread_id"), row_digest(row))

    def add_digest(self, kind: str, thread_id: str | None, digest: int) -> None:
        """Add what is no row, such as a checkpoint, by its digest, a number below 2^128."""
        one = Total(1, digest)
        self._kinds[kind] = self._kinds.get(kind, NOTHING).plus(one)
        key = (kind, thread_id or _NO_THREAD)
        self._threads[key] = self._threads.get(key, NOTHING).plus(one)
        if len(self._threads) > self._max_totals:
            self._spill()

    def total(self, kind: str) -> Total:
        return self._kinds.get(kind, NOTHING)

    def totals(self) -> dict[str, Total]:
        """By kind, of those kinds that have rows."""
        return dict(self._kinds)

    def differences(self, other: Digests) -> Iterator[Difference]:
        """Where both sides have different rows, by kind and thread; nothing if they are equal."""
        here, there = self._sorted(), other._sorted()
        first, second = next(here, None), next(there, None)
        while first is not None or second is not None:
            key = min(entry[0] for entry in (first, second) if entry is not None)
            totals = [NOTHING, NOTHING]
            if first is not None and first[0] == key:
                totals[0], first = first[1], next(here, None)
            if second is not None and second[0] == key:
                totals[1], second = second[1], next(there, None)
            if totals[0] != totals[1]:
                kind, thread = key
                yield Difference(kind, thread.decode(errors="surrogatepass") or None, *totals)

    def _spill(self) -> None:
        """Move the totals of threads to the file."""
        with self._file, closing(self._file.cursor()) as cursor:
            for (kind, thread_id), total in self._threads.items():
                key = (kind, thread_id.encode(errors="surrogatepass"))
                found = cursor.execute(
                    "SELECT rows, sum FROM totals WHERE kind = ? AND thread = ?", key
                ).fetchone()
                if found is not None:
                    total = total.plus(_total(*found))
                stored = (total.rows, total.sum.to_bytes(DIGEST_BYTES, "big"))
                cursor.execute("REPLACE INTO totals VALUES (?, ?, ?, ?)", (*key, *stored))
        self._threads.clear()

    def _sorted(self) -> Iterator[tuple[tuple[str, bytes], Total]]:
        self._spill()
        found = self._file.execute("SELECT kind, thread, rows, sum FROM totals ORDER BY kind, thread")
        for kind, thread, count, stored in found:
            yield (kind, thread), _total(count, stored)


def _total(count: int, stored: bytes) -> Total:
    return Total(count, int.from_bytes(stored, "big"))
