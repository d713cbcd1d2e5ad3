"""What runs at this moment over all threads: one command, whose cost is that of the runs that are active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ...contract.times import system_clock_us
from ..documents.encoding import Document
from ..drivers.collection import Collection
from . import sections
from .rows import ActiveRun, active_run, readable


@dataclass(frozen=True, slots=True)
class Activity:
    """The oldest active runs and reservations, and how many there are; `at` is on this clock, in UTC."""

    at: datetime
    count: int
    runs: list[ActiveRun]


async def read_activity(runs: Collection, listed: int) -> Activity:
    """Of the collection of runs; at most `listed` (from 1 up) rows."""
    found = await runs.aggregate(sections.active_runs(system_clock_us(), listed), batch_size=2)
    rows, count = active_of(found)
    return Activity(datetime.now(UTC).replace(tzinfo=None), count, rows)


def active_of(found: Sequence[Document]) -> tuple[list[ActiveRun], int]:
    """The result of `sections.active_runs`: the rows, and how many there are in all."""
    [facets] = found
    return readable(facets["rows"], active_run), int(facets["all"][0]["runs"]) if facets["all"] else 0
