"""Random calls of three users at once give what the same calls, one after the other, give on `memory`.

Each user has several tasks, each with rows of its own, so that the order between tasks changes no answer.
Among their calls are such with ids of another user's rows, which find and change nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from deerflow_mongo import MongoStorage, Storage, StorageError, ThreadMeta, create_storage
from deerflow_mongo.contract import times
from deerflow_mongo.contract.actor import is_auto
from deerflow_mongo.contract.methods import METHOD_KINDS

from ..mongodb.drivers.forced_groups import forced_groups
from .emptied_database import Opener
from .random_calls import Actor, Call, FeedbackId, calls_of
from .settings import bounded, run_machine
from .test_tenancy import rows_in
from .twins import FIRST_STAMP_US, STEP_US, is_same

USERS = ("alice", "bob", "carol")
TASKS = 3
"""Of each user."""
MOST_CALLS = 3
"""Of a task, one after the other, in one batch."""

OF_EVERYBODY = ("runs.list_pending", "threads.search_threads")
"""What sees the rows of other tasks is called between two batches."""
METHODS = [method for method in METHOD_KINDS if method not in OF_EVERYBODY]

READS = ("runs.get", "runs.list_by_thread", "feedback.get", "threads.get_thread")
OF_ANOTHER = (
    *READS,
    *READS,
    "runs.create",
    "runs.delete",
    "runs.token_usage_by_thread",
    "feedback.delete",
    "feedback.list_by_run",
    "threads.update_thread_meta",
    "threads.merge_thread_metadata",
    "threads.ensure_thread",
    "threads.delete_thread",
    "run_events.list_messages",
    "run_events.put",
)
"""Methods that ask who the row's owner is: they may be called with the id of another user's row."""

_stamp: ContextVar[int] = ContextVar("stamp", default=FIRST_STAMP_US)
"""The time of the current call, in both storages."""


@dataclass(slots=True)
class Task:
    """A user's calls one after the other; the ids of feedback that each storage gave it."""

    user: str
    number: int
    feedback_ids: list[list[str]] = field(default_factory=lambda: [[], []])

    def own(self, call: Call) -> Call:
        """The call with this task's ids, by its user."""
        changed = {name: self._own(name, value) for name, value in call.arguments.items()}
        changed.pop("owner_id", None)
        arguments = {name: value for name, value in changed.items() if name in call.arguments}
        return Call(call.method, arguments, Actor(self.user))

    def _own(self, name: str, value: Any) -> Any:
        if name in ("run_id", "thread_id"):
            return f"{self.user}-{self.number}-{value}"
        if name == "run_ids":
            return [f"{self.user}-{self.number}-{run_id}" for run_id in value]
        if name == "user_id":
            return value if value is None or is_auto(value) else self.user
        if name == "events":
            return [{key: self._own(key, item) for key, item in event.items()} for event in value]
        return value

    def on_base_of(self, owner: str, call: Call, feedback_id: str) -> Call:
        """The call with the ids of rows that stay as they are, for this task's user."""
        named = {"run_id": base(owner), "thread_id": base(owner), "feedback_id": feedback_id}
        changed = {name: value for name, value in named.items() if name in call.arguments}
        return Call(
            call.method, {**self.own(call).arguments, **changed, "user_id": self.user}, Actor(self.user)
        )

    async def run(
        self, side: int, storage: Storage, calls: Sequence[tuple[int, Call]]
    ) -> list[tuple[str, Any]]:
        """What each call gave."""
        outcomes: list[tuple[str, Any]] = []
        for stamp_us, call in calls:
            _stamp.set(stamp_us)
            try:
                result = await call.with_arguments(**self._given_ids(side, call.arguments)).on(storage)
            except StorageError as error:
                outcomes.append(("error", error))
            else:
                self._check_owner(call, result)
                outcomes.append(("result", self._common(side, result)))
        return outcomes

    def _check_owner(self, call: Call, result: Any) -> None:
        for row in rows_in(result):
            owner = row.user_id if isinstance(row, ThreadMeta) else row.get("user_id")
            assert owner in (self.user, None, ""), f"{call} gives {row!r}"

    def _given_ids(self, side: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
        ids = self.feedback_ids[side]
        return {
            name: ids[value.number] if value.number < len(ids) else "unknown"
            for name, value in arguments.items()
            if isinstance(value, FeedbackId)
        }

    def _common(self, side: int, value: Any) -> Any:
        """With each id of feedback as its place in the order of appearance."""
        if isinstance(value, list):
            items = cast("list[Any]", value)
            return [self._common(side, item) for item in items]
        if not isinstance(value, dict):
            return value
        row = cast("dict[str, Any]", value)
        if "feedback_id" not in row or "rating" not in row:
            return {name: self._common(side, item) for name, item in row.items()}
        ids = self.feedback_ids[side]
        if row["thread_id"] in map(base, USERS):
            return {**row, "feedback_id": "that of the base"}
        if row["feedback_id"] not in ids:
            ids.append(row["feedback_id"])
        return {**row, "feedback_id": ids.index(row["feedback_id"])}


def base(user: str) -> str:
    """The id of a user's thread and run that stay as they are."""
    return f"base of {user}"


class ConcurrentMachine(RuleBasedStateMachine):
    openers: ClassVar[list[Opener]]
    """One."""
    runner: ClassVar[asyncio.Runner]
    calls: ClassVar[Iterator[int]]
    groups: ClassVar[list[int]]

    def __init__(self) -> None:
        super().__init__()
        self._sides = (self.openers[0](), create_storage({"backend": "memory"}))
        self._stamp_us = FIRST_STAMP_US
        self._tasks = [Task(user, number) for user in USERS for number in range(TASKS)]
        self._bases = [self.runner.run(_fill(storage)) for storage in self._sides]

    @rule(data=st.data())
    def make(self, data: st.DataObject) -> None:
        batch = [self._draw(data, task) for task in self._tasks]
        self.runner.run(self._compare(batch))

    def _draw(self, data: st.DataObject, task: Task) -> list[list[tuple[int, Call]]]:
        """For both sides, each call with its time."""
        sides: list[list[tuple[int, Call]]] = [[], []]
        for _ in range(data.draw(st.integers(1, MOST_CALLS))):
            self._stamp_us += STEP_US
            if data.draw(st.booleans()):
                owner = data.draw(st.sampled_from(USERS))
                methods = READS if owner == task.user else OF_ANOTHER
                drawn = data.draw(calls_of(data.draw(st.sampled_from(methods)), with_refused=False))
                calls = [task.on_base_of(owner, drawn, ids[owner]) for ids in self._bases]
            else:
                drawn = data.draw(calls_of(data.draw(st.sampled_from(METHODS)), with_refused=False))
                calls = [task.own(drawn)] * 2
            for side, call in zip(sides, calls, strict=True):
                side.append((self._stamp_us, call))
            next(self.calls)
        return sides

    async def _compare(self, batch: Sequence[list[list[tuple[int, Call]]]]) -> None:
        tested, model = self._sides
        found = await asyncio.gather(
            *(
                asyncio.create_task(task.run(0, tested, calls[0]))
                for task, calls in zip(self._tasks, batch, strict=True)
            )
        )
        for task, calls, outcomes in zip(self._tasks, batch, found, strict=True):
            wanted = await task.run(1, model, calls[1])
            for (_, call), one, other in zip(calls[0], outcomes, wanted, strict=True):
                assert is_same(one, other), f"{call}\n  gives   {one!r}\n  model   {other!r}"
        await self._compare_what_users_see()

    async def _compare_what_users_see(self) -> None:
        for user in (*USERS, None):
            call = Call("threads.search_threads", {"user_id": user, "limit": 1_000}, Actor(is_bound=False))
            found, wanted = [("result", await call.on(storage)) for storage in self._sides]
            assert is_same(found, wanted), f"{call}\n  gives   {found!r}\n  model   {wanted!r}"

    def teardown(self) -> None:
        tested = self._sides[0]
        assert isinstance(tested, MongoStorage)
        counts = [kind for kinds in tested.statistics().values() for kind in kinds.values()]
        self.groups.append(sum(kind["groups"] for kind in counts))
        for storage, ids in zip(self._sides, self._bases, strict=True):
            self.runner.run(_check_bases(storage, ids))
            self.runner.run(storage.aclose())


async def _fill(storage: Storage) -> dict[str, str]:
    """Each user's thread and run that stay, and the id of the user's feedback."""
    ids: dict[str, str] = {}
    for number, user in enumerate(USERS):
        _stamp.set(FIRST_STAMP_US - STEP_US * (number + 1))
        await storage.threads.ensure_thread(thread_id=base(user), user_id=user)
        await storage.runs.create(base(user), base(user), user_id=user)
        about: Any = {"run_id": base(user), "thread_id": base(user), "user_id": user}
        ids[user] = (await storage.feedback.create(**about, rating=1))["feedback_id"]
    return ids


async def _check_bases(storage: Storage, ids: Mapping[str, str]) -> None:
    """Nobody else's call has changed them."""
    for user in USERS:
        thread = await storage.threads.get_thread(base(user), user_id=user)
        run = await storage.runs.get(base(user), user_id=user)
        vote = await storage.feedback.get(ids[user], user_id=user)
        assert thread is not None
        assert run is not None
        assert vote is not None
        assert (thread.status, dict(thread.metadata), thread.display_name) == ("idle", {}, None)
        assert (run["status"], run["metadata"], run["total_tokens"]) == ("pending", {}, 0)


@pytest.fixture
def runner(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> asyncio.Runner:
    """The clock of a task has the stamp of the call that it makes."""
    monkeypatch.setattr(times.clock, "stamp_us", _stamp.get)
    return runner


@pytest.mark.parametrize("is_forced", [True, False], ids=["groups forced", "as usual"])
def test_users_at_once_get_what_each_alone_gets(
    is_forced: bool, open_storage: Opener, runner: asyncio.Runner
) -> None:
    groups: list[int] = []
    fields = {"openers": [open_storage], "runner": runner, "calls": itertools.count(), "groups": groups}
    machine = type("Concurrent", (ConcurrentMachine,), fields)
    with forced_groups() if is_forced else nullcontext():
        run_machine(machine, bounded(examples=6, steps=10))
    assert sum(groups) > 0
    print(f"\n{next(machine.calls):,} calls, {sum(groups):,} groups")  # noqa: T201
