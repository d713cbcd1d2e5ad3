"""Thread metadata: the host's own half and its routes' half in one object, one document per thread."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ...contract import arguments
from ...contract.actor import AUTO, UserId, current_user_id
from ...contract.errors import ThreadAccessError, ThreadExistsError
from ...contract.payloads import to_json_mapping
from ...contract.protocols import ThreadStore
from ...contract.rows import ThreadMeta, ThreadMetaCreate, ThreadOrder
from ...contract.times import clock
from .. import codec, queries
from ..codec import Document
from ..documents.stored_times import stored_from_stamp, stored_now
from ..drivers.base import Collection, DuplicateKeyError
from ..schema import LAST_UPDATED_FIRST, NEWEST_FIRST, Keys

logger = logging.getLogger(__name__)

_ENSURE_TRIES = 2
"""The second tells a lost race, which it wins, from a thread of somebody else."""


_ORDERS: dict[str, Keys] = {"newest_first": NEWEST_FIRST, "last_updated_first": LAST_UPDATED_FIRST}


def _new_thread(
    *,
    assistant_id: object = None,
    display_name: object = None,
    status: object = "idle",
    metadata: Mapping[str, Any] | None = None,
) -> Document:
    """A new thread's fields, but for its id and its owner."""
    order = clock.stamp_us()
    created_at = stored_from_stamp(order)
    return {
        "schema_version": codec.SCHEMA_VERSION,
        "assistant_id": arguments.optional_text("assistant_id", assistant_id),
        "display_name": codec.encode_text("display_name", display_name),
        "status": arguments.status_text("status", status),
        **_metadata(metadata),
        "created_at": created_at,
        "updated_at": created_at,
        "order": order,
    }


def _metadata(metadata: Mapping[str, Any] | None) -> Document:
    return codec.thread_metadata(to_json_mapping(metadata, "metadata"))


class MongoThreadStore(ThreadStore):
    """`ThreadStore` on MongoDB."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    # The host's own half.

    async def create_thread_meta(self, data: ThreadMetaCreate) -> ThreadMeta:
        document: Document = {
            **queries.thread_by_id(data.thread_id),
            "user_id": arguments.optional_text("user_id", data.user_id),
            **_new_thread(
                assistant_id=data.assistant_id,
                display_name=data.display_name,
                status=data.status,
                metadata=data.metadata,
            ),
        }
        try:
            await self._collection.insert_one(document)
        except DuplicateKeyError as error:
            raise ThreadExistsError(document["_id"]) from error.__cause__
        return codec.thread_row(document)

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
        changes: Document = {"updated_at": stored_now()}
        if assistant_id is not None:
            changes["assistant_id"] = arguments.optional_text("assistant_id", assistant_id)
        if display_name is not None:
            changes["display_name"] = codec.encode_text("display_name", display_name)
        if status is not None:
            changes["status"] = arguments.status_text("status", status)
        if metadata is not None:
            changes |= _metadata(metadata)
        await self._update(query, {"$set": changes}, "update_thread_meta")

    async def merge_thread_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, user_id: UserId = None
    ) -> None:
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.merge_thread_metadata")
        merged = codec.merged_thread_metadata(to_json_mapping(metadata, "metadata"))
        await self._update(query, [{"$set": {**merged, "updated_at": stored_now()}}], "merge_thread_metadata")

    async def delete_thread(self, thread_id: str, *, user_id: UserId = None) -> bool:
        query = queries.thread_by_id(thread_id)
        queries.owned(query, user_id, "ThreadStore.delete_thread")
        return await self._collection.delete_one(query)

    # The routes' half.

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
        new = _new_thread(assistant_id=assistant_id, metadata=metadata)
        queries.owned(query, user_id, "ThreadStore.ensure_thread")
        if "user_id" not in query:
            new["user_id"] = None
        update = {"$setOnInsert": new}
        for _ in range(_ENSURE_TRIES):
            try:
                return codec.thread_row(await self._collection.find_one_and_upsert(query, update))
            except DuplicateKeyError:
                continue  # somebody else's thread, or the same caller's that was made meanwhile
        raise ThreadAccessError(query["_id"], "use")

    async def ensure_thread_running(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ThreadMeta:
        query = queries.thread_by_id(thread_id)
        new = _new_thread(assistant_id=assistant_id, metadata=metadata)
        new["user_id"] = arguments.optional_text("user_id", current_user_id())
        for name in ("status", "updated_at"):
            del new[name]
        update = {"$set": {"status": "running", "updated_at": stored_now()}, "$setOnInsert": new}
        return codec.thread_row(await self._collection.find_one_and_upsert(query, update))

    async def sync_thread_title(self, *, thread_id: str, title: str) -> None:
        await self.update_thread_meta(thread_id, display_name=title)

    async def sync_thread_assistant_id(self, *, thread_id: str, assistant_id: str) -> None:
        await self.update_thread_meta(thread_id, assistant_id=assistant_id)

    async def sync_thread_status(self, *, thread_id: str, status: str) -> None:
        await self.update_thread_meta(thread_id, status=status)

    async def sync_thread_metadata(self, *, thread_id: str, metadata: Mapping[str, Any]) -> None:
        await self.update_thread_meta(thread_id, metadata=metadata)

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
            metadata_digests=codec.metadata_digests(to_json_mapping(metadata, "metadata")),
        )
        queries.owned(query, user_id, "ThreadStore.search_threads")
        rows, skipped = arguments.row_limit("limit", limit), arguments.row_limit("offset", offset)
        if rows == 0:
            return []
        documents = await self._collection.find(query, sort=sort, limit=rows, skip=skipped)
        return [codec.thread_row(document) for document in documents]

    async def _update(self, query: Document, update: Document | list[Document], operation: str) -> None:
        if not await self._collection.update_one(query, update):
            logger.warning("%s: there is no thread %r; nothing was changed", operation, query["_id"])

    async def _find(self, query: Document) -> ThreadMeta | None:
        document = await self._collection.find_one(query)
        return None if document is None else codec.thread_row(document)
