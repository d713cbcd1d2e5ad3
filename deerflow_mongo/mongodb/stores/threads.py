"""Thread metadata: one document per thread, for the host's own methods and for those of its routes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ...contract import arguments
from ...contract.actor import AUTO, UserId, bound_user_id
from ...contract.errors import ThreadAccessError, ThreadExistsError
from ...contract.payloads import to_json_mapping
from ...contract.protocols import ThreadStore
from ...contract.rows import ThreadMeta, ThreadMetaCreate, ThreadOrder
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
from ..drivers.errors import DuplicateKeyError
from ..queries import Query
from ..schema import LAST_UPDATED_FIRST, NEWEST_FIRST, Keys

logger = logging.getLogger(__name__)

_ORDERS: dict[str, Keys] = {"newest_first": NEWEST_FIRST, "last_updated_first": LAST_UPDATED_FIRST}

_ENSURE_ATTEMPTS = 2
"""The second succeeds after a lost race, and fails again when the thread belongs to another user."""


class MongoThreadStore(ThreadStore):
    """`ThreadStore` on MongoDB."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

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
                metadata=to_json_mapping(data.metadata, "metadata"),
                stamp_us=clock.stamp_us(),
            ),
        )
        try:
            await self._collection.insert_one(document)
        except DuplicateKeyError as error:
            raise ThreadExistsError(thread_id) from error.__cause__
        return thread_row(document)

    async def get_thread_meta(self, thread_id: str) -> ThreadMeta | None:
        return await self._find(queries.thread_by_id(thread_id))

    async def update_thread_meta(
        self,
        thread_id: str,
        *,
        assistant_id: str | None = None,
        display_name: str | None = None,
        status: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        user_id: UserId = None,
    ) -> None:
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.update_thread_meta")
        update = thread_update(
            assistant_id=arguments.optional_text("assistant_id", assistant_id),
            display_name=encode_text("display_name", display_name),
            status=None if status is None else arguments.status_text("status", status),
            metadata=None if metadata is None else to_json_mapping(metadata, "metadata"),
        )
        await self._update(query, update, thread_id, "update_thread_meta")

    async def merge_thread_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, user_id: UserId = None
    ) -> None:
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.merge_thread_metadata")
        update = metadata_merge_update(to_json_mapping(metadata, "metadata"))
        await self._update(query, update, thread_id, "merge_thread_metadata")

    async def delete_thread(self, thread_id: str, *, user_id: UserId = None) -> bool:
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.delete_thread")
        return await self._collection.delete_one(query)

    # The methods of its routes.

    async def get_thread(self, thread_id: str, *, user_id: UserId = AUTO) -> ThreadMeta | None:
        query = queries.thread_by_id(thread_id)
        return await self._find(queries.owned(query, user_id, "ThreadStore.get_thread"))

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
            metadata=to_json_mapping(metadata, "metadata"),
            stamp_us=clock.stamp_us(),
        )
        queries.owned(query, user, "ThreadStore.ensure_thread")
        update = insert_if_absent_update(fields)
        cause: BaseException | None = None
        for _ in range(_ENSURE_ATTEMPTS):
            try:
                return thread_row(await self._collection.find_one_and_upsert(query, update))
            except DuplicateKeyError as error:
                cause = (
                    error.__cause__
                )  # another user's thread, or the same user's that was created meanwhile
        raise ThreadAccessError(arguments.identifier("thread_id", thread_id), "use") from cause

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
            metadata=to_json_mapping(metadata, "metadata"),
            stamp_us=clock.stamp_us(),
        )
        return thread_row(await self._collection.find_one_and_upsert(query, running_update(fields)))

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
            metadata_digests=metadata_digests(to_json_mapping(metadata, "metadata")),
        )
        queries.owned(query, user_id, "ThreadStore.search_threads")
        rows, skipped = arguments.row_limit("limit", limit), arguments.row_limit("offset", offset)
        if rows == 0:
            return []
        documents = await self._collection.find(query, sort=sort, limit=rows, skip=skipped)
        return [thread_row(document) for document in documents]

    async def _find(self, query: Query) -> ThreadMeta | None:
        document = await self._collection.find_one(query)
        return None if document is None else thread_row(document)

    async def _update(self, query: Query, update: Update, thread_id: str, operation: str) -> None:
        if not await self._collection.update_one(query, update):
            thread_id = arguments.identifier("thread_id", thread_id)
            logger.warning(
                "%s: there is no thread %r; nothing was changed",
                operation,
                thread_id,
                extra={"operation": operation, "thread_id": thread_id},
            )
