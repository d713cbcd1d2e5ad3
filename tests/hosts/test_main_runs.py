"""What DeerFlow main may rely on of our `RunStore`: all checks run in one child process, on the stand-in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pymongo
import pytest

from .main_runs_checks import CHECKS
from .stand_in import write_framework, write_stand_in
from .test_stand_in import run_python

DATABASE = "test_main_runs"


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    mongodb_url: str,
    raw_client: pymongo.MongoClient[dict[str, Any]],
) -> Mapping[str, str | None]:
    """The traceback of each check that failed."""
    folder = tmp_path_factory.mktemp("main_runs")
    write_stand_in(folder / "stand_in")
    write_framework(folder / "framework")
    arguments = ["-m", "tests.hosts.main_runs_checks", str(folder / "framework"), mongodb_url, DATABASE]
    ended = run_python(folder, arguments)
    raw_client.drop_database(DATABASE)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_run_store_of_main(check: str, outcomes: Mapping[str, str | None]) -> None:
    assert outcomes[check] is None, outcomes[check]
