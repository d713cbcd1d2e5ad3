"""What of a payload a document holds, for callers who would rather lose a part of it than all.

DeerFlow's SQL takes text of any size, and JSON with NaN. Its journal hands over a refused batch of events
again and again, and its run manager goes on without a run that was refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from ...contract.errors import InvalidPayloadError
from ...contract.payloads import to_json_mapping
from ...mongodb.documents.encoding import encode_mapping
from ...mongodb.documents.run_events import event_size_bytes


def text_of(content: object) -> str:
    """`content` as DeerFlow writes it down: text as it is, anything else as JSON."""
    if isinstance(content, str):
        return content
    try:
        return json.dumps(content, default=str, ensure_ascii=False)
    except Exception:  # noqa: BLE001 - a stranger's `__str__`; no event is lost for it
        return f"<{type(content).__name__} without a text>"


def cut_text(text: str, max_bytes: int) -> tuple[str, dict[str, Any]]:
    """As much of `text` as `max_bytes` hold and, where something is missing, DeerFlow's marks for that."""
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) <= max_bytes:
        return text, {}
    kept = encoded[:max_bytes].decode("utf-8", "ignore")
    return kept, {"content_truncated": True, "original_byte_length": len(encoded)}


def storable_part(payload: object, max_bytes: int) -> dict[str, Any]:
    """Those entries of `payload`, in their order, that can be stored and together fit into `max_bytes`."""
    kept: dict[str, Any] = {}
    if not isinstance(payload, Mapping):
        return kept
    for key, value in cast("Mapping[Any, Any]", payload).items():
        try:
            entry = to_json_mapping({key: value}, "payload")
        except InvalidPayloadError:
            continue
        size_bytes = event_size_bytes(encode_mapping(entry))
        if size_bytes <= max_bytes:
            max_bytes -= size_bytes
            kept |= entry
    return kept
