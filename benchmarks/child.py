"""The process that is measured: `python -m benchmarks.child ORDER`, an order being JSON, opens one contender.

It then takes orders line by line and answers each with a line of JSON, until it is told nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import gc
import importlib
import io
import itertools
import json
import pstats
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from deerflow_mongo import create_storage
from deerflow_mongo.contract.actor import ActorContext, bind_actor_context, reset_actor_context

from . import agreement
from .agreement import Run
from .children import Answer, Order
from .contenders.known import CONTENDERS, UVLOOP, Contender
from .dataset import Dataset, an_id
from .operations import HOT_THREAD, OPERATIONS, Operation
from .payloads import Payloads, payloads_of, session

Step: TypeAlias = tuple[str, Mapping[str, Any]]

DAY = "day"
CALLS_PER_BLOCK = 1_000_000
"""Calls are numbered from one block a repetition, so that no two repetitions create the same row."""
_PATIENCE_S = 15.0
"""How long calls that began in time may take before they count as failed."""
_POLL_S, _AFTER_WRITERS_S, _READ_PAGE = 0.002, 1.0, 500
_MOST_CALLS_PER_S = 12_000
_PROFILE_LINES = 25


@contextlib.asynccontextmanager
async def _opened(contender: Contender, url: str, database: str) -> AsyncGenerator[Run]:
    if contender.kind == "storage":
        async with create_storage(contender.config(url, database)) as storage:

            def method(path: str) -> Callable[..., Awaitable[Any]] | None:
                store, name = path.split(".")
                return getattr(getattr(storage, store), name, None)

            yield method
    elif contender.kind == "direct":
        module, _, opener = contender.opener.partition(".")
        opened = getattr(importlib.import_module(f".contenders.{module}", __package__), opener)
        async with opened(url, database) as calls:
            yield calls.get
    else:
        from .contenders import deerflow_sql

        async with deerflow_sql.opened(url) as calls:
            yield calls.get


# -- load ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    latencies_us: list[int] = field(default_factory=lambda: list[int]())
    failures: Counter[str] = field(default_factory=lambda: Counter[str]())
    last: float = 0.0


async def _worker(run: Run, steps: Iterator[Step], tally: _Tally, until: float) -> None:
    clock = time.perf_counter
    for path, arguments in steps:
        call = run(path)
        if call is None:
            continue
        if (begin := clock()) >= until:
            return
        try:
            await call(**arguments)
        except Exception as error:  # noqa: BLE001 - failures are a result
            tally.failures[_kind(error)] += 1
            continue
        tally.last = clock()
        tally.latencies_us.append(int((tally.last - begin) * 1e6))


def _kind(error: Exception) -> str:
    return "database is locked" if "database is locked" in str(error) else type(error).__name__


async def _load(run: Run, sources: Iterable[Iterator[Step]], seconds: float) -> tuple[_Tally, float]:
    """Each source is worked off by a task of its own; the tally, and how long it took."""
    tally, begin = _Tally(), time.perf_counter()
    tasks = [asyncio.create_task(_worker(run, steps, tally, begin + seconds)) for steps in sources]
    _, late = await asyncio.wait(tasks, timeout=seconds + _PATIENCE_S)
    for task in late:
        task.cancel()
        tally.failures[f"no answer within {_PATIENCE_S:.0f} s"] += 1
    await asyncio.gather(*tasks, return_exceptions=True)
    return tally, max(tally.last, begin + 1e-6) - begin


# -- orders ----------------------------------------------------------------------------------------


class _Bench:
    """What orders are carried out on."""

    def __init__(self, run: Run, payloads: Payloads) -> None:
        self._run = run
        self._payloads = payloads
        self._calls_per_s = float(_MOST_CALLS_PER_S)
        self._last_seq = 0

    async def has(self, order: Order) -> Answer:
        """Whether the contender can do the operation at all."""
        return {"has": self._run(_operation(order).path) is not None}

    async def agree(self, order: Order) -> Answer:
        """What the operation's first calls answer, made comparable."""
        operation, data = _operation(order), self._dataset(order)
        numbers = range(order["first"], order["first"] + order["calls"])
        return {"answers": await agreement.answers(self._run, operation, data, numbers)}

    async def warm_up(self, order: Order) -> Answer:
        tally, took_s = await _load(self._run, self._sources(order), order["seconds"])
        self._calls_per_s = len(tally.latencies_us) / took_s
        return {}

    async def measure(self, order: Order) -> Answer:
        profile = cProfile.Profile() if order.get("profiled") else None
        sources = self._sources(order)
        gc.collect()
        _forget_peak_memory()
        cpu_begin_s = time.process_time()
        if profile is not None:
            profile.enable()
        tally, took_s = await _load(self._run, sources, order["seconds"])
        if profile is not None:
            profile.disable()
        return {
            "latencies_us": tally.latencies_us,
            "took_s": took_s,
            "cpu_s": time.process_time() - cpu_begin_s,
            "peak_memory_bytes": _peak_memory_bytes(),
            "failures": dict(tally.failures),
            "profile": None if profile is None else _top(profile),
        }

    async def read(self, order: Order) -> Answer:
        """Follow the thread that the others write to, from where `catch_up` ended; how much that missed."""
        begin, start = time.perf_counter(), self._last_seq
        _, seen = await self._read_on(start, begin + order["seconds"] + _AFTER_WRITERS_S)
        _, there = await self._read_on(start, begin)
        return {"seen": seen, "missed": there - seen}

    async def catch_up(self, order: Order) -> Answer:
        self._last_seq, _ = await self._read_on(0, 0)
        return {}

    async def _read_on(self, last: int, until: float) -> tuple[int, int]:
        """Page by page until nothing more comes after that time; the last number, and how many there were."""
        list_messages = self._run("run_events.list_messages")
        assert list_messages is not None  # noqa: S101 - the order is given to who can
        seen = 0
        while True:
            page = await list_messages(thread_id=HOT_THREAD, limit=_READ_PAGE, after_seq=last)
            if page:
                last, seen = page[-1]["seq"], seen + len(page)
            elif time.perf_counter() >= until:
                return last, seen
            await asyncio.sleep(_POLL_S)

    def _sources(self, order: Order) -> list[Iterator[Step]]:
        concurrency: int = order["concurrency"]
        if order["operation"] == DAY:
            return [self._days(order, task) for task in range(concurrency)]
        # All arguments are made beforehand: what they cost is no part of the operation.
        steps = iter(self._steps(order))
        return [steps] * concurrency

    def _steps(self, order: Order) -> list[Step]:
        operation, data = _operation(order), self._dataset(order)
        expected = int(self._calls_per_s * order["seconds"] * 1.5) + 2 * order["concurrency"]
        count = min(expected, order.get("spare", expected))
        first = order["first"]
        return [(operation.path, operation.arguments(data, n)) for n in range(first, first + count)]

    def _days(self, order: Order, task: int) -> Iterator[Step]:
        """Session after session of one user's browser and agent."""
        for number in itertools.count():
            who = f"{order['first']} {order['process']} {task}"

            def names(name: str, who: str = who, number: int = number) -> str:
                return f"{name} {who}" if name.startswith("user-") else an_id(f"{name} {who}", number)

            script = self._payloads.scripts[(task + number) % len(self._payloads.scripts)]
            actor = bind_actor_context(ActorContext(user_id=names("user-1")))
            for call in session(script, names):
                yield call.path, call.arguments
            reset_actor_context(actor)

    def _dataset(self, order: Order) -> Dataset:
        return Dataset(order["dataset"], self._payloads)


def _operation(order: Order) -> Operation:
    return OPERATIONS[order["operation"]]


def _top(profile: cProfile.Profile) -> str:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(_PROFILE_LINES)
    return text.getvalue()


# -- memory ----------------------------------------------------------------------------------------

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "VmHWM:"


def _forget_peak_memory() -> None:
    """Only Linux can; elsewhere the peak is that of the process so far."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def _peak_memory_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(_PEAK):
                return int(line.split()[1]) * 1_024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1_024


# -- the process -----------------------------------------------------------------------------------


async def _serve(order: Order, payloads: Payloads) -> None:
    async with _opened(CONTENDERS[order["contender"]], order["url"], order["database"]) as run:
        bench = _Bench(run, payloads)
        _say({"is_open": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            given = json.loads(line)
            _say(await getattr(bench, given["do"])(given))


def _say(answer: Answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _run(order: Order) -> None:
    folder = order["threads"]
    served = _serve(order, payloads_of(None if folder is None else Path(folder)))
    if CONTENDERS[order["contender"]].loop == UVLOOP:
        import uvloop

        uvloop.run(served)
    else:
        asyncio.run(served)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    _run(json.loads(sys.argv[1]))
