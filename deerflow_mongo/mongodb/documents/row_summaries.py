"""The summary of a row, from a projection of its document: what is compared before a row is read whole.

What a summary leaves out changes only together with one of its fields: every update of a run sets its time,
every vote sets the time of the vote, and of accounts and threads a summary has all fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from ...contract.bulk_rows import RowKind
from .encoding import Document, UnreadableError, decode_mapping, decode_text
from .feedback import VOTE
from .runs import COUNT_PATHS
from .stored_times import BELOW_MS, ORDER, aware_time, time_of_stamp
from .versions import SCHEMA_VERSION

RowSummary: TypeAlias = tuple[Any, ...]
"""The values of the kind's `SUMMARY_FIELDS`. Times are aware, and a payload is the text of its `repr`."""

LENGTH: Final = " length"
"""Suffix of a text's name for its length in bytes of UTF-8; None for no text."""

SUMMARY_FIELDS: Final[Mapping[RowKind, tuple[str, ...]]] = {
    "users": (
        *("email", "password_hash", "system_role", "created_at", "oauth_provider", "oauth_id"),
        *("needs_setup", "token_version"),
    ),
    "threads": (
        *("assistant_id", "user_id", "display_name", "status", "created_time", "updated_time", "metadata"),
    ),
    "runs": ("user_id", "status", "updated_at", "total_tokens", "message_count"),
    "feedback": (
        *("thread_id", "run_id", "user_id", "message_id", "rating", "created_at", f"comment{LENGTH}"),
        "is_vote",
    ),
}
"""Kind -> what is compared, named as in the row.

Of runs, which are many, only what tells changes apart: each field more takes a tenth of a second of 100,000.
"""

SUMMARY_TIMES: Final = frozenset({"created_at", "updated_at", "created_time", "updated_time"})
SUMMARY_PAYLOADS: Final = frozenset({"metadata"})


def summary_of_row(kind: RowKind, row: Mapping[str, Any]) -> RowSummary:
    """The summary of an exported row."""
    return tuple(_value_of(row, name) for name in SUMMARY_FIELDS[kind])


def _value_of(row: Mapping[str, Any], name: str) -> Any:
    value = row[name.removesuffix(LENGTH)]
    if name.endswith(LENGTH):
        return None if value is None else len(value.encode())
    if name in SUMMARY_TIMES:
        return datetime.fromisoformat(value) if value else None
    return repr(value) if name in SUMMARY_PAYLOADS else value


# -- documents -------------------------------------------------------------------------------------


def _length(name: str) -> Document:
    """The bytes of a text; -1, which equals no length, for one that is stored as marked JSON."""
    is_plain = {"$in": [{"$type": f"${name}"}, ["string", "null"]]}
    return {"$cond": [is_plain, {"$binarySize": f"${name}"}, -1]}


def _projection(*names: str, **computed: Document) -> Document:
    return {"schema_version": 1, **dict.fromkeys(names, 1), **computed}


_UPDATED: Final = ("updated_at", "updated_at" + BELOW_MS)

PROJECTIONS: Final[Mapping[RowKind, Document]] = {
    "users": _projection(
        *("email", "password_hash", "system_role", ORDER, "oauth_provider", "oauth_id"),
        *("needs_setup", "token_version"),
    ),
    "threads": _projection(
        *("assistant_id", "user_id", "display_name", "status", ORDER, *_UPDATED, "metadata")
    ),
    "runs": _projection("user_id", "status", *_UPDATED, COUNT_PATHS["total_tokens"], "message_count"),
    "feedback": _projection(
        *("thread_id", "run_id", "user_id", "message_id", "rating", ORDER, VOTE), comment=_length("comment")
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
        *(email, password_hash, system_role, time_of_stamp(document[ORDER])),
        *(document["oauth_provider"], document["oauth_id"]),
        *(document["needs_setup"], document["token_version"]),
    )


def _thread(document: Document) -> RowSummary:
    return (
        document["assistant_id"],
        document["user_id"],
        decode_text(document["display_name"]),
        document["status"],
        time_of_stamp(document[ORDER]),
        _updated(document),
        repr(decode_mapping(document["metadata"])),
    )


def _run(document: Document) -> RowSummary:
    return (
        document["user_id"],
        document["status"],
        _updated(document),
        document["tokens"]["total"],
        document["message_count"],
    )


def _feedback(document: Document) -> RowSummary:
    return (
        *(document["thread_id"], document["run_id"], document["user_id"], document["message_id"]),
        *(document["rating"], time_of_stamp(document[ORDER]), document["comment"], VOTE in document),
    )


def _updated(document: Document) -> datetime | None:
    date = document["updated_at"]
    return None if date is None else aware_time(date, document.get("updated_at" + BELOW_MS, 0))


_READERS: Final[Mapping[RowKind, Callable[[Document], RowSummary]]] = {
    "users": _user,
    "threads": _thread,
    "runs": _run,
    "feedback": _feedback,
}
