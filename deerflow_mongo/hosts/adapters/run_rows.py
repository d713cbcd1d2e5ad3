"""Rows of runs with the keys that the installed DeerFlow reads, all of them, with its defaults.

Which rows a caller may see is not decided here, and nothing is read or written.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from ...contract.rows import OwnedRunRow
from ..deerflow import import_deerflow
from ..encodable import encodable

_store: Any = import_deerflow("deerflow.runtime.runs.store.base").RunStore

HAS_RUN_OWNERSHIP: Final[bool] = hasattr(_store, "create_thread_operation_atomic")
"""Whether DeerFlow admits runs through its store, with owners and leases: releases after 2.0."""

PASSES_COUNTS_BY_MODEL: Final[bool] = (
    "token_usage_by_model" in inspect.signature(_store.update_run_completion).parameters
)
"""Whether a completion has counts by model: releases from 2.0 on."""

_OWNERSHIP_KEYS: Final = tuple(OwnedRunRow.__annotations__.keys() - {"token_usage_by_model"})

_MODEL_COUNTS: Final = ("input_tokens", "output_tokens", "total_tokens")
_OPTIONAL_MODEL_COUNT: Final = "cache_read_tokens"


def host_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row as DeerFlow reads it: `updated_at` is never empty, and everything can be sent as JSON."""
    host = {**row, "updated_at": row["updated_at"] or row["created_at"]}
    if PASSES_COUNTS_BY_MODEL:
        host["token_usage_by_model"] = _counts_by_model(row.get("token_usage_by_model") or {})
    else:
        host.pop("token_usage_by_model", None)
    for key in _OWNERSHIP_KEYS:
        if HAS_RUN_OWNERSHIP:
            host.setdefault(key, None)
        else:
            host.pop(key, None)
    if HAS_RUN_OWNERSHIP:
        host["operation_kind"] = host["operation_kind"] or "run"
    return encodable(host)


def _counts_by_model(stored: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    counts_by_model: dict[str, dict[str, int]] = {}
    for model, counts in stored.items():
        counts_by_model[model] = {name: counts.get(name, 0) for name in _MODEL_COUNTS}
        if _OPTIONAL_MODEL_COUNT in counts:
            counts_by_model[model][_OPTIONAL_MODEL_COUNT] = counts[_OPTIONAL_MODEL_COUNT]
    return counts_by_model
