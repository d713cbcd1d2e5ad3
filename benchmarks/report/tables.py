"""The sections of a report as Markdown text and tables. A section without records is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..child import DAY
from ..contenders.known import OURS, SQL
from ..operations import HEADLINES, OPERATIONS
from ..results import Disagreement, Metric, Part, Results
from .cases import GROWTH_BASE, MANY_TASKS, Case, Cases, base_of, label_of
from .ratios import NOTHING, Ratio, Table, counted, items, times, typical, with_spread

_SUMMARY_PROCESSES = 4
_COMPARABLE_PAIRS = (
    (OURS, "postgresql"),
    (OURS, "sqlite-full"),
    ("mongodb-w1", "postgresql-off"),
    ("mongodb-w1", "sqlite"),
    (OURS, "postgresql-pool32"),
    ("mongodb-uvloop", "postgresql-uvloop"),
)
"""Pairs of contenders with equal durability, or with equal resources (pool size, event loop)."""
_MIN_LOSS = 0.95
"""A median below this counts as slower than SQL."""
Cell = Callable[[Case, str], Ratio | None]


def ratio_table(
    cases: Cases, of: Sequence[Case], columns: Sequence[str], cell: Cell, *, has_median: bool = False
) -> Table:
    """One row per case and, if wanted, the median of the medians (smallest to largest)."""
    label = label_of(of)
    table = Table("operation", *map(cases.short, columns))
    for case in of:
        row = [with_spread(cell(case, backend)) for backend in columns]
        if any(text != NOTHING for text in row):
            table.add(label(case), *row)
    if has_median and len(of) > 1:
        medians = [typical(cell(case, backend) for case in of) for backend in columns]
        table.add("**median**", *map(with_spread, medians))
    return table


def ours_relative(cases: Cases, metric: Metric) -> Cell:
    return lambda case, backend: cases.ratio(case, metric, OURS, backend)


def _smallest(of: Iterable[Case]) -> Case | None:
    return min(of, key=lambda case: case.dataset, default=None)


# -- the tables of the README ------------------------------------------------------------------------


def summary(cases: Cases) -> str:
    rows = {
        name: _of_first_part(cases, "operations", operation=operation, concurrency=MANY_TASKS, processes=1)
        for operation, name in HEADLINES.items()
    }
    day = _of_first_part(cases, "day", operation=DAY, processes=_SUMMARY_PROCESSES)
    tasks = f", {day.concurrency} tasks each" if day else ""
    rows[f"mixed workload, {_SUMMARY_PROCESSES} processes{tasks}"] = day
    if one := _of_first_part(cases, "day", operation=DAY, processes=1, concurrency=MANY_TASKS):
        rows[f"mixed workload, 1 process, {MANY_TASKS} tasks"] = one
    table = Table("operation", *(f"relative to {cases.short(backend)}" for backend in SQL))
    for name, case in rows.items():
        ratios = [cases.ratio(case, "ops_per_s", OURS, backend) if case else None for backend in SQL]
        table.add(name, *map(with_spread, ratios))
    return str(table)


def _of_first_part(cases: Cases, part: Part, **given: object) -> Case | None:
    """The case of the part `tasks`, which is also measured on its own, or else of this one."""
    for one in ("tasks", part):
        of = (case for case in cases.of(one, **given) if not cases.records(case).keys().isdisjoint(SQL))
        if (found := _smallest(of)) is not None:
            return found
    return None


def overview(cases: Cases) -> str:
    """All operations in one row per metric."""
    one, many = (cases.of("operations", concurrency=tasks, processes=1) for tasks in (1, MANY_TASKS))
    compared = cases.compared([*one, *many])
    table = Table("metric: median over operations (smallest to largest)", *map(cases.short, compared))
    metrics: tuple[tuple[str, list[Case], Metric], ...] = (
        ("throughput, 1 task", one, "ops_per_s"),
        (f"throughput, {MANY_TASKS} tasks", many, "ops_per_s"),
        ("p50 latency, 1 task", one, "p50_ms"),
        (f"p99 latency, {MANY_TASKS} tasks", many, "p99_ms"),
        (f"CPU time of the client per call, {MANY_TASKS} tasks", many, "cpu_us_per_op"),
        (f"peak memory of the client, {MANY_TASKS} tasks", many, "peak_memory_mb"),
    )
    for name, of, metric in metrics:
        ratios = (typical(cases.ratio(case, metric, OURS, other) for case in of) for other in compared)
        table.add(name, *map(with_spread, ratios))
    sizes = _relative_sizes(cases)
    for runs in sorted({runs for runs, _ in sizes}):
        row = (sizes.get((runs, backend)) for backend in compared)
        name = f"disk space per run, {runs:,} runs"
        table.add(name, *(NOTHING if size is None else times(size) for size in row))
    return str(table)


def losses(cases: Cases) -> str:
    """The operations that are slower than one of the SQL baselines."""
    of = [case for tasks in (1, MANY_TASKS) for case in cases.of("operations", concurrency=tasks)]
    table = Table("operation", "tasks", *map(cases.short, SQL))
    for case in of:
        ratios = [cases.ratio(case, "ops_per_s", OURS, name) for name in SQL]
        if any(ratio and ratio.median < _MIN_LOSS for ratio in ratios):
            table.add(f"`{case.operation}`", str(case.concurrency), *map(with_spread, ratios))
    return str(table) if table else "None."


def numbering(cases: Cases) -> str:
    """Ways to number the events of one thread, with the calls that fail."""
    of = [case for case in cases.of("contention") if case.operation.startswith("run_events.")]
    label = label_of(of)
    table = Table("contender", *map(label, of), "failed calls", texts=1)
    for backend in cases.backends(of, (OURS, *SQL)):
        failures: Counter[str] = Counter()
        for case in of:
            if (record := cases.records(case).get(backend)) is not None:
                failures += record.failures
        ratios = (None if backend == OURS else cases.ratio(case, "ops_per_s", OURS, backend) for case in of)
        table.add(cases.short(backend), *map(with_spread, ratios), _kinds(failures) or "none")
    return str(table)


def variants(cases: Cases) -> str:
    """Throughput relative to the default configuration of the same contender."""
    names = cases.backends(cases.of("variants"))
    return _pairs(cases, [(name, base) for name in names if (base := base_of(name)) is not None])


def equal_terms(cases: Cases) -> str:
    return _pairs(cases, _COMPARABLE_PAIRS)


def _pairs(cases: Cases, pairs: Sequence[tuple[str, str]]) -> str:
    of = cases.of("variants")
    label = label_of(of)
    known = [pair for pair in pairs if any(cases.ratio(case, "ops_per_s", *pair) for case in of)]
    table = Table("operation", *(f"{cases.short(over)} / {cases.short(under)}" for over, under in known))
    for case in of:
        table.add(label(case), *(with_spread(cases.ratio(case, "ops_per_s", *pair)) for pair in known))
    return str(table)


def setup(results: Results) -> str:
    facts = [f"Started at {results.began_at}, took {round(results.took_s / 60):,} min."]
    given = {"Machine": results.machine, "Versions": results.versions, "Settings": results.settings}
    for name, values in given.items():
        facts += [f"{name}: {', '.join(f'{k} {v}' for k, v in values.items())}."] if values else []
    repetitions = " or ".join(map(str, sorted({len(record.rounds) for record in results.records})))
    records = f"{counted(len(results.records), 'record')} of {repetitions} repetitions each."
    facts.append(records if results.records else "Nothing was measured.")
    facts += [f"Not measured: {name}: {why}" for name, why in results.left_out.items()]
    facts += dict.fromkeys(
        f"Excluded, because the result differs from deerflow-mongo's or the call fails: `{one.operation}`"
        f"{_rows_of(one)}, {one.backend}: {one.why}"
        for one in results.disagreements
    )
    if not results.disagreements:
        facts.append("All contenders returned the same results in every comparison.")
    return items(facts)


def _rows_of(found: Disagreement) -> str:
    """The dataset of operations; that of checkpoints is no number of runs."""
    return f" over {found.dataset:,} runs" if found.operation in OPERATIONS else ""


def contenders(results: Results) -> str:
    return items(
        f"{fields.get('title', name)}: {fields.get('driver')}, {fields.get('durability')}"
        for name, fields in results.contenders.items()
    )


# -- the other tables of a report --------------------------------------------------------------------


def details(cases: Cases) -> str:
    """A table of every operation for each metric, and those of the other parts."""
    operations = cases.of("operations")
    tasks = sorted({case.concurrency for case in operations})
    wanted: list[tuple[str, int, Metric]] = [
        *(("Throughput", number, "ops_per_s") for number in tasks),
        *(("p50 latency", number, "p50_ms") for number in tasks[:1]),
        ("CPU time of the client", MANY_TASKS, "cpu_us_per_op"),
        ("Peak memory of the client", MANY_TASKS, "peak_memory_mb"),
    ]
    tables: dict[str, Table] = {}
    for name, number, metric in wanted:
        of = [case for case in operations if case.concurrency == number]
        cell = ours_relative(cases, metric)
        table = ratio_table(cases, of, cases.compared(of), cell, has_median=True)
        tables[f"{name}, {counted(number, 'task')}"] = table
    base = growth_base(cases)
    grown = [case for case in cases.of("growth") if case.dataset != base]
    tables[f"p50 latency by stored runs, relative to {base:,} runs"] = ratio_table(
        cases,
        grown,
        cases.backends(grown, (OURS, *SQL)),
        lambda case, name: cases.change(case, "p50_ms", name, dataset=base),
    )
    day = sorted(cases.of("day"), key=lambda case: (case.concurrency, case.processes))
    hot = cases.of("contention")
    for name, of in (("Mixed workload", day), ("Contention on one thread or run", hot)):
        cell = ours_relative(cases, "ops_per_s")
        tables[f"{name}: throughput"] = ratio_table(cases, of, cases.compared(of), cell)
    several = [case for case in day if case.processes > 1]
    columns = cases.backends(day, (OURS, *SQL))
    tables["Mixed workload: throughput relative to one process"] = ratio_table(
        cases, several, columns, lambda case, name: cases.change(case, "ops_per_s", name, processes=1)
    )
    tables["Failed calls in all repetitions"] = failed_calls(cases, [*operations, *day, *hot])
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in tables.items() if table)


def failed_calls(cases: Cases, of: Sequence[Case]) -> Table:
    label, table = label_of(of), Table("operation", "contender", "failed calls", texts=3)
    for case in of:
        for backend, record in cases.records(case).items():
            if record.failures:
                table.add(label(case), cases.short(backend), _kinds(record.failures))
    return table


def _kinds(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} x {kind}" for kind, number in failures.items())


def growth_base(cases: Cases) -> int:
    sizes = {case.dataset for case in cases.of("growth")}
    is_known = any(cases.record(case._replace(dataset=GROWTH_BASE), OURS) for case in cases.of("growth"))
    return GROWTH_BASE if is_known else min(sizes, default=GROWTH_BASE)


def _relative_sizes(cases: Cases) -> dict[tuple[int, str], float]:
    """Number of runs and contender -> deerflow-mongo's bytes relative to the contender's."""
    stored = {(size.dataset, size.backend): size.bytes_per_run for size in cases.results.sizes}
    return {
        (runs, backend): stored[runs, OURS] / size
        for (runs, backend), size in stored.items()
        if backend in SQL and size and (runs, OURS) in stored
    }
