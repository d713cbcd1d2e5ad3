"""The check of a run event that a caller passes: its fields as plain values, or an error with their place.

What a backend adds (the number, the time of the call) and how it stores an event is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

from . import arguments
from .errors import ArgumentTypeError, ArgumentValueError
from .payloads import to_json, to_json_mapping
from .rows import JSONValue, RunEventFields
from .times import parse_time

_REQUIRED = ("thread_id", "run_id", "event_type", "category")
_FIELDS = frozenset(RunEventFields.__annotations__)


class CheckedRunEvent(NamedTuple):
    """A run event in plain values that are shared with nobody."""

    thread_id: str
    run_id: str
    event_type: str
    category: str
    content: JSONValue
    metadata: dict[str, JSONValue]
    created_at: datetime | None
    """In UTC; None for the time of the call."""
    user_id: str | None
    event_id: str | None


def checked_event(event: object, place: str = "") -> CheckedRunEvent:
    """The fields of one event, with their defaults; `place` is the event's name in errors.

    Raises `ArgumentTypeError` for what is not a mapping and for an unknown field, `ArgumentValueError` for a
    missing one, and what the fields' own checks raise. The text of each names the field, after the place:
    `events[1].run_id`.
    """
    if type(event) is not dict and not isinstance(event, Mapping):
        raise ArgumentTypeError(f"{place or 'a run event'} must be a mapping, got {type(event).__name__}")
    given = cast("Mapping[str, Any]", event)
    prefix = f"{place}." if place else ""
    if not _FIELDS.issuperset(given):
        name = next(name for name in given if name not in _FIELDS)
        path = f"{prefix}{name}: " if place else ""
        raise ArgumentTypeError(
            f"{path}unknown run event field {name!r}; expected one of {', '.join(sorted(_FIELDS))}"
        )
    thread_id, run_id, event_type, category = map(given.get, _REQUIRED)
    if thread_id is None or run_id is None or event_type is None or category is None:
        name = next(name for name in _REQUIRED if given.get(name) is None)
        raise ArgumentValueError(f"{prefix}{name} is missing; a run event requires {', '.join(_REQUIRED)}")
    content, created_at, event_id = given.get("content"), given.get("created_at"), given.get("event_id")
    return CheckedRunEvent(
        thread_id=arguments.identifier(prefix + "thread_id", thread_id),
        run_id=arguments.identifier(prefix + "run_id", run_id),
        event_type=arguments.status_text(prefix + "event_type", event_type),
        category=arguments.status_text(prefix + "category", category),
        content=to_json("" if content is None else content, prefix + "content"),
        metadata=to_json_mapping(given.get("metadata"), prefix + "metadata"),
        created_at=None if created_at is None else parse_time(prefix + "created_at", created_at),
        user_id=arguments.optional_text(prefix + "user_id", given.get("user_id")),
        event_id=None if event_id is None else arguments.identifier(prefix + "event_id", event_id),
    )


def checked_events(events: object) -> list[CheckedRunEvent]:
    """The fields of each event of a batch. An error names the event's place in it: `events[1]`."""
    if isinstance(events, str | bytes | Mapping) or not isinstance(events, Iterable):
        raise ArgumentTypeError(f"events must be a list of mappings, got {type(events).__name__}")  # pyright: ignore[reportUnknownArgumentType]
    given = list(cast("Iterable[object]", events))
    try:
        return [checked_event(event) for event in given]
    except (TypeError, ValueError):
        # A second pass only for the place in the error's text, which would cost time for every event.
        return [checked_event(event, f"events[{position}]") for position, event in enumerate(given)]
