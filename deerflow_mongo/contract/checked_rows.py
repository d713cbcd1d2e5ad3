"""The check of a row that is imported: the same row in its canonical form, or an error that names the field.

Canonical is what `export_rows` gives: times in UTC as `isoformat` writes them, payloads of JSON types only.
How a backend stores a row is not decided here, nor whether another row is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from . import arguments
from .bulk_rows import (
    KEYS,
    BulkRow,
    EventNumbersRow,
    ExportedFeedbackRow,
    ExportedRunEventRow,
    ExportedRunRow,
    Key,
    RefusedRow,
    RowKind,
    ThreadRow,
)
from .errors import ArgumentTypeError, ArgumentValueError, InvalidArgumentError, InvalidPayloadError
from .payloads import to_json, to_json_mapping
from .row_digests import row_digest
from .rows import (
    CANCEL_ACTIONS,
    COMPLETION_COUNTS,
    MAX_COUNT,
    OPERATION_KINDS,
    OwnedRunRow,
    RunRow,
    UserRow,
)
from .times import parse_time

_Given = Mapping[str, Any]

_BY_MODEL: Final = "token_usage_by_model"
OWNED_KEYS: Final = tuple(name for name in OwnedRunRow.__annotations__ if name != _BY_MODEL)
"""What the row of a run has that `RunOwnership` has written, besides the keys of all runs."""


class CheckedRows(NamedTuple):
    """The rows of one call in canonical form, each key once, and those that are malformed."""

    rows: dict[Key, BulkRow]
    refused: list[RefusedRow]


def checked_rows(kind: RowKind, rows: object) -> CheckedRows:
    """The rows by their keys, in the order given. Raises `ArgumentTypeError` where they are no sequence.

    Of rows with the same key the first one counts; another one is refused unless it is equal.
    """
    arguments.one_of("kind", kind, KEYS)
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise ArgumentTypeError(f"rows must be a list of mappings, got {type(rows).__name__}")
    found = CheckedRows({}, [])
    for given in cast("Sequence[object]", rows):
        if not isinstance(given, Mapping):
            raise ArgumentTypeError(f"rows must be mappings, got {type(given).__name__}")
        row = cast("_Given", given)
        try:
            checked = checked_row(kind, row)
        except (InvalidArgumentError, InvalidPayloadError) as error:
            found.refused.append(RefusedRow(given_key(kind, row), str(error)))
            continue
        key = key_of(kind, checked)
        first = found.rows.setdefault(key, checked)
        if first is not checked and row_digest(first) != row_digest(checked):
            found.refused.append(RefusedRow(key, "another row of the same call has this key"))
    return found


def checked_row(kind: RowKind, row: Mapping[str, Any]) -> BulkRow:
    """The row in canonical form.

    Raises `ArgumentTypeError`, `ArgumentValueError` or `InvalidPayloadError`, whose text names the field.
    """
    return _CHECKS[kind](row)


def key_of(kind: RowKind, row: Mapping[str, Any]) -> Key:
    return tuple(row[name] for name in KEYS[kind])


def checked_key(kind: RowKind, after: object) -> Key:
    """The key behind which an export continues. Raises a subclass of `InvalidArgumentError`."""
    fields = KEYS[cast("RowKind", arguments.one_of("kind", kind, KEYS))]
    if not isinstance(after, tuple) or len(cast("Key", after)) != len(fields):
        raise ArgumentValueError(f"after must be the key of a row: ({', '.join(fields)})")
    return tuple(
        _NUMBER_OR_ID.get(name, arguments.identifier)(name, value)
        for name, value in zip(fields, cast("Key", after), strict=True)
    )


def given_key(kind: RowKind, row: Mapping[str, Any]) -> Key:
    """The key of a row that is not checked; what is no text or number of it is given as text."""
    values: list[Any] = [row.get(name) for name in KEYS[kind]]
    return tuple(value if type(value) in (str, int) else repr(value)[:100] for value in values)


def _seq(name: str, value: object) -> int:
    seq = arguments.sequence_number(name, value)
    if seq is None:
        raise ArgumentTypeError(f"{name} must be a whole number, got NoneType")
    return seq


_NUMBER_OR_ID: Final[Mapping[str, Callable[[str, object], str | int]]] = {"seq": _seq}


# -- the kinds -------------------------------------------------------------------------------------


def _user(row: _Given) -> UserRow:
    _check_keys(row, UserRow)
    fields = {name: row[name] for name in UserRow.__annotations__ if name not in ("user_id", "created_at")}
    checked = cast("dict[str, Any]", arguments.account_fields(**fields))
    _count(row, "token_version")  # in a row, None is no number
    return cast(
        "UserRow",
        {
            "user_id": arguments.identifier("user_id", row["user_id"]),
            "created_at": _time(row, "created_at"),
            **checked,
        },
    )


def _thread(row: _Given) -> ThreadRow:
    _check_keys(row, ThreadRow)
    return {
        "thread_id": arguments.identifier("thread_id", row["thread_id"]),
        "assistant_id": arguments.optional_text("assistant_id", row["assistant_id"]),
        "user_id": arguments.optional_text("user_id", row["user_id"]),
        "display_name": arguments.long_text("display_name", row["display_name"]),
        "status": arguments.status_text("status", row["status"]),
        "metadata": to_json_mapping(row["metadata"], "metadata"),
        "created_time": _time(row, "created_time"),
        "updated_time": _time(row, "updated_time"),
    }


def _run(row: _Given) -> ExportedRunRow:
    is_owned = any(name in row for name in OWNED_KEYS)
    _check_keys(row, RunRow, absent=() if is_owned else OWNED_KEYS)
    by_model = arguments.model_counts(_BY_MODEL, row[_BY_MODEL])
    if by_model is None:
        raise ArgumentTypeError(f"{_BY_MODEL} must be a mapping, got NoneType")
    checked: dict[str, Any] = {
        "run_id": arguments.identifier("run_id", row["run_id"]),
        "thread_id": arguments.identifier("thread_id", row["thread_id"]),
        "assistant_id": arguments.optional_text("assistant_id", row["assistant_id"]),
        "user_id": arguments.optional_text("user_id", row["user_id"]),
        "status": arguments.status_text("status", row["status"]),
        "model_name": arguments.optional_text("model_name", row["model_name"]),
        "multitask_strategy": arguments.status_text("multitask_strategy", row["multitask_strategy"]),
        "follow_up_to_run_id": arguments.optional_text("follow_up_to_run_id", row["follow_up_to_run_id"]),
        "metadata": to_json_mapping(row["metadata"], "metadata"),
        "kwargs": to_json_mapping(row["kwargs"], "kwargs"),
        "created_at": _time(row, "created_at"),
        "updated_at": "" if row["updated_at"] == "" else _time(row, "updated_at"),
        "started_at": _optional_time(row, "started_at"),
        "ended_at": _optional_time(row, "ended_at"),
        "error": arguments.long_text("error", row["error"]),
        **{name: _count(row, name) for name in COMPLETION_COUNTS},
        "first_human_message": arguments.long_text("first_human_message", row["first_human_message"]),
        "last_ai_message": arguments.long_text("last_ai_message", row["last_ai_message"]),
        _BY_MODEL: by_model,
    }
    return cast("ExportedRunRow", {**checked, **(_ownership(row) if is_owned else {})})


def _ownership(row: _Given) -> OwnedRunRow:
    kind, action = row["operation_kind"], row["cancel_action"]
    checked: dict[str, Any] = {
        "operation_kind": kind and arguments.one_of("operation_kind", kind, OPERATION_KINDS),
        "stop_reason": arguments.long_text("stop_reason", row["stop_reason"]),
        "owner_worker_id": _optional_identifier(row, "owner_worker_id"),
        "lease_expires_at": _optional_time(row, "lease_expires_at"),
        "cancel_action": action and arguments.one_of("cancel_action", action, CANCEL_ACTIONS),
        "cancel_requested_at": _optional_time(row, "cancel_requested_at"),
        "idempotency_key": _optional_identifier(row, "idempotency_key"),
    }
    return cast("OwnedRunRow", checked)


def _feedback(row: _Given) -> ExportedFeedbackRow:
    _check_keys(row, ExportedFeedbackRow)
    user_id = arguments.optional_text("user_id", row["user_id"])
    message_id = arguments.optional_text("message_id", row["message_id"])
    is_vote = arguments.flag("is_vote", row["is_vote"])
    if row["owner_id"] != user_id:
        raise ArgumentValueError("owner_id must equal user_id")
    if is_vote and message_id is not None:
        raise ArgumentValueError("is_vote must be False on feedback that has a message_id")
    return {
        "feedback_id": arguments.identifier("feedback_id", row["feedback_id"]),
        "run_id": arguments.identifier("run_id", row["run_id"]),
        "thread_id": arguments.identifier("thread_id", row["thread_id"]),
        "user_id": user_id,
        "owner_id": user_id,
        "message_id": message_id,
        "rating": arguments.rating(row["rating"]),
        "comment": arguments.long_text("comment", row["comment"]),
        "created_at": _time(row, "created_at"),
        "is_vote": is_vote,
    }


def _run_event(row: _Given) -> ExportedRunEventRow:
    _check_keys(row, ExportedRunEventRow)
    if row["content"] is None:
        raise ArgumentValueError("content must be text or a JSON value other than null")
    checked: ExportedRunEventRow = {
        "thread_id": arguments.identifier("thread_id", row["thread_id"]),
        "run_id": arguments.identifier("run_id", row["run_id"]),
        "event_type": arguments.status_text("event_type", row["event_type"]),
        "category": arguments.status_text("category", row["category"]),
        "content": to_json(row["content"], "content"),
        "metadata": to_json_mapping(row["metadata"], "metadata"),
        "created_at": _time(row, "created_at"),
        "seq": _number(row, "seq"),
    }
    if "user_id" in row:
        user_id = arguments.optional_text("user_id", row["user_id"])
        if user_id is None:
            raise ArgumentTypeError("user_id must be text, or absent, got NoneType")
        checked["user_id"] = user_id
    if "event_id" in row:
        checked["event_id"] = arguments.identifier("event_id", row["event_id"])
    if "once" in row:
        if row["once"] is not True:
            raise ArgumentValueError("once must be True, or absent")
        checked["once"] = True
    return checked


def _event_numbers(row: _Given) -> EventNumbersRow:
    _check_keys(row, EventNumbersRow)
    return {
        "thread_id": arguments.identifier("thread_id", row["thread_id"]),
        "next_seq": _number(row, "next_seq"),
    }


_CHECKS: Final[Mapping[RowKind, Callable[[_Given], BulkRow]]] = {
    "users": _user,
    "threads": _thread,
    "runs": _run,
    "feedback": _feedback,
    "run_events": _run_event,
    "event_numbers": _event_numbers,
}


# -- fields ----------------------------------------------------------------------------------------

_OPTIONAL_OF_EVENTS: Final = frozenset({"user_id", "event_id", "once"})
_OPTIONAL: Final[Mapping[type, frozenset[str]]] = {ExportedRunEventRow: _OPTIONAL_OF_EVENTS}


def _check_keys(row: _Given, kind: type, *, absent: Sequence[str] = ()) -> None:
    known = set(kind.__annotations__).difference(absent)
    for name in row:
        if name not in known:
            raise ArgumentValueError(f"unknown key {name!r}; expected one of {', '.join(sorted(known))}")
    missing = known.difference(row, _OPTIONAL.get(kind, ()))
    if missing:
        raise ArgumentValueError(f"{min(missing)} is missing")


def _time(row: _Given, name: str) -> str:
    return parse_time(name, row[name]).isoformat()


def _optional_time(row: _Given, name: str) -> str | None:
    return None if row[name] is None else _time(row, name)


def _optional_identifier(row: _Given, name: str) -> str | None:
    return None if row[name] is None else arguments.identifier(name, row[name])


def _count(row: _Given, name: str) -> int:
    if row[name] is None:
        raise ArgumentTypeError(f"{name} must be a whole number, got NoneType")
    return arguments.count(name, row[name])


def _number(row: _Given, name: str) -> int:
    """A number of an event: from 1 up."""
    value = row[name]
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise ArgumentValueError(f"{name} must be a whole number between 1 and 2^63-1, got {value!r}")
    return value
