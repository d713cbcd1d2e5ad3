"""Who may use a thread, for run events; the thread's owner is in another collection.

Permissions are not cached: each answer comes from a read of the primary that began after the call did. Calls
share reads to make this cheap: all that arrive while one read is in progress are answered by the next one, so
that a busy process reads once per round trip and not once per call. Whatever happens to a read, every call
that waits for it gets an outcome. A thread whose owner cannot be read is refused, and only that thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from ...contract.actor import BoundActor
from ...contract.errors import CorruptDocumentError, StorageError, StorageUnavailableError
from .. import queries
from ..documents.encoding import Document
from ..drivers.collection import Collection
from ..drivers.errors import copied, with_cause

_BY_ID = (("_id", 1),)

logger = logging.getLogger(__name__)

_Answers: TypeAlias = dict[str, asyncio.Future[str | None]]


class ThreadOwners:
    """Answers whether an actor may use a thread: their own, one without an owner, or one not yet created."""

    def __init__(self, threads: Collection) -> None:
        self._threads = threads
        self._requested: _Answers = {}
        self._in_progress: _Answers = {}
        self._reader: asyncio.Task[None] | None = None

    async def first_refused(self, thread_ids: Sequence[str], actor: BoundActor) -> str | None:
        """The first of the threads that the actor may not use, or None.

        Raises `CorruptDocumentError` where the owner of one of them cannot be read.
        """
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
            self._start_reader()
        return asyncio.shield(answer)  # the cancellation of one caller does not cancel the others

    def _start_reader(self) -> None:
        self._reader = asyncio.create_task(self._read())
        # A callback and no `finally`: a task that is cancelled before its first step runs none of its code.
        self._reader.add_done_callback(self._reader_ended)

    def _reader_ended(self, reader: asyncio.Task[None]) -> None:
        self._reader = None
        if not reader.cancelled() and reader.exception() is None:
            if self._requested:
                self._start_reader()  # for a call that came between the reader's last look and its end
            return
        unanswered = [*self._in_progress.values(), *self._requested.values()]
        self._in_progress, self._requested = {}, {}
        _fail(unanswered, StorageUnavailableError("the read of the owners of threads was cancelled"))

    async def _read(self) -> None:
        while self._requested:
            self._in_progress, self._requested = self._requested, {}
            await self._answer(self._in_progress)

    async def _answer(self, requested: _Answers) -> None:
        thread_ids = list(requested)
        try:
            found = await self._threads.find(
                queries.threads_by_id(thread_ids), sort=_BY_ID, limit=len(thread_ids), projection=["user_id"]
            )
            documents = {document["_id"]: document for document in found}
        except StorageError as error:
            _fail(requested.values(), error)
        except Exception as error:
            logger.exception("reading the owners of threads failed", extra={"operation": "find"})
            failure = StorageError(f"the owners of threads could not be read: {error}")
            _fail(requested.values(), with_cause(failure, error))
        else:
            for thread_id, answer in requested.items():
                try:
                    answer.set_result(self._owner_in(documents.get(thread_id)))
                except StorageError as error:
                    _fail([answer], error)

    def _owner_in(self, document: Document | None) -> str | None:
        """The owner in a thread's document; None for no owner and no thread."""
        if document is None:
            return None
        owner = document.get("user_id", ...)
        if owner is None or isinstance(owner, str):
            return owner
        reason = "is missing" if owner is ... else f"is of type {type(owner).__name__}; expected text or null"
        raise CorruptDocumentError(self._threads.name, document["_id"], "user_id", reason)


def _fail(answers: Iterable[asyncio.Future[str | None]], error: StorageError) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_exception(error)
            answer.exception()  # a caller that was cancelled does not retrieve it
