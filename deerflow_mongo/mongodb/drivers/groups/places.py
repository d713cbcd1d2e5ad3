"""How many commands of a lane may be in flight at once.

Near the server a command costs CPU time of both sides, and little else: two are enough to keep them busy. On
a slow link a command is mostly on its way, and a call that waits for another one's answer loses a round trip;
so there may be one more for each millisecond of it. In measurements with 20 ms, four and eight callers were
then as fast as without groups, and 128 as fast as with two commands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LEAST_IN_FLIGHT: Final = 2
MOST_IN_FLIGHT: Final = 32
_PER_S: Final = 1_000
_REFRESH_S: Final = 1.0


class Places:
    """The number for the server's distance, which is asked for again after a second."""

    def __init__(self, round_trip_s: Callable[[], float]) -> None:
        self._round_trip_s = round_trip_s
        self._number = LEAST_IN_FLIGHT
        self._valid_until = 0.0

    def number(self) -> int:
        now = time.monotonic()
        if now >= self._valid_until:
            self._valid_until = now + _REFRESH_S
            self._number = min(LEAST_IN_FLIGHT + int(self._round_trip_s() * _PER_S), MOST_IN_FLIGHT)
        return self._number
