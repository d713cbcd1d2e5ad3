"""Ratios of measurements with their spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Ratio:
    median: float
    """Infinite if the denominator is 0."""
    low: float
    high: float


def paired(over: Values, under: Values) -> Ratio | None:
    """For alternating measurements: one ratio per repetition, so that a slow phase affects both sides."""
    return _spread(
        a / b if b else math.inf
        for a, b in zip(over, under, strict=False)
        if a is not None and b is not None and (a or b)
    )


def unpaired(over: Values, under: Values) -> Ratio | None:
    """For measurements at different times: the ratio of the medians, with the widest possible spread."""
    above, below = _spread(over), _spread(under)
    if above is None or below is None or below.low <= 0:
        return None
    return Ratio(above.median / below.median, above.low / below.high, above.high / below.low)


def typical(ratios: Iterable[Ratio | None]) -> Ratio | None:
    """The median of the ratios' medians, with the smallest and the largest of them."""
    return _spread(ratio.median for ratio in ratios if ratio is not None)


def _spread(values: Iterable[float | None]) -> Ratio | None:
    known = [value for value in values if value is not None]
    return Ratio(median(known), min(known), max(known)) if known else None
