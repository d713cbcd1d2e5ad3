"""Groups whose reply or request is lost: what each caller hears; every effect is there exactly once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from deerflow_mongo import MongoStorage, RunExistsError, StorageUnavailableError, ThreadMetaCreate

from ..busy_machine import until_answered
from ..mongodb.drivers.forced_groups import forced_groups
from .proxy import FaultProxy, Harm

ALICE = "alice"
VOTERS = (ALICE, "bob", "frank")
TIMEOUT_MS = 1_500
"""Where the reply never comes."""
SLACK_S = 30.0

Contents = dict[str, Any]


class World:
    """What the calls of a group find, and what there is of it afterwards; in a database of many of them."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex[:8]

    def id(self, name: str) -> str:
        return f"{name}-{self.name}"

    async def fill(self, storage: MongoStorage) -> None:
        thread = self.id("thread")
        await storage.threads.create_thread_meta(ThreadMetaCreate(thread_id=thread, user_id=ALICE))
        for run in ("one", "two", "ended"):
            status = "success" if run == "ended" else "running"
            await storage.runs.create(self.id(run), thread, user_id=ALICE, status=status)
        for user in VOTERS:
            await storage.feedback.upsert(run_id="r", thread_id=thread, rating=1, user_id=user)

    async def contents(self, storage: MongoStorage) -> Contents:
        thread = self.id("thread")
        runs = await storage.runs.list_by_thread(thread, user_id=None)
        votes = await storage.feedback.list_by_thread(thread)
        meta = await storage.threads.get_thread_meta(thread)
        assert meta is not None
        return {
            "runs": sorted(
                (
                    row["run_id"],
                    row["status"],
                    row["total_tokens"],
                    row["llm_call_count"],
                    str(row["metadata"]),
                )
                for row in runs
            ),
            "votes": sorted((str(row["user_id"]), row["rating"]) for row in votes),
            "thread": (meta.status, dict(meta.metadata)),
        }


@dataclass(frozen=True)
class Group:
    """Calls that go together, what they answer, and their command that is harmed."""

    command: str
    calls: Callable[[MongoStorage, World], Sequence[Awaitable[Any]]]
    answers: Sequence[Any]
    """The type of an error, or the answer; `...` is any row."""
    collection: str = "runs"


def _creates(s: MongoStorage, w: World) -> list[Awaitable[Any]]:
    names = ["new-1", "one", "new-2", "new-3", "new-1"]
    return [s.runs.create(w.id(name), w.id("thread"), user_id=ALICE) for name in names]


def _updates(s: MongoStorage, w: World) -> list[Awaitable[Any]]:
    runs = s.runs
    counted: list[Awaitable[Any]] = [
        runs.record_token_usage(w.id(run), caller="subagent", input_tokens=tokens)
        for run, tokens in (("one", 1), ("one", 10), ("two", 100), ("one", 1_000), ("missing", 5))
    ]
    return [
        *counted,
        runs.update_status(w.id("two"), "success", metadata={"a": 1}),
        runs.update_status(w.id("ended"), "error", from_statuses=["running"]),
        runs.update_status(w.id("missing"), "success"),
    ]


def _votes(*users: str) -> Callable[[MongoStorage, World], Sequence[Awaitable[Any]]]:
    def make(s: MongoStorage, w: World) -> Sequence[Awaitable[Any]]:
        thread = w.id("thread")
        return [s.feedback.upsert(run_id="r", thread_id=thread, rating=-1, user_id=user) for user in users]

    return make


def _reads(s: MongoStorage, w: World) -> list[Awaitable[Any]]:
    wanted = (("one", ALICE), ("one", "bob"), ("two", None), ("missing", None))
    return [s.runs.get(w.id(run), user_id=user) for run, user in wanted]


def _lists(s: MongoStorage, w: World) -> list[Awaitable[Any]]:
    return [s.runs.list_by_thread(w.id("thread"), limit=5, user_id=user) for user in (ALICE, "bob", None)]


def _totals(s: MongoStorage, w: World) -> list[Awaitable[Any]]:
    return [s.feedback.aggregate_by_run(w.id("thread"), run) for run in ("r", "none", "r")]


GROUPS: dict[str, Group] = {
    "insert": Group("insert", _creates, [None, RunExistsError, None, None, RunExistsError]),
    "update": Group("update", _updates, [None] * 5 + [True, False, False]),
    "upsert, new": Group("insert", _votes("carol", "dave", "erin"), [...] * 3, "feedback"),
    "upsert, existing": Group("update", _votes(*VOTERS), [...] * 3, "feedback"),
    "find": Group("find", _reads, [..., None, ..., None]),
    "list": Group("aggregate", _lists, [..., ..., ...]),
    "aggregate": Group("aggregate", _totals, [..., ..., ...], "feedback"),
}

HARMS: dict[str, tuple[Harm, int]] = {
    "reply lost": ("cut_after", 1),
    "request lost": ("cut_before", 1),
    "replies lost twice": ("cut_after", 2),
    "reply never comes": ("drop_reply", 1),
}


@pytest.fixture(scope="module")
def config(mongodb_url: str, raw_client: Any) -> Iterator[dict[str, Any]]:
    """A database that is set up; each test has a world of its own in it."""
    config = {"url": mongodb_url, "database": f"test_{uuid.uuid4().hex[:12]}"}

    async def set_up() -> None:
        async with MongoStorage.open(config):
            pass

    asyncio.run(set_up())
    yield config
    raw_client.drop_database(config["database"])


@asynccontextmanager
async def _storages(
    config: dict[str, Any], url: str, timeout_ms: int
) -> AsyncGenerator[tuple[MongoStorage, MongoStorage]]:
    direct = {key: value for key, value in config.items() if key != "driver"}
    harmed = MongoStorage.open({**config, "url": url, "timeout_ms": timeout_ms})
    async with aclosing(MongoStorage.open(direct)) as storage, aclosing(harmed):
        await until_answered(harmed.ping)
        yield storage, harmed


async def _heard(group: Group, storage: MongoStorage, world: World) -> list[Any]:
    """The answers of the group's calls, made at once."""
    with forced_groups():
        async with asyncio.timeout(SLACK_S):
            return await asyncio.gather(*group.calls(storage, world), return_exceptions=True)


async def _without_harm(group: Group, storage: MongoStorage) -> tuple[World, Contents, Contents]:
    """What is stored before and after the same calls, where nothing is lost."""
    world = World()
    await world.fill(storage)
    before = await world.contents(storage)
    for call in group.calls(storage, world):
        await asyncio.gather(call, return_exceptions=True)
    return world, before, await world.contents(storage)


def _renamed(contents: Contents, old: World, new: World) -> Contents:
    runs = sorted((run[0].replace(old.name, new.name), *run[1:]) for run in contents["runs"])
    return {**contents, "runs": runs}


def _is_answer(answer: Any, wanted: Any) -> bool:
    if wanted is ...:
        return answer is not None and not isinstance(answer, BaseException)
    return type(answer) is wanted if isinstance(wanted, type) else answer is wanted


@pytest.mark.parametrize(
    ("harm", "retries", "driver"),
    [
        ("reply lost", True, "pymongo"),
        ("reply lost", False, "pymongo"),
        ("reply lost", True, "motor"),
        ("reply lost", False, "motor"),
        ("request lost", True, "pymongo"),
        ("request lost", False, "pymongo"),
        ("replies lost twice", True, "pymongo"),
        ("reply never comes", True, "pymongo"),
    ],
)
@pytest.mark.parametrize("kind", GROUPS)
async def test_group_that_is_lost_takes_effect_once_and_each_caller_hears_of_it(
    kind: str, harm: str, retries: bool, driver: str, proxy: FaultProxy, config: dict[str, Any]
) -> None:
    group, (what, times) = GROUPS[kind], HARMS[harm]
    retry = "" if retries else "&retryWrites=false&retryReads=false"
    timeout_ms = TIMEOUT_MS if what == "drop_reply" else 20_000
    async with _storages({**config, "driver": driver}, proxy.url + retry, timeout_ms) as (storage, harmed):
        model, before, after = await _without_harm(group, storage)
        world = World()
        await world.fill(storage)
        rule = proxy.harm(what, {group.command}, times, collection=group.collection)
        heard = await _heard(group, harmed, world)
        assert rule.hits == times
        is_repeated = retries and what != "drop_reply"
        stored = after if is_repeated or what != "cut_before" else before
        print(f"\n{kind}, {harm}, {'' if retries else 'not '}retried, {driver}: {_summary(heard)}")  # noqa: T201
        if is_repeated:
            wrong = [
                n for n, (a, b) in enumerate(zip(heard, group.answers, strict=True)) if not _is_answer(a, b)
            ]
            assert wrong == [], heard
        else:
            errors = [answer for answer in heard if isinstance(answer, StorageUnavailableError)]
            assert len({id(error) for error in errors}) == len(errors)
            assert len({str(error) for error in errors}) == 1
            assert len(errors) == len(heard), heard
        assert await world.contents(storage) == _renamed(stored, model, world)


def _summary(heard: Sequence[Any]) -> str:
    names = [type(answer).__name__ if isinstance(answer, Exception) else "answer" for answer in heard]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


async def test_increments_of_groups_that_are_lost_one_after_the_other_are_counted_once(
    proxy: FaultProxy, config: dict[str, Any]
) -> None:
    waves, calls, world = 6, 50, World()
    async with _storages(config, proxy.url, 20_000) as (storage, harmed):
        await world.fill(storage)

        async def count(tokens: int) -> None:
            await harmed.runs.record_token_usage(world.id("one"), caller="lead_agent", input_tokens=tokens)

        for wave in range(waves):
            proxy.harm("cut_before" if wave % 2 else "cut_after", {"update"}, 1 + wave // 2)
            with forced_groups():
                await asyncio.gather(*(count(tokens) for tokens in range(calls)))
        row = await storage.runs.get(world.id("one"), user_id=None)
        assert harmed.statistics()["runs"]["update"]["largest"] == calls
    assert row is not None
    assert (row["total_input_tokens"], row["llm_call_count"]) == (waves * sum(range(calls)), waves * calls)
    assert proxy.lost == 12
