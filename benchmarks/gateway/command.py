"""The command `python -m benchmarks gateway`, and the part `gateway` of a run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from ..report.cases import Cases
from ..report.gateway import absolute_values, gateway
from ..results import Results
from . import measuring
from .measuring import QUICK, Bench, Load
from .process import GatewayError

__all__ = ["GatewayError", "add_arguments", "measure", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Load()
    parser.add_argument("--out", type=Path, metavar="FILE", help="a results file, whose other parts stay")
    parser.add_argument("--quick", action="store_true", help="one short round, to try it")
    parser.add_argument("--backends", nargs="+", choices=measuring.NAMES, default=measuring.NAMES)
    parser.add_argument("--users", nargs="+", type=int, help=f"default: {' '.join(map(str, default.users))}")
    parser.add_argument("--turns", type=int, help=f"of a conversation (default: {default.turns})")
    parser.add_argument("--rounds", type=int, help=f"default: {default.rounds}")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the results file after every round, and print the tables."""
    given = {
        name: value
        for name in ("users", "turns", "rounds")
        if (value := getattr(arguments, name)) is not None
    }
    load = replace(QUICK if arguments.quick else Load(), **given)
    if min(*load.users, load.turns, load.rounds) < 1:
        raise GatewayError("--users, --turns and --rounds take numbers from 1")
    out: Path | None = arguments.out
    results = Results.load(out) if out is not None and out.exists() else _new_results()
    if not measure(results, load, out, arguments.backends):
        return 0
    cases = Cases(results)
    sys.stdout.write(f"{gateway(cases)}\n\n{absolute_values(cases)}\n")
    return 1 if any(one.operation == measuring.OPERATION for one in results.disagreements) else 0


def _new_results() -> Results:
    machine = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    return Results(machine=machine, finished=True)


def measure(results: Results, load: Load, out: Path | None, names: tuple[str, ...] = measuring.NAMES) -> bool:
    """Put the records of this part into the results, and into the file if there is one, after every round.

    False where nothing can be measured here: a sentence with the reason is printed.
    """
    if (reason := measuring.missing()) is not None:
        results.left_out["gateway"] = reason
        sys.stdout.write(f"the gateway is not measured: {reason}\n")
        return False
    results.left_out.pop("gateway", None)
    results.disagreements[:] = [one for one in results.disagreements if one.operation != measuring.OPERATION]
    results.settings["gateway"] = asdict(load)
    for package, version in measuring.versions().items():
        is_other = results.versions.get(package, version) != version
        results.versions[f"{package} of the gateway" if is_other else package] = version
    selected = [name for name in measuring.available(results) if name in names or name == measuring.OURS]
    bench = Bench(load, results, _log)
    began, took_s = time.monotonic(), results.took_s
    with measuring.servers(selected) as running:
        for _ in bench.run(running, selected):
            results.took_s = took_s + round(time.monotonic() - began)
            if out is not None:
                results.save(out)
    return True


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")
