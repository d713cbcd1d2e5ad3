"""Two rounds of `checkpoint_kills.py`: one kills the process that writes, one its server."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("langgraph.checkpoint.base")

from .checkpoint_kills import run_rounds
from .servers import ReplicaSet

ROUNDS = 2


def test_kill_of_writer_or_server_leaves_whole_checkpoints(tmp_path: Path) -> None:
    with ReplicaSet(1) as cluster:
        outcome = run_rounds(cluster, ROUNDS, tmp_path)
    assert outcome.failures == []
    assert outcome.acknowledged > 0
