"""The command `python -m benchmarks`: measure, report and compare."""

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
_RECORDED = Path(__file__).parents[2] / "shared" / "data" / "threads"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="measure, and write what was measured to a file after every case",
        description="Measures deerflow-mongo beside the SQL baseline, DeerFlow's own SQL code where it is "
        "installed and PyMongo directly, on servers that it starts and stops itself.",
    )
    run.add_argument("--out", type=Path, metavar="FILE", help="the JSON file of results")
    run.add_argument("--quick", action="store_true", help="the main operations, in less than 5 minutes")
    run.add_argument("--long", action="store_true", help="growth up to 10,000,000 runs, too: takes hours")
    run.add_argument("--parts", nargs="+", choices=plan.PARTS, metavar="PART", help=", ".join(plan.PARTS))
    run.add_argument(
        "--backends", nargs="+", choices=list(CONTENDERS), metavar="NAME", help=", ".join(CONTENDERS)
    )
    run.add_argument(
        "--operations", nargs="+", choices=list(OPERATIONS), metavar="NAME", help="such as runs.get"
    )
    run.add_argument("--concurrency", nargs="+", type=_positive, metavar="TASKS", help="1 32 256")
    run.add_argument("--seconds", type=float, help="of one measurement")
    run.add_argument("--repetitions", type=_positive, help="of each; at least 3 for a figure")
    run.add_argument(
        "--threads", type=Path, metavar="FOLDER", help="recorded threads (*.json) to take payloads from"
    )
    run.add_argument(
        "--profile", action="store_true", help="show where the named operations spend their time instead"
    )
    told = commands.add_parser("report", help="write Markdown tables and PNG charts of a file of results")
    told.add_argument("results", type=Path)
    told.add_argument("--out", type=Path, metavar="FOLDER", help="where to; NAME-report beside the file")
    both = commands.add_parser("compare", help="show what is faster or slower in a newer file of results")
    both.add_argument("old", type=Path)
    both.add_argument("new", type=Path)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


# -- run -------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    if arguments.out is None and not arguments.profile:
        raise ResultsError("say where to write what is measured: --out results.json")
    wishes = plan.Wishes(
        arguments.quick,
        arguments.long,
        arguments.parts,
        arguments.backends,
        arguments.operations,
        arguments.concurrency,
    )
    recorded = arguments.threads or (_RECORDED if _RECORDED.is_dir() else None)
    payloads = payloads_of(recorded)
    seconds = arguments.seconds or _SECONDS
    settings = Settings(seconds, arguments.repetitions or _REPETITIONS, recorded)
    with servers.running(plan.contenders_of(wishes)) as running:
        return _Run(arguments.out, wishes, settings, payloads, running).run(profiled=arguments.profile)


class _Run:
    """One run of the benchmarks and its file."""

    def __init__(
        self,
        out: Path | None,
        wishes: plan.Wishes,
        settings: Settings,
        payloads: Payloads,
        running: servers.Servers,
    ) -> None:
        self._out = out
        self._wishes = wishes
        self._settings = settings
        self._payloads = payloads
        self._running = running
        self._begin = time.monotonic()
        self._results = Results(settings=_told(wishes, settings, payloads), machine=_machine())

    def run(self, *, profiled: bool) -> int:
        present = self._introduce()
        if profiled:
            return self._profile(present)
        cases = plan.cases_of(self._wishes, present)
        total = sum(case.measurements for case in cases) * self._settings.repetitions
        with (
            Progress(total) as progress,
            Bench(self._running, self._payloads, self._settings, progress.step) as bench,
        ):
            self._measure_sizes(bench, present, progress)
            for case in cases:
                progress.begin(f"{case.part}: {case.operation}")
                self._measure(bench, case, progress)
        self._results.finished = True
        self._save()
        _say(f"{self._out}: {len(self._results.records)} records in {self._results.took_s:,.0f} s")
        for found in self._results.disagreements:
            _say(f"does not count: {found.backend}, {found.operation}: {found.why}")
        _say(f"python -m benchmarks report {self._out}")
        return 0

    def _introduce(self) -> list[str]:
        """Who takes part; and what the file says of all of them."""
        results, present = self._results, list[str]()
        for name in plan.contenders_of(self._wishes):
            contender = CONTENDERS[name]
            if (reason := servers.why_left_out(contender, self._running)) is not None:
                results.left_out[name] = reason
                continue
            present.append(name)
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
            _say(f"left out: {name}: {reason}")
        return present

    def _measure(self, bench: Bench, case: Case, progress: Progress) -> None:
        begun = progress.done
        try:
            outcome = bench.measure(case)
        except ChildError as error:
            _say(f"{case.part}: {case.operation}: {error}; left out")
            outcome = Outcome()
        for record in outcome.records:
            self._results.add(record)
        self._results.disagreements += outcome.disagreements
        progress.skip_to(begun + case.measurements * self._settings.repetitions)
        self._save()

    def _measure_sizes(self, bench: Bench, present: Sequence[str], progress: Progress) -> None:
        """How much of the disk a run takes, as their number grows."""
        if "growth" not in plan.parts_of(self._wishes):
            return
        progress.begin("bytes stored")
        kinds = [name for name in present if name in (OURS, "sqlite", "postgresql")]
        for size in (plan.SMALL, plan.LARGE // 10) if self._wishes.is_quick else (plan.SMALL, plan.LARGE):
            for name in kinds:
                taken = bench.bytes_per_run(name, size)
                self._results.sizes.append(Size(backend=name, dataset=size, bytes_per_run=taken))
        self._save()

    def _profile(self, present: Sequence[str]) -> int:
        bench = Bench(self._running, self._payloads, self._settings)
        tasks = (self._wishes.concurrency or (32,))[0]
        for operation in self._wishes.operations or plan.MAIN_OPERATIONS:
            for name in present if self._wishes.backends else (OURS,):
                _say(f"## {operation}, {name}, {tasks} tasks\n")
                _say(bench.profile(operation, name, tasks, plan.SMALL))
        return 0

    def _save(self) -> None:
        self._results.took_s = round(time.monotonic() - self._begin)
        if self._out is not None:
            self._results.save(self._out)


def _told(wishes: plan.Wishes, settings: Settings, payloads: Payloads) -> dict[str, Any]:
    return {
        "quick": wishes.is_quick,
        "long": wishes.is_long,
        "parts": plan.parts_of(wishes),
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


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# -- report and compare ----------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> int:
    written = report.write_report(arguments.results, arguments.out)
    _say(written.read_text(encoding="utf-8"))
    _say(f"written: {written}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    _say(compare.compare(Results.load(arguments.old), Results.load(arguments.new)))
    return 0


def _end(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """0; 2 where a file cannot be read or a server not be started; 130 where it was interrupted."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _end)
    try:
        return {"run": _run, "report": _report, "compare": _compare}[arguments.command](arguments)
    except (ResultsError, StorageError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is in the file\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
