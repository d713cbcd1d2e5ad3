"""What memory `put_batch` takes beyond its input, by the batch's size and the thread's length."""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from deerflow_mongo.errors import StorageError
from deerflow_mongo.stores.run_events import MongoRunEventStore

from . import pages, processes
from .case import Raw, Result, Settings, progress
from .report import Table, ratio, verdict
from .servers import Servers
from .workload import Target, an_event

BATCHES = (100, 1_000, 10_000)
EVENT_BYTES = 1_024
_USUAL, _MOST = 1_000, 1.25
_TARGET = f"at most {_MOST} x that of {_USUAL:,} events; long by empty {1 / _MOST:g} - {_MOST} x"
_NOTE = (
    "Python's own memory at its peak (tracemalloc), with the rows that are given back;"
    f" a long thread has {pages.LONG:,} events."
)


async def measure(store: MongoRunEventStore, thread_id: str, events: int) -> dict[str, Any]:
    """The peak in Python's own memory while a batch is stored, its rows included."""
    await store.put_batch([an_event("another-thread", "run-0", is_message=True)])  # what is allocated once
    batch = [an_event(thread_id, f"run-{i // 100}", is_message=True) for i in range(events)]
    for i, event in enumerate(batch):
        event["content"] = {"id": i, "content": f"{i:08}" * (EVENT_BYTES // 8)}
    gc.collect()
    tracemalloc.start()
    try:
        rows = await store.put_batch(batch)
    except StorageError as error:
        return {"peak_bytes": None, "failure": str(error)}
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    numbers = [row["seq"] for row in rows]
    if numbers != list(range(numbers[0], numbers[0] + events)):
        raise RuntimeError(f"a batch of {events} events was not numbered in order")
    return {"peak_bytes": peak_bytes, "failure": None}


def memory_of_batches(servers: Servers, settings: Settings) -> Result:
    raw: list[Raw] = []
    with servers.database("mongodb") as target:
        asyncio.run(pages.seed(target, pages.LONG))
        for repetition in range(settings.repetitions):
            for events in BATCHES:
                progress(f"  repetition {repetition + 1}: a batch of {events:,}")
                raw += [_memory(target, thread, events, repetition) for thread in ("empty", "long")]
    return Result("Memory of put_batch beyond its input, events of 1 KB", [_table(raw)], [_NOTE], raw)


def _table(raw: Sequence[Raw]) -> Table:
    table = Table(("events", "peak per event", "long thread over empty one", "refused", "target", ""))
    usual = _peak(raw, "empty", _USUAL) / _USUAL
    for events in BATCHES:
        peak = _peak(raw, "empty", events)
        by_length = _peak(raw, "long", events) / peak
        is_met = peak / events <= _MOST * usual and 1 / _MOST <= by_length <= _MOST
        table.add(
            f"{events:,}",
            f"{peak / events / EVENT_BYTES:.2f} x its content",
            ratio(by_length),
            _refused(raw, events),
            _TARGET,
            verdict(is_met=is_met),
        )
    return table


def _refused(raw: Sequence[Raw], events: int) -> str:
    """Batches without a figure."""
    failures = [measured["failure"] for measured in raw if measured["events"] == events]
    refused = [failure for failure in failures if failure is not None]
    return f"{len(refused)} of {len(failures)}: {refused[0]}" if refused else "none"


def _memory(target: Target, thread: str, events: int, repetition: int) -> Raw:
    thread_id = pages.thread_of(pages.LONG) if thread == "long" else f"empty-{events}-{repetition}"
    order = {"role": "memory", "target": asdict(target), "thread_id": thread_id, "events": events}
    [answer] = processes.run([order])
    return {"thread": thread, "events": events, "repetition": repetition, **answer}


def _peak(raw: Sequence[Raw], thread: str, events: int) -> float:
    """Not a number where every batch was refused, which meets no target."""
    peaks: list[int] = [
        measured["peak_bytes"]
        for measured in raw
        if (measured["thread"], measured["events"]) == (thread, events) and measured["failure"] is None
    ]
    return median(peaks) if peaks else math.nan
