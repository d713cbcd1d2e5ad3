"""The long form of the laboratory: a replica set of three members, load on it, and many faults.

    python -m tests.faults --kills 50 --freezes 20 --step-downs 10 [--driver motor] [--seconds-between 1]

Prints a line for each fault and a table of figures at the end. Exits with 1 where a promise was broken (an
acknowledged write lost or stored twice, a sum not exact, an event missed by a reader, a wrong answer), with
130 where it was interrupted. No server and no file is left in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from .load import WRITERS
from .matrix import FREEZE_S, Plan, run_matrix
from .servers import ELECTION_TIMEOUT_MS, ReplicaSet


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, what in (
        ("kills", "kill -9 of the primary"),
        ("freezes", "SIGSTOP of the primary"),
        ("step-downs", "replSetStepDown"),
        ("fail-points", "errors and closed connections from failCommand"),
    ):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=what)
    parser.add_argument("--driver", choices=["pymongo", "motor"], default="pymongo")
    parser.add_argument(
        "--writers",
        type=int,
        default=WRITERS,
        metavar="N",
        help="of each client; from 16 on, calls share commands",
    )
    parser.add_argument("--seconds-between", type=float, default=1.0, metavar="S", help="between two faults")
    parser.add_argument("--freeze-seconds", type=float, default=FREEZE_S, metavar="S")
    parser.add_argument("--election-timeout-ms", type=int, default=ELECTION_TIMEOUT_MS, metavar="MS")
    parser.add_argument("--timeout-ms", type=int, default=25_000, metavar="MS", help="of the storages")
    parser.add_argument(
        "--uri-options", default="", help="added to the URI, such as '&connectTimeoutMS=2000'"
    )
    parser.add_argument("--seed", type=int, default=11, help="of the order of the faults")
    return parser.parse_args()


def _progress(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run it; the exit code."""
    asked = _arguments()
    plan = Plan(
        kills=asked.kills,
        freezes=asked.freezes,
        step_downs=asked.step_downs,
        fail_points=asked.fail_points,
        seconds_between=asked.seconds_between,
        freeze_s=asked.freeze_seconds,
        seed=asked.seed,
    )
    try:
        with ReplicaSet(3, election_timeout_ms=asked.election_timeout_ms) as cluster:
            matrix = run_matrix(
                cluster,
                plan,
                driver=asked.driver,
                uri_options=asked.uri_options,
                timeout_ms=asked.timeout_ms,
                writers=asked.writers,
                progress=_progress,
            )
            report = asyncio.run(matrix)
    except KeyboardInterrupt:
        _progress("interrupted")
        return 130
    _progress("\n" + report.table())
    return 1 if report.figures.broken else 0


if __name__ == "__main__":
    sys.exit(main())
