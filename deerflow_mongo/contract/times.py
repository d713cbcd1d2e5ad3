"""Times: reading the caller's, and the clock that orders what one process creates.

A row has a time as `datetime.isoformat()` writes it in UTC. How a backend stores one is not decided here.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

from .errors import ArgumentValueError


class Clock:
    """Microseconds since 1970, strictly increasing within the process.

    Two things that one process creates one after the other never have the same stamp, and never swapped ones
    when the system's clock is set back.
    """

    def __init__(self) -> None:
        self._last_us = 0
        self._lock = threading.Lock()

    def stamp_us(self) -> int:
        with self._lock:
            self._last_us = max(time.time_ns() // 1_000, self._last_us + 1)
            return self._last_us


clock = Clock()


def system_clock_us() -> int:
    """Microseconds since 1970 on the system's clock, also after it was set back."""
    return time.time_ns() // 1_000


def parse_time(name: str, value: object) -> datetime:
    """A time that a caller passed, in UTC; a naive one means UTC.

    Raises `ArgumentValueError`, naming the argument, for anything but an ISO-8601 text or a datetime.
    """
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ArgumentValueError(f"{name} must be an ISO-8601 time, got {value!r}") from None
    if not isinstance(moment, datetime):
        # CONTRACT section 1 promises a ValueError for every wrong time, a wrong type included.
        raise ArgumentValueError(
            f"{name} must be an ISO-8601 string or a datetime, got {type(value).__name__}"
        )
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    try:
        return aware.astimezone(UTC)
    except OverflowError:
        raise ArgumentValueError(f"{name} is outside the years 1 to 9999 in UTC: {value!r}") from None
