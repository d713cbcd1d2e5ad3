"""The records of a file by case, so that contenders stand side by side; a file may lack any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..contenders.known import OURS, RAW_PYMONGO
from ..results import Figure, Kind, Part, Record, Results
from .markdown import counted
from .ratios import Ratio, of_records

MANY_TASKS = 32
"""The concurrency at which throughput is judged."""
SQL = ("sqlite", "postgresql")
RIVALS = (*SQL, "deerflow-sqlite", "deerflow-postgresql", RAW_PYMONGO)

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
    """What was measured of every contender that takes part."""

    part: Part
    operation: str
    concurrency: int
    processes: int
    dataset: int
    section: int
    kind: Kind

    def elsewhere(
        self, *, part: Part | None = None, processes: int | None = None, dataset: int | None = None
    ) -> Case:
        """The same in another part, from more or fewer processes, or over other data."""
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
        """Those of which this is given, as `concurrency=32`; in the contract's order, mixed loads last."""
        found = [
            case
            for case in self._records
            if case.part == part and all(getattr(case, name) == value for name, value in given.items())
        ]
        return sorted(found, key=lambda case: case.section or 99)

    def record(self, case: Case, backend: str) -> Record | None:
        """Variants are not always measured beside what they vary: its record may be in another part."""
        parts: dict[Part, tuple[Part, ...]] = {
            "variants": ("variants", "operations", "day", "contention"),
            "growth": ("growth", "operations"),
        }
        for part in parts.get(case.part, (case.part,)):
            record = self._records.get(case.elsewhere(part=part), {}).get(backend)
            if record is not None:
                return record
        return None

    def records(self, case: Case) -> dict[str, Record]:
        """Of this very part, by backend."""
        return self._records.get(case, {})

    def ratio(self, case: Case, figure: Figure, over: str, under: str) -> Ratio | None:
        above, below = self.record(case, over), self.record(case, under)
        return None if above is None or below is None else of_records(above, below, figure)

    def growth(self, case: Case, backend: str, base: int) -> Ratio | None:
        """The p50 over that with `base` runs."""
        above = self.record(case, backend)
        below = self.record(case.elsewhere(dataset=base), backend)
        return None if above is None or below is None else of_records(above, below, "p50_ms")

    def backends(self, cases: Iterable[Case], known: Sequence[str] = ()) -> list[str]:
        """Who has records of these cases: the known ones first, in their order."""
        there = dict.fromkeys(backend for case in cases for backend in self.records(case))
        return [backend for backend in dict.fromkeys((*known, *there)) if backend in there]

    def rivals(self, cases: Iterable[Case]) -> list[str]:
        """Whom ours is compared with: no variants, neither of ours nor of the others."""
        return [
            backend for backend in self.backends(cases, RIVALS) if backend != OURS and varied(backend) is None
        ]

    def title(self, backend: str) -> str:
        """As the file names it."""
        return str(self.results.contenders.get(backend, {}).get("title", backend))

    def short(self, backend: str) -> str:
        return _SHORT.get(backend) or self.title(backend)


def varied(backend: str) -> str | None:
    """Whose variant it is: `mongodb-motor` is one of `mongodb`."""
    base, dash, _ = backend.partition("-")
    return base if dash and base in (OURS, *SQL) else None


def label_of(cases: Sequence[Case]) -> Callable[[Case], str]:
    """How rows of these cases are called: by the operation, and by what else sets them apart."""
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
