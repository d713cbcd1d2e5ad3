"""Any object to a JSON-like value: what a payload becomes before a store sees it.

LangChain messages, pydantic models, dataclasses, dates, bytes and sets have a fixed JSON form here; any other
object becomes its `str`. How a backend stores the result is not decided here.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from enum import Enum
from typing import Any, cast
from uuid import UUID

from .errors import InvalidPayloadError
from .rows import JSONValue

MAX_DEPTH = 100
"""Levels of nesting a payload may have; a MongoDB server refuses documents from about 180 on."""

_INT64_BITS = 63
_SCALARS = frozenset({str, bool, type(None)})


class _UnstorableError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def to_json(value: object, field: str) -> JSONValue:
    """`value` as new JSON-like values. Raises `InvalidPayloadError` naming the place without a JSON form."""
    try:
        return _convert(value, 0)
    except _UnstorableError as error:
        raise InvalidPayloadError(field + "".join(reversed(error.path)), error.reason) from error.__cause__


def to_json_mapping(value: object, field: str) -> dict[str, JSONValue]:
    """As `to_json`, for a payload that must be a mapping; None is the empty one."""
    converted = to_json({} if value is None else value, field)
    if not isinstance(converted, dict):
        raise InvalidPayloadError(field, f"it must be a mapping, not {type(value).__name__}")
    return converted


def equal_json(left: JSONValue, right: JSONValue) -> bool:
    """Whether two JSON values are equal in type and content, as a search by metadata compares them.

    1 is neither True nor 1.0, and the order of keys does not count.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal_json, left, right))
    return left == right


def _convert(value: Any, depth: int) -> JSONValue:
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind in _SCALARS:
        return value
    if kind is dict:
        return _convert_mapping(value, depth)
    if kind is list or kind is tuple:
        return _convert_items(value, depth)
    if kind is int:
        return _checked_int(value)
    if kind is float:
        return _checked_float(value)
    return _convert_object(value, depth)


def _checked_int(value: int) -> int:
    if value.bit_length() > _INT64_BITS:
        try:
            str(value)
        except ValueError as error:
            digits = sys.get_int_max_str_digits()
            raise _UnstorableError(f"an integer of more than {digits:,} digits") from error
    return value


def _checked_float(value: float) -> float:
    if not math.isfinite(value):
        raise _UnstorableError(f"{value} is not a JSON number")
    return value


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise _UnstorableError(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
    return depth + 1


def _convert_mapping(value: Mapping[Any, object], depth: int) -> dict[str, JSONValue]:
    inner = _deeper(depth)
    converted: dict[str, JSONValue] = {}
    for key, item in value.items():
        name = key if type(key) is str else _key_text(key)
        if name in converted:
            raise _UnstorableError(f"two of its keys are {name!r} when converted to text")
        try:
            converted[name] = item if type(item) is str else _convert(item, inner)
        except _UnstorableError as error:
            error.path.append(f".{name}")
            raise
    return converted


def _convert_items(value: Iterable[object], depth: int) -> list[JSONValue]:
    inner = _deeper(depth)
    converted: list[JSONValue] = []
    for position, item in enumerate(value):
        try:
            converted.append(_convert(item, inner))
        except _UnstorableError as error:
            error.path.append(f"[{position}]")
            raise
    return converted


def _key_text(key: object) -> str:
    """A key that is not a `str`, as `json.dumps` writes it, or else its `str`."""
    if isinstance(key, Enum):
        return _key_text(key.value)
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    return _text_of(key)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        raise _UnstorableError(f"a {type(value).__name__} that cannot be converted to text") from error


def _base64(value: object) -> str:
    return base64.b64encode(bytes(cast("bytes", value))).decode("ascii")


def _isoformat(value: object) -> str:
    return cast("datetime", value).isoformat()


def _set_items(value: object) -> list[object]:
    items = list(cast("AbstractSet[Any]", value))
    try:
        return sorted(items)
    except TypeError:
        return items


# The first matching type decides; Enum is first because an enum may also be a str or an int.
_FORMS: tuple[tuple[type | tuple[type, ...], Callable[[Any], object]], ...] = (
    (Enum, lambda value: value.value),
    (str, str.__str__),
    (int, int),
    (float, float),
    ((datetime, date, time), _isoformat),
    (UUID, str),
    ((bytes, bytearray, memoryview), _base64),
    (AbstractSet, _set_items),
    (Sequence, list),
)


def _convert_object(value: object, depth: int) -> JSONValue:
    if isinstance(value, Mapping):
        return _convert_mapping(cast("Mapping[Any, object]", value), depth)
    for types, form in _FORMS:
        if isinstance(value, types):
            return _convert(form(value), _deeper(depth) if isinstance(value, Enum) else depth)
    if isinstance(value, type):
        return _text_of(value)
    fields = _fields_of(value)
    return _text_of(value) if fields is None else _convert(fields, _deeper(depth))


def _fields_of(value: object) -> object | None:
    """The fields of a model or a dataclass, or None for an object of another kind."""
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    for method_name in ("model_dump", "dict"):  # pydantic 2, pydantic 1
        method = getattr(value, method_name, None)
        if callable(method):
            try:
                return method()
            except Exception:  # noqa: BLE001, S112 - an unrelated method of that name; its text is used instead
                continue
    return None
