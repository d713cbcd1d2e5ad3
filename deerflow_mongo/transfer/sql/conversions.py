"""Values of SQL columns as values of rows. Both databases give texts for JSON; SQLite gives texts for times.

A value that cannot be converted raises `ValueError`; the row is then listed as one that was not carried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from ...contract.errors import InvalidArgumentError
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
    try:
        return parse_time("it", value).isoformat()
    except InvalidArgumentError as error:
        raise ValueError(str(error)) from None


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


_MODEL_COUNTS = ("input_tokens", "output_tokens", "total_tokens")
_CACHE_READ = "cache_read_tokens"


def counts_by_model(value: object) -> Any:
    """A run's counts by model with every count, as rows have them; what is no such object stays as it is."""
    decoded = mapping(value)
    if not isinstance(decoded, dict):
        return decoded
    return {
        model: _counts(cast("Mapping[str, Any]", counts)) if isinstance(counts, dict) else counts
        for model, counts in cast("dict[str, Any]", decoded).items()
    }


def _counts(given: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: given.get(name) or 0 for name in _MODEL_COUNTS}
    if given.get("total_tokens") is None:
        counts["total_tokens"] = counts["input_tokens"] + counts["output_tokens"]
    if given.get(_CACHE_READ) is not None:
        counts[_CACHE_READ] = given[_CACHE_READ]
    return counts
