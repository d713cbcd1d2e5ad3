"""Measures checkpoint savers: the same calls for every contender, in alternating order.

Each contender gets a new database and a process of its own for each case, and a second process that reads
what the first one wrote. Records of a contender whose answers differ from ours are excluded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ..agreement import difference
from ..children import Child, Children, Request, Response
from ..contenders.known import CONTENDERS, Contender
from ..measuring import Bench, Case, round_of
from ..results import Disagreement, Key, Record, Results, Round
from ..servers import Target
from . import stored

TURN, GET_STATE, GET_TUPLE = "turn", "aget_state", "aget_tuple"
COLD: Final = ".cold"
BESIDE_TOOLS, GROWN, WRITE_STATE, READ_STATE = (
    "aget_tuple.beside_tools",
    "thread",
    "state.write",
    "state.read",
)
"""The operations of the records."""
BUSY_THREADS: Final = 6
MIB: Final = 1 << 20

_PROGRAM = "benchmarks.checkpoints.child"
_SMALL = "small"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much one repetition does."""

    turns_of_one_task: int
    turns_of_each_task: int
    """Where there are several."""
    turns_of_stored_thread: int
    reads: int
    busy_s: float

    def turns(self, tasks: int) -> int:
        return self.turns_of_one_task if tasks == 1 else self.turns_of_each_task


FULL: Final = Scale(50, 10, 3, 10, 3.0)
QUICK: Final = Scale(2, 1, 1, 2, 0.2)


class Measured(NamedTuple):
    """What a record is about, besides its part and contender."""

    operation: str
    tasks: int
    dataset: int


@dataclass(slots=True)
class Lane:
    """One contender on one database, with its processes and what they returned."""

    contender: Contender
    target: Target
    children: list[Child]
    rounds: dict[Measured, list[Round]] = field(default_factory=lambda: dict[Measured, list[Round]]())
    answers: dict[Measured, list[Any]] = field(default_factory=lambda: dict[Measured, list[Any]]())

    def request(self, do: str, process: int = 0, **given: object) -> Response:
        return self.children[process].request({"do": do, **given})

    def add(self, measured: Measured, response: Mapping[str, Any], **metrics: float) -> None:
        one = round_of([response])
        self.rounds.setdefault(measured, []).append(one.model_copy(update=metrics))
        self.answers.setdefault(measured, []).append(response["answers"])


def _alternating(lanes: Sequence[Lane], repetition: int) -> Iterable[Lane]:
    return lanes if repetition % 2 else reversed(lanes)


def add_records(lanes: Sequence[Lane], results: Results) -> None:
    """Those of equal answers; a failed call has no answer, and the record names its error."""
    for lane in lanes:
        for measured, rounds in lane.rounds.items():
            ours = lanes[0].answers.get(measured, [])
            both = [
                (mine, theirs)
                for mine, theirs in zip(ours, lane.answers[measured], strict=False)
                if mine is not None and theirs is not None
            ]
            mine, theirs = [pair[0] for pair in both], [pair[1] for pair in both]
            if _agrees(lane, measured.operation, measured.dataset, mine, theirs, results):
                key = Key("checkpoints", measured.operation, measured.tasks, 1, measured.dataset)
                results.records.append(Record(**key._asdict(), backend=lane.contender.name, rounds=rounds))


def _agrees(lane: Lane, operation: str, dataset: int, ours: object, found: object, results: Results) -> bool:
    why = difference(ours, found)
    if why is not None:
        results.disagreements.append(
            Disagreement(operation=operation, dataset=dataset, backend=lane.contender.name, why=why)
        )
    return why is None


class SaverBench:
    """Measures cases of the part `checkpoints` on running servers."""

    def __init__(self, bench: Bench, scale: Scale) -> None:
        """On the servers of the bench, with as many repetitions, and with its results."""
        self.children = Children(bench.payloads, _PROGRAM)
        bench.stack.callback(self.children.stop)
        self._running = bench.running
        self._repetitions = bench.settings.repetitions
        self._results = bench.results
        self._scale = scale

    def measure(self, case: Case) -> None:
        """Adds the case's records to the results."""
        for name in case.contenders:  # their processes import their packages at the same time
            self.children.start(name)
        with contextlib.ExitStack() as stack:
            lanes = [stack.enter_context(self._lane(case, CONTENDERS[name])) for name in case.contenders]
            if case.operation != STATES:
                lanes = self._with_equal_answers(case, lanes)
            CASES[case.operation](self, case, lanes)
            add_records(lanes, self._results)

    @contextlib.contextmanager
    def _lane(self, case: Case, contender: Contender) -> Generator[Lane]:
        count = max(case.processes)
        with (
            self._running.empty(contender) as target,
            self.children.opened(contender.name, count, target.url, target.database) as children,
        ):
            yield Lane(contender, target, children)

    # -- answers ---------------------------------------------------------------------------------------

    def _with_equal_answers(self, case: Case, lanes: Sequence[Lane]) -> list[Lane]:
        """The lanes whose answers for a short conversation are ours."""
        answers = [lane.request("agree")["answers"] for lane in lanes]
        equal: list[Lane] = []
        for lane, found in zip(lanes, answers, strict=True):
            if _agrees(lane, case.operation, 0, answers[0], found, self._results):
                equal.append(lane)
        return equal

    # -- cases -----------------------------------------------------------------------------------------

    def turns(self, case: Case, lanes: Sequence[Lane]) -> None:
        """Turns on new threads, one thread for each task; the first repetition is a warm-up."""
        for tasks in case.concurrency:
            for repetition in range(self._repetitions + 1):
                threads = [f"{tasks} tasks, {repetition}, {task}" for task in range(tasks)]
                for lane in _alternating(lanes, repetition):
                    found = lane.request("turns", threads=threads, turns=self._scale.turns(tasks))
                    if repetition:
                        lane.add(Measured(TURN, tasks, 0), found)

    def stored_thread(self, case: Case, lanes: Sequence[Lane]) -> None:
        """Turns on a thread of this size, and reads of it, by its writer and by a new saver elsewhere."""
        [size] = case.datasets
        name = f"{size} bytes"
        for lane in lanes:
            lane.request("turns", threads=[_SMALL], turns=1)
            lane.request("fill", thread=name, size=size)
        for repetition in range(self._repetitions + 1):
            for lane in _alternating(lanes, repetition):
                turns = lane.request("turns", threads=[name], turns=self._scale.turns_of_stored_thread)
                found = {TURN: turns}
                for method in (GET_STATE, GET_TUPLE):
                    found[method] = self._read(lane, 0, name, method, self._scale.reads)
                    if lane.contender.server != "memory":  # which no other process can read
                        lane.request("reopen", 1, warm_up=_SMALL)
                        found[method + COLD] = self._read(lane, 1, name, method, 1)
                for operation, response in found.items() if repetition else ():
                    lane.add(Measured(operation, 1, size), response)

    def _read(self, lane: Lane, process: int, thread: str, method: str, calls: int) -> Response:
        return lane.request("read", process, thread=thread, method=method, calls=calls)

    def beside_tools(self, _: Case, lanes: Sequence[Lane]) -> None:
        """Reads while no thread, and while each thread of asyncio's default executor is blocked."""
        for lane in lanes:
            lane.request("turns", threads=[_SMALL], turns=2)
        for repetition in range(self._repetitions + 1):
            for lane in _alternating(lanes, repetition):
                for busy in (0, BUSY_THREADS):
                    found = lane.request(
                        "read_beside_tools", thread=_SMALL, busy=busy, seconds=self._scale.busy_s
                    )
                    if repetition:
                        lane.add(Measured(BESIDE_TOOLS, 1, busy), found)

    def growth(self, case: Case, lanes: Sequence[Lane]) -> None:
        """One thread that grows to each number of turns; measured once, since bytes do not vary."""
        before = 0
        for turns in sorted(case.datasets):
            for lane in lanes:
                found = lane.request("turns", threads=["grown"], turns=turns - before)
                sizes = stored.measured(lane.contender.server, lane.target)
                lane.add(
                    Measured(GROWN, 1, turns),
                    found,
                    stored_mb=sizes.uncompressed / 1e6,
                    disk_mb=sizes.on_disk / 1e6,
                )
            before = turns

    def states(self, case: Case, lanes: Sequence[Lane]) -> None:
        """One checkpoint of this size, written by a new process and read by another one."""
        [size] = case.datasets
        for lane in lanes:
            for operation in (WRITE_STATE, READ_STATE):
                do = "write_state" if operation == WRITE_STATE else "read_state"
                found = self._in_new_process(lane, {"do": do, "thread": "large", "size": size})
                lane.add(Measured(operation, 1, size), found)
                if found["failures"]:
                    break

    def _in_new_process(self, lane: Lane, request: Request) -> Response:
        """Its memory is that of this one request."""
        child = Child(lane.contender.name, _PROGRAM)
        try:
            child.request({"url": lane.target.url, "database": lane.target.database})
            response = child.request(request)
            child.request({"do": "close"})
            return response
        finally:
            child.stop()


TURNS, STORED, TOOLS, GROWTH, STATES = "turns", "stored-thread", "beside-tools", "growth-of-thread", "states"
"""The cases of the part, which `checkpoints --measures` selects."""

_READS = tuple(method + kind for method in (GET_STATE, GET_TUPLE) for kind in ("", COLD))
OPERATIONS: Final = frozenset(
    {TURN, *_READS, BESIDE_TOOLS, GROWN, WRITE_STATE, READ_STATE, TURNS, STORED, TOOLS, GROWTH, STATES}
)
"""What records and exclusions of this part name."""

CASES: Mapping[str, Callable[[SaverBench, Case, Sequence[Lane]], None]] = {
    TURNS: SaverBench.turns,
    STORED: SaverBench.stored_thread,
    TOOLS: SaverBench.beside_tools,
    GROWTH: SaverBench.growth,
    STATES: SaverBench.states,
}
