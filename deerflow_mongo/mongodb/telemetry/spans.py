"""OpenTelemetry spans: one for each operation, and below it those of the driver's commands.

The latter are made by OpenTelemetry's own instrumentation of PyMongo, whose listener is given to our clients
only: other clients of the process stay as they are. Where the process has instrumented PyMongo as a whole, it
sees our clients already, and gets no second listener.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, trace
from opentelemetry.instrumentation.pymongo import CommandTracer, PymongoInstrumentor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
from pymongo.monitoring import CommandFailedEvent, CommandStartedEvent

from ... import __version__
from ..observation import current_operation
from .operation import CANCELLED, OK, Operation, common_ids

if TYPE_CHECKING:
    from opentelemetry.context import Context

SCOPE: Final = "deerflow_mongo"
"""The instrumentation scope of spans and metrics."""

ID_ATTRIBUTES: Final = {"thread_id": "deerflow.thread_id", "run_id": "deerflow.run_id"}
DOCUMENTS_ATTRIBUTE: Final = "deerflow.documents"
_ERROR_TYPE: Final = "error.type"


class Tracing:
    """Starts, attaches and ends the spans of one storage."""

    def __init__(self, database: str, provider: TracerProvider | None) -> None:
        """`provider` is the process's own by default."""
        self._provider = provider
        self._tracer = trace.get_tracer(SCOPE, __version__, provider)
        self._attributes = {"db.system.name": "mongodb", "db.namespace": database}

    def listeners(self) -> list[CommandTracer]:
        """For a client of this package."""
        if PymongoInstrumentor().is_instrumented_by_opentelemetry:
            return []
        tracer = trace.get_tracer(SCOPE, __version__, self._provider)
        return [_OperationCommands(tracer, failed_hook=_without_text)]

    def start(self, operation: Operation) -> None:
        """A span below that of the caller."""
        self._start(operation, None, ())

    def start_background(self, operation: Operation, origins: Sequence[Operation], documents: int) -> None:
        """A span below that of the first operation that waits, with links to the others."""
        spans = [origin.span for origin in origins if origin.span is not None]
        parent = trace.set_span_in_context(spans[0]) if spans else None
        self._start(operation, parent, spans[1:], common_ids(origins))
        if operation.span is not None and documents:
            operation.span.set_attribute(DOCUMENTS_ATTRIBUTE, documents)

    def _start(
        self,
        operation: Operation,
        parent: Context | None,
        linked: Iterable[Span],
        ids: dict[str, str] | None = None,
    ) -> None:
        span = self._tracer.start_span(
            operation.name,
            parent,
            SpanKind.INTERNAL,
            self._attributes,
            [Link(other.get_span_context()) for other in linked],
        )
        if span.is_recording():
            for name, value in (operation.ids if ids is None else ids).items():
                span.set_attribute(ID_ATTRIBUTES[name], value)
        operation.span = span

    def attach(self, operation: Operation) -> object:
        assert operation.span is not None  # noqa: S101 - for the type checker
        return context.attach(trace.set_span_in_context(operation.span))

    def detach(self, token: Any) -> None:
        context.detach(token)

    def end(self, operation: Operation, outcome: str) -> None:
        """No text of an error is recorded: it may quote an id or an address."""
        span = operation.span
        if span is None:
            return
        if outcome != OK:
            span.set_attribute(_ERROR_TYPE, outcome)
            if outcome != CANCELLED:
                span.set_status(Status(StatusCode.ERROR))
        span.end()


class _OperationCommands(CommandTracer):
    """OpenTelemetry's spans for the commands of our operations; others, as of change streams, have none."""

    def started(self, event: CommandStartedEvent) -> None:
        operation = current_operation.get()
        if isinstance(operation, Operation) and operation.is_open:
            super().started(event)


def _without_text(span: Span, event: CommandFailedEvent) -> None:
    """Replace the server's text, which quotes the values of a duplicate key, by the name of its code."""
    failure = event.failure
    name = failure.get("codeName") or failure.get("errtype") or failure.get("code")
    span.set_status(Status(StatusCode.ERROR, None if name is None else str(name)))
