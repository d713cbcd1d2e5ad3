"""Ratios of measurements with their spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from ..results import Metric, Record


@dataclass(frozen=True, slots=True)
class Ratio:
    median: float
    """Infinite if the denominator is 0."""
    low: float
    high: float


def paired(over: Sequence[float | None], under: Sequence[float | None]) -> Ratio | None:
    """For alternating measurements: one ratio per repetition, so that a slow phase affects both sides."""
    quotients = [
        a / b if b else math.inf
        for a, b in zip(over, under, strict=False)
        if a is not None and b is not None and (a or b)
    ]
    return Ratio(median(quotients), min(quotients), max(quotients)) if quotients else None


def unpaired(over: Sequence[float | None], under: Sequence[float | None]) -> Ratio | None:
    """For measurements at different times: the ratio of the medians, with the widest possible spread."""
    above, below = _known(over), _known(under)
    if not above or not below or not (median(above) or median(below)):
        return None
    return Ratio(
        _quotient(median(above), median(below)),
        _quotient(min(above), max(below)),
        _quotient(max(above), min(below)),
    )


def of_records(over: Record, under: Record, metric: Metric) -> Ratio | None:
    """Records of one load were measured alternately, whatever the dataset; others were not."""
    alternated = _load(over) == _load(under)
    return (paired if alternated else unpaired)(over.values(metric), under.values(metric))


def typical(ratios: Iterable[Ratio | None]) -> Ratio | None:
    """The median of the ratios' medians, with the smallest and the largest of them."""
    medians = [ratio.median for ratio in ratios if ratio is not None]
    return Ratio(median(medians), min(medians), max(medians)) if medians else None


def _load(record: Record) -> tuple[object, ...]:
    return record.part, record.operation, record.concurrency, record.processes


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _quotient(over: float, under: float) -> float:
    if under:
        return over / under
    return math.inf if over else 0.0
