"""What a page of 50 messages costs in a long thread and in a short one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from statistics import median
from typing import Any

from deerflow_mongo.stores.run_events import MongoRunEventStore

from . import mongodb, processes
from .case import Raw, Result, Settings, progress
from .report import Table, ratio, verdict
from .servers import Servers
from .workload import Target, an_event

PAGE = 50
LONG, SHORT = 100_000, 100
_WARM_UP_CALLS, _CALLS = 50, 400
_MOST = 1.5
_SEED_BATCH, _SEED_TASKS = 50, 8


def thread_of(events: int) -> str:
    return f"thread-of-{events}"


async def seed(target: Target, *lengths: int) -> None:
    """Threads of so many messages each."""
    async with mongodb.storage_of(target) as storage:
        for events in lengths:
            progress(f"  writing {events:,} events")
            await _seed(storage.run_events, events)


async def _seed(store: MongoRunEventStore, events: int) -> None:
    thread_id = thread_of(events)
    batches = iter(range(events // _SEED_BATCH))

    async def put_all() -> None:
        for number in batches:
            message = an_event(thread_id, f"run-{number // 20}", is_message=True)
            await store.put_batch([message] * _SEED_BATCH)

    await asyncio.gather(*(put_all() for _ in range(_SEED_TASKS)))


async def measure(store: MongoRunEventStore, calls: int) -> dict[str, Any]:
    """Milliseconds of one call at a time; the two threads take turns, so that both see the same machine."""
    for _ in range(_WARM_UP_CALLS):
        for events in (LONG, SHORT):
            await _middle(store, events)
            await _newest(store, events)
    times: dict[str, dict[int, list[float]]] = {
        "middle": {LONG: [], SHORT: []},
        "newest": {LONG: [], SHORT: []},
    }
    for call in range(calls):
        for events in (LONG, SHORT) if call % 2 else (SHORT, LONG):
            times["middle"][events].append(await _middle(store, events))
            times["newest"][events].append(await _newest(store, events))
    return {
        page: {str(events): median(measured) for events, measured in by_length.items()}
        for page, by_length in times.items()
    }


async def _middle(store: MongoRunEventStore, events: int) -> float:
    return await _page(store, events, after_seq=events // 2, first=events // 2 + 1)


async def _newest(store: MongoRunEventStore, events: int) -> float:
    return await _page(store, events, after_seq=None, first=events - PAGE + 1)


async def _page(store: MongoRunEventStore, events: int, *, after_seq: int | None, first: int) -> float:
    begin = time.perf_counter()
    rows = await store.list_messages(thread_of(events), limit=PAGE, after_seq=after_seq)
    took_ms = (time.perf_counter() - begin) * 1_000
    if [row["seq"] for row in rows] != list(range(first, first + PAGE)):
        raise RuntimeError(f"a page of {thread_of(events)} is not what was written")
    return took_ms


def page_of_messages(servers: Servers, settings: Settings) -> Result:
    raw: list[Raw] = []
    with servers.database("mongodb") as target:
        asyncio.run(seed(target, LONG, SHORT))
        for repetition in range(settings.repetitions):
            progress(f"  repetition {repetition + 1}")
            raw += processes.run([{"role": "pages", "target": asdict(target), "calls": _CALLS}])
    table = Table(("page", "p50 in the long thread over the short one", "spread", "target", ""))
    for page in ("middle", "newest"):
        times = [answer[page][str(LONG)] / answer[page][str(SHORT)] for answer in raw]
        p50, spread = median(times), f"{ratio(min(times))} - {ratio(max(times))}"
        table.add(page, ratio(p50), spread, f"at most {_MOST} x", verdict(is_met=p50 <= _MOST))
    title = f"A page of {PAGE} messages from a thread of {LONG:,} and one of {SHORT}"
    return Result(title, [table], raw=raw)
