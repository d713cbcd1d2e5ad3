"""Run lifecycle events -> stores. Reproduces a bug of the adapters' observer: an `error` or a `status` inside
`completion_data` is passed to the call twice, and the resulting TypeError is only logged.
"""

from __future__ import annotations

from typing import Any, cast

from deerflow_mongo import RunLifecycleEvent, StorageRunObserver


class SqlRunObserver(StorageRunObserver):
    async def _end(self, event: RunLifecycleEvent, status: str, error: str | None) -> None:
        counts = (event.payload or {}).get("completion_data")
        if self._runs is None or not isinstance(counts, dict):
            await super()._end(event, status, error)
            return
        given = {} if error is None else {"error": error}
        fields = cast("dict[str, Any]", counts)
        await self._runs.update_run_completion(run_id=event.run_id, status=status, **given, **fields)
