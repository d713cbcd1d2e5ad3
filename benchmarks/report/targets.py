"""The performance targets of deerflow-mongo as a table, and whether the records meet them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..contenders.known import OURS, RAW_PYMONGO
from ..operations import OPERATIONS
from ..results import Part
from .cases import GROWTH_BASE, MANY_TASKS, SQL, Case, Cases, label_of
from .markdown import NOTHING, Table, times, with_spread
from .ratios import Ratio

Measure = Callable[[Cases, Case, str], Ratio | None]
"""Of this backend: deerflow-mongo, or raw PyMongo, which no code on top of PyMongo can exceed."""

_GROWTH_RUNS = 100_000


@dataclass(frozen=True, slots=True)
class Target:
    title: str
    limit: Literal["at least", "at most"]
    bound: float
    part: Part
    measure: Measure
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    """Field values of the cases."""
    kind: str | None = None

    def cases(self, cases: Cases) -> list[Case]:
        found = [case for case in cases.of(self.part, **self.given) if OURS in cases.records(case)]
        if self.kind is None:
            return found
        return [case for case in found if OPERATIONS[case.operation].kind == self.kind]

    def meets(self, ratio: Ratio) -> bool:
        return ratio.median >= self.bound if self.limit == "at least" else ratio.median <= self.bound


def _throughput_relative_to(other: str) -> Measure:
    return lambda cases, case, backend: (
        None if backend == other else cases.ratio(case, "ops_per_s", backend, other)
    )


def _relative_to_faster_sql(cases: Cases, case: Case, backend: str) -> Ratio | None:
    """None unless both baselines are measured."""
    ratios = [cases.ratio(case, "ops_per_s", backend, other) for other in SQL]
    known = [ratio for ratio in ratios if ratio is not None]
    return min(known, key=lambda ratio: ratio.median) if len(known) == len(SQL) else None


def _p50_relative_to_raw(cases: Cases, case: Case, backend: str) -> Ratio | None:
    return None if backend == RAW_PYMONGO else cases.ratio(case, "p50_ms", backend, RAW_PYMONGO)


def _growth(cases: Cases, case: Case, backend: str) -> Ratio | None:
    return cases.growth(case, backend, GROWTH_BASE)


_ONE: dict[str, Any] = {"concurrency": 1, "processes": 1}
_MANY: dict[str, Any] = {"concurrency": MANY_TASKS, "processes": 1}
_TO_RAW = _throughput_relative_to(RAW_PYMONGO)
_TO_POSTGRESQL, _TO_SQLITE = _throughput_relative_to("postgresql"), _throughput_relative_to("sqlite")

TARGETS = (
    Target(
        "throughput relative to PostgreSQL, 32 tasks", "at least", 3.0, "operations", _TO_POSTGRESQL, _MANY
    ),
    Target("throughput relative to SQLite, 32 tasks", "at least", 5.0, "operations", _TO_SQLITE, _MANY),
    Target(
        "throughput relative to the faster SQL baseline, 1 task",
        "at least",
        0.95,
        "operations",
        _relative_to_faster_sql,
        _ONE,
    ),
    Target(
        "throughput of reads by id relative to the faster SQL baseline, 1 task",
        "at least",
        2.0,
        "operations",
        _relative_to_faster_sql,
        _ONE,
        "read_by_id",
    ),
    Target("p50 relative to raw PyMongo, 1 task", "at most", 1.10, "operations", _p50_relative_to_raw, _ONE),
    Target("throughput relative to raw PyMongo, 32 tasks", "at least", 0.90, "operations", _TO_RAW, _MANY),
    Target(
        f"p50 with {_GROWTH_RUNS:,} stored runs relative to {GROWTH_BASE:,}",
        "at most",
        1.3,
        "growth",
        _growth,
        {"dataset": _GROWTH_RUNS},
    ),
    Target(
        "throughput of the mixed workload relative to PostgreSQL, 4 processes",
        "at least",
        3.0,
        "day",
        _TO_POSTGRESQL,
        {"processes": 4},
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    target: Target
    measured: dict[str, Ratio]
    """Label of the case -> ratio."""
    raw_pymongo: dict[str, Ratio]
    """The same of raw PyMongo."""

    @property
    def misses(self) -> dict[str, Ratio]:
        """Missed cases, the largest distance first."""
        bound, meets = self.target.bound, self.target.meets
        found = [(label, ratio) for label, ratio in self.measured.items() if not meets(ratio)]
        return dict(sorted(found, key=lambda pair: -abs(pair[1].median - bound)))

    @property
    def verdict(self) -> Literal["met", "MISSED", "not measured"]:
        if not self.measured:
            return "not measured"
        return "MISSED" if self.misses else "met"


def outcome(target: Target, cases: Cases) -> Outcome:
    selected = target.cases(cases)
    label = label_of(selected)
    measured, raw = (
        {
            label(case): ratio
            for case in selected
            if (ratio := target.measure(cases, case, backend)) is not None
        }
        for backend in (OURS, RAW_PYMONGO)
    )
    return Outcome(target, measured, raw)


def targets(cases: Cases) -> str:
    table = Table("target", "", "met by", "raw PyMongo, where missed", texts=4)
    for one in (outcome(target, cases) for target in TARGETS):
        number = len(one.measured)
        met = f"{number - len(one.misses)} of {number}" if number else NOTHING
        raw = [one.target.meets(one.raw_pymongo[name]) for name in one.misses if name in one.raw_pymongo]
        reaches = f"meets {sum(raw)} of {len(raw)}" if raw else NOTHING
        title = f"{one.target.title}: {one.target.limit} {one.target.bound:g} x"
        table.add(title, f"**{one.verdict}**", met, reaches)
    return str(table)


def missed(cases: Cases) -> str:
    """The missed cases of all targets."""
    table = Table("target", "case", "deerflow-mongo", "raw PyMongo", texts=2)
    for one in (outcome(target, cases) for target in TARGETS):
        for label, ratio in one.misses.items():
            raw = one.raw_pymongo.get(label)
            bound = f"{one.target.title}: {one.target.limit} {one.target.bound:g} x"
            table.add(bound, label, with_spread(ratio), NOTHING if raw is None else times(raw.median))
    return f"## Missed targets\n\n{table}" if table else ""
