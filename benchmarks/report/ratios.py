"""How many times one thing is another, with the spread of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from ..results import Figure, Record


@dataclass(frozen=True, slots=True)
class Ratio:
    median: float
    """Infinite where the other side did nothing at all."""
    low: float
    high: float


def paired(over: Sequence[float | None], under: Sequence[float | None]) -> Ratio | None:
    """Of two that took turns: made of each repetition, so that a slow minute of the machine hits both."""
    quotients = [
        a / b if b else math.inf
        for a, b in zip(over, under, strict=False)
        if a is not None and b is not None and (a or b)
    ]
    return Ratio(median(quotients), min(quotients), max(quotients)) if quotients else None


def unpaired(over: Sequence[float | None], under: Sequence[float | None]) -> Ratio | None:
    """Of two that were measured at other times: of the medians; the spread is the widest that is possible."""
    above, below = _known(over), _known(under)
    if not above or not below or not (median(above) or median(below)):
        return None
    return Ratio(
        _quotient(median(above), median(below)),
        _quotient(min(above), max(below)),
        _quotient(max(above), min(below)),
    )


def of_records(over: Record, under: Record, figure: Figure) -> Ratio | None:
    """Records of one load took turns, whatever the dataset; any others did not."""
    took_turns = _load(over) == _load(under)
    return (paired if took_turns else unpaired)(over.values(figure), under.values(figure))


def typical(ratios: Iterable[Ratio | None]) -> Ratio | None:
    """The median of many, with the smallest and the largest median among them."""
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
