"""Every write method when a reply or a request is lost: the effect is there exactly once.

The model is the backend `memory`, on which the same calls are made without a fault: what is returned and what
the four stores contain afterwards must be the same.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, is_dataclass
from typing import Any, cast

import pytest

from deerflow_mongo import Storage, StorageUnavailableError, create_storage
from deerflow_mongo.contract.methods import METHOD_KINDS
from deerflow_mongo.contract.rows import FeedbackRow, RunEventRow
from deerflow_mongo.testing.contract import ALICE
from deerflow_mongo.testing.methods import METHODS, Method

from ..busy_machine import until_answered
from .proxy import WRITES, FaultProxy, Harm

BOB = "bob"
TIMEOUT_MS = 3_000
"""Of a call whose reply never comes; all methods are called at the same time."""
SLACK_S = 5.0
"""For a busy machine."""

LARGE_BATCH = Method("run_events.put_batch", {"events": [{}] * 150})
"""More than a server stores as one unit."""

WRITE_METHODS = [method for method in (*METHODS, LARGE_BATCH) if METHOD_KINDS[method.path] == "write"]
each_write_method = pytest.mark.parametrize("method", WRITE_METHODS, ids=lambda method: method.path)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


class World:
    """A thread with two runs, votes and events, of which every write method finds what it changes."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self.thread = f"thread-{name}"
        self.run, self.other_run = f"run-{name}", f"other-run-{name}"
        self.new = f"new-{name}"
        self.vote_id = ""

    async def fill(self) -> None:
        thread = self._storage.threads.ensure_thread(thread_id=self.thread, metadata={"k": 1}, user_id=ALICE)
        vote, _, _ = await asyncio.gather(self._fill_run(self.run), self._fill_run(self.other_run), thread)
        self.vote_id = vote["feedback_id"]

    async def _fill_run(self, run: str) -> FeedbackRow:
        """A run with counts, two votes and three events; Alice's vote."""
        storage = self._storage
        about: Any = {"run_id": run, "thread_id": self.thread}
        await storage.runs.create(**about, user_id=ALICE, status="running", metadata={"k": run})
        vote, *_ = await asyncio.gather(
            storage.feedback.upsert(**about, rating=-1, user_id=ALICE),
            storage.feedback.upsert(**about, rating=1, user_id=BOB),
            storage.runs.record_token_usage(run, caller="lead_agent", input_tokens=2),
        )
        await storage.run_events.put_batch([self._event(run, f"{number}") for number in range(3)])
        return vote

    def _event(self, run: str, content: str) -> Any:
        about = {"thread_id": self.thread, "run_id": run, "user_id": ALICE}
        return {**about, "event_type": "human_message", "category": "message", "content": content}

    def changes(self, method: Method) -> dict[str, Any]:
        """The method's arguments that name something of this world, or something new where it creates."""
        creates = method.path in ("runs.create", "threads.create_thread_meta", "threads.ensure_thread")
        named = {
            "thread_id": self.thread,
            "run_id": self.new if method.path == "runs.create" else self.run,
            "feedback_id": self.vote_id,
        }
        if creates and method.path != "runs.create":
            named["thread_id"] = self.new
        changes = {name: value for name, value in named.items() if name in method.arguments}
        if method.path == "runs.record_token_usage":
            changes |= {"input_tokens": 5, "output_tokens": 7, "model_name": "m"}
        if method.name == "put_batch":
            size = max(5, len(method.arguments["events"]))
            changes = {"events": [self._event(self.run, f"new {number}") for number in range(size)]}
        return changes

    async def contents(self) -> dict[str, Any]:
        """What the four stores have of it, without what differs between two worlds."""
        storage, thread = self._storage, self.thread
        runs, votes, events, usage, *threads = await asyncio.gather(
            storage.runs.list_by_thread(thread, user_id=None),
            storage.feedback.list_by_thread(thread),
            self._events(),
            storage.runs.token_usage_by_thread(thread, user_id=None),
            *(storage.threads.get_thread_meta(name) for name in (thread, self.new)),
        )
        rows = {"runs": runs, "votes": votes, "events": events}
        named = {name: sorted(self.without_names(found), key=repr) for name, found in rows.items()}
        return {**named, "threads": self.without_names(threads), "usage": usage}

    async def _events(self) -> list[RunEventRow]:
        """Of both runs; their numbers depend on which was filled first."""
        rows = await self._storage.run_events.list_messages(self.thread, limit=1_000)
        assert [row["seq"] for row in rows] == sorted({row["seq"] for row in rows})
        return rows

    def without_names(self, value: Any) -> Any:
        """With placeholders for times, for ids that were made and for names of this world."""
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping):
            items = cast("Mapping[str, Any]", value).items()
            return {key: self.without_names(item) for key, item in items if key not in _NOT_COMPARED}
        if isinstance(value, list | tuple):
            return [self.without_names(item) for item in cast("list[Any]", value)]
        if isinstance(value, str):
            value = _TIME.sub("<time>", _UUID.sub("<uuid>", value))
            for name in ("thread", "other_run", "run", "new"):
                value = value.replace(getattr(self, name), f"<{name}>")
        return value


# A thread's times and that of the last change, which a repetition may move; the number of an event, as both
# runs of a world are filled at the same time.
_NOT_COMPARED = frozenset({"created_time", "updated_time", "updated_at", "seq"})


@pytest.fixture(scope="module")
def config(mongodb_url: str, raw_client: Any) -> Iterator[dict[str, Any]]:
    """A database that is set up; each test has a world of its own in it."""
    config = {"backend": "mongodb", "url": mongodb_url, "database": f"test_{uuid.uuid4().hex[:12]}"}

    async def set_up() -> None:
        async with create_storage(config):
            pass

    asyncio.run(set_up())
    yield config
    raw_client.drop_database(config["database"])


async def _expected(method: Method) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """What the method returns, and the contents before and after it, by the model."""
    async with create_storage({"backend": "memory"}) as storage:
        world = World(storage, "model")
        await world.fill()
        before = await world.contents()
        returned = world.without_names(await method(storage, **world.changes(method)))
        return returned, before, await world.contents()


async def _check(
    method: Method,
    proxy: FaultProxy,
    config: dict[str, Any],
    harm: Harm,
    *,
    options: str = "",
    timeout_ms: int = 20_000,
) -> type[StorageUnavailableError] | None:
    """Call the method with this harm to its first write and compare with the model; its error, if any."""
    returned, before, after = await _expected(method)
    harmed = create_storage({**config, "url": proxy.url + options, "timeout_ms": timeout_ms})
    async with aclosing(create_storage(config)) as storage, aclosing(harmed):  # without a setup
        world = World(storage, uuid.uuid4().hex)
        await asyncio.gather(world.fill(), until_answered(harmed.ping))
        assert await world.contents() == before
        rule = proxy.harm(harm, WRITES, 1)
        try:
            async with asyncio.timeout(2 * timeout_ms / 1000 + SLACK_S):
                outcome = world.without_names(await method(harmed, **world.changes(method)))
        except StorageUnavailableError:
            arrived = harm in ("cut_after", "drop_reply")
            assert await world.contents() == (after if arrived else before)
            return StorageUnavailableError
        finally:
            assert rule.hits == 1, f"{method.path} sent no write: {proxy.seen}"
        assert outcome == returned
        assert await world.contents() == after
        return None


@pytest.mark.parametrize(
    ("driver", "harm"), [("pymongo", "cut_after"), ("pymongo", "cut_before"), ("motor", "cut_after")]
)
@each_write_method
async def test_write_whose_connection_is_cut_is_acknowledged_and_stored_once(
    method: Method, driver: str, harm: Harm, proxy: FaultProxy, config: dict[str, Any]
) -> None:
    error = await _check(method, proxy, {**config, "driver": driver}, harm)
    assert error is None, "not acknowledged, though one repetition is enough"


@each_write_method
async def test_lost_reply_that_the_driver_does_not_retry_leaves_the_write_stored_once(
    method: Method, proxy: FaultProxy, config: dict[str, Any]
) -> None:
    await _check(method, proxy, config, "cut_after", options="&retryWrites=false")


async def test_writes_whose_replies_never_come_end_in_time_and_are_stored_once(
    mongodb_url: str, config: dict[str, Any]
) -> None:
    """All methods at once, each behind a proxy of its own: each waits for its whole timeout."""

    async def check(method: Method) -> str | None:
        async with FaultProxy(mongodb_url).running() as proxy:
            try:
                await _check(method, proxy, config, "drop_reply", timeout_ms=TIMEOUT_MS)
            except Exception as error:  # noqa: BLE001 - they are reported together
                return f"{method.path}: {error!r}"
        return None

    found = await asyncio.gather(*(check(method) for method in WRITE_METHODS))
    assert [text for text in found if text is not None] == []
