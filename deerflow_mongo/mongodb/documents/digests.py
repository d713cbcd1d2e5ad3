"""Digests of a thread's metadata, stored beside it and indexed: one index answers a search by any key.

A digest is of one top-level key and its whole value, whatever characters are in it and however large the
value is. Two are equal only for values that are equal in type and content. They are stored, so the way they
are computed is part of the format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache

from ...contract.rows import JSONValue

_KEY_DIGEST_BYTES, _VALUE_DIGEST_BYTES = 8, 12

KEY_DIGEST_LENGTH = 2 * _KEY_DIGEST_BYTES
"""The first characters of a digest depend on the key alone, so that a merge finds those it replaces."""

_MAX_CACHED_KEY_LENGTH = 128  # keys come from users: a thousand long ones would fill the memory

# One encoder for all calls: `json.dumps` with options makes a new one each time.
_canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def metadata_digests(payload: Mapping[str, JSONValue]) -> list[str]:
    return [_digest(key, value) for key, value in payload.items()]


def key_part(digest: str) -> str:
    return digest[:KEY_DIGEST_LENGTH]


def _digest(key: str, value: JSONValue) -> str:
    # Canonical JSON distinguishes 1, true and 1.0, and None from a missing key; -0.0 equals 0.0 in Python.
    canonical = _canonical_json([key, value])
    if "-0.0" in canonical:
        canonical = _canonical_json([key, _without_negative_zero(value)])
    of_key = _cached_key_digest if len(key) <= _MAX_CACHED_KEY_LENGTH else _key_digest
    return of_key(key) + hashlib.blake2b(canonical.encode(), digest_size=_VALUE_DIGEST_BYTES).hexdigest()


def _key_digest(key: str) -> str:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=_KEY_DIGEST_BYTES).hexdigest()


_cached_key_digest = lru_cache(maxsize=1024)(_key_digest)


def _without_negative_zero(value: JSONValue) -> JSONValue:
    if isinstance(value, dict):
        return {key: _without_negative_zero(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_negative_zero(item) for item in value]
    return 0.0 if isinstance(value, float) and value == 0.0 else value
