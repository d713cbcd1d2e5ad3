"""`Telemetry`: what one storage records, as its configuration asks for; the other modules say how."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from ...contract.errors import MissingDependencyError, StorageConfigError
from ...contract.methods import STORES
from ..observation import Waiting
from .commands import CommandEvents, Commands
from .metrics import Forward, Gauges, Metrics, StorageMetrics
from .operation import Operation, ReadIds, open_operation, outcome_of
from .pool import PoolEvents
from .slow import log_slow
from .wrapping import CHECKPOINTER, observe

if TYPE_CHECKING:
    from ..checkpoints.saver import MongoCheckpointSaver
    from ..storage import MongoStorage
    from .spans import Tracing

FOLLOW: Final = "run_events.follow"
"""Waits for events of others, so that it is never slow."""


class StorageSet:
    """Some storages, while they are open. Exporters read it from threads of their own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._storages: WeakSet[Telemetry] = WeakSet()

    def add(self, storage: Telemetry) -> None:
        with self._lock:
            self._storages.add(storage)

    def open_ones(self) -> list[Telemetry]:
        with self._lock:
            return [storage for storage in self._storages if storage.is_open]


STORAGES_WITH_METRICS: Final = StorageSet()
"""Those of this process."""


class Telemetry:
    """Of one storage, whose stores and driver it observes from the beginning."""

    def __init__(
        self, storage: MongoStorage, tracer_provider: Any = None, meter_provider: Any = None
    ) -> None:
        """Raises `MissingDependencyError` where the packages of the extra `otel` are missing."""
        config = storage.config
        self.database = config.database
        self.is_open = True
        self._events = storage.run_events
        self._saver: MongoCheckpointSaver | None = None
        self._slow_s = None if config.slow_ms is None else config.slow_ms / 1000
        has_metrics = config.metrics or config.telemetry is not None
        self._metrics = Metrics() if has_metrics else None
        self._tracing: Tracing | None = None
        self.commands = Commands(self._metrics)
        if config.telemetry is not None:
            spans, meters = _otel_module("spans"), _otel_module("meters")
            self._tracing = spans.Tracing(config.database, tracer_provider)
            meters.export_metrics(self, meter_provider)
        if self._metrics is not None:
            STORAGES_WITH_METRICS.add(self)
        self._observe(storage)

    def _observe(self, storage: MongoStorage) -> None:
        storage.driver.observer = self.commands
        storage.driver.observe_background = self.background
        for store in (*STORES, "users"):
            observe(getattr(storage, store), store, self)
        observe(storage, "storage", self)
        self._events.observe_background(self.background)

    def observe_saver(self, saver: MongoCheckpointSaver) -> None:
        """Observe the storage's checkpoint saver, which is made at its first use."""
        self._saver = saver
        observe(saver, CHECKPOINTER, self)
        saver.observe_background(self.background)

    @property
    def has_metrics(self) -> bool:
        return self._metrics is not None

    def listeners(self) -> list[Any]:
        """For a client that this package makes; from then on, its events count the commands."""
        self.commands.has_events = True
        pool = [] if self._metrics is None else [PoolEvents(self._metrics)]
        tracing = [] if self._tracing is None else self._tracing.listeners()
        return [CommandEvents(self.commands), *pool, *tracing]

    def snapshot(self) -> StorageMetrics:
        """Raises `StorageConfigError` where metrics are not configured."""
        if self._metrics is None:
            raise StorageConfigError("storage.metrics() needs the option `metrics: true`")
        return self._metrics.snapshot(self._gauges())

    def _gauges(self) -> Gauges:
        counts = self._events.counts()
        return {
            "backlog_events": counts["backlog_events"],
            "backlog_size_bytes": counts["backlog_size_bytes"],
            "backlog_waiting_calls": counts["backlog_waiting_calls"],
            "followers": counts["followers"],
            "retries": {
                "run_events.write": counts["write_retries"],
                "run_events.delete": counts["deletion_retries"],
                "checkpointer.put": 0 if self._saver is None else self._saver.put_retries,
            },
        }

    def forward_histograms(self, forward: Forward) -> None:
        if self._metrics is not None:
            self._metrics.forward = forward

    def close(self) -> None:
        """The storage is closed: it is in no report about all storages any more."""
        self.is_open = False

    # Operations.

    def is_inside(self) -> bool:
        """Whether the current task runs an operation already, to which everything that it calls belongs."""
        return open_operation(self.commands) is not None

    def begin(
        self, name: str, read_ids: ReadIds, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Operation:
        operation = Operation(name, self.commands, self._tracing)
        operation.read_ids, operation.arguments = read_ids, (args, kwargs)
        if self._tracing is not None:
            self._tracing.start(operation)
        if self._metrics is not None:
            self._metrics.open_operations += 1
        return operation

    def end(self, operation: Operation, error: BaseException | None) -> None:
        operation.is_open = False
        outcome = outcome_of(error)
        if self._metrics is not None:
            self._metrics.open_operations -= 1
            self._metrics.record("operation_duration_seconds", operation.seconds, operation.name, outcome)
        is_slow = self._slow_s is not None and operation.seconds >= self._slow_s
        if is_slow and operation.name != FOLLOW:
            log_slow(operation, outcome)
        if self._tracing is not None:
            self._tracing.end(operation, outcome)

    @contextmanager
    def background(self, name: str, group: Sequence[Waiting] = ()) -> Generator[None]:
        """Work for several calls, or for none; its commands count for the operation of each that waits."""
        operation = Operation(name, self.commands, self._tracing)
        documents = sum(len(call.documents) for call in group)
        origins = [call.operation for call in group if isinstance(call.operation, Operation)]
        for origin in origins:
            origin.groups.append(operation)
        if self._tracing is not None:
            self._tracing.start_background(operation, origins, documents)
        error: BaseException | None = None
        try:
            with operation:
                yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            operation.is_open = False
            if self._metrics is not None and group:
                writer = name.partition(".")[0]
                self._metrics.record("group_calls", len(group), writer)
                self._metrics.record("group_documents", documents, writer)
            if self._tracing is not None:
                self._tracing.end(operation, outcome_of(error))


def _otel_module(name: str) -> Any:
    try:
        return importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        raise MissingDependencyError(
            "telemetry: otel", "opentelemetry-instrumentation-pymongo", "otel"
        ) from error
