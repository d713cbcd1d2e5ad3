"""The performance targets of deerflow-mongo as a table, and whether the records meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..contenders.known import OURS, RAW_PYMONGO
from ..results import Kind, Metric, Part
from .cases import MANY_TASKS, SQL, Case, Cases, label_of
from .markdown import counted, items, spread, times
from .ratios import Ratio
from .tables import GROWTH_BASE

Measure = Callable[[Cases, Case], Ratio | None]

_AT_LEAST, _AT_MOST = "at least", "at most"


@dataclass(frozen=True, slots=True)
class Target:
    title: str
    bound: float
    limit: Literal["at least", "at most"]
    part: Part
    measure: Measure
    concurrency: int | None = None
    processes: int | None = None
    kind: Kind | None = None
    dataset: int | None = None
    raw_pymongo: Measure | None = None
    """The same measure of raw PyMongo, which no code on top of PyMongo can exceed."""

    def cases(self, cases: Cases) -> list[Case]:
        names = ("concurrency", "processes", "kind", "dataset")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return [case for case in cases.of(self.part, **given) if OURS in cases.records(case)]

    def meets(self, ratio: Ratio) -> bool:
        if self.limit == _AT_LEAST:
            return ratio.median >= self.bound
        return ratio.median <= self.bound

    def is_within_spread(self, ratio: Ratio) -> bool:
        return ratio.low <= self.bound <= ratio.high

    def distance(self, ratio: Ratio) -> float:
        """Distance from the bound as a fraction of the bound."""
        return abs(ratio.median - self.bound) / self.bound


def _relative_to(other: str, metric: Metric = "ops_per_s", backend: str = OURS) -> Measure:
    return lambda cases, case: cases.ratio(case, metric, backend, other)


def _relative_to_faster_sql(backend: str = OURS) -> Measure:
    """Relative to the faster SQL baseline; None unless both are measured."""

    def measure(cases: Cases, case: Case) -> Ratio | None:
        ratios = [cases.ratio(case, "ops_per_s", backend, other) for other in SQL]
        known = [ratio for ratio in ratios if ratio is not None]
        return min(known, key=lambda ratio: ratio.median) if len(known) == len(SQL) else None

    return measure


def _growth(cases: Cases, case: Case) -> Ratio | None:
    return cases.growth(case, OURS, GROWTH_BASE)


_GROWTH_RUNS = 100_000

TARGETS = (
    Target(
        "throughput relative to the SQL baseline on PostgreSQL, 32 tasks",
        3.0,
        _AT_LEAST,
        "operations",
        _relative_to("postgresql"),
        concurrency=MANY_TASKS,
        processes=1,
        raw_pymongo=_relative_to("postgresql", backend=RAW_PYMONGO),
    ),
    Target(
        "throughput relative to the SQL baseline on SQLite, 32 tasks",
        5.0,
        _AT_LEAST,
        "operations",
        _relative_to("sqlite"),
        concurrency=MANY_TASKS,
        processes=1,
        raw_pymongo=_relative_to("sqlite", backend=RAW_PYMONGO),
    ),
    Target(
        "throughput relative to the faster SQL baseline, 1 task",
        0.95,
        _AT_LEAST,
        "operations",
        _relative_to_faster_sql(),
        concurrency=1,
        processes=1,
        raw_pymongo=_relative_to_faster_sql(RAW_PYMONGO),
    ),
    Target(
        "throughput of reads by id relative to the faster SQL baseline, 1 task",
        2.0,
        _AT_LEAST,
        "operations",
        _relative_to_faster_sql(),
        concurrency=1,
        processes=1,
        raw_pymongo=_relative_to_faster_sql(RAW_PYMONGO),
        kind="read_by_id",
    ),
    Target(
        "p50 relative to raw PyMongo, 1 task",
        1.10,
        _AT_MOST,
        "operations",
        _relative_to(RAW_PYMONGO, "p50_ms"),
        concurrency=1,
        processes=1,
    ),
    Target(
        "throughput relative to raw PyMongo, 32 tasks",
        0.90,
        _AT_LEAST,
        "operations",
        _relative_to(RAW_PYMONGO),
        concurrency=MANY_TASKS,
        processes=1,
    ),
    Target(
        f"p50 with {_GROWTH_RUNS:,} stored runs relative to {GROWTH_BASE:,}",
        1.3,
        _AT_MOST,
        "growth",
        _growth,
        dataset=_GROWTH_RUNS,
    ),
    Target(
        "throughput of the mixed workload relative to the SQL baseline on PostgreSQL, 4 processes",
        3.0,
        _AT_LEAST,
        "day",
        _relative_to("postgresql"),
        processes=4,
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    target: Target
    measured: dict[str, Ratio]
    """Label of the case -> ratio."""
    missing: tuple[str, ...]
    """Labels of the cases without records of both contenders."""
    raw_pymongo: dict[str, Ratio]
    """Label of the case -> ratio of raw PyMongo, if the target has one."""

    @property
    def misses(self) -> dict[str, Ratio]:
        """Missed cases, the largest distance first."""
        target = self.target
        found = [(label, ratio) for label, ratio in self.measured.items() if not target.meets(ratio)]
        return dict(sorted(found, key=lambda pair: -target.distance(pair[1])))

    @property
    def verdict(self) -> Literal["met", "MISSED", "not measured"]:
        if not self.measured:
            return "not measured"
        return "MISSED" if self.misses else "met"


def outcome(target: Target, cases: Cases) -> Outcome:
    selected = target.cases(cases)
    label = label_of(selected)
    ratios = {label(case): target.measure(cases, case) for case in selected}
    return Outcome(
        target,
        {name: ratio for name, ratio in ratios.items() if ratio is not None},
        tuple(name for name, ratio in ratios.items() if ratio is None),
        {name: ratio for name, ratio in _raw_pymongo(target, cases) if ratio is not None},
    )


def _raw_pymongo(target: Target, cases: Cases) -> Iterator[tuple[str, Ratio | None]]:
    if target.raw_pymongo is not None:
        selected = target.cases(cases)
        label = label_of(selected)
        for case in selected:
            yield label(case), target.raw_pymongo(cases, case)


def targets(cases: Cases) -> str:
    outcomes = [outcome(target, cases) for target in TARGETS]
    lists = [text for one in outcomes for text in _missed(one)]
    return "\n\n".join(("## Targets", items(_line(one) for one in outcomes), *lists))


def _description(target: Target) -> str:
    return f"{target.title}: {target.limit} {target.bound:g} x"


def _line(one: Outcome) -> str:
    text = f"**{one.verdict}**: {_description(one.target)}"
    if one.measured:
        text += f"; {len(one.measured) - len(one.misses)} of {counted(len(one.measured), 'case')}"
    if one.measured and one.missing:
        text += f", {len(one.missing)} not measured"
    misses = [name for name in one.misses if name in one.raw_pymongo]
    if misses:
        missed = sum(not one.target.meets(one.raw_pymongo[name]) for name in misses)
        text += f"; raw PyMongo misses {missed} of the {counted(len(misses), 'missed case')}, too"
    return text


def _missed(one: Outcome) -> Iterator[str]:
    if one.misses:
        yield f"Missed, {_description(one.target)}:"
        yield items(_miss(one, label, ratio) for label, ratio in one.misses.items())
    if one.measured and one.missing:
        yield f"Not measured for both contenders, {_description(one.target)}: {', '.join(one.missing)}."


def _miss(one: Outcome, label: str, ratio: Ratio) -> str:
    text = f"{label}: {times(ratio.median)} {spread(ratio)}".strip()
    share = one.target.distance(ratio) * 100
    text += f", missed by {share:.0f} %" if share >= 1 else ", missed by less than 1 %"
    if one.target.is_within_spread(ratio):
        text += "; the spread includes the target"
    raw = one.raw_pymongo.get(label)
    return text if raw is None else f"{text}; raw PyMongo: {times(raw.median)}"
