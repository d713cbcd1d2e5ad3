"""Draws the charts of a report as PNG files that are readable in grey; each title states the result.

A chart without records is not drawn. Needs matplotlib, which only this module imports, without a window and
without changing matplotlib's global state.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

from deerflow_mongo.contract.errors import MissingDependencyError

from ..contenders.known import OURS, RAW_PYMONGO
from ..results import Metric
from .cases import COMPARED, MANY_TASKS, SQL, Case, Cases
from .markdown import counted
from .ratios import Ratio, typical
from .tables import GROWTH_BASE

FOLDER = "charts"

_INK, _FAINT = "#222222", "#c8c8c8"
_FONT_PT = 10
_DOTS_PER_INCH = 130

Drawn: TypeAlias = Any
"""A matplotlib Figure or Axes: its stubs are partial, and it may not be installed."""


class _Style(NamedTuple):
    """Colours from Okabe and Ito's palette; marker, line and hatch distinguish contenders in grey."""

    colour: str
    marker: str
    line: str
    hatch: str


_STYLES = {
    OURS: _Style("#0072b2", "o", "-", ""),
    "sqlite": _Style("#e69f00", "s", "--", "////"),
    "postgresql": _Style("#009e73", "^", "-.", ""),
    "deerflow-sqlite": _Style("#d55e00", "D", ":", "xxxx"),
    "deerflow-postgresql": _Style("#cc79a7", "v", ":", "...."),
    RAW_PYMONGO: _Style("#666666", "x", "--", "||||"),
}
_OTHER = _Style("#56b4e9", "P", ":", "\\\\\\\\")

_MAX_PANELS = 12
_LATENCY_OPERATIONS = (
    "runs.get",
    "runs.list_by_thread",
    "runs.create",
    "runs.update_run_completion",
    "feedback.upsert",
    "run_events.put_batch",
)


@dataclass(frozen=True, slots=True)
class Chart:
    path: str
    """Relative to the report, with slashes."""
    title: str


def draw(cases: Cases, folder: Path) -> list[Chart]:
    """Writes to `charts/` in the folder. Raises `MissingDependencyError` if matplotlib is not installed."""
    _matplotlib("figure")
    charts: list[Chart] = []
    for name, drawing in _CHARTS.items():
        figure = drawing(cases)
        if figure is None:
            continue
        path = folder / FOLDER / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DOTS_PER_INCH, facecolor="white")
        charts.append(Chart(f"{FOLDER}/{path.name}", figure.get_suptitle()))
    return charts


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Drawing the charts of a benchmark", "matplotlib", "bench") from error


def _style(backend: str) -> _Style:
    return _STYLES.get(backend, _OTHER)


# -- parts of all charts ---------------------------------------------------------------------------


def _panels(title: str, width: float, height: float, rows: int, columns: int) -> tuple[Drawn, list[Drawn]]:
    """A figure and its axes, row by row, with shared scales."""
    figure = _matplotlib("figure").Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=_FONT_PT + 2, color=_INK, x=0.01, ha="left", fontweight="bold")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat:
        _plain(axis)
    return figure, list(axes.flat)


def _plain(axis: Drawn) -> None:
    axis.tick_params(labelsize=_FONT_PT - 1, colors=_INK, length=0)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _log_ticks(axis: Drawn, low: float, high: float) -> None:
    """1, 2 and 5 of each power of ten, as plain numbers."""
    ticker = _matplotlib("ticker")

    def label(value: float, _place: int) -> str:
        return f"{value:,.4g} x"

    steps = (1, 2, 5) if high / low < 1_000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axis.set_major_locator(ticker.FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(ticker.FuncFormatter(label))
    axis.set_minor_locator(ticker.NullLocator())
    axis.grid(visible=True, color=_FAINT, linewidth=0.6)


def _legend(figure: Drawn, entries: Sequence[Drawn]) -> None:
    figure.legend(
        handles=entries,
        loc="outside lower left",
        ncols=len(entries),
        frameon=False,
        fontsize=_FONT_PT,
        handlelength=3.5,
    )


def _line_entries(cases: Cases, backends: Sequence[str]) -> list[Drawn]:
    """Legend entries: a line with a marker for each contender."""
    line = _matplotlib("lines").Line2D
    return [
        line([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=cases.short(name))
        for name in backends
        for style in [_style(name)]
    ]


def _name_axis(set_label: Callable[..., object], text: str) -> None:
    set_label(text, fontsize=_FONT_PT, color=_INK)


def _hide_unused(axes: Sequence[Drawn], used: int, columns: int) -> None:
    """Hides unused panels; only the last panel of each column has tick labels."""
    for place, axis in enumerate(axes):
        axis.set_visible(place < used)
        axis.tick_params(labelbottom=place + columns >= used)


def _bounds(values: Sequence[float], room: float = 1.2) -> tuple[float, float]:
    """The limits of a logarithmic axis, with a margin around the values."""
    finite = [value for value in values if 0 < value < math.inf] or [1.0]
    return min(finite) / room, max(finite) * room


# -- throughput ------------------------------------------------------------------------------------


_Throughputs: TypeAlias = Mapping[Case, Mapping[str, Ratio]]


def _throughput(cases: Cases) -> Drawn | None:
    """One bar per operation and SQL baseline, from 1 to the ratio."""
    ratios = _throughputs(cases)
    if not ratios:
        return None
    figure, [axis] = _panels(_throughput_title(ratios), 9.5, 1.6 + 0.34 * len(ratios), 1, 1)
    ends = [end for each in ratios.values() for ratio in each.values() for end in (ratio.low, ratio.high)]
    low, high = _bounds([1.0, *ends], 1.3)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    heights = _heights(list(ratios))
    for case, each in ratios.items():
        for name, ratio in each.items():
            _bar(axis, heights[case] + (SQL.index(name) - 0.5) * 0.38, ratio, cases.short(name), _style(name))
    axis.axvline(1, color=_INK, linewidth=1.2)
    axis.set_yticks(list(heights.values()), [case.operation for case in ratios])
    axis.set_ylim(max(heights.values()) + 0.8, min(heights.values()) - 0.8)
    _log_ticks(axis.xaxis, low, high)
    axis.tick_params(labeltop=True)
    _name_axis(
        axis.set_xlabel,
        "throughput of deerflow-mongo relative to the SQL baseline (lines: smallest to largest)",
    )
    patch = _matplotlib("patches").Patch
    entries = [
        patch(
            facecolor=style.colour,
            hatch=style.hatch,
            edgecolor="white",
            label=f"relative to {cases.short(name)}",
        )
        for name in SQL
        for style in [_style(name)]
    ]
    _legend(figure, entries)
    return figure


def _throughputs(cases: Cases) -> _Throughputs:
    """Ratios by operation with the smallest dataset, grouped by store, largest ratio first."""
    of = cases.of("operations", concurrency=MANY_TASKS, processes=1)
    smallest = min((case.dataset for case in of), default=0)
    ratios: dict[Case, dict[str, Ratio]] = {}
    for case in of:
        each = {name: cases.ratio(case, "ops_per_s", OURS, name) for name in SQL}
        known = {name: ratio for name, ratio in each.items() if ratio is not None}
        if known and case.dataset == smallest:
            ratios[case] = known
    return dict(sorted(ratios.items(), key=lambda item: (item[0].section, -_least(item[1]))))


def _least(ratios: Mapping[str, Ratio]) -> float:
    return min(ratio.median for ratio in ratios.values())


def _throughput_title(ratios: _Throughputs) -> str:
    more = sum(_least(each) > 1 for each in ratios.values())
    return (
        f"Throughput with {MANY_TASKS} concurrent tasks: deerflow-mongo is faster than both SQL baselines\n"
        f"in {more} of {counted(len(ratios), 'operation')}"
    )


def _heights(of: Sequence[Case]) -> dict[Case, float]:
    """Vertical positions, with a gap between stores."""
    heights: dict[Case, float] = {}
    height, section = 0.0, of[0].section
    for case in of:
        height += 1.0 if case.section == section else 1.7
        section = case.section
        heights[case] = height
    return heights


def _bar(axis: Drawn, height: float, ratio: Ratio, name: str, style: _Style) -> None:
    small = {"va": "center", "fontsize": _FONT_PT - 3, "color": _INK}
    if math.isinf(ratio.median):
        axis.text(1.02, height, f"all calls failed on {name}", ha="left", **small)
        return
    axis.barh(
        height,
        ratio.median - 1,
        left=1,
        height=0.36,
        color=style.colour,
        hatch=style.hatch,
        edgecolor="white",
        linewidth=0,
    )
    axis.plot([ratio.low, ratio.high], [height, height], color=_INK, linewidth=1)
    decimals = 2 if ratio.median < 1 else 1 if ratio.median < 10 else 0
    text = f"{ratio.median:,.{decimals}f}"
    if ratio.median >= 1:
        axis.text(ratio.high, height, f" {text}", ha="left", **small)
    else:
        axis.text(ratio.low, height, f"{text} ", ha="right", **small)


# -- growth ----------------------------------------------------------------------------------------


_Lines: TypeAlias = Mapping[Case, Mapping[str, Sequence[tuple[int, Ratio]]]]


def _growth(cases: Cases) -> Drawn | None:
    """One panel per operation: the p50 relative to that of the smallest dataset."""
    of = cases.of("growth")
    sizes = sorted({case.dataset for case in of})
    base = GROWTH_BASE if GROWTH_BASE in sizes else min(sizes, default=0)
    backends = cases.backends(of, (OURS, *SQL))
    every = _growth_lines(cases, of, backends, sizes, base)
    if not every:
        return None
    rows = _largest_growth(every)
    columns = min(4, len(rows))
    deep = math.ceil(len(rows) / columns)
    title = _growth_title(every, max(sizes), base)
    figure, axes = _panels(title, 2.7 * columns + 0.8, 2.1 * deep + 1.2, deep, columns)
    medians = [ratio.median for lines in rows.values() for line in lines.values() for _, ratio in line]
    low, high = _bounds([0.8, 1.8, *medians])
    for axis, (row, lines) in zip(axes, rows.items(), strict=False):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
        axis.set_ylim(low, high)
        axis.axhline(1, color=_INK, linewidth=0.8)
        for name, line in reversed(list(lines.items())):
            _line(axis, [(size, ratio.median) for size, ratio in line], _style(name))
        axis.set_title(_panel_title(row, list(rows)), fontsize=_FONT_PT, color=_INK, loc="left")
        _log_ticks(axis.yaxis, low, high)
        _size_ticks(axis, sizes)
    _hide_unused(axes, len(rows), columns)
    _legend(figure, _line_entries(cases, backends))
    return figure


def _growth_lines(
    cases: Cases, of: Sequence[Case], backends: Sequence[str], sizes: Sequence[int], base: int
) -> _Lines:
    """The cases that were measured with more than one dataset."""
    rows: dict[Case, dict[str, list[tuple[int, Ratio]]]] = {}
    for row in dict.fromkeys(case.with_changes(dataset=base) for case in of):
        for name in backends:
            grown = [(size, cases.growth(row.with_changes(dataset=size), name, base)) for size in sizes]
            line = [(size, ratio) for size, ratio in grown if ratio is not None]
            if len(line) > 1:
                rows.setdefault(row, {})[name] = line
    return rows


def _largest_growth(rows: _Lines) -> _Lines:
    """At most `_MAX_PANELS` rows, alternately by deerflow-mongo's growth and by any contender's."""

    def ours(row: Case) -> float:
        return rows[row][OURS][-1][1].median if OURS in rows[row] else 0.0

    def anyone(row: Case) -> float:
        return max(line[-1][1].median for line in rows[row].values())

    ranks = [sorted(rows, key=growth, reverse=True) for growth in (ours, anyone)]
    chosen = list(dict.fromkeys(row for pair in zip(*ranks, strict=True) for row in pair))[:_MAX_PANELS]
    return {row: lines for row, lines in rows.items() if row in chosen}


def _growth_title(every: _Lines, most: int, base: int) -> str:
    title = f"p50 with up to {most:,} stored runs relative to {base:,}"
    grown = [lines[OURS][-1][1].median for lines in every.values() if OURS in lines]
    if grown:
        title += f": at most {max(grown):.2f} x for deerflow-mongo"
    if len(every) > _MAX_PANELS:
        title += f"\n({_MAX_PANELS} of {len(every)} operations:"
        title += " largest growth of deerflow-mongo or of any contender)"
    return title


def _panel_title(case: Case, rows: Sequence[Case]) -> str:
    alone = len({row.concurrency for row in rows}) == 1
    return case.operation if alone else f"{case.operation}, {counted(case.concurrency, 'task')}"


def _size_ticks(axis: Drawn, sizes: Sequence[int]) -> None:
    ticker = _matplotlib("ticker")
    axis.set_xticks(sizes, [_short_size(size) for size in sizes])
    axis.xaxis.set_minor_locator(ticker.NullLocator())


def _short_size(size: int) -> str:
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return str(size)


def _line(axis: Drawn, points: Sequence[tuple[float, float]], style: _Style) -> None:
    axis.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        linewidth=1.8,
        markersize=6,
    )


# -- mixed workload --------------------------------------------------------------------------------


def _mixed_workload(cases: Cases) -> Drawn | None:
    """One line per contender: throughput relative to deerflow-mongo with the fewest processes."""
    of = _mixed_cases(cases)
    unit = next((one.median("ops_per_s") for case in of if (one := cases.record(case, OURS))), None)
    if not unit:
        return None
    backends = cases.backends(of, (OURS, *COMPARED))
    figure, [axis] = _panels(_mixed_title(cases, of), 7.5, 4.6, 1, 1)
    for name in reversed(backends):
        points: list[tuple[float, float]] = []
        for case in of:
            if (record := cases.record(case, name)) is not None:
                rates = [one.ops_per_s / unit for one in record.rounds]
                points.append((case.processes, median(rates)))
                axis.plot([case.processes] * 2, [min(rates), max(rates)], color=_style(name).colour)
        _line(axis, points, _style(name))
    axis.set_ylim(bottom=0)
    axis.set_xticks([case.processes for case in of])
    axis.grid(visible=True, axis="y", color=_FAINT, linewidth=0.6)
    tasks = counted(of[0].concurrency, "task")
    _name_axis(
        axis.set_xlabel, f"processes with {tasks} each (vertical lines: smallest to largest repetition)"
    )
    _name_axis(axis.set_ylabel, f"throughput (1 = deerflow-mongo, {counted(of[0].processes, 'process')})")
    _legend(figure, _line_entries(cases, backends))
    return figure


def _mixed_cases(cases: Cases) -> list[Case]:
    """One case per number of processes, with the default or highest concurrency and the smallest dataset."""
    every = cases.of("day")
    tasks = {case.concurrency for case in every}
    chosen = MANY_TASKS if MANY_TASKS in tasks else max(tasks, default=0)
    smallest = min((case.dataset for case in every), default=0)
    of = [case for case in every if (case.concurrency, case.dataset) == (chosen, smallest)]
    return sorted(of, key=lambda case: case.processes)


def _mixed_title(cases: Cases, of: Sequence[Case]) -> str:
    title = f"Mixed workload, {counted(of[-1].processes, 'process')}"
    ratios = [
        f"{ratio.median:.1f} x that of {cases.short(name)}"
        for name in SQL
        if (ratio := cases.ratio(of[-1], "ops_per_s", OURS, name)) is not None and ratio.median < math.inf
    ]
    return f"{title}: throughput of deerflow-mongo is\n{' and '.join(ratios)}" if ratios else title


# -- latency ---------------------------------------------------------------------------------------


def _latency(cases: Cases) -> Drawn | None:
    """One panel per operation: p50 to p99, relative to deerflow-mongo's p50 with the fewest tasks."""
    panels = _latency_panels(cases)
    if not panels:
        return None
    every = [case for of in panels.values() for case in of]
    backends = [name for name in (OURS, *SQL) if name in cases.backends(every)]
    tasks = sorted({case.concurrency for case in every})
    columns = min(3, len(panels))
    deep = math.ceil(len(panels) / columns)
    title = _latency_title(cases, every, tasks[0])
    figure, axes = _panels(title, 3.6 * columns, 2.7 * deep + 1.2, deep, columns)
    drawn: list[float] = []
    for axis, (operation, of) in zip(axes, panels.items(), strict=False):
        unit = _metric(cases, of[0], OURS, "p50_ms") or math.nan
        for place, name in enumerate(backends):
            shift = (place - (len(backends) - 1) / 2) * 0.24
            for case in of:
                drawn += _dumbbell(axis, tasks.index(case.concurrency) + shift, cases, case, name, unit)
        axis.set_title(operation, fontsize=_FONT_PT, color=_INK, loc="left")
        axis.set_yscale("log")
        axis.set_xticks(range(len(tasks)), [counted(number, "task") for number in tasks])
    low, high = _bounds(drawn, 1.5)
    for axis in axes:
        axis.set_ylim(low, high)
        _log_ticks(axis.yaxis, low, high)
    _hide_unused(axes, len(panels), columns)
    _legend(figure, _line_entries(cases, backends))
    return figure


def _latency_panels(cases: Cases) -> dict[str, list[Case]]:
    """The cases of each operation by number of tasks, with the smallest dataset."""
    every = cases.of("operations", processes=1)
    smallest = min((case.dataset for case in every), default=0)
    panels: dict[str, list[Case]] = {}
    for name in _LATENCY_OPERATIONS:
        of = [case for case in every if (case.operation, case.dataset) == (name, smallest)]
        of.sort(key=lambda case: case.concurrency)
        if of and _metric(cases, of[0], OURS, "p50_ms"):
            panels[name] = of
    return panels


def _metric(cases: Cases, case: Case, backend: str, metric: Metric) -> float | None:
    record = cases.record(case, backend)
    return None if record is None else record.median(metric)


def _dumbbell(axis: Drawn, x: float, cases: Cases, case: Case, backend: str, unit: float) -> list[float]:
    """Draws the p50 as the contender's marker and the p99 as a bar; returns the drawn values."""
    p50, p99 = (_metric(cases, case, backend, metric) for metric in ("p50_ms", "p99_ms"))
    if p50 is None or p99 is None:
        return []
    style = _style(backend)
    axis.plot([x, x], [p50 / unit, p99 / unit], color=style.colour, linewidth=2)
    axis.plot([x], [p50 / unit], color=style.colour, marker=style.marker, markersize=7)
    axis.plot([x], [p99 / unit], color=style.colour, marker="_", markersize=9, markeredgewidth=2)
    return [p50 / unit, p99 / unit]


def _latency_title(cases: Cases, every: Sequence[Case], fewest: int) -> str:
    title = f"p50 (marker) and p99 (bar) relative to deerflow-mongo's p50 with {counted(fewest, 'task')}"
    of = [case for case in every if case.concurrency == MANY_TASKS]
    ratios = [
        f"{ratio.median:.2f} x that of {cases.short(name)}"
        for name in SQL
        if (ratio := typical(cases.ratio(case, "p50_ms", OURS, name) for case in of)) is not None
    ]
    return f"{title};\nits p50 with {MANY_TASKS} tasks is {' and '.join(ratios)}" if ratios else title


_CHARTS: dict[str, Callable[[Cases], Drawn | None]] = {
    "throughput": _throughput,
    "growth": _growth,
    "day": _mixed_workload,
    "latency": _latency,
}
