"""Charts as SVG for a page without scripts: columns over time, and bars by name. Colours are CSS classes.

Each chart is drawn twice, for a wide and a narrow screen, because text in a scaled drawing becomes too small
to read; the page's style shows one of them. What the numbers mean is not known here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from .markup import Markup, element, joined

WIDTHS: Final = {"wide": 520, "narrow": 330}

_HEIGHT, _TOP, _BOTTOM, _RIGHT = 220, 22, 26, 18
_BAR_ROW, _BAR_HEIGHT = 40, 14
_CHARACTER = 6.7
"""The width of a character of 12 pixels, on average; labels are cut by it."""

_MAX_STEPS = 5
_GAP = 0.25
"""Between two columns, of a column's room."""

_LEAST_VISIBLE = 1.5


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a chart: its name, its CSS class, and a value for each column or bar."""

    name: str
    colour: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Chart:
    """What both kinds of charts show. `description` is read to those who do not see it."""

    title: str
    description: str
    unit: str
    labels: Sequence[str]
    series: Sequence[Series]

    @property
    def totals(self) -> list[float]:
        return [sum(values) for values in zip(*(series.values for series in self.series), strict=True)]


def legend(series: Sequence[Series]) -> Markup:
    items = [
        element("li", element("span", class_=f"swatch {item.colour}", aria_hidden="true"), item.name)
        for item in series
    ]
    return element("ul", *items, class_="legend")


def columns(chart: Chart) -> Markup:
    """Stacked columns, one for each label, over an axis with values."""
    return _in_both_widths(chart, _columns, lambda _: _HEIGHT)


def bars(chart: Chart, written: Callable[[float], str]) -> Markup:
    """Stacked bars from left to right, each below its label and with its total, as `written`, at its end."""
    return _in_both_widths(
        chart,
        lambda drawn, width: _bars(drawn, width, written),
        lambda drawn: _BAR_ROW * len(drawn.labels) + 2,
    )


def _in_both_widths(
    chart: Chart, draw: Callable[[Chart, int], Markup], height: Callable[[Chart], int]
) -> Markup:
    drawings = [
        element(
            "svg",
            element("title", chart.title),
            element("desc", chart.description),
            draw(chart, width),
            class_=f"chart {name}",
            viewBox=f"0 0 {width} {height(chart)}",
            role="img",
            aria_label=f"{chart.title}. {chart.description}",
        )
        for name, width in WIDTHS.items()
    ]
    return joined(legend(chart.series) if len(chart.series) > 1 else None, *drawings)


# -- columns ---------------------------------------------------------------------------------------


def ticks_of(highest: float) -> list[int]:
    """From 0 up to the first that is not below the highest, by a step of 1, 2 or 5 times a power of ten."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in steps if highest <= step * _MAX_STEPS)
    return [step * number for number in range(max(1, math.ceil(highest / step)) + 1)]


_SCALES = ((1e9, "billions"), (1e6, "millions"), (1e4, "thousands"))


def scale_of(highest: float) -> tuple[float, str]:
    """What an axis divides its values by, and its name; (1, "") for small ones."""
    for least, name in _SCALES:
        if highest >= least:
            return (1e3 if name == "thousands" else least), name
    return 1, ""


def _columns(chart: Chart, width: int) -> Markup:
    highest = max(chart.totals, default=0)
    divisor, scale = scale_of(highest)
    ticks = [tick * divisor for tick in ticks_of(highest / divisor)]
    names = [f"{tick / divisor:,.0f}" for tick in ticks]
    left = max(map(len, names)) * _CHARACTER + 10
    bottom = _HEIGHT - _BOTTOM

    def y_of(value: float) -> float:
        return bottom - value / ticks[-1] * (bottom - _TOP)

    unit = f"{chart.unit} ({scale})" if scale else chart.unit
    axis = [element("text", unit, x=0, y=10, class_="axis")]
    for tick, name in zip(ticks, names, strict=True):
        line = element("line", x1=left, x2=width, y1=y_of(tick), y2=y_of(tick), class_="grid")
        text = element("text", name, x=left - 6, y=y_of(tick) + 4, class_="axis", text_anchor="end")
        axis += [line, text]
    room = (width - left - _RIGHT) / max(1, len(chart.labels))
    drawn = [
        _column(chart, number, left + room * (number + _GAP / 2), room * (1 - _GAP), y_of)
        for number in range(len(chart.labels))
    ]
    return joined(*axis, *drawn, *_labels_below(chart.labels, left, room))


def _column(chart: Chart, number: int, x: float, width: float, y_of: Callable[[float], float]) -> Markup:
    """The parts of one column, from below; a part of it that is not zero is always visible."""
    parts: list[Markup] = []
    below = 0.0
    for series in chart.series:
        value = series.values[number]
        if value:
            top, height = y_of(below + value), max(_LEAST_VISIBLE, y_of(below) - y_of(below + value))
            parts.append(element("rect", x=x, y=top, width=width, height=height, class_=series.colour))
        below += value
    named = [f"{series.name}: {series.values[number]:,.0f}" for series in chart.series]
    return element("g", element("title", f"{chart.labels[number]}: {', '.join(named)}"), *parts)


def _labels_below(labels: Sequence[str], left: float, room: float) -> list[Markup]:
    """As many labels as fit, the last one among them."""
    size = max(map(len, labels), default=1) * _CHARACTER + 12
    every = max(1, math.ceil(size / room))
    shown = [number for number in range(len(labels)) if (len(labels) - 1 - number) % every == 0]
    return [
        element(
            "text",
            labels[number],
            x=left + room * (number + 0.5),
            y=_HEIGHT - 8,
            class_="axis",
            text_anchor="middle",
        )
        for number in shown
    ]


# -- bars ------------------------------------------------------------------------------------------


def _bars(chart: Chart, width: int, written: Callable[[float], str]) -> Markup:
    totals = chart.totals
    texts = [written(total) for total in totals]
    room = width - max(map(len, texts), default=0) * _CHARACTER - 12
    highest = max(totals, default=0) or 1
    drawn: list[Markup] = []
    for number, label in enumerate(chart.labels):
        top = _BAR_ROW * number
        drawn.append(element("text", cut(label, width), x=0, y=top + 14, class_="label"))
        x = 0.0
        for series in chart.series:
            length = series.values[number] / highest * room
            if series.values[number]:
                size = max(_LEAST_VISIBLE, length)
                drawn.append(_bar(series, x, top, size, f"{label}, {series.name}", written, number))
            x += length
        drawn.append(element("text", texts[number], x=x + 8, y=top + 32, class_="value"))
    return joined(*drawn)


def _bar(
    series: Series,
    x: float,
    top: float,
    length: float,
    name: str,
    written: Callable[[float], str],
    number: int,
) -> Markup:
    bar = element("rect", x=x, y=top + 20, width=length, height=_BAR_HEIGHT, class_=series.colour)
    return element("g", element("title", f"{name}: {written(series.values[number])}"), bar)


def cut(label: str, width: float) -> str:
    """The label, cut to what fits the width."""
    room = int(width / _CHARACTER)
    return label if cell_len(label) <= room else f"{set_cell_size(label, room - 1).rstrip()}…"
