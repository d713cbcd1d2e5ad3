"""The tables of checkpoint savers, and the targets of ours. A table without records is empty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ..checkpoints.measuring import (
    BESIDE_TOOLS,
    BUSY_THREADS,
    COLD,
    GET_STATE,
    GET_TUPLE,
    GROWN,
    MIB,
    READ_STATE,
    TURN,
    WRITE_STATE,
)
from ..contenders.known import OURS, SAVERS
from ..results import Metric, Part
from .cases import Case, Cases
from .ratios import NOTHING, Ratio, Table, counted, times, with_spread
from .targets import Measure, Target, measured_targets

SQLITE, POSTGRESQL, LIBRARY, _MEMORY = SAVERS
_PART: Final[Part] = "checkpoints"


def size_text(size: int) -> str:
    return f"{size // MIB:,} MiB" if size >= MIB else f"{size // 1_024} KiB"


def _of(cases: Cases, operation: str) -> list[Case]:
    of = cases.of(_PART, operation=operation)
    return sorted(of, key=lambda case: (case.dataset, case.concurrency))


def _savers(cases: Cases, of: Iterable[Case], *, has_ours: bool = False) -> list[str]:
    found = cases.backends(of, (OURS, *SAVERS))
    return [name for name in found if has_ours or name != OURS]


def _label(case: Case) -> str:
    if case.operation == TURN:
        if not case.dataset:
            return f"a turn on a new thread, {counted(case.concurrency, 'task')}"
        return f"a turn on a thread of {size_text(case.dataset)}"
    method, _, kind = case.operation.partition(".")
    where = "by a new saver" if kind else "by its writer"
    return f"`{method}` of {size_text(case.dataset)} {where}"


def speeds(cases: Cases) -> str:
    """Throughput relative to each other saver, and the CPU time of each other one relative to ours."""
    operations = (TURN, GET_STATE, GET_STATE + COLD, GET_TUPLE, GET_TUPLE + COLD)
    of = [case for operation in operations for case in _of(cases, operation)]
    others = _savers(cases, of)
    table = Table("throughput", *map(cases.short, others))
    for case in of:
        table.add(_label(case), *(with_spread(cases.ratio(case, "ops_per_s", OURS, name)) for name in others))
    for case in of:
        if case.operation == TURN:
            ratios = (cases.ratio(case, "cpu_us_per_op", name, OURS) for name in others)
            table.add(f"CPU time of the other client: {_label(case)}", *map(with_spread, ratios))
    return str(table)


def sizes(cases: Cases) -> str:
    """The bytes of each other saver relative to ours."""
    of = _of(cases, GROWN)
    others = _savers(cases, of)
    table = Table("bytes stored after", "", *map(cases.short, others), texts=2)
    metrics: tuple[tuple[str, Metric], ...] = (("before compression", "stored_mb"), ("on disk", "disk_mb"))
    for name, metric in metrics:
        for case in of:
            ratios = (cases.ratio(case, metric, other, OURS) for other in others)
            table.add(counted(case.dataset, "turn"), name, *map(with_spread, ratios))
    return str(table)


def beside_tools(cases: Cases) -> str:
    """Latency of `aget_tuple` while the default executor is busy relative to that while it is idle."""
    of = [case for case in _of(cases, BESIDE_TOOLS) if case.dataset == BUSY_THREADS]
    savers = _savers(cases, of, has_ours=True)
    table = Table("latency of `aget_tuple` relative to idle threads", *map(cases.short, savers))
    metrics: tuple[Metric, ...] = ("p50_ms", "p95_ms")
    for metric in metrics:
        for case in of:
            ratios = (cases.change(case, metric, name, dataset=0) for name in savers)
            table.add(metric.removesuffix("_ms"), *map(with_spread, ratios))
    return str(table)


def memory(cases: Cases) -> str:
    """The peak memory of one call relative to the state, which the caller holds; or the error."""
    of = [case for operation in (WRITE_STATE, READ_STATE) for case in _of(cases, operation)]
    of.sort(key=lambda case: case.dataset)
    savers = _savers(cases, of, has_ours=True)
    table = Table("peak memory relative to the state", *map(cases.short, savers))
    for case in of:
        does = "written" if case.operation == WRITE_STATE else "read"
        table.add(f"{size_text(case.dataset)} {does}", *(_peak(cases, case, name) for name in savers))
    return str(table)


def _peak(cases: Cases, case: Case, backend: str) -> str:
    if (record := cases.records(case).get(backend)) is None:
        return NOTHING
    if record.failures:
        return f"refused: {next(iter(record.failures))}"
    peak = record.median("peak_memory_mb")
    return NOTHING if peak is None else times(peak * 1e6 / case.dataset)


# -- targets ---------------------------------------------------------------------------------------


def _speed(*others: str) -> Measure:
    """Relative to the fastest of the others."""

    def measure(cases: Cases, case: Case, backend: str) -> Ratio | None:
        ratios = [cases.ratio(case, "ops_per_s", backend, other) for other in others]
        known = [ratio for ratio in ratios if ratio is not None]
        return min(known, key=lambda ratio: ratio.median, default=None)

    return measure


def _bytes_of_sqlite(cases: Cases, case: Case, backend: str) -> Ratio | None:
    return cases.ratio(case, "stored_mb", SQLITE, backend)


def _beside_tools(cases: Cases, case: Case, backend: str) -> Ratio | None:
    return cases.change(case, "p50_ms", backend, dataset=0)


_EACH: Final = (SQLITE, POSTGRESQL, LIBRARY)
_NEW: Final = {"operation": TURN, "dataset": 0}

TARGETS: Final = (
    Target(
        "turns, 1 task, relative to SQLite", "at least", 1, _speed(SQLITE), _PART, {**_NEW, "concurrency": 1}
    ),
    Target(
        "turns, 1 task, relative to PostgreSQL and the library",
        "at least",
        1.3,
        _speed(POSTGRESQL, LIBRARY),
        _PART,
        {**_NEW, "concurrency": 1},
    ),
    Target(
        "turns, 16 tasks, relative to each",
        "at least",
        1.5,
        _speed(*_EACH),
        _PART,
        {**_NEW, "concurrency": 16},
    ),
    *(
        Target(
            f"turns on a thread of {size_text(size)}, relative to each",
            "at least",
            1.5,
            _speed(*_EACH),
            _PART,
            {"operation": TURN, "dataset": size},
        )
        for size in (MIB, 10 * MIB)
    ),
    *(
        Target(
            f"`aget_state` {where}, relative to SQLite",
            "at least",
            1,
            _speed(SQLITE),
            _PART,
            {"operation": operation},
        )
        for operation, where in ((GET_STATE, "by its writer"), (GET_STATE + COLD, "by a new saver"))
    ),
    *(
        Target(
            f"bytes of SQLite after {turns} turns, before compression, relative to ours",
            "at least",
            bound,
            _bytes_of_sqlite,
            _PART,
            {"operation": GROWN, "dataset": turns},
        )
        for turns, bound in ((100, 40), (400, 100))
    ),
    Target(
        f"p50 of `aget_tuple` beside {BUSY_THREADS} busy threads, relative to idle ones",
        "at most",
        1.2,
        _beside_tools,
        _PART,
        {"operation": BESIDE_TOOLS, "dataset": BUSY_THREADS},
    ),
)


def targets(cases: Cases) -> str:
    return measured_targets(TARGETS, cases)


def _if_measured(table: Callable[[Cases], str]) -> Callable[[Cases], str]:
    return lambda cases: table(cases) if cases.of(_PART) else "Not part of the published run."


TABLES: Final[Mapping[str, Callable[[Cases], str]]] = {
    "checkpoint-speeds": _if_measured(speeds),
    "checkpoint-sizes": _if_measured(sizes),
    "checkpoint-tools": _if_measured(beside_tools),
    "checkpoint-memory": _if_measured(memory),
    "checkpoint-targets": _if_measured(targets),
}
"""Name in a README -> the table."""

_TITLES: Final = {
    speeds: "throughput relative to each saver",
    sizes: "bytes of each saver relative to deerflow-mongo's",
    beside_tools: f"reads beside {BUSY_THREADS} threads in blocking calls",
    memory: "large states",
    targets: "targets",
}


def section(cases: Cases) -> str:
    """All tables with their titles; empty without records."""
    if not cases.of(_PART):
        return ""
    return "\n\n".join(f"## Checkpoints: {title}\n\n{table(cases)}" for table, title in _TITLES.items())
