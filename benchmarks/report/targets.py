"""What is asked of deerflow-mongo, as a table, and whether the records show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..contenders.known import OURS, RAW_PYMONGO
from ..results import Figure, Kind, Part
from .cases import MANY_TASKS, SQL, Case, Cases, label_of
from .markdown import counted, items, spread, times
from .ratios import Ratio
from .tables import GROWTH_BASE

Measure = Callable[[Cases, Case], Ratio | None]


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    bound: float
    is_met: Literal["from the bound up", "up to the bound"]
    part: Part
    measure: Measure
    concurrency: int | None = None
    processes: int | None = None
    kind: Kind | None = None
    dataset: int | None = None
    limit: Measure | None = None
    """The same of raw PyMongo: what no code above PyMongo can exceed."""

    def cases(self, cases: Cases) -> list[Case]:
        names = ("concurrency", "processes", "kind", "dataset")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return [case for case in cases.of(self.part, **given) if OURS in cases.records(case)]

    def meets(self, ratio: Ratio) -> bool:
        if self.is_met == "from the bound up":
            return ratio.median >= self.bound
        return ratio.median <= self.bound

    def is_within_spread(self, ratio: Ratio) -> bool:
        return ratio.low <= self.bound <= ratio.high

    def distance(self, ratio: Ratio) -> float:
        """From the bound, as a share of it: how badly it is missed."""
        return abs(ratio.median - self.bound) / self.bound


def _against(rival: str, figure: Figure = "ops_per_s", backend: str = OURS) -> Measure:
    return lambda cases, case: cases.ratio(case, figure, backend, rival)


def _against_the_better(backend: str = OURS) -> Measure:
    """Of the two SQL baselines; nothing is known until both are measured."""

    def measure(cases: Cases, case: Case) -> Ratio | None:
        ratios = [cases.ratio(case, "ops_per_s", backend, rival) for rival in SQL]
        known = [ratio for ratio in ratios if ratio is not None]
        return min(known, key=lambda ratio: ratio.median) if len(known) == len(SQL) else None

    return measure


def _grown(cases: Cases, case: Case) -> Ratio | None:
    return cases.growth(case, OURS, GROWTH_BASE)


_AT_LEAST, _AT_MOST = "from the bound up", "up to the bound"
_MOST_RUNS = 100_000

TARGETS = (
    Target(
        "throughput against the SQL baseline on PostgreSQL, 32 tasks",
        3.0,
        _AT_LEAST,
        "operations",
        _against("postgresql"),
        concurrency=MANY_TASKS,
        processes=1,
        limit=_against("postgresql", backend=RAW_PYMONGO),
    ),
    Target(
        "throughput against the SQL baseline on SQLite, 32 tasks",
        5.0,
        _AT_LEAST,
        "operations",
        _against("sqlite"),
        concurrency=MANY_TASKS,
        processes=1,
        limit=_against("sqlite", backend=RAW_PYMONGO),
    ),
    Target(
        "throughput against the better of the two, 1 task",
        0.95,
        _AT_LEAST,
        "operations",
        _against_the_better(),
        concurrency=1,
        processes=1,
        limit=_against_the_better(RAW_PYMONGO),
    ),
    Target(
        "throughput of reads by id against the better of the two, 1 task",
        2.0,
        _AT_LEAST,
        "operations",
        _against_the_better(),
        concurrency=1,
        processes=1,
        limit=_against_the_better(RAW_PYMONGO),
        kind="read_by_id",
    ),
    Target(
        "p50 against raw PyMongo, 1 task",
        1.10,
        _AT_MOST,
        "operations",
        _against(RAW_PYMONGO, "p50_ms"),
        concurrency=1,
        processes=1,
    ),
    Target(
        "throughput against raw PyMongo, 32 tasks",
        0.90,
        _AT_LEAST,
        "operations",
        _against(RAW_PYMONGO),
        concurrency=MANY_TASKS,
        processes=1,
    ),
    Target(
        f"p50 with {_MOST_RUNS:,} runs stored over that with {GROWTH_BASE:,}",
        1.3,
        _AT_MOST,
        "growth",
        _grown,
        dataset=_MOST_RUNS,
    ),
    Target(
        "throughput of the mixed day against the SQL baseline on PostgreSQL, 4 processes",
        3.0,
        _AT_LEAST,
        "day",
        _against("postgresql"),
        processes=4,
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    target: Target
    measured: dict[str, Ratio]
    """By what the case is called."""
    missing: tuple[str, ...]
    """What has no figures of both sides."""
    limits: dict[str, Ratio]
    """What raw PyMongo reaches, where the target asks for it."""

    @property
    def misses(self) -> dict[str, Ratio]:
        """The worst first."""
        target = self.target
        found = [(label, ratio) for label, ratio in self.measured.items() if not target.meets(ratio)]
        return dict(sorted(found, key=lambda pair: -target.distance(pair[1])))

    @property
    def verdict(self) -> Literal["met", "MISSED", "not measured"]:
        if not self.measured:
            return "not measured"
        return "MISSED" if self.misses else "met"


def outcome(target: Target, cases: Cases) -> Outcome:
    asked = target.cases(cases)
    label = label_of(asked)
    ratios = {label(case): target.measure(cases, case) for case in asked}
    return Outcome(
        target,
        {name: ratio for name, ratio in ratios.items() if ratio is not None},
        tuple(name for name, ratio in ratios.items() if ratio is None),
        {name: ratio for name, ratio in _limits(target, cases) if ratio is not None},
    )


def _limits(target: Target, cases: Cases) -> Iterator[tuple[str, Ratio | None]]:
    if target.limit is not None:
        asked = target.cases(cases)
        label = label_of(asked)
        for case in asked:
            yield label(case), target.limit(cases, case)


def targets(cases: Cases) -> str:
    outcomes = [outcome(target, cases) for target in TARGETS]
    lists = [text for one in outcomes for text in _missed(one)]
    return "\n\n".join(("## Targets", items(_line(one) for one in outcomes), *lists))


def _asked(target: Target) -> str:
    least = target.is_met == "from the bound up"
    return f"{target.what}: {'at least' if least else 'at most'} {target.bound:g} x"


def _line(one: Outcome) -> str:
    text = f"**{one.verdict}**: {_asked(one.target)}"
    if one.measured:
        text += f"; {len(one.measured) - len(one.misses)} of {counted(len(one.measured), 'case')}"
    if one.measured and one.missing:
        text += f", {len(one.missing)} not measured"
    misses = [name for name in one.misses if name in one.limits]
    if misses:
        beyond = sum(not one.target.meets(one.limits[name]) for name in misses)
        text += f"; of the {len(misses)} missed ones raw PyMongo misses {beyond}, too"
    return text


def _missed(one: Outcome) -> Iterator[str]:
    if one.misses:
        yield f"Missed, {_asked(one.target)}:"
        yield items(_miss(one, label, ratio) for label, ratio in one.misses.items())
    if one.measured and one.missing:
        yield f"Not measured on both sides, {_asked(one.target)}: {', '.join(one.missing)}."


def _miss(one: Outcome, label: str, ratio: Ratio) -> str:
    text = f"{label}: {times(ratio.median)} {spread(ratio)}".strip()
    share = one.target.distance(ratio) * 100
    text += f", by {share:.0f} %" if share >= 1 else ", by less than 1 %"
    if one.target.is_within_spread(ratio):
        text += "; its spread reaches the target"
    limit = one.limits.get(label)
    return text if limit is None else f"{text}; raw PyMongo: {times(limit.median)}"
