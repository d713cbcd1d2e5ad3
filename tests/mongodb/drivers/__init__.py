"""The driver contract: what the stores rely on, checked on each driver that talks to a server."""

from __future__ import annotations

import pytest

_PARTS = (
    "answers",
    "cancellation",
    "change_streams",
    "closing",
    "error_mapping",
    "group_limits",
    "grouped_lists",
    "grouped_reads",
    "grouped_writes",
    "large_batches",
)

pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))
