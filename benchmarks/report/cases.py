"""The records of a results file by case, to compare contenders; any record may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from ..contenders.known import OURS, RAW_PYMONGO, SINGLE, SQL
from ..operations import OPERATIONS
from ..results import Key, Metric, Part, Record, Results
from .ratios import Ratio, counted, paired, unpaired

Case: TypeAlias = Key
"""One load, measured for each contender."""

MANY_TASKS = 32
"""The concurrency that throughput targets refer to."""
GROWTH_BASE = 1_000
"""The number of stored runs that growth is relative to."""
COMPARED = (*SQL, "deerflow-sqlite", "deerflow-postgresql", RAW_PYMONGO)
SHORT = {
    OURS: "deerflow-mongo",
    RAW_PYMONGO: "raw PyMongo",
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "deerflow-sqlite": "DeerFlow on SQLite",
    "deerflow-postgresql": "DeerFlow on PostgreSQL",
    SINGLE: "groups off",
    "mongodb-motor": "Motor",
    "mongodb-uvloop": "uvloop",
    "mongodb-w1": "w=1",
    "postgresql-uvloop": "PostgreSQL, uvloop",
    "postgresql-pool32": "PostgreSQL, 32 connections",
    "postgresql-off": "PostgreSQL, not synced",
    "sqlite-full": "SQLite, synced",
    "langgraph-sqlite": "AsyncSqliteSaver",
    "langgraph-postgresql": "AsyncPostgresSaver",
    "langgraph-mongodb": "langgraph-checkpoint-mongodb",
    "langgraph-memory": "InMemorySaver",
}
_SAME_LOAD_AS: dict[Part, tuple[Part, ...]] = {
    "variants": ("variants", "operations", "day", "contention"),
    "growth": ("growth", "operations"),
}
"""Parts whose missing records may be taken from other parts."""
_ORDER = {name: (operation.section, place) for place, (name, operation) in enumerate(OPERATIONS.items())}


class Cases:
    def __init__(self, results: Results) -> None:
        self.results = results
        self._records: dict[Case, dict[str, Record]] = {}
        for record in results.records:
            self._records.setdefault(record.key, {}).setdefault(record.backend, record)

    def of(self, part: Part, **given: object) -> list[Case]:
        """Cases with these field values (`concurrency=32`), in contract order."""
        found = [
            case
            for case in self._records
            if case.part == part and all(getattr(case, name) == value for name, value in given.items())
        ]
        return sorted(found, key=lambda case: _ORDER.get(case.operation, (9, 0)))

    def record(self, case: Case, backend: str) -> Record | None:
        for part in _SAME_LOAD_AS.get(case.part, (case.part,)):
            if (record := self.records(case._replace(part=part)).get(backend)) is not None:
                return record
        return None

    def records(self, case: Case) -> dict[str, Record]:
        """Backend -> record, of this part only."""
        return self._records.get(case, {})

    def ratio(self, case: Case, metric: Metric, over: str, under: str) -> Ratio | None:
        return self._ratio(case, over, case, under, metric)

    def change(self, case: Case, metric: Metric, backend: str, **base: int) -> Ratio | None:
        """Relative to the backend's own record of the case with other fields, such as `processes=1`."""
        return self._ratio(case, backend, case._replace(**base), backend, metric)

    def _ratio(self, over: Case, backend: str, under: Case, other: str, metric: Metric) -> Ratio | None:
        """Records of one load were measured alternately, whatever the dataset; others were not."""
        above, below = self.record(over, backend), self.record(under, other)
        if above is None or below is None:
            return None
        alternated = above.key._replace(dataset=0) == below.key._replace(dataset=0)
        return (paired if alternated else unpaired)(above.values(metric), below.values(metric))

    def backends(self, cases: Iterable[Case], known: Sequence[str] = ()) -> list[str]:
        """The backends with records of these cases; `known` ones first, in the given order."""
        there = dict.fromkeys(backend for case in cases for backend in self.records(case))
        return [backend for backend in dict.fromkeys((*known, *there)) if backend in there]

    def compared(self, cases: Iterable[Case]) -> list[str]:
        """The contenders that ours is compared with; no variants."""
        known = self.backends(cases, COMPARED)
        return [backend for backend in known if backend != OURS and base_of(backend) is None]

    def short(self, backend: str) -> str:
        return SHORT.get(backend) or str(self.results.contenders.get(backend, {}).get("title", backend))


def section_of(case: Case) -> int:
    """The section of the contract; 9 for what is no single operation."""
    return _ORDER.get(case.operation, (9, 0))[0]


def base_of(backend: str) -> str | None:
    """The base contender of a variant: `mongodb` for `mongodb-motor`."""
    base, dash, _ = backend.partition("-")
    return base if dash and base in (OURS, *SQL) else None


def label_of(cases: Sequence[Case]) -> Callable[[Case], str]:
    """Returns a function that labels a case by its operation and by whatever else differs among the cases."""
    nouns = {"concurrency": "task", "processes": "process", "dataset": "run"}
    differing = [name for name in nouns if len({getattr(case, name) for case in cases}) > 1]

    def label(case: Case) -> str:
        numbers = (counted(getattr(case, name), nouns[name]) for name in differing)
        return ", ".join((f"`{case.operation}`", *numbers))

    return label
