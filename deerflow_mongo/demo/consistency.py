"""Checks a storage under concurrent writers: no write lost, none stored twice, event numbers without a gap.

Many tasks append run events, record token usage and vote on the same few runs at once. Then everything is
read back and compared with what the storage acknowledged. Works with any `Storage`; it is not a benchmark and
no replacement for the conformance suite in `testing/`. What it wrote is deleted again, unless a difference
was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, cast

from ..contract.errors import StorageError
from ..contract.protocols import Storage
from ..contract.rows import CALLERS, MESSAGE, FeedbackRow, RunEventFields, RunEventRow
from ..mongodb.drivers.collection import end_if_cancelled
from .replay import acting_for
from .text import counted

WRITERS: Final = 32
STEPS: Final = 16
"""What each writer does: so many times one append of events, one token record and one vote."""
MAX_USERS: Final = 4
RUNS_PER_THREAD: Final = 2

_BATCH_EVERY, _BATCH_SIZE = 4, 3
_MODELS = ("model-a", "model-b")
_PAGE = 500
_LAST_COMMENT = "last vote"
_STOP_TIMEOUT_S = 2.0
"""How long a cancelled check may take to delete what it wrote."""


@dataclass(frozen=True, slots=True)
class WriteCount:
    """The writes of one kind: how many the storage acknowledged, and how many of them it lost or doubled."""

    acknowledged: int
    lost: int
    doubled: int


@dataclass(frozen=True, slots=True)
class ConsistencyReport:
    """The result of a check. `differences` has a sentence for each thread or run that is not as it should be.

    `thread_ids` are the threads that were written to; they are still stored if there is a difference.
    """

    writers: int
    users: int
    runs: int
    duration_ms: int
    run_events: WriteCount
    token_records: WriteCount
    vote_upserts: WriteCount
    missing_numbers: int
    recorded_tokens: int
    stored_tokens: int
    expected_votes: int
    stored_votes: int
    differences: list[str]
    thread_ids: list[str]

    @property
    def passed(self) -> bool:
        return not self.differences

    @property
    def total(self) -> WriteCount:
        kinds = (self.run_events, self.token_records, self.vote_upserts)
        return WriteCount(
            sum(kind.acknowledged for kind in kinds),
            sum(kind.lost for kind in kinds),
            sum(kind.doubled for kind in kinds),
        )


def _ignore() -> None:
    """The default of `on_step`."""


async def check_consistency(
    storage: Storage,
    users: Sequence[str],
    *,
    writers: int = WRITERS,
    steps: int = STEPS,
    on_step: Callable[[], None] = _ignore,
) -> ConsistencyReport:
    """Write as the first `MAX_USERS` users with so many concurrent writers, read back, compare.

    `on_step` is called after each of the `writers * steps` steps. Raises the storage's first error.
    """
    load = _Load(storage, users[:MAX_USERS])
    try:
        await load.create_runs()
        started = time.perf_counter()
        await load.write(writers, steps, on_step)
        duration_ms = round((time.perf_counter() - started) * 1000)
        report = await _Comparison(load).report(writers, duration_ms)
    except asyncio.CancelledError:
        with contextlib.suppress(TimeoutError, StorageError):
            await asyncio.wait_for(load.delete(), _STOP_TIMEOUT_S)
        raise
    if report.passed:
        await load.delete()
    return report


# -- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    thread_id: str
    run_id: str
    owner: str


@dataclass(slots=True)
class _Load:
    """The writes of a check, and what the storage acknowledged of them."""

    storage: Storage
    users: Sequence[str]
    runs: list[_Run] = field(default_factory=list["_Run"])
    event_numbers: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """Thread id -> the content of each acknowledged event -> its number."""
    token_counts: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """Run id -> the sums of the acknowledged token records, by the names of a run's row."""
    vote_ids: dict[tuple[str, str], list[str]] = field(default_factory=dict[tuple[str, str], list[str]])
    """Run id and user -> the feedback id of each acknowledged vote."""
    last_ratings: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])

    @property
    def thread_ids(self) -> list[str]:
        return list(self.event_numbers)

    async def create_runs(self) -> None:
        """One thread per user, with a few runs that are going on."""
        for user in self.users:
            thread_id = str(uuid.uuid4())
            await self.storage.threads.ensure_thread(thread_id=thread_id, user_id=user)
            self.event_numbers[thread_id] = {}
            for _ in range(RUNS_PER_THREAD):
                run = _Run(thread_id, str(uuid.uuid4()), user)
                await self.storage.runs.create(run.run_id, thread_id, user_id=user, status="running")
                self.runs.append(run)
                self.token_counts[run.run_id] = Counter()

    async def write(self, writers: int, steps: int, on_step: Callable[[], None]) -> None:
        """All writers at once; then each vote once more, so that it is known which one must remain."""

        async def one_writer(writer: int) -> None:
            for step in range(steps):
                end_if_cancelled()
                await self._step(writer, step)
                on_step()

        await _all_at_once([one_writer(writer) for writer in range(writers)])
        await _all_at_once(
            [
                self._vote(run, user, 1 if i % 2 else -1, _LAST_COMMENT)
                for i, (run, user) in enumerate(product(self.runs, self.users))
            ]
        )

    async def _step(self, writer: int, step: int) -> None:
        run = self.runs[(writer + step) % len(self.runs)]
        name = f"writer {writer}, step {step}"
        with acting_for(run.owner):
            await self._append(run, name, _BATCH_SIZE if step % _BATCH_EVERY == 0 else 1)
        await self._record_tokens(run, writer, step)
        user = self.users[step % len(self.users)]
        await self._vote(run, user, 1 if writer % 2 else -1, name)

    async def _append(self, run: _Run, name: str, size: int) -> None:
        contents = [f"{name}, event {i}" for i in range(size)]
        events: list[RunEventFields] = [
            {
                "thread_id": run.thread_id,
                "run_id": run.run_id,
                "event_type": "ai_message",
                "category": MESSAGE,
                "content": content,
            }
            for content in contents
        ]
        rows = await self.storage.run_events.put_batch(events)
        numbers = self.event_numbers[run.thread_id]
        numbers.update(zip(contents, (row["seq"] for row in rows), strict=True))

    async def _record_tokens(self, run: _Run, writer: int, step: int) -> None:
        caller = CALLERS[writer % len(CALLERS)]
        input_tokens, output_tokens = 100 + writer, 10 + step
        await self.storage.runs.record_token_usage(
            run.run_id,
            caller=caller,
            model_name=_MODELS[step % len(_MODELS)],
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        counter = "lead_agent_tokens" if caller == "lead_agent" else f"{caller}_tokens"
        self.token_counts[run.run_id].update(
            {
                "total_input_tokens": input_tokens,
                "total_output_tokens": output_tokens,
                "total_tokens": input_tokens + output_tokens,
                "llm_call_count": 1,
                counter: input_tokens + output_tokens,
            }
        )

    async def _vote(self, run: _Run, user: str, rating: int, comment: str) -> None:
        row = await self.storage.feedback.upsert(
            run_id=run.run_id, thread_id=run.thread_id, rating=rating, user_id=user, comment=comment
        )
        self.vote_ids.setdefault((run.run_id, user), []).append(row["feedback_id"])
        if comment == _LAST_COMMENT:
            self.last_ratings[run.run_id, user] = rating

    async def delete(self) -> None:
        """Delete what was written. Of the events, MongoDB stores a tombstone for a while."""
        storage = self.storage
        for run in self.runs:
            for user in self.users:
                await storage.feedback.delete_by_run(thread_id=run.thread_id, run_id=run.run_id, user_id=user)
            await storage.runs.delete(run.run_id, user_id=None)
        for thread_id in self.thread_ids:
            await storage.run_events.delete_by_thread(thread_id)
            await storage.threads.delete_thread(thread_id)


async def _all_at_once(writes: Sequence[Any]) -> None:
    """Run the coroutines concurrently; the first error cancels the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for write in writes:
                group.create_task(write)
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        raise first from first.__cause__


# -- comparing -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Comparison:
    """What is read back, compared with what was acknowledged."""

    load: _Load
    differences: list[str] = field(default_factory=list[str])
    missing_numbers: int = 0
    stored_tokens: int = 0
    stored_votes: int = 0

    async def report(self, writers: int, duration_ms: int) -> ConsistencyReport:
        load = self.load
        run_events, token_records = await self._run_events(), await self._token_records()
        vote_upserts = await self._votes()
        return ConsistencyReport(
            writers=writers,
            users=len(load.users),
            runs=len(load.runs),
            duration_ms=duration_ms,
            run_events=run_events,
            token_records=token_records,
            vote_upserts=vote_upserts,
            missing_numbers=self.missing_numbers,
            recorded_tokens=sum(counts["total_tokens"] for counts in load.token_counts.values()),
            stored_tokens=self.stored_tokens,
            expected_votes=len(load.vote_ids),
            stored_votes=self.stored_votes,
            differences=self.differences,
            thread_ids=load.thread_ids,
        )

    async def _run_events(self) -> WriteCount:
        lost = doubled = 0
        for thread_id, numbers in self.load.event_numbers.items():
            rows = [row async for row in self._events_of(thread_id)]
            stored = Counter(str(row["content"]) for row in rows)
            lost_here = len(numbers.keys() - stored.keys())
            doubled_here = sum(copies - 1 for copies in stored.values())
            self._compare_numbers(thread_id, numbers, rows)
            self._note(f"thread {thread_id}", lost_here, "run event", "lost")
            self._note(f"thread {thread_id}", doubled_here, "run event", "stored twice")
            unknown = len(stored.keys() - numbers.keys())
            self._note(f"thread {thread_id}", unknown, "run event", "that no writer wrote")
            lost += lost_here
            doubled += doubled_here
        return WriteCount(sum(map(len, self.load.event_numbers.values())), lost, doubled)

    async def _events_of(self, thread_id: str) -> AsyncIterator[RunEventRow]:
        after_seq = 0
        while rows := await self.load.storage.run_events.list_messages(
            thread_id, after_seq=after_seq, limit=_PAGE
        ):
            for row in rows:
                yield row
            after_seq = rows[-1]["seq"]

    def _compare_numbers(self, thread_id: str, acknowledged: dict[str, int], rows: list[RunEventRow]) -> None:
        """A thread's events have the numbers 1 to n, each once, and the ones that were acknowledged."""
        place, stored = f"thread {thread_id}", {row["seq"] for row in rows}
        missing = max([*stored, *acknowledged.values()], default=0) - len(stored)
        self.missing_numbers += missing
        self._note(place, missing, "event number", "missing")
        self._note(place, len(rows) - len(stored), "event number", "used twice")
        other = sum(acknowledged.get(str(row["content"]), row["seq"]) != row["seq"] for row in rows)
        self._note(place, other, "run event", "with another number than acknowledged")

    async def _token_records(self) -> WriteCount:
        lost = doubled = 0
        runs = self.load.storage.runs
        for run in self.load.runs:
            row = cast("dict[str, Any]", await runs.get(run.run_id, user_id=run.owner) or {})
            recorded = self.load.token_counts[run.run_id]
            missing_calls = recorded["llm_call_count"] - row.get("llm_call_count", 0)
            lost += max(0, missing_calls)
            doubled += max(0, -missing_calls)
            for name, expected in recorded.items():
                if (stored := row.get(name, 0)) != expected:
                    self.differences.append(f"run {run.run_id}: {name} is {stored:,}, recorded {expected:,}")
        for thread_id in self.load.thread_ids:
            usage = await runs.token_usage_by_thread(thread_id, user_id=None)
            self.stored_tokens += usage["total_tokens"]
            by_model = sum(model["tokens"] for model in usage["by_model"].values())
            if by_model != usage["total_tokens"]:
                text = f"{by_model:,} tokens by model, {usage['total_tokens']:,} in total"
                self.differences.append(f"thread {thread_id}: {text}")
        acknowledged = sum(counts["llm_call_count"] for counts in self.load.token_counts.values())
        return WriteCount(acknowledged, lost, doubled)

    async def _votes(self) -> WriteCount:
        lost = doubled = 0
        for run in self.load.runs:
            rows = await self.load.storage.feedback.list_by_run(run.thread_id, run.run_id, limit=_PAGE)
            self.stored_votes += len(rows)
            for user in self.load.users:
                own = [row for row in rows if row["user_id"] == user]
                # A vote that was acknowledged under two ids was two votes for a time.
                copies = max(len(own), len(set(self.load.vote_ids[run.run_id, user])))
                is_lost = not self._has_last_vote(run, user, own)
                self._note(f"run {run.run_id}", copies - 1, "vote", f"of {user} too many")
                self._note(f"run {run.run_id}", int(is_lost), "vote", f"of {user} lost")
                lost += is_lost
                doubled += max(0, copies - 1)
        return WriteCount(sum(map(len, self.load.vote_ids.values())), lost, doubled)

    def _has_last_vote(self, run: _Run, user: str, rows: Sequence[FeedbackRow]) -> bool:
        last = (self.load.last_ratings[run.run_id, user], _LAST_COMMENT)
        return any((row["rating"], row["comment"]) == last for row in rows)

    def _note(self, place: str, count: int, noun: str, problem: str) -> None:
        if count > 0:
            self.differences.append(f"{place}: {counted(count, noun)} {problem}")
