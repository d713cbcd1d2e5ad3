"""Checks of what a caller passes: identifiers, users, limits, counts, ratings.

Every function returns the plain value or raises `ArgumentTypeError` or `ArgumentValueError` that names the
argument. An identifier is plain text afterwards, so no operator document such as `{"$ne": None}` reaches a
query. Payloads are not checked here but in `payloads.py`, times in `times.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import cast

from .actor import resolve_user_id
from .errors import ArgumentTypeError, ArgumentValueError
from .rows import CALLERS, MAX_COUNT, OWNED_STATUSES, AccountFields, Caller

MAX_IDENTIFIER_BYTES = 1_024
MAX_LIMIT = 2**31 - 1
"""A larger limit means this one: MongoDB's limits are 32-bit."""
MAX_SECONDS = 366 * 86_400
"""A grace period of more than a year is a mistake, and the arithmetic of dates has an end."""
RATINGS = (1, -1)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be text, got {type(value).__name__}")
    # An enum or another subclass of str is reduced to its text.
    plain = value if type(value) is str else str.__str__(value)
    if len(plain) <= MAX_IDENTIFIER_BYTES and plain.isascii():
        return plain
    try:
        size_bytes = len(plain.encode())
    except UnicodeEncodeError:
        raise ArgumentValueError(f"{name} contains a lone surrogate, which is not a character") from None
    if size_bytes > MAX_IDENTIFIER_BYTES:
        raise ArgumentValueError(
            f"{name} is {size_bytes:,} bytes long; at most {MAX_IDENTIFIER_BYTES:,} are allowed"
        )
    return plain


def identifier(name: str, value: object) -> str:
    """`value` as an identifier: text that is not empty, of at most 1,024 bytes in UTF-8."""
    if type(value) is str and value and len(value) <= MAX_IDENTIFIER_BYTES and value.isascii():
        return value  # the fast path: nearly all are
    plain = _text(name, value)
    if not plain:
        raise ArgumentValueError(f"{name} must not be empty")
    return plain


def is_valid_id(*values: object) -> bool:
    """Whether each of these texts can be a stored id; a text that cannot be stored is in no row."""
    try:
        for value in values:
            identifier("value", value)
    except ArgumentValueError:
        return False
    return True


def optional_text(name: str, value: object) -> str | None:
    """`value` as text of at most 1,024 bytes, possibly empty, or None."""
    return None if value is None else _text(name, value)


def long_text(name: str, value: object) -> str | None:
    """`value` as text of any length, or None: an error's text, a comment, a title, a message."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be text or None, got {type(value).__name__}")
    return value if type(value) is str else str.__str__(value)


def filter_text(name: str, value: object) -> str | None:
    """A status or another text that a search filters by; None, which filters nothing, for a blank one."""
    text = optional_text(name, value.value if isinstance(value, Enum) else value)
    return text if text and not text.isspace() else None


def status_text(name: str, value: object) -> str:
    """A status or another short name; an enum gives its value."""
    return identifier(name, value.value if isinstance(value, Enum) else value)


def owned_status(name: str, value: object) -> str:
    """A status of a run that has an owner: one of `OWNED_STATUSES`."""
    return one_of(name, value, OWNED_STATUSES)


def seconds(name: str, value: object) -> float:
    """A number of seconds from 0 up."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a number of seconds, got {type(value).__name__}")
    if not 0 <= value <= MAX_SECONDS:
        raise ArgumentValueError(f"{name} must be between 0 and {MAX_SECONDS} seconds, got {value!r}")
    return value


def acting_user(value: object, method_name: str) -> str | None:
    """The user that a method acts for, or None for everybody. `AUTO` is the current actor.

    Raises `ActorMissingError`, naming the method, for `AUTO` without an actor that has an id.
    """
    return optional_text("user_id", resolve_user_id(value, method_name=method_name))


def row_limit(name: str, value: object) -> int:
    """A whole number from 0 up, cut to `MAX_LIMIT`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if value < 0:
        raise ArgumentValueError(f"{name} must not be negative, got {value}")
    return min(value, MAX_LIMIT)


def count(name: str, value: object) -> int:
    """A token count or another count: a whole number from 0 to 2^63-1; None counts as 0."""
    if type(value) is int and 0 <= value <= MAX_COUNT:
        return value
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if not 0 <= value <= MAX_COUNT:
        raise ArgumentValueError(f"{name} must be between 0 and 2^63-1, got {value}")
    return int(value)


_MODEL_COUNTS = ("input_tokens", "output_tokens", "total_tokens", "llm_calls")
_CACHE_READ = "cache_read_tokens"


def model_counts(name: str, value: object) -> dict[str, dict[str, int]] | None:
    """A `token_usage_by_model`: the counts of each model; None for None. Other keys are ignored."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{name} must be a mapping or None, got {type(value).__name__}")
    return {
        _text(f"a model's name in {name}", model): _counts_of_model(f"{name}[{model!r}]", counts)
        for model, counts in cast("Mapping[object, object]", value).items()
    }


def _counts_of_model(place: str, value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(f"{place} must be a mapping, got {type(value).__name__}")
    given = cast("Mapping[str, object]", value)
    counts = {name: count(f"{place}.{name}", given.get(name)) for name in _MODEL_COUNTS}
    if given.get("total_tokens") is None:
        spent = counts["input_tokens"] + counts["output_tokens"]
        counts["total_tokens"] = count(f"{place}.input_tokens + output_tokens", spent)
    if given.get(_CACHE_READ) is not None:
        counts[_CACHE_READ] = count(f"{place}.{_CACHE_READ}", given[_CACHE_READ])
    return counts


def rating(value: object) -> int:
    """A vote: the integer 1 or -1 and nothing that merely equals it."""
    if type(value) is not int or value not in RATINGS:
        raise ArgumentValueError(f"rating must be +1 or -1, got {value!r}")
    return value


def caller(value: object) -> Caller:
    """Who spent tokens: one of `CALLERS`."""
    if value not in CALLERS:
        raise ArgumentValueError(f"caller must be one of {', '.join(CALLERS)}, got {value!r}")
    return value


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """One of the names of a table, such as the orders of a list; an enum gives its value."""
    known, plain = tuple(allowed), value.value if isinstance(value, Enum) else value
    if plain not in known:
        raise ArgumentValueError(f"{name} must be one of {', '.join(known)}, got {plain!r}")
    return cast("str", plain)


def check_keywords(given: Mapping[str, object], fields: type) -> None:
    """Raise `ArgumentTypeError` for a keyword that is not a field; at run time, `Unpack` accepts any."""
    for name in given:
        if name not in fields.__annotations__:
            expected = ", ".join(sorted(fields.__annotations__))
            raise ArgumentTypeError(f"unknown keyword argument {name!r}; expected one of {expected}")


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be True or False, got {type(value).__name__}")
    return value


def account_fields(
    *,
    email: object,
    password_hash: object,
    system_role: object,
    oauth_provider: object,
    oauth_id: object,
    needs_setup: object,
    token_version: object,
) -> AccountFields:
    """The fields of an account besides its id and its time."""
    return {
        "email": identifier("email", email),
        "password_hash": optional_text("password_hash", password_hash),
        "system_role": identifier("system_role", system_role),
        "oauth_provider": optional_text("oauth_provider", oauth_provider),
        "oauth_id": optional_text("oauth_id", oauth_id),
        "needs_setup": flag("needs_setup", needs_setup),
        "token_version": count("token_version", token_version),
    }


def names(name: str, value: object) -> list[str] | None:
    """A list of statuses or event types, each once, or None.

    A mapping is refused: `{"$ne": None}` is an operator document and not a list of keys.
    """
    if value is None:
        return None
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ArgumentTypeError(f"{name} must be a list of texts or None, got {type(value).__name__}")  # pyright: ignore[reportUnknownArgumentType]
    return list(dict.fromkeys(status_text(name, item) for item in cast("Iterable[object]", value)))


def identifiers(name: str, value: object) -> list[str]:
    """A list, set or other iterable of ids, each once."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ArgumentTypeError(f"{name} must be a list of ids, got {type(value).__name__}")  # pyright: ignore[reportUnknownArgumentType]
    return list(dict.fromkeys(identifier(name, item) for item in cast("Iterable[object]", value)))


def sequence_number(name: str, value: object) -> int | None:
    """A run event's number to page from, cut to 64 bits; None for none."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a whole number or None, got {type(value).__name__}")
    return max(-MAX_COUNT, min(int(value), MAX_COUNT))
