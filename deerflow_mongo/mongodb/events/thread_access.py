"""Who may use a thread, for run events; the thread's owner is in another collection.

Permissions are not cached: each answer comes from a read of the primary that began after the call did. Calls
share reads to make this cheap: all that arrive while one read is in progress are answered by the next one, so
that a busy process reads once per round trip and not once per call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from ...contract.actor import BoundActor
from ...contract.errors import StorageClosedError, StorageError
from .. import queries
from ..drivers.collection import Collection
from ..drivers.errors import copied, with_cause

_BY_ID = (("_id", 1),)

logger = logging.getLogger(__name__)


class ThreadOwners:
    """Answers whether an actor may use a thread: their own, one without an owner, or one not yet created."""

    def __init__(self, threads: Collection) -> None:
        """`threads` must read from the primary."""
        self._threads = threads
        self._requested: dict[str, asyncio.Future[str | None]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def first_refused(self, thread_ids: Sequence[str], actor: BoundActor) -> str | None:
        """The first of the threads that the actor may not use, or None."""
        try:
            owners = await asyncio.gather(*map(self._owner, thread_ids))
        except StorageError as error:
            raise copied(error) from error.__cause__  # other callers of the same read get it too
        for thread_id, owner in zip(thread_ids, owners, strict=True):
            if not actor.may_use(owner):
                return thread_id
        return None

    def _owner(self, thread_id: str) -> asyncio.Future[str | None]:
        answer = self._requested.get(thread_id)
        if answer is None:
            answer = self._requested[thread_id] = asyncio.get_running_loop().create_future()
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        return asyncio.shield(answer)  # the cancellation of one caller does not cancel the others

    async def _read(self) -> None:
        try:
            while self._requested:
                requested, self._requested = self._requested, {}
                await self._answer(requested)
        finally:
            self._reader = None
            _fail(self._requested.values(), StorageClosedError())

    async def _answer(self, requested: dict[str, asyncio.Future[str | None]]) -> None:
        thread_ids = list(requested)
        try:
            found = await self._threads.find(
                queries.threads_by_id(thread_ids), sort=_BY_ID, limit=len(thread_ids), projection=["user_id"]
            )
        except StorageError as error:
            _fail(requested.values(), error)
        except Exception as error:
            logger.exception("reading the owners of threads failed", extra={"operation": "find"})
            failure = StorageError(f"the owners of threads could not be read: {error}")
            _fail(requested.values(), with_cause(failure, error))
        else:
            owners = {document["_id"]: document["user_id"] for document in found}
            for thread_id, answer in requested.items():
                answer.set_result(owners.get(thread_id))


def _fail(answers: Iterable[asyncio.Future[str | None]], error: StorageError) -> None:
    for answer in answers:
        answer.set_exception(error)
        answer.exception()  # a caller that was cancelled does not retrieve it
