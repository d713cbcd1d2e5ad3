"""The part of a payload that can be stored, for callers who would rather lose a part of it than all.

DeerFlow's SQL takes text of any size, and JSON with NaN. Its journal repeats a refused batch of events again
and again, and its run manager continues a run that was refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from ...contract.errors import InvalidPayloadError
from ...contract.payloads import MAX_DEPTH, to_json, to_json_mapping
from ...contract.rows import JSONValue

MAX_LOOKED_AT: Final = 100_000
"""Values of one entry among which an object without a JSON form is looked for; with more it is left out."""


def content_text(content: object) -> str:
    """`content` as the text that DeerFlow stores: a text as it is, anything else as JSON."""
    if isinstance(content, str):
        return content
    try:
        return json.dumps(content, default=str, ensure_ascii=False)
    except Exception:  # noqa: BLE001 - an unknown object's `__str__` may raise anything; the event is stored
        return f"<{type(content).__name__} without a text>"


def truncate_text(text: str, max_bytes: int) -> tuple[str, dict[str, Any]]:
    """The first `max_bytes` of `text` in UTF-8 and, if something is missing, DeerFlow's metadata for that."""
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) <= max_bytes:
        return text, {}
    beginning = encoded[:max_bytes].decode("utf-8", "ignore")
    return beginning, {"content_truncated": True, "original_byte_length": len(encoded)}


def storable_entries(payload: object, max_bytes: int) -> dict[str, Any]:
    """The entries of `payload`, in their order, that can be stored and together fit into `max_bytes`.

    An object in them that has no JSON form and no text becomes the name of its type. The size of an entry is
    that of its JSON text in UTF-8. A backend's own format may need more: a caller tries again with less if
    the result is refused.
    """
    entries: dict[str, Any] = {}
    if not isinstance(payload, Mapping):
        return entries
    for key, value in cast("Mapping[Any, Any]", payload).items():
        try:
            entry = _storable_entry(key, value)
        except InvalidPayloadError:
            continue
        size_bytes = len(json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if size_bytes <= max_bytes:
            max_bytes -= size_bytes
            entries |= entry
    return entries


def _storable_entry(key: Any, value: Any) -> dict[str, JSONValue]:
    try:
        return to_json_mapping({key: value}, "payload")
    except InvalidPayloadError:
        return to_json_mapping({key: _with_type_names(value, _Room())}, "payload")


class _Room:
    """How many more values are looked at: a payload may contain itself."""

    def __init__(self) -> None:
        self._values = MAX_LOOKED_AT

    def use(self) -> None:
        self._values -= 1
        if self._values < 0:
            raise InvalidPayloadError("payload", f"it has more than {MAX_LOOKED_AT:,} values")


def _with_type_names(value: Any, room: _Room, levels: int = MAX_DEPTH) -> Any:
    """`value` with the name of its type for each object that has no JSON form, in so many levels."""
    room.use()
    if levels and isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {key: _with_type_names(item, room, levels - 1) for key, item in items}
    if levels and isinstance(value, list | tuple):
        return [_with_type_names(item, room, levels - 1) for item in cast("list[Any]", value)]
    if value is None or isinstance(value, str | int | float | dict | list | tuple):
        return cast("Any", value)
    try:
        return to_json(value, "payload")
    except InvalidPayloadError:
        return f"<{type(value).__name__}>"
