"""The summary of a row: its small values, and how long its texts are, from a projection of its document.

A transfer compares summaries to find out which rows it must read whole. What a summary leaves out (payloads,
and the content of long texts) changes here only together with one of its fields: every update of a run or
thread sets `updated_at` or the digests of the metadata, and every vote sets its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, cast

from ...contract.bulk_rows import RowKind
from ...contract.rows import JSONValue
from .digests import metadata_digests
from .encoding import Document, UnreadableError, decode_text
from .feedback import VOTE
from .run_ownership import (
    CANCEL_ACTION,
    CANCEL_REQUESTED_AT,
    IDEMPOTENCY_KEY,
    KIND,
    LEASE_EXPIRES_AT,
    OWNER,
    STOP_REASON,
)
from .runs import COUNT_PATHS
from .stored_times import BELOW_MS, ORDER, row_time, row_time_of_stamp
from .versions import SCHEMA_VERSION

RowSummary: TypeAlias = tuple[Any, ...]
"""The values of `SUMMARY_FIELDS`, the lengths of `SUMMARY_TEXTS`, and the digests of a thread's metadata."""

SUMMARY_FIELDS: Final[Mapping[RowKind, tuple[str, ...]]] = {
    "users": (
        *("email", "password_hash", "system_role", "created_at", "oauth_provider", "oauth_id"),
        *("needs_setup", "token_version"),
    ),
    "threads": ("assistant_id", "user_id", "display_name", "status", "created_time", "updated_time"),
    "runs": (
        *("thread_id", "assistant_id", "user_id", "status", "model_name", "multitask_strategy"),
        *("follow_up_to_run_id", "created_at", "updated_at", *COUNT_PATHS),
        *(KIND, STOP_REASON, OWNER, LEASE_EXPIRES_AT, CANCEL_ACTION, CANCEL_REQUESTED_AT, IDEMPOTENCY_KEY),
    ),
    "feedback": ("thread_id", "run_id", "user_id", "message_id", "rating", "created_at", "is_vote"),
}
"""The fields of a row, named as in the row, that are compared as they are; of an account all but the id."""

SUMMARY_TEXTS: Final[Mapping[RowKind, tuple[str, ...]]] = {
    "users": (),
    "threads": (),
    "runs": ("error", "first_human_message", "last_ai_message"),
    "feedback": ("comment",),
}
"""The texts of a row whose length is compared, in bytes of UTF-8; None for none."""

DIGESTED: Final[Mapping[RowKind, str]] = {"threads": "metadata"}
"""The payload of a row that is compared by its digests, since DeerFlow changes it without setting a time."""

_ABSENT: Final = object()


def summary_of_row(kind: RowKind, row: Mapping[str, Any]) -> RowSummary:
    """The summary of an exported row, or of the part of one that a summary needs.

    The texts of `SUMMARY_TEXTS` are replaced by their lengths already.
    """
    values = [row.get(name, _ABSENT) for name in (*SUMMARY_FIELDS[kind], *SUMMARY_TEXTS[kind])]
    if kind in DIGESTED:
        values.append(_digests(metadata_digests(cast("Mapping[str, JSONValue]", row[DIGESTED[kind]]))))
    return tuple(values)


def _digests(digests: Iterable[str]) -> frozenset[str]:
    return frozenset(digests)


# -- documents -------------------------------------------------------------------------------------


def _length(name: str) -> Document:
    """The bytes of a text; -1 for one that is stored as marked JSON, which equals no length."""
    is_plain = {"$in": [{"$type": f"${name}"}, ["string", "null"]]}
    return {"$cond": [is_plain, {"$binarySize": f"${name}"}, -1]}


def _projection(*names: str, texts: Iterable[str] = ()) -> Document:
    return {"schema_version": 1, **dict.fromkeys(names, 1), **{name: _length(name) for name in texts}}


_TIMES: Final = ("updated_at", "updated_at" + BELOW_MS)
_LEASE: Final = (LEASE_EXPIRES_AT, LEASE_EXPIRES_AT + BELOW_MS)
_CANCELLED: Final = (CANCEL_REQUESTED_AT, CANCEL_REQUESTED_AT + BELOW_MS)

PROJECTIONS: Final[Mapping[RowKind, Document]] = {
    "users": _projection(
        *("email", "password_hash", "system_role", ORDER, "oauth_provider", "oauth_id"),
        *("needs_setup", "token_version"),
    ),
    "threads": _projection(
        *("assistant_id", "user_id", "display_name", "status", ORDER, *_TIMES, "metadata_digests")
    ),
    "runs": _projection(
        *("thread_id", "assistant_id", "user_id", "status", "model_name", "multitask_strategy"),
        *("follow_up_to_run_id", ORDER, *_TIMES, *COUNT_PATHS.values()),
        *(KIND, STOP_REASON, OWNER, *_LEASE, CANCEL_ACTION, *_CANCELLED, IDEMPOTENCY_KEY),
        texts=SUMMARY_TEXTS["runs"],
    ),
    "feedback": _projection(
        *("thread_id", "run_id", "user_id", "message_id", "rating", ORDER, VOTE),
        texts=SUMMARY_TEXTS["feedback"],
    ),
}
"""What is read of a document."""


def summary_of_document(kind: RowKind, document: Document) -> RowSummary:
    """The summary of what a projection has read. Raises as the rows of `documents/` do."""
    if document["schema_version"] != SCHEMA_VERSION:
        raise UnreadableError
    return _READERS[kind](document)


def _user(document: Document) -> RowSummary:
    email, password_hash, system_role = document["email"], document["password_hash"], document["system_role"]
    return (
        *(email, password_hash, system_role, row_time_of_stamp(document[ORDER])),
        *(document["oauth_provider"], document["oauth_id"]),
        *(document["needs_setup"], document["token_version"]),
    )


def _thread(document: Document) -> RowSummary:
    return (
        document["assistant_id"],
        document["user_id"],
        decode_text(document["display_name"]),
        document["status"],
        row_time_of_stamp(document[ORDER]),
        _time(document, "updated_at"),
        _digests(document["metadata_digests"]),
    )


def _run(document: Document) -> RowSummary:
    tokens = document["tokens"]
    by_caller = tokens["by_caller"]
    return (
        *(document["thread_id"], document["assistant_id"], document["user_id"], document["status"]),
        *(document["model_name"], document["multitask_strategy"], document["follow_up_to_run_id"]),
        row_time_of_stamp(document[ORDER]),
        _time(document, "updated_at") or "",
        *(tokens["input"], tokens["output"], tokens["total"], tokens["llm_calls"]),
        *(by_caller["lead_agent"], by_caller["subagent"], by_caller["middleware"]),
        document["message_count"],
        *(_ownership(document) if KIND in document else _NO_OWNERSHIP),
        *(document["error"], document["first_human_message"], document["last_ai_message"]),
    )


_NO_OWNERSHIP: Final = (_ABSENT,) * 7


def _ownership(document: Document) -> RowSummary:
    field = document.get  # a run that `runs.create` wrote has only some of them, once it is cancelled
    return (
        field(KIND),
        decode_text(field(STOP_REASON)),
        field(OWNER),
        _time(document, LEASE_EXPIRES_AT),
        field(CANCEL_ACTION),
        _time(document, CANCEL_REQUESTED_AT),
        field(IDEMPOTENCY_KEY),
    )


def _feedback(document: Document) -> RowSummary:
    return (
        *(document["thread_id"], document["run_id"], document["user_id"], document["message_id"]),
        *(document["rating"], row_time_of_stamp(document[ORDER]), VOTE in document),
        document["comment"],
    )


def _time(document: Document, name: str) -> str | None:
    date = document.get(name)
    return None if date is None else row_time(date, document.get(name + BELOW_MS, 0))


_READERS: Final[Mapping[RowKind, Callable[[Document], RowSummary]]] = {
    "users": _user,
    "threads": _thread,
    "runs": _run,
    "feedback": _feedback,
}
