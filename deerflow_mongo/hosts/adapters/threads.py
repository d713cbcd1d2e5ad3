"""DeerFlow's `ThreadMetaStore` over our threads."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from ...contract.rows import ThreadMeta, ThreadMetaCreate
from ...mongodb.stores.runs import MongoRunStore
from ...mongodb.stores.threads import MongoThreadStore
from ..gateway import host
from .actors import AUTO, acting_user, can_be_stored

_base: Any = host("deerflow.persistence.thread_meta.base")
_json_compat: Any = host("deerflow.persistence.json_compat")

logger = logging.getLogger(__name__)


def _row(thread: ThreadMeta) -> dict[str, Any]:
    return {
        "thread_id": thread.thread_id,
        "assistant_id": thread.assistant_id,
        "user_id": thread.user_id,
        "display_name": thread.display_name,
        "status": thread.status,
        "metadata": thread.metadata,
        "created_at": thread.created_time.isoformat(),
        "updated_at": thread.updated_time.isoformat(),
    }


def _is_safe(key: object, value: object) -> bool:
    """Whether DeerFlow lets a search ask for this; its rule, and no value that is no JSON number."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return _json_compat.validate_metadata_filter_key(key) and _json_compat.validate_metadata_filter_value(
        value
    )


def _wanted_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    given = metadata or {}
    wanted = {key: value for key, value in given.items() if _is_safe(key, value)}
    refused = sorted(str(key) for key in given if key not in wanted)
    if given and not wanted:
        raise _base.InvalidMetadataFilterError(
            f"no thread can be searched by this metadata: {', '.join(refused)}. A key takes letters, digits, "
            "'_' and '-'; a value is text, true, false, null or a number of 64 bits"
        )
    if refused:
        logger.warning("search for threads: left out metadata that cannot be asked for: %a", refused)
    return wanted


class ThreadMetaStoreAdapter(_base.ThreadMetaStore):
    """Threads with DeerFlow's names and rows. A write is one atomic command with the owner in its filter."""

    def __init__(self, threads: MongoThreadStore, runs: MongoRunStore | None = None) -> None:
        """With `runs`, a deleted thread that left runs behind stays closed to everybody but their owner."""
        self._threads = threads
        self._runs = runs

    async def create(
        self,
        thread_id: str,
        *,
        assistant_id: str | None = None,
        user_id: Any = AUTO,
        display_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store a new thread. `ThreadExistsError`, and nothing changed, where there is one of this id."""
        new = ThreadMetaCreate(
            thread_id=thread_id,
            assistant_id=assistant_id,
            user_id=acting_user(user_id, "ThreadMetaStore.create"),
            display_name=display_name,
            metadata=metadata or {},
        )
        return _row(await self._threads.create_thread_meta(new))

    async def get(self, thread_id: str, *, user_id: Any = AUTO) -> dict[str, Any] | None:
        user = acting_user(user_id, "ThreadMetaStore.get")
        if not can_be_stored(thread_id):
            return None
        thread = await self._threads.get_thread(thread_id, user_id=user)
        return None if thread is None else _row(thread)

    async def search(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        limit: int = 100,
        offset: int = 0,
        user_id: Any = AUTO,
    ) -> list[dict[str, Any]]:
        """The threads that fit, the last updated first. Metadata that is unsafe to ask for is left out.

        `InvalidMetadataFilterError` where all of it is.
        """
        user = acting_user(user_id, "ThreadMetaStore.search")
        wanted = _wanted_metadata(metadata)
        if status and (status.isspace() or not can_be_stored(status)):
            return []
        threads = await self._threads.search_threads(
            metadata=wanted,
            status=status,
            user_id=user,
            limit=limit,
            offset=offset,
            order="last_updated_first",
        )
        return [_row(thread) for thread in threads]

    async def update_display_name(self, thread_id: str, display_name: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "ThreadMetaStore.update_display_name")
        if can_be_stored(thread_id):
            await self._threads.update_thread_meta(thread_id, display_name=display_name, user_id=user)

    async def update_status(self, thread_id: str, status: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "ThreadMetaStore.update_status")
        if can_be_stored(thread_id):
            await self._threads.update_thread_meta(thread_id, status=status, user_id=user)

    async def update_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, user_id: Any = AUTO
    ) -> None:
        """Merge by top-level keys, atomically: two writers of different keys both prevail."""
        user = acting_user(user_id, "ThreadMetaStore.update_metadata")
        if can_be_stored(thread_id):
            await self._threads.merge_thread_metadata(thread_id, metadata, user_id=user)

    async def check_access(self, thread_id: str, user_id: str, *, require_existing: bool = False) -> bool:
        """Whether it is the user's thread or nobody's; of a thread that is not there, as the caller says."""
        thread = await self._threads.get_thread_meta(thread_id) if can_be_stored(thread_id) else None
        if thread is None:
            return not require_existing and await self._left_nothing_of_others(thread_id, str(user_id))
        return thread.user_id is None or thread.user_id == str(user_id)

    async def _left_nothing_of_others(self, thread_id: str, user_id: str) -> bool:
        """DeerFlow deletes a thread's metadata and leaves its runs, which its routes then show to all."""
        if self._runs is None or not can_be_stored(thread_id):
            return True
        newest = await self._runs.list_by_thread(thread_id, user_id=None, limit=1)
        return all(run["user_id"] in (None, user_id) for run in newest)

    async def delete(self, thread_id: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "ThreadMetaStore.delete")
        if can_be_stored(thread_id):
            await self._threads.delete_thread(thread_id, user_id=user)
