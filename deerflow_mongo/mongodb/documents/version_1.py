"""Documents of version 1, the format of the first commits: how to read them, and how to convert them.

Version 1 had times as text of 32 characters, `order` was the clock of the process also where `created_at` was
given, and tombstones and anchors had fields of other names. While a database is upgraded, its documents are
of both versions, and a document of version 1 may have dates among its texts, because this release has updated
it. So each field is converted by its own type. `migrations.py` runs the conversions.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from .encoding import WHOLE, Document, UnreadableError
from .stored_times import BELOW_MS, ORDER, ORDER_TIE, date_of, stamp_of, time_fields
from .versions import SCHEMA_VERSION

VERSION: Final = 1
_SCHEMA_VERSION_OF_CONVERTED: Final = 2

_NUMBER_NAMES: Final[Mapping[str, str]] = {"was_stored_at": "event_stored_at", "founded_at": "anchored_at"}
_MINIMUM_SEQ: Final = "floor"
"""Of an anchor: the number above which its thread continues."""

ANCHOR_FIELDS_OF_VERSION_1: Final = ("founded_at", _MINIMUM_SEQ)
NUMBER_FIELDS_OF_VERSION_1: Final = (*_NUMBER_NAMES, _MINIMUM_SEQ)


_ABSENT: Final[Mapping[str, object]] = {"duration_ms": None, "error_type": None}
"""What a run of version 1 does not have."""


def is_of_version_1(document: Document) -> bool:
    return document.get("schema_version") == VERSION


# -- reading ---------------------------------------------------------------------------------------


def as_current(document: Document, *times: str) -> Document:
    """A copy of a document of version 1, with `order` and its times as this version has them.

    A document of this version is returned as it is; one of another version raises `UnreadableError`.
    """
    version = document["schema_version"]
    if type(version) not in WHOLE or version not in (VERSION, SCHEMA_VERSION):
        raise UnreadableError
    if version == SCHEMA_VERSION:
        return document
    converted: Document = {**_ABSENT, **document}
    for name in times:
        value = document.get(name)
        if isinstance(value, str):
            converted |= time_fields(name, stamp_of(datetime.fromisoformat(value)))
    created_at = document["created_at"]
    if isinstance(created_at, str):
        converted[ORDER] = stamp_of(datetime.fromisoformat(created_at))
        converted["created_at"] = date_of(converted[ORDER])
    return converted


def numbers_of_version_1(document: Document) -> Document:
    """The fields that say where a thread's numbers continue, under their present names."""
    converted = {_NUMBER_NAMES.get(name, name): value for name, value in document.items()}
    if isinstance(converted.get(_MINIMUM_SEQ), int):
        converted["minimum_next_seq"] = converted.pop(_MINIMUM_SEQ) + 1
    return converted


# -- converting on the server ----------------------------------------------------------------------

_BELOW_MS_AT: Final = (23, 3)
"""Where a text of version 1 has the three digits below the millisecond."""


def _is_text(path: str) -> Document:
    return {"$eq": [{"$type": path}, "string"]}


def _date_of_text(path: str) -> Document:
    # The server cuts microseconds towards 1970, this package always downwards: they are cut before.
    return {"$toDate": {"$concat": [{"$substrBytes": [path, 0, _BELOW_MS_AT[0]]}, "Z"]}}


def _date(name: str) -> Document:
    path = f"${name}"
    return {"$cond": [_is_text(path), _date_of_text(path), path]}


def _below_ms(path: str) -> Document:
    return {"$toInt": {"$substrBytes": [path, *_BELOW_MS_AT]}}


def _below_ms_field(name: str) -> Document:
    """The microseconds of a text, where they are not zero; those of a date stay."""
    path = f"${name}"
    digits = _below_ms(path)
    of_text = {"$cond": [{"$eq": [digits, 0]}, "$$REMOVE", digits]}
    return {name + BELOW_MS: {"$cond": [_is_text(path), of_text, f"${name}{BELOW_MS}"]}}


def _order_fields() -> Document:
    """`order` becomes the time of creation; where it was another, it stays as what breaks ties."""
    milliseconds = {"$toLong": _date_of_text("$created_at")}
    exact = {"$toLong": {"$add": [{"$multiply": [milliseconds, 1_000]}, _below_ms("$created_at")]}}
    clock = {"$ifNull": [f"${ORDER}", "$$REMOVE"]}
    tie = {"$cond": [{"$eq": [exact, f"${ORDER}"]}, "$$REMOVE", clock]}
    return {
        ORDER: {"$cond": [_is_text("$created_at"), exact, f"${ORDER}"]},
        ORDER_TIE: {"$cond": [_is_text("$created_at"), tie, f"${ORDER_TIE}"]},
    }


def _converted(*times: str, **fields: Any) -> list[Document]:
    """The stages that convert `created_at`, these times and, by `fields`, what else is derived."""
    stage: Document = {"schema_version": _SCHEMA_VERSION_OF_CONVERTED}
    stage |= {**_order_fields(), "created_at": _date("created_at")}
    for name in times:
        stage |= {name: _date(name), **_below_ms_field(name)}
    return [{"$set": stage}, *({"$set": {name: value}} for name, value in fields.items())]


def _events() -> list[Document]:
    """Events, tombstones and anchors: fields that a document does not have stay absent."""
    has_time = {"$ne": [{"$type": "$created_at"}, "missing"]}
    has_minimum = {"$ne": [{"$type": f"${_MINIMUM_SEQ}"}, "missing"]}
    has_expiry = {"$ne": [{"$type": "$forget_at"}, "missing"]}
    stage: Document = {
        "schema_version": _SCHEMA_VERSION_OF_CONVERTED,
        "created_at": {"$cond": [has_time, _date("created_at"), "$$REMOVE"]},
        **_below_ms_field("created_at"),
        "minimum_next_seq": {"$cond": [has_minimum, {"$add": [f"${_MINIMUM_SEQ}", 1]}, "$minimum_next_seq"]},
        "expires_at": {"$cond": [has_expiry, "$forget_at", "$expires_at"]},
    }
    stage |= {name: {"$ifNull": [f"${old}", f"${name}"]} for old, name in _NUMBER_NAMES.items()}
    return [{"$set": stage}, {"$unset": [*NUMBER_FIELDS_OF_VERSION_1, "forget_at"]}]


def conversions(derived_of_run: Document) -> dict[str, list[Document]]:
    """The update of each collection's documents of version 1; `derived_of_run` as `runs.py` computes it."""
    return {
        "runs": _converted("updated_at", "started_at", "ended_at", **derived_of_run),
        "feedback": _converted(),
        "threads": _converted("updated_at"),
        "run_events": _events(),
        "users": _converted(),
    }


OBSOLETE_INDEXES: Final[Mapping[str, tuple[str, ...]]] = {
    "runs": ("thread_newest", "thread_user_newest", "pending_oldest"),
    "feedback": ("thread_newest", "run_newest", "user_run_newest"),
    "threads": (
        "newest",
        "user_newest",
        "user_status_newest",
        "user_updated",
        "metadata_newest",
        "user_metadata_newest",
    ),
    "run_events": ("forget_stubs",),
    "users": ("role_oldest",),
}
"""Indexes of version 1 that no operation uses any more."""
