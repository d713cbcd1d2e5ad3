"""The events of one call and one thread until they are stored, and which batches may share a write.

Nothing here talks to the server; when and how a batch is written is in `writer.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from ...contract.errors import StorageError
from ..documents.encoding import Document
from ..documents.run_events import ONCE, SERVER_FIELDS
from ..drivers.errors import copied

MAX_GROUP_EVENTS = 63
"""One less than what a server stores as one unit: a new thread's anchor is stored with its first events."""
MAX_GROUP_BYTES = 256 * 1024


class EventExistsError(Exception):
    """The run has an event of this type that `put_if_absent` stored; internal to the store and its writer."""


class Batch:
    """Events of one call and one thread on their way to the server."""

    __slots__ = (
        "accepted_at",
        "documents",
        "done",
        "last_cause",
        "may_be_stored",
        "now",
        "permit",
        "size_bytes",
    )

    def __init__(
        self,
        documents: list[Document],
        size_bytes: int,
        now: Document,
        permit: asyncio.Future[None] | None = None,
    ) -> None:
        """`now` is the time of events that have none of their own; `permit` is awaited before a write."""
        self.documents = documents
        self.size_bytes = size_bytes
        self.now = now
        self.permit = permit
        self.may_be_stored = False
        self.last_cause: BaseException | None = None
        """The driver's error of the last failed try."""
        self.accepted_at = time.monotonic()
        self.done: asyncio.Future[list[Document]] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        """Raise the error to the caller, as an object of its own: other batches may fail with it too."""
        if not self.done.done():
            self.done.set_exception(copied(error) if isinstance(error, StorageError) else error)
            self.done.exception()  # a caller that was cancelled does not retrieve it

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(self.documents)

    @property
    def is_exclusive(self) -> bool:
        """Whether it must not share a write, because the server may refuse it alone."""
        return ONCE in self.documents[0]

    @property
    def caller_fields(self) -> list[Document]:
        """What the caller passed, to recognise a call that repeats one that failed."""
        return [
            {
                name: value
                for name, value in item.items()
                if name not in SERVER_FIELDS and (name not in self.now or value != self.now[name])
            }
            for item in self.documents
        ]


def next_group(waiting: deque[Batch]) -> list[Batch]:
    """Remove the batches to be written together next from the front; at least one."""
    group = [waiting.popleft()]
    events, size_bytes = len(group[0].documents), group[0].size_bytes
    while waiting and not (group[0].is_exclusive or waiting[0].is_exclusive):
        events, size_bytes = events + len(waiting[0].documents), size_bytes + waiting[0].size_bytes
        if events > MAX_GROUP_EVENTS or size_bytes > MAX_GROUP_BYTES:
            break
        group.append(waiting.popleft())
    return group


def fits_one_unit(group: list[Batch], events: int) -> bool:
    """Whether the server stores these `events` of the group as one unit, which others see all at once."""
    return events == 1 or (
        events <= MAX_GROUP_EVENTS and sum(batch.size_bytes for batch in group) <= MAX_GROUP_BYTES
    )


async def permitted(group: list[Batch]) -> list[Batch]:
    """The batches whose callers still wait and may write; the others fail."""
    for batch in group:
        if batch.permit is not None and not batch.done.done():
            try:
                await batch.permit
            except Exception as error:  # noqa: BLE001 - it is raised to the caller that it concerns
                batch.fail(error)
    return [batch for batch in group if not batch.done.done()]


def unfinished(group: list[Batch]) -> list[Batch]:
    """The batches with documents that are not stored; the others succeed."""
    remaining = [batch for batch in group if any(item["seq"] == 0 for item in batch.documents)]
    for batch in group:
        if batch not in remaining:
            batch.succeed()
    return remaining


def resume_failed(failed: list[Batch], batch: Batch) -> None:
    """Give a call that repeats a failed one the documents of that one, which may be stored already."""
    fields = batch.caller_fields
    for earlier in failed:
        if earlier.caller_fields == fields:
            failed.remove(earlier)
            batch.documents, batch.now, batch.may_be_stored = earlier.documents, earlier.now, True
            return
