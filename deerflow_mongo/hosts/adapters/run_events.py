"""DeerFlow's `RunEventStore` over ours.

An event is never refused for its content or metadata: what cannot be stored is truncated or left out, and
logged. See `truncation.py`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ...contract.actor import bound_user_id
from ...contract.arguments import is_valid_id
from ...contract.errors import ArgumentValueError, InvalidPayloadError, PayloadTooLargeError
from ...contract.protocols import RunEventStore
from ...contract.rows import RunEventFields, RunEventRow
from ..deerflow import import_deerflow
from ..encodable import encodable
from .actors import AUTO, acting_as, acting_user
from .counts_by_model import CountsByModel
from .event_ids import FIELD, EventIds
from .truncation import content_text, storable_entries, truncate_text

_base: Any = import_deerflow("deerflow.runtime.events.store.base")

MAX_BYTES: Final[Mapping[str, tuple[int, ...]]] = {
    "content": (4 * 1024 * 1024, 256 * 1024),
    "metadata": (1024 * 1024, 64 * 1024, 0),
}
"""The limits of content and of metadata that was refused: one for each further attempt."""

TRACE: Final = "trace"
"""The default category of an event, and the one whose content is truncated at `max_trace_content`."""

_JSON_MARK: Final[Mapping[str, bool]] = {"content_is_json": True}
_DICT_MARKS: Final[Mapping[str, bool]] = {**_JSON_MARK, "content_is_dict": True}
"""What DeerFlow's SQL has in the metadata of an event whose content is no text."""

_PLACE = re.compile(r"(?:events\[(\d+)\]\.)?(content|metadata)\b")
"""The place that an error names: the event's position in the batch, and which part of it."""

logger = logging.getLogger(__name__)

_Stored = TypeVar("_Stored")


def _row(row: RunEventRow) -> dict[str, Any]:
    """DeerFlow's row, which has a user and no `event_id`, and in its metadata whether its content is JSON."""
    fields: dict[str, Any] = {**row, "user_id": row.get("user_id")}
    fields.pop(FIELD, None)
    content = row["content"]
    if not isinstance(content, str):
        marks = _DICT_MARKS if isinstance(content, dict) else _JSON_MARK
        fields["metadata"] = {**row["metadata"], **marks}
    return encodable(fields)


class RunEventStoreAdapter(_base.RunEventStore):
    """Run events with DeerFlow's names and rows: `user_id` is in every row, None if no user was bound.

    A read or a deletion for a user (`AUTO`, or named) covers that user's events in threads that do not belong
    to somebody else. With None it covers all events.
    """

    def __init__(
        self, events: RunEventStore, counts: CountsByModel | None = None, *, max_trace_content: int = 10240
    ) -> None:
        """`max_trace_content` is the size of a trace's content in bytes; the rest of it is cut off.

        Stored events are added to `counts`, which the adapter of runs stores with a run's completion.
        """
        self._events = events
        self._counts = CountsByModel() if counts is None else counts
        self._max_trace_content = max_trace_content
        self._event_ids = EventIds()

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
        """Store events. An event without the key `user_id` belongs to the bound user, if there is one.

        The same objects may be sent again after an error: each is stored once. Raises `ValueError` for events
        of several threads.
        """
        threads = {str(event["thread_id"]) for event in events}
        if len(threads) > 1:
            raise ArgumentValueError(
                f"put_batch takes the events of one thread, got those of {', '.join(sorted(threads))}"
            )
        user_id = bound_user_id("RunEventStore.put_batch")
        event_ids = self._event_ids.of_batch(events)
        given = [
            self._fields(event, user_id, event_id) for event, event_id in zip(events, event_ids, strict=True)
        ]
        try:
            rows = await _stored_fitting(given, self._events.put_batch)
        except BaseException:  # a cancelled call may have stored them as well
            self._event_ids.failed(events, event_ids)
            raise
        self._event_ids.stored(events)
        self._counts.add(events)
        return [_row(row) for row in rows]

    async def put_if_absent(
        self,
        *,
        thread_id: str,
        run_id: str,
        event_type: str,
        category: str,
        content: Any = "",
        metadata: Mapping[str, Any] | None = None,
        created_at: str | None = None,
    ) -> tuple[dict[str, Any], bool]:
        """Store the event unless its run has one of this type; the run's event, and whether it is new."""
        event = {
            "thread_id": thread_id,
            "run_id": run_id,
            "event_type": event_type,
            "category": category,
            "content": content,
            "metadata": metadata,
            "created_at": created_at,
        }
        given = self._fields(event, bound_user_id("RunEventStore.put_if_absent"), None)
        row, is_new = await _stored_fitting([given], lambda fields: self._events.put_if_absent(**fields[0]))
        if is_new:
            self._counts.add([event])
        return _row(row), is_new

    def _fields(self, event: Mapping[str, Any], bound: str | None, event_id: str | None) -> RunEventFields:
        user_id = event.get("user_id", bound)
        content, category = event.get("content", ""), event.get("category", TRACE)
        fields: RunEventFields = {
            "thread_id": event["thread_id"],
            "run_id": event["run_id"],
            "event_type": encodable(event["event_type"]),
            "category": encodable(category),
            "content": content,
            "metadata": event.get("metadata") or {},
            "created_at": event.get("created_at") or None,
            "user_id": None if user_id is None else str(user_id),
            "event_id": event_id,
        }
        if category == TRACE:
            text, marks = truncate_text(content_text(content), self._max_trace_content)
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
        if not is_valid_id(thread_id):
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
        task_id: str | None = None,
        limit: int = 500,
        after_seq: int | None = None,
        user_id: Any = AUTO,
    ) -> list[dict[str, Any]]:
        """A run's events in rising order. An empty `event_types` means all types, as in DeerFlow's SQL."""
        user = acting_user(user_id, "RunEventStore.list_events")
        if not is_valid_id(thread_id, run_id) or (task_id and not is_valid_id(task_id)):
            return []
        types = [name for name in event_types if is_valid_id(name)] if event_types else None
        with acting_as(user):
            rows = await self._events.list_events(
                thread_id,
                run_id,
                event_types=types,
                task_id=task_id,
                limit=limit,
                after_seq=after_seq,
                user_id=user,
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
        if not is_valid_id(thread_id, run_id):
            return []
        with acting_as(user):
            rows = await self._events.list_messages_by_run(
                thread_id, run_id, limit=limit, before_seq=before_seq, after_seq=after_seq, user_id=user
            )
        return [_row(row) for row in rows]

    async def get_last_visible_ai_seq_by_run(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: Any = AUTO
    ) -> dict[str, int]:
        wanted = {run_id for run_id in run_ids if is_valid_id(run_id)}
        if not wanted:
            return {}
        user = acting_user(user_id, "RunEventStore.get_last_visible_ai_seq_by_run")
        if not is_valid_id(thread_id):
            return {}
        with acting_as(user):
            return await self._events.get_last_visible_ai_seq_by_run(thread_id, wanted, user_id=user)

    async def count_messages(self, thread_id: str, *, user_id: Any = AUTO) -> int:
        user = acting_user(user_id, "RunEventStore.count_messages")
        if not is_valid_id(thread_id):
            return 0
        with acting_as(user):
            return await self._events.count_messages(thread_id, user_id=user)

    # Deleting.

    async def delete_by_thread(self, thread_id: str, *, user_id: Any = AUTO) -> int:
        user = acting_user(user_id, "RunEventStore.delete_by_thread")
        if not is_valid_id(thread_id):
            return 0
        with acting_as(user):
            return await self._events.delete_by_thread(thread_id, user_id=user)

    async def delete_by_run(self, thread_id: str, run_id: str, *, user_id: Any = AUTO) -> int:
        user = acting_user(user_id, "RunEventStore.delete_by_run")
        if not is_valid_id(thread_id, run_id):
            return 0
        with acting_as(user):
            return await self._events.delete_by_run(thread_id, run_id, user_id=user)


async def _stored_fitting(
    given: list[RunEventFields], store: Callable[[list[RunEventFields]], Awaitable[_Stored]]
) -> _Stored:
    """The result of storing the events, truncating what the backend refuses until it takes it."""
    fields, refusals = list(given), [Counter[str]() for _ in given]
    while True:
        try:
            return await store(fields)
        except (InvalidPayloadError, PayloadTooLargeError) as error:
            place = _PLACE.match(error.field)
            if place is None:
                raise
            position, part = int(place[1] or 0), place[2]
            refusals[position][part] += 1
            if refusals[position][part] > len(MAX_BYTES[part]):
                raise
            _log_truncation(given[position], error)
            fields[position] = _truncated(given[position], refusals[position])


def _log_truncation(event: RunEventFields, error: Exception) -> None:
    event_type, run_id, thread_id = event["event_type"], event["run_id"], event["thread_id"]
    logger.warning(
        "event %r of run %r is stored truncated: %s",
        event_type,
        run_id,
        error,
        extra={"event_type": event_type, "run_id": run_id, "thread_id": thread_id},
    )


def _truncated(given: RunEventFields, refusals: Mapping[str, int]) -> RunEventFields:
    """The event with its content as a text that fits, and with those of its metadata that can be stored.

    `refusals` says how often each of the two was refused; what never was stays as it is.
    """
    content, metadata = given.get("content"), given.get("metadata") or {}
    if refusals["metadata"]:
        max_bytes = MAX_BYTES["metadata"][refusals["metadata"] - 1]
        metadata = {**storable_entries(metadata, max_bytes), "metadata_truncated": True}
    if refusals["content"]:
        max_bytes = MAX_BYTES["content"][refusals["content"] - 1]
        content, marks = truncate_text(content_text(content), max_bytes)
        metadata = {**metadata, **marks}
    return {**given, "content": content, "metadata": metadata}
