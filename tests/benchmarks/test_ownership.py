"""The command `python -m benchmarks ownership`; its run needs a checkout of DeerFlow main."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import ownership
from benchmarks.ownership import OURS, THEIRS, VARIABLE, Measured, OwnershipError, Round, comparable, table

from ..child_processes import run_child

ROOT = Path(__file__).parents[2]
SHORT_RUN = ("--seconds", "0.05", "--repetitions", "2", "--tasks", "1", "4")


def test_missing_checkout_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(OwnershipError, match=VARIABLE):
        ownership.import_checkout()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(OwnershipError, match="packages/harness/deerflow"):
        ownership.import_checkout()


def test_answers_are_compared_without_their_times() -> None:
    row = {"run_id": "r", "status": "running", "metadata": {"a": 1}, "created_at": "now", "started_at": None}
    same = {"metadata": {"a": 1}, "run_id": "r", "status": "running", "created_at": "later"}
    assert comparable((row, [row])) == comparable((same, [same]))
    assert comparable(row) != comparable({**row, "status": "pending"})


def test_table_has_the_median_ratio_and_its_range() -> None:
    ours = [Round(ops, 1.0, 2.0, 3.0) for ops in (200.0, 300.0, 400.0)]
    theirs = [Round(100.0, 4.0, 5.0, 6.0)] * 3
    text = table([Measured("renew_lease", 32, {OURS: ours, THEIRS: theirs})])
    assert "| renew_lease | 32 | 300 (1.0) | 100 (4.0) | 3.0 (2.0 to 4.0) |" in text


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} does not name a checkout of DeerFlow")
def test_every_workload_returns_the_same_on_both_sides_and_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "rounds.json"
    command = [sys.executable, "-m", "benchmarks", "ownership", "--out", str(out), *SHORT_RUN]
    result = run_child(command, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    measured = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["workload"], one["tasks"]) for one in measured] == [
        (name, tasks) for name in ownership.WORKLOADS for tasks in (1, 4)
    ]
