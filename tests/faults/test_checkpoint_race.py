"""The short form of the race between savers and deletions; see `checkpoint_race.py` for the long one."""

from __future__ import annotations

import pytest

pytest.importorskip("langgraph.checkpoint.base")

from .checkpoint_race import race

SECONDS = 4.0


async def test_no_checkpoint_breaks_while_others_delete(mongodb_url: str, database_name: str) -> None:
    done = await race(mongodb_url, database_name, SECONDS)
    assert done.broken == []
    assert done.raised == []
    assert min(done.figures[kind] for kind in ("put", "prune", "checkpoints read")) > 0
