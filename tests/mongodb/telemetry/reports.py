"""What a test collects of spans, metrics and log records."""

from __future__ import annotations

import logging
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)


class Reports:
    """Providers of the test's own, since those of a process can be set only once."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.handler = _Records()

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, in this order."""
        return list(self._exporter.get_finished_spans())

    @property
    def slow(self) -> list[logging.LogRecord]:
        return self.handler.found

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def children_of(self, parent: ReadableSpan) -> list[str]:
        """The names of the spans below a span."""
        return [span.name for span in self.spans if span.parent and span.parent == parent.get_span_context()]

    def collections_below(self, parent: ReadableSpan) -> set[str]:
        """The collections of the commands below a span."""
        context = parent.get_span_context()
        below = [span.attributes or {} for span in self.spans if span.parent and span.parent == context]
        return {str(attributes["db.mongodb.collection"]) for attributes in below}

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data: Any = self._reader.get_metrics_data()
        resources: list[Any] = data.resource_metrics if data else []
        return [
            point
            for resource in resources
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def everything(self) -> str:
        """All that was exported, as text."""
        data = self._reader.get_metrics_data()
        spans = [span.to_json() for span in self.spans]
        records = [f"{record.getMessage()} {vars(record)}" for record in self.slow]
        return "\n".join([*spans, data.to_json() if data else "", *records])

    def clear(self) -> None:
        self._exporter.clear()
        self.handler.found.clear()

    def shutdown(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()
