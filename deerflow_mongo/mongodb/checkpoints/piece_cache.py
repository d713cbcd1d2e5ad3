"""The bytes of pieces that were read or written lately, bounded by their size; least recently used go first.

A piece never changes under its key, so an entry is never wrong; it may outlive its document, which does no
harm to a reader. It is no record of what is stored: a writer must not ask it whether a piece exists.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

DEFAULT_CACHE_BYTES: Final = 64 * 1024 * 1024
_SHARE: Final = 16
"""A piece larger than this part of the cache is not stored: it would displace too many others."""

ENTRY_BYTES: Final = 300
"""What an entry needs besides the data, about."""


class PieceCache:
    """An LRU cache that threads may share."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, bytes], tuple[bytes, int]] = OrderedDict()
        self._keys: dict[str, set[bytes]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def get(self, thread: str, key: bytes) -> tuple[bytes, int] | None:
        """The data and the number of elements of a piece."""
        with self._lock:
            entry = self._entries.get((thread, key))
            if entry is not None:
                self._entries.move_to_end((thread, key))
            return entry

    def put(self, thread: str, key: bytes, data: bytes, elements: int) -> None:
        size = len(data) + ENTRY_BYTES
        if size * _SHARE > self._max_bytes:
            return
        with self._lock:
            if (thread, key) in self._entries:
                self._entries.move_to_end((thread, key))
                return
            self._entries[thread, key] = (data, elements)
            self._keys.setdefault(thread, set()).add(key)
            self._bytes += size
            while self._bytes > self._max_bytes:
                (oldest_thread, oldest_key), (oldest, _) = self._entries.popitem(last=False)
                self._bytes -= len(oldest) + ENTRY_BYTES
                keys = self._keys[oldest_thread]
                keys.discard(oldest_key)
                if not keys:
                    del self._keys[oldest_thread]

    def drop_thread(self, thread: str) -> None:
        with self._lock:
            for key in self._keys.pop(thread, ()):
                data, _ = self._entries.pop((thread, key))
                self._bytes -= len(data) + ENTRY_BYTES
