"""Groups the records of a results file by case, to compare contenders; any record may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..contenders.known import OURS, RAW_PYMONGO
from ..results import Kind, Metric, Part, Record, Results
from .markdown import counted
from .ratios import Ratio, of_records

MANY_TASKS = 32
"""The concurrency that throughput targets refer to."""
SQL = ("sqlite", "postgresql")
COMPARED = (*SQL, "deerflow-sqlite", "deerflow-postgresql", RAW_PYMONGO)

_SHORT = {
    OURS: "deerflow-mongo",
    RAW_PYMONGO: "raw PyMongo",
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "deerflow-sqlite": "DeerFlow on SQLite",
    "deerflow-postgresql": "DeerFlow on PostgreSQL",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One load, measured for each contender."""

    part: Part
    operation: str
    concurrency: int
    processes: int
    dataset: int
    section: int
    kind: Kind

    def with_changes(
        self, *, part: Part | None = None, processes: int | None = None, dataset: int | None = None
    ) -> Case:
        """The same case with another part, number of processes or dataset."""
        return replace(
            self,
            part=part or self.part,
            processes=processes or self.processes,
            dataset=dataset or self.dataset,
        )


def _case(record: Record) -> Case:
    return Case(
        record.part,
        record.operation,
        record.concurrency,
        record.processes,
        record.dataset,
        record.section,
        record.kind,
    )


class Cases:
    def __init__(self, results: Results) -> None:
        self.results = results
        self._records: dict[Case, dict[str, Record]] = {}
        for record in results.records:
            self._records.setdefault(_case(record), {}).setdefault(record.backend, record)

    def of(self, part: Part, **given: object) -> list[Case]:
        """Cases with these field values (`concurrency=32`), in contract order, the mixed workload last."""
        found = [
            case
            for case in self._records
            if case.part == part and all(getattr(case, name) == value for name, value in given.items())
        ]
        return sorted(found, key=lambda case: case.section or 99)

    def record(self, case: Case, backend: str) -> Record | None:
        """Of this part or, for variants and growth, of another part that measures the same load."""
        parts: dict[Part, tuple[Part, ...]] = {
            "variants": ("variants", "operations", "day", "contention"),
            "growth": ("growth", "operations"),
        }
        for part in parts.get(case.part, (case.part,)):
            record = self._records.get(case.with_changes(part=part), {}).get(backend)
            if record is not None:
                return record
        return None

    def records(self, case: Case) -> dict[str, Record]:
        """Backend -> record, of this part only."""
        return self._records.get(case, {})

    def ratio(self, case: Case, metric: Metric, over: str, under: str) -> Ratio | None:
        above, below = self.record(case, over), self.record(case, under)
        return None if above is None or below is None else of_records(above, below, metric)

    def growth(self, case: Case, backend: str, base: int) -> Ratio | None:
        """The p50 relative to that with `base` runs."""
        above = self.record(case, backend)
        below = self.record(case.with_changes(dataset=base), backend)
        return None if above is None or below is None else of_records(above, below, "p50_ms")

    def backends(self, cases: Iterable[Case], known: Sequence[str] = ()) -> list[str]:
        """The backends with records of these cases; `known` ones first, in the given order."""
        there = dict.fromkeys(backend for case in cases for backend in self.records(case))
        return [backend for backend in dict.fromkeys((*known, *there)) if backend in there]

    def compared(self, cases: Iterable[Case]) -> list[str]:
        """The contenders that ours is compared with; no variants."""
        return [
            backend
            for backend in self.backends(cases, COMPARED)
            if backend != OURS and base_of(backend) is None
        ]

    def title(self, backend: str) -> str:
        """The title in the results file."""
        return str(self.results.contenders.get(backend, {}).get("title", backend))

    def short(self, backend: str) -> str:
        return _SHORT.get(backend) or self.title(backend)


def base_of(backend: str) -> str | None:
    """The base contender of a variant: `mongodb` for `mongodb-motor`."""
    base, dash, _ = backend.partition("-")
    return base if dash and base in (OURS, *SQL) else None


def label_of(cases: Sequence[Case]) -> Callable[[Case], str]:
    """Returns a function that labels a case by its operation and by whatever else differs among the cases."""
    has_sizes = len({case.dataset for case in cases}) > 1
    has_tasks = len({case.concurrency for case in cases}) > 1
    has_processes = len({case.processes for case in cases}) > 1

    def label(case: Case) -> str:
        parts = [f"`{case.operation}`"]
        if has_tasks:
            parts.append(counted(case.concurrency, "task"))
        if has_processes:
            parts.append(counted(case.processes, "process"))
        if has_sizes:
            parts.append(f"{case.dataset:,} runs")
        return ", ".join(parts)

    return label
