"""Any object to a JSON-like value: what a payload becomes before a store sees it.

LangChain messages, pydantic models, dataclasses, dates, bytes, sets and arrays have a fixed JSON form here;
any other object becomes its `str`, unless that is only its address. Whatever an object does while it is read,
the result is a value or an error with its place. How a backend stores the result is not decided here.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import re
import sys
import types
from collections import UserString
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from enum import Enum
from functools import lru_cache, partial
from typing import Any, Final, NoReturn, TypeAlias, cast
from uuid import UUID

from .errors import InvalidPayloadError
from .rows import JSONValue

MAX_DEPTH = 100
"""Levels of nesting a payload may have; a MongoDB server refuses documents from about 180 on."""

MAX_VALUES = 2**21
"""Values that a payload may have; a container counts as 4 more, an object of another type as 8.

That many do not fit into the 16 MiB of a MongoDB document, not even as a list of nulls. The bound ends what
expands without end: objects that contain new objects, sequences without a last item, lists of lists that are
the same object many times.
"""

_CONTAINER_VALUES, _OBJECT_VALUES = 4, 8
_INT64_BITS = 63
_SCALARS = frozenset({str, bool, type(None)})
_ADDRESS = re.compile(r"\bat 0x[0-9A-Fa-f]+|<\w*Mock\b.* id='\d+'>")


# A conversion passes on how many values are left, in a list of one: an attribute would cost more.


class _UnstorableError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def _raise_endless() -> NoReturn:
    raise _UnstorableError(f"it has more than {MAX_VALUES:,} values, or it expands without end")


def _raise_too_deep() -> NoReturn:
    raise _UnstorableError(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")


def to_json(value: object, field: str) -> JSONValue:
    """`value` as new JSON-like values. Raises `InvalidPayloadError` naming the place without a JSON form."""
    try:
        return _convert(value, 0, [MAX_VALUES])
    except _UnstorableError as error:
        raise InvalidPayloadError(field + "".join(reversed(error.path)), error.reason) from error.__cause__
    except RecursionError as error:
        raise InvalidPayloadError(field, "it is nested too deep for the caller's stack") from error


def to_json_mapping(value: object, field: str) -> dict[str, JSONValue]:
    """As `to_json`, for a payload that must be a mapping; None is the empty one."""
    converted = to_json({} if value is None else value, field)
    if not isinstance(converted, dict):
        raise InvalidPayloadError(field, f"it must be a mapping, not {_name_of(value)}")
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


def _convert(value: Any, depth: int, budget: list[int]) -> JSONValue:
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind in _SCALARS:
        return value
    if kind is dict:
        return _convert_mapping(value, depth, budget)
    if kind is list or kind is tuple:
        return _convert_items(value, depth, budget)
    if kind is int:
        return _checked_int(value)
    if kind is float:
        return _checked_float(value)
    return _convert_object(value, depth, budget)


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


def _convert_mapping(value: dict[Any, object], depth: int, budget: list[int]) -> dict[str, JSONValue]:
    if depth >= MAX_DEPTH:
        _raise_too_deep()
    budget[0] = left = budget[0] - len(value) - _CONTAINER_VALUES
    if left < 0:
        _raise_endless()
    inner = depth + 1
    converted: dict[str, JSONValue] = {}
    try:
        for key, item in value.items():
            name = key if type(key) is str else _key_text(key)
            if name in converted:
                raise _UnstorableError(f"two of its keys are '{_readable(name)}' when converted to text")
            try:
                converted[name] = item if type(item) is str or item is None else _convert(item, inner, budget)
            except _UnstorableError as error:
                error.path.append(f".{_readable(name)}")
                raise
    except RecursionError:
        raise
    except RuntimeError as error:
        raise _UnstorableError(_CHANGED) from error
    return converted


_CHANGED: Final = "it changed while it was read"


def _convert_items(value: Sequence[object], depth: int, budget: list[int]) -> list[JSONValue]:
    """The items of a list or a tuple."""
    if depth >= MAX_DEPTH:
        _raise_too_deep()
    length = len(value)
    budget[0] = left = budget[0] - length - _CONTAINER_VALUES
    if left < 0:
        _raise_endless()
    inner = depth + 1
    converted: list[JSONValue] = []
    for position, item in enumerate(value):
        try:
            converted.append(item if type(item) is str else _convert(item, inner, budget))
        except _UnstorableError as error:
            error.path.append(f"[{position}]")
            raise
    if len(converted) != length:
        raise _UnstorableError(_CHANGED)
    return converted


# -- objects of other types ------------------------------------------------------------------------


def _convert_object(value: object, depth: int, budget: list[int]) -> JSONValue:
    """The form of an object. What its own code raises becomes an error with its place."""
    if depth > MAX_DEPTH:
        _raise_too_deep()
    budget[0] -= _OBJECT_VALUES
    if budget[0] < 0:
        _raise_endless()
    try:
        form = _reader_of(value.__class__)(value, budget)
        # What is read of an object may be an object again, without end.
        return _convert(form, depth if type(form) in _PLAIN else depth + 1, budget)
    except (_UnstorableError, RecursionError, MemoryError):
        raise
    except Exception as error:
        reason = f"a {_name_of(value)} that raises {type(error).__name__} when it is read"
        raise _UnstorableError(reason) from error


_Reader: TypeAlias = Callable[[Any, list[int]], object]
"""What is converted in place of an object: a value of Python's own types, or an object inside it."""


@lru_cache(maxsize=1_024)
def _reader_of(kind: type) -> _Reader:
    if issubclass(kind, Mapping):
        return _read_mapping
    for types_, form in _FORMS:
        if issubclass(kind, types_):
            return _reader_with(form)
    if issubclass(kind, AbstractSet):
        return _read_set
    if issubclass(kind, Sequence | ValuesView):
        return _read_items
    if issubclass(kind, _REFUSED):
        return _refuse
    if issubclass(kind, type):
        return _reader_with(_text_of)
    methods = cast("Any", kind)
    if callable(getattr(methods, "tolist", None)):
        return _read_array
    if dataclasses.is_dataclass(methods):
        return _reader_with(_dataclass_fields)
    # Of the class: a mock, or an object that forwards to another one, has every attribute.
    names = [
        name for name in ("model_dump", "dict") if callable(getattr(methods, name, None))
    ]  # pydantic 2, 1
    return partial(_read_model, tuple(names)) if names else _reader_with(_text_of)


def _reader_with(form: Callable[[Any], object]) -> _Reader:
    return lambda value, _: form(value)


def _read_mapping(value: Mapping[object, object], budget: list[int]) -> dict[object, object]:
    """Read item by item: `len` may not be true. The items are counted when the result is converted."""
    return dict(cast("list[tuple[object, object]]", _read_items(value.items(), budget)))


def _read_items(value: Iterable[object], budget: list[int]) -> list[object]:
    items: list[object] = []
    for item in value:
        items.append(item)
        if len(items) > budget[0]:
            _raise_endless()
    return items


def _read_set(value: AbstractSet[object], budget: list[int]) -> list[object]:
    items = _read_items(value, budget)
    try:
        return sorted(cast("list[Any]", items))
    except Exception:  # noqa: BLE001 - items of several types, or with a comparison that fails
        return items


def _read_array(value: Any, budget: list[int]) -> object:
    """A NumPy scalar or array, or what has the same method: a number or lists of numbers."""
    size = getattr(value, "size", 1)
    if isinstance(size, int) and size > budget[0]:
        _raise_endless()
    if getattr(getattr(value, "dtype", None), "kind", "") in _NUMPY_TIMES:
        value = value.astype(str)  # `tolist` gives times in nanoseconds as mere integers
    items = value.tolist()
    return float(items) if type(items) is type(value) else items  # a `longdouble` stays one


_NUMPY_TIMES: Final = ("m", "M")


def _read_model(method_names: tuple[str, ...], value: object, _: list[int]) -> object:
    """The fields of a model, or its text where the method is an unrelated one of that name."""
    for name in method_names:
        try:
            return getattr(value, name)()
        except (RecursionError, MemoryError):
            raise
        except Exception:  # noqa: BLE001, S112
            continue
    return _text_of(value)


def _dataclass_fields(value: Any) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _refuse(value: object, _: list[int]) -> NoReturn:
    raise _UnstorableError(f"a {_name_of(value)} has no JSON form")


def _key_text(key: object) -> str:
    """A key that is not a `str`, as `json.dumps` writes it, or else its `str`."""
    try:
        if isinstance(key, Enum):
            return _key_text(key.value)
        if isinstance(key, str):
            return str.__str__(key)
        if key is None:
            return "null"
        if isinstance(key, bool):
            return "true" if key else "false"
        return _refuse(key, []) if isinstance(key, _REFUSED) else _text_of(key)
    except (_UnstorableError, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise _UnstorableError(
            f"one of its keys, a {_name_of(key)}, raises {type(error).__name__}"
        ) from error


def _text_of(value: object) -> str:
    """An object's `str`, where it says more than its address."""
    try:
        text = str(value)
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        raise _UnstorableError(f"a {_name_of(value)} that cannot be converted to text") from error
    if _ADDRESS.search(text) and not isinstance(value, BaseException):
        raise _UnstorableError(f"a {_name_of(value)} has no JSON form, and its text is only its address")
    return text if type(text) is str else str.__str__(text)


def _name_of(value: object) -> str:
    return type(value).__name__


def _readable(name: str) -> str:
    """A key in an error's text, which is short and can be encoded."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= _MAX_NAME_LENGTH else f"{text[:_MAX_NAME_LENGTH]}..."


_MAX_NAME_LENGTH: Final = 100


def _base64(value: object) -> str:
    return base64.b64encode(bytes(cast("bytes", value))).decode("ascii")


def _isoformat(value: object) -> str:
    return cast("datetime", value).isoformat()


_PLAIN: Final = frozenset({str, bool, type(None), int, float, dict, list})

# The first matching type decides; Enum is first because an enum may also be a str or an int.
_FORMS: tuple[tuple[type | tuple[type, ...], Callable[[Any], object]], ...] = (
    (Enum, lambda value: value.value),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    ((datetime, date, time), _isoformat),
    ((UUID, UserString), str),
    ((bytes, bytearray, memoryview), _base64),
)

_REFUSED: tuple[type, ...] = (
    Iterator,  # generators and open files among them
    AsyncIterable,
    Awaitable,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
)
"""What would be used up by reading it, or is no data."""
