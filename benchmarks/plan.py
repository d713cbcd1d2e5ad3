"""Which cases a run consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from .child import DAY
from .contenders.known import CONTENDERS, OURS, RAW_PYMONGO, USUAL
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
_TASKS_OF_A_DAY = 8


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for; None where nothing was said."""

    is_quick: bool = False
    is_long: bool = False
    parts: Sequence[Part] | None = None
    backends: Sequence[str] | None = None
    operations: Sequence[str] | None = None
    concurrency: Sequence[int] | None = None


def contenders_of(wishes: Wishes) -> tuple[str, ...]:
    """All that may take part, ours first: the others are compared with it."""
    if wishes.backends is not None:
        return tuple(dict.fromkeys((OURS, *wishes.backends)))
    asked = [*USUAL]
    if "variants" in parts_of(wishes):
        asked += _VARIANTS
    if "contention" in parts_of(wishes) and not wishes.is_quick:
        asked += NUMBERING
    return tuple(dict.fromkeys(asked))


def parts_of(wishes: Wishes) -> tuple[Part, ...]:
    if wishes.parts is not None:
        return tuple(part for part in PARTS if part in wishes.parts)
    if wishes.operations is not None:
        return ("operations",)
    return tuple(part for part in PARTS if part != "variants" or not wishes.is_quick)


def cases_of(wishes: Wishes, present: Sequence[str]) -> list[Case]:
    """The cases, for those contenders that are present."""
    makers = {
        "operations": _operations,
        "growth": _growth,
        "day": _day,
        "contention": _contention,
        "variants": _variants,
    }
    return [case for part in parts_of(wishes) for case in makers[part](wishes, present)]


def _usual(wishes: Wishes, present: Sequence[str]) -> tuple[str, ...]:
    """Without those that are there for the variants only."""
    asked = USUAL if wishes.backends is None else (OURS, *wishes.backends)
    return tuple(name for name in present if name in asked)


def _names(wishes: Wishes, *, is_hot: bool = False) -> list[str]:
    if wishes.operations is not None:
        return [name for name in wishes.operations if OPERATIONS[name].is_hot == is_hot]
    if wishes.is_quick and not is_hot:
        return list(QUICK_OPERATIONS)
    return [name for name, operation in OPERATIONS.items() if operation.is_hot == is_hot]


def _tasks(wishes: Wishes) -> tuple[int, ...]:
    if wishes.concurrency is not None:
        return tuple(wishes.concurrency)
    return _TASKS[:2] if wishes.is_quick else _TASKS


def _operations(wishes: Wishes, present: Sequence[str]) -> list[Case]:
    """DeerFlow's own code, which the baseline stands for, is in the main ones unless it is asked for."""
    usual = _usual(wishes, present)
    fewer = usual if wishes.backends is not None else _without_deerflow(usual)
    return [
        Case("operations", name, usual if name in MAIN_OPERATIONS else fewer, _tasks(wishes), (SMALL,))
        for name in _names(wishes)
    ]


def _without_deerflow(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if CONTENDERS[name].kind != "deerflow")


def _growth(wishes: Wishes, present: Sequence[str]) -> list[Case]:
    """At one task; raw PyMongo grows as the server does."""
    usual = tuple(name for name in _usual(wishes, present) if name != RAW_PYMONGO)
    usual = usual if wishes.backends is not None else _without_deerflow(usual)
    if wishes.is_quick:
        usual, sizes = usual[:1], (SMALL, LARGE // 10)
    else:
        sizes = (SMALL, LARGE, HUGE) if wishes.is_long else (SMALL, LARGE)
    names = _names(wishes)[:2] if wishes.is_quick else _names(wishes)
    return [Case("growth", name, usual, (1,), sizes) for name in names]


def _day(wishes: Wishes, present: Sequence[str]) -> list[Case]:
    usual = _without_deerflow(_usual(wishes, present))
    tasks = (wishes.concurrency or (_TASKS_OF_A_DAY,))[-1:]
    return [Case("day", DAY, usual, tuple(tasks), (SMALL,), (1, 2, 4))]


def _contention(wishes: Wishes, present: Sequence[str]) -> list[Case]:
    usual = _usual(wishes, present)
    names = [name for name in _names(wishes, is_hot=True) if name != HOT_BATCHES]
    cases = [
        Case("contention", name, usual, (32,), (SMALL,)) for name in names[: 1 if wishes.is_quick else None]
    ]
    if wishes.operations is None or HOT_BATCHES in wishes.operations:
        numbering = usual if wishes.is_quick else tuple(n for n in present if n in (*usual, *NUMBERING))
        processes = (1,) if wishes.is_quick else (1, 4)
        cases.append(Case("contention", HOT_BATCHES, numbering, (8,), (SMALL,), processes, is_followed=True))
    return cases


def _variants(wishes: Wishes, present: Sequence[str]) -> list[Case]:
    asked = _VARIANTS if wishes.backends is None else (OURS, *wishes.backends)
    names = tuple(name for name in present if name in asked)
    operations = wishes.operations or _VARIED_OPERATIONS
    return [Case("variants", name, names, (1, 32), (SMALL,)) for name in operations]
