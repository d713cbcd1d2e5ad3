"""The headers of msgpack before the elements of an array, a map and the snapshot of a delta channel."""

from __future__ import annotations

import struct
from typing import Final

DELTA_CODE: Final = 7
"""LangGraph's extension for a snapshot, whose content is an array."""

_FIXED_EXTENSIONS: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}


def array_header(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    return struct.pack(">BH", 0xDC, count) if count < 1 << 16 else struct.pack(">BI", 0xDD, count)


def map_header(count: int) -> bytes:
    if count < 16:
        return bytes((0x80 | count,))
    return struct.pack(">BH", 0xDE, count) if count < 1 << 16 else struct.pack(">BI", 0xDF, count)


def delta_header(count: int, size: int) -> bytes:
    array = array_header(count)
    size += len(array)
    if size in _FIXED_EXTENSIONS:
        extension = bytes((_FIXED_EXTENSIONS[size],))
    elif size < 1 << 8:
        extension = struct.pack(">BB", 0xC7, size)
    elif size < 1 << 16:
        extension = struct.pack(">BH", 0xC8, size)
    else:
        extension = struct.pack(">BI", 0xC9, size)
    return extension + bytes((DELTA_CODE,)) + array
