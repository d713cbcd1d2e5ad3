"""The process that is measured: `python -m benchmarks.run_events.child ORDER`, an order being JSON.

It says "ready" once it is warm, begins when it is sent a line, and answers with one line of JSON.
"""

from __future__ import annotations

import asyncio
import cProfile
import io
import json
import pstats
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from . import memory, mongodb, pages
from .workload import TASKS, Put, Target, a_batch
from .writers import WRITERS

_POLL_S, _AFTER_WRITERS_S = 0.002, 1.0
_TOP = 15


@dataclass(slots=True)
class _Tally:
    numbers: list[int] = field(default_factory=lambda: list[int]())
    latencies_ms: list[float] = field(default_factory=lambda: list[float]())
    """Of the batches that were stored in time."""
    failures: Counter[str] = field(default_factory=lambda: Counter[str]())


async def _load(put: Put, tally: _Tally, seconds: float) -> None:
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_task(put, f"run-{task}", tally, until) for task in range(TASKS)))


async def _task(put: Put, run_id: str, tally: _Tally, until: float) -> None:
    events = a_batch(run_id)
    while (begin := time.perf_counter()) < until:
        try:
            numbers = await put(events)
        except Exception as error:  # noqa: BLE001 - failures are a result
            tally.failures[_kind(error)] += 1
            continue
        tally.numbers += numbers
        if (end := time.perf_counter()) <= until:
            tally.latencies_ms.append((end - begin) * 1_000)


def _kind(error: Exception) -> str:
    return "database is locked" if "database is locked" in str(error) else type(error).__name__


async def _started() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not await asyncio.to_thread(sys.stdin.readline):
        raise SystemExit("nobody waits for this process any more")


async def _write(order: dict[str, Any]) -> dict[str, Any]:
    async with WRITERS[order["writer"]].open(Target(**order["target"])) as put:
        warm_up, tally = _Tally(), _Tally()
        await _load(put, warm_up, order["warm_up_s"])
        await _started()
        profile = cProfile.Profile()
        cpu_begin_s = time.process_time()
        if order["profiled"]:
            profile.enable()
        await _load(put, tally, order["seconds"])
        cpu_s = time.process_time() - cpu_begin_s
        if order["profiled"]:
            profile.disable()
    return {
        "batches": len(tally.latencies_ms),
        "cpu_s": cpu_s,
        "p50_ms": statistics.median(tally.latencies_ms) if tally.latencies_ms else None,
        "failures": dict(tally.failures),
        "numbers": warm_up.numbers + tally.numbers,
        "profile": _top(profile) if order["profiled"] else None,
    }


def _top(profile: cProfile.Profile) -> str:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(_TOP)
    return text.getvalue()


async def _read(order: dict[str, Any]) -> dict[str, Any]:
    """Page by `seq > last` while the writers write, until nothing more comes after their end."""
    async with mongodb.reader(Target(**order["target"])) as reader:
        await _started()
        until = time.perf_counter() + order["seconds"] + _AFTER_WRITERS_S
        has_more = True
        while has_more:
            await asyncio.sleep(_POLL_S)
            has_more = await reader.page() or time.perf_counter() < until
    return {"seen": reader.seen, "last": reader.last}


async def _pages(order: dict[str, Any]) -> dict[str, Any]:
    async with mongodb.storage_of(Target(**order["target"])) as storage:
        await _started()
        return await pages.measure(storage.run_events, order["calls"])


async def _memory(order: dict[str, Any]) -> dict[str, Any]:
    async with mongodb.storage_of(Target(**order["target"])) as storage:
        await _started()
        return await memory.measure(storage.run_events, order["thread_id"], order["events"])


_ROLES: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
    "write": _write,
    "read": _read,
    "pages": _pages,
    "memory": _memory,
}


async def _answer(order: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(await _ROLES[order["role"]](order)) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    asyncio.run(_answer(json.loads(sys.argv[1])))
