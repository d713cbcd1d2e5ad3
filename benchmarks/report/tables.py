"""The sections of a report as Markdown text and tables. A section without records is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from ..contenders.known import OURS, RAW_PYMONGO
from ..results import Metric, Part, Record, Results
from .cases import MANY_TASKS, SQL, Case, Cases, base_of, label_of
from .markdown import NOTHING, Table, counted, duration, items, times, with_spread
from .ratios import Ratio, of_records, typical

GROWTH_BASE = 1_000
"""The number of stored runs that growth is relative to."""

_SUMMARY: Mapping[str, str] = {
    "runs.get": "read a run by id",
    "runs.list_by_thread": "list the runs of a thread",
    "runs.create": "start a run",
    "runs.update_run_completion": "complete a run",
    "feedback.upsert": "vote",
    "run_events.put_batch": "append a batch of events",
    "run_events.list_messages": "read a page of messages",
}
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

_SPREAD = "Ratios are computed per repetition; cells show the median (smallest to largest)."

Cell = Callable[[Case, str], Ratio | None]


def _section(title: str, text: str, *tables: tuple[str, Table]) -> str:
    """An empty string if all tables are empty."""
    shown = [f"{heading}\n\n{table}".lstrip() for heading, table in tables if table]
    return "\n\n".join((f"## {title}", *([text] if text else []), *shown)) if shown else ""


def _ratio_table(cases: Cases, of: Sequence[Case], columns: Sequence[str], cell: Cell) -> Table:
    """One row per case."""
    label = label_of(of)
    table = Table("operation", *(cases.short(backend) for backend in columns))
    for case in of:
        row = [with_spread(cell(case, backend)) for backend in columns]
        if any(text != NOTHING for text in row):
            table.add(label(case), *row)
    return table


def _ratio_table_with_median(cases: Cases, of: Sequence[Case], columns: Sequence[str], cell: Cell) -> Table:
    """A ratio table with a last row: the median of the medians (smallest to largest)."""
    table = _ratio_table(cases, of, columns, cell)
    if len(of) > 1 and table:
        medians = [typical(cell(case, backend) for case in of) for backend in columns]
        table.add("**median**", *map(with_spread, medians))
    return table


def _ours_relative(cases: Cases, metric: Metric) -> Cell:
    return lambda case, backend: cases.ratio(case, metric, OURS, backend)


# -- summary ---------------------------------------------------------------------------------------


def summary(results: Results) -> str:
    cases = Cases(results)
    table = Table("operation", *(f"relative to {cases.short(backend)}" for backend in SQL))
    rows = {
        name: cases.of("operations", operation=operation, concurrency=MANY_TASKS, processes=1)
        for operation, name in _SUMMARY.items()
    }
    day = cases.of("day", processes=_SUMMARY_PROCESSES)
    each = f", {day[0].concurrency} tasks each" if day else ""
    rows[f"mixed workload, {_SUMMARY_PROCESSES} processes{each}"] = day[:1]
    for name, found in rows.items():
        case = min(found, key=lambda case: case.dataset, default=None)
        ratios = [cases.ratio(case, "ops_per_s", OURS, backend) if case else None for backend in SQL]
        table.add(name, *map(with_spread, ratios))
    durable = [
        f"{cases.short(backend)}: {contender['durability']}"
        for backend, contender in results.contenders.items()
        if backend in (OURS, *SQL) and contender.get("durability")
    ]
    notes = (
        f"Throughput of deerflow-mongo relative to the SQL baseline, with {MANY_TASKS} concurrent tasks"
        " unless stated otherwise: median of the repetitions (smallest to largest).",
        f"Durability of an acknowledged write: {'; '.join(durable)}." if durable else "",
    )
    return f"{table}\n\n{' '.join(filter(None, notes))}"


# -- setup -----------------------------------------------------------------------------------------


def setup(results: Results) -> str:
    facts = [f"Started at {results.began_at}, took {duration(results.took_s)}."]
    for name, values in (
        ("Machine", results.machine),
        ("Versions", results.versions),
        ("Settings", results.settings),
    ):
        if values:
            facts.append(f"{name}: {', '.join(f'{key} {value}' for key, value in values.items())}.")
    repetitions = sorted({record.repetitions for record in results.records})
    counts = " or ".join(f"{number:,}" for number in repetitions)
    facts.append(
        f"{counted(len(results.records), 'record')} of {counts} repetitions each."
        if results.records
        else "Nothing was measured."
    )
    parts = ["## Setup", items(facts), *_contenders(results), *_payloads(results)]
    if results.left_out:
        parts += ["Not measured:", items(f"{name}: {why}" for name, why in results.left_out.items())]
    return "\n\n".join((*parts, _disagreements(results)))


def _contenders(results: Results) -> Iterator[str]:
    table = Table(
        "contender", "driver", "event loop", "server", "durability of an acknowledged write", texts=5
    )
    for name, contender in results.contenders.items():
        server = contender.get("server")
        version = results.versions.get(str(server))
        table.add(
            str(contender.get("title", name)),
            str(contender.get("driver") or NOTHING),
            str(contender.get("loop") or NOTHING),
            f"{server} {version}" if version else str(server or NOTHING),
            str(contender.get("durability") or NOTHING),
        )
    if table:
        yield str(table)


def _payloads(results: Results) -> Iterator[str]:
    table = Table("payload", "unit", "median", "mean", "largest", texts=2)
    for payload in results.payloads:
        sizes = (payload.median, payload.mean, payload.max)
        table.add(payload.name, payload.unit, *(f"{size:,.0f}" for size in sizes))
    if table:
        yield str(table)


def _disagreements(results: Results) -> str:
    if not results.disagreements:
        return "All contenders returned the same results in every comparison."
    lines = [
        f"`{one.operation}` over {one.dataset:,} runs, {one.backend}: {one.why}"
        for one in dict.fromkeys(results.disagreements)
    ]
    title = "**Excluded, because the result differs from deerflow-mongo's or the call fails:**"
    return f"{title}\n\n{items(lines)}"


# -- single operations -----------------------------------------------------------------------------


def operations(cases: Cases) -> str:
    every = cases.of("operations")
    tables: list[tuple[str, Table]] = []
    fewest = min((case.concurrency for case in every), default=0)
    for tasks, of in _by(every, lambda case: case.concurrency):
        load = counted(tasks, "task" if tasks == 1 else "concurrent task")
        compared = cases.compared(of)
        throughput = _ratio_table_with_median(cases, of, compared, _ours_relative(cases, "ops_per_s"))
        tables.append((f"### Throughput, {load} (above 1: deerflow-mongo is faster)", throughput))
        if tasks == fewest:
            p50 = _ratio_table_with_median(cases, of, compared, _ours_relative(cases, "p50_ms"))
            tables.append((f"### p50 latency, {load} (below 1: deerflow-mongo is faster)", p50))
    failed = ("### Failed calls", _failures_by_tasks(cases))
    return _section(
        "Single operations",
        f"deerflow-mongo relative to each contender. {_SPREAD}",
        *tables,
        failed,
    )


def _by(of: Sequence[Case], key: Callable[[Case], int]) -> Iterator[tuple[int, list[Case]]]:
    for value, group in groupby(sorted(of, key=key), key):
        yield value, list(group)


def _main_cases(cases: Cases) -> list[Case]:
    """The cases with the concurrency of the throughput targets or, without any, with the highest one."""
    every = cases.of("operations")
    tasks = {case.concurrency for case in every}
    chosen = MANY_TASKS if MANY_TASKS in tasks else max(tasks, default=0)
    return [case for case in every if case.concurrency == chosen]


def cpu(cases: Cases) -> str:
    of = _main_cases(cases)
    table = _ratio_table_with_median(cases, of, cases.compared(of), _ours_relative(cases, "cpu_us_per_op"))
    return _section(
        "CPU per operation",
        f"CPU time of the client process{f' with {of[0].concurrency} concurrent tasks' if of else ''},"
        " deerflow-mongo relative to each contender (below 1: deerflow-mongo uses less). SQLite runs in the"
        " client process and is included; database servers are not.",
        ("", table),
    )


def _failures(cases: Cases, part: Part) -> Table:
    of = cases.of(part)
    label = label_of(of)
    table = Table("operation", "contender", "failed calls in all repetitions", texts=3)
    for case in of:
        for backend, record in cases.records(case).items():
            if record.failures:
                table.add(label(case), cases.title(backend), _kinds(record.failures))
    return table


def _failures_by_tasks(cases: Cases) -> Table:
    """One row per contender and concurrency, since many operations can fail alike."""
    failed: dict[tuple[int, str], dict[str, Record]] = {}
    for case in cases.of("operations"):
        for backend, record in cases.records(case).items():
            if record.failures:
                failed.setdefault((case.concurrency, backend), {})[case.operation] = record
    table = Table("tasks", "contender", "operations", "failed calls in all repetitions", texts=4)
    for (tasks, backend), records in sorted(failed.items(), key=lambda item: item[0][0]):
        totals: Counter[str] = Counter()
        for record in records.values():
            totals.update(record.failures)
        names = ", ".join(f"`{operation}`" for operation in records)
        table.add(str(tasks), cases.title(backend), names, _kinds(totals))
    return table


def _kinds(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} x {kind}" for kind, number in failures.items())


# -- other sections --------------------------------------------------------------------------------


def growth(cases: Cases) -> str:
    of = cases.of("growth")
    sizes = sorted({case.dataset for case in of})
    has_base = any(cases.record(case.with_changes(dataset=GROWTH_BASE), OURS) for case in of)
    base = GROWTH_BASE if has_base else min(sizes, default=GROWTH_BASE)
    larger = [dataset for dataset in sizes if dataset != base]
    backends = cases.backends(of, (OURS, *SQL))
    table = Table("operation", *(f"{cases.short(name)}, {size:,}" for name in backends for size in larger))
    rows = list(dict.fromkeys(case.with_changes(dataset=base) for case in of))
    label = label_of(rows)
    for row in rows:
        ratios = [
            cases.growth(row.with_changes(dataset=size), name, base) for name in backends for size in larger
        ]
        table.add(label(row), *map(with_spread, ratios))
    return _section(
        "Growth",
        f"p50 latency with this number of stored runs, relative to {base:,} runs. {_SPREAD}",
        ("", table),
    )


def stored_bytes(cases: Cases) -> str:
    sizes = {(size.dataset, size.backend): size.bytes_per_run for size in cases.results.sizes}
    compared = [
        backend
        for backend in dict.fromkeys(backend for _, backend in sizes)
        if backend not in (OURS, RAW_PYMONGO)
    ]
    table = Table("runs", *(cases.short(backend) for backend in compared))
    for dataset in sorted({dataset for dataset, _ in sizes}):
        ours = sizes.get((dataset, OURS))
        row = [sizes.get((dataset, backend)) for backend in compared]
        table.add(f"{dataset:,}", *(times(ours / one) if ours and one else NOTHING for one in row))
    return _section(
        "Bytes stored per run",
        "Disk space of the runs and their indexes, deerflow-mongo relative to each contender (below 1:"
        " deerflow-mongo uses less).",
        ("", table),
    )


def mixed_workload(cases: Cases) -> str:
    of = sorted(cases.of("day"), key=lambda case: (case.concurrency, case.processes))
    compared = cases.compared(of)
    ratios = _ratio_table(cases, of, compared, _ours_relative(cases, "ops_per_s"))
    backends = cases.backends(of, (OURS, *compared))

    def relative_to_one(case: Case, backend: str) -> Ratio | None:
        many = cases.record(case, backend)
        one = cases.record(case.with_changes(processes=1), backend)
        return None if many is None or one is None else of_records(many, one, "ops_per_s")

    scaling = _ratio_table(cases, [case for case in of if case.processes > 1], backends, relative_to_one)
    return _section(
        "Mixed workload by processes",
        "Each task replays the sessions of users (browser and agent) one after another. The number of tasks"
        " is per process.",
        ("### Throughput, deerflow-mongo relative to each contender", ratios),
        ("### Throughput, relative to one process", scaling),
        ("### Failed calls", _failures(cases, "day")),
    )


def contention(cases: Cases) -> str:
    of = cases.of("contention")
    table = _ratio_table(cases, of, cases.compared(of), _ours_relative(cases, "ops_per_s"))
    return _section(
        "Contention",
        "All calls use one thread or one run. Throughput of successful calls, deerflow-mongo relative to each"
        " contender.",
        ("", table),
        ("### Failed calls", _failures(cases, "contention")),
    )


def variants(cases: Cases) -> str:
    of = cases.of("variants")
    backends = cases.backends(of)
    names = [backend for backend in backends if base_of(backend) is not None]

    def relative_to_base(case: Case, backend: str) -> Ratio | None:
        return cases.ratio(case, "ops_per_s", backend, base_of(backend) or "")

    label = label_of(of)
    pairs = [
        (over, under)
        for over, under in _COMPARABLE_PAIRS
        if any(cases.ratio(case, "ops_per_s", over, under) for case in of)
    ]
    others = Table(
        "operation", *(f"{cases.title(over)} relative to {cases.title(under)}" for over, under in pairs)
    )
    for case in of:
        others.add(
            label(case),
            *(with_spread(cases.ratio(case, "ops_per_s", over, under)) for over, under in pairs),
        )
    return _section(
        "Variants",
        "Throughput with another driver, event loop, connection pool or durability setting.",
        ("### Relative to the default configuration", _ratio_table(cases, of, names, relative_to_base)),
        ("### Contenders with equal durability or equal resources", others),
    )


def memory(cases: Cases) -> str:
    of = cases.of("day")
    operations = _main_cases(cases)
    compared = cases.compared([*of, *operations])
    cell = _ours_relative(cases, "peak_memory_mb")
    table = Table("load", *(cases.short(backend) for backend in compared))
    if operations:
        name = f"median of {counted(len(operations), 'operation')}, {operations[0].concurrency} tasks"
        table.add(
            name, *(with_spread(typical(cell(case, backend) for case in operations)) for backend in compared)
        )
    label = label_of(of)
    for case in of:
        table.add(label(case), *(with_spread(cell(case, backend)) for backend in compared))
    return _section(
        "Memory",
        "Peak memory of the client process, deerflow-mongo relative to each contender (below 1:"
        " deerflow-mongo uses less).",
        ("", table),
    )
