"""Exported row <-> document: what the stores would have written, with the times and counts of the row.

The rows are in the canonical form of `contract/checked_rows.py`. What differs from the document that was
exported: `order_tie` and a lease's renewal are of the import, an event has a new `_id` and `stored_at`, and
all but events have the digest of the row that was imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from ...contract.bulk_rows import (
    BulkRow,
    ExportedFeedbackRow,
    ExportedRunEventRow,
    ExportedRunRow,
    ThreadRow,
    thread_row_of,
)
from ...contract.row_digests import DIGEST_BYTES, row_digest
from ...contract.rows import AccountFields, UserRow
from ...contract.run_event_fields import CheckedRunEvent
from ...contract.times import clock
from .encoding import Document, encode_mapping, encode_text
from .feedback import VOTE, feedback_row, new_feedback
from .run_events import ONCE, encoded_event, event_row
from .run_ownership import KIND, LEASE_RENEWED_AT, counts_with_calls, lease_fields, ownership_fields
from .runs import COUNT_PATHS, counts_by_model, duration_ms, new_run, run_row
from .stored_times import ORDER, date_of, stamp_of, time_fields
from .threads import new_thread, thread_fields, thread_row
from .users import new_user, user_row

IMPORTED: Final = "imported"
"""The digest of the row that an import has stored: nothing has changed while the document's row has it."""


class ClockReading(NamedTuple):
    """The same moment on two clocks, as stamps: a lease is judged on the server's."""

    own_us: int
    server_us: int


# -- rows ------------------------------------------------------------------------------------------


def exported_user(document: Document) -> UserRow:
    return user_row(document)


def exported_thread(document: Document) -> ThreadRow:
    return thread_row_of(thread_row(document))


def exported_run(document: Document) -> ExportedRunRow:
    row = {**run_row(document), "token_usage_by_model": counts_with_calls(document["tokens"]["by_model"])}
    return cast("ExportedRunRow", row)


def exported_feedback(document: Document) -> ExportedFeedbackRow:
    return {**feedback_row(document), "is_vote": VOTE in document}


def exported_event(document: Document) -> ExportedRunEventRow:
    row = event_row(document)
    return {**row, "once": True} if ONCE in document else cast("ExportedRunEventRow", row)


# -- documents -------------------------------------------------------------------------------------


def imported(document: Document, row: BulkRow) -> Document:
    """The document, marked as imported from this row."""
    return {**document, IMPORTED: _stored_digest(row)}


def is_as_imported(document: Document, row: BulkRow) -> bool:
    """Whether a stored document, of which `row` is the row, has not changed since it was imported."""
    return document.get(IMPORTED) == bytes(_stored_digest(row))  # the driver returns no `Binary`


def _stored_digest(row: BulkRow) -> bytes:
    return row_digest(row).to_bytes(DIGEST_BYTES, "big")


def user_document(row: UserRow) -> Document:
    fields = {name: value for name, value in row.items() if name not in ("user_id", "created_at")}
    created_us = _stamp(row["created_at"])
    return new_user(row["user_id"], cast("AccountFields", fields), created_us, email=row["email"])


def thread_document(row: ThreadRow) -> Document:
    fields = thread_fields(
        user_id=row["user_id"],
        assistant_id=row["assistant_id"],
        metadata=row["metadata"],
        stamp_us=_stamp(row["created_time"]),
        display_name=encode_text("display_name", row["display_name"]),
        status=row["status"],
        updated_stamp_us=_stamp(row["updated_time"]),
    )
    return new_thread(row["thread_id"], fields)


def run_document(row: ExportedRunRow, now: ClockReading) -> Document:
    started_us, ended_us = _optional_stamp(row["started_at"]), _optional_stamp(row["ended_at"])
    updated_us = _stamp(row["updated_at"]) if row["updated_at"] else None
    document = new_run(
        run_id=row["run_id"],
        thread_id=row["thread_id"],
        user_id=row["user_id"],
        assistant_id=row["assistant_id"],
        status=row["status"],
        model_name=row["model_name"],
        multitask_strategy=row["multitask_strategy"],
        follow_up_to_run_id=row["follow_up_to_run_id"],
        metadata=encode_mapping(row["metadata"]),
        kwargs=encode_mapping(row["kwargs"]),
        created_stamp_us=_stamp(row["created_at"]),
        started_stamp_us=started_us,
        ended_stamp_us=ended_us,
        error=row["error"],
        stamp_us=clock.stamp_us(),
    )
    # Without an `ended_at` a run has ended with the update that set its status, by all that its row has.
    end_us = updated_us if ended_us is None else ended_us
    document |= {
        **time_fields("updated_at", updated_us),
        "duration_ms": duration_ms(row["status"], document[ORDER], started_us, end_us),
        "first_human_message": encode_text("first_human_message", row["first_human_message"]),
        "last_ai_message": encode_text("last_ai_message", row["last_ai_message"]),
    }
    for name, path in COUNT_PATHS.items():
        _set(document, path, cast("Mapping[str, int]", row)[name])
    document["tokens"]["by_model"] = counts_by_model(row.get("token_usage_by_model", {}))
    return document | _ownership(cast("Mapping[str, Any]", row), now) if KIND in row else document


def _ownership(row: Mapping[str, Any], now: ClockReading) -> Document:
    expires_us = _optional_stamp(row["lease_expires_at"])
    lease = lease_fields(expires_us, now.own_us)
    if expires_us is not None:
        lease[LEASE_RENEWED_AT] = date_of(now.server_us)
    return ownership_fields(
        operation_kind=row["operation_kind"],
        stop_reason=row["stop_reason"],
        owner_worker_id=row["owner_worker_id"],
        lease=lease,
        cancel_action=row["cancel_action"],
        cancel_requested_us=_optional_stamp(row["cancel_requested_at"]),
        idempotency_key=row["idempotency_key"],
    )


def feedback_document(row: ExportedFeedbackRow) -> Document:
    return new_feedback(
        feedback_id=row["feedback_id"],
        thread_id=row["thread_id"],
        run_id=row["run_id"],
        user_id=row["user_id"],
        message_id=row["message_id"],
        rating=row["rating"],
        comment=encode_text("comment", row["comment"]),
        created_stamp_us=_stamp(row["created_at"]),
        stamp_us=clock.stamp_us(),
        is_vote=row["is_vote"],
    )


def event_document(row: ExportedRunEventRow) -> Document:
    """An event with its number, and without the time at which it is stored."""
    event = CheckedRunEvent(
        thread_id=row["thread_id"],
        run_id=row["run_id"],
        event_type=row["event_type"],
        category=row["category"],
        content=row["content"],
        metadata=row["metadata"],
        created_at=datetime.fromisoformat(row["created_at"]),
        user_id=row.get("user_id"),
        event_id=row.get("event_id"),
    )
    document = {**encoded_event(event, {}), "seq": row["seq"]}
    return {**document, ONCE: True} if "once" in row else document


def _set(document: Document, path: str, value: object) -> None:
    *steps, last = path.split(".")
    for step in steps:
        document = document[step]
    document[last] = value


def _stamp(time: str) -> int:
    return stamp_of(datetime.fromisoformat(time))


def _optional_stamp(time: str | None) -> int | None:
    return None if time is None else _stamp(time)
