"""The observer: writes run lifecycle events to the stores.

Works with any run write repository and any thread storage, and knows no database. The agent waits for it, so
an event that cannot be stored is logged and the run continues.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, cast

from .arguments import model_counts
from .errors import InvalidArgumentError
from .protocols import RunLifecycleEvent, RunObserver, RunWriteRepository, ThreadMetaStorage
from .rows import COMPLETION_COUNTS, COMPLETION_TEXTS, MAX_COUNT, RunCompletionFields

logger = logging.getLogger(__name__)

UNKNOWN_ERROR = "Unknown error"


class LifecycleEventType(Enum):
    """The lifecycle events of DeerFlow that are stored, for hosts without their own enum."""

    RUN_STARTED = "run_started"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    THREAD_STATUS_UPDATED = "thread_status_updated"


def _empty_payload() -> dict[str, Any]:
    return {}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleEvent:
    """A `RunLifecycleEvent` for hosts without their own class."""

    event_type: LifecycleEventType | str
    run_id: str
    thread_id: str
    occurred_at: datetime = field(default_factory=_now)
    payload: Mapping[str, Any] = field(default_factory=_empty_payload)


def _payload_of(event: RunLifecycleEvent) -> Mapping[str, Any]:
    return event.payload or {}


def _time_of(event: RunLifecycleEvent) -> str:
    return event.occurred_at.isoformat()


def _ids(event: RunLifecycleEvent) -> dict[str, object]:
    """For `extra=` of a log record."""
    return {
        "run_id": event.run_id,
        "thread_id": event.thread_id,
        "event_type": getattr(event.event_type, "value", event.event_type),
    }


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _are_model_counts(value: object) -> bool:
    try:
        return model_counts(_BY_MODEL, value) is not None
    except InvalidArgumentError:
        return False


_BY_MODEL = "token_usage_by_model"
_CHECKS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(COMPLETION_COUNTS, _is_count),
    **dict.fromkeys(COMPLETION_TEXTS, lambda value: isinstance(value, str)),
    _BY_MODEL: _are_model_counts,
}
"""Each field of a completion that a payload may have -> whether a value of it can be stored."""


def _completion_of(event: RunLifecycleEvent) -> RunCompletionFields | None:
    """The payload's counts and texts of a completion, without invalid ones; None if it has none.

    A count of the wrong type must not stop the run's ending from being stored, so it is left out and logged.
    One invalid model leaves out all counts by model: a part of them would look like the whole.
    """
    data = _payload_of(event).get("completion_data")
    if not isinstance(data, Mapping):
        return None
    fields: dict[str, Any] = {"ended_at": _time_of(event)}
    for name, value in cast("Mapping[str, object]", data).items():
        check = _CHECKS.get(name)
        if check is None:
            continue
        if check(value):
            fields[name] = value
        elif value is not None or name in COMPLETION_COUNTS:
            logger.warning(
                "run %s: invalid completion value %s=%r was left out",
                event.run_id,
                name,
                value,
                extra=_ids(event),
            )
    return cast("RunCompletionFields", fields)


class StorageRunObserver(RunObserver):
    """Writes run lifecycle events to a run repository and a thread storage, either of them optional."""

    def __init__(
        self,
        run_write_repo: RunWriteRepository | None = None,
        thread_meta_storage: ThreadMetaStorage | None = None,
    ) -> None:
        self._runs = run_write_repo
        self._threads = thread_meta_storage
        self._writes: dict[str, tuple[Callable[[RunLifecycleEvent], Awaitable[None]], ...]] = {
            LifecycleEventType.RUN_STARTED.value: (self._run_started,),
            LifecycleEventType.RUN_COMPLETED.value: (self._run_completed, self._title),
            LifecycleEventType.RUN_FAILED.value: (self._run_failed,),
            LifecycleEventType.RUN_CANCELLED.value: (self._run_cancelled,),
            LifecycleEventType.THREAD_STATUS_UPDATED.value: (self._thread_status,),
        }

    async def on_event(self, event: RunLifecycleEvent) -> None:
        kind: object = getattr(event.event_type, "value", event.event_type)
        for write in self._writes.get(kind, ()) if isinstance(kind, str) else ():
            try:
                await write(event)
            except Exception:
                logger.exception(
                    "lifecycle event %s of run %s could not be stored", kind, event.run_id, extra=_ids(event)
                )

    async def _run_started(self, event: RunLifecycleEvent) -> None:
        if self._runs is not None:
            await self._runs.update_status(run_id=event.run_id, status="running", started_at=_time_of(event))

    async def _run_completed(self, event: RunLifecycleEvent) -> None:
        await self._end(event, "success", None)

    async def _run_failed(self, event: RunLifecycleEvent) -> None:
        payload = _payload_of(event)
        error = payload.get("error")
        data = payload.get("completion_data")
        if error is None and isinstance(data, Mapping):
            error = cast("Mapping[str, object]", data).get("error")
        await self._end(event, "error", UNKNOWN_ERROR if error is None else str(error))

    async def _run_cancelled(self, event: RunLifecycleEvent) -> None:
        await self._end(event, "interrupted", None)

    async def _end(self, event: RunLifecycleEvent, status: str, error: str | None) -> None:
        if self._runs is None:
            return
        completion = _completion_of(event)
        if completion is not None:
            if error is not None:
                completion["error"] = error
            try:
                await self._runs.update_run_completion(run_id=event.run_id, status=status, **completion)
            except ValueError:
                # A text that is too large for a document, for example; the run has ended all the same.
                logger.exception(
                    "run %s: the counts and texts of its %s could not be stored",
                    event.run_id,
                    status,
                    extra=_ids(event),
                )
            else:
                return
        await self._runs.update_status(run_id=event.run_id, status=status, ended_at=_time_of(event))
        if error is not None:
            await self._runs.set_error(run_id=event.run_id, error=error)

    async def _title(self, event: RunLifecycleEvent) -> None:
        title = _payload_of(event).get("title")
        if self._threads is not None and title is not None:
            await self._threads.sync_thread_title(thread_id=event.thread_id, title=str(title))

    async def _thread_status(self, event: RunLifecycleEvent) -> None:
        if self._threads is not None:
            status = _payload_of(event).get("status", "idle")
            await self._threads.sync_thread_status(thread_id=event.thread_id, status=status)
