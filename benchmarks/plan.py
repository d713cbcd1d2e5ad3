"""Selects the cases of a benchmark run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from .child import DAY
from .contenders.known import CONTENDERS, DEFAULT, OURS, RAW_PYMONGO
from .measuring import Case
from .operations import OPERATIONS
from .results import Part

SMALL, LARGE, HUGE = 1_000, 100_000, 10_000_000
PARTS: tuple[Part, ...] = get_args(Part)

QUICK_OPERATIONS = (
    "runs.get",
    "runs.list_by_thread",
    "runs.create",
    "runs.update_run_completion",
    "feedback.upsert",
    "run_events.put_batch",
    "run_events.list_messages",
)
MAIN_OPERATIONS = (*QUICK_OPERATIONS, "feedback.aggregate_by_run", "threads.search_threads")
_VARIANTS = (
    OURS,
    "mongodb-motor",
    "mongodb-uvloop",
    "mongodb-w1",
    "postgresql",
    "postgresql-uvloop",
    "postgresql-pool32",
    "postgresql-off",
    "sqlite",
    "sqlite-full",
)
_VARIED_OPERATIONS = (
    "runs.get",
    "runs.list_by_thread",
    "runs.create",
    "runs.update_run_completion",
    "feedback.upsert",
    "run_events.put_batch",
)
HOT_BATCHES = "run_events.put_batch.hot_thread"
NUMBERING = ("transaction", "transaction-in-turn", "sqlite-for-update")
"""Other ways to number the events of one thread."""

_TASKS = (1, 32, 256)
_MIXED_TASKS = 8


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run; None is the default."""

    is_quick: bool = False
    is_long: bool = False
    parts: Sequence[Part] | None = None
    backends: Sequence[str] | None = None
    operations: Sequence[str] | None = None
    concurrency: Sequence[int] | None = None


def contenders_of(options: Options) -> tuple[str, ...]:
    """The contenders to measure, ours first: the others are compared with it."""
    if options.backends is not None:
        return tuple(dict.fromkeys((OURS, *options.backends)))
    names = [*DEFAULT]
    if "variants" in parts_of(options):
        names += _VARIANTS
    if "contention" in parts_of(options) and not options.is_quick:
        names += NUMBERING
    return tuple(dict.fromkeys(names))


def parts_of(options: Options) -> tuple[Part, ...]:
    if options.parts is not None:
        return tuple(part for part in PARTS if part in options.parts)
    if options.operations is not None:
        return ("operations",)
    return tuple(part for part in PARTS if part != "variants" or not options.is_quick)


def cases_of(options: Options, available: Sequence[str]) -> list[Case]:
    """The cases for the available contenders."""
    makers = {
        "operations": _operations,
        "growth": _growth,
        "day": _mixed_workload,
        "contention": _contention,
        "variants": _variants,
    }
    return [case for part in parts_of(options) for case in makers[part](options, available)]


def _selected(options: Options, available: Sequence[str]) -> tuple[str, ...]:
    """The contenders without those for the variants only."""
    wanted = DEFAULT if options.backends is None else (OURS, *options.backends)
    return tuple(name for name in available if name in wanted)


def _names(options: Options, *, is_hot: bool = False) -> list[str]:
    if options.operations is not None:
        return [name for name in options.operations if OPERATIONS[name].is_hot == is_hot]
    if options.is_quick and not is_hot:
        return list(QUICK_OPERATIONS)
    return [name for name, operation in OPERATIONS.items() if operation.is_hot == is_hot]


def _tasks(options: Options) -> tuple[int, ...]:
    if options.concurrency is not None:
        return tuple(options.concurrency)
    return _TASKS[:2] if options.is_quick else _TASKS


def _operations(options: Options, available: Sequence[str]) -> list[Case]:
    """By default, DeerFlow's own code is measured in the main operations only; the baseline represents it."""
    selected = _selected(options, available)
    fewer = selected if options.backends is not None else _without_deerflow(selected)
    return [
        Case("operations", name, selected if name in MAIN_OPERATIONS else fewer, _tasks(options), (SMALL,))
        for name in _names(options)
    ]


def _without_deerflow(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if CONTENDERS[name].kind != "deerflow")


def _growth(options: Options, available: Sequence[str]) -> list[Case]:
    """With one task, without raw PyMongo, which grows like the server."""
    selected = tuple(name for name in _selected(options, available) if name != RAW_PYMONGO)
    selected = selected if options.backends is not None else _without_deerflow(selected)
    if options.is_quick:
        selected, sizes = selected[:1], (SMALL, LARGE // 10)
    else:
        sizes = (SMALL, LARGE, HUGE) if options.is_long else (SMALL, LARGE)
    names = _names(options)[:2] if options.is_quick else _names(options)
    return [Case("growth", name, selected, (1,), sizes) for name in names]


def _mixed_workload(options: Options, available: Sequence[str]) -> list[Case]:
    selected = _without_deerflow(_selected(options, available))
    tasks = (options.concurrency or (_MIXED_TASKS,))[-1:]
    return [Case("day", DAY, selected, tuple(tasks), (SMALL,), (1, 2, 4))]


def _contention(options: Options, available: Sequence[str]) -> list[Case]:
    selected = _selected(options, available)
    names = [name for name in _names(options, is_hot=True) if name != HOT_BATCHES]
    cases = [
        Case("contention", name, selected, (32,), (SMALL,))
        for name in names[: 1 if options.is_quick else None]
    ]
    if options.operations is None or HOT_BATCHES in options.operations:
        numbering = (
            selected if options.is_quick else tuple(n for n in available if n in (*selected, *NUMBERING))
        )
        processes = (1,) if options.is_quick else (1, 4)
        cases.append(Case("contention", HOT_BATCHES, numbering, (8,), (SMALL,), processes, is_followed=True))
    return cases


def _variants(options: Options, available: Sequence[str]) -> list[Case]:
    wanted = _VARIANTS if options.backends is None else (OURS, *options.backends)
    names = tuple(name for name in available if name in wanted)
    operations = options.operations or _VARIED_OPERATIONS
    return [Case("variants", name, names, (1, 32), (SMALL,)) for name in operations]
