"""Objects to JSON-like values. Stands for DeerFlow's `serialize_lc_object`, which only runs go through."""

from __future__ import annotations

from typing import Any, cast


def plain(value: Any) -> Any:
    """Containers level by level, a model as it dumps itself, anything else as its text."""
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
            except Exception:  # noqa: BLE001, S112 - as there
                continue
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - as there
        return repr(value)
