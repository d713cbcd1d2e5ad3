"""The command `python -m benchmarks gateway`; its run needs DeerFlow's distribution."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.gateway import command, measuring
from benchmarks.gateway.measuring import OPERATION, Load
from benchmarks.gateway.process import GatewayError
from benchmarks.gateway.users import comparable
from benchmarks.report.cases import Cases
from benchmarks.report.document import report
from benchmarks.report.gateway import absolute_values, gateway, groups, targets
from benchmarks.results import Record, Results, Round

from ..child_processes import run_child

ROOT = Path(__file__).parents[2]


def results() -> Results:
    """One and 24 users, each in three rounds."""
    rates = {
        "mongodb": (10.0, 12.0, 11.0),
        "mongodb-single": (10.0, 10.0, 10.0),
        "deerflow-sqlite": (10.0, 10.0, 10.0),
    }
    return Results(
        finished=True,
        records=[
            Record(
                part="gateway",
                operation=OPERATION,
                backend=backend,
                concurrency=users,
                dataset=0,
                rounds=[Round(ops_per_s=one, p50_ms=1_000 / one, cpu_us_per_op=1e6 / one) for one in rounds],
            )
            for users in (24, 1)
            for backend, rounds in rates.items()
        ],
    )


def test_missing_distribution_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def is_installed(module: str) -> bool:
        return module != "app.gateway"

    monkeypatch.setattr(measuring, "_is_installed", is_installed)
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    made = Results()
    assert not command.measure(made, Load(), tmp_path / "results.json")
    assert made.left_out["gateway"].startswith("app.gateway is not installed: pip install deerflow-kernel ")
    assert capsys.readouterr().out == f"the gateway is not measured: {made.left_out['gateway']}\n"
    assert not list(tmp_path.iterdir())


def test_short_loads_are_made_of_whole_conversations() -> None:
    load = Load(turns=6, min_turns=24)
    assert [load.conversations(users) for users in (1, 2, 4, 24)] == [4, 2, 1, 1]


def test_answers_are_compared_without_what_differs_in_every_run() -> None:
    one = {
        "thread_id": "1f1ea1aa-36cf-68fe-808f-6ffa13bd699a",
        "created_at": "2026-11-27T04:25:55.628859+00:00",
        "metadata": {"latency_ms": 8, "content_is_dict": True},
        "paths": ["/one/home"],
    }
    other = {
        "thread_id": "bb5fd912-67cb-4e7a-8534-35bd8411f603",
        "created_at": "2026-11-27T04:26:13.854916",
        "metadata": {"latency_ms": 6},
        "paths": ["/other/home"],
    }
    assert comparable(one, "/one") == comparable(other, "/other")
    assert comparable(one, "/one") != comparable({**other, "paths": []}, "/other")


def test_tables_have_medians_with_their_ranges_by_number_of_users() -> None:
    cases = Cases(results())
    for table, other in ((groups, "groups off"), (gateway, "DeerFlow on SQLite")):
        assert table(cases).splitlines()[2:4] == [
            f"| relative to {other} | turns/s | 1.10 x (1.00 to 1.20) | 1.10 x (1.00 to 1.20) |",
            f"| relative to {other} | p50 | 0.91 x (0.83 to 1.00) | 0.91 x (0.83 to 1.00) |",
        ]
    users = "relative to DeerFlow on SQLite: at least"
    assert targets(cases).splitlines()[2:] == [
        f"| turns/s of 1 user, {users} 1 x | **met** | 1.10 x (1.00 to 1.20) |",
        f"| turns/s of 24 users, {users} 1.6 x | **MISSED** | 1.10 x (1.00 to 1.20) |",
        "| turns/s of 1 user, relative to groups off: at least 0.98 x | **met** | 1.10 x (1.00 to 1.20) |",
        "| CPU time of the gateway per turn of 24 users, relative to groups off: at most 1 x | **met** "
        "| 0.91 x (0.83 to 1.00) |",
    ]
    assert (
        "| deerflow-mongo | 1 | 11.0 (10.0 to 12.0) | 91 (83 to 100) | - | 91 (83 to 100) | - | none |"
        in (absolute_values(cases))
    )
    assert "## The whole gateway\n" in report(results())
    assert "## The whole gateway\n" not in report(Results(finished=True))


@pytest.mark.parametrize("option", ["--users", "--turns", "--rounds"])
def test_number_below_one_is_refused(option: str) -> None:
    result = run_child([sys.executable, "-m", "benchmarks", "gateway", option, "0"], cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr == "--users, --turns and --rounds take numbers from 1\n"
    assert GatewayError.__name__ not in result.stderr


@pytest.mark.skipif(measuring.missing() is not None, reason=str(measuring.missing()))
def test_quick_run_compares_answers_and_measures_turns_on_each_storage(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    Results(records=[results().records[0].model_copy(update={"part": "day"})]).save(out)
    command = [sys.executable, "-m", "benchmarks", "gateway", "--quick", "--out", str(out)]
    result = run_child([*command, "--backends", "mongodb", "deerflow-sqlite"], cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    made = Results.load(out)
    assert not made.disagreements
    assert made.records[0].part == "day", "other parts stay"
    measured = [record for record in made.records if record.part == "gateway"]
    assert {(one.backend, one.concurrency) for one in measured} == {
        (backend, users) for backend in ("mongodb", "deerflow-sqlite") for users in (1, 4)
    }
    for one in measured:
        assert not one.failures
        assert one.rounds[0].ops_per_s > 0
        assert one.rounds[0].cpu_us_per_op
