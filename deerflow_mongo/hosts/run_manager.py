"""DeerFlow's run manager with checks that DeerFlow's own lacks: who owns a run, and was it stored.

A run that a worker has in memory, with the user's message, is given to everybody who knows the id of a
deleted thread. Every route creates and finds its runs here, so the owner is checked here, in every release.
In DeerFlow 0.1.7 the routes of runs without a thread in their path (`/api/runs/stream`, `/api/runs/wait`)
take a thread's id from the request's body and do not check its owner either, and a run that is not in the
storage is logged and acknowledged; later releases check both themselves. A caller that is cancelled leaves
no run that is pending for ever, and an error of the storage is an HTTP error that names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from ..contract.actor import bound_user_id, get_actor_context
from ..contract.errors import ActorMissingError, StorageError
from .availability import RETRY_AFTER, end_request_tracking
from .deerflow import import_deerflow
from .encodable import encodable

_runtime: Any = import_deerflow("deerflow.runtime")
_internal_auth: Any = import_deerflow("app.gateway.internal_auth")
_record: Any = getattr(import_deerflow("deerflow.runtime.runs.manager"), "RunRecord", None)
_fastapi: Any = importlib.import_module("fastapi")

_OWNER: Final = "owner_id"
"""An attribute of ours on DeerFlow's record of a run, which often has no owner."""

_INTERNAL_ROLE: Final[str | None] = getattr(_internal_auth, "INTERNAL_SYSTEM_ROLE", None)
"""The role of DeerFlow's own callers that act for another user; None in a release without them."""

_RECORDS_HAVE_OWNERS: Final = dataclasses.is_dataclass(_record) and "user_id" in {
    field.name for field in dataclasses.fields(_record)
}
"""Whether a record that DeerFlow makes from a row has the row's owner, so that it can be checked here."""

_CLOSES_CANCELLED_RUNS: Final = hasattr(_runtime.RunManager, "_close_cancelled_admission")
"""Whether DeerFlow ends a run whose creation is cancelled after it was stored, and waits for that."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Creation:
    """What the store reports of the run that one call of the manager creates."""

    run_id: str | None = None
    is_stored: bool = False
    error: BaseException | None = None


_creation: ContextVar[_Creation | None] = ContextVar("deerflow_mongo_run_creation", default=None)


class _ReportingRunStore:
    """DeerFlow's `RunStore`, which reports whether a new run was stored.

    The manager of DeerFlow 0.1.7 continues after any error of `put`.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, run_id: str, **fields: Any) -> None:
        await self._reported(run_id, self._store.put(run_id, **fields))

    async def create_thread_operation_atomic(self, run_id: str, **fields: Any) -> Any:
        return await self._reported(run_id, self._store.create_thread_operation_atomic(run_id, **fields))

    async def _reported(self, run_id: str, write: Awaitable[Any]) -> Any:
        creation = _creation.get() or _Creation()
        creation.run_id = run_id
        try:
            result = await write
        except BaseException as error:
            creation.error = error
            raise
        creation.is_stored = True
        return result


class OwnerCheckingRunManager(_runtime.RunManager):
    """For a bound user, other users' runs do not exist; without one, all do.

    A run without an owner is visible where DeerFlow's own manager shows it. An actor without an id is
    refused: `create` raises the HTTP error 401, and the reads `ActorMissingError`.
    DeerFlow's internal callers act for the users whose threads its routes have let them use.
    """

    def __init__(self, store: Any = None, **options: Any) -> None:
        """The arguments are those of DeerFlow's own manager, whichever release it is of."""
        self._deerflow: Any = super()
        self._deerflow.__init__(None if store is None else _ReportingRunStore(store), **options)
        self._interrupting: set[asyncio.Task[Any]] = set()

    async def create(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        return await self._create(self._deerflow.create, thread_id, arguments, options)

    async def create_or_reject(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        return await self._create(self._deerflow.create_or_reject, thread_id, arguments, options)

    async def get(self, run_id: str, *, user_id: str | None = None, **options: Any) -> Any:
        user = _reading_user(user_id, "RunManager.get")
        record = await self._deerflow.get(run_id, user_id=_filter(user_id, user), **options)
        return record if record is not None and _is_visible(record, user) else None

    async def list_by_thread(
        self, thread_id: str, *, user_id: str | None = None, limit: int = 100
    ) -> list[Any]:
        user = _reading_user(user_id, "RunManager.list_by_thread")
        records = await self._deerflow.list_by_thread(thread_id, user_id=_filter(user_id, user), limit=limit)
        return [record for record in records if _is_visible(record, user)]

    async def set_status(self, run_id: str, status: Any, *, error: str | None = None, **options: Any) -> None:
        """The routes answer with the error's text of a record in memory: it is encodable there too."""
        await self._deerflow.set_status(run_id, status, error=encodable(error), **options)

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
        creation = _Creation()
        creating = asyncio.create_task(self._create_stored(creation, create, thread_id, arguments, options))
        try:
            record = await asyncio.shield(creating)
        except asyncio.CancelledError:
            if _CLOSES_CANCELLED_RUNS and creation.is_stored and not creating.done():
                creating.cancel()
                await _ended(creating)
            creating.add_done_callback(self._interrupt_unwanted)
            raise
        end_request_tracking()
        return record

    async def _check_thread(self, thread_id: str) -> None:
        """401 without an id, and where the routes do not check it, 404 for another user's thread.

        404 as in DeerFlow's other routes; a missing thread is open to all.
        """
        try:
            user_id = bound_user_id("RunManager.create")
        except ActorMissingError as error:
            raise _refusal(error) from error
        threads = self._find_threads()
        if user_id is None or threads is None:
            return
        if not await threads.check_access(thread_id, user_id):
            raise _fastapi.HTTPException(404, f"Thread {thread_id} not found")

    def _find_threads(self) -> Any:
        """DeerFlow's `ThreadMetaStore`, or None where the routes check a thread's owner."""
        return None

    async def _create_stored(
        self,
        creation: _Creation,
        create: Callable[..., Awaitable[Any]],
        thread_id: str,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        _creation.set(creation)  # the context is this task's own
        try:
            record = await create(thread_id, *arguments, **encodable(dict(options)))
        except BaseException as error:
            if creation.run_id is not None and not creation.is_stored:
                await self._deerflow.cleanup(creation.run_id, delay=0)
            if isinstance(error, StorageError):
                raise _refusal(error) from error
            raise
        if self._store is None or _is_reused(record):
            return record
        if creation.is_stored and creation.run_id == record.run_id:
            if _owner(record) is None:
                setattr(record, _OWNER, bound_user_id("RunManager.create"))
            return record
        await self._deerflow.cleanup(record.run_id, delay=0)
        if creation.error is None:
            logger.error("run %r is refused: DeerFlow did not store it", record.run_id)
        raise _refusal(creation.error) from creation.error

    def _interrupt_unwanted(self, creating: asyncio.Task[Any]) -> None:
        """The caller has gone: the run that it would have started is interrupted."""
        if creating.cancelled() or creating.exception() is not None or _is_reused(creating.result()):
            return
        task = asyncio.create_task(self._deerflow.cancel(creating.result().run_id))
        self._interrupting.add(task)
        task.add_done_callback(self._interrupting.discard)


def run_manager_class(find_threads: Callable[[], Any] | None = None) -> type[OwnerCheckingRunManager]:
    """What DeerFlow's gateway has to build in place of its `RunManager`, with the same arguments.

    With `find_threads`, which returns DeerFlow's `ThreadMetaStore` when a run is created, the owner of the
    run's thread is checked: for releases whose routes do not.
    """
    if find_threads is None:
        return OwnerCheckingRunManager

    class ThreadCheckingRunManager(OwnerCheckingRunManager):
        def _find_threads(self) -> Any:
            return find_threads()

    return ThreadCheckingRunManager


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


def _reading_user(user_id: str | None, method_name: str) -> str | None:
    """The user whose runs a method returns; None for those of everybody."""
    if user_id is not None:
        return user_id
    role = getattr(get_actor_context(), "system_role", None)
    return None if _INTERNAL_ROLE and role == _INTERNAL_ROLE else bound_user_id(method_name)


def _filter(asked: str | None, user: str | None) -> str | None:
    """The user whose rows the store returns for this user.

    Where DeerFlow asks for no user's and its records have owners, it gets the rows without an owner as well:
    they are in threads that its routes have let the user use.
    """
    return asked if _RECORDS_HAVE_OWNERS else user


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for the end of a task that is cancelled, however often this one is."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})


def _is_reused(record: Any) -> bool:
    """Whether the run existed already, under the idempotency key of this one."""
    return bool(getattr(record, "idempotency_reused", False))


def _owner(record: Any) -> str | None:
    """The record's owner: for whom it was created here, or whom DeerFlow has noted."""
    owner = getattr(record, _OWNER, None)
    return getattr(record, "user_id", None) if owner is None else owner


def _is_visible(record: Any, user_id: str | None) -> bool:
    """Whether the record is the user's own, or has no owner.

    One that an older release makes from a row has none: there the store returns the user's own only.
    """
    owner = _owner(record)
    return owner is None or user_id is None or owner == user_id
