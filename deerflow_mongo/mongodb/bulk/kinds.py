"""The kinds of rows that have an id of their own: where they are, and how their documents are compared.

Run events are not among them: they are identified by a thread and a number, and never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...contract.bulk_rows import BulkRow, RowKind
from ..documents import exported_rows
from ..documents.encoding import Document
from ..documents.exported_rows import IMPORTED, ClockReading
from ..documents.feedback import VOTE
from ..documents.stored_times import BELOW_MS, ORDER, ORDER_TIE
from ..documents.threads import IS_PINNED
from ..schema import (
    ACTIVE_OPERATION_INDEX,
    EMAIL_INDEX,
    FEEDBACK,
    IDEMPOTENCY_INDEX,
    OAUTH_INDEX,
    RUNS,
    THREADS,
    USERS,
    VOTE_INDEX,
    Index,
)

EMAIL_TAKEN: Final = "another account has its email"

_UPDATED: Final = ("updated_at", "updated_at" + BELOW_MS)


@dataclass(frozen=True, slots=True)
class IdentifiedKind:
    """A kind of row whose document has the row's id as its `_id`."""

    collection: str
    to_row: Callable[[Document], BulkRow]
    to_document: Callable[[Any, ClockReading], Document]
    compared: tuple[str, ...]
    """Small fields, at least one of which every update of such a document changes."""
    conflicts: tuple[tuple[Index, str], ...] = ()
    """Unique indexes, and why they refuse a row."""

    def reason_of(self, keys: tuple[str, ...] | None) -> str:
        """Why an index with these keys has refused a row; None where the server does not report them."""
        for index, reason in self.conflicts:
            if keys == tuple(name for name, _ in index.keys):
                return reason
        return " or ".join(reason for _, reason in self.conflicts) or "another row has its id"


IDENTIFIED_KINDS: Final[Mapping[RowKind, IdentifiedKind]] = {
    "users": IdentifiedKind(
        USERS,
        exported_rows.exported_user,
        lambda row, _: exported_rows.user_document(row),
        (
            *(IMPORTED, ORDER, "email", "password_hash", "system_role", "oauth_provider", "oauth_id"),
            *("needs_setup", "token_version"),
        ),
        ((EMAIL_INDEX, EMAIL_TAKEN), (OAUTH_INDEX, "another account has its OAuth identity")),
    ),
    "threads": IdentifiedKind(
        THREADS,
        exported_rows.exported_thread,
        lambda row, _: exported_rows.thread_document(row),
        (IMPORTED, *_UPDATED, "metadata_digests", IS_PINNED),
    ),
    "runs": IdentifiedKind(
        RUNS,
        exported_rows.exported_run,
        exported_rows.run_document,
        (IMPORTED, *_UPDATED, "status"),
        (
            (ACTIVE_OPERATION_INDEX, "its thread has another active run or reservation"),
            (IDEMPOTENCY_INDEX, "another run has its idempotency key"),
        ),
    ),
    "feedback": IdentifiedKind(
        FEEDBACK,
        exported_rows.exported_feedback,
        lambda row, _: exported_rows.feedback_document(row),
        (IMPORTED, ORDER, ORDER_TIE, "rating", VOTE),
        ((VOTE_INDEX, "its user has another vote on the run"),),
    ),
}
