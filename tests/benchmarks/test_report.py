"""Reports of benchmark results: the results file, ratios, targets, tables, charts and comparisons."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import compare
from benchmarks.report import report, summary, write_report
from benchmarks.report.cases import Cases
from benchmarks.report.ratios import Ratio, paired, typical, unpaired
from benchmarks.report.targets import TARGETS, Outcome, outcome
from benchmarks.results import Disagreement, Record, Results, ResultsError, Round, Size
from deerflow_mongo.contract.errors import MissingDependencyError

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
ON_POSTGRESQL, ON_SQLITE, FASTER_SQL, BY_ID, RAW_P50, RAW_THROUGHPUT, GROWTH, DAY = TARGETS


def rounds(rates: Sequence[float], **metrics: Any) -> list[Round]:
    """With the latencies of one task, unless all calls failed."""
    made: list[Round] = []
    for rate in rates:
        values: dict[str, Any] = {"p50_ms": 1_000 / rate, "p99_ms": 3_000 / rate, **metrics} if rate else {}
        made.append(Round(ops_per_s=rate, **values))
    return made


def record(backend: str, rates: Sequence[float], **fields: Any) -> Record:
    metrics = {name: fields.pop(name) for name in ("failures", "cpu_us_per_op", "p50_ms") if name in fields}
    defaults: dict[str, Any] = {
        "part": "operations",
        "operation": "runs.get",
        "section": 3,
        "kind": "read_by_id",
        "backend": backend,
        "driver": None,
        "loop": "asyncio",
        "concurrency": 32,
        "dataset": 1_000,
    }
    return Record.of(rounds(rates, **metrics), **{**defaults, **fields})


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
        contenders={
            "mongodb": {"title": "deerflow-mongo", "durability": "majority, journaled", "server": "mongodb"}
        },
        versions={"mongodb": "6.0.5"},
    )
    for backend, rate in (
        ("mongodb", 1_000.0),
        ("raw-pymongo", 1_010.0),
        ("sqlite", 150.0),
        ("postgresql", 250.0),
    ):
        rates = [rate, rate * 1.1, rate * 0.9]
        for tasks in (1, 32, 256):
            for operation in ("runs.get", "runs.create"):
                made.add(
                    record(backend, rates, operation=operation, concurrency=tasks, cpu_us_per_op=9e4 / rate)
                )
        for runs in (1_000, 100_000):
            made.add(record(backend, rates, part="growth", concurrency=1, dataset=runs))
        for processes in (1, 2, 4):
            mixed: dict[str, Any] = {"operation": "day", "section": 0, "kind": "mixed", "concurrency": 8}
            made.add(record(backend, rates, part="day", processes=processes, **mixed))
        made.add(record(backend, rates, part="contention", operation="runs.update_status.hot_run"))
        made.add(record(backend, rates, part="variants"))
    made.add(record("mongodb-motor", [800, 880, 720], part="variants"))
    return made


# -- the results file ------------------------------------------------------------------------------


def test_saved_results_load_unchanged(tmp_path: Path) -> None:
    made = full_results()
    made.disagreements.append(Disagreement(operation="runs.get", dataset=1_000, backend="sqlite", why="x"))
    made.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_record_is_saved_with_medians(tmp_path: Path) -> None:
    results(record("mongodb", [10, 40, 20], failures={"OSError": 2})).save(tmp_path / "results.json")
    [written] = json.loads((tmp_path / "results.json").read_text())["records"]
    assert (written["ops_per_s"], written["p50_ms"], written["repetitions"]) == (20, 50, 3)
    assert written["failures"] == {"OSError": 6}
    assert [one["ops_per_s"] for one in written["rounds"]] == [10, 40, 20]


def test_failed_save_leaves_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results().save(path)
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        results(took_s=float("nan")).save(path)
    assert path.read_text() == before
    assert [beside.name for beside in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "has no `format`"),
        ('{"records": []}', "has no `format`"),
        ('{"format": 2}', "has format 2, but this version reads format 1"),
        (
            '{"format": 1, "records": [{"part": "operations"}]}',
            r"not a valid .*: records\.0\.",
        ),
    ],
)
def test_invalid_results_file_is_rejected(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match=why):
        Results.load(path)


def test_duplicate_record_is_rejected() -> None:
    made = results(record("mongodb", [1]))
    made.add(record("sqlite", [1]))
    with pytest.raises(ValueError, match="duplicate record"):
        made.add(record("mongodb", [2]))


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


def test_missed_cases_are_sorted_by_distance() -> None:
    made = outcome_of(
        ON_SQLITE,
        *(record("sqlite", [100], operation=name) for name in ("a", "b", "c")),
        *(record("mongodb", [rate], operation=name) for name, rate in (("a", 400), ("b", 600), ("c", 200))),
    )
    assert made.verdict == "MISSED"
    assert list(made.misses) == ["`c`", "`a`"]
    assert ON_SQLITE.distance(made.misses["`c`"]) == pytest.approx(0.6)


def test_missed_case_shows_ratio_of_raw_pymongo() -> None:
    text = report(
        results(
            *(record("sqlite", [100], operation=name) for name in ("a", "b")),
            *(record("mongodb", [rate], operation=name) for name, rate in (("a", 400), ("b", 450))),
            *(record("raw-pymongo", [rate], operation=name) for name, rate in (("a", 420), ("b", 510))),
        )
    )
    assert "raw PyMongo misses 1 of the 2 missed cases, too" in text
    assert "- `a`: 4.00 x, missed by 20 %; raw PyMongo: 4.20 x" in text
    assert "- `b`: 4.50 x, missed by 10 %; raw PyMongo: 5.10 x" in text


def test_target_is_not_measured_without_other_contender() -> None:
    made = outcome_of(ON_POSTGRESQL, record("mongodb", [300]), record("sqlite", [100]))
    assert (made.verdict, made.missing) == ("not measured", ("`runs.get`",))
    assert outcome_of(ON_POSTGRESQL).verdict == "not measured"


def test_faster_sql_target_needs_both_baselines() -> None:
    ours, sqlite, postgresql = (
        record(backend, [rate], concurrency=1)
        for backend, rate in (("mongodb", 90), ("sqlite", 30), ("postgresql", 100))
    )
    assert outcome_of(FASTER_SQL, ours, sqlite, postgresql).misses == {"`runs.get`": Ratio(0.9, 0.9, 0.9)}
    assert outcome_of(FASTER_SQL, ours, sqlite).verdict == "not measured"


def test_read_by_id_target_ignores_other_reads() -> None:
    slow = [
        record(backend, [100], concurrency=1, kind="read") for backend in ("mongodb", "sqlite", "postgresql")
    ]
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


def test_mixed_workload_target_uses_four_processes() -> None:
    day: dict[str, Any] = {"part": "day", "operation": "day", "section": 0, "kind": "mixed", "concurrency": 8}
    one = [record(backend, [100], **day) for backend in ("mongodb", "postgresql")]
    assert outcome_of(DAY, *one).verdict == "not measured"
    four = [record("mongodb", [250], processes=4, **day), record("postgresql", [100], processes=4, **day)]
    assert outcome_of(DAY, *one, *four).misses == {"`day`": Ratio(2.5, 2.5, 2.5)}


# -- the report ------------------------------------------------------------------------------------


def test_report_has_a_section_per_part() -> None:
    text = report(full_results())
    for title in (
        "Summary",
        "Targets",
        "Setup",
        "Single operations",
        "Growth",
        "CPU per operation",
        "Bytes stored per run",
        "Mixed workload by processes",
        "Contention",
        "Variants",
    ):
        assert f"## {title}\n" in text
    assert "| `runs.create` | 6.67 x | 4.00 x | 0.99 x |" in text
    assert (
        "**met**: throughput relative to the SQL baseline on PostgreSQL, 32 tasks: at least 3 x; 2 of 2 cases"
        in text
    )
    assert "| `runs.get` | 0.80 x |" in text, "Motor relative to the default driver"
    assert "## Memory" not in text, "no record has a peak memory"


def test_report_of_empty_results() -> None:
    text = report(results(finished=False))
    assert "**Interrupted" in text
    assert "Nothing was measured." in text
    assert text.count("**not measured**") == len(TARGETS)
    assert "read a run by id | - | - |" in summary(results())


def test_finished_report_is_not_marked_interrupted() -> None:
    assert "Interrupted" not in report(full_results())


def test_disagreement_is_listed_once_with_reason() -> None:
    made = full_results()
    made.disagreements = [
        Disagreement(
            operation="feedback.aggregate_by_run", dataset=1_000, backend="sqlite", why="100, not 150"
        )
    ] * 2
    text = report(made)
    assert text.count("`feedback.aggregate_by_run` over 1,000 runs, sqlite: 100, not 150") == 1
    assert "All contenders returned the same results" not in text


def test_failures_are_listed_by_kind() -> None:
    hot: dict[str, Any] = {"part": "contention", "operation": "feedback.upsert.hot_run"}
    text = report(
        results(
            record("mongodb", [100, 100], **hot),
            record("sqlite", [10, 10], failures={"database is locked": 6}, **hot),
            record("postgresql", [0, 0], **hot),
        )
    )
    assert "| `feedback.upsert.hot_run` | sqlite | 12 x database is locked |" in text
    assert "| `feedback.upsert.hot_run` | 10.0 x | no successful call of the other |" in text


def test_summary_shows_ratios_and_durability() -> None:
    text = summary(full_results())
    assert "| read a run by id | 6.67 x | 4.00 x |" in text
    assert "| mixed workload, 4 processes, 8 tasks each | 6.67 x | 4.00 x |" in text
    assert "| vote | - | - |" in text
    assert "deerflow-mongo: majority, journaled" in text


# -- charts ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_charts_are_written_beside_the_report(tmp_path: Path) -> None:
    full_results().save(tmp_path / "results file.json")
    path = write_report(tmp_path / "results file.json")
    assert path == tmp_path / "results file-report" / "report.md"
    charts = sorted((path.parent / "charts").iterdir())
    assert [chart.name for chart in charts] == ["day.png", "growth.png", "latency.png", "throughput.png"]
    for chart in charts:
        assert chart.read_bytes().startswith(b"\x89PNG")
        assert f"](charts/{chart.name})" in path.read_text()


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_chart_without_records_is_omitted(tmp_path: Path) -> None:
    results(record("mongodb", [10]), record("postgresql", [0])).save(tmp_path / "few.json")
    path = write_report(tmp_path / "few.json", tmp_path / "here")
    assert path.parent == tmp_path / "here"
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


# -- comparing two files ---------------------------------------------------------------------------


def line_of(text: str, *words: str) -> str:
    [line] = [
        line for line in text.splitlines() if all(word in line for word in words) and line.startswith("| op")
    ]
    return line


def test_clear_change_is_marked_and_noise_is_not() -> None:
    rates = {
        "slower": [80, 82, 84],
        "faster": [120, 125, 130],
        "noisy": [70, 101, 130],
        "small": [103, 104, 103.5],
    }
    old = results(*(record("mongodb", [99, 100, 101], operation=name) for name in rates))
    new = results(*(record("mongodb", after, operation=name) for name, after in rates.items()))
    text = compare(old, new)
    assert line_of(text, "`slower`").endswith("**SLOWER** |")
    assert line_of(text, "`faster`").endswith("**faster** |")
    assert line_of(text, "`noisy`").endswith("|  |")
    assert line_of(text, "`small`").endswith("|  |"), "clear, but below five percent"
    assert "0.82 x (0.79 to 0.85)" in line_of(text, "`slower`")
    assert text.index("`slower`") < text.index("`faster`") < text.index("`noisy`")


def test_slower_p50_is_marked_when_throughput_is_unchanged() -> None:
    old, new = (results(record("mongodb", [100, 100], p50_ms=p50)) for p50 in (10.0, 12.0))
    assert line_of(compare(old, new), "runs.get").endswith("**SLOWER** |")


def test_differences_between_the_runs_are_listed_first() -> None:
    old = results(record("mongodb", [1]), versions={"mongodb": "6.0.5"}, settings={"seconds": 1})
    new = results(
        record("mongodb", [1]), versions={"mongodb": "7.0.1"}, settings={"seconds": 1}, finished=False
    )
    text = compare(old, new)
    assert text.index("versions, mongodb: 6.0.5 -> 7.0.1") < text.index("`runs.get`")
    assert "seconds" not in text
    assert "**interrupted**" in text


def test_records_in_only_one_file_are_listed() -> None:
    old = results(record("mongodb", [1]), record("mongodb", [1], operation="gone"))
    new = results(record("mongodb", [1]), record("mongodb", [1], operation="fresh"))
    text = compare(old, new)
    assert "`gone`" in text.partition("## Only in the old file")[2].partition("##")[0]
    assert "`fresh`" in text.partition("## Only in the new file")[2]
