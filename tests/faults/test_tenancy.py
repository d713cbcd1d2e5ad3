"""Whatever sequence of calls: no user sees, counts, changes or deletes a row that is not theirs.

The calls are random, by two users, by an actor without an id and by nobody. Everything stored is read without
a user after each write, and what a call gave and changed is compared with the owners of the rows.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from deerflow_mongo import (
    ActorMissingError,
    Storage,
    StorageError,
    ThreadAccessError,
    ThreadMeta,
    create_storage,
)
from deerflow_mongo.contract.actor import is_auto
from deerflow_mongo.contract.capabilities import Following
from deerflow_mongo.contract.methods import METHOD_KINDS, STORES, store_of
from deerflow_mongo.contract.regeneration import regenerated_run

from .emptied_database import Opener, emptied_database
from .random_calls import THREADS, USERS, Call, FeedbackId, calls, creations
from .settings import bounded, run_machine

_FOR_ONE_USER = (
    "feedback.upsert",
    "feedback.delete_by_run",
    "feedback.list_by_thread_grouped",
    "feedback.list_by_run_ids",
)
"""Here None is the one anonymous user, and not everybody."""

_PUTS = ("run_events.put", "run_events.put_if_absent", "run_events.put_batch")
_AUTO_BY_DEFAULT = (
    "runs.get",
    "runs.list_by_thread",
    "runs.create",
    "runs.delete",
    "runs.get_many_by_thread",
    "runs.list_successful_regenerate_sources",
    "runs.list_edit_regenerate_runs",
    "runs.token_usage_by_thread",
    "threads.get_thread",
    "threads.ensure_thread",
    "threads.search_threads",
)
_ANSWERS = ("llm.ai.response", "ai_message")
_MANY = 10_000

Key = tuple[str, str, int]
"""Kind, id, and of an event its number."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything in a storage, by key: the owner of a row, and the row."""

    rows: dict[Key, tuple[str | None, Any]]

    @classmethod
    async def of(cls, storage: Storage) -> Stored:
        rows: dict[Key, tuple[str | None, Any]] = {}
        threads = await storage.threads.search_threads(user_id=None, limit=_MANY)
        others = await asyncio.gather(*(_rows_of(storage, thread_id) for thread_id in THREADS))
        for thread in threads:
            rows["thread", thread.thread_id, 0] = thread.user_id, thread
        for runs, votes, events in others:
            rows |= {("run", run["run_id"], 0): (run["user_id"], run) for run in runs}
            rows |= {("feedback", vote["feedback_id"], 0): (vote["user_id"], vote) for vote in votes}
            for event in events:
                rows["event", event["thread_id"], event["seq"]] = event.get("user_id"), event
        return cls(rows)

    def of_kind(self, kind: str) -> list[tuple[str | None, Any]]:
        return [found for (of_kind, _, _), found in self.rows.items() if of_kind == kind]

    def changed_since(self, before: Stored) -> dict[Key, list[str | None]]:
        """The keys whose rows are new, gone or different, with the owners before and after."""
        return {
            key: [found[0] for found in (before.rows.get(key), self.rows.get(key)) if found is not None]
            for key in {*before.rows, *self.rows}
            if before.rows.get(key) != self.rows.get(key)
        }

    def is_open_to(self, call: Call, thread_id: str) -> bool:
        """Whether the call's actor may use the thread's events."""
        owner = self.rows.get(("thread", thread_id, 0), (None, None))[0]
        return not call.actor.is_bound or owner is None or owner == call.actor.user_id


async def _rows_of(storage: Storage, thread_id: str) -> tuple[Any, Any, Any]:
    return await asyncio.gather(
        storage.runs.list_by_thread(thread_id, user_id=None, limit=_MANY),
        storage.feedback.list_by_thread(thread_id, limit=_MANY),
        cast("Following", storage.run_events).list_thread_events(thread_id, limit=_MANY),
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    call: Call
    result: Any
    error: StorageError | None
    before: Stored
    after: Stored

    def check(self) -> None:
        if self.call.method in _PUTS:
            self._check_put()
            return
        user = self._named_user()
        if user is _NOBODY_BOUND:
            assert isinstance(self.error, ActorMissingError)
            assert not self.after.changed_since(self.before)
            return
        if store_of(self.call.method) == "run_events":
            self._check_thread_of_events()
        if user is not _EVERYBODY:
            self._check_rows(user)
            self._check_changes(user)
            self._check_counts(user)

    def _named_user(self) -> Any:
        """The user that the call acts for."""
        default = "auto" if self.call.method in _AUTO_BY_DEFAULT else None
        given = self.call.arguments.get("user_id", default)
        if given == "auto" or is_auto(given):
            return _NOBODY_BOUND if self.call.actor.user_id is None else self.call.actor.user_id
        if given is None and self.call.method == "feedback.create":
            given = self.call.arguments.get("owner_id")
        if given is None and self.call.method not in _FOR_ONE_USER:
            return _EVERYBODY
        return given

    def _check_rows(self, user: str | None) -> None:
        """Each row that the call gave is the user's."""
        for row in rows_in(self.result):
            owner = row.user_id if isinstance(row, ThreadMeta) else row.get("user_id")
            assert owner == user, f"{self.call} gives {row!r}"

    def _check_changes(self, user: str | None) -> None:
        new_owner = self._new_owner()
        for key, owners in self.after.changed_since(self.before).items():
            allowed = [user] if new_owner is None else [user, new_owner]
            assert set(owners) == {user} or owners == allowed, f"{self.call} changes {key}, of {owners}"
        if self.error is not None:
            others = [name for name in USERS if name != user and name != self.call.actor.user_id]
            assert not any(name in str(self.error) for name in others), str(self.error)

    def _new_owner(self) -> str | None:
        """To whom the call gives the user's thread."""
        if self.call.method != "threads.update_thread_meta":
            return None
        return cast("str | None", self.call.arguments.get("owner_id"))

    def _check_counts(self, user: str | None) -> None:
        """What is counted, summed or collected is the user's, all of it."""
        method = self.call.method
        if self.error is not None:
            return
        if method == "runs.list_successful_regenerate_sources":
            runs = self._runs_of_thread(user)
            sources = {regenerated_run(run["metadata"]) for run in runs if run["status"] == "success"}
            assert self.result == sources - {None}
        elif method == "run_events.get_last_visible_ai_seq_by_run":
            self._check_last_answers(user)
        else:
            self._check_numbers(user)

    def _check_last_answers(self, user: str | None) -> None:
        """Each run has the number of the last answer in an event that is the user's, or is left out."""
        given = self.call.arguments
        is_open = self.before.is_open_to(self.call, given["thread_id"])
        last: dict[str, int] = {}
        for owner, event in self.before.of_kind("event") if is_open else ():
            is_answer = event["event_type"] in _ANSWERS and event["category"] == "message"
            is_hidden = str(event["metadata"].get("caller")).startswith("middleware:")
            if owner == user and event["thread_id"] == given["thread_id"] and is_answer and not is_hidden:
                last[event["run_id"]] = max(event["seq"], last.get(event["run_id"], 0))
        assert self.result == {run_id: seq for run_id, seq in last.items() if run_id in given["run_ids"]}

    def _runs_of_thread(self, user: str | None) -> list[Any]:
        """The user's runs of the thread of the call."""
        thread_id = self.call.arguments["thread_id"]
        runs = self.before.of_kind("run")
        return [run for owner, run in runs if owner == user and run["thread_id"] == thread_id]

    def _check_numbers(self, user: str | None) -> None:
        given, method = self.call.arguments, self.call.method
        if method == "runs.token_usage_by_thread":
            wanted = given.get("statuses")
            of_thread = self._runs_of_thread(user)
            runs = [run for run in of_thread if wanted is None or run["status"] in wanted]
            assert self.result["total_runs"] == len(runs)
            assert self.result["total_tokens"] == sum(run["total_tokens"] for run in runs)
        elif method in (
            "run_events.count_messages",
            "run_events.delete_by_thread",
            "run_events.delete_by_run",
        ):
            events = [
                event
                for owner, event in self.before.of_kind("event")
                if owner == user
                and event["thread_id"] == given["thread_id"]
                and event["run_id"] == given.get("run_id", event["run_id"])
                and (event["category"] == "message" or "delete" in method)
            ]
            is_open = self.before.is_open_to(self.call, given["thread_id"])
            assert self.result == (len(events) if is_open else 0)

    def _check_thread_of_events(self) -> None:
        """Of another user's thread nothing is read, counted or deleted."""
        thread_id = self.call.arguments["thread_id"]
        if not self.before.is_open_to(self.call, thread_id):
            assert self.error is None
            assert self.result in (0, [], {})
            assert not self.after.changed_since(self.before)

    def _check_put(self) -> None:
        """Nothing that was stored is changed; a batch with a thread of another user's is refused whole."""
        given = self.call.arguments
        thread_ids = [event["thread_id"] for event in given.get("events", [given])]
        changed = self.after.changed_since(self.before)
        if not all(self.before.is_open_to(self.call, thread_id) for thread_id in thread_ids):
            assert isinstance(self.error, ThreadAccessError), f"{self.call} gives {self.result}"
            assert not changed
            return
        assert self.error is None, repr(self.error)
        assert all(kind == "event" and name in thread_ids for kind, name, _ in changed)
        assert not set(changed) & set(self.before.rows)


class _Everybody:
    """No user is named: trusted code, which sees all rows."""


_EVERYBODY, _NOBODY_BOUND = _Everybody(), object()


def rows_in(result: Any) -> Iterator[Any]:
    if isinstance(result, ThreadMeta):
        yield result
    elif isinstance(result, list | tuple):
        for item in cast("list[Any]", result):
            yield from rows_in(item)
    elif isinstance(result, dict):
        row = cast("dict[str, Any]", result)
        if "thread_id" in row:
            yield row
        else:
            for item in row.values():
                yield from rows_in(item)


class TenancyMachine(RuleBasedStateMachine):
    openers: ClassVar[list[Opener]]
    """One."""
    runner: ClassVar[asyncio.Runner]
    calls: ClassVar[Iterator[int]]

    def __init__(self) -> None:
        super().__init__()
        self.storage = self.openers[0]()
        self.stored = self.runner.run(Stored.of(self.storage))

    def make(self, call: Call) -> None:
        next(self.calls)
        self.runner.run(self._make(call))

    async def _make(self, call: Call) -> None:
        known = sorted(name for kind, name, _ in self.stored.rows if kind == "feedback")
        ids = {
            name: known[value.number] if value.number < len(known) else "unknown"
            for name, value in call.arguments.items()
            if isinstance(value, FeedbackId)
        }
        call, before = call.with_arguments(**ids), self.stored
        result, error = None, None
        try:
            result = await call.on(self.storage)
        except StorageError as raised:
            error = raised
        if METHOD_KINDS[call.method] == "write":
            self.stored = await Stored.of(self.storage)
        Outcome(call, result, error, before, self.stored).check()

    def teardown(self) -> None:
        """What only reads has changed nothing either: `stored` is the state after the last write."""
        unchanged = self.runner.run(Stored.of(self.storage)) == self.stored
        self.runner.run(self.storage.aclose())
        assert unchanged


def _rule_for(store: str) -> Any:
    def make(self: TenancyMachine, call: Call) -> None:
        self.make(call)

    make.__name__ = store
    return rule(call=calls(store, with_refused=False))(make)


def _first_rule() -> Any:
    def fill(self: TenancyMachine, calls: list[Call]) -> None:
        for call in calls:
            self.make(call)

    return initialize(calls=creations(*STORES))(fill)


@pytest.fixture(params=["mongodb", "memory"])
def open_storage(
    request: pytest.FixtureRequest, mongodb_url: str, runner: asyncio.Runner
) -> Iterator[Opener]:
    if request.param == "memory":
        yield lambda: create_storage({"backend": "memory"})
        return
    with emptied_database(mongodb_url, runner) as opener:
        yield opener


def test_no_user_reaches_a_row_of_another(open_storage: Opener, runner: asyncio.Runner) -> None:
    rules = {"fill": _first_rule()} | {store: _rule_for(store) for store in STORES}
    fields = {"openers": [open_storage], "runner": runner, "calls": itertools.count()}
    machine = type("Tenancy", (TenancyMachine,), {**rules, **fields})
    run_machine(machine, bounded(examples=20, steps=30))
    print(f"\n{next(machine.calls):,} calls of {len(METHOD_KINDS)} methods")  # noqa: T201
