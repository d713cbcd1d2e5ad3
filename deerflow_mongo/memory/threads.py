"""Thread metadata, for the host's own methods and for those of its routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from operator import attrgetter
from typing import Any

from ..contract import arguments
from ..contract.actor import AUTO, UserId, bound_user_id
from ..contract.errors import ThreadAccessError, ThreadExistsError
from ..contract.payloads import equal_json, to_json_mapping
from ..contract.protocols import ThreadStore
from ..contract.rows import PINNED, JSONValue, ThreadMeta, ThreadMetaCreate, ThreadOrder
from .data import MemoryStore, is_visible, log_missing, now

_ORDERS: Mapping[str, Callable[[ThreadMeta], Any]] = {
    "newest_first": attrgetter("created_time", "thread_id"),
    "last_updated_first": attrgetter("updated_time", "thread_id"),
    "pinned_first": lambda thread: (_is_pinned(thread), thread.updated_time, thread.thread_id),
}


class MemoryThreadStore(MemoryStore, ThreadStore):
    """`ThreadStore` in memory. Every update replaces the stored `ThreadMeta`; what is returned is a copy."""

    # The host's own methods.

    async def create_thread_meta(self, data: ThreadMetaCreate) -> ThreadMeta:
        thread = _new_thread(
            data.thread_id, data.assistant_id, data.user_id, data.metadata, data.display_name, data.status
        )
        if thread.thread_id in self._data.threads:
            raise ThreadExistsError(thread.thread_id)
        return self._store(thread)

    async def get_thread_meta(self, thread_id: str) -> ThreadMeta | None:
        return deepcopy(self._find(thread_id, None))

    async def update_thread_meta(
        self,
        thread_id: str,
        *,
        assistant_id: str | None = None,
        display_name: str | None = None,
        status: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        owner_id: str | None = None,
        user_id: UserId = None,
    ) -> None:
        user = arguments.acting_user(user_id, "ThreadStore.update_thread_meta")
        changes: dict[str, Any] = {
            "assistant_id": arguments.optional_text("assistant_id", assistant_id),
            "display_name": arguments.long_text("display_name", display_name),
            "status": None if status is None else arguments.status_text("status", status),
            "metadata": None if metadata is None else to_json_mapping(metadata, "metadata"),
            "user_id": arguments.optional_text("owner_id", owner_id),
        }
        given = {name: value for name, value in changes.items() if value is not None}
        thread = self._thread_to_update(thread_id, user, "update_thread_meta")
        if thread is not None:
            self._store(replace(thread, **given, updated_time=now()))

    async def merge_thread_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, user_id: UserId = None, touch: bool = True
    ) -> None:
        user = arguments.acting_user(user_id, "ThreadStore.merge_thread_metadata")
        merged = to_json_mapping(metadata, "metadata")
        touches = arguments.flag("touch", touch)
        thread = self._thread_to_update(thread_id, user, "merge_thread_metadata")
        if thread is not None:
            updated_time = now() if touches else thread.updated_time
            self._store(replace(thread, metadata={**thread.metadata, **merged}, updated_time=updated_time))

    async def delete_thread(self, thread_id: str, *, user_id: UserId = None) -> bool:
        thread = self._find(thread_id, arguments.acting_user(user_id, "ThreadStore.delete_thread"))
        if thread is None:
            return False
        del self._data.threads[thread.thread_id]
        return True

    # The methods of its routes.

    async def get_thread(self, thread_id: str, *, user_id: UserId = AUTO) -> ThreadMeta | None:
        return deepcopy(self._find(thread_id, arguments.acting_user(user_id, "ThreadStore.get_thread")))

    async def ensure_thread(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        user_id: UserId = AUTO,
    ) -> ThreadMeta:
        user = arguments.acting_user(user_id, "ThreadStore.ensure_thread")
        new = _new_thread(thread_id, assistant_id, user, metadata)
        stored = self._data.threads.get(new.thread_id)
        if stored is None:
            return self._store(new)
        if not is_visible(stored.user_id, user):
            raise ThreadAccessError(new.thread_id, "use")
        return deepcopy(stored)

    async def ensure_thread_running(
        self, *, thread_id: str, assistant_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> ThreadMeta:
        new = _new_thread(
            thread_id,
            assistant_id,
            bound_user_id("ThreadStore.ensure_thread_running"),
            metadata,
            status="running",
        )
        stored = self._data.threads.get(new.thread_id)
        if stored is None:
            return self._store(new)
        return self._store(replace(stored, status="running", updated_time=now()))

    async def search_threads(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        user_id: UserId = AUTO,
        assistant_id: str | None = None,
        limit: int = 100,
        offset: int = 0,
        order: ThreadOrder = "newest_first",
    ) -> list[ThreadMeta]:
        key = _ORDERS[arguments.one_of("order", order, _ORDERS)]
        user = arguments.acting_user(user_id, "ThreadStore.search_threads")
        wanted = to_json_mapping(metadata, "metadata")
        of_status = arguments.filter_text("status", status)
        of_assistant = arguments.filter_text("assistant_id", assistant_id)
        rows, skipped = arguments.row_limit("limit", limit), arguments.row_limit("offset", offset)
        found = [
            thread
            for thread in self._data.threads.values()
            if is_visible(thread.user_id, user)
            and of_status in (None, thread.status)
            and of_assistant in (None, thread.assistant_id)
            and _has_metadata(thread, wanted)
        ]
        return deepcopy(sorted(found, key=key, reverse=True)[skipped : skipped + rows])

    def _store(self, thread: ThreadMeta) -> ThreadMeta:
        """Store the thread and return a copy."""
        self._data.threads[thread.thread_id] = thread
        return deepcopy(thread)

    def _find(self, thread_id: str, user: str | None) -> ThreadMeta | None:
        """The stored thread itself, if it exists for this user."""
        thread = self._data.threads.get(arguments.identifier("thread_id", thread_id))
        return thread if thread is not None and is_visible(thread.user_id, user) else None

    def _thread_to_update(self, thread_id: str, user: str | None, operation: str) -> ThreadMeta | None:
        thread = self._find(thread_id, user)
        if thread is None:
            log_missing(operation, "thread", thread_id)
        return thread


def _new_thread(
    thread_id: str,
    assistant_id: str | None,
    user_id: str | None,
    metadata: Mapping[str, Any] | None,
    display_name: str | None = None,
    status: str = "idle",
) -> ThreadMeta:
    created = now()
    return ThreadMeta(
        thread_id=arguments.identifier("thread_id", thread_id),
        assistant_id=arguments.optional_text("assistant_id", assistant_id),
        user_id=arguments.optional_text("user_id", user_id),
        display_name=arguments.long_text("display_name", display_name),
        status=arguments.status_text("status", status),
        metadata=to_json_mapping(metadata, "metadata"),
        created_time=created,
        updated_time=created,
    )


def _has_metadata(thread: ThreadMeta, wanted: Mapping[str, JSONValue]) -> bool:
    stored = thread.metadata
    return all(key in stored and equal_json(stored[key], value) for key, value in wanted.items())


def _is_pinned(thread: ThreadMeta) -> bool:
    return thread.metadata.get(PINNED) is True
