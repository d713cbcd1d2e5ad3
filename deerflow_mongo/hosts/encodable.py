"""Values that a host can always send as JSON in UTF-8: no lone surrogates, no NaN or infinity.

The stores return text as it was stored. Half of an emoji (a lone surrogate) is valid in a Python `str` and in
the escapes of JSON, and not in UTF-8: one such character in one message would make every answer that contains
it an error 500. Nothing of what is stored is changed here, and JSON is not written here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from ..contract.rows import ThreadMeta
from .store_proxy import StoreProxy

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands for a lone surrogate, as in any decoder of Unicode."""

T = TypeVar("T")


def encodable(value: T) -> T:
    """`value` with every lone surrogate replaced, in keys too, and None for a number that JSON lacks.

    Values that need no change, the normal case, are returned as they are and not copied. Covers `str`,
    `dict`, `list`, `tuple` and `float`; other objects are returned as they are.
    """
    return value if is_encodable(value) else cast("T", _replaced(value))


def is_encodable(value: Any) -> bool:
    """Whether `value` contains nothing that `encodable` replaces."""
    return _are_encodable((value,))


def _are_encodable(values: Iterable[Any]) -> bool:
    # Nearly all values are short texts in ASCII: only the others cost a call.
    for value in values:
        kind: Any = value.__class__
        if kind is str:
            if not (value.isascii() or _is_valid(value)):
                return False
        elif kind is dict:
            if value and not (_are_encodable(value) and _are_encodable(value.values())):
                return False
        elif kind is list or kind is tuple:
            if value and not _are_encodable(value):
                return False
        elif kind is float and not math.isfinite(value):
            return False
    return True


def _is_valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _replaced(value: Any) -> Any:
    kind: Any = value.__class__
    if kind is str:
        # The two halves of one character become that character.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is list:
        return list(map(_replaced, value))
    if kind is tuple:
        return tuple(map(_replaced, value))
    return _replaced_mapping(value) if kind is dict else value


def _replaced_mapping(value: dict[Any, Any]) -> dict[Any, Any]:
    replaced: dict[Any, Any] = {}
    for key, item in value.items():
        name = _replaced(key)
        while name in replaced:  # two keys may differ only in what was replaced
            name += REPLACEMENT
        replaced[name] = _replaced(item)
    return replaced


class EncodableStore(StoreProxy):
    """A store whose rows can always be sent as JSON, for hosts that send them as they are."""

    async def _call(self, method: Callable[..., Awaitable[Any]], /, *arguments: Any, **options: Any) -> Any:
        return _encodable_result(await method(*arguments, **options))

    def _item(self, item: Any) -> Any:
        return _encodable_result(item)


class EncodableBridge(StoreProxy):
    """DeerFlow's bridge to its event streams: what a run publishes can be sent.

    A model's response may bring the two halves of a character in two pieces.
    """

    async def _call(self, method: Callable[..., Awaitable[Any]], /, *arguments: Any, **options: Any) -> Any:
        return await method(*encodable(arguments), **encodable(options))


def _encodable_result(result: Any) -> Any:
    """A store's result: JSON, or threads, which are objects with attributes."""
    if isinstance(result, ThreadMeta):
        return _encodable_thread(result)
    if type(result) is list:
        return [_encodable_result(item) for item in cast("list[Any]", result)]
    return encodable(result)


def _encodable_thread(thread: ThreadMeta) -> ThreadMeta:
    values = {field.name: getattr(thread, field.name) for field in fields(thread)}
    return thread if is_encodable(values) else replace(thread, **encodable(values))
