"""The faults of a replica set under load: kills, freezes, step-downs and fail points, in a shuffled order.

The load and its checks are in `load.py`, the servers in `servers.py`; `python -m tests.faults` runs it for
long, `test_failover.py` for a moment.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .load import WRITERS, Figures, Load
from .servers import ReplicaSet

FREEZE_S = 6.0
"""How long a frozen primary stays so: longer than an election, so that only a client can be too late."""
_FAIL_POINT_S = 0.5
_WRITES_BEFORE_A_FAULT = 50
_COMMANDS = ["insert", "update", "delete", "findAndModify", "find", "aggregate"]
_FAIL_POINTS: Sequence[dict[str, Any]] = (
    {"closeConnection": True},
    {"errorCode": 91},  # ShutdownInProgress
    {"errorCode": 10107},  # NotWritablePrimary
    {"errorCode": 6},  # HostUnreachable
    # Executed, but reported as not replicated.
    {
        "writeConcernError": {"code": 91, "errmsg": "shutting down"},
        "errorLabels": ["RetryableWriteError"],
        "failCommands": ["insert", "update", "delete", "findAndModify"],
    },
)


@dataclass(frozen=True)
class Plan:
    """How many faults of each kind, and the pause between two of them."""

    kills: int = 0
    freezes: int = 0
    step_downs: int = 0
    fail_points: int = 0
    seconds_between: float = 1.0
    freeze_s: float = FREEZE_S
    seed: int = 11

    def faults(self) -> list[str]:
        """Their names in the order in which they happen."""
        kinds = {"kill": self.kills, "freeze": self.freezes, "step-down": self.step_downs}
        kinds["fail point"] = self.fail_points
        faults = [kind for kind, count in kinds.items() for _ in range(count)]
        random.Random(self.seed).shuffle(faults)  # noqa: S311 - repeatable, not secret
        return faults


@dataclass
class Report:
    """The figures of the load; the longest call during each fault and its time without a primary, by kind.

    `grouped_calls` are those that shared a command, by the kind of command.
    """

    figures: Figures
    pauses_s: dict[str, list[float]]
    elections_s: dict[str, list[float]]
    grouped_calls: dict[str, int]

    def table(self) -> str:
        """As text, with one line for each broken promise at the end."""
        rows = [(f"{kind}s", f"{len(pauses)}") for kind, pauses in self.pauses_s.items()]
        rows += self.figures.rows()
        rows += [(f"calls that shared a command: {kind}", f"{n:,}") for kind, n in self.grouped_calls.items()]
        for title, found in (
            ("longest call during a", self.pauses_s),
            ("without a primary after a", self.elections_s),
        ):
            rows += [
                (f"{title} {kind}: median, worst", f"{median(seconds):.1f} s, {max(seconds):.1f} s")
                for kind, seconds in found.items()
                if any(seconds)
            ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *(f"BROKEN: {line}" for line in self.figures.broken)])


def apply_fault(cluster: ReplicaSet, fault: str, number: int, freeze_s: float) -> float:
    """Let it happen to the primary; returns when all members are healthy again.

    The result is how long the set was without a primary, in seconds.
    """
    began = time.monotonic()
    without_s = 0.0
    if fault == "kill":
        killed = cluster.kill()
        cluster.primary()
        without_s = time.monotonic() - began
        killed.start()
    elif fault == "freeze":
        frozen = cluster.freeze()
        cluster.primary()
        without_s = time.monotonic() - began
        time.sleep(max(0.0, freeze_s - without_s))
        frozen.resume()
    elif fault == "step-down":
        cluster.step_down()
        cluster.primary()
        without_s = time.monotonic() - began
    else:
        primary = cluster.primary()
        data = {"failCommands": _COMMANDS, **_FAIL_POINTS[number % len(_FAIL_POINTS)]}
        primary.set_fail_point("failCommand", {"times": 3}, **data)
        time.sleep(_FAIL_POINT_S)
        primary.set_fail_point("failCommand", "off")
    cluster.wait_until_healthy()
    return without_s


async def run_matrix(
    cluster: ReplicaSet,
    plan: Plan,
    *,
    driver: str = "pymongo",
    uri_options: str = "",
    timeout_ms: int = 25_000,
    database: str = "load",
    writers: int = WRITERS,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """The load on the healthy cluster, all faults of the plan one after the other, and the check."""
    windows: list[tuple[str, float, float]] = []
    elections_s: dict[str, list[float]] = defaultdict(list)
    url = cluster.url + uri_options
    async with Load(url, driver=driver, database=database, timeout_ms=timeout_ms, writers=writers) as load:
        await load.until_written(_WRITES_BEFORE_A_FAULT)
        progress(f"load with {driver} on {cluster.url}")
        faults = plan.faults()
        for number, fault in enumerate(faults, 1):
            await asyncio.sleep(plan.seconds_between)
            began = time.monotonic()
            without_s = await asyncio.to_thread(apply_fault, cluster, fault, number, plan.freeze_s)
            await load.until_written(_WRITES_BEFORE_A_FAULT)
            ended = time.monotonic()
            windows.append((fault, began, ended))
            elections_s[fault].append(without_s)
            writes, errors = load.ledger.acknowledged_writes, load.ledger.errors.total()
            progress(
                f"{number}/{len(faults)} {fault}: {ended - began:.1f} s, {without_s:.1f} s without a primary;"
                f" {writes:,} writes, {errors} errors"
            )
        await load.stop()
        figures = await load.check()
    pauses_s: dict[str, list[float]] = defaultdict(list)
    for fault, began, ended in windows:  # now that each call that was under way has ended
        pauses_s[fault].append(load.ledger.longest_call(began, ended)[0])
    return Report(figures, pauses_s, elections_s, load.grouped_calls())
