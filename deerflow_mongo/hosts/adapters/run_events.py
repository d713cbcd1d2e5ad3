"""DeerFlow's `RunEventStore` over ours.

An event is never refused for its content or metadata: what no document can hold is cut or left out, and the
log says so. See `truncation.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...contract.actor import current_user_id
from ...contract.errors import InvalidPayloadError, PayloadTooLargeError
from ...contract.rows import RunEventFields, RunEventRow
from ...mongodb.events.store import MongoRunEventStore
from ..gateway import host
from .actors import AUTO, acting_as, acting_user, can_be_stored
from .truncation import cut_text, storable_part, text_of

_base: Any = host("deerflow.runtime.events.store.base")

MAX_CONTENT_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 1024 * 1024
"""What is kept of a content or of metadata that a document cannot hold."""

TRACE = "trace"
"""The category of an event that is given none, and of those whose content is kept short."""

_PART = re.compile(r"(?:events\[(\d+)\]\.)?(content|metadata)\b")

logger = logging.getLogger(__name__)


def _row(row: RunEventRow) -> dict[str, Any]:
    return {**row, "user_id": row.get("user_id")}


class RunEventStoreAdapter(_base.RunEventStore):
    """Run events with DeerFlow's names and rows: `user_id` is in every row, None where none was bound.

    A read or a deletion for a user (`AUTO`, or named) finds that user's events, in threads that are not
    somebody else's. With None it finds all.
    """

    def __init__(self, events: MongoRunEventStore, *, max_trace_content: int = 10240) -> None:
        """Of a trace's content, `max_trace_content` bytes are kept."""
        self._events = events
        self._max_trace_content = max_trace_content

    # Writing.

    async def put(
        self,
        *,
        thread_id: str,
        run_id: str,
        event_type: str,
        category: str,
        content: Any = "",
        metadata: Mapping[str, Any] | None = None,
        created_at: str | None = None,
    ) -> dict[str, Any]:
        [row] = await self.put_batch(
            [
                {
                    "thread_id": thread_id,
                    "run_id": run_id,
                    "event_type": event_type,
                    "category": category,
                    "content": content,
                    "metadata": metadata,
                    "created_at": created_at,
                }
            ]
        )
        return row

    async def put_batch(self, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Store these. An event's own `user_id` is kept; one without the key is the bound user's, if any."""
        user_id = current_user_id()
        fields = [self._fields(event, user_id) for event in events]
        mended: set[tuple[int, str]] = set()
        while True:
            try:
                return [_row(row) for row in await self._events.put_batch(fields)]
            except (InvalidPayloadError, PayloadTooLargeError) as error:
                place = _PART.match(error.field)
                if place is None:
                    raise
                position, part = int(place[1] or 0), place[2]
                if (position, part) in mended:
                    raise
                mended.add((position, part))
                fields[position] = _mended(fields[position], part, error)

    def _fields(self, event: Mapping[str, Any], bound: str | None) -> RunEventFields:
        user_id = event.get("user_id", bound)
        content, category = event.get("content", ""), event.get("category", TRACE)
        fields: RunEventFields = {
            "thread_id": event["thread_id"],
            "run_id": event["run_id"],
            "event_type": event["event_type"],
            "category": category,
            "content": content,
            "metadata": event.get("metadata") or {},
            "created_at": event.get("created_at") or None,
            "user_id": None if user_id is None else str(user_id),
        }
        if category == TRACE:
            text, marks = cut_text(text_of(content), self._max_trace_content)
            if marks:
                fields["content"] = text
                fields["metadata"] = {**(event.get("metadata") or {}), **marks}
        return fields

    # Reading.

    async def list_messages(
        self,
        thread_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: Any = AUTO,
    ) -> list[dict[str, Any]]:
        user = acting_user(user_id, "RunEventStore.list_messages")
        if not can_be_stored(thread_id):
            return []
        with acting_as(user):
            rows = await self._events.list_messages(
                thread_id, limit=limit, before_seq=before_seq, after_seq=after_seq, user_id=user
            )
        return [_row(row) for row in rows]

    async def list_events(
        self,
        thread_id: str,
        run_id: str,
        *,
        event_types: Sequence[str] | None = None,
        limit: int = 500,
        user_id: Any = AUTO,
    ) -> list[dict[str, Any]]:
        """A run's events in rising order; no types are all types, as DeerFlow's SQL has it."""
        user = acting_user(user_id, "RunEventStore.list_events")
        if not can_be_stored(thread_id, run_id):
            return []
        types = [name for name in event_types if can_be_stored(name)] if event_types else None
        with acting_as(user):
            rows = await self._events.list_events(
                thread_id, run_id, event_types=types, limit=limit, user_id=user
            )
        return [_row(row) for row in rows]

    async def list_messages_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: Any = AUTO,
    ) -> list[dict[str, Any]]:
        user = acting_user(user_id, "RunEventStore.list_messages_by_run")
        if not can_be_stored(thread_id, run_id):
            return []
        with acting_as(user):
            rows = await self._events.list_messages_by_run(
                thread_id, run_id, limit=limit, before_seq=before_seq, after_seq=after_seq, user_id=user
            )
        return [_row(row) for row in rows]

    async def count_messages(self, thread_id: str, *, user_id: Any = AUTO) -> int:
        user = acting_user(user_id, "RunEventStore.count_messages")
        if not can_be_stored(thread_id):
            return 0
        with acting_as(user):
            return await self._events.count_messages(thread_id, user_id=user)

    # Deleting.

    async def delete_by_thread(self, thread_id: str, *, user_id: Any = AUTO) -> int:
        user = acting_user(user_id, "RunEventStore.delete_by_thread")
        if not can_be_stored(thread_id):
            return 0
        with acting_as(user):
            return await self._events.delete_by_thread(thread_id, user_id=user)

    async def delete_by_run(self, thread_id: str, run_id: str, *, user_id: Any = AUTO) -> int:
        user = acting_user(user_id, "RunEventStore.delete_by_run")
        if not can_be_stored(thread_id, run_id):
            return 0
        with acting_as(user):
            return await self._events.delete_by_run(thread_id, run_id, user_id=user)


def _mended(event: RunEventFields, part: str, error: Exception) -> RunEventFields:
    """`event` with its content as text that fits, or with those of its metadata that can be stored."""
    logger.warning(
        "an event %r of run %r is stored as far as it can be: %s",
        event.get("event_type"),
        event.get("run_id"),
        error,
    )
    metadata = event.get("metadata") or {}
    if part == "metadata":
        return {
            **event,
            "metadata": {**storable_part(metadata, MAX_METADATA_BYTES), "metadata_truncated": True},
        }
    text, marks = cut_text(text_of(event.get("content")), MAX_CONTENT_BYTES)
    return {**event, "content": text, "metadata": {**metadata, **marks}}
