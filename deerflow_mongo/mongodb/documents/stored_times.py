"""Times as documents have them: text in UTC with exactly six digits of a second.

`2026-04-22T03:26:38.123456+00:00` keeps the microseconds that a BSON date (milliseconds) would cut off, and
sorts as text in the order of time. A row has the same text without a fraction of zero.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from ...contract.times import clock, parse_time

_ZERO_FRACTION = ".000000"


@lru_cache(maxsize=2)  # thousands of stamps are of the same second
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def stored_from_stamp(stamp_us: int) -> str:
    """The stored text of a clock's stamp."""
    second, us = divmod(stamp_us, 1_000_000)
    return f"{_second_text(second)}.{us:06d}+00:00"


def stored_now() -> str:
    """The stored text of now."""
    return stored_from_stamp(clock.stamp_us())


def stored_from_input(name: str, value: object) -> str:
    """The stored text of a time that a caller passed. Raises `ArgumentValueError` as `parse_time` does."""
    return parse_time(name, value).isoformat(timespec="microseconds")


def stored_from_optional(name: str, value: object) -> str | None:
    """As `stored_from_input`, with None for None."""
    return None if value is None else stored_from_input(name, value)


def row_time(stored: str) -> str:
    """A stored time as rows have it."""
    return stored[:19] + stored[26:] if stored[19:26] == _ZERO_FRACTION else stored


def optional_row_time(stored: str | None) -> str | None:
    """As `row_time`, with None for None."""
    return None if stored is None else row_time(stored)
