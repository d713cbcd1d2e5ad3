"""Command line of the benchmarks: run and report."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deerflow_mongo import StorageError

from . import ownership, plan, report, servers
from .checkpoints import measuring as checkpoints
from .children import ChildError
from .contenders.known import CONTENDERS, OURS, SAVERS
from .dataset import Payloads
from .gateway import command as gateway
from .gateway.measuring import QUICK, Load
from .measuring import Bench, Settings
from .operations import OPERATIONS
from .recordings import payloads_of
from .results import Results, ResultsError


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start the servers, measure, and write results after every case")
    run.add_argument("--out", type=Path, metavar="FILE", required=True, help="the results file (JSON)")
    run.add_argument("--quick", action="store_true", help="the main operations only, in less than 5 minutes")
    run.add_argument("--parts", nargs="+", choices=plan.PARTS, help="only these parts")
    run.add_argument("--backends", nargs="+", choices=list(CONTENDERS), help=f"{OURS} and only these others")
    run.add_argument("--operations", nargs="+", choices=list(OPERATIONS), metavar="NAME", help="only these")
    run.add_argument("--concurrency", nargs="+", type=_positive, metavar="TASKS", help="such as 1 32 256")
    run.add_argument("--seconds", type=float, default=0.2, help="of one measurement (default: %(default)s)")
    run.add_argument("--repetitions", type=_positive, default=5, help="at least 3 (default: %(default)s)")
    run.add_argument("--threads", type=Path, metavar="FOLDER", help="recorded threads to take payloads from")
    report = commands.add_parser("report", help="write a Markdown report with PNG charts of a results file")
    report.add_argument("results", type=Path)
    report.add_argument("--out", type=Path, metavar="FOLDER", help="default: NAME-report beside the file")
    report.add_argument("--readme", action="store_true", help="write the READMEs' tables and charts instead")
    saved = commands.add_parser("checkpoints", help="checkpoint savers only: a run with its tables")
    saved.add_argument("--out", type=Path, metavar="FILE", required=True, help="where other parts stay")
    saved.add_argument("--quick", action="store_true", help="few turns and small states, in a minute")
    saved.add_argument("--savers", nargs="+", choices=SAVERS, help=f"{OURS} and only these others")
    saved.add_argument("--measures", nargs="+", choices=list(checkpoints.CASES), help="only these")
    saved.add_argument("--tasks", nargs="+", type=_positive, help="of the turns (default: 1 16)")
    saved.add_argument("--repetitions", type=_positive, default=5, help="at least 3 (default: %(default)s)")
    tasks = commands.add_parser("tasks", help="calls by 1 to 256 tasks, with groups and without")
    tasks.add_argument("--out", type=Path, metavar="FILE", required=True, help="where other parts stay")
    tasks.add_argument("--quick", action="store_true", help="three operations by 1 and 32 tasks, in a minute")
    tasks.add_argument("--backends", nargs="+", choices=list(CONTENDERS), help="only these others")
    tasks.add_argument("--operations", nargs="+", choices=list(OPERATIONS), metavar="NAME", help="only these")
    tasks.add_argument("--tasks", nargs="+", type=_positive, help="default: 1 8 32 256")
    tasks.add_argument("--seconds", type=float, help="of one measurement (default: 0.2, if quick 0.05)")
    tasks.add_argument("--repetitions", type=_positive, help="at least 3 (default: 5, if quick 3)")
    tasks.add_argument("--threads", type=Path, metavar="FOLDER", help="recorded threads, as for `run`")
    owned = commands.add_parser("ownership", help="run ownership beside a checkout of DeerFlow main")
    ownership.add_arguments(owned)
    whole = commands.add_parser("gateway", help="the whole gateway of DeerFlow on each storage")
    gateway.add_arguments(whole)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    options = plan.Options(
        arguments.quick, arguments.parts, arguments.backends, arguments.operations, arguments.concurrency
    )
    settings = Settings(arguments.seconds, arguments.repetitions)
    return _measure(options, payloads_of(arguments.threads), settings, arguments.out)


def _run_checkpoints(arguments: argparse.Namespace) -> int:
    """Puts the part's records into the results file, whose other parts stay."""
    out: Path = arguments.out
    options = plan.Options(
        arguments.quick, ("checkpoints",), arguments.savers, arguments.measures, arguments.tasks
    )
    before = Results.load(out) if out.exists() else None
    if before is not None:
        before.remove("checkpoints", checkpoints.OPERATIONS)
        before.settings["checkpoints"] = {"quick": arguments.quick, "repetitions": arguments.repetitions}
    status = _measure(options, payloads_of(None), Settings(0, arguments.repetitions), out, before)
    _print(f"\n{report.checkpoint_tables(out)}")
    return status


def _run_tasks(arguments: argparse.Namespace) -> int:
    """Puts the part's records into the results file, whose other parts stay."""
    out: Path = arguments.out
    options = plan.Options(
        arguments.quick, ("tasks",), arguments.backends, arguments.operations, arguments.tasks
    )
    settings = Settings(
        arguments.seconds or (0.05 if arguments.quick else 0.2),
        arguments.repetitions or (3 if arguments.quick else 5),
    )
    payloads = payloads_of(arguments.threads)
    results = Results.load(out) if out.exists() else _new_results(options, payloads, settings)
    results.remove("tasks", ())
    began_at = datetime.now(UTC).isoformat(timespec="seconds")
    given = {"quick": arguments.quick, **asdict(settings), "payloads_from": payloads.source}
    results.settings["tasks"] = {"began_at": began_at, **given}
    status = _measure(options, payloads, settings, out, results)
    _print(f"\n{report.tasks_tables(out)}")
    return status


def _new_results(options: plan.Options, payloads: Payloads, settings: Settings) -> Results:
    return Results(
        settings={
            "quick": options.is_quick,
            "parts": plan.parts_of(options),
            **asdict(settings),
            "payloads_from": payloads.source,
        },
        machine={
            "system": platform.system(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
    )


def _measure(
    options: plan.Options, payloads: Payloads, settings: Settings, out: Path, before: Results | None = None
) -> int:
    """Adds to the results that there are `before`, if any."""
    results = _new_results(options, payloads, settings) if before is None else before
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(servers.running(plan.contenders_of(options)))
        available = _add_contenders(results, options, running)
        bench = Bench(stack, running, payloads, settings, results)
        _measure_cases(bench, options, available, out)
    if "gateway" in plan.parts_of(options):
        gateway.measure(results, QUICK if options.is_quick else Load(), out)
    results.finished = True
    results.save(out)
    _print(f"{out}: {len(results.records)} records in {results.took_s:,.0f} s")
    for found in results.disagreements:
        _print(f"excluded: {found.backend}, {found.operation}: {found.why}")
    _print(f"python -m benchmarks report {out}")
    return 0


def _measure_cases(bench: Bench, options: plan.Options, available: Sequence[str], out: Path) -> None:
    results = bench.results
    began, took_s = time.monotonic(), results.took_s
    savers = checkpoints.SaverBench(bench, checkpoints.QUICK if options.is_quick else checkpoints.FULL)
    cases = plan.cases_of(options, available)
    for name in dict.fromkeys(
        name for case in cases if case.part != "checkpoints" for name in case.contenders
    ):
        bench.children.start(name)
    for size, name in plan.stored_of(options, available):
        bench.measure_size(name, size)
    for number, case in enumerate(cases):
        passed_s = time.monotonic() - began
        _print(f"[{number}/{len(cases)}, {passed_s:,.0f} s] {case.part}: {case.operation}", sys.stderr)
        try:
            (savers if case.part == "checkpoints" else bench).measure(case)
        except ChildError as error:
            _print(f"{case.part}: {case.operation}: {error}; not measured")
        results.took_s = took_s + round(time.monotonic() - began)
        results.save(out)


def _add_contenders(results: Results, options: plan.Options, running: servers.Servers) -> list[str]:
    """Records all contenders in the results; returns the available ones."""
    available: list[str] = []
    for name in plan.contenders_of(options):
        contender = CONTENDERS[name]
        if (reason := servers.unavailable_reason(contender)) is not None:
            results.left_out[name] = reason
            _print(f"not measured: {name}: {reason}")
            continue
        fields = ("title", "driver", "loop", "server", "durability")
        results.contenders[name] = {field: getattr(contender, field) for field in fields}
        available.append(name)
    results.versions.update(running.versions())
    return available


def _print(text: str, stream: Any = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


def _report(arguments: argparse.Namespace) -> int:
    if arguments.readme:
        for path in report.write_readmes(arguments.results):
            _print(f"written: {path}")
        return 0
    written = report.write_report(arguments.results, arguments.out)
    _print(f"{written.read_text(encoding='utf-8')}\nwritten: {written}")
    return 0


def main() -> int:
    """Exit status: 0; 2 if a file cannot be read or a server not started; 130 after an interrupt."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        commands = {
            "run": _run,
            "report": _report,
            "checkpoints": _run_checkpoints,
            "tasks": _run_tasks,
            "ownership": ownership.run,
            "gateway": gateway.run,
        }
        return commands[arguments.command](arguments)
    except (
        ResultsError,
        StorageError,
        ownership.OwnershipError,
        gateway.GatewayError,
        FileNotFoundError,
    ) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished cases are in the results file\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
