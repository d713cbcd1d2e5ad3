"""DeerFlow's run manager, which starts no run in another user's thread.

Its routes of runs without a thread in their path (`/api/runs/stream`, `/api/runs/wait`) take a thread's id
from the request's body and do not ask whose it is: the run would answer with that thread's conversation. Here
every route starts its runs, so it is asked here, once more where a route has asked already.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..actor import current_user_id
from .gateway import host

_runtime: Any = host("deerflow.runtime")
_fastapi: Any = importlib.import_module("fastapi")


class OwnThreadsRunManager(_runtime.RunManager):
    """Raises the HTTP error that DeerFlow's other routes give for a thread of somebody else: 404."""

    def __init__(self, *, store: Any, threads: Any) -> None:
        """`threads` is DeerFlow's `ThreadMetaStore`."""
        self._host: Any = super()
        self._host.__init__(store=store)
        self._threads = threads

    async def create(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        await self._check(thread_id)
        return await self._host.create(thread_id, *arguments, **options)

    async def create_or_reject(self, thread_id: str, *arguments: Any, **options: Any) -> Any:
        await self._check(thread_id)
        return await self._host.create_or_reject(thread_id, *arguments, **options)

    async def _check(self, thread_id: str) -> None:
        """A thread that nobody owns, or that is not there, is open, as it is to DeerFlow's routes."""
        user_id = current_user_id()
        if user_id is not None and not await self._threads.check_access(thread_id, user_id):
            raise _fastapi.HTTPException(404, f"Thread {thread_id} not found")
