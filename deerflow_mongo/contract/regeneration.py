"""Which run another run repeats: the keys that DeerFlow sets in the metadata of such a run.

Metadata is a caller's: another value than a text names no run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

REGENERATED_RUN: Final = "regenerate_from_run_id"
"""The id of the run that is repeated."""

REPLAY_KIND: Final = "replay_kind"
EDIT: Final = "edit"
"""The `replay_kind` of a run that repeats another one with an edited message."""


def regenerated_run(metadata: Mapping[str, Any]) -> str | None:
    """The id of the run that a run with this metadata repeats, or None."""
    run_id = metadata.get(REGENERATED_RUN)
    return run_id if isinstance(run_id, str) and run_id else None


def is_edit_regeneration(metadata: Mapping[str, Any]) -> bool:
    """Whether a run with this metadata repeats another one with an edited message."""
    return metadata.get(REPLAY_KIND) == EDIT and regenerated_run(metadata) is not None
