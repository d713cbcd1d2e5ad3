"""Fixtures of the command line's tests."""

from __future__ import annotations

import pytest

from deerflow_mongo.demo import consistency


@pytest.fixture
def short_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's consistency check, in this process, takes two steps per writer."""
    monkeypatch.setattr(consistency, "STEPS", 2)
