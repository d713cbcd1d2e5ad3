"""Measures a case: the same calls for every contender, in alternating order.

A case is one operation on one dataset. Each contender gets its own database and process, and its results are
compared with ours before it is measured. For each number of tasks, the contenders are warmed up and measured
alternately: A B B A A B ... Large datasets are loaded once and shared by all cases, each of which changes
some thousands of their rows.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from . import agreement, servers
from .child import CALLS_PER_BLOCK, DAY
from .children import Child, Children, request_all
from .contenders.known import CONTENDERS, Contender
from .dataset import Dataset, Payloads, Rows
from .operations import OPERATIONS, Consumes
from .results import Disagreement, Key, Part, Record, Results, Round, Size
from .servers import Servers, Target

FOLLOWED = "run_events.list_messages.following"
"""A reader that follows many writers."""

_ANY_READ = "runs.get"
_AGREEMENT_CALLS = 12
_MAX_SPARE_PER_S, _MAX_SPARE_PER_S_MANY_TASKS = 1_500, 8_000
_SPARE_SHARE_OF_DELETES = 0.1
"""Calls that delete many rows each are slower, so fewer of them fit into the same time."""


@dataclass(frozen=True, slots=True)
class Settings:
    seconds: float
    """Duration of one measurement."""
    repetitions: int

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
    comparison: Literal["agree", "agree_at_once"] = "agree"
    """How the calls are made whose results are compared: one after another, or at once."""

    @property
    def loads(self) -> list[tuple[int, int]]:
        """Tasks and processes of each measurement."""
        return [(tasks, processes) for processes in self.processes for tasks in self.concurrency]

    @property
    def consumes(self) -> Consumes | None:
        return OPERATIONS[self.operation].consumes if self.operation in OPERATIONS else None


@dataclass(slots=True)
class Lane:
    """One contender on one database, with its processes."""

    contender: Contender
    dataset: int
    children: list[Child]
    rounds: list[Round] = field(default_factory=lambda: list[Round]())


@dataclass
class Bench:
    """Measures cases on running servers; `stack` stops the processes and drops the shared datasets."""

    stack: contextlib.ExitStack
    running: Servers
    payloads: Payloads
    settings: Settings
    results: Results

    def __post_init__(self) -> None:
        self._shared: dict[tuple[str, int], Target] = {}
        self.children = Children(self.payloads)
        self.stack.callback(self.children.stop)

    def measure(self, case: Case) -> None:
        """Adds the case's records to the results."""
        records: list[Record] = []
        with contextlib.ExitStack() as stack:
            lanes = [
                stack.enter_context(self._lane(case, CONTENDERS[name], dataset))
                for dataset in case.datasets
                for name in case.contenders
            ]
            lanes = self._with_equal_results(case, lanes)
            for block, (tasks, processes) in enumerate(case.loads):
                self._measure_load(case, lanes, block, tasks, processes)
                for lane in lanes:
                    records.append(_record(case, lane, tasks, processes))
                    lane.rounds = []
            if case.is_followed:
                records += [self._followed(case, lane) for lane in lanes]
        self.results.records += records

    def measure_size(self, contender: str, dataset: int) -> None:
        """Disk space per run, indexes included, with this number of stored runs."""
        known = CONTENDERS[contender]
        with self._target(known, dataset) as target:
            loader = servers.loader(known.server)
            stored = loader.bytes_of_runs(known, target.url, target.database) / dataset
        self.results.sizes.append(Size(backend=contender, dataset=dataset, bytes_per_run=stored))

    # -- databases and processes ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _lane(self, case: Case, contender: Contender, dataset: int) -> Generator[Lane]:
        count = max(case.processes) + case.is_followed
        with self._target(contender, dataset) as target:
            if rows := self._consumed_rows(case, dataset):
                servers.load(contender, target, rows)
            with self.children.opened(contender.name, count, target.url, target.database) as children:
                yield Lane(contender, dataset, children)

    def _target(self, contender: Contender, dataset: int) -> contextlib.AbstractContextManager[Target]:
        """The loaded dataset: a new one, or the one that all cases share."""
        loaded = self.running.loaded(contender, Dataset(dataset, self.payloads))
        if dataset < servers.LARGE:
            return loaded
        key = contender.name, dataset
        if key not in self._shared:
            self._shared[key] = self.stack.enter_context(loaded)
        return contextlib.nullcontext(self._shared[key])

    def _consumed_rows(self, case: Case, dataset: int) -> list[Rows]:
        """The rows that the operation will consume."""
        consumes = case.consumes
        if consumes is None:
            return []
        calls = [range(_AGREEMENT_CALLS)]
        for block, (tasks, _) in enumerate(case.loads):
            count = self._spare(case, tasks)
            firsts = (_first(block, repetition) for repetition in range(self.settings.repetitions + 1))
            calls += [range(first, first + count) for first in firsts]
        return [consumes(Dataset(dataset, self.payloads), numbers) for numbers in calls]

    def _spare(self, case: Case, tasks: int) -> int:
        """The number of calls in one measurement that rows are loaded for; 0 if calls consume no rows."""
        if case.consumes is None:
            return 0
        per_s = _MAX_SPARE_PER_S if tasks == 1 else _MAX_SPARE_PER_S_MANY_TASKS
        share = _SPARE_SHARE_OF_DELETES if case.operation.startswith("run_events.delete") else 1.0
        return max(2 * tasks, math.ceil(per_s * self.settings.seconds * share))

    # -- requests ------------------------------------------------------------------------------------

    def _with_equal_results(self, case: Case, lanes: Sequence[Lane]) -> list[Lane]:
        """The lanes whose results equal ours; contenders of kind `direct` are not checked.

        Only smaller datasets are checked: a large one differs between contenders, since each case changes as
        many rows as its contender can in the time.
        """
        if case.operation == DAY:
            return list(lanes)
        ours: dict[int, Any] = {}
        excluded: set[str] = set()
        equal: list[Lane] = []
        for lane in lanes:
            name = lane.contender.name
            request = {"operation": case.operation, "dataset": lane.dataset, "calls": _AGREEMENT_CALLS}
            if name in excluded or not lane.children[0].request({**request, "do": "has"})["has"]:
                continue
            if lane.contender.kind != "direct" and lane.dataset < servers.LARGE:
                found = lane.children[0].request({**request, "do": case.comparison})["answers"]
                known = ours.setdefault(lane.dataset, found)
                common = lane.contender.kind == "deerflow"
                why = agreement.difference(known, found, common_keys_only=common) or _call_error(found)
                if why is not None:
                    excluded.add(name)
                    self.results.disagreements.append(
                        Disagreement(
                            operation=case.operation,
                            dataset=lane.dataset,
                            backend=name,
                            why=why,
                            part=case.part,
                        )
                    )
                    continue
            equal.append(lane)
        return equal

    def _measure_load(
        self, case: Case, lanes: Sequence[Lane], block: int, tasks: int, processes: int
    ) -> None:
        for lane in lanes:
            children, warm_up_s = lane.children[:processes], self.settings.warm_up_s(tasks)
            request = {**self._request(case, lane, block, 0, tasks), "do": "warm_up", "seconds": warm_up_s}
            if request["spare"]:  # too few calls for a warm-up
                request_all(children, {**request, "operation": _ANY_READ, "spare": 0})
            request_all(children, request)
        for repetition in range(1, self.settings.repetitions + 1):
            for lane in lanes if repetition % 2 else reversed(lanes):
                request = {**self._request(case, lane, block, repetition, tasks), "do": "measure"}
                lane.rounds.append(round_of(request_all(lane.children[:processes], request)))

    def _followed(self, case: Case, lane: Lane) -> Record:
        """Repeats the writers of the largest load while one reader pages by `after_seq`."""
        tasks, processes = case.loads[-1]
        reader = lane.children[-1]
        request = self._request(case, lane, len(case.loads), 0, tasks)
        reader.request({"do": "catch_up"})
        reader.send({"do": "read", "seconds": request["seconds"]})
        request_all(lane.children[:processes], {**request, "do": "measure"})
        response = reader.receive()
        failures = {"event missed by the reader": response["missed"]} if response["missed"] else {}
        read = Round(ops_per_s=response["seen"] / request["seconds"], failures=failures)
        return _record(replace(case, operation=FOLLOWED), replace(lane, rounds=[read]), tasks, processes)

    def _request(self, case: Case, lane: Lane, block: int, repetition: int, tasks: int) -> dict[str, Any]:
        return {
            "operation": case.operation,
            "dataset": lane.dataset,
            "concurrency": tasks,
            "seconds": self.settings.seconds,
            "first": _first(block, repetition),
            "spare": self._spare(case, tasks),
        }


def _first(block: int, repetition: int) -> int:
    """The number of a measurement's first call; the calls of the comparison have the lowest numbers."""
    return (1 + block * 100 + repetition) * CALLS_PER_BLOCK


def _call_error(found: Sequence[Any]) -> str | None:
    """The first error among the results, since equal errors are not equal results."""
    answers = (cast("dict[str, Any]", answer) for answer in found if isinstance(answer, dict))
    raised = next((str(answer["raises"]) for answer in answers if "raises" in answer), None)
    return None if raised is None else f"the call fails: {raised}"


def round_of(responses: Sequence[Mapping[str, Any]]) -> Round:
    """What the processes of one measurement have measured."""
    latencies = sorted(latency for response in responses for latency in response["latencies_us"])
    count = len(latencies)
    failures = sum((Counter[str](response["failures"]) for response in responses), Counter[str]())
    return Round(
        ops_per_s=count / max(response["took_s"] for response in responses),
        p50_ms=_percentile(latencies, 0.50),
        p95_ms=_percentile(latencies, 0.95),
        p99_ms=_percentile(latencies, 0.99),
        cpu_us_per_op=sum(response["cpu_s"] for response in responses) / count * 1e6 if count else None,
        peak_memory_mb=max(response["peak_memory_bytes"] or 0 for response in responses) / 1e6 or None,
        failures=dict(failures),
    )


def _percentile(ordered: Sequence[int], share: float) -> float | None:
    """Nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1_000 if ordered else None


def _record(case: Case, lane: Lane, tasks: int, processes: int) -> Record:
    key = Key(case.part, case.operation, tasks, processes, lane.dataset)
    return Record(**key._asdict(), backend=lane.contender.name, rounds=lane.rounds)
