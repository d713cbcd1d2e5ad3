"""Thread metadata: one document per thread, for the host's own methods and for those of its routes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ...contract import arguments
from ...contract.actor import AUTO, UserId, bound_user_id
from ...contract.errors import PayloadTooLargeError, StorageError, ThreadAccessError, ThreadExistsError
from ...contract.payloads import to_json_mapping
from ...contract.protocols import ThreadStore
from ...contract.rows import JSONValue, ThreadMeta, ThreadMetaCreate, ThreadOrder
from ...contract.times import clock
from .. import queries
from ..documents.digests import metadata_digests
from ..documents.encoding import Update, encode_text
from ..documents.threads import (
    insert_if_absent_update,
    metadata_merge_update,
    new_thread,
    running_update,
    thread_fields,
    thread_row,
    thread_update,
)
from ..drivers.collection import Collection
from ..drivers.errors import MAX_DOCUMENT_BYTES, DuplicateKeyError
from ..queries import Query
from ..row_collection import RowCollection
from ..schema import LAST_UPDATED_FIRST, NEWEST_FIRST, PINNED_FIRST, THREADS, Keys

logger = logging.getLogger(__name__)

_ORDERS: dict[str, Keys] = {
    "newest_first": NEWEST_FIRST,
    "last_updated_first": LAST_UPDATED_FIRST,
    "pinned_first": PINNED_FIRST,
}

_UPSERT_ATTEMPTS = 2
"""The second succeeds after a lost race, and fails again when the thread belongs to another user."""


_MAX_METADATA_KEYS = 20_000
"""Keys in one payload. Each is an entry in two indexes; so many take a server about a second."""


def _metadata(value: object) -> dict[str, JSONValue]:
    payload = to_json_mapping(value, "metadata")
    if len(payload) > _MAX_METADATA_KEYS:
        reason = f"it has {len(payload):,} keys, and at most {_MAX_METADATA_KEYS:,} can be indexed"
        raise PayloadTooLargeError("metadata", None, MAX_DOCUMENT_BYTES, reason=reason)
    return payload


class MongoThreadStore(ThreadStore):
    """`ThreadStore` on MongoDB."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._rows = RowCollection(collection, THREADS, thread_row)

    # The host's own methods.

    async def create_thread_meta(self, data: ThreadMetaCreate) -> ThreadMeta:
        thread_id = arguments.identifier("thread_id", data.thread_id)
        document = new_thread(
            thread_id,
            thread_fields(
                user_id=arguments.optional_text("user_id", data.user_id),
                assistant_id=arguments.optional_text("assistant_id", data.assistant_id),
                display_name=encode_text("display_name", data.display_name),
                status=arguments.status_text("status", data.status),
                metadata=_metadata(data.metadata),
                stamp_us=clock.stamp_us(),
            ),
        )
        try:
            await self._collection.insert_one(document)
        except DuplicateKeyError as error:
            raise ThreadExistsError(thread_id) from error.__cause__
        return self._rows.row(document)

    async def get_thread_meta(self, thread_id: str) -> ThreadMeta | None:
        return await self._rows.find_one(queries.thread_by_id(thread_id))

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
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.update_thread_meta")
        update = thread_update(
            assistant_id=arguments.optional_text("assistant_id", assistant_id),
            display_name=encode_text("display_name", display_name),
            status=None if status is None else arguments.status_text("status", status),
            metadata=None if metadata is None else _metadata(metadata),
            owner_id=arguments.optional_text("owner_id", owner_id),
        )
        await self._update(query, update, thread_id, "update_thread_meta")

    async def merge_thread_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, user_id: UserId = None, touch: bool = True
    ) -> None:
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.merge_thread_metadata")
        update = metadata_merge_update(_metadata(metadata), touch=arguments.flag("touch", touch))
        await self._update(query, update, thread_id, "merge_thread_metadata")

    async def delete_thread(self, thread_id: str, *, user_id: UserId = None) -> bool:
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.delete_thread")
        return await self._rows.delete_one(query)

    # The methods of its routes.

    async def get_thread(self, thread_id: str, *, user_id: UserId = AUTO) -> ThreadMeta | None:
        query = queries.thread_by_id(thread_id)
        return await self._rows.find_one(queries.owned(query, user_id, "ThreadStore.get_thread"))

    async def ensure_thread(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        user_id: UserId = AUTO,
    ) -> ThreadMeta:
        query = queries.thread_by_id(thread_id)
        user = arguments.acting_user(user_id, "ThreadStore.ensure_thread")
        fields = thread_fields(
            user_id=user,
            assistant_id=arguments.optional_text("assistant_id", assistant_id),
            metadata=_metadata(metadata),
            stamp_us=clock.stamp_us(),
        )
        queries.owned(query, user, "ThreadStore.ensure_thread")
        thread, cause = await self._upsert(query, insert_if_absent_update(fields))
        if thread is None:  # another user's
            raise ThreadAccessError(arguments.identifier("thread_id", thread_id), "use") from cause
        return thread

    async def ensure_thread_running(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ThreadMeta:
        query = queries.thread_by_id(thread_id)
        fields = thread_fields(
            user_id=arguments.optional_text("user_id", bound_user_id("ThreadStore.ensure_thread_running")),
            assistant_id=arguments.optional_text("assistant_id", assistant_id),
            metadata=_metadata(metadata),
            stamp_us=clock.stamp_us(),
        )
        thread, cause = await self._upsert(query, running_update(fields))
        if thread is None:
            raise StorageError(
                f"thread {thread_id!r} was deleted and created by others {_UPSERT_ATTEMPTS} times; try again"
            ) from cause
        return thread

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
        sort = _ORDERS[arguments.one_of("order", order, _ORDERS)]
        query = queries.threads_matching(
            status=status,
            assistant_id=assistant_id,
            metadata_digests=metadata_digests(_metadata(metadata)),
        )
        queries.owned(query, user_id, "ThreadStore.search_threads")
        rows, skipped = arguments.row_limit("limit", limit), arguments.row_limit("offset", offset)
        if rows == 0:
            return []
        return await self._rows.find_page(query, sort=sort, limit=rows, skip=skipped)

    async def _upsert(self, query: Query, update: Update) -> tuple[ThreadMeta | None, BaseException | None]:
        """The thread afterwards; None, and why, where one with this id exists that does not match."""
        cause: BaseException | None = None
        for _ in range(_UPSERT_ATTEMPTS):
            try:
                return await self._rows.find_one_and_upsert(query, update), None
            except DuplicateKeyError as error:
                await self._rows.check_not_newer(query)
                cause = error.__cause__  # it was created meanwhile, or it is another user's
        return None, cause

    async def _update(self, query: Query, update: Update, thread_id: str, operation: str) -> None:
        if not await self._rows.update_one(query, update):
            thread_id = arguments.identifier("thread_id", thread_id)
            logger.warning(
                "%s: there is no thread %r; nothing was changed",
                operation,
                thread_id,
                extra={"operation": operation, "thread_id": thread_id},
            )
