"""The chapters of a report: what was run, and ratios of what was measured. Without records they are empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from ..contenders.known import OURS, RAW_PYMONGO
from ..results import Figure, Part, Record, Results
from .cases import MANY_TASKS, SQL, Case, Cases, label_of, varied
from .markdown import NOTHING, Table, counted, duration, items, times, with_spread
from .ratios import Ratio, of_records, typical

GROWTH_BASE = 1_000
"""Runs: what growth is counted from."""

_FRONT_PAGE: Mapping[str, str] = {
    "runs.get": "read a run by id",
    "runs.list_by_thread": "list a thread's runs",
    "runs.create": "start a run",
    "runs.update_run_completion": "complete a run",
    "feedback.upsert": "vote",
    "run_events.put_batch": "append a batch of events",
    "run_events.list_messages": "a page of messages",
}
_FRONT_PAGE_PROCESSES = 4

_AGAINST_EACH_OTHER = (
    (OURS, "postgresql"),
    (OURS, "sqlite-full"),
    ("mongodb-w1", "postgresql-off"),
    ("mongodb-w1", "sqlite"),
    (OURS, "postgresql-pool32"),
    ("mongodb-uvloop", "postgresql-uvloop"),
)
"""Those that promise alike when they say that a write is stored, or that have the same means."""

Cell = Callable[[Case, str], Ratio | None]


def _chapter(title: str, text: str, *tables: tuple[str, Table]) -> str:
    """Nothing where all tables are empty."""
    shown = [f"{heading}\n\n{table}".lstrip() for heading, table in tables if table]
    return "\n\n".join((f"## {title}", *([text] if text else []), *shown)) if shown else ""


def _side_by_side(cases: Cases, of: Sequence[Case], columns: Sequence[str], cell: Cell) -> Table:
    """A row a case."""
    label = label_of(of)
    table = Table("operation", *(cases.short(backend) for backend in columns))
    for case in of:
        row = [with_spread(cell(case, backend)) for backend in columns]
        if any(text != NOTHING for text in row):
            table.add(label(case), *row)
    return table


def _with_median(cases: Cases, of: Sequence[Case], columns: Sequence[str], cell: Cell) -> Table:
    """And below all of them what is typical, between the smallest and the largest of their medians."""
    table = _side_by_side(cases, of, columns, cell)
    if len(of) > 1 and table:
        medians = [typical(cell(case, backend) for case in of) for backend in columns]
        table.add("**median of these**", *map(with_spread, medians))
    return table


def _ours_over(cases: Cases, figure: Figure) -> Cell:
    return lambda case, backend: cases.ratio(case, figure, OURS, backend)


# -- the one table that matters --------------------------------------------------------------------


def front_page(results: Results) -> str:
    cases = Cases(results)
    table = Table("operation", *(f"against {cases.short(backend)}" for backend in SQL))
    rows = {
        name: cases.of("operations", operation=operation, concurrency=MANY_TASKS, processes=1)
        for operation, name in _FRONT_PAGE.items()
    }
    day = cases.of("day", processes=_FRONT_PAGE_PROCESSES)
    each = f", {day[0].concurrency} tasks each" if day else ""
    rows[f"the mixed day, {_FRONT_PAGE_PROCESSES} processes{each}"] = day[:1]
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
        f"Throughput of deerflow-mongo over that of the SQL baseline, {MANY_TASKS} tasks at once where"
        " nothing else is said: median of the repetitions, and the smallest and the largest of them.",
        f"When a write counts as stored: {'; '.join(durable)}." if durable else "",
    )
    return f"{table}\n\n{' '.join(filter(None, notes))}"


# -- what was run ----------------------------------------------------------------------------------


def what_was_run(results: Results) -> str:
    facts = [f"Began at {results.began_at}, took {duration(results.took_s)}."]
    for name, told in (
        ("Machine", results.machine),
        ("Versions", results.versions),
        ("Settings", results.settings),
    ):
        if told:
            facts.append(f"{name}: {', '.join(f'{key} {value}' for key, value in told.items())}.")
    repetitions = sorted({record.repetitions for record in results.records})
    counts = " or ".join(f"{number:,}" for number in repetitions)
    facts.append(
        f"{counted(len(results.records), 'record')} of {counts} repetitions each."
        if results.records
        else "Nothing was measured."
    )
    parts = ["## What was run", items(facts), *_contenders(results), *_payloads(results)]
    if results.left_out:
        parts += ["Left out:", items(f"{name}: {why}" for name, why in results.left_out.items())]
    return "\n\n".join((*parts, _disagreements(results)))


def _contenders(results: Results) -> Iterator[str]:
    table = Table("contender", "driver", "event loop", "server", "a write is stored when", texts=5)
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
        return "All contenders gave the same answers to all that was compared."
    lines = [
        f"`{one.operation}` over {one.dataset:,} runs, {one.backend}: {one.why}"
        for one in dict.fromkeys(results.disagreements)
    ]
    title = "**Not counted, because the answer is not deerflow-mongo's or the call fails:**"
    return f"{title}\n\n{items(lines)}"


# -- single operations -----------------------------------------------------------------------------


def operations(cases: Cases) -> str:
    every = cases.of("operations")
    tables: list[tuple[str, Table]] = []
    fewest = min((case.concurrency for case in every), default=0)
    for tasks, of in _by(every, lambda case: case.concurrency):
        at_once = f"{counted(tasks, 'task')} at once"
        rivals = cases.rivals(of)
        throughput = _with_median(cases, of, rivals, _ours_over(cases, "ops_per_s"))
        tables.append((f"### Throughput, {at_once} (above 1: deerflow-mongo does more)", throughput))
        if tasks == fewest:
            p50 = _with_median(cases, of, rivals, _ours_over(cases, "p50_ms"))
            tables.append((f"### p50, {at_once} (below 1: deerflow-mongo answers sooner)", p50))
    failed = ("### Calls that failed", _failures_by_tasks(cases))
    return _chapter(
        "Operation by operation",
        "Deerflow-mongo over the other, made of each repetition: median (smallest to largest).",
        *tables,
        failed,
    )


def _by(of: Sequence[Case], key: Callable[[Case], int]) -> Iterator[tuple[int, list[Case]]]:
    for value, group in groupby(sorted(of, key=key), key):
        yield value, list(group)


def judged(cases: Cases, part: Part = "operations") -> list[Case]:
    """At the concurrency that throughput is judged at; where there is none, at the highest."""
    every = cases.of(part)
    tasks = {case.concurrency for case in every}
    chosen = MANY_TASKS if MANY_TASKS in tasks else max(tasks, default=0)
    return [case for case in every if case.concurrency == chosen]


def cpu(cases: Cases) -> str:
    of = judged(cases)
    table = _with_median(cases, of, cases.rivals(of), _ours_over(cases, "cpu_us_per_op"))
    return _chapter(
        "CPU per operation",
        "Of the process that calls, deerflow-mongo over the other (below 1: it needs less)"
        f"{f', {of[0].concurrency} tasks at once' if of else ''}. SQLite's own work is in that process,"
        " that of a server is not.",
        ("", table),
    )


def _failures(cases: Cases, part: Part) -> Table:
    of = cases.of(part)
    label = label_of(of)
    table = Table("operation", "contender", "failed calls of all repetitions", texts=3)
    for case in of:
        for backend, record in cases.records(case).items():
            if record.failures:
                table.add(label(case), cases.title(backend), _kinds(record.failures))
    return table


def _failures_by_tasks(cases: Cases) -> Table:
    """Shorter, for what fails in one operation after the other."""
    failed: dict[tuple[int, str], dict[str, Record]] = {}
    for case in cases.of("operations"):
        for backend, record in cases.records(case).items():
            if record.failures:
                failed.setdefault((case.concurrency, backend), {})[case.operation] = record
    table = Table("tasks", "contender", "in", "failed calls of all repetitions", texts=4)
    for (tasks, backend), records in sorted(failed.items(), key=lambda item: item[0][0]):
        totals: Counter[str] = Counter()
        for record in records.values():
            totals.update(record.failures)
        names = ", ".join(f"`{operation}`" for operation in records)
        table.add(str(tasks), cases.title(backend), names, _kinds(totals))
    return table


def _kinds(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} x {kind}" for kind, number in failures.items())


# -- everything else -------------------------------------------------------------------------------


def growth(cases: Cases) -> str:
    of = cases.of("growth")
    sizes = sorted({case.dataset for case in of})
    has_base = any(cases.record(case.elsewhere(dataset=GROWTH_BASE), OURS) for case in of)
    base = GROWTH_BASE if has_base else min(sizes, default=GROWTH_BASE)
    larger = [dataset for dataset in sizes if dataset != base]
    backends = cases.backends(of, (OURS, *SQL))
    table = Table("operation", *(f"{cases.short(name)}, {size:,}" for name in backends for size in larger))
    rows = list(dict.fromkeys(case.elsewhere(dataset=base) for case in of))
    label = label_of(rows)
    for row in rows:
        ratios = [
            cases.growth(row.elsewhere(dataset=size), name, base) for name in backends for size in larger
        ]
        table.add(label(row), *map(with_spread, ratios))
    return _chapter(
        "Growth",
        f"p50 with so many runs stored, over that with {base:,}, made of each repetition: median (smallest to"
        " largest).",
        ("", table),
    )


def stored_bytes(cases: Cases) -> str:
    sizes = {(size.dataset, size.backend): size.bytes_per_run for size in cases.results.sizes}
    rivals = [
        backend
        for backend in dict.fromkeys(backend for _, backend in sizes)
        if backend not in (OURS, RAW_PYMONGO)
    ]
    table = Table("runs", *(cases.short(backend) for backend in rivals))
    for dataset in sorted({dataset for dataset, _ in sizes}):
        ours = sizes.get((dataset, OURS))
        row = [sizes.get((dataset, backend)) for backend in rivals]
        table.add(f"{dataset:,}", *(times(ours / one) if ours and one else NOTHING for one in row))
    return _chapter(
        "Bytes stored per run",
        "All that belongs to a run, and indexes; deerflow-mongo over the other (below 1: it needs less).",
        ("", table),
    )


def day(cases: Cases) -> str:
    of = sorted(cases.of("day"), key=lambda case: (case.concurrency, case.processes))
    rivals = cases.rivals(of)
    ratios = _side_by_side(cases, of, rivals, _ours_over(cases, "ops_per_s"))
    backends = cases.backends(of, (OURS, *rivals))

    def over_one(case: Case, backend: str) -> Ratio | None:
        several = cases.record(case, backend)
        one = cases.record(case.elsewhere(processes=1), backend)
        return None if several is None or one is None else of_records(several, one, "ops_per_s")

    scaling = _side_by_side(cases, [case for case in of if case.processes > 1], backends, over_one)
    return _chapter(
        "The mixed day by processes",
        "Sessions of users' browsers and agents, one after the other in each task; tasks are those of each"
        " process.",
        ("### Throughput, deerflow-mongo over the other", ratios),
        ("### Throughput, so many processes over one", scaling),
        ("### Calls that failed", _failures(cases, "day")),
    )


def contention(cases: Cases) -> str:
    of = cases.of("contention")
    table = _side_by_side(cases, of, cases.rivals(of), _ours_over(cases, "ops_per_s"))
    return _chapter(
        "Contention",
        "All calls meet in one thread or run. Throughput of what succeeded, deerflow-mongo over the other.",
        ("", table),
        ("### Calls that failed", _failures(cases, "contention")),
    )


def variants(cases: Cases) -> str:
    of = cases.of("variants")
    backends = cases.backends(of)
    names = [backend for backend in backends if varied(backend) is not None]

    def over_base(case: Case, backend: str) -> Ratio | None:
        return cases.ratio(case, "ops_per_s", backend, varied(backend) or "")

    label = label_of(of)
    pairs = [
        (over, under)
        for over, under in _AGAINST_EACH_OTHER
        if any(cases.ratio(case, "ops_per_s", over, under) for case in of)
    ]
    others = Table("operation", *(f"{cases.title(over)} over {cases.title(under)}" for over, under in pairs))
    for case in of:
        others.add(
            label(case),
            *(with_spread(cases.ratio(case, "ops_per_s", over, under)) for over, under in pairs),
        )
    return _chapter(
        "Variants",
        "Throughput with another driver, event loop, pool or promise of durability.",
        ("### Over the usual one", _side_by_side(cases, of, names, over_base)),
        ("### Against each other: alike in promise or in means", others),
    )


def memory(cases: Cases) -> str:
    of = cases.of("day")
    operations = judged(cases)
    rivals = cases.rivals([*of, *operations])
    cell = _ours_over(cases, "peak_memory_mb")
    table = Table("load", *(cases.short(backend) for backend in rivals))
    if operations:
        name = f"{counted(len(operations), 'operation')}, {operations[0].concurrency} tasks: the median"
        table.add(
            name, *(with_spread(typical(cell(case, backend) for case in operations)) for backend in rivals)
        )
    label = label_of(of)
    for case in of:
        table.add(label(case), *(with_spread(cell(case, backend)) for backend in rivals))
    return _chapter(
        "Memory",
        "The most memory that the calling process held, deerflow-mongo over the other (below 1: it needs"
        " less).",
        ("", table),
    )
