"""A collector for `prometheus_client` that reads the counters of storages whenever they are scraped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...contract.errors import MissingDependencyError, StorageConfigError
from ...contract.protocols import Storage
from ..storage import MongoStorage
from .metrics import METRICS, HistogramSnapshot, Metric, samples_of
from .telemetry import STORAGES_WITH_METRICS, Telemetry

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingDependencyError("StorageCollector", "prometheus-client", "prometheus") from error


class StorageCollector(Collector):
    """The metrics of storages that have `metrics: true`, each with the label `database`.

    Of the given storages, or of all that are open in this process when it is scraped. Register it once, in a
    registry of the host: `REGISTRY.register(StorageCollector())`. It sends no command to a server.
    """

    def __init__(self, *storages: Storage) -> None:
        """Raises `StorageConfigError` for a storage without `metrics: true`."""
        self._given = [_telemetry_of(storage) for storage in storages]

    def describe(self) -> Iterable[Any]:
        """The families without samples, so that a registry refuses a second collector."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterable[Any]:
        families = {metric: _family(metric) for metric in METRICS}
        for storage in self._given or STORAGES_WITH_METRICS.open_ones():
            self._add(families, storage)
        return families.values()

    def _add(self, families: dict[Metric, Any], storage: Telemetry) -> None:
        metrics = storage.snapshot()
        for metric, family in families.items():
            for labels, value in samples_of(metric, metrics).items():
                family.add_metric([storage.database, *labels], *_values(value))


def _telemetry_of(storage: Storage) -> Telemetry:
    telemetry = storage.telemetry if isinstance(storage, MongoStorage) else None
    if telemetry is None or not telemetry.has_metrics:
        raise StorageConfigError("StorageCollector needs storages on MongoDB with the option `metrics: true`")
    return telemetry


def _family(metric: Metric) -> Any:
    labels = ["database", *metric.labels]
    if metric.kind == "histogram":
        return HistogramMetricFamily(metric.prometheus_name, metric.description, labels=labels)
    if metric.kind == "counter":
        return CounterMetricFamily(metric.prometheus_name, metric.description, labels=labels)
    return GaugeMetricFamily(metric.prometheus_name, metric.description, labels=labels)


def _values(value: int | HistogramSnapshot) -> tuple[Any, ...]:
    if not isinstance(value, HistogramSnapshot):
        return (value,)
    return [(_bound(bound), count) for bound, count in value.buckets.items()], value.sum


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)
