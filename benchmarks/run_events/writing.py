"""Many small batches for one thread: ours against other ways to number them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from . import mongodb, processes, sql
from .case import Raw, Result, Settings, progress
from .report import Table, percent, ratio, verdict
from .servers import Servers
from .workload import EVENTS_PER_BATCH, TASKS, Target
from .writers import OURS, WRITERS

_WARM_UP_S = 0.7
_MANY = 4

Targets = Mapping[str, float | None]
"""The rivals, and how many times as fast ours is to be."""

_ONE_PROCESS: Targets = {
    "counter": 3.0,
    "transaction": None,
    "transaction_queued": None,
    "sqlite": 5.0,
    "sqlite_queued": None,
    "postgresql": None,
}
_MANY_PROCESSES: Targets = {"transaction": 1.5, "transaction_queued": 1.5, "counter": None}


def _order(writer: str, target: Target, settings: Settings, *, profiled: bool = False) -> processes.Order:
    return {
        "role": "write",
        "writer": writer,
        "target": asdict(target),
        "seconds": settings.seconds,
        "warm_up_s": _WARM_UP_S,
        "profiled": profiled,
    }


def _faults(given: list[int], stored: list[int]) -> list[str]:
    """What is wrong with the numbers; failed batches leave nothing."""
    faults: list[str] = []
    if len(set(given)) != len(given):
        faults.append("a number was given twice")
    if stored != list(range(1, len(stored) + 1)):
        faults.append("what is stored is not numbered 1..n")
    if sorted(given) != stored:
        faults.append("what is stored is not what was acknowledged")
    return faults


def _measured(answers: Sequence[processes.Answer], stored: list[int], seconds: float) -> Raw:
    batches = sum(answer["batches"] for answer in answers)
    cpu_s = sum(answer["cpu_s"] for answer in answers)
    p50s = [answer["p50_ms"] for answer in answers if answer["p50_ms"] is not None]
    failures: dict[str, int] = {}
    for answer in answers:
        for kind, number in answer["failures"].items():
            failures[kind] = failures.get(kind, 0) + number
    return {
        "batches_per_s": batches / seconds,
        "cpu_share": cpu_s / seconds / len(answers),
        "cpu_us_per_batch": cpu_s / batches * 1e6 if batches else None,
        "p50_ms": median(p50s) if p50s else None,
        "failures": failures,
        "faults": _faults([number for answer in answers for number in answer["numbers"]], stored),
    }


def _write(servers: Servers, writer: str, number: int, settings: Settings) -> Raw:
    """One measurement: so many processes write to one thread of a fresh database."""
    server = WRITERS[writer].server
    with servers.database(server) as target:
        answers = processes.run([_order(writer, target, settings)] * number)
        module = mongodb if server == "mongodb" else sql
        stored = asyncio.run(module.stored_numbers(target))
    return {"writer": writer, "processes": number, **_measured(answers, stored, settings.seconds)}


def _compare(servers: Servers, rivals: Iterable[str], number: int, settings: Settings) -> list[Raw]:
    """Ours and each rival, one right after the other, in an order that turns round each time."""
    raw: list[Raw] = []
    for rival in rivals:
        for repetition in range(settings.repetitions):
            progress(f"  {number} process(es), against {rival}: repetition {repetition + 1}")
            for name in (rival, OURS) if repetition % 2 else (OURS, rival):
                raw.append({"against": rival, **_write(servers, name, number, settings)})
                if raw[-1]["faults"]:
                    progress(f"    WRONG, {name}: {'; '.join(raw[-1]['faults'])}")
    return raw


def _of(raw: Sequence[Raw], writer: str, figure: str, *, against: str | None = None) -> list[Any]:
    return [
        measured[figure]
        for measured in raw
        if measured["writer"] == writer and against in (None, measured["against"])
    ]


def _quotients(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Of each repetition; infinite where the other side did nothing."""
    return [a / b if b else float("inf") for a, b in zip(over, under, strict=True)]


def _rates_table(raw: Sequence[Raw], targets: Targets) -> Table:
    table = Table(("against", "put_batch is faster by", "spread", "target", ""))
    for rival, target in targets.items():
        faults = [fault for faults in _of(raw, rival, "faults") for fault in faults]
        if faults:
            table.add(WRITERS[rival].title, f"does not count: {faults[0]}", "", "", "")
            continue
        ours = _of(raw, OURS, "batches_per_s", against=rival)
        times = _quotients(ours, _of(raw, rival, "batches_per_s"))
        table.add(
            WRITERS[rival].title,
            ratio(median(times)),
            f"{ratio(min(times))} - {ratio(max(times))}",
            "" if target is None else f"at least {target:g} x",
            "" if target is None else verdict(is_met=median(times) >= target),
        )
    return table


def _costs_table(raw: Sequence[Raw], rivals: Iterable[str]) -> Table:
    """Where the time goes, and what failed."""
    table = Table(("writer", "CPU per batch", "client's CPU share", "p50 of a batch", "batches that failed"))
    for name in (OURS, *rivals):
        against = None if name == OURS else name
        table.add(
            WRITERS[name].title,
            _relative(raw, name, "cpu_us_per_batch", against),
            percent(median(_of(raw, name, "cpu_share"))),
            _relative(raw, name, "p50_ms", against),
            _failures(raw, name),
        )
    return table


def _relative(raw: Sequence[Raw], name: str, figure: str, against: str | None) -> str:
    """A figure by that of ours, measured beside it."""
    values = [value for value in _of(raw, name, figure) if value is not None]
    ours = [value for value in _of(raw, OURS, figure, against=against) if value is not None]
    return ratio(median(values) / median(ours)) if values and ours else "none was stored"


def _failures(raw: Sequence[Raw], name: str) -> str:
    totals: dict[str, int] = {}
    for failures in _of(raw, name, "failures"):
        for kind, number in failures.items():
            totals[kind] = totals.get(kind, 0) + number
    return ", ".join(f"{number:,} x {kind}" for kind, number in totals.items()) or "none"


def _is_right(raw: Sequence[Raw]) -> bool:
    return not any(_of(raw, OURS, "faults")) and not any(_of(raw, OURS, "failures"))


def one_process(servers: Servers, settings: Settings) -> Result:
    targets = {name: least for name, least in _ONE_PROCESS.items() if WRITERS[name].server in servers.urls}
    raw = _compare(servers, targets, 1, settings)
    result = Result(
        f"Batches of {EVENTS_PER_BATCH} events from one process, {TASKS} tasks, one thread",
        [_rates_table(raw, targets), _costs_table(raw, targets)],
        [
            "CPU per batch, of the client, and p50 are relative to put_batch beside it. The rates count what"
            " was stored.",
            *(f"{server} is left out: {reason}." for server, reason in servers.left_out.items()),
        ],
        raw,
        _is_right(raw),
    )
    if settings.profiled:
        with servers.database("mongodb") as target:
            [answer] = processes.run([_order(OURS, target, settings, profiled=True)])
        result.notes.append(f"Profile of put_batch:\n\n```\n{answer['profile'].strip()}\n```")
    return result


def many_processes(servers: Servers, settings: Settings) -> Result:
    raw = _compare(servers, _MANY_PROCESSES, _MANY, settings)
    missed = Table(("writer", "events that a reader missed"))
    readings = [_read(servers, name, settings) for name in (OURS, *_MANY_PROCESSES)]
    for reading in readings:
        missed.add(WRITERS[reading["reader_of"]].title, percent(reading["missed"]))
    return Result(
        f"Batches of {EVENTS_PER_BATCH} events from {_MANY} processes, {TASKS} tasks each, one thread",
        [_rates_table(raw, _MANY_PROCESSES), _costs_table(raw, _MANY_PROCESSES), missed],
        ["The reader pages by `seq > last` while the writers write."],
        [*raw, *readings],
        _is_right(raw) and not readings[0]["missed"],
    )


def _read(servers: Servers, writer: str, settings: Settings) -> Raw:
    """The share of the events up to the last one it saw that a reader did not get."""
    progress(f"  with a reader: {writer}")
    with servers.database("mongodb") as target:
        order = _order(writer, target, settings)
        *_, answer = processes.run([order] * _MANY + [{**order, "role": "read"}])
    return {"reader_of": writer, "missed": 1 - answer["seen"] / max(1, answer["last"])}
