"""The digest of an exported row: equal for equal rows, whichever backend or database has exported them.

Not for passwords or signatures: it finds differences, and protects from nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST_BYTES = 16

# One encoder for all calls: `json.dumps` with options makes a new one each time.
_canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def row_digest(row: Mapping[str, Any]) -> int:
    """A number below 2^128, of the row's JSON with its keys sorted at every level.

    1, 1.0, true and "1" have different digests. Raises `TypeError` for what is not JSON.
    """
    encoded = _canonical_json(dict(row)).encode("ascii")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest(), "big")
