"""Selects the cases of a benchmark run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from .checkpoints import measuring as checkpoints
from .checkpoints.savers import MODULES, is_installed
from .child import DAY
from .contenders.known import CONTENDERS, DEFAULT, OURS, RAW_PYMONGO, SAVERS, SINGLE, SQL
from .measuring import Case
from .operations import HEADLINES, OPERATIONS
from .results import Part
from .servers import LARGE

SMALL = 1_000
PARTS: tuple[Part, ...] = get_args(Part)

MAIN_OPERATIONS = (*HEADLINES, "feedback.aggregate_by_run", "threads.search_threads")
"""The operations which every contender has."""
_VARIED_OPERATIONS = ("runs.get", "runs.create", "run_events.put_batch")
HOT_BATCHES = "run_events.put_batch.hot_thread"
NUMBERING = ("transaction", "transaction-in-turn", "sqlite-for-update")
"""Other ways to number the events of one thread."""
TASKS_CONTENDERS = (OURS, SINGLE, *DEFAULT[1:])
"""The contenders of the part `tasks`."""
_VARIANTS = (OURS, *SQL, *(name for name in CONTENDERS if name not in (*DEFAULT, *NUMBERING, *SAVERS)))

_NOT_IF_QUICK = ("variants", "tasks", "checkpoints", "gateway")
_TASKS = (1, 32, 256)
_MIXED_TASKS = 8
_QUICK_TASKS_OPERATIONS = ("runs.get", "runs.create", "runs.update_run_completion")
_TASKS_OF_GROUPS = (1, 8, 32, 256)
_MIXED_LOADS = ((8, 4), (32, 1))
"""Tasks and processes of the mixed workload: 32 tasks in four processes and in one."""

_MIB = 1 << 20
_STORED_THREADS = (_MIB, 10 * _MIB)
_LARGE_STATES = (40 * _MIB, 1_024 * _MIB)
_GROWTH_TURNS = (25, 50, 100, 200, 400)
_SAVER_TASKS = (1, 16)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run; None is the default."""

    is_quick: bool = False
    parts: Sequence[Part] | None = None
    backends: Sequence[str] | None = None
    operations: Sequence[str] | None = None
    concurrency: Sequence[int] | None = None


def contenders_of(options: Options) -> tuple[str, ...]:
    """The contenders to measure, ours first: the others are compared with it."""
    if options.backends is not None:
        return tuple(dict.fromkeys((OURS, *options.backends)))
    parts = parts_of(options)
    names = [OURS] if parts == ("checkpoints",) else [*DEFAULT]
    if "variants" in parts:
        names += _VARIANTS
    if "contention" in parts and not options.is_quick:
        names += NUMBERING
    if "tasks" in parts:
        names += TASKS_CONTENDERS
    if "checkpoints" in parts:
        names += SAVERS
    return tuple(dict.fromkeys(names))


def parts_of(options: Options) -> tuple[Part, ...]:
    if options.parts is not None:
        return tuple(part for part in PARTS if part in options.parts)
    if options.operations is not None:
        return ("operations",)
    return tuple(part for part in PARTS if part not in _NOT_IF_QUICK or not options.is_quick)


def sizes_of(options: Options) -> tuple[int, ...]:
    """The numbers of runs over which growth is measured."""
    return (SMALL, LARGE // 10) if options.is_quick else (SMALL, LARGE)


def stored_of(options: Options, available: Sequence[str]) -> list[tuple[int, str]]:
    """Numbers of runs and contenders whose disk space is measured; the smallest number only if quick."""
    if "growth" not in parts_of(options):
        return []
    sizes = sizes_of(options)[: 1 if options.is_quick else None]
    return [(size, name) for size in sizes for name in available if name in (OURS, *SQL)]


def cases_of(options: Options, available: Sequence[str]) -> list[Case]:
    """The cases for the available contenders."""
    makers = {
        "operations": _operations,
        "growth": _growth,
        "day": _mixed_workload,
        "contention": _contention,
        "variants": _variants,
        "tasks": _tasks,
        "checkpoints": _checkpoints,
    }
    parts = (part for part in parts_of(options) if part in makers)  # the gateway is not made of calls
    return [case for part in parts for case in makers[part](options, available)]


def _selected(options: Options, available: Sequence[str], names: Sequence[str] = DEFAULT) -> tuple[str, ...]:
    """The available ones of these contenders, or of those in the options."""
    wanted = names if options.backends is None else (OURS, *options.backends)
    return tuple(name for name in available if name in wanted)


def _sql_and_ours(
    options: Options, available: Sequence[str], names: Sequence[str] = DEFAULT
) -> tuple[str, ...]:
    """Without raw PyMongo and DeerFlow's code, which have the main operations only."""
    selected = _selected(options, available, names)
    return tuple(name for name in selected if name != RAW_PYMONGO and CONTENDERS[name].kind != "deerflow")


def _names(options: Options, *, is_hot: bool = False) -> list[str]:
    names = options.operations or (HEADLINES if options.is_quick and not is_hot else OPERATIONS)
    return [name for name in names if OPERATIONS[name].is_hot == is_hot]


def _operations(options: Options, available: Sequence[str]) -> list[Case]:
    tasks = tuple(options.concurrency or (_TASKS[:2] if options.is_quick else _TASKS))
    every, fewer = _selected(options, available), _sql_and_ours(options, available)
    return [
        Case("operations", name, every if name in MAIN_OPERATIONS else fewer, tasks, (SMALL,))
        for name in _names(options)
    ]


def _growth(options: Options, available: Sequence[str]) -> list[Case]:
    """With one task."""
    selected = _sql_and_ours(options, available)[: 1 if options.is_quick else None]
    names = _names(options)[: 1 if options.is_quick else None]
    return [Case("growth", name, selected, (1,), sizes_of(options)) for name in names]


def _mixed_workload(options: Options, available: Sequence[str]) -> list[Case]:
    tasks = (options.concurrency or (_MIXED_TASKS,))[-1:]
    processes = (4,) if options.is_quick else (1, 2, 4)
    return [Case("day", DAY, _sql_and_ours(options, available), tuple(tasks), (SMALL,), processes)]


def _contention(options: Options, available: Sequence[str]) -> list[Case]:
    selected = _selected(options, available)
    names = [name for name in _names(options, is_hot=True) if name != HOT_BATCHES]
    names = names[: 0 if options.is_quick else None]
    cases = [Case("contention", name, selected, (32,), (SMALL,)) for name in names]
    if options.operations is None or HOT_BATCHES in options.operations:
        numbering = selected if options.is_quick else _selected(options, available, (*DEFAULT, *NUMBERING))
        processes = (1,) if options.is_quick else (1, 4)
        cases.append(Case("contention", HOT_BATCHES, numbering, (8,), (SMALL,), processes, is_followed=True))
    return cases


def _variants(options: Options, available: Sequence[str]) -> list[Case]:
    names = _selected(options, available, _VARIANTS)
    operations = options.operations or _VARIED_OPERATIONS
    return [Case("variants", name, names, (1, 32), (SMALL,)) for name in operations]


def _tasks(options: Options, available: Sequence[str]) -> list[Case]:
    """The main operations and the mixed workload, with and without groups."""
    selected = _selected(options, available, TASKS_CONTENDERS)
    operations = options.operations or (_QUICK_TASKS_OPERATIONS if options.is_quick else MAIN_OPERATIONS)
    tasks = tuple(options.concurrency or (_TASKS_OF_GROUPS[::2] if options.is_quick else _TASKS_OF_GROUPS))
    cases = [
        Case("tasks", name, selected, tasks, (SMALL,), comparison="agree_at_once") for name in operations
    ]
    if options.operations is None:
        mixed = _sql_and_ours(options, available, TASKS_CONTENDERS)
        loads = _MIXED_LOADS[1:] if options.is_quick else _MIXED_LOADS
        cases += [Case("tasks", DAY, mixed, (each,), (SMALL,), (processes,)) for each, processes in loads]
    return cases


def _checkpoints(options: Options, available: Sequence[str]) -> list[Case]:
    """With small states and few turns if quick."""
    if not all(map(is_installed, MODULES[OURS])):
        return []
    savers = _selected(options, available, (OURS, *SAVERS))
    stored = tuple(name for name in savers if CONTENDERS[name].server != "memory")
    tasks, small = tuple(options.concurrency or _SAVER_TASKS), (_MIB // 16,)
    threads, states = (small, small) if options.is_quick else (_STORED_THREADS, _LARGE_STATES)
    turns = (1, 2) if options.is_quick else _GROWTH_TURNS
    cases = [
        Case("checkpoints", checkpoints.TURNS, savers, tasks, (0,)),
        *(Case("checkpoints", checkpoints.STORED, savers, (1,), (size,), (2,)) for size in threads),
        Case("checkpoints", checkpoints.TOOLS, savers, (1,), (0,)),
        Case("checkpoints", checkpoints.GROWTH, stored, (1,), turns),
        *(Case("checkpoints", checkpoints.STATES, stored, (1,), (size,)) for size in states),
    ]
    return [case for case in cases if options.operations is None or case.operation in options.operations]
