"""Text of a recording or a database as one line of a terminal: cut to a width, without control characters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from rich.text import Text

from ..contract.rows import JSONValue
from .recording import text_of

MAX_TEXT_SHOWN = 160
_MAX_READ = 1_000


def plain(text: object, length: int = MAX_TEXT_SHOWN) -> str:
    """The text as one line that cannot control the terminal."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= length else f"{line[:length]}… ({len(line):,} characters)"


def cell(text: str | None, width: int) -> Text:
    """Such a line cut to `width` columns of a terminal, where a Chinese character takes two."""
    cell = Text(plain(text or "-", MAX_TEXT_SHOWN))
    cell.truncate(width, overflow="ellipsis")
    return cell


def counted(number: int, noun: str) -> str:
    """A number and its noun, such as "1 index" or "2,048 writes"."""
    plural = f"{noun}es" if noun.endswith("x") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def json_text(value: object) -> str:
    """The text of a value that JSON does not have: a stored time, in UTC, or what others have stored."""
    return f"{value.isoformat()}Z" if isinstance(value, datetime) else str(value)


def first_words(content: JSONValue) -> str:
    """The first words of an event's content: its text, a message's text or tool calls, or else its JSON."""
    text = content if isinstance(content, str) else ""
    if isinstance(content, dict):
        text = text_of(content).strip() or _tool_calls_of(content)
    if not text and not isinstance(content, str):
        text = json.dumps(content, ensure_ascii=False)
    words = " ".join(text.lstrip()[:_MAX_READ].split())
    return words if len(words) <= MAX_TEXT_SHOWN else f"{words[: MAX_TEXT_SHOWN - 1]}…"


def _tool_calls_of(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return ""
    named = [
        cast("Mapping[str, Any]", call) for call in cast("list[Any]", calls) if isinstance(call, Mapping)
    ]
    return f"calls {', '.join(str(call.get('name')) for call in named)}" if named else ""
