"""Payload values, keys and texts as BSON stores them.

A payload (`metadata`, `kwargs`) is stored as a native subdocument, so that people can query it. What BSON
would not return unchanged (an integer beyond 64 bits, a lone surrogate, a key with NUL, a `$ref`) is stored
as marked JSON instead, `{"_json": "<text>"}`. Each top-level value is marked on its own: one such value
neither hides the others from queries nor prevents a merge by key.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, cast

from bson import DBRef, Int64

from ...contract.arguments import long_text
from ...contract.rows import JSONValue

Document: TypeAlias = dict[str, Any]
Update: TypeAlias = Document | list[Document]
"""An update's operators, or the stages of one that reads the stored document."""

JSON_MARK = "_json"
"""The only key of a marked value, and the prefix of a marked key."""

WHOLE: Final = frozenset({int, Int64})
"""The types of a whole number in a document that was read."""

OPTIONAL_WHOLE: Final = frozenset({*WHOLE, type(None)})

_DBREF_KEY = "$ref"  # a subdocument with it comes back from BSON as a DBRef
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
_JSON_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


class UnreadableError(Exception):
    """A field has a type or a value that no release writes; internal. See `row_collection.py`."""


def _text_is_native(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key_is_native(key: str) -> bool:
    return "\0" not in key and key != _DBREF_KEY and _text_is_native(key)


def _is_native(value: JSONValue) -> bool:
    """Whether BSON returns `value` unchanged."""
    kind = type(value)
    if kind is str:
        return _text_is_native(cast("str", value))
    if kind is dict:
        for key, item in cast("dict[str, JSONValue]", value).items():
            if not _key_is_native(key) or not _is_native(item):
                return False
        return True
    if kind is list:
        return all(map(_is_native, cast("list[JSONValue]", value)))
    if kind is int:
        return _MIN_INT64 <= cast("int", value) <= _MAX_INT64
    return True


def _marked(value: JSONValue) -> Document:
    return {JSON_MARK: json.dumps(value, separators=(",", ":"))}


def _is_marked(value: object) -> bool:
    return type(value) is dict and JSON_MARK in value


def encode_value(value: JSONValue) -> Any:
    """A JSON-like value as it is stored."""
    return _marked(value) if _is_marked(value) or not _is_native(value) else value


def _plain(value: object) -> Any:
    """`value` with the driver's own types as JSON, at any depth.

    Of these, only 64-bit integers are written here; another program may have added a date to a payload.
    """
    kind = type(value)
    if kind in _JSON_SCALARS:
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("Document", value).items()}
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[object]", value)]
    if kind is Int64:
        return int(cast("int", value))
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC).isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, DBRef):
        return _plain(dict(value.as_doc()))
    return str(value)


def decode_value(stored: Any) -> JSONValue:
    return json.loads(stored[JSON_MARK]) if _is_marked(stored) else _plain(stored)


def _encode_key(key: str) -> str:
    if _key_is_native(key) and not key.startswith(JSON_MARK):
        return key
    return JSON_MARK + json.dumps(key)


def _keys_need_no_mark(payload: dict[str, Any]) -> bool:
    keys = "\n".join(payload)
    return keys.isascii() and "\0" not in keys and _DBREF_KEY not in keys and JSON_MARK not in keys


def _needs_no_mark(payload: dict[str, JSONValue]) -> bool:
    """Whether a payload is stored unchanged. True for most; a wrong False only costs an exact check."""
    if not _keys_need_no_mark(payload):
        return False
    todo: list[Any] = [payload.values()]
    for items in todo:
        for item in items:
            kind = type(item)  # pyright: ignore[reportUnknownVariableType]
            if kind is str:
                if not item.isascii() and not _text_is_native(item):
                    return False
            elif kind is dict:
                if not _keys_need_no_mark(item):
                    return False
                todo.append(item.values())
            elif kind is list:
                todo.append(item)
            elif kind is int and not _MIN_INT64 <= item <= _MAX_INT64:
                return False
    return True


def encode_mapping(payload: dict[str, JSONValue]) -> Document:
    """A payload as the subdocument that is stored; each key and value is marked on its own."""
    if _needs_no_mark(payload):
        return payload
    return {_encode_key(key): encode_value(value) for key, value in payload.items()}


def _decode_key(key: str) -> str:
    return json.loads(key[len(JSON_MARK) :]) if key.startswith(JSON_MARK) else key


def decode_mapping(stored: dict[str, Any]) -> dict[str, JSONValue]:
    """The payload of a stored subdocument: the subdocument itself where nothing needs decoding.

    That is so for most, and on the hot path of every row.
    """
    if type(stored) is not dict:
        raise UnreadableError
    if not stored:
        return stored
    if JSON_MARK in "\n".join(stored):
        return _decoded(stored)
    todo: list[Any] = [stored.values()]
    for items in todo:
        for item in items:
            kind = type(item)  # pyright: ignore[reportUnknownVariableType]
            if kind is str or kind is int:
                continue
            if kind is dict:
                if JSON_MARK in item:
                    return _decoded(stored)
                todo.append(item.values())
            elif kind is list:
                todo.append(item)
            elif kind not in _JSON_SCALARS:
                return _decoded(stored)
    return stored


def _decoded(stored: dict[str, Any]) -> dict[str, JSONValue]:
    return {_decode_key(key): decode_value(value) for key, value in stored.items()}


def encode_text(name: str, value: object) -> Any:
    """A text of any length, or None, as it is stored; raises `ArgumentTypeError` for anything else."""
    return encode_value(long_text(name, value))


def decode_text(stored: Any) -> str | None:
    if type(stored) is str or stored is None:
        return stored
    text = json.loads(cast("Document", stored)[JSON_MARK])
    if type(text) is not str or len(stored) != 1:
        raise UnreadableError
    return text


def text_of(stored: object) -> str:
    if type(stored) is not str:
        raise UnreadableError
    return stored


def encode_content(content: JSONValue) -> Any:
    """A run event's content: a mapping key by key, as payloads are; anything else as one value."""
    return encode_mapping(content) if isinstance(content, dict) else encode_value(content)


_CONTENTS: Final = frozenset({*WHOLE, list, bool, float})
"""The types of a content that is neither text nor an object."""


def decode_content(stored: Any) -> JSONValue:
    if type(stored) is str:
        return stored
    if type(stored) is dict:
        document = cast("Document", stored)
        return decode_value(document) if JSON_MARK in document else decode_mapping(document)
    if type(stored) not in _CONTENTS:
        raise UnreadableError
    return _plain(stored)
