"""The command `python -m benchmarks.run_events`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from . import memory, pages, servers, writing
from .case import Case, Result, Settings, progress

_CASES: dict[str, Case] = {
    "one_process": writing.one_process,
    "many_processes": writing.many_processes,
    "pages": pages.page_of_messages,
    "memory": memory.memory_of_batches,
}
_PACKAGES = ("deerflow-mongo", "pymongo", "sqlalchemy", "aiosqlite", "asyncpg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_events", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement of writing")
    parser.add_argument("--repetitions", type=int, default=5, help="of everything; at least 3 for a figure")
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    parser.add_argument("--only", nargs="+", choices=list(_CASES), default=list(_CASES), metavar="NAME")
    parser.add_argument("--profile", action="store_true", help="show where put_batch spends its time")
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or arguments.repetitions < 1:
        parser.error("--seconds and --repetitions must be positive")
    return arguments


def _versions(running: servers.Servers) -> dict[str, str]:
    versions = {"python": platform.python_version(), **running.versions()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _show(result: Result) -> None:
    parts = [f"## {result.title}\n", *map(str, result.tables), *(f"{note}\n" for note in result.notes)]
    if not result.is_right:
        parts.append("**put_batch gave wrong answers: its figures do not count.**\n")
    sys.stdout.write("\n".join(parts) + "\n")
    sys.stdout.flush()


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = Settings(arguments.seconds, arguments.repetitions, arguments.profile)
    begin = time.monotonic()
    with servers.running(with_sql="one_process" in arguments.only) as running:
        versions = _versions(running)
        sys.stdout.write(f"{', '.join(map(' '.join, versions.items()))}; {os.cpu_count()} CPUs\n\n")
        results: dict[str, Result] = {}
        for name in arguments.only:
            progress(name)
            results[name] = _CASES[name](running, settings)
            _show(results[name])
    return {
        "versions": versions,
        "seconds": settings.seconds,
        "repetitions": settings.repetitions,
        "took_s": round(time.monotonic() - begin),
        "is_right": all(result.is_right for result in results.values()),
        "cases": {name: result.raw for name, result in results.items()},
    }


def _end(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """0; 1 where put_batch gave wrong answers; 130 where it was interrupted, with everything stopped."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _end)
    try:
        measured = _measure(arguments)
    except KeyboardInterrupt:
        return 130
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(measured, indent=2) + "\n")
    return 0 if measured["is_right"] else 1


if __name__ == "__main__":
    sys.exit(main())
