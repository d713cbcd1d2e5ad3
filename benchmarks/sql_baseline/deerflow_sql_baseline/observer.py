"""Run lifecycle events -> stores. Reimplements the adapters' `StorageRunObserver` with its bug: an `error` or
a `status` inside `completion_data` is passed to the call twice, and the resulting TypeError is only logged.

Added: events are matched by the value of their type, because the host's own enum is not available here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from deerflow_mongo import LifecycleEventType, RunLifecycleEvent, RunWriteRepository, ThreadMetaStorage

logger = logging.getLogger(__name__)


def _payload(event: RunLifecycleEvent) -> dict[str, Any]:
    return dict(event.payload) if event.payload else {}


class SqlRunObserver:
    """`RunObserver`, like the adapters'."""

    def __init__(
        self,
        run_write_repo: RunWriteRepository | None = None,
        thread_meta_storage: ThreadMetaStorage | None = None,
    ) -> None:
        self._runs = run_write_repo
        self._threads = thread_meta_storage
        self._handlers = {
            LifecycleEventType.RUN_STARTED.value: self._run_started,
            LifecycleEventType.RUN_COMPLETED.value: self._run_completed,
            LifecycleEventType.RUN_FAILED.value: self._run_failed,
            LifecycleEventType.RUN_CANCELLED.value: self._run_cancelled,
            LifecycleEventType.THREAD_STATUS_UPDATED.value: self._thread_status,
        }

    async def on_event(self, event: RunLifecycleEvent) -> None:
        kind = getattr(event.event_type, "value", event.event_type)
        try:
            handler = self._handlers.get(kind)
            if handler is not None:
                await handler(event)
        except Exception:
            logger.exception("event %s of run %s is lost", kind, event.run_id)

    async def _run_started(self, event: RunLifecycleEvent) -> None:
        if self._runs is not None:
            await self._runs.update_status(
                run_id=event.run_id, status="running", started_at=event.occurred_at.isoformat()
            )

    async def _run_completed(self, event: RunLifecycleEvent) -> None:
        payload = _payload(event)
        if self._runs is not None:
            await _end(self._runs, event, "success", payload.get("completion_data"))
        if self._threads is not None and "title" in payload:
            await self._threads.sync_thread_title(thread_id=event.thread_id, title=payload["title"])

    async def _run_failed(self, event: RunLifecycleEvent) -> None:
        if self._runs is None:
            return
        payload = _payload(event)
        error = str(payload.get("error", "Unknown error"))
        counts = payload.get("completion_data")
        if isinstance(counts, dict):
            await _end(self._runs, event, "error", counts, error=error)
        else:
            await _end(self._runs, event, "error", None)
            await self._runs.set_error(run_id=event.run_id, error=error)

    async def _run_cancelled(self, event: RunLifecycleEvent) -> None:
        if self._runs is not None:
            await _end(self._runs, event, "interrupted", _payload(event).get("completion_data"))

    async def _thread_status(self, event: RunLifecycleEvent) -> None:
        if self._threads is not None:
            await self._threads.sync_thread_status(
                thread_id=event.thread_id, status=_payload(event).get("status", "idle")
            )


async def _end(
    runs: RunWriteRepository, event: RunLifecycleEvent, status: str, counts: Any, **error: str
) -> None:
    if isinstance(counts, dict):
        # A TypeError if `counts` has one of the keys of this call.
        given = cast("Mapping[str, Any]", counts)
        await runs.update_run_completion(run_id=event.run_id, status=status, **error, **given)
    else:
        await runs.update_status(run_id=event.run_id, status=status, ended_at=event.occurred_at.isoformat())
