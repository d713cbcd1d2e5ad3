"""Comparisons stricter than `==`: types, the sign of a zero, the form of a time, copies of errors."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from ..contract.errors import StorageError

_JSON_TYPES = (str, int, float, bool, type(None))

COMPLETION_DATA: dict[str, Any] = {
    "total_input_tokens": 11,
    "total_output_tokens": 12,
    "total_tokens": 23,
    "llm_call_count": 4,
    "lead_agent_tokens": 10,
    "subagent_tokens": 8,
    "middleware_tokens": 5,
    "message_count": 7,
    "first_human_message": "hi",
    "last_ai_message": "bye",
}
"""The counts and texts of a run's completion, each different from its default."""


def exactly(value: object) -> object:
    """`value` in a form that is equal only for equal types and contents: 1 is neither True nor 1.0."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return kind, {key: exactly(item) for key, item in cast("dict[Any, object]", value).items()}
    if isinstance(value, list):
        return kind, [exactly(item) for item in cast("list[object]", value)]
    return kind, repr(value) if isinstance(value, float) else value


def assert_plain(value: object, place: str = "row") -> None:
    """Assert that `value` has only JSON's own types, and no subclass of them."""
    if type(value) is dict:
        for key, item in cast("dict[object, object]", value).items():
            assert type(key) is str, f"{place} has a key of type {type(key).__qualname__}"
            assert_plain(item, f"{place}.{key}")
    elif type(value) is list:
        for position, item in enumerate(cast("list[object]", value)):
            assert_plain(item, f"{place}[{position}]")
    else:
        assert type(value) in _JSON_TYPES, f"{place} is a {type(value).__qualname__}"
    json.dumps(value)


def assert_row_time(text: object) -> datetime:
    """Assert an ISO-8601 string in UTC as `isoformat()` writes it, and parse it."""
    assert type(text) is str
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() == timedelta(0)
    assert moment.isoformat() == text
    return moment


def now() -> datetime:
    return datetime.now(UTC)


def assert_is_now(moment: datetime, *, since: datetime) -> None:
    """Assert a time between `since` and now; a clock that makes times distinct may run a little ahead."""
    tolerance = timedelta(milliseconds=50)
    assert since - tolerance <= moment <= now() + tolerance


def assert_pickles_and_copies(error: StorageError) -> None:
    """Assert that a copy of the error has the same type, text, arguments and attributes."""
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(other) is type(error)
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
