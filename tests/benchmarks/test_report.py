"""What a benchmark's results are made to say: ratios, targets, what is missing, and what changed since."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import compare
from benchmarks.report import front_page, report, write_report
from benchmarks.report.cases import Cases
from benchmarks.report.ratios import Ratio, paired, typical, unpaired
from benchmarks.report.targets import TARGETS, Outcome, outcome
from benchmarks.results import Disagreement, Record, Results, ResultsError, Round, Size
from deerflow_mongo.contract.errors import MissingDependencyError

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
ON_POSTGRESQL, ON_SQLITE, BETTER, BY_ID, RAW_PYMONGO_P50, RAW_PYMONGO_THROUGHPUT, GROWTH, DAY = TARGETS


def rounds(rates: Sequence[float], **figures: Any) -> list[Round]:
    """With the latencies that one task would see, where any call succeeds."""
    made: list[Round] = []
    for rate in rates:
        seen: dict[str, Any] = {"p50_ms": 1_000 / rate, "p99_ms": 3_000 / rate, **figures} if rate else {}
        made.append(Round(ops_per_s=rate, **seen))
    return made


def record(backend: str, rates: Sequence[float], **fields: Any) -> Record:
    figures = {name: fields.pop(name) for name in ("failures", "cpu_us_per_op", "p50_ms") if name in fields}
    usual: dict[str, Any] = {
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
    return Record.of(rounds(rates, **figures), **{**usual, **fields})


def results(*records: Record, **fields: Any) -> Results:
    given: dict[str, Any] = {"finished": True, **fields}
    return Results(records=list(records), **given)


def judged(target: Any, *records: Record) -> Outcome:
    return outcome(target, Cases(results(*records)))


def everything() -> Results:
    """Some of every part."""
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


# -- the file --------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    made = everything()
    made.disagreements.append(Disagreement(operation="runs.get", dataset=1_000, backend="sqlite", why="x"))
    made.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_record_is_written_with_its_medians(tmp_path: Path) -> None:
    results(record("mongodb", [10, 40, 20], failures={"OSError": 2})).save(tmp_path / "results.json")
    [written] = json.loads((tmp_path / "results.json").read_text())["records"]
    assert (written["ops_per_s"], written["p50_ms"], written["repetitions"]) == (20, 50, 3)
    assert written["failures"] == {"OSError": 6}
    assert [one["ops_per_s"] for one in written["rounds"]] == [10, 40, 20]


def test_a_failed_save_leaves_the_file_before_it(tmp_path: Path) -> None:
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
        ("{", "is no JSON"),
        ("[]", "does not name its format"),
        ('{"records": []}', "does not name its format"),
        ('{"format": 2}', "is of format 2, this code reads format 1"),
        ('{"format": 1, "records": [{"part": "operations"}]}', r"no whole file .* records\.0\."),
    ],
)
def test_what_is_no_file_of_results_is_refused(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match=why):
        Results.load(path)


def test_a_case_is_recorded_once() -> None:
    made = results(record("mongodb", [1]))
    made.add(record("sqlite", [1]))
    with pytest.raises(ValueError, match="already"):
        made.add(record("mongodb", [2]))


# -- ratios ----------------------------------------------------------------------------------------


def test_contenders_are_compared_repetition_by_repetition() -> None:
    """A slow minute, here the second, hits both of those that take turns."""
    assert paired([100, 10, 90], [50, 5, 30]) == Ratio(2, 2, 3)


def test_a_side_that_did_nothing_is_infinitely_slower() -> None:
    assert paired([5, 5], [0, 0]) == Ratio(float("inf"), float("inf"), float("inf"))
    assert paired([0, 0], [0, 0]) is None
    assert paired([None, 4], [2, 2]) == Ratio(2, 2, 2)


def test_what_took_no_turns_has_the_widest_spread() -> None:
    assert unpaired([10, 20, 30], [5, 10, 15]) == Ratio(2, 10 / 15, 6)
    assert unpaired([], [1]) is None


def test_what_is_typical_lies_between_the_medians() -> None:
    assert typical([Ratio(1, 0, 9), None, Ratio(4, 3, 5), Ratio(2, 2, 2)]) == Ratio(2, 1, 4)


# -- targets ---------------------------------------------------------------------------------------


def test_a_target_is_met_from_its_bound_on() -> None:
    made = judged(ON_POSTGRESQL, record("mongodb", [300, 330]), record("postgresql", [100, 110]))
    assert (made.verdict, made.misses) == ("met", {})


def test_a_missed_target_names_the_worst_first() -> None:
    made = judged(
        ON_SQLITE,
        *(record("sqlite", [100], operation=name) for name in ("a", "b", "c")),
        *(record("mongodb", [rate], operation=name) for name, rate in (("a", 400), ("b", 600), ("c", 200))),
    )
    assert made.verdict == "MISSED"
    assert list(made.misses) == ["`c`", "`a`"]
    assert ON_SQLITE.distance(made.misses["`c`"]) == pytest.approx(0.6)


def test_a_miss_is_told_beside_what_raw_pymongo_reaches() -> None:
    text = report(
        results(
            *(record("sqlite", [100], operation=name) for name in ("a", "b")),
            *(record("mongodb", [rate], operation=name) for name, rate in (("a", 400), ("b", 450))),
            *(record("raw-pymongo", [rate], operation=name) for name, rate in (("a", 420), ("b", 510))),
        )
    )
    assert "of the 2 missed ones raw PyMongo misses 1, too" in text
    assert "- `a`: 4.00 x, by 20 %; raw PyMongo: 4.20 x" in text
    assert "- `b`: 4.50 x, by 10 %; raw PyMongo: 5.10 x" in text


def test_without_the_rival_nothing_is_known() -> None:
    made = judged(ON_POSTGRESQL, record("mongodb", [300]), record("sqlite", [100]))
    assert (made.verdict, made.missing) == ("not measured", ("`runs.get`",))
    assert judged(ON_POSTGRESQL).verdict == "not measured"


def test_the_better_of_two_counts_and_both_must_be_there() -> None:
    ours, sqlite, postgresql = (
        record(backend, [rate], concurrency=1)
        for backend, rate in (("mongodb", 90), ("sqlite", 30), ("postgresql", 100))
    )
    assert judged(BETTER, ours, sqlite, postgresql).misses == {"`runs.get`": Ratio(0.9, 0.9, 0.9)}
    assert judged(BETTER, ours, sqlite).verdict == "not measured"


def test_only_reads_by_id_are_held_to_their_target() -> None:
    slow = [
        record(backend, [100], concurrency=1, kind="read") for backend in ("mongodb", "sqlite", "postgresql")
    ]
    assert judged(BY_ID, *slow).verdict == "not measured"
    assert judged(BETTER, *slow).verdict == "met"


def test_a_p50_is_to_stay_below_its_bound() -> None:
    ours = record("mongodb", [100], concurrency=1)
    assert judged(RAW_PYMONGO_P50, ours, record("raw-pymongo", [109], concurrency=1)).verdict == "met"
    assert judged(RAW_PYMONGO_P50, ours, record("raw-pymongo", [120], concurrency=1)).verdict == "MISSED"
    assert (
        judged(RAW_PYMONGO_THROUGHPUT, record("mongodb", [91]), record("raw-pymongo", [100])).verdict == "met"
    )


def test_growth_is_counted_from_a_thousand_runs() -> None:
    grown = {
        runs: record("mongodb", [rate], part="growth", concurrency=1, dataset=runs)
        for runs, rate in ((1_000, 100), (10_000, 60), (100_000, 80))
    }
    assert judged(GROWTH, *grown.values()).measured == {"`runs.get`": Ratio(1.25, 1.25, 1.25)}
    assert judged(GROWTH, grown[1_000], grown[10_000]).verdict == "not measured"


def test_the_day_is_judged_with_four_processes() -> None:
    day: dict[str, Any] = {"part": "day", "operation": "day", "section": 0, "kind": "mixed", "concurrency": 8}
    one = [record(backend, [100], **day) for backend in ("mongodb", "postgresql")]
    assert judged(DAY, *one).verdict == "not measured"
    four = [record("mongodb", [250], processes=4, **day), record("postgresql", [100], processes=4, **day)]
    assert judged(DAY, *one, *four).misses == {"`day`": Ratio(2.5, 2.5, 2.5)}


# -- the report ------------------------------------------------------------------------------------


def test_a_report_has_a_chapter_for_everything_measured() -> None:
    text = report(everything())
    for title in (
        "In short",
        "Targets",
        "What was run",
        "Operation by operation",
        "Growth",
        "CPU per operation",
        "Bytes stored per run",
        "The mixed day by processes",
        "Contention",
        "Variants",
    ):
        assert f"## {title}\n" in text
    assert "| `runs.create` | 6.67 x | 4.00 x | 0.99 x |" in text
    assert (
        "**met**: throughput against the SQL baseline on PostgreSQL, 32 tasks: at least 3 x; 2 of 2 cases"
        in text
    )
    assert "| `runs.get` | 0.80 x |" in text, "Motor over the usual driver"
    assert "## Memory" not in text, "of which nothing was recorded"


def test_nothing_measured_makes_a_report_too() -> None:
    text = report(results(finished=False))
    assert "**Interrupted" in text
    assert "Nothing was measured." in text
    assert text.count("**not measured**") == len(TARGETS)
    assert "read a run by id | - | - |" in front_page(results())


def test_only_what_was_not_finished_is_called_interrupted() -> None:
    assert "Interrupted" not in report(everything())


def test_a_disagreement_is_told_once_with_its_reason() -> None:
    made = everything()
    made.disagreements = [
        Disagreement(
            operation="feedback.aggregate_by_run", dataset=1_000, backend="sqlite", why="100, not 150"
        )
    ] * 2
    text = report(made)
    assert text.count("`feedback.aggregate_by_run` over 1,000 runs, sqlite: 100, not 150") == 1
    assert "All contenders gave the same answers" not in text


def test_failures_are_told_by_kind() -> None:
    hot: dict[str, Any] = {"part": "contention", "operation": "feedback.upsert.hot_run"}
    text = report(
        results(
            record("mongodb", [100, 100], **hot),
            record("sqlite", [10, 10], failures={"database is locked": 6}, **hot),
            record("postgresql", [0, 0], **hot),
        )
    )
    assert "| `feedback.upsert.hot_run` | sqlite | 12 x database is locked |" in text
    assert "| `feedback.upsert.hot_run` | 10.0 x | the other did none |" in text


def test_the_front_page_tells_ratios_and_promises() -> None:
    text = front_page(everything())
    assert "| read a run by id | 6.67 x | 4.00 x |" in text
    assert "| the mixed day, 4 processes, 8 tasks each | 6.67 x | 4.00 x |" in text
    assert "| vote | - | - |" in text
    assert "deerflow-mongo: majority, journaled" in text


# -- charts ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_charts_stand_beside_the_report_that_shows_them(tmp_path: Path) -> None:
    everything().save(tmp_path / "of today.json")
    path = write_report(tmp_path / "of today.json")
    assert path == tmp_path / "of today-report" / "report.md"
    charts = sorted((path.parent / "charts").iterdir())
    assert [chart.name for chart in charts] == ["day.png", "growth.png", "latency.png", "throughput.png"]
    for chart in charts:
        assert chart.read_bytes().startswith(b"\x89PNG")
        assert f"](charts/{chart.name})" in path.read_text()


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_a_chart_without_records_is_left_out(tmp_path: Path) -> None:
    results(record("mongodb", [10]), record("postgresql", [0])).save(tmp_path / "few.json")
    path = write_report(tmp_path / "few.json", tmp_path / "here")
    assert path.parent == tmp_path / "here"
    charts = sorted(chart.name for chart in (path.parent / "charts").iterdir())
    assert charts == ["latency.png", "throughput.png"]
    results().save(tmp_path / "none.json")
    assert "](charts/" not in write_report(tmp_path / "none.json").read_text()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deerflow-mongo\[bench\]'"):
        report(everything(), tmp_path)
    assert report(everything())


# -- two files -------------------------------------------------------------------------------------


def line_of(text: str, *words: str) -> str:
    [line] = [
        line for line in text.splitlines() if all(word in line for word in words) and line.startswith("| op")
    ]
    return line


def test_a_clear_change_is_marked_and_the_machines_mood_is_not() -> None:
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


def test_a_slower_p50_is_marked_where_the_throughput_stayed() -> None:
    old, new = (results(record("mongodb", [100, 100], p50_ms=p50)) for p50 in (10.0, 12.0))
    assert line_of(compare(old, new), "runs.get").endswith("**SLOWER** |")


def test_what_differs_between_the_runs_is_said_first() -> None:
    old = results(record("mongodb", [1]), versions={"mongodb": "6.0.5"}, settings={"seconds": 1})
    new = results(
        record("mongodb", [1]), versions={"mongodb": "7.0.1"}, settings={"seconds": 1}, finished=False
    )
    text = compare(old, new)
    assert text.index("versions, mongodb: 6.0.5 -> 7.0.1") < text.index("`runs.get`")
    assert "seconds" not in text
    assert "**interrupted**" in text


def test_what_only_one_file_has_is_listed() -> None:
    old = results(record("mongodb", [1]), record("mongodb", [1], operation="gone"))
    new = results(record("mongodb", [1]), record("mongodb", [1], operation="fresh"))
    text = compare(old, new)
    assert "`gone`" in text.partition("## Only in the old one")[2].partition("##")[0]
    assert "`fresh`" in text.partition("## Only in the new one")[2]
