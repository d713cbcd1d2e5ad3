"""The performance targets of deerflow-mongo as a table, and whether the records meet them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..contenders.known import OURS, RAW_PYMONGO, SQL
from ..operations import OPERATIONS
from ..results import Metric, Part
from .cases import GROWTH_BASE, MANY_TASKS, Case, Cases, label_of
from .ratios import NOTHING, Ratio, Table, spread, with_spread

Measure = Callable[[Cases, Case, str], Ratio | None]
"""Of this backend: deerflow-mongo, or raw PyMongo, which shows what one command per call costs."""

_GROWTH_RUNS = 100_000


def relative_to(other: str, metric: Metric = "ops_per_s") -> Measure:
    return lambda cases, case, backend: (
        None if backend == other else cases.ratio(case, metric, backend, other)
    )


def absolute(metric: Metric) -> Measure:
    """The measured values, which depend on the machine."""

    def measure(cases: Cases, case: Case, backend: str) -> Ratio | None:
        record = cases.record(case, backend)
        return None if record is None else spread(record.values(metric))

    return measure


def _relative_to_faster_sql(cases: Cases, case: Case, backend: str) -> Ratio | None:
    """None unless both baselines are measured."""
    ratios = [cases.ratio(case, "ops_per_s", backend, other) for other in SQL]
    known = [ratio for ratio in ratios if ratio is not None]
    return min(known, key=lambda ratio: ratio.median) if len(known) == len(SQL) else None


def _growth(cases: Cases, case: Case, backend: str) -> Ratio | None:
    return cases.change(case, "p50_ms", backend, dataset=GROWTH_BASE)


@dataclass(frozen=True, slots=True)
class Target:
    title: str
    limit: Literal["at least", "at most"]
    bound: float
    measure: Measure
    part: Part
    given: dict[str, Any]
    """Field values of the cases."""
    kind: str | None = None
    operations: Sequence[str] | None = None
    """None: all."""
    unit: str = "x"

    @property
    def text(self) -> str:
        return f"{self.title}: {self.limit} {self.bound:g} {self.unit}"

    def meets(self, ratio: Ratio) -> bool:
        return ratio.median >= self.bound if self.limit == "at least" else ratio.median <= self.bound


_ONE: tuple[Part, dict[str, Any]] = ("operations", {"concurrency": 1, "processes": 1})
_MANY: tuple[Part, dict[str, Any]] = ("operations", {"concurrency": MANY_TASKS, "processes": 1})
_FASTER, _BY_ID = "throughput relative to the faster SQL baseline", "throughput of reads by id relative to"
_GROWN = f"p50 with {_GROWTH_RUNS:,} stored runs relative to {GROWTH_BASE:,}"
_MIXED = "throughput of the mixed workload relative to PostgreSQL, 4 processes"

TARGETS = (
    Target("throughput relative to PostgreSQL, 32 tasks", "at least", 3, relative_to("postgresql"), *_MANY),
    Target("throughput relative to SQLite, 32 tasks", "at least", 5, relative_to("sqlite"), *_MANY),
    Target(f"{_FASTER}, 1 task", "at least", 0.95, _relative_to_faster_sql, *_ONE),
    Target(f"{_BY_ID} the faster one, 1 task", "at least", 2, _relative_to_faster_sql, *_ONE, "read_by_id"),
    Target("p50 relative to raw PyMongo, 1 task", "at most", 1.1, relative_to(RAW_PYMONGO, "p50_ms"), *_ONE),
    Target("throughput relative to raw PyMongo, 32 tasks", "at least", 0.9, relative_to(RAW_PYMONGO), *_MANY),
    Target(_GROWN, "at most", 1.3, _growth, "growth", {"dataset": _GROWTH_RUNS}),
    Target(_MIXED, "at least", 3, relative_to("postgresql"), "day", {"processes": 4}),
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
        found = [(label, ratio) for label, ratio in self.measured.items() if not self.target.meets(ratio)]
        return dict(sorted(found, key=lambda pair: -abs(pair[1].median - self.target.bound)))

    @property
    def verdict(self) -> Literal["met", "MISSED", "not measured"]:
        return "not measured" if not self.measured else "MISSED" if self.misses else "met"


def outcome(target: Target, cases: Cases) -> Outcome:
    selected = [case for case in cases.of(target.part, **target.given) if OURS in cases.records(case)]
    if target.kind is not None:
        selected = [case for case in selected if OPERATIONS[case.operation].kind == target.kind]
    if target.operations is not None:
        selected = [case for case in selected if case.operation in target.operations]
    label = label_of(selected)

    def measured(backend: str) -> dict[str, Ratio]:
        ratios = {label(case): target.measure(cases, case, backend) for case in selected}
        return {name: ratio for name, ratio in ratios.items() if ratio is not None}

    return Outcome(target, measured(OURS), measured(RAW_PYMONGO))


def targets(cases: Cases) -> str:
    table = Table("target", "", "met by", "raw PyMongo, where missed", texts=4)
    for one in (outcome(target, cases) for target in TARGETS):
        number = len(one.measured)
        met = f"{number - len(one.misses)} of {number}" if number else NOTHING
        raw = [one.target.meets(one.raw_pymongo[name]) for name in one.misses if name in one.raw_pymongo]
        reaches = f"meets {sum(raw)} of {len(raw)}" if raw else NOTHING
        table.add(one.target.text, f"**{one.verdict}**", met, reaches)
    return str(table)


def measured_targets(of: Sequence[Target], cases: Cases) -> str:
    """A table of other targets, each with the case that is furthest from its bound."""
    table = Table("target", "", "measured", texts=2)
    for one in (outcome(target, cases) for target in of):
        choose = min if one.target.limit == "at least" else max
        worst = choose(one.measured.values(), key=lambda ratio: ratio.median, default=None)
        table.add(one.target.text, f"**{one.verdict}**", with_spread(worst))
    return str(table)
