"""Whose thread it is, for events, whose owner lives in another collection.

A permission is never kept: each answer comes from a read of the primary that began after the call did. What
makes it cheap is sharing: all calls that wait while one read is under way are answered by the next one, so
that a busy process reads once a round trip, not once a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from ...contract.errors import StorageClosedError
from ..drivers.collection import Collection

_BY_ID = (("_id", 1),)


class ThreadOwners:
    """Answers whether a user may touch a thread: their own, nobody's, or one that is not there."""

    def __init__(self, threads: Collection) -> None:
        """`threads` must read from the primary."""
        self._threads = threads
        self._wanted: dict[str, asyncio.Future[str | None]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def first_refused(self, thread_ids: Sequence[str], user_id: str) -> str | None:
        """The first of the threads that the user may not touch, or None."""
        owners = await asyncio.gather(*map(self._owner, thread_ids))
        for thread_id, owner in zip(thread_ids, owners, strict=True):
            if owner is not None and owner != user_id:
                return thread_id
        return None

    def _owner(self, thread_id: str) -> asyncio.Future[str | None]:
        waiting = self._wanted.get(thread_id)
        if waiting is None:
            waiting = self._wanted[thread_id] = asyncio.get_running_loop().create_future()
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        return asyncio.shield(waiting)  # one caller's cancellation is not the others'

    async def _read(self) -> None:
        try:
            while self._wanted:
                asked, self._wanted = self._wanted, {}
                try:
                    found = await self._threads.find(
                        {"_id": {"$in": list(asked)}}, sort=_BY_ID, limit=len(asked), projection=["user_id"]
                    )
                except Exception as error:  # noqa: BLE001 - every caller must hear of it
                    _fail(asked.values(), error)
                    continue
                owners = {document["_id"]: document["user_id"] for document in found}
                for thread_id, waiting in asked.items():
                    waiting.set_result(owners.get(thread_id))
        finally:
            self._reader = None
            _fail(self._wanted.values(), StorageClosedError())


def _fail(waiting: Iterable[asyncio.Future[str | None]], error: Exception) -> None:
    for future in waiting:
        future.set_exception(error)
        future.exception()  # a caller that was cancelled asks no more
