"""`deerflow-mongo check --host`, on a DeerFlow that fits, one that does not, and none."""

from __future__ import annotations

import importlib.util
import json

import pytest

from deerflow_mongo.cli import host
from deerflow_mongo.hosts.deerflow import Comparison
from deerflow_mongo.hosts.releases import RELEASES

from .command import output_of

FITTING = Comparison("deerflow.runtime")


def compared(monkeypatch: pytest.MonkeyPatch, *comparisons: Comparison) -> None:
    """The installed DeerFlow compares like this."""
    monkeypatch.setattr(host, "compare_release", lambda: (RELEASES[0], list(comparisons)))


def test_release_that_fits_is_named_and_the_exit_code_is_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(monkeypatch, FITTING)
    assert host.check_host() == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["ok", "deerflow.runtime"]
    assert last.endswith(f"fits: it is used as {RELEASES[0].name}.")


def test_every_difference_is_a_problem_and_the_exit_code_is_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = Comparison("app.gateway.deps", lacks=("app.gateway.deps.RunManager",))
    compared(monkeypatch, FITTING, lacking, Comparison("RunStoreAdapter", needs=("RunStoreAdapter.claim",)))
    assert host.check_host() == 3
    printed = capsys.readouterr()
    assert printed.out.count("PROBLEM") == 2
    assert "lacks app.gateway.deps.RunManager" in printed.out
    assert "needs RunStoreAdapter.claim" in printed.out
    [sentence] = printed.err.splitlines()
    assert "lacks app.gateway.deps.RunManager; it needs RunStoreAdapter.claim, which" in sentence
    assert sentence.endswith("These fit: deerflow-kernel 0.1.7, DeerFlow 2.0.0, DeerFlow main (2.1.0)")


def test_json_of_a_host_has_every_comparison_and_the_same_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(monkeypatch, FITTING)
    assert host.check_host(as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["used_as"], found["fits"]) == (RELEASES[0].name, True)
    assert found["comparisons"] == [{"subject": "deerflow.runtime", "fits": True, "lacks": [], "needs": []}]

    compared(monkeypatch, FITTING, Comparison("app.gateway.deps", lacks=("app.gateway.deps.RunManager",)))
    assert host.check_host(as_json=True) == 3
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["fits"] is False
    assert found["comparisons"][1]["lacks"] == ["app.gateway.deps.RunManager"]
    assert printed.err.startswith("error: ")


@pytest.mark.skipif(importlib.util.find_spec("app") is not None, reason="DeerFlow is installed")
def test_without_deerflow_the_error_names_what_to_install() -> None:
    assert "Install DeerFlow, one of deerflow-kernel 0.1.7" in output_of("check", "--host", exit_code=3)
