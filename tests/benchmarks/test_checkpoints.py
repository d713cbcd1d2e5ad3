"""Checkpoint savers in the benchmarks: the plan, a quick run, exclusions, tables and the chart."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import plan
from benchmarks.checkpoints import measuring
from benchmarks.checkpoints.measuring import BUSY_THREADS, COLD, MIB, Lane, Measured, add_records
from benchmarks.checkpoints.savers import MODULES, is_installed
from benchmarks.contenders.known import CONTENDERS, OURS, SAVERS
from benchmarks.report import checkpoints, report, write_report
from benchmarks.report.cases import Cases
from benchmarks.results import Disagreement, Record, Results, Round
from benchmarks.servers import Target

from ..child_processes import run_child

ROOT = Path(__file__).parents[2]
SQLITE, POSTGRESQL, LIBRARY, MEMORY = SAVERS
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None

needs_savers = pytest.mark.skipif(
    not all(is_installed(module) for name in (OURS, SQLITE) for module in MODULES[name]),
    reason="needs langgraph and langgraph-checkpoint-sqlite",
)


def record(backend: str, operation: str, rounds: Sequence[Round], tasks: int = 1, dataset: int = 0) -> Record:
    return Record(
        part="checkpoints",
        operation=operation,
        backend=backend,
        concurrency=tasks,
        dataset=dataset,
        rounds=list(rounds),
    )


def speed(backend: str, operation: str, per_s: float, tasks: int = 1, dataset: int = 0) -> Record:
    latency_ms = 1_000 / per_s
    one = Round(ops_per_s=per_s, p50_ms=latency_ms, p95_ms=latency_ms, cpu_us_per_op=1e6 / per_s)
    return record(backend, operation, [one] * 3, tasks, dataset)


def grown(backend: str, turns: int, stored_mb: float) -> Record:
    return record(
        backend, "thread", [Round(ops_per_s=1, stored_mb=stored_mb, disk_mb=stored_mb / 2)], 1, turns
    )


def full_results() -> Results:
    """Records of every measure; ours is twice as fast and stores a hundredth."""
    made = Results(finished=True)
    for backend, factor in {OURS: 2.0, SQLITE: 1.0, LIBRARY: 0.5}.items():
        made.records += [speed(backend, "turn", 10 * factor, tasks) for tasks in (1, 16)]
        for size in (MIB, 10 * MIB):
            made.records.append(speed(backend, "turn", factor, dataset=size))
            for method in ("aget_state", "aget_tuple"):
                made.records.append(speed(backend, method, 100 * factor, dataset=size))
                made.records.append(speed(backend, method + COLD, 50 * factor, dataset=size))
        made.records += [
            speed(backend, measuring.BESIDE_TOOLS, 100, dataset=0),
            speed(backend, measuring.BESIDE_TOOLS, 100 if backend == OURS else 1, dataset=BUSY_THREADS),
        ]
        sizes = {25: 1, 100: 8, 400: 40} if backend == OURS else {25: 25, 100: 400, 400: 6_400}
        made.records += [grown(backend, turns, megabytes) for turns, megabytes in sizes.items()]
    peak = Round(ops_per_s=1, peak_memory_mb=60.0)
    refused = Round(ops_per_s=0, failures={"DocumentTooLarge: 41 MiB": 1})
    made.records.append(record(OURS, "state.write", [peak], dataset=40 * MIB))
    made.records.append(record(LIBRARY, "state.write", [refused], dataset=40 * MIB))
    return made


# -- the plan --------------------------------------------------------------------------------------


def test_savers_are_measured_in_their_part_only() -> None:
    available = tuple(CONTENDERS)
    for case in plan.cases_of(plan.Options(), available):
        if case.part == "checkpoints":
            assert set(case.contenders) <= {OURS, *SAVERS}
        else:
            assert not set(case.contenders) & set(SAVERS)


@needs_savers
def test_plan_of_checkpoints_needs_no_other_contender() -> None:
    options = plan.Options(parts=("checkpoints",))
    assert plan.contenders_of(options) == (OURS, *SAVERS)
    cases = plan.cases_of(options, (OURS, *SAVERS))
    assert {case.operation for case in cases} == set(measuring.CASES)
    for case in cases:
        is_without_memory = case.operation in (measuring.GROWTH, measuring.STATES)
        assert (MEMORY in case.contenders) is not is_without_memory
    one = plan.cases_of(plan.Options(parts=("checkpoints",), operations=("turns",)), (OURS,))
    assert [case.operation for case in one] == ["turns"]


# -- measuring -------------------------------------------------------------------------------------


@needs_savers
def test_quick_run_measures_savers_and_leaves_other_parts(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    other = Record(part="day", operation="day", backend=OURS, concurrency=8, dataset=1_000, rounds=[])
    Results(records=[other, speed(OURS, "turn", 1)]).save(out)
    command = (sys.executable, "-m", "benchmarks", "checkpoints", "--quick", "--savers", SQLITE, MEMORY)
    measures = ("--measures", "turns", "growth-of-thread", "--tasks", "2", "--repetitions", "1")
    done = run_child([*command, *measures, "--out", str(out)], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    results = Results.load(out)
    assert results.disagreements == []
    [kept, *records] = results.records
    assert kept == other
    assert {(one.operation, one.backend, one.dataset) for one in records} == {
        *(("turn", name, 0) for name in (OURS, SQLITE, MEMORY)),
        *(("thread", name, turns) for name in (OURS, SQLITE) for turns in (1, 2)),
    }
    for one in records:
        assert not one.failures
        assert one.rounds[0].ops_per_s > 0
        if one.operation == "thread":
            assert (one.rounds[0].stored_mb or 0) > 0.01
    assert "| a turn on a new thread, 2 tasks |" in done.stdout


def lane(backend: str, *answers: str | None) -> Lane:
    measured = Measured("turn", 1, 0)
    rounds = [Round(ops_per_s=1)] * len(answers)
    return Lane(CONTENDERS[backend], Target("", ""), [], {measured: rounds}, {measured: list(answers)})


def test_record_of_different_states_is_excluded() -> None:
    results = Results()
    lanes = [
        lane(OURS, "6 messages, a", "12 messages, b"),
        lane(SQLITE, "6 messages, a", None),  # the second call failed
        lane(LIBRARY, "6 messages, a", "12 messages, c"),
    ]
    add_records(lanes, results)
    assert [one.backend for one in results.records] == [OURS, SQLITE]
    [found] = results.disagreements
    assert (found.backend, found.operation) == (LIBRARY, "turn")
    assert "12 messages, c" in found.why


# -- the report ------------------------------------------------------------------------------------


def test_report_shows_every_table_of_checkpoints() -> None:
    text = report(full_results())
    for row in (
        "| a turn on a new thread, 16 tasks | 2.00 x | 4.00 x |",
        "| a turn on a thread of 10 MiB | 2.00 x | 4.00 x |",
        "| `aget_state` of 1 MiB by a new saver | 2.00 x | 4.00 x |",
        "| CPU time of the other client: a turn on a new thread, 1 task | 2.00 x | 4.00 x |",
        "| 100 turns | before compression | 50.0 x | 50.0 x |",
        "| p50 | 1.00 x | 100 x | 100 x |",
        "| 40 MiB written | 1.43 x | refused: DocumentTooLarge: 41 MiB |",
        "after 400 turns, before compression, relative to ours: at least 100 x | **met** | 160 x |",
        "turns, 1 task, relative to PostgreSQL and the library: at least 1.3 x | **met** | 4.00 x |",
    ):
        assert row in text
    assert "## Checkpoints" not in report(Results())


def test_missed_target_shows_the_case_furthest_from_it() -> None:
    slow = [speed(OURS, "aget_state", 80, dataset=MIB), speed(OURS, "aget_state", 90, dataset=10 * MIB)]
    others = [speed(SQLITE, "aget_state", 100, dataset=size) for size in (MIB, 10 * MIB)]
    text = checkpoints.targets(Cases(Results(records=[*slow, *others])))
    assert "`aget_state` by its writer, relative to SQLite: at least 1 x | **MISSED** | 0.80 x |" in text


def test_excluded_saver_is_listed_without_a_number_of_runs() -> None:
    found = Disagreement(operation="turns", dataset=0, backend=LIBRARY, why="1 here, 2 there")
    assert f"`turns`, {LIBRARY}: 1 here, 2 there" in report(Results(disagreements=[found]))


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_growth_of_a_thread_is_drawn(tmp_path: Path) -> None:
    full_results().save(tmp_path / "results.json")
    path = write_report(tmp_path / "results.json")
    assert "](charts/checkpoints.png)" in path.read_text()
    assert (path.parent / "charts" / "checkpoints.png").read_bytes().startswith(b"\x89PNG")


def test_tables_of_the_readme_name_a_published_run_without_checkpoints() -> None:
    for name, table in checkpoints.TABLES.items():
        assert table(Cases(Results())) == "Not part of the published run.", name
        assert table(Cases(full_results())).startswith("| "), name
