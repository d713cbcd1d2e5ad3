"""DeerFlow's run manager with two checks that DeerFlow's own lacks: who owns a thread, and is a run stored.

DeerFlow's routes of runs without a thread in their path (`/api/runs/stream`, `/api/runs/wait`) take a
thread's id from the request's body and do not check its owner: the run would answer with that thread's
conversation. A run that a worker has in memory, with the user's message, is given to everybody who knows the
id of a deleted thread. Every route creates and finds its runs here, so the owner is checked here. A run that
could not be stored is refused here too: DeerFlow only logs it and acknowledges a run that nobody finds again.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..contract.actor import bound_user_id
from ..contract.errors import StorageError
from ..contract.protocols import RunStore
from .adapters.counts_by_model import CountsByModel
from .adapters.runs import RunStoreAdapter
from .deerflow import import_deerflow

_runtime: Any = import_deerflow("deerflow.runtime")
_fastapi: Any = importlib.import_module("fastapi")

_OWNER = "owner_id"
"""An attribute of ours on DeerFlow's record of a run, which has no owner."""


class _RecordingRunStore(RunStoreAdapter):
    """Records which runs could not be stored: DeerFlow's manager continues after any error of `put`."""

    def __init__(self, runs: RunStore, counts: CountsByModel | None) -> None:
        super().__init__(runs, counts)
        self.failures: dict[str, Exception] = {}

    async def put(self, run_id: str, **fields: Any) -> None:
        try:
            await super().put(run_id, **fields)
        except (StorageError, ValueError, TypeError) as error:
            self.failures[run_id] = error
            raise


class OwnerCheckingRunManager(_runtime.RunManager):
    """For a bound user, other users' threads and runs do not exist; without one, all do."""

    def __init__(self, runs: RunStore, threads: Any, counts: CountsByModel | None = None) -> None:
        """`threads` is DeerFlow's `ThreadMetaStore`; `counts` is as in `RunStoreAdapter`."""
        self._deerflow: Any = super()
        self._run_store = _RecordingRunStore(runs, counts)
        self._deerflow.__init__(store=self._run_store)
        self._threads = threads

    async def create(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        await self._check_thread(thread_id)
        return await self._stored(await self._deerflow.create(thread_id, *arguments, **options))

    async def create_or_reject(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        await self._check_thread(thread_id)
        return await self._stored(await self._deerflow.create_or_reject(thread_id, *arguments, **options))

    async def get(self, run_id: str, *, user_id: str | None = None) -> Any:
        user = user_id or bound_user_id("RunManager.get")
        record = await self._deerflow.get(run_id, user_id=user)
        return record if record is not None and _is_visible(record, user) else None

    async def list_by_thread(
        self, thread_id: str, *, user_id: str | None = None, limit: int = 100
    ) -> list[Any]:
        user = user_id or bound_user_id("RunManager.list_by_thread")
        records = await self._deerflow.list_by_thread(thread_id, user_id=user, limit=limit)
        return [record for record in records if _is_visible(record, user)]

    async def _check_thread(self, thread_id: str) -> None:
        """404 for another user's thread, as in DeerFlow's other routes; a missing thread is open to all."""
        user_id = bound_user_id("RunManager.create")
        if user_id is not None and not await self._threads.check_access(thread_id, user_id):
            raise _fastapi.HTTPException(404, f"Thread {thread_id} not found")

    async def _stored(self, record: Any) -> Any:
        """The new record with its owner; raises an HTTP error if the run is not in the storage."""
        error = self._run_store.failures.pop(record.run_id, None)
        if error is not None:
            await self._deerflow.cleanup(record.run_id, delay=0)
            if isinstance(error, ValueError | TypeError):
                raise _fastapi.HTTPException(422, f"the run cannot be stored: {error}") from error
            raise _fastapi.HTTPException(503, "the run could not be stored, try again") from error
        setattr(record, _OWNER, bound_user_id("RunManager.create"))
        return record


def _is_visible(record: Any, user_id: str | None) -> bool:
    """Whether the record is the user's own, or came from the store, which returns the user's own only."""
    owner = getattr(record, _OWNER, None)
    return owner is None or user_id is None or owner == user_id
