"""The tables of the part `gateway`: turns of the whole gateway on each storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..contenders.known import OURS, SINGLE
from ..results import Metric, Part
from .cases import Case, Cases
from .ratios import NOTHING, Table, counted, with_spread
from .targets import Target, measured_targets, relative_to

_COMPARED = ("deerflow-sqlite", "deerflow-postgresql")
_METRICS: Sequence[tuple[str, Metric, float, int]] = (
    ("turns/s", "ops_per_s", 1, 1),
    ("p50, ms", "p50_ms", 1, 0),
    ("p95, ms", "p95_ms", 1, 0),
    ("CPU time of the gateway per turn, ms", "cpu_us_per_op", 1e-3, 0),
    ("peak memory of the gateway, MB", "peak_memory_mb", 1, 0),
)
"""Title, metric, the factor of its unit, and decimals."""


_PART: Final[Part] = "gateway"
TARGETS: Final = (
    *(
        Target(
            f"turns/s of {counted(users, 'user')}, relative to DeerFlow on SQLite",
            "at least",
            bound,
            relative_to("deerflow-sqlite"),
            _PART,
            {"concurrency": users},
        )
        for users, bound in ((1, 1), (24, 1.6))
    ),
    Target(
        "turns/s of 1 user, relative to groups off",
        "at least",
        0.98,
        relative_to(SINGLE),
        _PART,
        {"concurrency": 1},
    ),
    Target(
        "CPU time of the gateway per turn of 24 users, relative to groups off",
        "at most",
        1,
        relative_to(SINGLE, "cpu_us_per_op"),
        _PART,
        {"concurrency": 24},
    ),
)


def gateway(cases: Cases) -> str:
    """Ratios for the READMEs: the gateway on deerflow-mongo relative to DeerFlow's own storage."""
    return _relative_to(_COMPARED, cases)


def groups(cases: Cases) -> str:
    """The same relative to the gateway without groups."""
    return _relative_to((SINGLE,), cases)


def _relative_to(others: Sequence[str], cases: Cases) -> str:
    of = _by_users(cases)
    table = Table("the whole gateway", "", *(counted(case.concurrency, "user") for case in of), texts=2)
    measured = cases.backends(of)
    for name in (name for name in others if name in measured):
        for title, metric, *_ in _METRICS[:-1]:
            ratios = (cases.ratio(case, metric, OURS, name) for case in of)
            table.add(f"relative to {cases.short(name)}", title.partition(",")[0], *map(with_spread, ratios))
    return str(table)


def targets(cases: Cases) -> str:
    return measured_targets(TARGETS, cases)


def absolute_values(cases: Cases) -> str:
    """What was measured: the median of the rounds (smallest to largest), and failed turns."""
    of = _by_users(cases)
    table = Table("storage of the gateway", "users", *(title for title, *_ in _METRICS), "failed turns")
    for case in of:
        for name in cases.backends([case], (OURS, SINGLE, *_COMPARED)):
            record = cases.records(case)[name]
            cells = [
                _with_range(record.values(metric), factor, decimals)
                for _, metric, factor, decimals in _METRICS
            ]
            failed = ", ".join(f"{count:,} x {kind}" for kind, count in record.failures.items())
            table.add(cases.short(name), str(case.concurrency), *cells, failed or "none")
    return str(table)


def _by_users(cases: Cases) -> list[Case]:
    return sorted(cases.of("gateway"), key=lambda case: case.concurrency)


def _with_range(values: Sequence[float | None], factor: float, decimals: int) -> str:
    known = sorted(value * factor for value in values if value is not None)
    if not known:
        return NOTHING
    middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    low, median, high = (f"{value:,.{decimals}f}" for value in (known[0], middle, known[-1]))
    return median if low == high else f"{median} ({low} to {high})"
