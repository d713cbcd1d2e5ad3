"""Times: reading the caller's, writing the stored ones, and the clock that orders what one process makes.

A stored time is text in UTC with exactly six digits of a second, `2026-04-22T03:26:38.123456+00:00`. It keeps
the microseconds that a BSON date (milliseconds) would cut off, sorts as text in the order of time, and reads
well in any shell. A row's time is the same text as `datetime.isoformat()` writes it: no fraction where it is
zero.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from functools import lru_cache

_ZERO_FRACTION = ".000000"


class Clock:
    """Microseconds since 1970, strictly increasing within the process.

    Two things that one process makes one after the other never carry the same stamp, nor swapped ones when
    the system's clock is set back.
    """

    def __init__(self) -> None:
        self._last_us = 0
        self._lock = threading.Lock()

    def stamp_us(self) -> int:
        with self._lock:
            self._last_us = max(time.time_ns() // 1_000, self._last_us + 1)
            return self._last_us


clock = Clock()


@lru_cache(maxsize=2)  # a clock stays in one second for thousands of stamps
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
    """The stored text of a time that a caller gave; `ValueError` naming the argument if it is none."""
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name} must be an ISO-8601 time, got {value!r}") from None
    if not isinstance(moment, datetime):
        raise ValueError(  # noqa: TRY004 - CONTRACT section 1 promises a ValueError for every wrong time
            f"{name} must be an ISO-8601 string or a datetime, got {type(value).__name__}"
        )
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    try:
        return aware.astimezone(UTC).isoformat(timespec="microseconds")
    except OverflowError:
        raise ValueError(f"{name} lies outside the years 1 to 9999 in UTC: {value!r}") from None


def stored_from_optional(name: str, value: object) -> str | None:
    """As `stored_from_input`, with None for None."""
    return None if value is None else stored_from_input(name, value)


def row_time(stored: str) -> str:
    """A stored time as rows show it."""
    return stored[:19] + stored[26:] if stored[19:26] == _ZERO_FRACTION else stored


def optional_row_time(stored: str | None) -> str | None:
    """As `row_time`, with None for None."""
    return None if stored is None else row_time(stored)
