"""Formats tables, ratios and counts as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .ratios import Ratio

NOTHING = "-"
"""Cell text if nothing was measured."""


class Table:
    """A table whose first columns are text and whose other columns are numbers."""

    def __init__(self, *heads: str, texts: int = 1) -> None:
        self._heads = heads
        self._marks = ("---",) * texts + ("--:",) * (len(heads) - texts)
        self._rows: list[tuple[str, ...]] = []

    def add(self, *cells: str) -> None:
        self._rows.append(cells)

    def __bool__(self) -> bool:
        """Whether any cell has a value."""
        return any(cell not in ("", NOTHING) for row in self._rows for cell in row[1:])

    def __str__(self) -> str:
        return "\n".join(
            f"| {' | '.join(map(_cell, row))} |" for row in (self._heads, self._marks, *self._rows)
        )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def times(value: float) -> str:
    if math.isinf(value):
        return "no successful call of the other"
    if value >= 99.5:
        return f"{value:,.0f} x"
    return f"{value:.1f} x" if value >= 9.95 else f"{value:.2f} x"


def spread(ratio: Ratio) -> str:
    ends = ["∞" if math.isinf(end) else times(end).removesuffix(" x") for end in (ratio.low, ratio.high)]
    return "" if ends[0] == ends[1] else f"({ends[0]} to {ends[1]})"


def with_spread(ratio: Ratio | None) -> str:
    if ratio is None:
        return NOTHING
    return (
        times(ratio.median) if math.isinf(ratio.median) else f"{times(ratio.median)} {spread(ratio)}".strip()
    )


def counted(number: int, thing: str) -> str:
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:,} {thing}{ending}"


def items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s")
    return " ".join(part for part in parts if part)
