"""Draws the charts of a report as PNG files that are readable in grey; each title states the result.

A chart without records is not drawn. Needs matplotlib, which only this module imports, without a window and
without changing matplotlib's global state.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeAlias

from deerflow_mongo.contract.errors import MissingDependencyError

from ..checkpoints.measuring import GROWN
from ..contenders.known import OURS, RAW_PYMONGO, SAVERS, SINGLE, SQL
from ..operations import HEADLINES
from .cases import COMPARED, MANY_TASKS, Case, Cases, section_of
from .ratios import Ratio, counted, times, typical
from .tables import growth_base
from .targets import Measure, absolute

FOLDER = "charts"

_INK, _FAINT = "#222222", "#c8c8c8"
_FONT_PT = 10
_DOTS_PER_INCH = 130
_MIN_GROWTH_POINTS = 3
_LATENCY_OPERATIONS = tuple(HEADLINES)[:6]  # two rows of panels
_TASKS_OPERATIONS = _LATENCY_OPERATIONS  # a row of panels each
_MIN_TASKS_POINTS = 2

Drawn: TypeAlias = Any
"""A matplotlib Figure or Axes: its stubs are partial, and it may not be installed."""


class _Style(NamedTuple):
    """Colours from Okabe and Ito's palette; marker, line and hatch distinguish contenders in grey."""

    color: str
    marker: str
    linestyle: str
    hatch: str

    @property
    def line(self) -> dict[str, str]:
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle}

    @property
    def bar(self) -> dict[str, str]:
        return {"facecolor": self.color, "hatch": self.hatch, "edgecolor": "white"}


_STYLES = {
    OURS: _Style("#0072b2", "o", "-", ""),
    "sqlite": _Style("#e69f00", "s", "--", "////"),
    "postgresql": _Style("#009e73", "^", "-.", ""),
    "deerflow-sqlite": _Style("#d55e00", "D", ":", "xxxx"),
    "deerflow-postgresql": _Style("#cc79a7", "v", ":", "...."),
    SINGLE: _Style("#56b4e9", "P", "--", "\\\\\\\\"),
    RAW_PYMONGO: _Style("#666666", "x", "--", "||||"),
    "langgraph-sqlite": _Style("#e69f00", "s", "--", "////"),
    "langgraph-postgresql": _Style("#009e73", "^", "-.", ""),
    "langgraph-mongodb": _Style("#cc79a7", "v", ":", "...."),
}
_OTHER = _Style("#56b4e9", "P", ":", "\\\\\\\\")


def draw(cases: Cases, folder: Path) -> dict[str, str]:
    """Writes to `charts/` in the folder; returns the charts' paths, relative to it, and titles.

    Raises `MissingDependencyError` if matplotlib is not installed.
    """
    _matplotlib("figure")
    titles: dict[str, str] = {}
    for name, drawing in _CHARTS.items():
        figure = drawing(cases)
        if figure is not None:
            path = f"{FOLDER}/{name}.png"
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / path, dpi=_DOTS_PER_INCH, facecolor="white")
            titles[path] = figure.get_suptitle()
    return titles


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Drawing the charts of a benchmark", "matplotlib", "bench") from error


def _style(backend: str) -> _Style:
    return _STYLES.get(backend, _OTHER)


# -- parts of all charts ---------------------------------------------------------------------------


def _panels(
    title: str,
    names: Sequence[str],
    size: tuple[float, float],
    columns: int,
    same_y: Literal["all", "col"] = "all",
) -> Drawn:
    """A figure and its axes, one for each name, with the same scales; unused panels are hidden."""
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    width, height = size[0] * columns, size[1] * rows + 1.2
    figure = _matplotlib("figure").Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=_FONT_PT + 2, color=_INK, x=0.01, ha="left", fontweight="bold")
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=same_y, squeeze=False).flat)
    for place, axis in enumerate(axes):
        axis.set_visible(place < len(names))
        axis.tick_params(labelsize=_FONT_PT - 1, colors=_INK, length=0)
        axis.tick_params(labelbottom=place + columns >= len(names))
        axis.set_axisbelow(True)
        axis.spines[:].set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(name, fontsize=_FONT_PT, color=_INK, loc="left")
    return figure, axes[: len(names)]


def _log_scale(
    axis: Drawn, which: str, values: Sequence[float], room: float, text: str = "{x:,.4g} x"
) -> None:
    """A logarithmic axis around the values, with 1, 2 and 5 of each power of ten as plain numbers."""
    ticker = _matplotlib("ticker")
    finite = [value for value in values if 0 < value < math.inf] or [1.0]
    low, high = min(finite) / room, max(finite) * room
    axis.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    steps = (1, 2, 5) if high / low < 1_000 else (1,)
    scale = getattr(axis, f"{which}axis")
    scale.set_major_locator(ticker.LogLocator(subs=steps, numticks=99))
    scale.set_major_formatter(ticker.StrMethodFormatter(text))
    scale.set_minor_locator(ticker.NullLocator())
    scale.grid(visible=True, color=_FAINT, linewidth=0.6)


def _legend(figure: Drawn, cases: Cases, backends: Sequence[str], *, has_bars: bool = False) -> None:
    line, patch = _matplotlib("lines").Line2D, _matplotlib("patches").Patch
    looks = {cases.short(name): _style(name) for name in backends}
    bars = [patch(label=name, **look.bar) for name, look in looks.items()]
    entries = bars if has_bars else [line([], [], label=name, **look.line) for name, look in looks.items()]
    text = {"fontsize": _FONT_PT, "handlelength": 3.5}
    figure.legend(handles=entries, loc="outside lower left", ncols=len(entries), frameon=False, **text)


def _of_smallest_dataset(of: Sequence[Case]) -> list[Case]:
    smallest = min((case.dataset for case in of), default=0)
    return [case for case in of if case.dataset == smallest]


def _versus_sql(cases: Cases, decimals: str, ratio_of: Callable[[str], Ratio | None]) -> str:
    found = {cases.short(name): ratio for name in SQL if (ratio := ratio_of(name)) is not None}
    finite = {name: ratio.median for name, ratio in found.items() if ratio.median < math.inf}
    return " and ".join(f"{value:{decimals}} x that of {name}" for name, value in finite.items())


# -- bars: throughput and growth -------------------------------------------------------------------

_Ratios: TypeAlias = Mapping[Case, Mapping[str, Ratio]]


def _bars(title: str, ratios: _Ratios, label: str, cases: Cases, backends: Sequence[str]) -> Drawn:
    """One bar per operation and contender, from 1 to the ratio, grouped by store, the largest first."""
    figure, [axis] = _panels(title, [""], (9.5, 0.4 + 0.17 * len(backends) * len(ratios)), 1)
    ends = [end for each in ratios.values() for ratio in each.values() for end in (ratio.low, ratio.high)]
    _log_scale(axis, "x", [1.0, *ends], 1.3)
    heights: dict[str, float] = {}
    height, section = 0.0, 0
    for case in sorted(ratios, key=lambda case: (section_of(case), -_least(ratios[case]))):
        height += 1.0 if section_of(case) == section else 1.7  # a gap between stores
        section, heights[case.operation] = section_of(case), height
        for name, ratio in ratios[case].items():
            shift = (backends.index(name) - (len(backends) - 1) / 2) * 0.76 / len(backends)
            _bar(axis, height + shift, 0.72 / len(backends), ratio, cases.short(name), _style(name))
    axis.axvline(1, color=_INK, linewidth=1.2)
    axis.set_yticks(list(heights.values()), list(heights))
    axis.set_ylim(height + 0.8, min(heights.values()) - 0.8)
    axis.tick_params(labeltop=True)
    axis.set_xlabel(f"{label} (lines: smallest to largest)", fontsize=_FONT_PT)
    _legend(figure, cases, backends, has_bars=True)
    return figure


def _bar(axis: Drawn, y: float, height: float, ratio: Ratio, name: str, style: _Style) -> None:
    small = {"va": "center", "fontsize": _FONT_PT - 3, "color": _INK}
    if math.isinf(ratio.median):
        axis.text(1.02, y, f"all calls failed on {name}", ha="left", **small)
        return
    axis.barh(y, ratio.median - 1, left=1, height=height, linewidth=0, **style.bar)
    axis.plot([ratio.low, ratio.high], [y, y], color=_INK, linewidth=1)
    end, side = (ratio.high, "left") if ratio.median >= 1 else (ratio.low, "right")
    axis.text(end, y, f" {times(ratio.median).removesuffix(' x')} ", ha=side, **small)


def _least(ratios: Mapping[str, Ratio]) -> float:
    return min(ratio.median for ratio in ratios.values())


def _throughput(cases: Cases) -> Drawn | None:
    of = _of_smallest_dataset(cases.of("operations", concurrency=MANY_TASKS, processes=1))
    ratios = _known({case: {n: cases.ratio(case, "ops_per_s", OURS, n) for n in SQL} for case in of})
    if not ratios:
        return None
    title = (
        f"Throughput with {MANY_TASKS} concurrent tasks: deerflow-mongo is faster than both SQL baselines\n"
        f"in {sum(_least(each) > 1 for each in ratios.values())} of {counted(len(ratios), 'operation')}"
    )
    return _bars(title, ratios, "throughput relative to the SQL baseline", cases, SQL)


def _growth(cases: Cases) -> Drawn | None:
    """The p50 with the largest dataset, relative to that with the smallest."""
    base, most = growth_base(cases), max((case.dataset for case in cases.of("growth")), default=0)
    of = [case for case in cases.of("growth") if base < case.dataset == most]
    backends = cases.backends(of, (OURS, *SQL))
    ratios = _known(
        {case: {name: cases.change(case, "p50_ms", name, dataset=base) for name in backends} for case in of}
    )
    if not ratios:
        return None
    title = f"p50 with {most:,} stored runs relative to {base:,}"
    if grown := [each[OURS].median for each in ratios.values() if OURS in each]:
        title += f": at most {max(grown):.2f} x for deerflow-mongo"
    return _bars(title, ratios, f"p50 relative to that with {base:,} runs", cases, backends)


def _known(ratios: Mapping[Case, Mapping[str, Ratio | None]]) -> _Ratios:
    found = {case: {n: r for n, r in each.items() if r is not None} for case, each in ratios.items()}
    return {case: each for case, each in found.items() if each}


# -- mixed workload --------------------------------------------------------------------------------


def _mixed_workload(cases: Cases) -> Drawn | None:
    """One line per contender: throughput relative to deerflow-mongo with the fewest processes."""
    every = cases.of("day")
    most = max((case.concurrency for case in every), default=0)
    of = _of_smallest_dataset([case for case in every if case.concurrency == most])
    of.sort(key=lambda case: case.processes)
    unit = next((one.median("ops_per_s") for case in of if (one := cases.record(case, OURS))), None)
    if not unit:
        return None
    backends = cases.backends(of, (OURS, *COMPARED))
    figure, [axis] = _panels(_mixed_title(cases, of[-1]), [""], (7.5, 3.4), 1)
    for name in reversed(backends):
        records = {case.processes: cases.record(case, name) for case in of}
        rates = {
            number: [one.ops_per_s / unit for one in record.rounds]
            for number, record in records.items()
            if record is not None
        }
        for number, values in rates.items():
            axis.plot([number] * 2, [min(values), max(values)], color=_style(name).color)
        axis.plot(list(rates), list(map(median, rates.values())), linewidth=1.8, **_style(name).line)
    axis.set_ylim(bottom=0)
    axis.set_xticks([case.processes for case in of])
    axis.grid(visible=True, axis="y", color=_FAINT, linewidth=0.6)
    axis.set_xlabel(f"processes with {counted(most, 'task')} each (vertical lines: smallest to largest)")
    axis.set_ylabel(f"throughput (1 = deerflow-mongo, {counted(of[0].processes, 'process')})")
    _legend(figure, cases, backends)
    return figure


def _mixed_title(cases: Cases, case: Case) -> str:
    title = f"Mixed workload, {counted(case.processes, 'process')}"
    ratios = _versus_sql(cases, ".1f", lambda name: cases.ratio(case, "ops_per_s", OURS, name))
    return f"{title}: throughput of deerflow-mongo is\n{ratios}" if ratios else title


# -- latency ---------------------------------------------------------------------------------------


def _latency(cases: Cases) -> Drawn | None:
    """One panel per operation: p50 to p99, relative to deerflow-mongo's p50 with the fewest tasks."""
    every = _of_smallest_dataset(cases.of("operations", processes=1))
    panels: dict[str, list[Case]] = {}
    for name in _LATENCY_OPERATIONS:
        of = sorted((case for case in every if case.operation == name), key=lambda case: case.concurrency)
        if of and _p50_and_p99(cases, of[0], OURS):
            panels[name] = of
    if not panels:
        return None
    of = [case for of in panels.values() for case in of]
    backends = [name for name in (OURS, *SQL) if name in cases.backends(of)]
    tasks = sorted({case.concurrency for case in of})
    figure, axes = _panels(_latency_title(cases, of, tasks[0]), list(panels), (3.6, 2.7), 3)
    drawn: list[float] = []
    for axis, panel in zip(axes, panels.values(), strict=True):
        [unit, _] = _p50_and_p99(cases, panel[0], OURS)
        for place, name in enumerate(backends):
            shift = (place - (len(backends) - 1) / 2) * 0.24
            for case in panel:
                if ends := [value / unit for value in _p50_and_p99(cases, case, name)]:
                    _dumbbell(axis, tasks.index(case.concurrency) + shift, ends, _style(name))
                    drawn += ends
        axis.set_xticks(range(len(tasks)), [counted(number, "task") for number in tasks])
    for axis in axes:
        _log_scale(axis, "y", drawn, 1.5)
    _legend(figure, cases, backends)
    return figure


def _p50_and_p99(cases: Cases, case: Case, backend: str) -> list[float]:
    """Both, or nothing."""
    record = cases.record(case, backend)
    found = [] if record is None else [record.median("p50_ms"), record.median("p99_ms")]
    return [value for value in found if value is not None] if None not in found else []


def _dumbbell(axis: Drawn, x: float, ends: Sequence[float], style: _Style) -> None:
    """The p50 as the contender's marker and the p99 as a bar."""
    axis.plot([x, x], ends, color=style.color, linewidth=2)
    axis.plot([x], [ends[0]], color=style.color, marker=style.marker, markersize=7)
    axis.plot([x], [ends[1]], color=style.color, marker="_", markersize=9, markeredgewidth=2)


def _latency_title(cases: Cases, every: Sequence[Case], fewest: int) -> str:
    title = f"p50 (marker) and p99 (bar) relative to deerflow-mongo's p50 with {counted(fewest, 'task')}"
    of = [case for case in every if case.concurrency == MANY_TASKS]
    ratios = _versus_sql(
        cases, ".2f", lambda name: typical(cases.ratio(case, "p50_ms", OURS, name) for case in of)
    )
    return f"{title};\nits p50 with {MANY_TASKS} tasks is {ratios}" if ratios else title


# -- number of tasks -------------------------------------------------------------------------------


def _tasks(cases: Cases) -> Drawn | None:
    """One row of panels per operation: throughput relative to that without groups, p99, CPU time per call."""
    rows = rows_by_tasks(cases)
    if not rows:
        return None
    of = [case for row in rows.values() for case in row]
    tasks = sorted({case.concurrency for case in of})
    backends = [name for name in (OURS, SINGLE, RAW_PYMONGO, *SQL) if name in cases.backends(of)]
    names = [name for row in rows for name in (row, "", "")]
    figure, axes = _panels(_tasks_title(cases, of), names, (3.4, 1.75), len(_TASKS_METRICS), "col")
    for column, (heading, text, values_of) in enumerate(_TASKS_METRICS):
        panels = axes[column :: len(_TASKS_METRICS)]
        panels[0].set_title(f"{heading}\n{panels[0].get_title(loc='left')}", fontsize=_FONT_PT, loc="left")
        drawn: list[float] = []
        for axis, row in zip(panels, rows.values(), strict=True):
            for name in reversed(backends):  # ours is above the others
                found = {tasks.index(case.concurrency): values_of(cases, case, name) for case in row}
                drawn += _line_with_spread(axis, found, _style(name))
            axis.set_xticks(range(len(tasks)), [f"{number:,}" for number in tasks])
        for axis in panels:
            _log_scale(axis, "y", drawn, 1.3, text)
        panels[-1].set_xlabel("tasks (vertical lines: smallest to largest)", fontsize=_FONT_PT - 1)
    _legend(figure, cases, backends)
    return figure


def rows_by_tasks(cases: Cases) -> dict[str, list[Case]]:
    """Operation -> its cases by the number of tasks, where several were measured with groups and without."""
    rows: dict[str, list[Case]] = {}
    of = _of_smallest_dataset(cases.of("tasks", processes=1))
    for case in sorted(of, key=lambda case: case.concurrency):
        if cases.ratio(case, "ops_per_s", OURS, SINGLE) is not None:
            rows.setdefault(case.operation, []).append(case)
    return {name: rows[name] for name in _TASKS_OPERATIONS if len(rows.get(name, ())) >= _MIN_TASKS_POINTS}


def _line_with_spread(axis: Drawn, ratios: Mapping[int, Ratio | None], style: _Style) -> list[float]:
    """A line through the medians, and one from the smallest to the largest at each; returns all ends."""
    known = {x: ratio for x, ratio in ratios.items() if ratio is not None and ratio.high < math.inf}
    for x, ratio in known.items():
        axis.plot([x, x], [ratio.low, ratio.high], color=style.color, linewidth=1)
    axis.plot(list(known), [ratio.median for ratio in known.values()], linewidth=1.8, **style.line)
    return [end for ratio in known.values() for end in (ratio.low, ratio.high)]


_TASKS_METRICS: Sequence[tuple[str, str, Measure]] = (
    (
        "throughput relative to groups off",
        "{x:,g} x",
        lambda cases, case, backend: cases.ratio(case, "ops_per_s", backend, SINGLE),
    ),
    ("p99", "{x:,g} ms", absolute("p99_ms")),
    ("CPU time of the client per call", "{x:,g} µs", absolute("cpu_us_per_op")),
)
"""Heading, text of a value, and the values of each column of panels."""


def _tasks_title(cases: Cases, of: Sequence[Case]) -> str:
    many = [case for case in of if case.concurrency == MANY_TASKS]
    found: list[str] = []
    for name, other in ((SINGLE, "without groups"), ("postgresql", "of PostgreSQL")):
        ratio = typical(cases.ratio(case, "ops_per_s", OURS, name) for case in many)
        found += [] if ratio is None else [f"{times(ratio.median)} that {other}"]
    title = f"Calls that wait share commands: with {MANY_TASKS} tasks, throughput is"
    of_operations = f"(median of {counted(len(many), 'operation')})"
    return f"{title}\n{' and '.join(found)} {of_operations}" if found else title.partition(":")[0]


# -- checkpoints -----------------------------------------------------------------------------------


def _checkpoints(cases: Cases) -> Drawn | None:
    """One line per saver: the bytes of one thread by its number of turns."""
    of = sorted(cases.of("checkpoints", operation=GROWN), key=lambda case: case.dataset)
    backends = cases.backends(of, (OURS, *SAVERS))
    turns = [case.dataset for case in of]
    if len(turns) < _MIN_GROWTH_POINTS or OURS not in backends:
        return None
    figure, [axis] = _panels(_checkpoints_title(cases, of), [""], (9.5, 3.8), 1)
    values: list[float] = []
    for name in [*backends[1:], OURS]:  # the later one is above the other
        sizes = {
            case.dataset: size
            for case in of
            if (record := cases.records(case).get(name)) and (size := record.median("stored_mb"))
        }
        values += sizes.values()
        axis.plot(list(sizes), list(sizes.values()), linewidth=1.8, **_style(name).line)
    _log_scale(axis, "x", [float(number) for number in turns], 1.1, "{x:,.4g}")
    axis.set_xticks(turns, [f"{number:,}" for number in turns])
    _log_scale(axis, "y", values, 1.5, "{x:,.0f} MB")
    axis.set_xlabel("turns of one thread, about 13 KiB each", fontsize=_FONT_PT)
    axis.set_ylabel("stored, before compression", fontsize=_FONT_PT)
    _legend(figure, cases, backends)
    return figure


def _checkpoints_title(cases: Cases, of: Sequence[Case]) -> str:
    first, last = of[0].dataset, of[-1].dataset
    found: list[str] = []
    for name in cases.backends(of, (OURS, *SAVERS))[:2]:
        ratio = cases.change(of[-1], "stored_mb", name, dataset=first)
        if ratio is not None:
            found.append(f"{ratio.median:,.0f} x as many bytes with {cases.short(name)}")
    title = f"{last:,} turns of a thread instead of {first:,}, {last / first:.0f} x as many:"
    return f"{title}\n{', '.join(found)}"


_CHARTS: dict[str, Callable[[Cases], Drawn | None]] = {
    "throughput": _throughput,
    "growth": _growth,
    "day": _mixed_workload,
    "latency": _latency,
    "tasks": _tasks,
    "checkpoints": _checkpoints,
}
