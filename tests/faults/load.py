"""Writers and readers of every store, a ledger of what was acknowledged to them, and the check against it.

A call that fails as unavailable may have been executed or not; the ledger knows both possibilities. Any other
outcome than "acknowledged and stored once" or "unavailable" is a broken promise. What goes wrong with the
servers meanwhile is the business of `matrix.py`, or of a test.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from deerflow_mongo import MongoStorage, StorageUnavailableError, create_storage
from deerflow_mongo.contract.rows import RunEventRow

CLIENTS = 2
"""Storages with a client and a cache of event numbers each, as in as many processes."""
WRITERS, READERS = 3, 2
"""Of each client."""
THREADS = ("thread-0", "thread-1")
USER = "user"
SLOW_S = 0.25
"""A call that takes longer is part of a pause."""
_PACE_S = 0.005
_PAGE = 200
_EVERYTHING = 10**7
_END_TIMEOUT_S = 120.0
_MAX_SHOWN = 10
_MAX_REPEATS = 20

_Result = TypeVar("_Result")


@dataclass(slots=True)
class Written:
    """A field that one writer sets: the last acknowledged value, and those that may have been stored."""

    acknowledged: Any = None
    uncertain: set[Any] = field(default_factory=lambda: set[Any]())

    def admits(self, value: Any) -> bool:
        return value == self.acknowledged or value in self.uncertain


@dataclass(slots=True)
class Sum:
    """Increments of a count: acknowledged ones, and those that may have been counted."""

    acknowledged: int = 0
    uncertain: int = 0

    def admits(self, value: int) -> bool:
        return self.acknowledged <= value <= self.acknowledged + self.uncertain


@dataclass(slots=True)
class RunRecord:
    """What a writer did with its run."""

    thread_id: str
    is_certain: bool
    status: Written = field(default_factory=lambda: Written("pending"))
    tokens: Sum = field(default_factory=Sum)
    vote: Written = field(default_factory=Written)
    comments: dict[str, bool] = field(default_factory=lambda: dict[str, bool]())
    """Rows of feedback by their text; whether they were acknowledged."""


class Ledger:
    """Counts calls and records what was acknowledged."""

    def __init__(self) -> None:
        self.calls = 0
        self.acknowledged_writes = 0
        self.errors: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        """Outcomes that no fault excuses, by their text."""
        self.slow: list[tuple[float, float, str]] = []
        """The calls of over `SLOW_S`: when each began, how long it took, its method."""
        self.runs: dict[str, RunRecord] = {}
        self.shared_tokens: dict[str, Sum] = {thread: Sum() for thread in THREADS}
        self.metadata: dict[tuple[str, str], Written] = defaultdict(Written)
        self.events: dict[str, tuple[str, int]] = {}
        """Acknowledged events: text -> thread, number."""

    async def call(self, name: str, call: Awaitable[_Result]) -> tuple[bool, _Result | None]:
        """Whether the call was acknowledged, and what it returned."""
        began = time.monotonic()
        self.calls += 1
        try:
            return True, await call
        except StorageUnavailableError as error:
            self.errors[f"{type(error).__name__} ({type(error.__cause__).__name__}) of {name}"] += 1
        except Exception as error:  # noqa: BLE001 - it is reported with the figures
            self.wrong[f"{name}: {type(error).__name__}: {error}"] += 1
        finally:
            seconds = time.monotonic() - began
            if seconds > SLOW_S:
                self.slow.append((began, seconds, name))
        return False, None

    async def write(self, name: str, call: Awaitable[_Result]) -> tuple[bool, _Result | None]:
        stored, result = await self.call(name, call)
        self.acknowledged_writes += stored
        return stored, result

    async def set(self, name: str, call: Awaitable[object], written: Written, value: Any) -> None:
        """A write that sets the field to the value."""
        stored, _ = await self.write(name, call)
        if stored:
            written.acknowledged = value
        else:
            written.uncertain.add(value)

    async def add(self, name: str, call: Awaitable[object], total: Sum, amount: int) -> None:
        """A write that adds to the count."""
        stored, _ = await self.write(name, call)
        if stored:
            total.acknowledged += amount
        else:
            total.uncertain += amount

    def longest_call(self, since: float = 0.0, until: float = float("inf")) -> tuple[float, str]:
        """The longest call that was under way between these times, in seconds, and its method."""
        during = ((s, name) for began, s, name in self.slow if began < until and began + s > since)
        return max(during, default=(0.0, "none of over a moment"))


class Writer:
    """One task that writes runs, votes, comments, thread metadata and events, one call after the other."""

    def __init__(self, storage: MongoStorage, ledger: Ledger, name: str, thread_id: str) -> None:
        self._storage = storage
        self._ledger = ledger
        self._name = name
        self._thread = thread_id

    async def write_until(self, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            await self._run(f"{self._name}-{number}", number)
            await self._events(f"{self._name}-{number}", number)
            await self._deletions(f"{self._name}-{number}")
            number += 1
            await asyncio.sleep(_PACE_S)

    async def _run(self, run_id: str, number: int) -> None:
        storage, ledger, thread = self._storage, self._ledger, self._thread
        stored, _ = await ledger.write("runs.create", storage.runs.create(run_id, thread, user_id=USER))
        run = ledger.runs[run_id] = RunRecord(thread, is_certain=stored)
        if not stored:
            return
        for status in ("running", "success"):
            call = storage.runs.update_status(run_id, status, metadata={"n": number})
            await ledger.set("runs.update_status", call, run.status, status)
            usage = storage.runs.record_token_usage(run_id, caller="subagent", input_tokens=2)
            await ledger.add("runs.record_token_usage", usage, run.tokens, 2)
        _, row = await ledger.call("runs.get", storage.runs.get(run_id, user_id=USER))
        if row is not None and not run.status.admits(row["status"]):
            ledger.wrong["a run was read in a state older than its last acknowledged write"] += 1
        shared = storage.runs.record_token_usage(_shared(thread), caller="lead_agent", input_tokens=1)
        await ledger.add("runs.record_token_usage", shared, ledger.shared_tokens[thread], 1)
        merged = storage.threads.merge_thread_metadata(thread, {self._name: number})
        await ledger.set("threads.merge_thread_metadata", merged, ledger.metadata[thread, self._name], number)
        about: Any = {"run_id": run_id, "thread_id": thread, "user_id": USER}
        for rating in (-1, 1):
            vote = storage.feedback.upsert(**about, rating=rating)
            await ledger.set("feedback.upsert", vote, run.vote, rating)
        text = f"{run_id}-comment"
        comment = storage.feedback.create(**about, rating=1, message_id=text, comment=text)
        run.comments[text], _ = await ledger.write("feedback.create", comment)

    async def _events(self, run_id: str, number: int) -> None:
        """One event, a batch (of more than one unit now and then), and one that is put once.

        Every second time they have an `event_id`, and what failed is repeated until it is acknowledged.
        """
        store, has_ids = self._storage.run_events, number % 2 == 1
        size = 100 if number % 10 == 0 else 5
        events: list[Any] = [
            self._event(run_id, f"{run_id}/{position}", has_id=has_ids) for position in range(size + 1)
        ]

        async def put() -> list[RunEventRow]:
            return [await store.put(**events[0])]

        await self._write_events("run_events.put", put, events[:1], repeat=has_ids)
        await self._write_events(
            "run_events.put_batch", lambda: store.put_batch(events[1:]), events[1:], repeat=has_ids
        )
        once: Any = {**self._event(run_id, f"{run_id}/once"), "event_type": "once"}
        _, result = await self._ledger.write("run_events.put_if_absent", store.put_if_absent(**once))
        if result is not None:
            row, created = result
            self._record([once], [row])
            if not created:
                self._ledger.wrong["run_events.put_if_absent: its own event was taken for another's"] += 1

    async def _write_events(
        self,
        name: str,
        put: Callable[[], Awaitable[Sequence[RunEventRow]]],
        events: Sequence[Any],
        *,
        repeat: bool,
    ) -> None:
        for _ in range(_MAX_REPEATS if repeat else 1):
            stored, rows = await self._ledger.write(name, put())
            if stored and rows is not None:
                self._record(events, rows)
                return

    def _event(
        self, run_id: str, text: str, *, thread_id: str | None = None, has_id: bool = False
    ) -> dict[str, Any]:
        about = {"thread_id": thread_id or self._thread, "run_id": run_id}
        event = {**about, "event_type": "said", "category": "message", "content": text}
        return {**event, "event_id": text} if has_id else event

    def _record(self, events: Sequence[Any], rows: Sequence[RunEventRow]) -> None:
        for event, row in zip(events, rows, strict=True):
            if row["content"] != event["content"]:
                self._ledger.wrong["the row of an event has another's content"] += 1
            self._ledger.events[event["content"]] = (row["thread_id"], row["seq"])
        numbers = [row["seq"] for row in rows]
        if numbers != sorted(set(numbers)):
            self._ledger.wrong["the events of a batch are not in rising order"] += 1

    async def _deletions(self, run_id: str) -> None:
        """A run, a vote and three events that are deleted again, in a thread that nobody reads."""
        storage, ledger, thread = self._storage, self._ledger, f"deleted-{self._name}"
        about: Any = {"run_id": run_id, "thread_id": thread, "user_id": USER}
        events: list[Any] = [self._event(run_id, f"{run_id}/{n}", thread_id=thread) for n in range(3)]
        deleted_run = f"{run_id}-deleted"
        for name, make, delete, expected in (
            (
                "runs.delete",
                lambda: storage.runs.create(deleted_run, thread, user_id=USER),
                lambda: storage.runs.delete(deleted_run, user_id=USER),
                True,
            ),
            (
                "feedback.delete_by_run",
                lambda: storage.feedback.upsert(**about, rating=1),
                lambda: storage.feedback.delete_by_run(**about),
                True,
            ),
            (
                "run_events.delete_by_run",
                lambda: storage.run_events.put_batch(events),
                lambda: storage.run_events.delete_by_run(thread, run_id),
                3,
            ),
        ):
            made, _ = await ledger.write(f"what {name} deletes", make())
            if made:
                deleted, answer = await ledger.write(name, delete())
                if deleted and answer != expected:
                    ledger.wrong[f"{name} returned {answer!r} instead of {expected!r}"] += 1


class Reader:
    """Pages through a thread by `after_seq`, as a viewer does that must not miss an event."""

    def __init__(self, storage: MongoStorage, ledger: Ledger, thread_id: str) -> None:
        self._storage = storage
        self._ledger = ledger
        self.thread_id = thread_id
        self.after = 0
        self.seen: set[int] = set()

    async def read_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if not await self.read_page():
                await asyncio.sleep(_PACE_S)

    async def read_page(self) -> int:
        """The number of events read."""
        call = self._storage.run_events.list_messages(self.thread_id, limit=_PAGE, after_seq=self.after)
        _, rows = await self._ledger.call("run_events.list_messages", call)
        for row in rows or []:
            if row["seq"] <= self.after:
                self._ledger.wrong["a page of events is not in rising order"] += 1
            self.after = row["seq"]
            self.seen.add(row["seq"])
        return len(rows or [])


def _shared(thread_id: str) -> str:
    """The run of the thread whose tokens all writers count."""
    return f"shared-{thread_id}"


@dataclass
class Figures:
    """What a load found in the end; `broken` is empty where every promise held."""

    seconds: float
    calls: int
    acknowledged_writes: int
    events: int
    errors: Counter[str]
    longest_call: tuple[float, str]
    lost: list[str]
    doubled: list[str]
    inexact: list[str]
    readers_that_missed: int
    wrong: Counter[str]

    @property
    def broken(self) -> list[str]:
        """One line for each broken promise."""
        lines = [
            f"{title} ({len(found)}): {', '.join(found[:_MAX_SHOWN])}"
            for title, found in (
                ("acknowledged and lost", self.lost),
                ("stored twice", self.doubled),
                ("inexact", self.inexact),
            )
            if found
        ]
        if self.readers_that_missed:
            lines.append(f"readers that missed an event: {self.readers_that_missed}")
        return lines + [f"{count} times: {text}" for text, count in self.wrong.most_common(_MAX_SHOWN)]

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value, for a table."""
        yield "duration", f"{self.seconds:.0f} s"
        yield "calls", f"{self.calls:,}"
        yield "acknowledged writes", f"{self.acknowledged_writes:,}"
        yield "acknowledged events", f"{self.events:,}"
        yield "errors seen by callers", f"{self.errors.total():,}"
        for text, count in self.errors.most_common():
            yield f"  {text}", f"{count:,}"
        yield "longest pause", "{:.1f} s, in {}".format(*self.longest_call)
        yield "acknowledged and lost", f"{len(self.lost)}"
        yield "stored twice", f"{len(self.doubled)}"
        yield "sums and values that are not exact", f"{len(self.inexact)}"
        yield "readers that missed an event", f"{self.readers_that_missed}"
        yield "wrong answers", f"{self.wrong.total()}"


class Load:
    """The writers and readers on some storages, running from entering to `stop`."""

    def __init__(
        self,
        url: str,
        *,
        driver: str = "pymongo",
        database: str = "load",
        timeout_ms: int = 25_000,
        writers: int = WRITERS,
    ) -> None:
        """`writers` is of each client: the more there are, the more calls share commands."""
        self._writers = writers
        self._storages: list[MongoStorage] = []
        self._config = {"backend": "mongodb", "url": url, "driver": driver, "database": database}
        self._config |= {"timeout_ms": timeout_ms}
        self._closing = AsyncExitStack()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.readers: list[Reader] = []
        self._began = time.monotonic()
        self._seconds = 0.0
        self.ledger = Ledger()

    async def __aenter__(self) -> Self:
        storages = self._storages = [await self._open() for _ in range(CLIENTS)]
        for thread in THREADS:
            await storages[0].threads.ensure_thread(thread_id=thread, user_id=USER)
            await storages[0].runs.create(_shared(thread), thread, user_id=USER)
        for client, storage in enumerate(storages):
            for number in range(self._writers):
                thread = THREADS[number % len(THREADS)]
                writer = Writer(storage, self.ledger, f"writer-{client}-{number}", thread)
                self._tasks.append(asyncio.create_task(writer.write_until(self._stop)))
            for number in range(READERS):
                reader = Reader(storage, self.ledger, THREADS[number % len(THREADS)])
                self.readers.append(reader)
                self._tasks.append(asyncio.create_task(reader.read_until(self._stop)))
        return self

    async def _open(self) -> MongoStorage:
        storage = create_storage(self._config)
        assert isinstance(storage, MongoStorage)
        return await self._closing.enter_async_context(storage)

    async def __aexit__(self, *error: object) -> None:
        self._stop.set()  # a driver may swallow a cancellation
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._closing.aclose()

    def grouped_calls(self) -> dict[str, int]:
        """How many calls of the writers and readers have shared a command, by kind."""
        grouped: Counter[str] = Counter()
        for storage in self._storages:
            for kinds in storage.statistics().values():
                grouped.update({kind: counts["grouped"] for kind, counts in kinds.items()})
        return dict(grouped)

    async def until_written(self, writes: int, timeout_s: float = _END_TIMEOUT_S) -> None:
        """Return when so many more writes were acknowledged."""
        target, deadline = self.ledger.acknowledged_writes + writes, time.monotonic() + timeout_s
        while self.ledger.acknowledged_writes < target:
            for task in self._tasks:
                if task.done():
                    await task
            if time.monotonic() > deadline:
                raise AssertionError(f"no write was acknowledged for {timeout_s:.0f} s: {self.ledger.errors}")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Let the calls that are under way end, and begin no other."""
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), _END_TIMEOUT_S)
        self._seconds = time.monotonic() - self._began

    async def check(self) -> Figures:
        """Read everything back, once the load has stopped, and compare it with the ledger."""
        return await _Check(await self._open(), self.ledger, self.readers).figures(self._seconds)


class _Check:
    """Compares what is stored with a ledger."""

    def __init__(self, storage: MongoStorage, ledger: Ledger, readers: Sequence[Reader]) -> None:
        self._storage = storage
        self._ledger = ledger
        self._readers = readers
        self._lost: list[str] = []
        self._doubled: list[str] = []
        self._inexact: list[str] = []

    async def figures(self, seconds: float) -> Figures:
        missed = 0
        for thread in THREADS:
            await self._check_runs(thread)
            await self._check_feedback(thread)
            await self._check_thread(thread)
            missed += await self._check_events(thread)
        ledger = self._ledger
        return Figures(
            seconds=seconds,
            calls=ledger.calls,
            acknowledged_writes=ledger.acknowledged_writes,
            events=len(ledger.events),
            errors=ledger.errors,
            longest_call=ledger.longest_call(),
            lost=self._lost,
            doubled=self._doubled,
            inexact=self._inexact,
            readers_that_missed=missed,
            wrong=ledger.wrong,
        )

    def _runs_of(self, thread: str) -> dict[str, RunRecord]:
        return {run_id: run for run_id, run in self._ledger.runs.items() if run.thread_id == thread}

    async def _check_runs(self, thread: str) -> None:
        rows = await self._storage.runs.list_by_thread(thread, limit=_EVERYTHING, user_id=USER)
        found = {row["run_id"]: row for row in rows}
        for run_id, run in self._runs_of(thread).items():
            row = found.get(run_id)
            if row is None:
                self._lost += [f"run {run_id}"] * run.is_certain
                continue
            if not run.status.admits(row["status"]):
                self._inexact.append(f"run {run_id} is {row['status']}, not {run.status}")
            if not run.tokens.admits(row["total_tokens"]):
                self._inexact.append(f"run {run_id} has {row['total_tokens']} tokens, not {run.tokens}")
        shared, total = self._ledger.shared_tokens[thread], found[_shared(thread)]["total_tokens"]
        if not shared.admits(total):
            self._inexact.append(f"run {_shared(thread)} has {total} tokens, not {shared}")

    async def _check_feedback(self, thread: str) -> None:
        rows = await self._storage.feedback.list_by_thread(thread, limit=_EVERYTHING)
        votes = {row["run_id"]: row["rating"] for row in rows if row["message_id"] is None}
        counts = Counter((row["run_id"], row["comment"]) for row in rows)
        self._doubled += [f"feedback {key}" for key, count in counts.items() if count > 1]
        for run_id, run in self._runs_of(thread).items():
            vote = votes.get(run_id)
            if not run.vote.admits(vote):
                target = self._lost if vote is None else self._inexact
                target.append(f"vote on {run_id} is {vote}, not {run.vote}")
            self._lost += [
                f"feedback {text}"
                for text, stored in run.comments.items()
                if stored and not counts[run_id, text]
            ]

    async def _check_thread(self, thread: str) -> None:
        meta = await self._storage.threads.get_thread_meta(thread)
        assert meta is not None
        for (owner, key), written in self._ledger.metadata.items():
            if owner == thread and not written.admits(meta.metadata.get(key)):
                self._inexact.append(f"metadata {key} of {thread} is {meta.metadata.get(key)}, not {written}")

    async def _check_events(self, thread: str) -> int:
        """The number of readers that missed an event."""
        stored: dict[int, str] = {}
        while rows := await self._storage.run_events.list_thread_events(
            thread, after_seq=max(stored, default=0), limit=10_000
        ):
            stored |= {row["seq"]: str(row["content"]) for row in rows}
        counts = Counter(stored.values())
        self._doubled += [f"event {text}" for text, count in counts.items() if count > 1]
        self._lost += [
            f"event {text} ({seq} of {place})"
            for text, (place, seq) in self._ledger.events.items()
            if place == thread and stored.get(seq) != text
        ]
        missed = 0
        for reader in self._readers:
            if reader.thread_id == thread:
                while await reader.read_page():
                    pass
                missed += bool(stored.keys() - reader.seen)
        return missed
