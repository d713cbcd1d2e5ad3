"""DeerFlow's `ThreadMetaStore` over our threads."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from ...contract.actor import BoundActor, current_actor
from ...contract.arguments import is_valid_id
from ...contract.erasure import Erasure
from ...contract.errors import ArgumentTypeError, ThreadExistsError
from ...contract.protocols import RunStore, ThreadStore
from ...contract.rows import ThreadMeta, ThreadMetaCreate
from ..availability import grant_access, is_access_granted
from ..deerflow import import_deerflow
from ..encodable import encodable
from .actors import AUTO, acting_user
from .duplicate_keys import DuplicateRowError

_base: Any = import_deerflow("deerflow.persistence.thread_meta.base")
_json_compat: Any = import_deerflow("deerflow.persistence.json_compat")

logger = logging.getLogger(__name__)


def _row(thread: ThreadMeta) -> dict[str, Any]:
    row = {
        "thread_id": thread.thread_id,
        "assistant_id": thread.assistant_id,
        "user_id": thread.user_id,
        "display_name": thread.display_name,
        "status": thread.status,
        "metadata": thread.metadata,
        "created_at": thread.created_time.isoformat(),
        "updated_at": thread.updated_time.isoformat(),
    }
    return encodable(row)


def _is_searchable(key: object, value: object) -> bool:
    """Whether a search may filter by this: DeerFlow's own rule, and no NaN or infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return _json_compat.validate_metadata_filter_key(key) and _json_compat.validate_metadata_filter_value(
        value
    )


def _metadata_filter(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The searchable part of a filter; raises DeerFlow's error if nothing of it is searchable."""
    given = metadata or {}
    searchable = {key: value for key, value in given.items() if _is_searchable(key, value)}
    rejected = sorted(str(key) for key in given if key not in searchable)
    if rejected:
        logger.warning(
            "thread search ignores metadata keys that are not searchable: %a",
            rejected,
            extra={"operation": "ThreadMetaStore.search"},
        )
    if rejected and not searchable:
        # DeerFlow's text: its route sends it to the client.
        raise _base.InvalidMetadataFilterError(
            f"All metadata filter keys were rejected as unsafe: {', '.join(rejected)}"
        )
    return searchable


class ThreadMetaStoreAdapter(_base.ThreadMetaStore):
    """Threads with DeerFlow's names and rows. A write is one atomic operation that checks the owner."""

    def __init__(
        self, threads: ThreadStore, runs: RunStore | None = None, erasing: Erasure | None = None
    ) -> None:
        """With `runs`, only the owner of its remaining runs has access to a deleted thread.

        With `erasing`, a thread that is deleted goes with everything that belongs to it.
        """
        self._threads = threads
        self._runs = runs
        self._erasing = erasing

    async def create(
        self,
        thread_id: str,
        *,
        assistant_id: str | None = None,
        user_id: Any = AUTO,
        display_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store a new thread. Raises `DuplicateRowError` for a known id and leaves that thread as it is.

        DeerFlow's route catches it as SQLAlchemy's `IntegrityError`, and answers with the thread it finds.
        """
        new = ThreadMetaCreate(
            thread_id=thread_id,
            assistant_id=assistant_id,
            user_id=acting_user(user_id, "ThreadMetaStore.create"),
            display_name=display_name,
            metadata=metadata or {},
        )
        try:
            return _row(await self._threads.create_thread_meta(new))
        except ThreadExistsError as error:
            raise DuplicateRowError(str(error)) from error

    async def get(self, thread_id: str, *, user_id: Any = AUTO) -> dict[str, Any] | None:
        user = acting_user(user_id, "ThreadMetaStore.get")
        if not is_valid_id(thread_id):
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
        """The matching threads: the pinned ones, then the others, each last updated first.

        Metadata that is not searchable is ignored.

        Raises `InvalidMetadataFilterError` if none of it is searchable.
        """
        user = acting_user(user_id, "ThreadMetaStore.search")
        metadata_filter = _metadata_filter(metadata)
        if status and (status.isspace() or not is_valid_id(status)):
            return []
        threads = await self._threads.search_threads(
            metadata=metadata_filter,
            status=status,
            user_id=user,
            limit=limit,
            offset=offset,
            order="pinned_first",
        )
        return [_row(thread) for thread in threads]

    async def update_display_name(self, thread_id: str, display_name: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "ThreadMetaStore.update_display_name")
        if is_valid_id(thread_id):
            await self._threads.update_thread_meta(thread_id, display_name=display_name, user_id=user)

    async def update_status(self, thread_id: str, status: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "ThreadMetaStore.update_status")
        if is_valid_id(thread_id):
            await self._threads.update_thread_meta(thread_id, status=status, user_id=user)

    async def update_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, touch: bool = True, user_id: Any = AUTO
    ) -> None:
        """Merge by top-level keys, atomically: concurrent merges lose nothing.

        Without `touch` the thread keeps its place among the last updated ones.
        """
        user = acting_user(user_id, "ThreadMetaStore.update_metadata")
        if is_valid_id(thread_id):
            await self._threads.merge_thread_metadata(thread_id, metadata, user_id=user, touch=touch)

    async def update_owner(self, thread_id: str, owner_user_id: Any, *, user_id: Any = AUTO) -> None:
        """Give the thread to another user. Raises `ArgumentTypeError` for None: a thread stays owned."""
        user = acting_user(user_id, "ThreadMetaStore.update_owner")
        if owner_user_id is None:
            raise ArgumentTypeError("owner_user_id must be a user's id, got None")
        if is_valid_id(thread_id):
            await self._threads.update_thread_meta(thread_id, owner_id=str(owner_user_id), user_id=user)

    async def check_access(self, thread_id: str, user_id: str, *, require_existing: bool = False) -> bool:
        """Whether the thread is the user's or nobody's; a missing one is open unless `require_existing`.

        An actor that is bound without an id has the access of a stranger, whatever `user_id` is.
        One request reads the thread once: a route that creates a run checks it, and the run manager again.
        """
        bound = current_actor()
        actor = bound if bound is not None and bound.user_id is None else BoundActor(str(user_id))
        if not require_existing and is_access_granted(thread_id, actor.user_id):
            return True
        thread = await self._threads.get_thread_meta(thread_id) if is_valid_id(thread_id) else None
        if thread is None:
            return not require_existing and await self._has_no_runs_of_others(thread_id, actor)
        is_allowed = actor.may_use(thread.user_id)
        if is_allowed:
            grant_access(thread_id, actor.user_id)
        return is_allowed

    async def _has_no_runs_of_others(self, thread_id: str, actor: BoundActor) -> bool:
        """DeerFlow deletes a thread's metadata and not its runs; its routes would show them to all users."""
        if self._runs is None or not is_valid_id(thread_id):
            return True
        newest = await self._runs.list_by_thread(thread_id, user_id=None, limit=1)
        return all(actor.may_use(run["user_id"]) for run in newest)

    async def delete(self, thread_id: str, *, user_id: Any = AUTO) -> None:
        user = acting_user(user_id, "ThreadMetaStore.delete")
        if not is_valid_id(thread_id):
            return
        if self._erasing is None:
            await self._threads.delete_thread(thread_id, user_id=user)
        elif await self._threads.get_thread(thread_id, user_id=user) is not None:
            await self._erasing.purge_thread(thread_id)
