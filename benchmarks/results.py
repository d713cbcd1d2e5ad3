"""What a benchmark measured, and the file that keeps it.

The file is written while the benchmark goes on, after each finished case, so what is there is always whole.
The figures of a record are medians made from its rounds: reading a file makes them anew.
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
Figure = Literal["ops_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_us_per_op", "peak_memory_mb"]
FIGURES: tuple[Figure, ...] = get_args(Figure)


class ResultsError(ValueError):
    """This is no file of results that can be read here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One repetition of a case. A latency is None where no call succeeded."""

    ops_per_s: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    cpu_us_per_op: float | None = None
    peak_memory_mb: float | None = None
    failures: dict[str, int] = field(default_factory=dict[str, int])
    """How many calls raised, by the name of the exception."""

    def figure(self, name: Figure) -> float | None:
        return getattr(self, name)


class Key(NamedTuple):
    """What makes a record the one it is: at most one of each in a file."""

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
    """One case of one contender, in all its repetitions."""

    part: Part
    operation: str
    section: int
    """Of the contract; 0 for mixed loads."""
    kind: Kind
    backend: str
    driver: str | None
    loop: str | None
    concurrency: int
    """Tasks at once in each process."""
    processes: int = 1
    dataset: int
    rounds: list[Round]
    """In the order of the repetitions."""

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
        """Of all rounds together."""
        totals: Counter[str] = Counter()
        for one in self.rounds:
            totals.update(one.failures)
        return dict(totals)

    def values(self, figure: Figure) -> list[float | None]:
        """Of each round."""
        return [one.figure(figure) for one in self.rounds]

    def median(self, figure: Figure) -> float | None:
        """Over the rounds that have the figure."""
        known = [value for value in self.values(figure) if value is not None]
        return median(known) if known else None

    def as_json(self) -> dict[str, Any]:
        return {
            **self.key._asdict(),
            "section": self.section,
            "kind": self.kind,
            **{figure: self.median(figure) for figure in FIGURES},
            "failures": self.failures,
            "repetitions": self.repetitions,
            "rounds": [asdict(one) for one in self.rounds],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A contender whose answer was another one: its figures do not count and are not among the records."""

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
    """False: interrupted, or not at its end yet."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    machine: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str | None] = field(default_factory=dict[str, str | None])
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """By backend: `title`, `driver`, `loop`, `server`, `durability`."""
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    """Why a contender takes no part."""
    payloads: list[Payload] = field(default_factory=list[Payload])
    disagreements: list[Disagreement] = field(default_factory=list[Disagreement])
    sizes: list[Size] = field(default_factory=list[Size])
    records: list[Record] = field(default_factory=list[Record])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """`ResultsError` for a file that is missing, is none of results or is of another format."""
        path = Path(path)
        raw = _parsed(path)
        if not isinstance(raw, dict) or "format" not in raw:
            raise ResultsError(f"{path} is no file of benchmark results: it does not name its format")
        if raw["format"] != FORMAT:
            raise ResultsError(
                f"{path} is of format {raw['format']!r}, this code reads format {FORMAT}: "
                "run the benchmark again, or read it with the version that wrote it"
            )
        try:
            return _ADAPTER.validate_python(raw)
        except ValidationError as error:
            raise ResultsError(f"{path} is no whole file of benchmark results: {_first(error)}") from error

    def add(self, record: Record) -> None:
        """`ValueError` where the same case of the same contender is there already."""
        if any(record.key == other.key for other in self.records):
            raise ValueError(f"there is a record of this case already: {record.key}")
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
        """All or nothing: whoever reads the file meanwhile gets the one before it."""
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
        raise ResultsError(f"{path} is no JSON: {error}") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
