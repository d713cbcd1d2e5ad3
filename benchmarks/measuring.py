"""How a case is measured: the same calls for every contender, one after the other, in an order that turns.

A case is one operation on one dataset. Each contender gets a database and a process of its own; before any
figure counts, its answers are compared with ours. Then, for each number of tasks, the contenders are warmed
up and measured in turn: A B B A A B ... Only datasets that take long to load are loaded once for all cases,
each of which then changes some thousands of their rows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from . import agreement, servers
from .child import CALLS_PER_BLOCK, DAY
from .children import Child, child
from .contenders.known import CONTENDERS, Contender
from .dataset import Dataset, Rows
from .operations import OPERATIONS, Operation
from .payloads import Payloads
from .results import Disagreement, Kind, Part, Record, Round
from .servers import Servers, Target

FOLLOWED = "run_events.list_messages.following"
"""A reader behind many writers."""

_READY_AT_ONCE = 2
_LARGE = 100_000
_ANY_READ = "runs.get"
_AGREEMENT_CALLS = 12
_MOST_SPARE_PER_S = {1: 1_500}
_MOST_SPARE_PER_S_OF_MANY = 8_000
_SPARE_OF_MANY_ROWS = 0.1
"""Of calls that use up many rows each: fewer of them fit into the same time."""


@dataclass(frozen=True, slots=True)
class Settings:
    seconds: float
    """Of one measurement."""
    repetitions: int
    threads: Path | None
    """The folder of recorded threads."""

    def warm_up_s(self, tasks: int) -> float:
        """Long enough for every task to have a connection, which takes a pool some thousand calls."""
        return self.seconds * (1 if tasks == 1 else 5)


@dataclass(frozen=True, slots=True)
class Case:
    part: Part
    operation: str
    contenders: tuple[str, ...]
    concurrency: tuple[int, ...]
    """Tasks in each process, one measurement of all contenders after the other."""
    datasets: tuple[int, ...]
    """With several, each contender is measured on each."""
    processes: tuple[int, ...] = (1,)
    is_followed: bool = False
    """Whether to see, at the end, what a reader misses who follows the hot thread."""

    @property
    def measurements(self) -> int:
        """Without the repetitions."""
        return len(self.contenders) * len(self.concurrency) * len(self.datasets) * len(self.processes)


@dataclass(slots=True)
class Lane:
    """One contender on one database."""

    contender: Contender
    dataset: int
    children: list[Child]
    rounds: list[Round] = field(default_factory=lambda: list[Round]())


@dataclass(slots=True)
class Outcome:
    records: list[Record] = field(default_factory=lambda: list[Record]())
    disagreements: list[Disagreement] = field(default_factory=lambda: list[Disagreement]())


class Bench:
    """Measures cases on running servers; a context manager, since it keeps large datasets loaded."""

    def __init__(
        self,
        running: Servers,
        payloads: Payloads,
        settings: Settings,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        self._servers = running
        self._payloads = payloads
        self._settings = settings
        self._step = step
        self._stack = contextlib.ExitStack()
        self._standing: dict[tuple[str, int], Target] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def measure(self, case: Case) -> Outcome:
        outcome = Outcome()
        with self._lanes(case) as lanes:
            lanes = self._agreeing(case, lanes, outcome)
            for block, (tasks, processes) in enumerate(_loads(case)):
                self._measure_load(case, lanes, block, tasks, processes)
                for lane in lanes:
                    outcome.records.append(_record(case, lane, tasks, processes))
                    lane.rounds = []
            if case.is_followed:
                outcome.records += [self._followed(case, lane) for lane in lanes]
        return outcome

    def _followed(self, case: Case, lane: Lane) -> Record:
        """The writers of the largest load once more, and one reader who pages by `after_seq` meanwhile."""
        tasks, processes = _loads(case)[-1]
        reader = lane.children[-1]
        order = self._order(case, lane, len(_loads(case)), 0, tasks)
        reader.ask({"do": "catch_up"})
        reader.tell({"do": "read", "seconds": order["seconds"]})
        self._ask(lane, {**order, "do": "measure"}, processes)
        answer = reader.answer()
        failures = {"event missed by the reader": answer["missed"]} if answer["missed"] else {}
        read = Round(ops_per_s=answer["seen"] / order["seconds"], failures=failures)
        return _record(replace(case, operation=FOLLOWED), replace(lane, rounds=[read]), tasks, processes)

    def profile(self, operation: str, contender: str, concurrency: int, dataset: int) -> str:
        """Where the time of a contender's operation goes."""
        case = Case("operations", operation, (contender,), (concurrency,), (dataset,))
        with self._lane(case, CONTENDERS[contender], dataset) as lane:
            order = self._order(case, lane, 0, 0, concurrency)
            lane.children[0].ask({**order, "do": "warm_up", "seconds": self._settings.warm_up_s(concurrency)})
            answer = lane.children[0].ask({**order, "do": "measure", "profiled": True, "first": 500_000})
        return str(answer["profile"])

    @contextlib.contextmanager
    def _lanes(self, case: Case) -> Generator[list[Lane]]:
        """All of a case, made ready at once and closed together."""
        begun: list[Future[tuple[contextlib.ExitStack, Lane]]] = []
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(_READY_AT_ONCE)
            try:
                begun += [
                    pool.submit(_entered, self._lane(case, CONTENDERS[name], dataset))
                    for dataset in case.datasets
                    for name in case.contenders
                ]
                wait(begun)
            finally:
                pool.shutdown(cancel_futures=True)
                for one in begun:
                    if not one.cancelled() and one.exception() is None:
                        stack.push(one.result()[0])
            yield [one.result()[1] for one in begun]

    @contextlib.contextmanager
    def _lane(self, case: Case, contender: Contender, dataset: int) -> Generator[Lane]:
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(self._target(contender, dataset))
            if rows := self._used_up(case, dataset):
                servers.load(contender, target, rows)
            children = [
                stack.enter_context(self._child(contender, target))
                for _ in range(max(case.processes) + case.is_followed)
            ]
            yield Lane(contender, dataset, children)

    def bytes_per_run(self, contender: str, dataset: int) -> float:
        """What a run takes on the disk, indexes included, where so many are stored."""
        known = CONTENDERS[contender]
        with self._target(known, dataset) as target:
            return servers.bytes_of_runs(known, target) / dataset

    def _target(self, contender: Contender, dataset: int) -> contextlib.AbstractContextManager[Target]:
        """The loaded dataset: a fresh one, or the one that stands for all cases."""
        if dataset < _LARGE:
            return self._loaded(contender, dataset)
        return contextlib.nullcontext(self._standing_target(contender, dataset))

    @contextlib.contextmanager
    def _loaded(self, contender: Contender, dataset: int) -> Generator[Target]:
        with self._servers.database(contender) as target:
            servers.prepare(contender, target)
            servers.load(contender, target, Dataset(dataset, self._payloads).batches())
            yield target

    def _standing_target(self, contender: Contender, dataset: int) -> Target:
        key = contender.name, dataset
        if key not in self._standing:
            self._standing[key] = self._stack.enter_context(self._loaded(contender, dataset))
        return self._standing[key]

    def _child(self, contender: Contender, target: Target) -> contextlib.AbstractContextManager[Child]:
        folder = self._settings.threads
        return child(
            {
                "contender": contender.name,
                "url": target.url,
                "database": target.database,
                "threads": None if folder is None else str(folder),
            }
        )

    def _used_up(self, case: Case, dataset: int) -> list[Rows]:
        """What the operation will use up."""
        operation, data = OPERATIONS.get(case.operation), Dataset(dataset, self._payloads)
        if operation is None or operation.uses_up is None:
            return []
        calls = [range(_AGREEMENT_CALLS)]
        for block, (tasks, _) in enumerate(_loads(case)):
            count = self._spare(operation, tasks)
            firsts = (_first(block, repetition) for repetition in range(self._settings.repetitions + 1))
            calls += [range(first, first + count) for first in firsts]
        return [operation.uses_up(data, numbers) for numbers in calls]

    def _spare(self, operation: Operation, tasks: int) -> int:
        """How many calls there are rows for, in one measurement."""
        per_s = _MOST_SPARE_PER_S.get(tasks, _MOST_SPARE_PER_S_OF_MANY)
        share = _SPARE_OF_MANY_ROWS if operation.name.startswith("run_events.delete") else 1.0
        return max(2 * tasks, math.ceil(per_s * self._settings.seconds * share))

    def _agreeing(self, case: Case, lanes: Sequence[Lane], outcome: Outcome) -> list[Lane]:
        """Those of the lanes whose answers are ours; what is direct promises none.

        Asked on the smaller datasets only: a large one is no longer the same for all, since each case changes
        as many rows as its contender can in the time.
        """
        if case.operation == DAY:
            return list(lanes)
        able = [
            lane for lane in lanes if lane.children[0].ask(self._agreement_order(case, lane, "has"))["has"]
        ]
        ours: dict[int, Any] = {}
        kept: list[Lane] = []
        for lane in able:
            if lane.contender.kind == "direct" or lane.dataset >= _LARGE:
                if all(found.backend != lane.contender.name for found in outcome.disagreements):
                    kept.append(lane)
                continue
            found = lane.children[0].ask(self._agreement_order(case, lane, "agree"))["answers"]
            known = ours.setdefault(lane.dataset, found)
            common = lane.contender.kind == "deerflow"
            why = agreement.difference(known, found, common_keys_only=common) or _refusal(found)
            if why is None:
                kept.append(lane)
            else:
                outcome.disagreements.append(
                    Disagreement(
                        operation=case.operation, dataset=lane.dataset, backend=lane.contender.name, why=why
                    )
                )
        return kept

    def _agreement_order(self, case: Case, lane: Lane, do: str) -> dict[str, Any]:
        return {
            "do": do,
            "operation": case.operation,
            "dataset": lane.dataset,
            "first": 0,
            "calls": _AGREEMENT_CALLS,
        }

    def _measure_load(
        self, case: Case, lanes: Sequence[Lane], block: int, tasks: int, processes: int
    ) -> None:
        for lane in lanes:
            order = self._order(case, lane, block, 0, tasks)
            warm_up = {**order, "do": "warm_up", "seconds": self._settings.warm_up_s(tasks)}
            if warm_up.pop("spare", None):  # too few calls to get everything warm
                self._ask(lane, {**warm_up, "operation": _ANY_READ}, processes)
                warm_up["spare"] = order["spare"]
            self._ask(lane, warm_up, processes)
        for repetition in range(1, self._settings.repetitions + 1):
            for lane in lanes if repetition % 2 else reversed(lanes):
                order = self._order(case, lane, block, repetition, tasks)
                lane.rounds.append(_round(self._ask(lane, {**order, "do": "measure"}, processes)))
                self._step()

    def _order(self, case: Case, lane: Lane, block: int, repetition: int, tasks: int) -> dict[str, Any]:
        order: dict[str, Any] = {
            "operation": case.operation,
            "dataset": lane.dataset,
            "concurrency": tasks,
            "seconds": self._settings.seconds,
            "first": _first(block, repetition),
        }
        operation = OPERATIONS.get(case.operation)
        if operation is not None and operation.uses_up is not None:
            order["spare"] = self._spare(operation, tasks)
        return order

    @staticmethod
    def _ask(lane: Lane, order: Mapping[str, Any], processes: int) -> list[dict[str, Any]]:
        """All processes at once, each with calls of its own."""
        children = lane.children[:processes]
        share = CALLS_PER_BLOCK // 10
        for number, measured in enumerate(children):
            measured.tell({**order, "first": order["first"] + number * share, "process": number})
        return [measured.answer() for measured in children]


def _entered(
    lane: contextlib.AbstractContextManager[Lane],
) -> tuple[contextlib.ExitStack, Lane]:
    """The lane, and what closes it."""
    stack = contextlib.ExitStack()
    return stack, stack.enter_context(lane)


def _loads(case: Case) -> list[tuple[int, int]]:
    return [(tasks, processes) for processes in case.processes for tasks in case.concurrency]


def _first(block: int, repetition: int) -> int:
    """The number of a measurement's first call; the agreement's calls come before all."""
    return (1 + block * 100 + repetition) * CALLS_PER_BLOCK


def _refusal(found: Sequence[Any]) -> str | None:
    """Answers that agree in being errors are none."""
    answers = (cast("dict[str, Any]", answer) for answer in found if isinstance(answer, dict))
    raised = next((str(answer["raises"]) for answer in answers if "raises" in answer), None)
    return None if raised is None else f"the call fails: {raised}"


def _round(answers: Sequence[Mapping[str, Any]]) -> Round:
    latencies = sorted(latency for answer in answers for latency in answer["latencies_us"])
    took_s = max(answer["took_s"] for answer in answers)
    cpu_s = sum(answer["cpu_s"] for answer in answers)
    failures: dict[str, int] = {}
    for answer in answers:
        for kind, number in answer["failures"].items():
            failures[kind] = failures.get(kind, 0) + number
    count = len(latencies)
    return Round(
        ops_per_s=count / took_s,
        p50_ms=_percentile(latencies, 0.50),
        p95_ms=_percentile(latencies, 0.95),
        p99_ms=_percentile(latencies, 0.99),
        cpu_us_per_op=cpu_s / count * 1e6 if count else None,
        peak_memory_mb=max(answer["peak_memory_bytes"] for answer in answers) / 1e6,
        failures=failures,
    )


def _percentile(ordered: Sequence[int], share: float) -> float | None:
    """By the nearest rank."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1_000


def _record(case: Case, lane: Lane, tasks: int, processes: int) -> Record:
    operation = OPERATIONS.get(case.operation)
    kind: Kind = "mixed" if operation is None else operation.kind
    return Record.of(
        lane.rounds,
        part=case.part,
        operation=case.operation,
        section=0 if operation is None else operation.section,
        kind=kind,
        backend=lane.contender.name,
        driver=lane.contender.driver,
        loop=lane.contender.loop,
        concurrency=tasks,
        processes=processes,
        dataset=lane.dataset,
    )
