"""Statuses: which ones end a run, and that an ended run is never started again."""

from __future__ import annotations

from deerflow_mongo.contract.rows import ACTIVE_STATUSES, ENDED_STATUSES
from deerflow_mongo.contract.statuses import is_ending, restarts_ended_run


def test_only_an_active_status_on_an_ended_run_restarts_it() -> None:
    statuses = (*ACTIVE_STATUSES, *ENDED_STATUSES, "odd")
    restarts = {(old, new) for old in statuses for new in statuses if restarts_ended_run(old, new)}
    assert restarts == {(old, new) for old in ENDED_STATUSES for new in ACTIVE_STATUSES}


def test_every_status_but_an_active_one_is_an_ending() -> None:
    assert all(map(is_ending, (*ENDED_STATUSES, "odd")))
    assert not any(map(is_ending, ACTIVE_STATUSES))
