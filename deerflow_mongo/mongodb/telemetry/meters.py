"""The counters of all storages of this process as OpenTelemetry metrics.

Counters and gauges are read from a storage's snapshot when an exporter asks; the values of histograms are
passed on as they come, since OpenTelemetry reads no finished histogram. Every measurement has the database as
an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from ... import __version__
from .metrics import METRICS, Metric, samples_of
from .spans import SCOPE
from .telemetry import StorageSet, Telemetry

DATABASE_ATTRIBUTE: Final = "db.namespace"


class _Bridge:
    """The instruments of one provider: they are made once, whatever the number of storages."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(SCOPE, __version__, provider)
        self._storages = StorageSet()
        self._histograms: dict[str, Histogram] = {}
        self._tables = {metric.name: metric for metric in METRICS}
        for metric in METRICS:
            self._create(meter, metric)

    def _create(self, meter: Meter, metric: Metric) -> None:
        name, unit, description = metric.otel_name, metric.unit, metric.description
        if metric.kind == "histogram":
            self._histograms[metric.name] = meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=metric.bounds
            )
        elif metric.kind == "counter":
            meter.create_observable_counter(name, [self._reader(metric)], unit, description)
        else:
            meter.create_observable_up_down_counter(name, [self._reader(metric)], unit, description)

    def _reader(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            for storage in self._storages.open_ones():
                for labels, value in samples_of(metric, storage.snapshot()).items():
                    yield Observation(value, _attributes(metric, storage.database, labels))

        return read

    def add(self, storage: Telemetry) -> None:
        self._storages.add(storage)
        database = storage.database

        def forward(name: str, value: float, labels: tuple[str, ...]) -> None:
            self._histograms[name].record(value, _attributes(self._tables[name], database, labels))

        storage.forward_histograms(forward)


_bridges: WeakKeyDictionary[MeterProvider, _Bridge] = WeakKeyDictionary()
_own_bridge: list[_Bridge] = []
"""That of the process's provider, which may be set after it was made."""


def _attributes(metric: Metric, database: str, labels: tuple[str, ...]) -> dict[str, str]:
    return {DATABASE_ATTRIBUTE: database, **dict(zip(metric.labels, labels, strict=True))}


def export_metrics(storage: Telemetry, provider: MeterProvider | None) -> None:
    """Report the storage's metrics to the provider, by default the process's own, until it is closed."""
    if provider is None:
        if not _own_bridge:
            _own_bridge.append(_Bridge(None))
        bridge = _own_bridge[0]
    else:
        found = _bridges.get(provider)
        bridge = _bridges[provider] = _Bridge(provider) if found is None else found
    bridge.add(storage)
