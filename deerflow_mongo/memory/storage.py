"""`MemoryStorage`: the storage contract on plain dicts, which are gone when the storage is closed.

The reference for authors of backends, and a quick storage for a host's own tests. Not for production: nothing
is stored beyond the process, other processes see nothing of it, and every list looks at all rows.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ..contract.bulk_rows import BulkRow, BulkRows, Imported, Key, RowKind
from ..contract.capabilities import Accounts, Checkpointing
from ..contract.erasure import Erased, Erasure
from ..contract.errors import MissingDependencyError, StorageConfigError
from ..contract.factory import with_options
from ..contract.observer import StorageRunObserver
from ..contract.protocols import Storage
from . import erasure
from .bulk_rows import MemoryBulkRows
from .data import Memory
from .feedback import MemoryFeedbackStore
from .run_events import MemoryRunEventStore
from .runs import MemoryRunStore
from .threads import MemoryThreadStore
from .users import MemoryUserStore


class MemoryStorage(Storage, Accounts, BulkRows, Checkpointing, Erasure):
    """`Storage` in memory, with accounts, checkpoints, rows in bulk and run events that can be followed."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._runs = MemoryRunStore(self._memory)
        self._feedback = MemoryFeedbackStore(self._memory)
        self._threads = MemoryThreadStore(self._memory)
        self._run_events = MemoryRunEventStore(self._memory)
        self._users = MemoryUserStore(self._memory)
        self._bulk_rows = MemoryBulkRows(self._memory, self._runs, self._users)
        self._saver: Any = None

    def __repr__(self) -> str:
        return "MemoryStorage()"

    @property
    def runs(self) -> MemoryRunStore:
        return self._runs

    @property
    def feedback(self) -> MemoryFeedbackStore:
        return self._feedback

    @property
    def threads(self) -> MemoryThreadStore:
        return self._threads

    @property
    def run_events(self) -> MemoryRunEventStore:
        return self._run_events

    @property
    def users(self) -> MemoryUserStore:
        return self._users

    def observer(self) -> StorageRunObserver:
        return StorageRunObserver(self._runs, self._threads)

    def export_rows(
        self, kind: RowKind, *, after: Key | None = None, batch_size: int = 1_000
    ) -> AsyncGenerator[Sequence[BulkRow]]:
        return self._bulk_rows.export_rows(kind, after=after, batch_size=batch_size)

    async def import_rows(
        self, kind: RowKind, rows: Sequence[BulkRow], *, overwrite: bool = False
    ) -> Imported:
        return await self._bulk_rows.import_rows(kind, rows, overwrite=overwrite)

    async def checkpointer(self) -> Any:
        """LangGraph's `InMemorySaver`, the same object at every call; the storage forgets it when closed.

        Needs `langgraph-checkpoint`, which every LangGraph installation has.
        """
        await self.ping()
        if self._saver is None:
            try:
                self._saver = importlib.import_module("langgraph.checkpoint.memory").InMemorySaver()
            except ImportError as error:
                raise MissingDependencyError(
                    "storage.checkpointer()", "langgraph-checkpoint", "checkpointer"
                ) from error
        return self._saver

    async def purge_thread(self, thread_id: str) -> Erased:
        return await self._erased(erasure.of_threads(self._memory.data, [thread_id]))

    async def erase_user(self, user_id: str) -> Erased:
        return await self._erased(erasure.of_user(self._memory.data, user_id))

    async def count_thread(self, thread_id: str) -> Erased:
        return await self._counted(erasure.of_threads(self._memory.data, [thread_id]))

    async def count_user(self, user_id: str) -> Erased:
        return await self._counted(erasure.of_user(self._memory.data, user_id))

    async def _erased(self, found: erasure.Belongings) -> Erased:
        counts, saver = await self._counted(found), self._saver
        erasure.erase(self._memory.data, found)
        if saver is not None:
            for thread_id in found.threads:
                await saver.adelete_thread(thread_id)
        return counts

    async def _counted(self, found: erasure.Belongings) -> Erased:
        counts, saver = found.counts(self._memory.data), self._saver
        if saver is not None:
            for thread_id in found.threads:
                async for _ in saver.alist({"configurable": {"thread_id": thread_id}}):
                    counts.checkpoints += 1
        return counts

    async def setup(self) -> None:
        await self.ping()

    async def ping(self) -> None:
        _ = self._memory.data

    async def aclose(self) -> None:
        """Forget everything; idempotent."""
        self._memory.close()
        self._saver = None


@with_options(())
def create_memory_storage(options: Mapping[str, Any], *, client: Any = None) -> MemoryStorage:
    """The backend `memory` of `create_storage`, which has no options."""
    if client is not None:
        raise StorageConfigError("`backend: memory` has no server and takes no client")
    if options:
        unknown = ", ".join(f"`{key}`" for key in options)
        raise StorageConfigError(
            f"storage configuration: unknown key {unknown}; expected `backend: memory` and nothing else"
        )
    return MemoryStorage()
