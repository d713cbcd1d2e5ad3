"""DeerFlow's run manager with two checks that DeerFlow's own lacks: who owns a thread, and is a run stored.

DeerFlow's routes of runs without a thread in their path (`/api/runs/stream`, `/api/runs/wait`) take a
thread's id from the request's body and do not check its owner: the run would answer with that thread's
conversation. A run that a worker has in memory, with the user's message, is given to everybody who knows the
id of a deleted thread. Every route creates and finds its runs here, so the owner is checked here. A run that
is not in the storage is refused here too, whatever the reason: DeerFlow only logs the error and acknowledges
a run that nobody finds again.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from ..contract.actor import bound_user_id
from ..contract.errors import ActorMissingError, StorageError
from ..contract.protocols import RunStore
from .adapters.counts_by_model import CountsByModel
from .adapters.runs import RunStoreAdapter
from .availability import RETRY_AFTER, end_request_tracking
from .deerflow import import_deerflow
from .encodable import encodable

_runtime: Any = import_deerflow("deerflow.runtime")
_fastapi: Any = importlib.import_module("fastapi")

_OWNER: Final = "owner_id"
"""An attribute of ours on DeerFlow's record of a run, which has no owner."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Creation:
    """What the store reports of the run that one call of the manager creates."""

    run_id: str | None = None
    is_stored: bool = False
    error: BaseException | None = None


_creation: ContextVar[_Creation | None] = ContextVar("deerflow_mongo_run_creation", default=None)


class _ReportingRunStore(RunStoreAdapter):
    """Reports whether a new run was stored: DeerFlow's manager continues after any error of `put`."""

    async def put(self, run_id: str, **fields: Any) -> None:
        creation = _creation.get() or _Creation()
        creation.run_id = run_id
        try:
            await super().put(run_id, **fields)
        except BaseException as error:
            creation.error = error
            raise
        creation.is_stored = True


class OwnerCheckingRunManager(_runtime.RunManager):
    """For a bound user, other users' threads and runs do not exist; without one, all do.

    An actor without an id is refused: `create` raises the HTTP error 401, and the reads `ActorMissingError`.
    """

    def __init__(self, runs: RunStore, threads: Any, counts: CountsByModel | None = None) -> None:
        """`threads` is DeerFlow's `ThreadMetaStore`; `counts` is as in `RunStoreAdapter`."""
        self._deerflow: Any = super()
        self._deerflow.__init__(store=_ReportingRunStore(runs, counts))
        self._threads = threads
        self._interrupting: set[asyncio.Task[Any]] = set()

    async def create(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        return await self._create(self._deerflow.create, thread_id, arguments, options)

    async def create_or_reject(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        return await self._create(self._deerflow.create_or_reject, thread_id, arguments, options)

    async def get(self, run_id: str, *, user_id: str | None = None) -> Any:
        user = bound_user_id("RunManager.get") if user_id is None else user_id
        record = await self._deerflow.get(run_id, user_id=user)
        return record if record is not None and _is_visible(record, user) else None

    async def list_by_thread(
        self, thread_id: str, *, user_id: str | None = None, limit: int = 100
    ) -> list[Any]:
        user = bound_user_id("RunManager.list_by_thread") if user_id is None else user_id
        records = await self._deerflow.list_by_thread(thread_id, user_id=user, limit=limit)
        return [record for record in records if _is_visible(record, user)]

    async def set_status(self, run_id: str, status: Any, *, error: str | None = None) -> None:
        """The routes answer with the error's text of a record in memory: it is encodable there too."""
        await self._deerflow.set_status(run_id, status, error=encodable(error))

    async def _create(
        self,
        create: Callable[..., Awaitable[Any]],
        thread_id: str,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        """The new run's record; raises an HTTP error if it is not in the storage.

        The routes answer with the metadata and arguments of a record in memory: they are encodable.
        """
        await self._check_thread(thread_id)
        # In a task of its own: a caller that is cancelled leaves no run that is pending for ever.
        creating = asyncio.create_task(self._create_stored(create, thread_id, arguments, options))
        try:
            record = await asyncio.shield(creating)
        except asyncio.CancelledError:
            creating.add_done_callback(self._interrupt_unwanted)
            raise
        end_request_tracking()
        return record

    async def _check_thread(self, thread_id: str) -> None:
        """404 for another user's thread, as in DeerFlow's other routes; a missing thread is open to all."""
        try:
            user_id = bound_user_id("RunManager.create")
        except ActorMissingError as error:
            raise _refusal(error) from error
        if user_id is not None and not await self._threads.check_access(thread_id, user_id):
            raise _fastapi.HTTPException(404, f"Thread {thread_id} not found")

    async def _create_stored(
        self,
        create: Callable[..., Awaitable[Any]],
        thread_id: str,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        creation = _Creation()
        _creation.set(creation)  # the context is this task's own
        try:
            record = await create(thread_id, *arguments, **encodable(dict(options)))
        except BaseException:
            if creation.run_id is not None:
                await self._deerflow.cleanup(creation.run_id, delay=0)
            raise
        if creation.is_stored and creation.run_id == record.run_id:
            setattr(record, _OWNER, bound_user_id("RunManager.create"))
            return record
        await self._deerflow.cleanup(record.run_id, delay=0)
        if creation.error is None:
            logger.error("run %r is refused: DeerFlow did not store it", record.run_id)
        raise _refusal(creation.error) from creation.error

    def _interrupt_unwanted(self, creating: asyncio.Task[Any]) -> None:
        """The caller has gone: the run that it would have started is interrupted."""
        if creating.cancelled() or creating.exception() is not None:
            return
        task = asyncio.create_task(self._deerflow.cancel(creating.result().run_id))
        self._interrupting.add(task)
        task.add_done_callback(self._interrupting.discard)


def _refusal(error: BaseException | None) -> Any:
    """The HTTP error for a run that is not in the storage."""
    if isinstance(error, ActorMissingError):
        return _fastapi.HTTPException(401, "Authentication required")
    if isinstance(error, ValueError | TypeError):
        return _fastapi.HTTPException(422, encodable(f"the run cannot be stored: {error}"))
    if isinstance(error, StorageError):
        text = "the run could not be stored, try again"
        return _fastapi.HTTPException(503, text, headers={"Retry-After": RETRY_AFTER})
    return _fastapi.HTTPException(500, "the run could not be stored")


def _is_visible(record: Any, user_id: str | None) -> bool:
    """Whether the record is the user's own, or came from the store, which returns the user's own only."""
    owner = getattr(record, _OWNER, None)
    return owner is None or user_id is None or owner == user_id
