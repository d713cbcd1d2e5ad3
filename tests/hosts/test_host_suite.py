"""How the outcome of DeerFlow's own tests is judged; `python -m tests.hosts.host_suite` runs them."""

from __future__ import annotations

from .host_suite import FILES, MEMORY_FILES, judge
from .host_suite_reasons import CANNOT_PASS


def _outcome(outcome: str, *, built: bool = True, reason: str = "") -> dict[str, object]:
    return {"outcome": outcome, "built": built, "reason": reason}


def test_failure_without_a_reason_is_a_failure_of_the_run() -> None:
    outcomes = {"tests/test_a.py::test_x": _outcome("failed", reason="no row")}
    result = judge(outcomes, reasons={})
    assert result.failed == {"test_a.py::test_x": "no row"}
    assert "FAILED test_a.py::test_x: no row" in result.lines()


def test_failure_before_a_class_was_built_is_a_failure_too() -> None:
    result = judge({"tests/test_a.py::test_x": _outcome("failed", built=False)}, reasons={})
    assert list(result.failed) == ["test_a.py::test_x"]


def test_expected_failure_is_listed_with_its_reason() -> None:
    reasons = {"test_a.py::test_x": "it compiles SQL"}
    result = judge({"tests/test_a.py::test_x": _outcome("failed")}, reasons)
    assert not result.failed
    assert "CANNOT PASS test_a.py::test_x: it compiles SQL" in result.lines()
    assert "| together | 1 | 1 | 0 | 0 | 1 |" in result.lines()


def test_reason_of_a_test_that_passes_is_reported() -> None:
    result = judge({"tests/test_a.py::test_x": _outcome("passed")}, {"test_a.py::test_x": "no longer"})
    assert result.unneeded == ["test_a.py::test_x"]


def test_only_tests_that_build_a_class_count_as_passed() -> None:
    outcomes = {
        "tests/test_a.py::test_x": _outcome("passed"),
        "tests/test_a.py::test_y": _outcome("passed", built=False),
        "tests/test_a.py::test_z": _outcome("skipped"),
    }
    assert "| test_a.py | 3 | 2 | 1 | 0 | 0 |" in judge(outcomes, {}).lines()


def test_reasons_are_of_tests_in_files_that_are_run() -> None:
    assert {test.partition("::")[0] for test in CANNOT_PASS} <= {*FILES, *MEMORY_FILES}
