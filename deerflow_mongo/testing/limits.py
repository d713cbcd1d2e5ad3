"""Sizes of the payloads that tests write, derived from the limit that the backend states.

No size here is a database's own: a backend with a limit of 1 MiB gets small payloads, and one with a large
limit, or with none, gets payloads of at most 20 MiB.
"""

from __future__ import annotations

from ..contract.capabilities import max_payload_bytes
from ..contract.errors import InvalidPayloadError, PayloadTooLargeError
from ..contract.protocols import Storage

MEBIBYTE = 1024 * 1024
_DEFAULT_BYTES = 16 * MEBIBYTE
_MAX_BASE_BYTES = 18 * MEBIBYTE


def base_bytes(storage: Storage) -> int:
    """The stated limit, or 16 MiB where there is none or it is larger than a test can try."""
    limit_bytes = max_payload_bytes(storage)
    if limit_bytes is None or limit_bytes > _MAX_BASE_BYTES:
        return _DEFAULT_BYTES
    return limit_bytes


def oversized_text(storage: Storage) -> str:
    """A text above the stated limit; of 17 MiB where there is none."""
    return "x" * (base_bytes(storage) * 17 // 16)


def half_sized_text(storage: Storage) -> str:
    """A text clearly below the limit, whatever a row's other fields and the encoding add."""
    return "x" * (base_bytes(storage) // 2)


def more_than_half_text(storage: Storage) -> str:
    """A text of which one fits into a row and two do not, where there is a limit."""
    return "x" * (base_bytes(storage) * 9 // 16)


def must_be_stored(storage: Storage, size_bytes: int) -> bool:
    """Whether a row with this much text is clearly below the limit."""
    limit_bytes = max_payload_bytes(storage)
    return limit_bytes is None or size_bytes <= limit_bytes // 2


def must_raise(storage: Storage, size_bytes: int) -> bool:
    """Whether a row with this much text is above the limit."""
    limit_bytes = max_payload_bytes(storage)
    return limit_bytes is not None and size_bytes > limit_bytes


def assert_as_stated(
    storage: Storage, size_bytes: int, error: InvalidPayloadError | PayloadTooLargeError | None
) -> None:
    """Assert that a write of a row with this much text succeeded, or raised, as the limit demands."""
    limit_bytes = max_payload_bytes(storage)
    if error is None:
        assert not must_raise(storage, size_bytes), f"{size_bytes:,} bytes were stored; limit {limit_bytes}"
        return
    assert not must_be_stored(storage, size_bytes), f"{size_bytes:,} bytes were refused; limit {limit_bytes}"
    assert isinstance(error, PayloadTooLargeError)
    assert error.limit_bytes == limit_bytes
