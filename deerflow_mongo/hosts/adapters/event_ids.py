"""The ids of run events that DeerFlow's journal may send again, so that a repeated event is stored once.

After an error the journal puts the same `dict` objects back into its buffer and sends them with the next
batch, also where the first attempt was stored and only its answer was lost. DeerFlow's events have no id:
here each gets one, which is remembered for the objects of a failed batch. Nothing is written into them.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import uuid4

from ...contract.arguments import is_valid_id

FIELD: Final = "event_id"

MAX_EVENTS: Final = 10_000
"""Events that are remembered; beyond it the ones that failed the longest time ago are forgotten."""

MAX_AGE_S: Final = 600.0
"""How long an event is remembered after its last failure: a journal that still exists has repeated it."""


class EventIds:
    """The ids of the events of failed batches, by the identity of the events' objects."""

    def __init__(
        self,
        *,
        max_events: int = MAX_EVENTS,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_events = max_events
        self._max_age_s = max_age_s
        self._clock = clock
        # The event itself is held as well: no other object can get its address meanwhile.
        self._failed: OrderedDict[int, tuple[Mapping[str, Any], str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failed)

    def of_batch(self, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Each event's own `event_id`, else the one of its failed attempt, else a new one."""
        batch = uuid4().hex
        return [self._of(event, f"{batch}-{position}") for position, event in enumerate(events)]

    def _of(self, event: Mapping[str, Any], new: str) -> str:
        given = event.get(FIELD)
        if isinstance(given, str) and is_valid_id(given):
            return given
        failed = self._failed.get(id(event)) if self._failed else None
        return new if failed is None else failed[1]

    def failed(self, events: Iterable[Mapping[str, Any]], event_ids: Iterable[str]) -> None:
        """Remember the ids of a batch that was perhaps not stored."""
        now = self._clock()
        for event, event_id in zip(events, event_ids, strict=True):
            self._failed[id(event)] = (event, event_id, now)
            self._failed.move_to_end(id(event))
        self._forget_old(now)

    def stored(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Forget the events of a batch that is stored."""
        if self._failed:
            for event in events:
                self._failed.pop(id(event), None)
            self._forget_old(self._clock())

    def _forget_old(self, now: float) -> None:
        while self._failed:
            oldest, (_, _, failed_at) = next(iter(self._failed.items()))
            if len(self._failed) <= self._max_events and now - failed_at <= self._max_age_s:
                return
            del self._failed[oldest]
