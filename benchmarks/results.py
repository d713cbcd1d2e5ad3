"""The results of a benchmark and their file format.

The file is rewritten after each finished case, so that it is complete at any moment. The metrics of a record
are medians of its rounds; they are computed again when a file is read.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

from pydantic import TypeAdapter, ValidationError

FORMAT = 1

Part = Literal["operations", "growth", "day", "contention", "variants"]
Kind = Literal["read_by_id", "read", "write", "mixed"]
Metric = Literal["ops_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_us_per_op", "peak_memory_mb"]
METRICS: tuple[Metric, ...] = get_args(Metric)


class ResultsError(ValueError):
    """The results file cannot be read; the message gives the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One repetition of a case. Latencies are None if no call succeeded."""

    ops_per_s: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    cpu_us_per_op: float | None = None
    peak_memory_mb: float | None = None
    failures: dict[str, int] = field(default_factory=dict[str, int])
    """Number of failed calls by exception name."""

    def metric(self, name: Metric) -> float | None:
        return getattr(self, name)


class Key(NamedTuple):
    """Identifies a record; unique within a file."""

    part: Part
    operation: str
    backend: str
    driver: str | None
    loop: str | None
    concurrency: int
    processes: int
    dataset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One case of one contender with all repetitions."""

    part: Part
    operation: str
    section: int
    """Section of the contract; 0 for the mixed workload."""
    kind: Kind
    backend: str
    driver: str | None
    loop: str | None
    concurrency: int
    """Concurrent tasks per process."""
    processes: int = 1
    dataset: int
    rounds: list[Round]
    """In order of repetition."""

    @classmethod
    def of(
        cls,
        rounds: Sequence[Round],
        *,
        part: Part,
        operation: str,
        section: int,
        kind: Kind,
        backend: str,
        driver: str | None,
        loop: str | None,
        concurrency: int,
        dataset: int,
        processes: int = 1,
    ) -> Record:
        return cls(
            part=part,
            operation=operation,
            section=section,
            kind=kind,
            backend=backend,
            driver=driver,
            loop=loop,
            concurrency=concurrency,
            processes=processes,
            dataset=dataset,
            rounds=list(rounds),
        )

    @property
    def key(self) -> Key:
        return Key(*(getattr(self, name) for name in Key._fields))

    @property
    def repetitions(self) -> int:
        return len(self.rounds)

    @property
    def failures(self) -> dict[str, int]:
        """Sum over all rounds."""
        totals: Counter[str] = Counter()
        for one in self.rounds:
            totals.update(one.failures)
        return dict(totals)

    def values(self, metric: Metric) -> list[float | None]:
        """One value per round."""
        return [one.metric(metric) for one in self.rounds]

    def median(self, metric: Metric) -> float | None:
        """Over the rounds that have the metric."""
        known = [value for value in self.values(metric) if value is not None]
        return median(known) if known else None

    def as_json(self) -> dict[str, Any]:
        return {
            **self.key._asdict(),
            "section": self.section,
            "kind": self.kind,
            **{metric: self.median(metric) for metric in METRICS},
            "failures": self.failures,
            "repetitions": self.repetitions,
            "rounds": [asdict(one) for one in self.rounds],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A contender whose results differ from ours; its measurements are excluded from the records."""

    operation: str
    dataset: int
    backend: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    backend: str
    dataset: int
    bytes_per_run: float


class Payload(NamedTuple):
    name: str
    unit: str
    median: float
    mean: float
    max: float


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(slots=True, kw_only=True)
class Results:
    began_at: str = field(default_factory=_now)
    took_s: float = 0
    finished: bool = False
    """False if the run was interrupted or is still in progress."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    machine: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str | None] = field(default_factory=dict[str, str | None])
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Backend -> `title`, `driver`, `loop`, `server`, `durability`."""
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    """Contender -> reason why it was not measured."""
    payloads: list[Payload] = field(default_factory=list[Payload])
    disagreements: list[Disagreement] = field(default_factory=list[Disagreement])
    sizes: list[Size] = field(default_factory=list[Size])
    records: list[Record] = field(default_factory=list[Record])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Raises `ResultsError` if the file is missing, is not a results file or has another format."""
        path = Path(path)
        raw = _parsed(path)
        if not isinstance(raw, dict) or "format" not in raw:
            raise ResultsError(f"{path} is not a benchmark results file: it has no `format`")
        if raw["format"] != FORMAT:
            raise ResultsError(
                f"{path} has format {raw['format']!r}, but this version reads format {FORMAT}: "
                "run the benchmark again, or use the version that wrote the file"
            )
        try:
            return _ADAPTER.validate_python(raw)
        except ValidationError as error:
            raise ResultsError(f"{path} is not a valid benchmark results file: {_first(error)}") from error

    def add(self, record: Record) -> None:
        """Raises `ValueError` if the contender already has a record of this case."""
        if any(record.key == other.key for other in self.records):
            raise ValueError(f"duplicate record of one case: {record.key}")
        self.records.append(record)

    def as_json(self) -> dict[str, Any]:
        written: dict[str, Callable[[Any], Any]] = {
            "disagreements": asdict,
            "sizes": asdict,
            "records": Record.as_json,
        }
        raw: dict[str, Any] = {"format": FORMAT}
        for name in type(self).__slots__:
            value = getattr(self, name)
            raw[name] = [written[name](item) for item in value] if name in written else value
        return raw

    def save(self, path: str | os.PathLike[str]) -> None:
        """Replaces the file atomically; concurrent readers get the previous version."""
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(f"{json.dumps(self.as_json(), indent=1, allow_nan=False)}\n", encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


_ADAPTER = TypeAdapter(Results)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON: {error}") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
