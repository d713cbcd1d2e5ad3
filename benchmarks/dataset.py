"""The dataset that is loaded before measuring, and the payloads and sessions that `recordings.py` makes.

The dataset is the same for every contender. Ten runs per thread, ten threads per user. Every second run has
ended, the others are pending. Each run has its owner's vote, the first run of each thread ten more of other
users. Every tenth thread has ten events per run.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar

RUNS_PER_THREAD = 10
THREADS_PER_USER = 10
OTHER_VOTES = 10
"""On the first run of each thread."""
EVENTS_PER_RUN = 10
"""In every tenth thread."""
EVENT_THREAD_INTERVAL = 10
"""Every n-th thread has events."""

_FIRST_TIME = datetime(2026, 1, 1, tzinfo=UTC)
_SPREAD = 2_654_435_761  # Knuth's multiplier: visits the runs in no visible order
_MODELS = ("gpt-4.1", "deepseek-v3.2", "claude-sonnet-4.5")

_IDS = frozenset({"thread_id", "run_id", "follow_up_to_run_id", "user_id"})

Payload = TypeVar("Payload")
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store: `path` is `store.method`."""

    path: str
    arguments: Mapping[str, Any]


Script = tuple[Call, ...]
"""The storage calls of a host during one thread, from its first run to its last."""


@dataclass(frozen=True, slots=True)
class Payloads:
    source: str
    run_metadata: tuple[dict[str, Any], ...]
    run_kwargs: tuple[dict[str, Any], ...]
    completions: tuple[dict[str, Any], ...]
    """Arguments of `update_run_completion` except the run's id, of runs with an answer."""
    events: tuple[dict[str, Any], ...]
    """Events without thread and run ids."""
    scripts: tuple[Script, ...]


def an_id(kind: str, number: int) -> str:
    """A UUID like those of hosts, equal for equal arguments."""
    return str(uuid.UUID(bytes=hashlib.blake2b(f"{kind} {number}".encode(), digest_size=16).digest()))


@dataclass(slots=True)
class Rows:
    """The rows to load, with the contract's field names; times are datetimes."""

    threads: list[Row] = field(default_factory=list[Row])
    runs: list[Row] = field(default_factory=list[Row])
    feedback: list[Row] = field(default_factory=list[Row])
    run_events: list[Row] = field(default_factory=list[Row])


@dataclass(frozen=True, slots=True)
class Dataset:
    """`runs` is a multiple of 100, so that every user has all runs."""

    runs: int
    payloads: Payloads

    @property
    def threads(self) -> int:
        return self.runs // RUNS_PER_THREAD

    # Rows for the call with this number; consecutive calls use distant rows.

    def any_run(self, call: int) -> int:
        return call * _SPREAD % self.runs

    def pending_run(self, call: int) -> int:
        return self.any_run(call) | 1

    def ended_run(self, call: int) -> int:
        return self.any_run(call) & ~1

    def any_thread(self, call: int) -> int:
        return call * _SPREAD % self.threads

    def any_thread_with_events(self, call: int) -> int:
        return call * _SPREAD % (self.threads // EVENT_THREAD_INTERVAL) * EVENT_THREAD_INTERVAL

    def owner_of_run(self, run: int) -> str:
        return self.owner_of_thread(run // RUNS_PER_THREAD)

    def owner_of_thread(self, thread: int) -> str:
        return an_id("user", thread // THREADS_PER_USER)

    def owners_vote(self, run: int) -> str:
        return an_id("feedback", run * (OTHER_VOTES + 1))

    def completion(self, number: int) -> Row:
        """The arguments of `update_run_completion` except the run's id."""
        return _one_of(self.payloads.completions, number)

    def event(self, number: int, thread_id: str, run_id: str) -> Row:
        return {"thread_id": thread_id, "run_id": run_id, **_one_of(self.payloads.events, number)}

    def thread_metadata(self, thread: int) -> dict[str, str]:
        return {"source": "web", "project": f"project-{thread % 50}", "language": "en"}

    # The rows.

    def batches(self, threads: int = 1_000) -> Iterator[Rows]:
        """All rows, in batches of this number of threads."""
        for first in range(0, self.threads, threads):
            rows = Rows()
            for thread in range(first, min(first + threads, self.threads)):
                self._add_thread(rows, thread)
            yield rows

    def _add_thread(self, rows: Rows, thread: int) -> None:
        thread_id, owner = an_id("thread", thread), self.owner_of_thread(thread)
        rows.threads.append(self.thread_row(thread, thread_id, owner))
        seq = 0
        for run in range(thread * RUNS_PER_THREAD, (thread + 1) * RUNS_PER_THREAD):
            run_id = an_id("run", run)
            rows.runs.append(self.run_row(run, run_id, thread_id, owner))
            voters = [owner]
            if run % RUNS_PER_THREAD == 0:
                voters += [an_id("voter", voter) for voter in range(OTHER_VOTES)]
            for place, voter in enumerate(voters):
                number = run * (OTHER_VOTES + 1) + place
                rows.feedback.append(self.vote_row(number, run_id, thread_id, voter))
            if thread % EVENT_THREAD_INTERVAL == 0:
                for _ in range(EVENTS_PER_RUN):
                    seq += 1
                    rows.run_events.append(self.event_row(run * EVENTS_PER_RUN + seq, seq, run_id, thread_id))

    def thread_row(self, number: int, thread_id: str, owner: str) -> Row:
        return {
            "thread_id": thread_id,
            "user_id": owner,
            "assistant_id": "lead_agent",
            "display_name": f"Thread {number}",
            "status": "idle" if number % 4 else "busy",
            "metadata": self.thread_metadata(number),
            "created_at": _time_of(number),
        }

    def run_row(self, number: int, run_id: str, thread_id: str, owner: str) -> Row:
        """Every second run has ended; the others are pending, without counts and texts."""
        end = self.completion(number)
        if number % 2:
            end = {name: 0 if isinstance(value, int) else None for name, value in end.items()}
        run = self.new_run(number, run_id, thread_id, owner)
        own = {"model_name": _one_of(_MODELS, number), "created_at": _time_of(number)}
        return {**run, **own, **end, "status": end["status"] or "pending"}

    def new_run(self, number: int, run_id: str, thread_id: str, owner: str) -> Row:
        """The arguments of `runs.create`."""
        return {
            "run_id": run_id,
            "thread_id": thread_id,
            "user_id": owner,
            "assistant_id": "lead_agent",
            "metadata": _one_of(self.payloads.run_metadata, number),
            "kwargs": _one_of(self.payloads.run_kwargs, number),
        }

    def vote_row(self, number: int, run_id: str, thread_id: str, voter: str) -> Row:
        return {
            "feedback_id": an_id("feedback", number),
            "run_id": run_id,
            "thread_id": thread_id,
            "user_id": voter,
            "rating": 1 if number % 3 else -1,
            "comment": "Just what I was looking for." if number % 5 == 0 else None,
            "created_at": _time_of(number),
        }

    def event_row(self, number: int, seq: int, run_id: str, thread_id: str) -> Row:
        return {**self.event(number, thread_id, run_id), "seq": seq, "created_at": _time_of(number)}


def _one_of(items: Sequence[Payload], number: int) -> Payload:
    return items[number % len(items)]


def _time_of(number: int) -> datetime:
    """A distinct time per row, 20 ms apart."""
    return _FIRST_TIME + timedelta(milliseconds=20 * number)


# -- sessions --------------------------------------------------------------------------------------


def session(script: Script, names: Callable[[str], str]) -> Iterator[Call]:
    """The script with other ids: `names` maps each id to its replacement."""
    for call in script:
        arguments = _renamed(call.arguments, names)
        if "events" in arguments:
            arguments["events"] = [_renamed(event, names) for event in arguments["events"]]
        yield Call(call.path, arguments)


def _renamed(arguments: Mapping[str, Any], names: Callable[[str], str]) -> dict[str, Any]:
    return {
        name: names(value) if name in _IDS and value is not None else value
        for name, value in arguments.items()
    }
