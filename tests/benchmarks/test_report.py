"""Reports of benchmark results: the results file, ratios, targets, tables, charts and the READMEs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import report, write_report
from benchmarks.report import tasks as by_tasks
from benchmarks.report.cases import Cases
from benchmarks.report.document import PUBLISHED, READMES, with_tables
from benchmarks.report.ratios import Ratio, paired, typical, unpaired
from benchmarks.report.tables import losses, numbering, overview, summary
from benchmarks.report.targets import TARGETS, Outcome, outcome
from benchmarks.results import Disagreement, Record, Results, ResultsError, Round, Size
from deerflow_mongo.contract.errors import MissingDependencyError

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
ON_POSTGRESQL, ON_SQLITE, FASTER_SQL, BY_ID, RAW_P50, RAW_THROUGHPUT, GROWTH, DAY = TARGETS
MIXED: dict[str, Any] = {"part": "day", "operation": "day", "concurrency": 8}
HOT: dict[str, Any] = {"part": "contention", "operation": "run_events.put_batch.hot_thread"}


def record(backend: str, rates: Sequence[float], **fields: Any) -> Record:
    """With the latencies of one task, unless all calls failed."""
    metrics: dict[str, Any] = {}
    for name in ("failures", "cpu_us_per_op", "p50_ms"):
        if name in fields:
            metrics[name] = fields.pop(name)
    rounds: list[Round] = []
    for rate in rates:
        latencies: Any = {"p50_ms": 1_000 / rate, "p99_ms": 3_000 / rate} if rate else {}
        rounds.append(Round(ops_per_s=rate, **{**latencies, **metrics}))
    defaults: dict[str, Any] = {
        "part": "operations",
        "operation": "runs.get",
        "concurrency": 32,
        "dataset": 1_000,
    }
    return Record(backend=backend, rounds=rounds, **{**defaults, **fields})


def results(*records: Record, **fields: Any) -> Results:
    given: dict[str, Any] = {"finished": True, **fields}
    return Results(records=list(records), **given)


def outcome_of(target: Any, *records: Record) -> Outcome:
    return outcome(target, Cases(results(*records)))


def full_results() -> Results:
    """Results with records of every part."""
    made = results(
        sizes=[
            Size(backend="mongodb", dataset=1_000, bytes_per_run=900),
            Size(backend="sqlite", dataset=1_000, bytes_per_run=1_800),
        ],
        contenders={"mongodb": {"title": "deerflow-mongo", "durability": "journaled", "server": "mongodb"}},
        versions={"mongodb": "6.0.5"},
    )
    rates = {"mongodb": 1_000.0, "raw-pymongo": 1_010.0, "sqlite": 150.0, "postgresql": 250.0}
    for backend, rate in rates.items():
        three = [rate, rate * 1.1, rate * 0.9]
        for tasks in (1, 32, 256):
            made.records += [
                record(backend, three, operation=name, concurrency=tasks, cpu_us_per_op=9e4 / rate)
                for name in ("runs.get", "runs.create")
            ]
        for runs in (1_000, 100_000):
            made.records.append(record(backend, three, part="growth", concurrency=1, dataset=runs))
        for processes in (1, 2, 4):
            made.records.append(record(backend, three, processes=processes, **MIXED))
        made.records.append(record(backend, three, **HOT))
        made.records.append(record(backend, three, part="variants"))
    made.records.append(record("mongodb-motor", [800, 880, 720], part="variants"))
    made.records += tasks_records()
    return made


def tasks_records() -> list[Record]:
    """Groups are of no use to one task."""
    rates = {"mongodb": 1_000.0, "mongodb-single": 900.0, "raw-pymongo": 950.0, "postgresql": 250.0}
    made: list[Record] = []
    for backend, rate in rates.items():
        for tasks in (1, 8, 32, 256):
            many = [rate * tasks if backend == "mongodb" else rate]
            fields: dict[str, Any] = {"part": "tasks", "concurrency": tasks, "cpu_us_per_op": 9e4 / many[0]}
            made += [record(backend, many, operation=name, **fields) for name in ("runs.get", "runs.create")]
        for tasks, processes in ((8, 4), (32, 1)):
            load = {"operation": "day", "concurrency": tasks, "processes": processes}
            made.append(record(backend, [rate], part="tasks", **load))
    return made


# -- the results file ------------------------------------------------------------------------------


def test_saved_results_load_unchanged(tmp_path: Path) -> None:
    made = full_results()
    made.disagreements.append(Disagreement(operation="runs.get", dataset=1_000, backend="sqlite", why="x"))
    made.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read"),
        ("{", "is not a benchmark results file"),
        ("[]", "is not a benchmark results file"),
        ('{"records": []}', "has no `format`"),
        ('{"format": 2}', "format: "),
        ('{"format": 1, "records": [{"part": "operations"}]}', r"records\.0\."),
    ],
)
def test_invalid_results_file_is_rejected(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match=why):
        Results.load(path)


# -- ratios ----------------------------------------------------------------------------------------


def test_paired_ratio_is_computed_per_repetition() -> None:
    """A slow phase, here the second repetition, affects both alternating contenders."""
    assert paired([100, 10, 90], [50, 5, 30]) == Ratio(2, 2, 3)


def test_ratio_to_zero_is_infinite() -> None:
    assert paired([5, 5], [0, 0]) == Ratio(float("inf"), float("inf"), float("inf"))
    assert paired([0, 0], [0, 0]) is None
    assert paired([None, 4], [2, 2]) == Ratio(2, 2, 2)


def test_unpaired_ratio_has_widest_spread() -> None:
    assert unpaired([10, 20, 30], [5, 10, 15]) == Ratio(2, 10 / 15, 6)
    assert unpaired([], [1]) is None


def test_typical_ratio_is_median_of_medians() -> None:
    assert typical([Ratio(1, 0, 9), None, Ratio(4, 3, 5), Ratio(2, 2, 2)]) == Ratio(2, 1, 4)


# -- targets ---------------------------------------------------------------------------------------


def test_target_is_met_at_or_above_its_bound() -> None:
    made = outcome_of(ON_POSTGRESQL, record("mongodb", [300, 330]), record("postgresql", [100, 110]))
    assert (made.verdict, made.misses) == ("met", {})


def test_missed_cases_are_sorted_by_distance_and_compared_with_raw_pymongo() -> None:
    made = outcome_of(
        ON_SQLITE,
        *(record("sqlite", [100], operation=name) for name in ("a", "b", "c")),
        *(record("mongodb", [rate], operation=name) for name, rate in (("a", 400), ("b", 600), ("c", 200))),
        record("raw-pymongo", [510], operation="a"),
    )
    assert made.verdict == "MISSED"
    assert list(made.misses) == ["`c`", "`a`"]
    assert made.raw_pymongo == {"`a`": Ratio(5.1, 5.1, 5.1)}


def test_target_is_not_measured_without_other_contender() -> None:
    made = outcome_of(ON_POSTGRESQL, record("mongodb", [300]), record("sqlite", [100]))
    assert made.verdict == outcome_of(ON_POSTGRESQL).verdict == "not measured"


def test_faster_sql_target_needs_both_baselines() -> None:
    ours, sqlite, postgresql = (
        record(backend, [rate], concurrency=1)
        for backend, rate in (("mongodb", 90), ("sqlite", 30), ("postgresql", 100))
    )
    assert outcome_of(FASTER_SQL, ours, sqlite, postgresql).misses == {"`runs.get`": Ratio(0.9, 0.9, 0.9)}
    assert outcome_of(FASTER_SQL, ours, sqlite).verdict == "not measured"


def test_read_by_id_target_ignores_other_reads() -> None:
    names = ("mongodb", "sqlite", "postgresql")
    slow = [record(name, [100], concurrency=1, operation="runs.list_by_thread") for name in names]
    assert outcome_of(BY_ID, *slow).verdict == "not measured"
    assert outcome_of(FASTER_SQL, *slow).verdict == "met"


def test_p50_target_is_met_at_or_below_its_bound() -> None:
    ours = record("mongodb", [100], concurrency=1)
    assert outcome_of(RAW_P50, ours, record("raw-pymongo", [109], concurrency=1)).verdict == "met"
    assert outcome_of(RAW_P50, ours, record("raw-pymongo", [120], concurrency=1)).verdict == "MISSED"
    assert outcome_of(RAW_THROUGHPUT, record("mongodb", [91]), record("raw-pymongo", [100])).verdict == "met"


def test_growth_is_relative_to_1000_runs() -> None:
    grown = {
        runs: record("mongodb", [rate], part="growth", concurrency=1, dataset=runs)
        for runs, rate in ((1_000, 100), (10_000, 60), (100_000, 80))
    }
    assert outcome_of(GROWTH, *grown.values()).measured == {"`runs.get`": Ratio(1.25, 1.25, 1.25)}
    assert outcome_of(GROWTH, grown[1_000], grown[10_000]).verdict == "not measured"


def test_targets_of_tasks_select_operations_and_may_be_measured_values() -> None:
    table = by_tasks.targets(Cases(results(*tasks_records())))
    assert (
        "throughput of reads by id relative to PostgreSQL, 32 tasks: at least 15 x | **met** | - | 128 x"
        in table
    )
    assert (
        "throughput of votes relative to PostgreSQL, 32 tasks: at least 10 x | **not measured** | - | -"
        in table
    )
    assert "p99 of each operation, 256 tasks: at most 100 ms | **met** | - | 0.01 ms |" in table
    assert "1 process of 32 tasks: at least 6 x | **MISSED** | `day` | 4.00 x |" in table
    slow = record("mongodb", [20], part="tasks", concurrency=256, cpu_us_per_op=41)
    missed = by_tasks.targets(Cases(results(slow)))
    assert "256 tasks: at most 100 ms | **MISSED** | `runs.get` | 150 ms |" in missed
    assert "create and plain update, 256 tasks: at most 40 us | **MISSED** | `runs.get` | 41.0 us |" in missed


def test_mixed_workload_target_uses_four_processes() -> None:
    one = [record(backend, [100], **MIXED) for backend in ("mongodb", "postgresql")]
    assert outcome_of(DAY, *one).verdict == "not measured"
    four = [record("mongodb", [250], processes=4, **MIXED), record("postgresql", [100], processes=4, **MIXED)]
    assert outcome_of(DAY, *one, *four).misses == {"`day`": Ratio(2.5, 2.5, 2.5)}


# -- tables ----------------------------------------------------------------------------------------


def test_report_has_a_section_per_part() -> None:
    text = report(full_results())
    for title in (
        "Summary",
        "Targets",
        "Setup",
        "Throughput, 32 tasks",
        "p50 latency, 1 task",
        "p50 latency by stored runs, relative to 1,000 runs",
        "Mixed workload: throughput",
        "Contention on one thread or run: throughput",
        "Variants",
        "Calls by the number of tasks",
        "Part `tasks`, 256 tasks: p99 latency",
        "Part `tasks`: measured values",
    ):
        assert f"## {title}\n" in text
    assert "| `runs.create` | 6.67 x | 4.00 x | 0.99 x |" in text
    assert "throughput relative to PostgreSQL, 32 tasks: at least 3 x | **met** | 2 of 2 |" in text
    assert "| `runs.get` | 0.80 x |" in text, "Motor relative to the default driver"
    assert "Peak memory" not in text, "no record has a peak memory"
    assert "Interrupted" not in text


def test_report_of_empty_results() -> None:
    text = report(results(finished=False))
    assert "**Interrupted" in text
    assert "Nothing was measured." in text
    assert text.count("**not measured**") == len(TARGETS)
    assert "read a run by id | - | - |" in summary(Cases(results()))


def test_disagreement_is_listed_once_with_reason() -> None:
    found = Disagreement(
        operation="feedback.aggregate_by_run", dataset=1_000, backend="sqlite", why="100, not 150"
    )
    text = report(results(disagreements=[found, found]))
    assert text.count("`feedback.aggregate_by_run` over 1,000 runs, sqlite: 100, not 150") == 1
    assert "All contenders returned the same results" not in text


def test_failures_are_listed_by_kind() -> None:
    made = results(
        record("mongodb", [100, 100], **HOT),
        record("sqlite", [10, 10], failures={"database is locked": 6}, **HOT),
        record("postgresql", [0, 0], **HOT),
    )
    text = report(made)
    assert "| `run_events.put_batch.hot_thread` | SQLite | 12 x database is locked |" in text
    assert "| `run_events.put_batch.hot_thread` | 10.0 x | no successful call of the other |" in text
    assert "| SQLite | 10.0 x | 12 x database is locked |" in numbering(Cases(made))


def test_readme_tables_summarize_all_operations() -> None:
    made = full_results()
    made.remove("tasks", ())
    cases = Cases(made)
    assert "| read a run by id | 6.67 x | 4.00 x |" in summary(cases)
    assert "| mixed workload, 4 processes, 8 tasks each | 6.67 x | 4.00 x |" in summary(cases)
    assert "| vote | - | - |" in summary(cases)
    assert "| throughput, 1 task | 6.67 x | 4.00 x | 0.99 x |" in overview(cases)
    assert "| disk space per run, 1,000 runs | 0.50 x | - | - |" in overview(cases)
    assert losses(cases) == "None."
    slower = results(record("mongodb", [90]), record("sqlite", [100]), record("postgresql", [30]))
    assert "| `runs.get` | 32 | 0.90 x | 3.00 x |" in losses(Cases(slower))


def test_tables_of_tasks_have_a_column_per_number_of_tasks() -> None:
    cases = Cases(full_results())
    groups = by_tasks.groups(cases)
    assert "| throughput relative to groups off | 1 task | 8 tasks | 32 tasks | 256 tasks |" in groups
    assert "| `runs.get` | 1.11 x | 8.89 x | 35.6 x | 284 x |" in groups
    assert "| mixed workload, 4 processes | - | 1.11 x | - | - |" in groups
    assert "| throughput | PostgreSQL | 4.00 x | 32.0 x | 128 x | 1,024 x |" in by_tasks.overview(cases)
    assert "charts/tasks.png" in by_tasks.chart(cases)
    nothing = Cases(results())
    for table in (by_tasks.groups, by_tasks.overview, by_tasks.chart):
        assert table(nothing) == "Not measured."
    assert by_tasks.section(nothing) == ""


def test_summary_has_the_part_that_is_measured_on_its_own() -> None:
    found = summary(Cases(full_results()))
    assert "| read a run by id | - | 128 x |" in found
    assert "| mixed workload, 4 processes, 8 tasks each | - | 4.00 x |" in found
    assert "| mixed workload, 1 process, 32 tasks | - | 4.00 x |" in found
    without_sql = [record("mongodb", [10], part="tasks"), record("mongodb", [10]), record("sqlite", [5])]
    assert "| read a run by id | 2.00 x | - |" in summary(Cases(results(*without_sql)))


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_readme_shows_the_published_results(path: Path) -> None:
    """`python -m benchmarks report benchmarks/full-run.json --readme` writes the tables."""
    text = path.read_text(encoding="utf-8")
    assert "<!-- table: summary -->" in text
    assert with_tables(text, Cases(Results.load(PUBLISHED))) == text


# -- charts ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_charts_are_written_beside_the_report(tmp_path: Path) -> None:
    full_results().save(tmp_path / "results file.json")
    path = write_report(tmp_path / "results file.json")
    assert path == tmp_path / "results file-report" / "report.md"
    charts = sorted((path.parent / "charts").iterdir())
    assert [chart.name for chart in charts] == [
        "day.png",
        "growth.png",
        "latency.png",
        "tasks.png",
        "throughput.png",
    ]
    for chart in charts:
        assert chart.read_bytes().startswith(b"\x89PNG")
        assert f"](charts/{chart.name})" in path.read_text()


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_chart_without_records_is_omitted(tmp_path: Path) -> None:
    results(record("mongodb", [10]), record("postgresql", [0])).save(tmp_path / "few.json")
    path = write_report(tmp_path / "few.json", tmp_path / "here")
    charts = sorted(chart.name for chart in (path.parent / "charts").iterdir())
    assert charts == ["latency.png", "throughput.png"]
    results().save(tmp_path / "none.json")
    assert "](charts/" not in write_report(tmp_path / "none.json").read_text()


def test_missing_matplotlib_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deerflow-mongo\[bench\]'"):
        report(full_results(), tmp_path)
    assert report(full_results())
