"""Values of SQL columns as values of rows. Both databases give texts for JSON; SQLite gives texts for times.

A value that cannot be converted raises `ValueError` or an `InvalidArgumentError`; the row is then listed as
one that was not carried.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from ...contract.arguments import model_counts
from ...contract.times import parse_time


def as_stored(value: Any) -> Any:
    """The value itself; the storage checks it."""
    return value


def text(value: Any) -> str:
    """A text that is never null."""
    return "" if value is None else value


def whole(value: Any) -> int:
    """A count; null counts as 0."""
    return 0 if value is None else value


def flag(value: Any) -> bool:
    """A boolean, which SQLite stores as 0 or 1."""
    if value in (None, 0, 1):
        return bool(value)
    raise ValueError(f"{value!r} is no boolean")


def moment(value: object) -> str:
    """A time as rows have it. SQLite stores no offset; DeerFlow writes UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value[:40]!r} is no time") from None
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC).isoformat()
    return parse_time("it", value).isoformat()


def instant(value: object) -> datetime | None:
    """A time as an aware one, which costs less than its text; None for null."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ValueError(f"{value!r} is no time")  # noqa: TRY004 - a value of SQL
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def optional_moment(value: object) -> str | None:
    return None if value is None else moment(value)


def update_time(value: object) -> str:
    """The time of the last update, "" before the first one."""
    return "" if value is None else moment(value)


def json_value(value: object) -> Any:
    """The value of a JSON column; None for null."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None


def mapping(value: object) -> Any:
    """A JSON column that has an object; null is an empty one."""
    decoded = json_value(value)
    return {} if decoded is None else decoded


def counts_by_model(value: object) -> Any:
    """A run's counts by model, with every count, as exported rows have them."""
    return model_counts("token_usage_by_model", mapping(value))
