"""JSON requests whose values can be stored, run and sent back: without lone surrogates, NaN and infinity.

Python's decoder accepts what UTF-8 and JSON do not have. DeerFlow passes such a value on to the model, to its
checkpoints and to the event stream, none of which can encode it: the thread would answer with errors for
ever. What a store returns is `encodable.py`'s matter, not this module's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .encodable import encodable

_SUSPECT = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|NaN|Infinity|[eE]\+?[0-9]{3}|\x00")
"""Half of a character, escaped or not; a number that JSON lacks; UTF-16. A match may still be valid."""


class EncodableRequests:
    """ASGI middleware that replaces what cannot be encoded in the body of a JSON request."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _may_be_json(scope):
            receive = _EncodableBody(receive).receive
        await self._app(scope, receive, send)


class _EncodableBody:
    """The messages of a request, with the whole body in the first one: DeerFlow, too, reads JSON whole."""

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        self._receive = receive
        self._is_complete = False

    async def receive(self) -> MutableMapping[str, Any]:
        if self._is_complete:
            return await self._receive()
        parts: list[bytes] = []
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        self._is_complete = True
        return {"type": "http.request", "body": encodable_body(b"".join(parts)), "more_body": False}


def _may_be_json(scope: MutableMapping[str, Any]) -> bool:
    content_type = next((value for name, value in scope["headers"] if name.lower() == b"content-type"), b"")
    return not content_type or b"json" in content_type.lower()


def encodable_body(body: bytes) -> bytes:
    """The JSON text with what cannot be encoded replaced; what is not JSON comes back as it is."""
    if _SUSPECT.search(body) is None:
        return body
    try:
        value: object = json.loads(body)
        replaced = encodable(value)
    except (ValueError, RecursionError):
        return body
    return body if replaced is value else json.dumps(replaced).encode()
