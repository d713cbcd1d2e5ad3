"""Calls that are cancelled at random moments, under load: afterwards nothing is broken or missing.

What one cancelled call of each driver leaves behind is checked in `tests/mongodb/drivers/cancellation.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pymongo
import pytest

from deerflow_mongo import MongoStorage, ThreadMetaCreate
from deerflow_mongo.testing.contract import ALICE, acting_as

from ..long_form import LONG_FORM

SEED = random.SystemRandom().randrange(2**32) if LONG_FORM else 13
CALLS = 4_000 if LONG_FORM else 800
CALLERS = 24
LONGEST_DELAY_S = 0.006
"""A call takes about a millisecond alone and several under this load."""
CANCELLED_SHARE = 0.75
END_TIMEOUT_S = 20.0
"""In which a cancelled call has ended; far less on an idle machine."""

RUN, THREAD, SPARE = "run", "thread", "spare"

Raw = pymongo.MongoClient[dict[str, Any]]


@dataclass(slots=True)
class Ledger:
    """What was acknowledged and what was cancelled, by operation: the names that each call had."""

    acknowledged: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    cancelled: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    slowest_end_s: float = 0.0

    def enter(self, operation: str, name: str, *, is_cancelled: bool) -> None:
        book = self.cancelled if is_cancelled else self.acknowledged
        book.setdefault(operation, []).append(name)

    def check(self, operation: str, found: list[str]) -> None:
        """All of the acknowledged names are there, once, and of the others only cancelled ones."""
        count = Counter(found)
        acknowledged = set(self.acknowledged.get(operation, ()))
        assert max(count.values(), default=1) == 1, f"{operation}: stored twice"
        assert not acknowledged - count.keys(), f"{operation}: acknowledged and not stored"
        assert count.keys() <= acknowledged | set(self.cancelled.get(operation, ())), operation

    def check_sum(self, operation: str, found: int) -> None:
        acknowledged = len(self.acknowledged.get(operation, ()))
        assert acknowledged <= found <= acknowledged + len(self.cancelled.get(operation, ())), operation

    def __str__(self) -> str:
        acknowledged, cancelled = (
            sum(map(len, book.values())) for book in (self.acknowledged, self.cancelled)
        )
        return (
            f"seed {SEED}: {acknowledged + cancelled:,} calls, {cancelled:,} of them cancelled; "
            f"the slowest ended {self.slowest_end_s * 1_000:,.0f} ms after its cancellation"
        )


def _event(name: str, thread_id: str = THREAD, **fields: Any) -> Any:
    return {"thread_id": thread_id, "run_id": RUN, "event_type": "said", "category": "message"} | {
        "content": name,
        **fields,
    }


def _batch(name: str, thread_id: str = THREAD) -> list[Any]:
    """Of one to five events; the size follows from the name."""
    return [_event(name, thread_id)] * (1 + hash_of(name) % 5)


def hash_of(name: str) -> int:
    return int(name.rpartition("-")[2])


async def _follow(storage: MongoStorage, _: str) -> None:
    following = storage.run_events.follow(SPARE, after_seq=10**9)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(anext(following), 0.02)
    await following.aclose()


OPERATIONS: dict[str, Callable[[MongoStorage, str], Awaitable[Any]]] = {
    "create a run": lambda s, name: s.runs.create(name, THREAD, user_id=ALICE),
    "count tokens": lambda s, _: s.runs.record_token_usage(RUN, caller="subagent", input_tokens=1),
    "merge run metadata": lambda s, name: s.runs.update_status(RUN, "running", metadata={name: 1}),
    "vote": lambda s, name: s.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=name),
    "comment": lambda s, name: s.feedback.create(
        run_id=RUN, thread_id=THREAD, rating=-1, message_id=name, comment=name
    ),
    "create a thread": lambda s, name: s.threads.create_thread_meta(ThreadMetaCreate(thread_id=name)),
    "ensure a thread": lambda s, name: s.threads.ensure_thread(thread_id=name),
    "merge thread metadata": lambda s, name: s.threads.merge_thread_metadata(THREAD, {name: 1}),
    "put a batch": lambda s, name: s.run_events.put_batch(_batch(name)),
    "put one": lambda s, name: s.run_events.put(**_event(name)),
    "put once": lambda s, name: s.run_events.put_if_absent(**_event(name, event_type=name)),
    "put in two threads": lambda s, name: s.run_events.put_batch([_event(name), _event(name, SPARE)]),
    "delete events": lambda s, _: s.run_events.delete_by_run(SPARE, RUN),
    "get": lambda s, _: s.runs.get(RUN),
    "list runs": lambda s, _: s.runs.list_by_thread(THREAD, limit=20),
    "sum tokens": lambda s, _: s.runs.token_usage_by_thread(THREAD),
    "search": lambda s, _: s.threads.search_threads(metadata={"k": 1}, limit=5),
    "page": lambda s, _: s.run_events.list_messages(THREAD, limit=20),
    "count": lambda s, _: s.run_events.count_messages(THREAD),
    "follow": _follow,
    "flush": lambda s, _: s.run_events.flush(),
    "ping": lambda s, _: s.ping(),
}

GROUPED = {
    name: OPERATIONS[name]
    for name in (
        "create a run",
        "count tokens",
        "merge run metadata",
        "vote",
        "comment",
        "create a thread",
        "ensure a thread",
        "merge thread metadata",
        "get",
        "list runs",
    )
}
"""What shares commands."""
CANCELLED_IN_GROUPS = 4_000
GROUPED_CALLS, GROUPED_CALLERS = 6_000, 200
"""More callers than calls that may be in flight, so that most calls wait when they are cancelled."""


@dataclass(frozen=True)
class Work:
    operations: Mapping[str, Callable[[MongoStorage, str], Awaitable[Any]]]
    calls: int
    callers: int


ALL, IN_GROUPS = Work(OPERATIONS, CALLS, CALLERS), Work(GROUPED, GROUPED_CALLS, GROUPED_CALLERS)


async def _call(storage: MongoStorage, ledger: Ledger, chance: random.Random, work: Work, name: str) -> None:
    """One call, cancelled at some moment or not at all."""
    operation = chance.choice(list(work.operations))
    with acting_as(ALICE):
        task = asyncio.ensure_future(work.operations[operation](storage, name))
    if chance.random() < CANCELLED_SHARE:
        await asyncio.sleep(chance.uniform(0, LONGEST_DELAY_S))
        task.cancel()
    began = time.monotonic()
    done, _ = await asyncio.wait({task}, timeout=END_TIMEOUT_S)
    assert done, f"{operation!r} did not end after its cancellation"
    if task.cancelled():
        ledger.slowest_end_s = max(ledger.slowest_end_s, time.monotonic() - began)
    else:
        task.result()
    ledger.enter(operation, name, is_cancelled=task.cancelled())


async def _load(storage: MongoStorage, ledger: Ledger, work: Work) -> None:
    async def caller(number: int) -> None:
        chance = random.Random(f"{SEED} {number}")  # noqa: S311 - the load of a test
        for position in range(work.calls // work.callers + 1):
            await _call(storage, ledger, chance, work, f"{number}-{position}")

    async with asyncio.TaskGroup() as group:
        for number in range(work.callers):
            group.create_task(caller(number))


async def _check_everything(storage: MongoStorage, ledger: Ledger) -> None:
    run = await storage.runs.get(RUN, user_id=None)
    thread = await storage.threads.get_thread_meta(THREAD)
    assert run is not None
    assert thread is not None
    many = 10 * max(CALLS, GROUPED_CALLS)
    runs = await storage.runs.list_by_thread(THREAD, user_id=None, limit=many)
    feedback = await storage.feedback.list_by_thread(THREAD, limit=many)
    threads = [found.thread_id for found in await storage.threads.search_threads(user_id=None, limit=many)]
    ledger.check("create a run", [row["run_id"] for row in runs if row["run_id"] != RUN])
    ledger.check_sum("count tokens", run["total_input_tokens"])
    assert run["llm_call_count"] == run["subagent_tokens"] == run["total_input_tokens"]
    ledger.check("merge run metadata", list(run["metadata"]))
    ledger.check("vote", [str(row["user_id"]) for row in feedback if row["message_id"] is None])
    ledger.check("comment", [str(row["comment"]) for row in feedback if row["message_id"] is not None])
    for operation in ("create a thread", "ensure a thread"):
        known = {*ledger.acknowledged.get(operation, ()), *ledger.cancelled.get(operation, ())}
        ledger.check(operation, [name for name in threads if name in known])
    ledger.check("merge thread metadata", list(thread.metadata))
    await _check_events(storage, ledger, many)


async def _check_events(storage: MongoStorage, ledger: Ledger, many: int) -> None:
    """No number is missing; a batch is stored whole, its events side by side, once or not at all."""
    rows = await storage.run_events.list_thread_events(THREAD, limit=many)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    names = [str(row["content"]) for row in rows]
    sizes = Counter(names)
    starts = [name for before, name in zip([None, *names], names, strict=False) if name != before]
    for operation in ("put a batch", "put one", "put once", "put in two threads"):
        known = {*ledger.acknowledged.get(operation, ()), *ledger.cancelled.get(operation, ())}
        ledger.check(operation, [name for name in starts if name in known])
        size: Callable[[str], int] = (lambda name: len(_batch(name))) if "batch" in operation else lambda _: 1
        assert all(sizes[name] == size(name) for name in known if name in sizes), operation


@pytest.fixture
def reported() -> Iterator[list[str]]:
    """What the event loop and the package report at ERROR, such as a task's error that nobody retrieved."""
    texts: list[str] = []

    class Reports(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler = Reports(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("asyncio", "deerflow_mongo")]
    for logger in loggers:
        logger.addHandler(handler)
    yield texts
    for logger in loggers:
        logger.removeHandler(handler)


def _connections(raw: Raw, application: str) -> int:
    """How many connections of this application the server has."""
    stages = [
        {"$currentOp": {"allUsers": True, "idleConnections": True}},
        {"$match": {"appName": application}},
    ]
    return len(list(raw.admin.aggregate(stages)))


def _check_grouped(storage: MongoStorage, ledger: Ledger) -> None:
    """Most calls have waited, and as many as are promised were cancelled."""
    cancelled = sum(map(len, ledger.cancelled.values()))
    counts = [kind for kinds in storage.statistics().values() for kind in kinds.values()]
    print(f"\n{sum(kind['grouped'] for kind in counts):,} calls in groups")  # noqa: T201
    assert cancelled >= CANCELLED_IN_GROUPS
    assert sum(kind["grouped"] for kind in counts) > GROUPED_CALLS / 10


def _blocked_lanes(storage: MongoStorage) -> list[str]:
    """The kinds of groups that believe that a command is in flight, or have calls that wait."""
    driver: Any = storage.driver
    return [
        f"{collection.name}: {lane.name}"
        for collection in driver._collections
        for lane in collection._lanes
        if lane._in_flight or lane._waiting or lane._groups
    ]


@pytest.mark.parametrize(
    ("driver", "work"),
    [("pymongo", ALL), ("motor", ALL), ("pymongo", IN_GROUPS)],
    ids=["pymongo", "motor", "pymongo, in groups"],
)
async def test_cancelled_calls_leave_nothing_broken(
    driver: str, work: Work, mongodb_url: str, raw_client: Raw, database_name: str, reported: list[str]
) -> None:
    application = f"cancelled-{uuid.uuid4().hex[:12]}"
    url = f"{mongodb_url}&appName={application}&maxPoolSize=20"
    storage = MongoStorage.open({"url": url, "database": database_name, "driver": driver})
    ledger, tasks = Ledger(), asyncio.all_tasks()
    async with storage:
        await storage.runs.create(RUN, THREAD, user_id=ALICE)
        await storage.threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        await _load(storage, ledger, work)
        await asyncio.wait_for(storage.run_events.flush(), END_TIMEOUT_S)
        assert storage.run_events.backlog == 0
        # A cancelled write may still be on its way to the server, on a connection that nobody reads.
        await asyncio.sleep(0.2)
        opened = _connections(raw_client, application)
        await _check_everything(storage, ledger)
        assert _blocked_lanes(storage) == []
        if work is IN_GROUPS:
            _check_grouped(storage, ledger)
        for operation, make in OPERATIONS.items():
            with acting_as(ALICE):
                await asyncio.wait_for(make(storage, f"{operation}-1"), END_TIMEOUT_S)
        began = time.monotonic()
    closed_s = time.monotonic() - began
    gc.collect()
    await asyncio.sleep(0)
    print(f"\n{driver}: {ledger}; {opened} connections; closed in {closed_s * 1_000:,.0f} ms")  # noqa: T201
    assert reported == []
    assert opened <= 30, "beyond the pool's 20, those that monitor and follow"
    assert asyncio.all_tasks() == tasks
