"""The scenarios over two workers, where `DEERFLOW_BACKEND` names a checkout of DeerFlow main."""

from __future__ import annotations

from pathlib import Path

import pytest

from .checkout import has_run_ownership, missing_checkout
from .gateway_process import SLOW
from .scenarios import SCENARIOS, run_scenarios

NUMBERED = {*range(1, 9), *range(10, 22), 28, 29}


def test_every_scenario_has_a_number_and_a_situation() -> None:
    assert {*SCENARIOS} >= NUMBERED
    assert all(scenario.__doc__ for scenario in SCENARIOS.values())


@SLOW
@pytest.mark.skipif(
    missing_checkout() is not None or not has_run_ownership(), reason="there is no checkout of DeerFlow main"
)
async def test_scenarios_over_two_workers_have_their_outcomes(tmp_path: Path) -> None:
    rows = await run_scenarios(SCENARIOS, tmp_path, print)
    assert all(row.is_expected for row in rows), "\n".join(map(str, rows))
