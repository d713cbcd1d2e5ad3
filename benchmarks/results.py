"""The results of a benchmark and their file format, with the measured values of every repetition.

The file is rewritten after each finished case, so that it is complete at any moment.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

FORMAT = 1

Part = Literal["operations", "growth", "day", "contention", "variants", "tasks", "checkpoints", "gateway"]
Metric = Literal[
    "ops_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_us_per_op", "peak_memory_mb", "stored_mb", "disk_mb"
]


class ResultsError(ValueError):
    """The results file cannot be read; the message gives the reason."""


class Round(BaseModel):
    """One repetition of a case. Latencies are None if no call succeeded."""

    ops_per_s: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    cpu_us_per_op: float | None = None
    peak_memory_mb: float | None = None
    stored_mb: float | None = None
    """Of checkpoints, before the database compresses them."""
    disk_mb: float | None = None
    """Of checkpoints with their indexes."""
    failures: dict[str, int] = {}
    """Number of failed calls by exception name."""


class Key(NamedTuple):
    """Identifies a load, which all its contenders get."""

    part: Part
    operation: str
    concurrency: int
    processes: int
    dataset: int


class Record(BaseModel):
    """One case of one contender with all repetitions."""

    part: Part
    operation: str
    backend: str
    concurrency: int
    """Concurrent tasks per process."""
    processes: int = 1
    dataset: int
    rounds: list[Round]
    """In order of repetition."""

    @property
    def key(self) -> Key:
        return Key(self.part, self.operation, self.concurrency, self.processes, self.dataset)

    @property
    def failures(self) -> Counter[str]:
        """Sum over all rounds."""
        return sum((Counter(one.failures) for one in self.rounds), Counter[str]())

    def values(self, metric: Metric) -> list[float | None]:
        """One value per round."""
        return [getattr(one, metric) for one in self.rounds]

    def median(self, metric: Metric) -> float | None:
        """Over the rounds that have the metric."""
        known = [value for value in self.values(metric) if value is not None]
        return median(known) if known else None


class Disagreement(BaseModel):
    """A contender that is excluded from the records, because its results differ from ours."""

    operation: str
    dataset: int
    backend: str
    why: str
    part: Part | None = None
    """None of operations that only one part has, and in older files."""


class Size(BaseModel):
    backend: str
    dataset: int
    bytes_per_run: float


class Results(BaseModel):
    format: Literal[1] = FORMAT
    began_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    took_s: float = 0
    finished: bool = False
    """False if the run was interrupted or is still in progress."""
    settings: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    versions: dict[str, str | None] = {}
    contenders: dict[str, dict[str, Any]] = {}
    """Backend -> `title`, `driver`, `loop`, `server`, `durability`."""
    left_out: dict[str, str] = {}
    """Contender -> reason why it was not measured."""
    disagreements: list[Disagreement] = []
    sizes: list[Size] = []
    records: list[Record] = []

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Raises `ResultsError` if the file is missing, is not a results file or has another format."""
        try:
            found = cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ResultsError(f"{path} is not a benchmark results file: {where}: {first['msg']}") from error
        if "format" not in found.model_fields_set:
            raise ResultsError(f"{path} is not a benchmark results file: it has no `format`")
        return found

    def remove(self, part: Part, operations: Collection[str]) -> None:
        """Before a part is measured again: its records and exclusions, and those from these operations."""
        self.records[:] = [one for one in self.records if one.part != part]
        self.disagreements[:] = [
            one for one in self.disagreements if one.part != part and one.operation not in operations
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Replaces the file atomically; concurrent readers get the previous version."""
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
