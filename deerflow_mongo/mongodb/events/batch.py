"""The events of one call and one thread until they are stored, and which of them may share a write.

Nothing here talks to the server; when and how a batch is written is in `writer.py`.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Iterable, Iterator

from ...contract.errors import StorageError
from ..documents.encoding import Document
from ..documents.run_events import ONCE
from ..drivers.errors import copied, with_cause
from ..observation import current_operation

MAX_UNIT_EVENTS = 63
"""One less than what a server stores as one unit: a new thread's anchor is stored with its first events."""
MAX_UNIT_BYTES = 256 * 1024

MAX_PART_EVENTS = 1_000
MAX_PART_BYTES = 4 * 1024 * 1024
"""What one insert of a larger batch has at most, unless a single event is larger.

Such an insert takes a server about 0.1 s, far from any timeout, and fits into one message (48 MB).
"""


class EventExistsError(Exception):
    """The run has an event of the type of a `put_if_absent`; internal to the store and its writer."""

    def __init__(self, document: Document) -> None:
        """`document` is that event."""
        super().__init__()
        self.document = document


class Batch:
    """Events of one call and one thread on their way to the server.

    An event without a number (`seq` 0) is not stored yet. One that repeats the `event_id` of a stored event
    is replaced by that event's document.
    """

    __slots__ = (
        "accepted_at",
        "documents",
        "done",
        "has_event_ids",
        "last_cause",
        "may_be_stored",
        "operation",
        "permit",
        "size_bytes",
        "sizes",
    )

    def __init__(
        self, documents: list[Document], sizes: list[int], permit: asyncio.Future[None] | None = None
    ) -> None:
        """`sizes` are those of the documents in bytes; `permit` is awaited before a write."""
        self.documents = documents
        self.sizes = sizes
        self.size_bytes = sum(sizes)
        self.permit = permit
        self.has_event_ids = any("event_id" in item for item in documents)
        self.may_be_stored = False
        self.last_cause: BaseException | None = None
        """The driver's error of the last failed try."""
        self.operation = current_operation.get()
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
    def has_failed(self) -> bool:
        return self.done.done() and not self.done.cancelled() and self.done.exception() is not None

    @property
    def is_exclusive(self) -> bool:
        """Whether it must not share a write, because the server may refuse it alone."""
        return ONCE in self.documents[0]

    @property
    def is_large(self) -> bool:
        """Whether it is more than one unit, and therefore written in parts."""
        events = len(self.documents)
        return events > MAX_UNIT_EVENTS or (events > 1 and self.size_bytes > MAX_UNIT_BYTES)

    @property
    def is_stored(self) -> bool:
        return all(item["seq"] for item in self.documents)

    def parts(self) -> Iterator[Part]:
        """The batch in its order, each part small enough for one insert; created when they are needed."""
        start, size_bytes = 0, 0
        for stop, size in enumerate(self.sizes):
            if stop - start == MAX_PART_EVENTS or (stop > start and size_bytes + size > MAX_PART_BYTES):
                yield Part(self, start, stop)
                start, size_bytes = stop, 0
            size_bytes += size
        yield Part(self, start, len(self.sizes))


class Part(Batch):
    """Some of the events of a larger batch, which fails with the first part that does."""

    __slots__ = ("_whole", "start")

    def __init__(self, whole: Batch, start: int, stop: int) -> None:
        super().__init__(whole.documents[start:stop], whole.sizes[start:stop])
        self._whole = whole
        self.start = start

    def fail(self, error: Exception) -> None:
        super().fail(error)
        if isinstance(error, StorageError):
            events = len(self._whole.documents)
            error = with_note(error, f"a first part may be stored, at least {self.start} of {events} events")
        self._whole.fail(error)


def with_note(error: StorageError, note: str) -> StorageError:
    """A copy of the error whose text ends with the note."""
    noted = copy.copy(error)
    noted.args = (f"{error}; {note}",)
    return with_cause(noted, error.__cause__)


def next_group(waiting: deque[Batch]) -> list[Batch]:
    """Remove the batches to be written together next from the front; at least one."""
    group = [waiting.popleft()]
    events, size_bytes = len(group[0].documents), group[0].size_bytes
    while waiting and not (group[0].is_exclusive or waiting[0].is_exclusive):
        events, size_bytes = events + len(waiting[0].documents), size_bytes + waiting[0].size_bytes
        if events > MAX_UNIT_EVENTS or size_bytes > MAX_UNIT_BYTES:
            break
        group.append(waiting.popleft())
    return group


async def permitted(group: list[Batch]) -> list[Batch]:
    """The batches whose callers still wait and may write; the others fail."""
    for batch in group:
        if batch.permit is not None and not batch.done.done():
            try:
                await batch.permit
            except asyncio.CancelledError:
                if not batch.permit.cancelled():
                    raise  # it is the writer that was cancelled
                batch.fail(StorageError("the check of the access to the thread was cancelled"))
            except Exception as error:  # noqa: BLE001 - it is raised to the caller that it concerns
                batch.fail(error)
    return [batch for batch in group if not batch.done.done()]


def not_stored(group: list[Batch]) -> list[Document]:
    """The documents to be inserted next, in order; one of each `event_id`."""
    documents = [item for batch in group for item in batch.documents if item["seq"] == 0]
    if not any(batch.has_event_ids for batch in group):
        return documents
    seen: set[str] = set()
    first: list[Document] = []
    for item in documents:
        event_id = item.get("event_id")
        if event_id is None or event_id not in seen:
            first.append(item)
        if event_id is not None:
            seen.add(event_id)
    return first


def event_id_places(group: list[Batch]) -> dict[str, list[tuple[Batch, int]]]:
    """Where in the group's batches events with an `event_id` stand that are not stored, by that id."""
    places: dict[str, list[tuple[Batch, int]]] = {}
    for batch in group:
        if batch.has_event_ids:
            for position, item in enumerate(batch.documents):
                if item["seq"] == 0 and "event_id" in item:
                    places.setdefault(item["event_id"], []).append((batch, position))
    return places


def replace_repeated(group: list[Batch], stored: Iterable[Document]) -> None:
    """Replace the events that repeat the `event_id` of a stored one."""
    places = event_id_places(group)
    if places:
        for document in stored:
            for batch, position in places.get(document.get("event_id", ""), ()):
                batch.documents[position] = copy.deepcopy(document)  # rows share no values


def unfinished(group: list[Batch]) -> list[Batch]:
    """The batches with documents that are not stored; the others succeed."""
    if any(batch.has_event_ids for batch in group):
        replace_repeated(group, [item for batch in group for item in batch.documents if item["seq"]])
    remaining = [batch for batch in group if not batch.is_stored]
    for batch in group:
        if batch not in remaining:
            batch.succeed()
    return remaining
