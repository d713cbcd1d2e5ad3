"""Measures a case: the same calls for every contender, in alternating order.

A case is one operation on one dataset. Each contender gets its own database and process, and its results are
compared with ours before it is measured. For each number of tasks, the contenders are warmed up and measured
alternately: A B B A A B ... Large datasets are loaded once and shared by all cases, each of which changes
some thousands of their rows.
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
"""A reader that follows many writers."""

_PARALLEL_SETUPS = 2
_LARGE = 100_000
_ANY_READ = "runs.get"
_AGREEMENT_CALLS = 12
_MAX_SPARE_PER_S = {1: 1_500}
_MAX_SPARE_PER_S_MANY_TASKS = 8_000
_SPARE_SHARE_OF_DELETES = 0.1
"""Calls that delete many rows each are slower, so fewer of them fit into the same time."""


@dataclass(frozen=True, slots=True)
class Settings:
    seconds: float
    """Duration of one measurement."""
    repetitions: int
    threads: Path | None
    """The folder of recorded threads."""

    def warm_up_s(self, tasks: int) -> float:
        """Long enough for a pool to open a connection per task, which takes some thousand calls."""
        return self.seconds * (1 if tasks == 1 else 5)


@dataclass(frozen=True, slots=True)
class Case:
    part: Part
    operation: str
    contenders: tuple[str, ...]
    concurrency: tuple[int, ...]
    """Tasks per process; all contenders are measured with each number."""
    datasets: tuple[int, ...]
    """Each contender is measured on each dataset."""
    processes: tuple[int, ...] = (1,)
    is_followed: bool = False
    """Whether to count, at the end, the events that a reader of the hot thread misses."""

    @property
    def measurements(self) -> int:
        """The number of measurements per repetition."""
        return len(self.contenders) * len(self.concurrency) * len(self.datasets) * len(self.processes)


@dataclass(slots=True)
class Lane:
    """One contender on one database, with its processes."""

    contender: Contender
    dataset: int
    children: list[Child]
    rounds: list[Round] = field(default_factory=lambda: list[Round]())


@dataclass(slots=True)
class Outcome:
    records: list[Record] = field(default_factory=lambda: list[Record]())
    disagreements: list[Disagreement] = field(default_factory=lambda: list[Disagreement]())


class Bench:
    """Measures cases on running servers; a context manager that drops the shared datasets at the end."""

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
        self._shared: dict[tuple[str, int], Target] = {}

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
            lanes = self._with_equal_results(case, lanes, outcome)
            for block, (tasks, processes) in enumerate(_loads(case)):
                self._measure_load(case, lanes, block, tasks, processes)
                for lane in lanes:
                    outcome.records.append(_record(case, lane, tasks, processes))
                    lane.rounds = []
            if case.is_followed:
                outcome.records += [self._followed(case, lane) for lane in lanes]
        return outcome

    def _followed(self, case: Case, lane: Lane) -> Record:
        """Repeats the writers of the largest load while one reader pages by `after_seq`."""
        tasks, processes = _loads(case)[-1]
        reader = lane.children[-1]
        request = self._load_request(case, lane, len(_loads(case)), 0, tasks)
        reader.request({"do": "catch_up"})
        reader.send({"do": "read", "seconds": request["seconds"]})
        self._request_all(lane, {**request, "do": "measure"}, processes)
        response = reader.receive()
        failures = {"event missed by the reader": response["missed"]} if response["missed"] else {}
        read = Round(ops_per_s=response["seen"] / request["seconds"], failures=failures)
        return _record(replace(case, operation=FOLLOWED), replace(lane, rounds=[read]), tasks, processes)

    def profile(self, operation: str, contender: str, concurrency: int, dataset: int) -> str:
        """A profile of a contender's operation."""
        case = Case("operations", operation, (contender,), (concurrency,), (dataset,))
        with self._lane(case, CONTENDERS[contender], dataset) as lane:
            request = self._load_request(case, lane, 0, 0, concurrency)
            lane.children[0].request(
                {**request, "do": "warm_up", "seconds": self._settings.warm_up_s(concurrency)}
            )
            response = lane.children[0].request(
                {**request, "do": "measure", "profiled": True, "first": 500_000}
            )
        return str(response["profile"])

    @contextlib.contextmanager
    def _lanes(self, case: Case) -> Generator[list[Lane]]:
        """All lanes of a case, set up in parallel and closed together."""
        begun: list[Future[tuple[contextlib.ExitStack, Lane]]] = []
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(_PARALLEL_SETUPS)
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
            if rows := self._consumed_rows(case, dataset):
                servers.load(contender, target, rows)
            children = [
                stack.enter_context(self._child(contender, target))
                for _ in range(max(case.processes) + case.is_followed)
            ]
            yield Lane(contender, dataset, children)

    def bytes_per_run(self, contender: str, dataset: int) -> float:
        """Disk space per run, indexes included, with this number of stored runs."""
        known = CONTENDERS[contender]
        with self._target(known, dataset) as target:
            return servers.bytes_of_runs(known, target) / dataset

    def _target(self, contender: Contender, dataset: int) -> contextlib.AbstractContextManager[Target]:
        """The loaded dataset: a new one, or the one that all cases share."""
        if dataset < _LARGE:
            return self._loaded(contender, dataset)
        return contextlib.nullcontext(self._shared_target(contender, dataset))

    @contextlib.contextmanager
    def _loaded(self, contender: Contender, dataset: int) -> Generator[Target]:
        with self._servers.database(contender) as target:
            servers.prepare(contender, target)
            servers.load(contender, target, Dataset(dataset, self._payloads).batches())
            yield target

    def _shared_target(self, contender: Contender, dataset: int) -> Target:
        key = contender.name, dataset
        if key not in self._shared:
            self._shared[key] = self._stack.enter_context(self._loaded(contender, dataset))
        return self._shared[key]

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

    def _consumed_rows(self, case: Case, dataset: int) -> list[Rows]:
        """The rows that the operation will consume."""
        operation, data = OPERATIONS.get(case.operation), Dataset(dataset, self._payloads)
        if operation is None or operation.consumes is None:
            return []
        calls = [range(_AGREEMENT_CALLS)]
        for block, (tasks, _) in enumerate(_loads(case)):
            count = self._spare(operation, tasks)
            firsts = (_first(block, repetition) for repetition in range(self._settings.repetitions + 1))
            calls += [range(first, first + count) for first in firsts]
        return [operation.consumes(data, numbers) for numbers in calls]

    def _spare(self, operation: Operation, tasks: int) -> int:
        """The number of calls in one measurement that rows are loaded for."""
        per_s = _MAX_SPARE_PER_S.get(tasks, _MAX_SPARE_PER_S_MANY_TASKS)
        share = _SPARE_SHARE_OF_DELETES if operation.name.startswith("run_events.delete") else 1.0
        return max(2 * tasks, math.ceil(per_s * self._settings.seconds * share))

    def _with_equal_results(self, case: Case, lanes: Sequence[Lane], outcome: Outcome) -> list[Lane]:
        """The lanes whose results equal ours; contenders of kind `direct` are not checked.

        Only smaller datasets are checked: a large one differs between contenders, since each case changes as
        many rows as its contender can in the time.
        """
        if case.operation == DAY:
            return list(lanes)
        able = [
            lane
            for lane in lanes
            if lane.children[0].request(self._agreement_request(case, lane, "has"))["has"]
        ]
        ours: dict[int, Any] = {}
        equal: list[Lane] = []
        for lane in able:
            if lane.contender.kind == "direct" or lane.dataset >= _LARGE:
                if all(found.backend != lane.contender.name for found in outcome.disagreements):
                    equal.append(lane)
                continue
            found = lane.children[0].request(self._agreement_request(case, lane, "agree"))["answers"]
            known = ours.setdefault(lane.dataset, found)
            common = lane.contender.kind == "deerflow"
            why = agreement.difference(known, found, common_keys_only=common) or _call_error(found)
            if why is None:
                equal.append(lane)
            else:
                outcome.disagreements.append(
                    Disagreement(
                        operation=case.operation, dataset=lane.dataset, backend=lane.contender.name, why=why
                    )
                )
        return equal

    def _agreement_request(self, case: Case, lane: Lane, do: str) -> dict[str, Any]:
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
            request = self._load_request(case, lane, block, 0, tasks)
            warm_up = {**request, "do": "warm_up", "seconds": self._settings.warm_up_s(tasks)}
            if warm_up.pop("spare", None):  # too few calls for a warm-up
                self._request_all(lane, {**warm_up, "operation": _ANY_READ}, processes)
                warm_up["spare"] = request["spare"]
            self._request_all(lane, warm_up, processes)
        for repetition in range(1, self._settings.repetitions + 1):
            for lane in lanes if repetition % 2 else reversed(lanes):
                request = self._load_request(case, lane, block, repetition, tasks)
                lane.rounds.append(_round(self._request_all(lane, {**request, "do": "measure"}, processes)))
                self._step()

    def _load_request(
        self, case: Case, lane: Lane, block: int, repetition: int, tasks: int
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "operation": case.operation,
            "dataset": lane.dataset,
            "concurrency": tasks,
            "seconds": self._settings.seconds,
            "first": _first(block, repetition),
        }
        operation = OPERATIONS.get(case.operation)
        if operation is not None and operation.consumes is not None:
            request["spare"] = self._spare(operation, tasks)
        return request

    @staticmethod
    def _request_all(lane: Lane, request: Mapping[str, Any], processes: int) -> list[dict[str, Any]]:
        """Requests all processes at once, each with its own calls."""
        children = lane.children[:processes]
        share = CALLS_PER_BLOCK // 10
        for number, process in enumerate(children):
            process.send({**request, "first": request["first"] + number * share, "process": number})
        return [process.receive() for process in children]


def _entered(
    lane: contextlib.AbstractContextManager[Lane],
) -> tuple[contextlib.ExitStack, Lane]:
    """The exit stack that closes the lane, and the lane."""
    stack = contextlib.ExitStack()
    return stack, stack.enter_context(lane)


def _loads(case: Case) -> list[tuple[int, int]]:
    return [(tasks, processes) for processes in case.processes for tasks in case.concurrency]


def _first(block: int, repetition: int) -> int:
    """The number of a measurement's first call; the calls of the comparison have the lowest numbers."""
    return (1 + block * 100 + repetition) * CALLS_PER_BLOCK


def _call_error(found: Sequence[Any]) -> str | None:
    """The first error among the results, since equal errors are not equal results."""
    answers = (cast("dict[str, Any]", answer) for answer in found if isinstance(answer, dict))
    raised = next((str(answer["raises"]) for answer in answers if "raises" in answer), None)
    return None if raised is None else f"the call fails: {raised}"


def _round(responses: Sequence[Mapping[str, Any]]) -> Round:
    latencies = sorted(latency for response in responses for latency in response["latencies_us"])
    took_s = max(response["took_s"] for response in responses)
    cpu_s = sum(response["cpu_s"] for response in responses)
    failures: dict[str, int] = {}
    for response in responses:
        for kind, number in response["failures"].items():
            failures[kind] = failures.get(kind, 0) + number
    count = len(latencies)
    return Round(
        ops_per_s=count / took_s,
        p50_ms=_percentile(latencies, 0.50),
        p95_ms=_percentile(latencies, 0.95),
        p99_ms=_percentile(latencies, 0.99),
        cpu_us_per_op=cpu_s / count * 1e6 if count else None,
        peak_memory_mb=max(response["peak_memory_bytes"] for response in responses) / 1e6,
        failures=failures,
    )


def _percentile(ordered: Sequence[int], share: float) -> float | None:
    """Nearest rank."""
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
