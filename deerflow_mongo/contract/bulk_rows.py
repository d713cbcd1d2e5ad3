"""All rows of a storage in bulk: exported in the order of their keys, and imported exactly as they are.

For moving data between backends and databases, and for backups that any backend can read. Not for a host's
own work: no owner is asked, and an imported row has the times, counts and numbers that it came with.
Checkpoints are not rows; LangGraph's saver reads and writes them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NotRequired, Protocol, TypeAlias, TypedDict, runtime_checkable

from .rows import FeedbackRow, JSONValue, RunEventRow, RunRow, ThreadMeta, UserRow

RowKind: TypeAlias = Literal["users", "threads", "runs", "feedback", "run_events", "event_numbers"]
ROW_KINDS: tuple[RowKind, ...] = ("users", "threads", "runs", "feedback", "run_events", "event_numbers")
"""In the order in which they are exported and imported."""


class ThreadRow(TypedDict):
    """`ThreadMeta` as a row; both times are ISO-8601 text in UTC."""

    thread_id: str
    assistant_id: str | None
    user_id: str | None
    display_name: str | None
    status: str
    metadata: dict[str, JSONValue]
    created_time: str
    updated_time: str


class ExportedRunRow(RunRow):
    """A `RunRow` whose `token_usage_by_model` is always present, with each model's `llm_calls`.

    The other keys of `OwnedRunRow` are all present, or none of them, as in a `RunRow`.
    """


class ExportedFeedbackRow(FeedbackRow):
    """`is_vote` marks the one row of its user that `feedback.upsert` replaces."""

    is_vote: bool


class ExportedRunEventRow(RunEventRow):
    """`once` is present, and true, on an event that `put_if_absent` stored."""

    once: NotRequired[bool]


class EventNumbersRow(TypedDict):
    """Where the event numbers of a thread continue: no number below `next_seq` is given again.

    Only threads whose last events were deleted have such a row; elsewhere the last event decides.
    """

    thread_id: str
    next_seq: int


BulkRow: TypeAlias = (
    UserRow | ThreadRow | ExportedRunRow | ExportedFeedbackRow | ExportedRunEventRow | EventNumbersRow
)

KEYS: Mapping[RowKind, tuple[str, ...]] = {
    "users": ("user_id",),
    "threads": ("thread_id",),
    "runs": ("run_id",),
    "feedback": ("feedback_id",),
    "run_events": ("thread_id", "seq"),
    "event_numbers": ("thread_id",),
}
"""What identifies a row of each kind, and the order in which rows are exported (text by its UTF-8 bytes)."""

Key: TypeAlias = tuple[str | int, ...]


def key_order(key: Key) -> tuple[bytes | int, ...]:
    """What sorts keys as rows are exported: text by its UTF-8 bytes."""
    return tuple(part.encode(errors="surrogatepass") if isinstance(part, str) else part for part in key)


def thread_row_of(thread: ThreadMeta) -> ThreadRow:
    return {
        "thread_id": thread.thread_id,
        "assistant_id": thread.assistant_id,
        "user_id": thread.user_id,
        "display_name": thread.display_name,
        "status": thread.status,
        "metadata": thread.metadata,
        "created_time": thread.created_time.isoformat(),
        "updated_time": thread.updated_time.isoformat(),
    }


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that was not stored, and why: it is malformed or too large, or its email or number is taken."""

    key: Key
    """As far as the row has one: what is no text or number of it is given as text."""
    reason: str
    is_conflict: bool = False
    """Whether another row is in the way: once that one is replaced or deleted, this one can be imported."""


@dataclass(slots=True)
class Imported:
    """What became of the rows of one call; each row is in exactly one of the counts or lists."""

    stored: int = 0
    """New here."""
    replaced: int = 0
    """Stored by an earlier import, not changed here since, and different now; or replaced by `overwrite`."""
    unchanged: int = 0
    """Here already, and equal."""
    changed_here: list[Key] = field(default_factory=list[Key])
    """Here, different, and changed here since an earlier import, or not stored by one; they stay as is.

    Among them are events that were deleted here, as long as their numbers are occupied.
    """
    refused: list[RefusedRow] = field(default_factory=list["RefusedRow"])

    @property
    def rows(self) -> int:
        """All rows of the call."""
        counted = self.stored + self.replaced + self.unchanged
        return counted + len(self.changed_here) + len(self.refused)

    def add(self, other: Imported) -> None:
        """Add what became of other rows."""
        self.stored += other.stored
        self.replaced += other.replaced
        self.unchanged += other.unchanged
        self.changed_here += other.changed_here
        self.refused += other.refused


@runtime_checkable
class BulkRows(Protocol):
    """A storage whose rows can be exported and imported in bulk."""

    def export_rows(
        self, kind: RowKind, *, after: Key | None = None, batch_size: int = 1_000
    ) -> AsyncGenerator[Sequence[BulkRow]]:
        """All rows of this kind behind the key `after`, in rising order of their key, in batches.

        Memory is bounded by a batch. A row that is written meanwhile may be missing or present. A stored row
        that cannot be read raises `CorruptDocumentError`, since an export without it would not be complete.
        """
        ...

    async def import_rows(
        self, kind: RowKind, rows: Sequence[BulkRow], *, overwrite: bool = False
    ) -> Imported:
        """Store these rows exactly as they are. Repeating a call changes nothing.

        Rows may be in any order, but those of several calls best in the order of their keys: an event is
        visible to followers of its thread only where it is imported before those of higher numbers.
        A row that was changed here since its import stays as it is, unless `overwrite` is true. What is wrong
        with one row does not stop the others: it is in `refused`. An event is never replaced. Any number of
        imports may run at once, and beside writers. An unknown key makes a row malformed, so that nothing is
        dropped in silence. Raises `ArgumentTypeError` where `rows` is no sequence of mappings.
        """
        ...
