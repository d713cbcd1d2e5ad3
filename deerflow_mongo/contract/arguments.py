"""What a caller names, checked, and the query filters made of it.

The only place that builds a filter from a caller's values. An identifier is plain text before it gets here or
is refused, so no operator document can reach a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, TypeAlias, cast

from .actor import resolve_user_id
from .rows import MAX_FIGURE, MESSAGE

Query: TypeAlias = dict[str, Any]

MAX_IDENTIFIER_BYTES = 1_024
MAX_LIMIT = 2**31 - 1
RATINGS = (1, -1)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, got {type(value).__name__}")
    # An enum or another subclass of str is reduced to the text that it is.
    plain = value if type(value) is str else str.__str__(value)
    if len(plain) <= MAX_IDENTIFIER_BYTES and plain.isascii():
        return plain
    try:
        size_bytes = len(plain.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds a lone surrogate, which is no character") from None
    if size_bytes > MAX_IDENTIFIER_BYTES:
        raise ValueError(f"{name} is {size_bytes:,} bytes long; at most {MAX_IDENTIFIER_BYTES:,} are allowed")
    return plain


def identifier(name: str, value: object) -> str:
    """`value` as an identifier: text that is not empty, of at most 1,024 bytes in UTF-8."""
    if type(value) is str and value and len(value) <= MAX_IDENTIFIER_BYTES and value.isascii():
        return value  # what nearly all are
    plain = _text(name, value)
    if not plain:
        raise ValueError(f"{name} must not be empty")
    return plain


def optional_text(name: str, value: object) -> str | None:
    """`value` as text of at most 1,024 bytes, the empty one too, or None."""
    return None if value is None else _text(name, value)


def status_text(name: str, value: object) -> str:
    """A status; an enum gives its value."""
    return identifier(name, value.value if isinstance(value, Enum) else value)


def owner(value: object, *, method_name: str) -> str | None:
    """Who a method acts for: a user, or None for everybody. `AUTO` is the current actor."""
    return optional_text("user_id", resolve_user_id(value, method_name=method_name))


def limit_of(name: str, value: object) -> int:
    """A whole number from 0 up, cut to what the server takes."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return min(value, MAX_LIMIT)


def count_of(name: str, value: object) -> int:
    """A token figure: a whole number from 0 to 2^63-1; None counts as 0."""
    if type(value) is int and 0 <= value <= MAX_FIGURE:
        return value
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if not 0 <= value <= MAX_FIGURE:
        raise ValueError(f"{name} must lie between 0 and 2^63-1, got {value}")
    return int(value)


def rating_of(value: object) -> int:
    """A vote: the integer 1 or -1 and nothing that merely equals it."""
    if type(value) is not int or value not in RATINGS:
        raise ValueError(f"rating must be +1 or -1, got {value!r}")
    return value


def owned(query: Query, user_id: str | None) -> Query:
    """`query`, limited to the rows of `user_id`; None leaves it open to all."""
    if user_id is not None:
        query["user_id"] = user_id
    return query


def _texts_of(name: str, value: object) -> list[str] | None:
    """A list of texts, each once, or None. A mapping is no list: `{"$ne": None}` was meant otherwise."""
    if value is None:
        return None
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of texts or None, got {type(value).__name__}")  # pyright: ignore[reportUnknownArgumentType]
    return list(dict.fromkeys(status_text(name, item) for item in cast("Iterable[object]", value)))


def in_statuses(query: Query, statuses: object) -> Query:
    """`query`, limited to runs in one of these statuses; None leaves it open to all."""
    wanted = _texts_of("statuses", statuses)
    if wanted is not None:
        query["status"] = {"$in": wanted}
    return query


def run_by_id(run_id: object) -> Query:
    return {"_id": identifier("run_id", run_id)}


def of_thread(thread_id: object) -> Query:
    return {"thread_id": identifier("thread_id", thread_id)}


def of_run(thread_id: object, run_id: object) -> Query:
    return {**of_thread(thread_id), "run_id": identifier("run_id", run_id)}


def feedback_by_id(feedback_id: object) -> Query:
    return {"_id": identifier("feedback_id", feedback_id)}


def vote_of(thread_id: object, run_id: object, user_id: str | None) -> Query:
    """The rows of a user that are, or may become, the one vote on the run: those not on a message."""
    return {**of_run(thread_id, run_id), "user_id": user_id, "message_id": None}


def thread_by_id(thread_id: object) -> Query:
    return {"_id": identifier("thread_id", thread_id)}


def threads_matching(
    *, user_id: str | None, status: object, assistant_id: object, metadata_digests: list[str]
) -> Query:
    """Threads that fit everything given; None, and a blank status or assistant, leave it open."""
    query = owned({}, user_id)
    wanted_status = optional_text("status", status.value if isinstance(status, Enum) else status)
    if wanted_status and not wanted_status.isspace():
        query["status"] = wanted_status
    wanted_assistant = optional_text("assistant_id", assistant_id)
    if wanted_assistant and not wanted_assistant.isspace():
        query["assistant_id"] = wanted_assistant
    if metadata_digests:
        query["metadata_digests"] = {"$all": metadata_digests}
    return query


def user_by_id(user_id: object) -> Query:
    return {"_id": identifier("user_id", user_id)}


def user_by_email(email: object) -> Query:
    return {"email": identifier("email", email)}


def user_by_oauth(oauth_provider: object, oauth_id: object) -> Query:
    return {
        "oauth_provider": identifier("oauth_provider", oauth_provider),
        "oauth_id": identifier("oauth_id", oauth_id),
    }


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
    return value


def sequence_number(name: str, value: object) -> int | None:
    """A run event's number to page from, cut to what the server takes; None for none."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number or None, got {type(value).__name__}")
    return max(-MAX_FIGURE, min(int(value), MAX_FIGURE))


def event_types_of(value: object) -> list[str] | None:
    """Run event types, each once; None for all of them."""
    return _texts_of("event_types", value)


def between(query: Query, *, after_seq: int | None, before_seq: int | None) -> Query:
    """`query`, limited to run events of numbers between these two, both excluded."""
    bounds = {"$gt": after_seq, "$lt": before_seq}
    given = {operator: seq for operator, seq in bounds.items() if seq is not None}
    if given:
        query["seq"] = given
    return query


def messages_of_thread(thread_id: object) -> Query:
    return {**of_thread(thread_id), "category": MESSAGE}


def events_of_run(thread_id: object, run_id: object, *event_types: str) -> Query:
    """A run's events of these types, or all of them."""
    query = of_run(thread_id, run_id)
    if event_types:
        query["event_type"] = event_types[0] if len(event_types) == 1 else {"$in": list(event_types)}
    return query


def messages_of_run(thread_id: object, run_id: object) -> Query:
    return {**events_of_run(thread_id, run_id), "category": MESSAGE}


def events_of_thread(thread_id: object) -> Query:
    """A thread's events, and neither its head nor the stubs of what was deleted."""
    return {**of_thread(thread_id), "run_id": {"$exists": True}}
