"""Ratios of measurements with their spread, and Markdown tables of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

NOTHING = "-"
"""Cell text if nothing was measured."""

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Ratio:
    median: float
    """Infinite if the denominator is 0."""
    low: float
    high: float


def paired(over: Values, under: Values) -> Ratio | None:
    """For alternating measurements: one ratio per repetition, so that a slow phase affects both sides."""
    return spread(
        a / b if b else math.inf
        for a, b in zip(over, under, strict=False)
        if a is not None and b is not None and (a or b)
    )


def unpaired(over: Values, under: Values) -> Ratio | None:
    """For measurements at different times: the ratio of the medians, with the widest possible spread."""
    above, below = spread(over), spread(under)
    if above is None or below is None or below.low <= 0:
        return None
    return Ratio(above.median / below.median, above.low / below.high, above.high / below.low)


def typical(ratios: Iterable[Ratio | None]) -> Ratio | None:
    """The median of the ratios' medians, with the smallest and the largest of them."""
    return spread(ratio.median for ratio in ratios if ratio is not None)


def spread(values: Iterable[float | None]) -> Ratio | None:
    """The median, smallest and largest of these."""
    known = [value for value in values if value is not None]
    return Ratio(median(known), min(known), max(known)) if known else None


# -- Markdown --------------------------------------------------------------------------------------


class Table:
    """A table whose first columns are text and whose other columns are numbers."""

    def __init__(self, *heads: str, texts: int = 1) -> None:
        self._rows = [heads, ("---",) * texts + ("--:",) * (len(heads) - texts)]

    def add(self, *cells: str) -> None:
        self._rows.append(tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in cells))

    def __bool__(self) -> bool:
        """Whether any cell has a value."""
        return any(cell not in ("", NOTHING) for row in self._rows[2:] for cell in row[1:])

    def __str__(self) -> str:
        return "\n".join(f"| {' | '.join(row)} |" for row in self._rows)


def times(value: float) -> str:
    if math.isinf(value):
        return "no successful call of the other"
    return f"{_rounded(value)} x"


def _rounded(value: float) -> str:
    decimals = 0 if value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:,.{decimals}f}"


def with_spread(ratio: Ratio | None, unit: str = "x") -> str:
    """In another unit than x, it is no ratio but a measured value."""
    if ratio is None:
        return NOTHING
    ends = ["∞" if math.isinf(end) else _rounded(end) for end in (ratio.low, ratio.high)]
    middle = times(ratio.median) if unit == "x" else f"{_rounded(ratio.median)} {unit}"
    if math.isinf(ratio.median) or ends[0] == ends[1]:
        return middle
    return f"{middle} ({ends[0]} to {ends[1]})"


def counted(number: int, thing: str) -> str:
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:,} {thing}{ending}"


def items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
