"""Objects -> JSON-like values. Reimplements DeerFlow's `serialize_lc_object`, which is used for runs only."""

from __future__ import annotations

from typing import Any, cast


def plain(value: Any) -> Any:
    """Converts containers recursively, models by their dump method, and anything else to text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("list[Any]", value)]
    for method in ("model_dump", "dict"):
        if hasattr(value, method):
            try:
                return getattr(value, method)()
            except Exception:  # noqa: BLE001, S112 - as in DeerFlow
                continue
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - as in DeerFlow
        return repr(value)
