"""The measuring process of one contender: `python -m benchmarks.child CONTENDER`.

It reads requests from stdin and writes a response for each to stdout, pickled, until stdin ends. The first
one opens a database, `close` closes it; the requests between them are the methods of `_Bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import itertools
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

from deerflow_mongo import create_storage
from deerflow_mongo.contract.actor import ActorContext, bind_actor_context, reset_actor_context

from . import agreement
from .agreement import Run
from .children import Request, Response
from .contenders import deerflow_sql
from .contenders.known import CONTENDERS, UVLOOP, Contender
from .dataset import Dataset, Payloads, an_id, session
from .operations import HOT_THREAD, OPERATIONS

Step: TypeAlias = tuple[str, Mapping[str, Any]]

DAY = "day"
CALLS_PER_BLOCK = 1_000_000
"""Each repetition has its own block of call numbers, so that no two repetitions create the same row."""
_DRAIN_TIMEOUT_S = 15.0
"""Calls that started in time and take longer than this count as failed."""
_POLL_S, _AFTER_WRITERS_S, _READ_PAGE = 0.002, 1.0, 500
_MAX_CALLS_PER_S = 12_000


@contextlib.asynccontextmanager
async def opened(contender: Contender, url: str, database: str) -> AsyncGenerator[Run]:
    """The contender's calls on this database, by path."""
    if contender.kind == "storage":
        async with create_storage(contender.config(url, database)) as storage:
            yield lambda path: attrgetter(path)(storage)
    else:
        module, _, opener = contender.opener.partition(".")
        function = getattr(importlib.import_module(f".contenders.{module}", __package__), opener)
        async with function(url, database) as calls:
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
            is_locked = "database is locked" in str(error)
            tally.failures["database is locked" if is_locked else type(error).__name__] += 1
            continue
        tally.last = clock()
        tally.latencies_us.append(int((tally.last - begin) * 1e6))


async def _load(run: Run, sources: Iterable[Iterator[Step]], seconds: float) -> tuple[_Tally, float]:
    """Runs each source in its own task; returns the tally and the duration."""
    tally, begin = _Tally(), time.perf_counter()
    tasks = [asyncio.create_task(_worker(run, steps, tally, begin + seconds)) for steps in sources]
    _, late = await asyncio.wait(tasks, timeout=seconds + _DRAIN_TIMEOUT_S)
    for task in late:
        task.cancel()
        tally.failures[f"no response within {_DRAIN_TIMEOUT_S:.0f} s"] += 1
    await asyncio.gather(*tasks, return_exceptions=True)
    return tally, max(tally.last, begin + 1e-6) - begin


# -- requests --------------------------------------------------------------------------------------


class _Bench:
    """Handles requests; each public method is a request's `do`."""

    def __init__(self, run: Run, payloads: Payloads) -> None:
        self._run = run
        self._payloads = payloads
        self._calls_per_s = float(_MAX_CALLS_PER_S)
        self._last_seq = 0

    async def has(self, request: Request) -> Response:
        """Whether the contender has the operation."""
        return {"has": self._run(OPERATIONS[request["operation"]].path) is not None}

    async def agree(self, request: Request) -> Response:
        """The results of the operation's first calls, made comparable."""
        operation, data = OPERATIONS[request["operation"]], Dataset(request["dataset"], self._payloads)
        return {"answers": await agreement.answers(self._run, operation, data, range(request["calls"]))}

    async def agree_at_once(self, request: Request) -> Response:
        operation, data = OPERATIONS[request["operation"]], Dataset(request["dataset"], self._payloads)
        numbers = range(request["calls"])
        return {"answers": await agreement.answers_at_once(self._run, operation, data, numbers)}

    async def warm_up(self, request: Request) -> Response:
        tally, took_s = await _load(self._run, self._sources(request), request["seconds"])
        self._calls_per_s = len(tally.latencies_us) / took_s
        return {}

    async def measure(self, request: Request) -> Response:
        sources = self._sources(request)
        gc.collect()
        reset_peak_memory()
        cpu_begin_s = time.process_time()
        tally, took_s = await _load(self._run, sources, request["seconds"])
        return {
            "latencies_us": tally.latencies_us,
            "took_s": took_s,
            "cpu_s": time.process_time() - cpu_begin_s,
            "peak_memory_bytes": peak_memory_bytes(),
            "failures": dict(tally.failures),
        }

    async def read(self, request: Request) -> Response:
        """Follows the thread that the others write to, from the end of `catch_up`; counts missed events."""
        begin, first = time.perf_counter(), self._last_seq
        _, seen = await self._read_pages(first, begin + request["seconds"] + _AFTER_WRITERS_S)
        _, stored = await self._read_pages(first, begin)
        return {"seen": seen, "missed": stored - seen}

    async def catch_up(self, request: Request) -> Response:
        self._last_seq, _ = await self._read_pages(0, 0)
        return {}

    async def _read_pages(self, last: int, until: float) -> tuple[int, int]:
        """Reads pages until one is empty after that time; returns the last `seq` and the number of events."""
        list_messages = self._run("run_events.list_messages")
        assert list_messages is not None  # noqa: S101 - every contender has it
        seen = 0
        while True:
            page = await list_messages(thread_id=HOT_THREAD, limit=_READ_PAGE, after_seq=last)
            if page:
                last, seen = page[-1]["seq"], seen + len(page)
            elif time.perf_counter() >= until:
                return last, seen
            await asyncio.sleep(_POLL_S)

    def _sources(self, request: Request) -> list[Iterator[Step]]:
        concurrency: int = request["concurrency"]
        if request["operation"] == DAY:
            return [self._sessions(request, task) for task in range(concurrency)]
        # Arguments are built beforehand, so that their cost is not measured.
        steps = iter(self._steps(request))
        return [steps] * concurrency

    def _steps(self, request: Request) -> list[Step]:
        operation, data = OPERATIONS[request["operation"]], Dataset(request["dataset"], self._payloads)
        expected = int(self._calls_per_s * request["seconds"] * 1.5) + 2 * request["concurrency"]
        count = min(expected, request["spare"] or expected)
        first = request["first"] + request["process"] * (CALLS_PER_BLOCK // 10)
        return [(operation.path, operation.arguments(data, n)) for n in range(first, first + count)]

    def _sessions(self, request: Request, task: int) -> Iterator[Step]:
        """One session after another of one user's browser and agent."""
        suffix = f"{request['first']} {request['process']} {task}"
        for number in itertools.count():

            def names(name: str, number: int = number) -> str:
                return f"{name} {suffix}" if name.startswith("user-") else an_id(f"{name} {suffix}", number)

            script = self._payloads.scripts[(task + number) % len(self._payloads.scripts)]
            actor = bind_actor_context(ActorContext(user_id=names("user-1")))
            for call in session(script, names):
                yield call.path, call.arguments
            reset_actor_context(actor)


# -- memory, on Linux only -------------------------------------------------------------------------


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int | None:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1_024
    return None


# -- the process -----------------------------------------------------------------------------------


async def _serve(contender: Contender, request: Request) -> None:
    """Handles the requests from the opening to `close`."""
    async with opened(contender, request["url"], request["database"]) as run:
        bench = _Bench(run, request["payloads"])
        respond({})
        while (request := await asyncio.to_thread(next_request))["do"] != "close":
            respond(await getattr(bench, request["do"])(request))
    respond({})


def next_request() -> Request:
    return pickle.load(sys.stdin.buffer)  # noqa: S301 - from its parent


def respond(response: Response) -> None:
    pickle.dump(response, sys.stdout.buffer)
    sys.stdout.flush()


def _main(name: str) -> None:
    contender = CONTENDERS[name]
    run = asyncio.run
    if contender.kind == "deerflow":
        deerflow_sql.missing()  # imports it
    if contender.loop == UVLOOP:
        import uvloop

        run = uvloop.run
    with contextlib.suppress(EOFError):
        while True:
            run(_serve(contender, next_request()))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent stops it
    _main(*sys.argv[1:])
