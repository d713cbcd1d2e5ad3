"""The short form of the laboratory: load on a replica set whose primary is killed, frozen and deposed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..child_processes import communicate
from ..long_form import LONG_FORM
from .matrix import Plan, run_matrix
from .servers import ReplicaSet

GROUP_WRITERS = 20 if LONG_FORM else 10
FROZEN_S = 10.0
TIMEOUT_MS = 8_000
"""Less than the primary is frozen for: a client that waits for it reports errors."""


@pytest.mark.parametrize(
    ("driver", "plan"),
    [
        ("pymongo", Plan(kills=2, freezes=2, step_downs=2, fail_points=3, freeze_s=3.5, seconds_between=0.1)),
        ("motor", Plan(kills=1, freezes=1, fail_points=1, freeze_s=3.5, seconds_between=0.1)),
    ],
    ids=["pymongo", "motor"],
)
async def test_failovers_lose_double_and_hide_nothing_and_show_no_error(
    replica_set: ReplicaSet, driver: str, plan: Plan
) -> None:
    report = await run_matrix(replica_set, plan, driver=driver, database=f"failovers_{driver}")
    assert report.figures.broken == [], report.table()
    assert report.figures.errors == {}, report.table()


async def test_kills_under_a_load_of_groups_lose_double_and_hide_nothing(replica_set: ReplicaSet) -> None:
    """So many writers that calls share commands; PyMongo gives up a few of them, also without groups."""
    plan = Plan(kills=20 if LONG_FORM else 2, seconds_between=0.1)
    report = await run_matrix(replica_set, plan, database="groups", writers=GROUP_WRITERS)
    print("\n" + report.table())  # noqa: T201
    assert report.figures.broken == [], report.table()
    assert all(report.grouped_calls[kind] > 0 for kind in ("update", "upsert"))


async def test_frozen_primary_costs_a_pause_and_no_error(replica_set: ReplicaSet) -> None:
    """The URI sets nothing: the package's own settings let the driver notice it in seconds."""
    plan = Plan(freezes=1, freeze_s=FROZEN_S)
    report = await run_matrix(replica_set, plan, database="frozen", timeout_ms=TIMEOUT_MS)
    assert report.figures.broken == [], report.table()
    assert report.figures.errors == {}, report.table()
    assert report.figures.longest_call[0] < TIMEOUT_MS / 1000, report.table()


def test_interrupted_long_form_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults", "--kills", "9", "--seconds-between", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("load with pymongo on mongodb://")
        child.send_signal(signal.SIGINT)
        output, errors = communicate(child)
    assert (child.returncode, output.strip(), errors) == (130, "interrupted", "")
    assert list(tmp_path.iterdir()) == []
