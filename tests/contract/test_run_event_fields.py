"""The check of run events: plain values with the documented defaults, and errors that name the place."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest

from deerflow_mongo.contract.errors import ArgumentTypeError, ArgumentValueError, InvalidPayloadError
from deerflow_mongo.contract.run_event_fields import CheckedRunEvent, checked_event, checked_events

EVENT: dict[str, Any] = {"thread_id": "t", "run_id": "r", "event_type": "ended", "category": "trace"}
INVALID: tuple[tuple[Any, type[Exception], str], ...] = (
    ("text", ArgumentTypeError, "must be a mapping, got str"),
    ({**EVENT, "run_id": None}, ArgumentValueError, "run_id is missing"),
    ({**EVENT, "run_id": {"$ne": None}}, ArgumentTypeError, "run_id must be text"),
    ({**EVENT, "category": ""}, ArgumentValueError, "category must not be empty"),
    ({**EVENT, "odd": 1}, ArgumentTypeError, "unknown run event field 'odd'; expected one of category, "),
    ({**EVENT, "metadata": ["a"]}, InvalidPayloadError, "metadata cannot be stored"),
    ({**EVENT, "created_at": "yesterday"}, ArgumentValueError, "created_at must be an ISO-8601 time"),
    ({**EVENT, "user_id": 5}, ArgumentTypeError, "user_id must be text"),
)


class Kind(Enum):
    ENDED = "ended"


def test_event_has_the_documented_defaults() -> None:
    expected = CheckedRunEvent("t", "r", "ended", "trace", "", {}, None, None, None)
    assert checked_event(EVENT) == expected
    nothing = dict.fromkeys(("content", "metadata", "created_at", "user_id", "event_id"))
    assert checked_event(MappingProxyType({**EVENT, **nothing, "event_type": Kind.ENDED})) == expected


def test_event_fields_are_converted_to_plain_values() -> None:
    content: Any = {"k": (1, datetime(2026, 1, 1, tzinfo=UTC))}
    event = checked_event(
        {
            **EVENT,
            "content": content,
            "metadata": OrderedDict[str, Any](a=1),
            "created_at": "2026-04-22T09:00:00+09:00",
        }
    )
    assert event.content == {"k": [1, "2026-01-01T00:00:00+00:00"]}
    assert type(event.metadata) is dict
    assert event.created_at == datetime(2026, 4, 22, tzinfo=UTC)


@pytest.mark.parametrize(("event", "error", "text"), INVALID)
def test_invalid_event_raises_an_error_that_names_field_and_place(
    event: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        checked_event(event)
    with pytest.raises(error, match=text) as raised:
        checked_events(iter([EVENT, event, EVENT]))
    assert str(raised.value).startswith("events[1]")


@pytest.mark.parametrize("events", ["text", b"bytes", EVENT, 5, None])
def test_batch_that_is_not_a_list_raises(events: object) -> None:
    with pytest.raises(ArgumentTypeError, match="events must be a list of mappings"):
        checked_events(events)
