"""DeerFlow's run manager, without the ways that its own leaves to another user's runs.

Its routes of runs without a thread in their path (`/api/runs/stream`, `/api/runs/wait`) take a thread's id
from the request's body and do not ask whose it is: the run would answer with that thread's conversation. And
what a worker has in memory of a run, the user's message among it, is given to whoever knows the id of a
deleted thread. Every route starts and finds its runs here, so it is asked here. Here, too, a run that could
not be stored is refused, which DeerFlow only logs: its client would be told of a run that nobody finds again.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..contract.actor import current_user_id
from ..contract.errors import StorageError
from ..mongodb.stores.runs import MongoRunStore
from .adapters.runs import RunStoreAdapter
from .gateway import host

_runtime: Any = host("deerflow.runtime")
_fastapi: Any = importlib.import_module("fastapi")

_OWNER = "owner_id"
"""An attribute of ours on DeerFlow's record of a run, which has none of whose it is."""


class _NoticingRunStore(RunStoreAdapter):
    """Remembers which runs it could not store, for DeerFlow's manager goes on after any error of `put`."""

    def __init__(self, runs: MongoRunStore) -> None:
        super().__init__(runs)
        self.not_stored: dict[str, Exception] = {}

    async def put(self, run_id: str, **fields: Any) -> None:
        try:
            await super().put(run_id, **fields)
        except (StorageError, ValueError, TypeError) as error:
            self.not_stored[run_id] = error
            raise


class OwnRunsManager(_runtime.RunManager):
    """For a bound user, other users' threads and runs are not there; without one, all are."""

    def __init__(self, runs: MongoRunStore, threads: Any) -> None:
        """`threads` is DeerFlow's `ThreadMetaStore`."""
        self._host: Any = super()
        self._runs_stored = _NoticingRunStore(runs)
        self._host.__init__(store=self._runs_stored)
        self._threads = threads

    async def create(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        await self._check_thread(thread_id)
        return await self._stored(await self._host.create(thread_id, *arguments, **options))

    async def create_or_reject(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        await self._check_thread(thread_id)
        return await self._stored(await self._host.create_or_reject(thread_id, *arguments, **options))

    async def get(self, run_id: str, *, user_id: str | None = None) -> Any:
        user = user_id or current_user_id()
        record = await self._host.get(run_id, user_id=user)
        return record if record is not None and _is_visible(record, user) else None

    async def list_by_thread(
        self, thread_id: str, *, user_id: str | None = None, limit: int = 100
    ) -> list[Any]:
        user = user_id or current_user_id()
        records = await self._host.list_by_thread(thread_id, user_id=user, limit=limit)
        return [record for record in records if _is_visible(record, user)]

    async def _check_thread(self, thread_id: str) -> None:
        """As DeerFlow's other routes: 404 for a thread of somebody else; one that is not there is open."""
        user_id = current_user_id()
        if user_id is not None and not await self._threads.check_access(thread_id, user_id):
            raise _fastapi.HTTPException(404, f"Thread {thread_id} not found")

    async def _stored(self, record: Any) -> Any:
        """The new record, its owner noted; an HTTP error where the run is not in the storage."""
        error = self._runs_stored.not_stored.pop(record.run_id, None)
        if error is not None:
            await self._host.cleanup(record.run_id, delay=0)
            if isinstance(error, ValueError | TypeError):
                raise _fastapi.HTTPException(422, f"the run cannot be stored: {error}") from error
            raise _fastapi.HTTPException(503, "the run could not be stored, try again") from error
        setattr(record, _OWNER, current_user_id())
        return record


def _is_visible(record: Any, user_id: str | None) -> bool:
    """Whether it is the user's own, or came from the store, which has been asked for the user's own."""
    owner = getattr(record, _OWNER, None)
    return owner is None or user_id is None or owner == user_id
