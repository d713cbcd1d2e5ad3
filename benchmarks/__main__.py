"""Command line of the benchmarks: run, report and compare."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deerflow_mongo import StorageError

from . import compare, plan, report, servers
from .children import ChildError
from .contenders.known import CONTENDERS, OURS
from .measuring import Bench, Case, Outcome, Settings
from .operations import OPERATIONS
from .payloads import Payloads, payloads_of
from .progress import Progress
from .results import Payload, Results, ResultsError, Size

_SECONDS = 0.2
_REPETITIONS = 5


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    reporting = commands.add_parser(
        "report", help="write a Markdown report with PNG charts of a results file"
    )
    reporting.add_argument("results", type=Path)
    reporting.add_argument(
        "--out", type=Path, metavar="FOLDER", help="output folder (default: NAME-report beside the file)"
    )
    comparing = commands.add_parser("compare", help="list what is faster or slower in a newer results file")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run the benchmark and write the results file after every case",
        description="Measures deerflow-mongo, the SQL baseline, DeerFlow's own SQL code (if installed) and"
        " raw PyMongo, on servers that it starts and stops itself.",
    )
    run.add_argument("--out", type=Path, metavar="FILE", help="the results file (JSON)")
    run.add_argument(
        "--quick", action="store_true", help="measure the main operations only, in less than 5 minutes"
    )
    run.add_argument(
        "--long", action="store_true", help="also measure growth up to 10,000,000 runs (takes hours)"
    )
    run.add_argument(
        "--parts",
        nargs="+",
        choices=plan.PARTS,
        metavar="PART",
        help=f"measure only these: {', '.join(plan.PARTS)}",
    )
    run.add_argument(
        "--backends",
        nargs="+",
        choices=list(CONTENDERS),
        metavar="NAME",
        help=f"measure only mongodb and these: {', '.join(CONTENDERS)}",
    )
    run.add_argument(
        "--operations",
        nargs="+",
        choices=list(OPERATIONS),
        metavar="NAME",
        help="measure only these, such as runs.get",
    )
    run.add_argument(
        "--concurrency", nargs="+", type=_positive, metavar="TASKS", help="concurrent tasks, such as 1 32 256"
    )
    run.add_argument("--seconds", type=float, help=f"duration of one measurement (default: {_SECONDS})")
    run.add_argument(
        "--repetitions",
        type=_positive,
        help=f"repetitions of each measurement (default: {_REPETITIONS}; use at least 3)",
    )
    run.add_argument(
        "--threads",
        type=Path,
        metavar="FOLDER",
        help="folder of recorded threads (*.json) to take payloads from",
    )
    run.add_argument(
        "--profile", action="store_true", help="profile the operations instead of measuring them"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


# -- run -------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    if arguments.out is None and not arguments.profile:
        raise ResultsError("missing option --out FILE: the results file to write")
    options = plan.Options(
        arguments.quick,
        arguments.long,
        arguments.parts,
        arguments.backends,
        arguments.operations,
        arguments.concurrency,
    )
    recorded = arguments.threads
    payloads = payloads_of(recorded)
    seconds = arguments.seconds or _SECONDS
    settings = Settings(seconds, arguments.repetitions or _REPETITIONS, recorded)
    with servers.running(plan.contenders_of(options)) as running:
        return _Run(arguments.out, options, settings, payloads, running).run(profiled=arguments.profile)


class _Run:
    """One benchmark run and its results file."""

    def __init__(
        self,
        out: Path | None,
        options: plan.Options,
        settings: Settings,
        payloads: Payloads,
        running: servers.Servers,
    ) -> None:
        self._out = out
        self._options = options
        self._settings = settings
        self._payloads = payloads
        self._running = running
        self._begin = time.monotonic()
        self._results = Results(settings=_settings(options, settings, payloads), machine=_machine())

    def run(self, *, profiled: bool) -> int:
        available = self._add_contenders()
        if profiled:
            return self._profile(available)
        cases = plan.cases_of(self._options, available)
        total = sum(case.measurements for case in cases) * self._settings.repetitions
        with (
            Progress(total) as progress,
            Bench(self._running, self._payloads, self._settings, progress.step) as bench,
        ):
            self._measure_sizes(bench, available, progress)
            for case in cases:
                progress.begin(f"{case.part}: {case.operation}")
                self._measure(bench, case, progress)
        self._results.finished = True
        self._save()
        _print(f"{self._out}: {len(self._results.records)} records in {self._results.took_s:,.0f} s")
        for found in self._results.disagreements:
            _print(f"excluded: {found.backend}, {found.operation}: {found.why}")
        _print(f"python -m benchmarks report {self._out}")
        return 0

    def _add_contenders(self) -> list[str]:
        """Records all contenders in the results; returns the available ones."""
        results, available = self._results, list[str]()
        for name in plan.contenders_of(self._options):
            contender = CONTENDERS[name]
            if (reason := servers.unavailable_reason(contender, self._running)) is not None:
                results.left_out[name] = reason
                continue
            available.append(name)
            results.contenders[name] = {
                "title": contender.title,
                "driver": contender.driver,
                "loop": contender.loop,
                "server": contender.server,
                "durability": contender.durability,
            }
        results.versions = {**self._running.versions()}
        results.payloads = [Payload(*row) for row in self._payloads.sizes()]
        for name, reason in results.left_out.items():
            _print(f"not measured: {name}: {reason}")
        return available

    def _measure(self, bench: Bench, case: Case, progress: Progress) -> None:
        begun = progress.done
        try:
            outcome = bench.measure(case)
        except ChildError as error:
            _print(f"{case.part}: {case.operation}: {error}; not measured")
            outcome = Outcome()
        for record in outcome.records:
            self._results.add(record)
        self._results.disagreements += outcome.disagreements
        progress.skip_to(begun + case.measurements * self._settings.repetitions)
        self._save()

    def _measure_sizes(self, bench: Bench, available: Sequence[str], progress: Progress) -> None:
        """Disk space per run as the number of runs grows."""
        if "growth" not in plan.parts_of(self._options):
            return
        progress.begin("bytes stored")
        names = [name for name in available if name in (OURS, "sqlite", "postgresql")]
        for size in (plan.SMALL, plan.LARGE // 10) if self._options.is_quick else (plan.SMALL, plan.LARGE):
            for name in names:
                stored = bench.bytes_per_run(name, size)
                self._results.sizes.append(Size(backend=name, dataset=size, bytes_per_run=stored))
        self._save()

    def _profile(self, available: Sequence[str]) -> int:
        bench = Bench(self._running, self._payloads, self._settings)
        tasks = (self._options.concurrency or (32,))[0]
        for operation in self._options.operations or plan.MAIN_OPERATIONS:
            for name in available if self._options.backends else (OURS,):
                _print(f"## {operation}, {name}, {tasks} tasks\n")
                _print(bench.profile(operation, name, tasks, plan.SMALL))
        return 0

    def _save(self) -> None:
        self._results.took_s = round(time.monotonic() - self._begin)
        if self._out is not None:
            self._results.save(self._out)


def _settings(options: plan.Options, settings: Settings, payloads: Payloads) -> dict[str, Any]:
    return {
        "quick": options.is_quick,
        "long": options.is_long,
        "parts": plan.parts_of(options),
        "seconds": settings.seconds,
        "warm_up_s": [settings.warm_up_s(tasks) for tasks in (1, 32)],
        "repetitions": settings.repetitions,
        "payloads_from": payloads.source,
    }


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# -- report and compare ----------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> int:
    written = report.write_report(arguments.results, arguments.out)
    _print(written.read_text(encoding="utf-8"))
    _print(f"written: {written}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    _print(compare.compare(Results.load(arguments.old), Results.load(arguments.new)))
    return 0


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status: 0; 2 if a file cannot be read or a server not started; 130 after an interrupt."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return {"run": _run, "report": _report, "compare": _compare}[arguments.command](arguments)
    except (ResultsError, StorageError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished cases are in the results file\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
