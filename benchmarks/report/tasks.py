"""The tables of the part `tasks`: calls by few and by many tasks, with and without groups.

A group is one command for calls that wait; see `deerflow_mongo/mongodb/drivers/groups/`. A table without
records is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ..child import DAY
from ..contenders.known import OURS, SINGLE
from ..plan import MAIN_OPERATIONS, TASKS_CONTENDERS
from ..results import Metric, Part
from .cases import MANY_TASKS, SHORT, Case, Cases, label_of
from .charts import FOLDER, rows_by_tasks
from .ratios import NOTHING, Table, counted, typical, with_spread
from .tables import failed_calls, ours_relative, ratio_table
from .targets import Target, absolute, outcome, relative_to

_PART: Final[Part] = "tasks"
_OVERVIEW: Sequence[tuple[str, Metric]] = (
    ("throughput", "ops_per_s"),
    ("p99 latency", "p99_ms"),
    ("CPU time of the client per call", "cpu_us_per_op"),
)

_READS, _CREATES, _VOTES = ("runs.get",), ("runs.create",), ("feedback.upsert",)
_UPDATES = ("runs.update_run_completion",)
_LISTS = ("runs.list_by_thread", "run_events.list_messages", "threads.search_threads")
_KINDS: Sequence[tuple[str, Sequence[str], float, float]] = (
    ("reads by id", _READS, 15, 20),
    ("creates", _CREATES, 10, 20),
    ("votes", _VOTES, 10, 20),
    ("plain updates", _UPDATES, 5, 8),
    ("lists", _LISTS, 3, 5),
)
"""Title, operations, and the bounds relative to PostgreSQL and to SQLite."""
_MOST_TASKS = 256
_NOT_MEASURED = "Not measured."


def _at_least(bound: float, what: str, operations: Sequence[str], other: str, tasks: int) -> Target:
    """Throughput relative to another contender."""
    title = f"throughput of {what} relative to {SHORT[other]}, {counted(tasks, 'task')}"
    given = {"concurrency": tasks, "processes": 1}
    return Target(title, "at least", bound, relative_to(other), _PART, given, operations=operations)


def _at_most(bound: float, unit: str, what: str, operations: Sequence[str], metric: Metric) -> Target:
    """A measured value of many tasks."""
    title, given = f"{what}, {_MOST_TASKS} tasks", {"concurrency": _MOST_TASKS, "processes": 1}
    return Target(title, "at most", bound, absolute(metric), _PART, given, operations=operations, unit=unit)


def _mixed(bound: float, tasks: int, processes: int) -> Target:
    title = f"{_DAY} relative to PostgreSQL, {counted(processes, 'process')} of {counted(tasks, 'task')}"
    given = {"operation": DAY, "concurrency": tasks, "processes": processes}
    return Target(title, "at least", bound, relative_to("postgresql"), _PART, given)


_CPU, _DAY = (
    "CPU time of the client per read by id, create and plain update",
    "throughput of the mixed workload",
)
TARGETS: Final = (
    *(_at_least(bound, kind, names, "postgresql", MANY_TASKS) for kind, names, bound, _ in _KINDS),
    *(_at_least(bound, kind, names, "sqlite", MANY_TASKS) for kind, names, _, bound in _KINDS),
    _at_most(100, "ms", "p99 of each operation", MAIN_OPERATIONS, "p99_ms"),
    _at_most(40, "us", _CPU, (*_READS, *_CREATES, *_UPDATES), "cpu_us_per_op"),
    _at_least(0.98, "each operation", MAIN_OPERATIONS, SINGLE, 1),
    _mixed(3, 8, 4),
    _mixed(6, 32, 1),
)


def _operations(cases: Cases) -> list[Case]:
    return [case for case in cases.of(_PART) if case.operation != DAY]


def _others(cases: Cases, of: Iterable[Case]) -> list[str]:
    """The contenders with records that ours is compared with."""
    return [name for name in cases.backends(of, TASKS_CONTENDERS) if name != OURS]


def _tasks(of: Iterable[Case]) -> list[int]:
    return sorted({case.concurrency for case in of})


def groups(cases: Cases) -> str:
    """Throughput of each operation, with groups relative to without, by the number of tasks."""
    every = cases.of(_PART)
    numbers = _tasks(every)
    rows: dict[tuple[str, int], dict[int, Case]] = {}
    for case in every:
        rows.setdefault((case.operation, case.processes), {})[case.concurrency] = case
    table = Table("throughput relative to groups off", *(counted(number, "task") for number in numbers))
    for (operation, processes), found in rows.items():
        name = f"mixed workload, {counted(processes, 'process')}" if operation == DAY else f"`{operation}`"
        ratios = (
            cases.ratio(found[number], "ops_per_s", OURS, SINGLE) if number in found else None
            for number in numbers
        )
        table.add(name, *map(with_spread, ratios))
    return str(table) if table else _NOT_MEASURED


def overview(cases: Cases) -> str:
    """All operations in one row per metric and contender, by the number of tasks."""
    every = _operations(cases)
    numbers = _tasks(every)
    columns = (counted(number, "task") for number in numbers)
    table = Table("median over operations (smallest to largest)", "relative to", *columns, texts=2)
    cases_of = {number: [case for case in every if case.concurrency == number] for number in numbers}
    for title, metric in _OVERVIEW:
        ratio = ours_relative(cases, metric)
        for other in _others(cases, every):
            ratios = (typical(ratio(case, other) for case in of) for of in cases_of.values())
            table.add(title, cases.short(other), *map(with_spread, ratios))
    return str(table) if table else _NOT_MEASURED


def targets(cases: Cases) -> str:
    """Each target with the operation that is furthest from its bound, and those that miss it."""
    table = Table("target", "", "missed by", "measured", texts=3)
    for one in (outcome(target, cases) for target in TARGETS):
        choose = min if one.target.limit == "at least" else max
        worst = choose(one.measured.values(), key=lambda ratio: ratio.median, default=None)
        missed = ", ".join(one.misses) or NOTHING
        table.add(one.target.text, f"**{one.verdict}**", missed, with_spread(worst, one.target.unit))
    return str(table)


def chart(cases: Cases) -> str:
    """The chart of `charts.py`, if it is drawn."""
    text = "Throughput, p99 and CPU time of the client per call by the number of tasks"
    return f"![{text}]({FOLDER}/tasks.png)" if rows_by_tasks(cases) else _NOT_MEASURED


TABLES: Mapping[str, Callable[[Cases], str]] = {
    "tasks": groups,
    "tasks-chart": chart,
    "tasks-overview": overview,
    "tasks-targets": targets,
}
"""Name in a README's `<!-- table: NAME -->` -> what stands there."""


def section(cases: Cases) -> str:
    """All tables of the part for a report; empty without records."""
    every = cases.of(_PART)
    if not every:
        return ""
    tables: dict[str, object] = {
        "Calls by the number of tasks": groups(cases),
        "Calls by the number of tasks: overview": overview(cases),
        "Calls by the number of tasks: targets": targets(cases),
    }
    for number in _tasks(_operations(cases)):
        of = [case for case in _operations(cases) if case.concurrency == number]
        for title, metric in _OVERVIEW:
            table = ratio_table(cases, of, _others(cases, of), ours_relative(cases, metric), has_median=True)
            tables[f"Part `tasks`, {counted(number, 'task')}: {title}"] = table
    day = cases.of(_PART, operation=DAY)
    tables["Part `tasks`, mixed workload: throughput"] = ratio_table(
        cases, day, _others(cases, day), ours_relative(cases, "ops_per_s")
    )
    tables["Part `tasks`: measured values"] = _absolute_values(cases, every)
    tables["Part `tasks`: failed calls"] = failed_calls(cases, every)
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in tables.items() if table)


def _absolute_values(cases: Cases, of: Sequence[Case]) -> Table:
    label = label_of(of)
    heads = ("operation", "contender", "calls/s", "p50, ms", "p99, ms", "CPU time of the client per call, us")
    table = Table(*heads, texts=2)
    metrics: Sequence[Metric] = ("ops_per_s", "p50_ms", "p99_ms", "cpu_us_per_op")
    for case in of:
        for name in cases.backends([case], TASKS_CONTENDERS):
            medians = [cases.records(case)[name].median(metric) for metric in metrics]
            cells = (NOTHING if value is None else f"{value:,.4g}" for value in medians)
            table.add(label(case), cases.short(name), *cells)
    return table
