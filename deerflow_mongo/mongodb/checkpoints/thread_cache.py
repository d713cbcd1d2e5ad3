"""What a saver remembers of threads beside the database, bounded by its size in bytes.

Least recently used entries go first, and all entries of a thread when it is deleted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, Generic, TypeAlias, TypeVar

from .cached_piece import CachedPiece
from .elements import Encoded

DEFAULT_CACHE_BYTES: Final = 64 * 1024 * 1024

ENTRY_BYTES: Final = 300
"""What an entry needs besides its content, about."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class ThreadCache(Generic[_Key, _Value]):
    """An LRU cache that threads of the process may share. The keys of different conversations are apart."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES, *, share: int) -> None:
        """An entry larger than one part of `share` is not stored: it would displace too many others."""
        self._max_bytes = max_bytes
        self._share = share
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, _Key], tuple[_Value, int]] = OrderedDict()
        self._keys: dict[str, set[_Key]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def get(self, thread: str, key: _Key) -> _Value | None:
        with self._lock:
            entry = self._entries.get((thread, key))
            if entry is None:
                return None
            self._entries.move_to_end((thread, key))
            return entry[0]

    def put(self, thread: str, key: _Key, value: _Value, size_bytes: int) -> None:
        """Store an entry in the place of the one under its key."""
        size_bytes += ENTRY_BYTES
        with self._lock:
            self._remove(thread, key)
            if size_bytes * self._share > self._max_bytes:
                return
            self._entries[thread, key] = (value, size_bytes)
            self._keys.setdefault(thread, set()).add(key)
            self._bytes += size_bytes
            while self._bytes > self._max_bytes:
                self._remove(*next(iter(self._entries)))

    def drop_thread(self, thread: str) -> None:
        with self._lock:
            for key in list(self._keys.get(thread, ())):
                self._remove(thread, key)

    def _remove(self, thread: str, key: _Key) -> None:
        entry = self._entries.pop((thread, key), None)
        if entry is None:
            return
        self._bytes -= entry[1]
        keys = self._keys[thread]
        keys.discard(key)
        if not keys:
            del self._keys[thread]


PieceCache: TypeAlias = ThreadCache[bytes, CachedPiece]
"""The pieces that were read or written lately, by key.

A piece never changes under its key, so an entry is never wrong; it may outlive its document, which does no
harm to a reader. It is no record of what is stored: a writer must not ask it whether a piece exists.
"""

EncodedCache: TypeAlias = ThreadCache[tuple[str, str], Encoded]
"""How the values that were written lately were encoded, by namespace and channel."""

PIECE_SHARE: Final = 16
ENCODED_SHARE: Final = 3
