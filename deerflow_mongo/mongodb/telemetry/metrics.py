"""What is counted: a table of metrics, the counters behind it, and the snapshot that exporters read.

Reading a snapshot sends no command and may happen in any thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Any, Final, Literal, NamedTuple, TypedDict, cast

Kind = Literal["counter", "gauge", "histogram"]

SECONDS_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNT_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Metric(NamedTuple):
    """One metric: its key in `StorageMetrics`, and what exporters need to know of it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    """In the notation of UCUM, as OpenTelemetry has it; things that are counted in braces."""
    description: str

    @property
    def bounds(self) -> tuple[float, ...]:
        """The upper bounds of a histogram's buckets."""
        return SECONDS_BOUNDS if self.unit == "s" else COUNT_BOUNDS

    @property
    def prometheus_name(self) -> str:
        return f"deerflow_storage_{self.name}" + ("_total" if self.kind == "counter" else "")

    @property
    def otel_name(self) -> str:
        """Without the unit, which OpenTelemetry has beside the name."""
        return "deerflow.storage." + self.name.removesuffix("_seconds").removesuffix("_bytes")


METRICS: Final = (
    Metric(
        "operation_duration_seconds",
        "histogram",
        ("operation", "outcome"),
        "s",
        "Time of a call of a store's method; outcome is ok, cancelled or the name of the error's class",
    ),
    Metric("open_operations", "gauge", (), "{operation}", "Calls of stores' methods that have not ended yet"),
    Metric(
        "command_duration_seconds",
        "histogram",
        ("command", "outcome"),
        "s",
        "Time of a command, on the network and in the server; outcome is ok or failed",
    ),
    Metric(
        "retries",
        "counter",
        ("source",),
        "{retry}",
        "Tries that were repeated: commands by the driver, writes and deletions by this package",
    ),
    Metric("backlog_events", "gauge", (), "{event}", "Run events that were accepted and are not stored yet"),
    Metric("backlog_size_bytes", "gauge", (), "By", "Room that these run events take"),
    Metric("backlog_waiting_calls", "gauge", (), "{call}", "Calls that wait for room in the backlog"),
    Metric("group_calls", "histogram", ("writer",), "{call}", "Calls that one group commit stored"),
    Metric("group_documents", "histogram", ("writer",), "{document}", "Documents of one group commit"),
    Metric("followers", "gauge", (), "{follower}", "Open calls of run_events.follow"),
    Metric("pool_connections", "gauge", ("state",), "{connection}", "Connections: idle or in_use"),
    Metric(
        "pool_wait_seconds",
        "histogram",
        (),
        "s",
        "Time until a command had a connection, the making of a new one included",
    ),
    Metric("pool_failures", "counter", ("reason",), "{failure}", "Commands that got no connection"),
)


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """`buckets` are cumulative: by upper bound, how many values were not above it; the last is infinity."""

    count: int
    sum: float
    buckets: Mapping[float, int]


class StorageMetrics(TypedDict):
    """What `storage.metrics()` returns: by name of the metric; with labels, by their values.

    Where a metric has two labels, the key is a tuple of both values. Counters begin with the storage; gauges
    are of this moment. Commands and the pool of a client that the caller made are not seen by the driver's
    events: its commands are timed from outside, and the metrics of the pool stay empty.
    """

    operation_duration_seconds: dict[tuple[str, str], HistogramSnapshot]
    open_operations: int
    command_duration_seconds: dict[tuple[str, str], HistogramSnapshot]
    retries: dict[str, int]
    backlog_events: int
    backlog_size_bytes: int
    backlog_waiting_calls: int
    group_calls: dict[str, HistogramSnapshot]
    group_documents: dict[str, HistogramSnapshot]
    followers: int
    pool_connections: dict[str, int]
    pool_wait_seconds: HistogramSnapshot
    pool_failures: dict[str, int]


class Gauges(TypedDict):
    """What the stores count themselves."""

    retries: dict[str, int]
    backlog_events: int
    backlog_size_bytes: int
    backlog_waiting_calls: int
    followers: int


Forward = Callable[[str, float, tuple[str, ...]], None]
"""Called with the metric's name, a value of its histogram, and the values of its labels."""


class _Histogram:
    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def record(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def snapshot(self) -> HistogramSnapshot:
        cumulative = list(accumulate(self._counts))
        bounds = (*self._bounds, float("inf"))
        return HistogramSnapshot(cumulative[-1], self._sum, dict(zip(bounds, cumulative, strict=True)))


class Metrics:
    """The counters of one storage. Motor records from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._tables = {metric.name: metric for metric in METRICS}
        self._histograms: dict[tuple[str, tuple[str, ...]], _Histogram] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self.open_operations = 0
        self.forward: Forward | None = None
        """Gets every value of a histogram too, for exporters that do not read snapshots of them."""

    def record(self, name: str, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        with self._lock:
            histogram = self._histograms.get((name, labels))
            if histogram is None:
                histogram = self._histograms[name, labels] = _Histogram(self._tables[name].bounds)
            histogram.record(value)
        if self.forward is not None:
            self.forward(name, value, labels)

    def add(self, name: str, label: str, amount: int = 1) -> None:
        """Add to a counter, or to a gauge that is counted here."""
        with self._lock:
            self._counts[name, label] = self._counts.get((name, label), 0) + amount

    def snapshot(self, gauges: Gauges) -> StorageMetrics:
        with self._lock:
            histograms = {key: histogram.snapshot() for key, histogram in self._histograms.items()}
            counts = dict(self._counts)
        metrics: dict[str, Any] = {"open_operations": self.open_operations, **gauges}
        for metric in METRICS:
            if metric.kind == "histogram":
                found = {labels: value for (name, labels), value in histograms.items() if name == metric.name}
                metrics[metric.name] = _by_labels(metric, found)
            elif metric.labels:
                stored: Mapping[str, int] = metrics.get(metric.name, {})
                own = {label: value for (name, label), value in counts.items() if name == metric.name}
                metrics[metric.name] = {**stored, **own}
        return cast("StorageMetrics", metrics)


def _by_labels(metric: Metric, found: dict[tuple[str, ...], HistogramSnapshot]) -> object:
    if not metric.labels:
        return found.get((), _Histogram(metric.bounds).snapshot())
    if len(metric.labels) == 1:
        return {label: value for (label,), value in found.items()}
    return found


def samples_of(metric: Metric, metrics: StorageMetrics) -> Mapping[tuple[str, ...], Any]:
    """The metric's values in a snapshot, by the values of its labels."""
    values: Any = cast("dict[str, Any]", metrics)[metric.name]
    if not metric.labels:
        return {(): values}
    found = cast("dict[str | tuple[str, ...], Any]", values)
    return {key if isinstance(key, tuple) else (key,): value for key, value in found.items()}
