"""What a saver and a graph answer, without the ids, times and random parts that differ between two runs.

Ids become numbers in the order in which they appear, so that equal answers have equal references.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, cast

_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|\b[0-9a-f]{32}\b")
_VERSION = re.compile(r"\b(\d{32})\.[\d.]+(?:e-\d+)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*(?:\+00:00|Z)?")


_MAX_TEXT = 2000
"""Longer texts have no ids and are compared by a hash."""


class Answers:
    """Collects answers in the order in which they were given."""

    def __init__(self) -> None:
        self.collected: list[Any] = []
        self._numbers: dict[str, str] = {}

    def add(self, name: str, value: Any) -> None:
        self.collected.append((name, self.plain(value)))

    def plain(self, value: Any) -> Any:
        """Nested lists, dicts and texts; objects by their type and fields."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            items = sorted(cast("dict[Any, Any]", value).items(), key=lambda item: _without_ids(item[0]))
            return {self.plain(key): self._in_dict(key, item) for key, item in items}
        if hasattr(value, "_asdict"):
            return self.plain(value._asdict())
        if isinstance(value, (list, tuple)):
            return [self.plain(item) for item in cast("list[Any]", value)]
        if isinstance(value, (set, frozenset)):
            return sorted(map(repr, cast("set[Any]", value)))
        if isinstance(value, BaseException):
            return self._text(repr(value))
        if hasattr(value, "model_dump"):
            return [type(value).__name__, self.plain(value.model_dump())]
        return value if isinstance(value, (int, float, bytes)) or value is None else self._text(repr(value))

    def _in_dict(self, key: Any, item: Any) -> Any:
        """Interrupts of parallel tasks come in any order."""
        return self.plain(sorted(item, key=_without_ids) if key == "__interrupt__" else item)

    def _text(self, text: str) -> str:
        if len(text) > _MAX_TEXT:
            return f"{len(text)} characters, {hashlib.sha256(text.encode()).hexdigest()[:9]}"
        text = _VERSION.sub(lambda match: f"version {int(match[1])}", _TIME.sub("time", text))
        return _ID.sub(lambda match: self._numbers.setdefault(match[0], f"id {len(self._numbers)}"), text)


def _without_ids(value: Any) -> str:
    return _ID.sub("", repr(value))


def stored(answers: Answers, rows: list[Any]) -> list[Any]:
    """The rows of `alist` for all namespaces of a thread, oldest first.

    Writes of parallel tasks are sorted by content: their order depends on the tasks' ids.
    """
    found: list[Any] = []
    for row in sorted(rows, key=_checkpoint_id):
        writes = sorted(row.pending_writes or [], key=lambda write: (write[1], repr(write[2])))
        found.append(answers.plain(row._replace(pending_writes=writes)))
    return found


def _checkpoint_id(row: Any) -> str:
    return row.config["configurable"]["checkpoint_id"]


def difference(left: Any, right: Any, place: str = "") -> str | None:
    """Where two plain answers differ first, in a few words; None where they are equal."""
    if left == right:
        return None
    if isinstance(left, dict) and isinstance(right, dict):
        ours, theirs = cast("dict[Any, Any]", left), cast("dict[Any, Any]", right)
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            found = difference(ours.get(key, "(absent)"), theirs.get(key, "(absent)"), f"{place}.{key}")
            if found is not None:
                return found
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        rows, others = cast("list[Any]", left), cast("list[Any]", right)
        for index, (row, other) in enumerate(zip(rows, others, strict=False)):
            found = difference(row, other, f"{place}[{index}]")
            if found is not None:
                return found
        return f"{place}: {len(rows)} and {len(others)} elements"
    return f"{place}: {left!r:.300} and {right!r:.300}"
