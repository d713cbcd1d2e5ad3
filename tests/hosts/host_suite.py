"""DeerFlow's own tests with its SQL stores exchanged for our adapters, from a checkout, unchanged.

    DEERFLOW_BACKEND=<checkout>/backend python -m tests.hosts.host_suite [--memory] [file ...]

Prints a table of the tests that build one of the exchanged classes: how many passed, failed, and cannot pass
for a reason in `host_suite_reasons.py`. Exits with 1 where another one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deerflow_mongo.mongodb.embedded import start_embedded

from .checkout import backend, interpreter, python_path
from .exchanged_stores import MEMORY_VARIABLE, REPORT_VARIABLE, URL_VARIABLE
from .host_suite_reasons import CANNOT_PASS

FILES: Final = (
    "test_run_repository.py",
    "test_thread_meta_repo.py",
    "test_feedback.py",
    "test_run_event_store.py",
    "test_run_event_store_filter.py",
    "test_history_batch_queries.py",
    "test_owner_isolation.py",
    "test_persistence_timezone.py",
    "test_token_usage_by_model.py",
    "test_auth.py",
)
"""The files that build one of the exchanged classes; a release has those that it has."""

MEMORY_FILES: Final = ("test_multi_worker_run_ownership.py", "test_run_manager.py")
"""The files that build DeerFlow's run store in memory, for `--memory`."""

_TESTS_FAILED: Final = 1
"""pytest's exit code where tests failed, which is judged here."""


@dataclass
class FileCounts:
    """The tests of one file that build an exchanged class."""

    tests: int = 0
    built: int = 0
    passed: int = 0
    cannot_pass: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    failed: dict[str, str] = field(default_factory=lambda: dict[str, str]())


@dataclass
class SuiteResult:
    """The outcome by file."""

    files: dict[str, FileCounts]
    unneeded: list[str]
    """Tests that pass although a reason is stated why they cannot."""

    @property
    def failed(self) -> dict[str, str]:
        return {test: reason for counts in self.files.values() for test, reason in counts.failed.items()}

    def lines(self) -> list[str]:
        """The table, the reasons and the failures."""
        lines = [
            "| file | tests | build one | passed | failed | cannot pass |",
            "| --- | --: | --: | --: | --: | --: |",
        ]
        total = FileCounts()
        for name, counts in self.files.items():
            lines.append(_table_row(name, counts))
            total.tests += counts.tests
            total.built += counts.built
            total.passed += counts.passed
            total.failed |= counts.failed
            total.cannot_pass |= counts.cannot_pass
        lines += [_table_row("together", total), ""]
        lines += [f"CANNOT PASS {test}: {reason}" for test, reason in total.cannot_pass.items()]
        lines += [f"FAILED {test}: {reason}" for test, reason in total.failed.items()]
        lines += [f"REASON NOT NEEDED {test}" for test in self.unneeded]
        return lines


def _table_row(name: str, counts: FileCounts) -> str:
    numbers = (counts.tests, counts.built, counts.passed, len(counts.failed), len(counts.cannot_pass))
    return f"| {name} | {' | '.join(map(str, numbers))} |"


def judge(outcomes: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str] = CANNOT_PASS) -> SuiteResult:
    """The outcomes as the plugin reports them, by file.

    A failure counts whether or not the test built an exchanged class: it may have failed before.
    """
    files: dict[str, FileCounts] = {}
    unneeded: list[str] = []
    for node, outcome in outcomes.items():
        path, _, name = node.partition("::")
        test = f"{Path(path).name}::{name}"
        counts = files.setdefault(Path(path).name, FileCounts())
        counts.tests += 1
        counts.built += bool(outcome["built"])
        if outcome["outcome"] != "failed":
            counts.passed += bool(outcome["built"]) and outcome["outcome"] == "passed"
            unneeded += [test] if test in reasons else []
        elif test in reasons:
            counts.cannot_pass[test] = reasons[test]
        else:
            counts.failed[test] = outcome["reason"]
    return SuiteResult(files, unneeded)


def run_suite(
    files: Sequence[str], url: str, options: Iterable[str] = (), *, memory: bool = False
) -> SuiteResult:
    """Run these files of the checkout against the server at `url`."""
    present = [name for name in files if (backend() / "tests" / name).is_file()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        variables = {URL_VARIABLE: url, REPORT_VARIABLE: str(report), "PYTHONPATH": python_path()}
        variables |= {"DEER_FLOW_HOME": f"{folder}/home", "PYTHONPYCACHEPREFIX": f"{folder}/pycache"}
        if memory:
            variables[MEMORY_VARIABLE] = "1"
        command = [interpreter(), "-m", "pytest", "-q", "-p", "tests.hosts.exchanged_stores"]
        command += ["-p", "no:cacheprovider", *options, *(f"tests/{name}" for name in present)]
        ended = subprocess.run(  # noqa: S603 - DeerFlow's own tests
            command, cwd=backend(), env={**os.environ, **variables}, check=False
        )
        if ended.returncode not in (0, _TESTS_FAILED) or not report.is_file():
            raise SystemExit(f"DeerFlow's tests could not be run: pytest exited with {ended.returncode}")
        return judge(json.loads(report.read_text()))


def main() -> int:
    """Run the files; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hosts.host_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", help="files of the checkout's tests; all that build a store")
    parser.add_argument(
        "--memory", action="store_true", help="also DeerFlow's run store in memory, and its files"
    )
    parser.add_argument("--url", help="a MongoDB server; one is started by default")
    parser.add_argument("--tb", default="no", help="pytest's --tb")
    parser.add_argument("-k", default="", help="pytest's -k")
    asked = parser.parse_args()
    files = asked.files or (MEMORY_FILES if asked.memory else FILES)
    options = [f"--tb={asked.tb}", *(["-k", asked.k] if asked.k else [])]
    if asked.url:
        result = run_suite(files, asked.url, options, memory=asked.memory)
    else:
        server = start_embedded()
        try:
            result = run_suite(files, server.url, options, memory=asked.memory)
        finally:
            server.release()
    sys.stdout.write("\n".join(["", *result.lines(), ""]))
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
