"""Tables in Markdown."""

from __future__ import annotations

import math


class Table:
    def __init__(self, heads: tuple[str, ...]) -> None:
        self._rows: list[tuple[str, ...]] = [heads, ("---",) * len(heads)]

    def add(self, *cells: str) -> None:
        self._rows.append(cells)

    def __str__(self) -> str:
        return "".join(f"| {' | '.join(row)} |\n" for row in self._rows)


def ratio(value: float) -> str:
    if math.isinf(value):
        return "nothing was stored"
    return f"{value:.1f} x" if value >= 9.95 else f"{value:.2f} x"


def percent(share: float) -> str:
    return f"{share * 100:.1f} %" if 0 < share < 0.1 else f"{share * 100:.0f} %"


def verdict(*, is_met: bool) -> str:
    return "met" if is_met else "MISSED"
