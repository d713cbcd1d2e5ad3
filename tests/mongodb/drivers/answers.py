"""One pass over every method of a storage, and its answers in a form that two drivers can be compared by."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from typing import Any, cast

from deerflow_mongo import MongoStorage, StorageError, ThreadMetaCreate
from deerflow_mongo.mongodb.drivers.time_limit import long_running
from deerflow_mongo.mongodb.events.store import MongoRunEventStore
from deerflow_mongo.mongodb.queries import events_of_thread
from deerflow_mongo.mongodb.stores.feedback import MongoFeedbackStore
from deerflow_mongo.mongodb.stores.runs import MongoRunStore
from deerflow_mongo.mongodb.stores.threads import MongoThreadStore
from deerflow_mongo.mongodb.stores.users import MongoUserStore
from deerflow_mongo.testing.contract import ALICE, BOB, RUN, THREAD, acting_as
from deerflow_mongo.testing.methods import LIMITED, METHODS
from deerflow_mongo.testing.payload_values import ROUND_TRIPS
from deerflow_mongo.testing.values import exactly

from ...busy_machine import connected
from .conftest import Raw
from .fixtures import BATCH, TIMEOUT_MS, DriverFixtures, Opener, event

_STORES = {
    "runs": MongoRunStore,
    "feedback": MongoFeedbackStore,
    "threads": MongoThreadStore,
    "run_events": MongoRunEventStore,
    "users": MongoUserStore,
}
_NEW_EACH_TIME = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
_LONGEST_OF_THEM = 36
_MEBIBYTE = 1024 * 1024

ACCOUNT: dict[str, Any] = {
    "email": "alice@example.org",
    "password_hash": "a hash",
    "system_role": "admin",
    "oauth_provider": "github",
    "oauth_id": "4711",
    "needs_setup": True,
    "token_version": 3,
}


def _comparable(value: Any) -> Any:
    """`value` with its types, and without what is new each time: moments and generated ids."""
    if isinstance(value, datetime):
        return "a time", value.tzinfo is not None
    if isinstance(value, str) and len(value) <= _LONGEST_OF_THEM and _NEW_EACH_TIME.fullmatch(value):
        return "new", len(value) == _LONGEST_OF_THEM
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return type(cast("Any", value)).__name__, {_comparable(key): _comparable(item) for key, item in items}
    if isinstance(value, list | tuple):
        found = cast("list[Any]", value)
        return type(cast("Any", value)).__name__, [_comparable(item) for item in found]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value).__name__, _comparable(fields)
    return exactly(value)


class Pass:
    """The calls of one pass, in their order, and what each of them answered."""

    def __init__(self, storage: MongoStorage) -> None:
        self._storage = storage
        self.answers: list[tuple[str, Any]] = []

    async def ask(self, name: str, call: Awaitable[Any]) -> Any:
        """The answer; an error of the storage is one, too."""
        try:
            answer = await call
        except (StorageError, PermissionError) as error:
            cause = type(error.__cause__).__name__
            self.answers.append((name, (type(error).__name__, _NEW_EACH_TIME.sub("new", str(error)), cause)))
            return None
        self.answers.append((name, _comparable(answer)))
        return answer

    async def run(self) -> None:
        await self.ask("setup", self._storage.setup())
        await self._methods(deleting=False)
        await self._methods(deleting=False)  # once more: what is there already
        for method, limit in LIMITED:
            for rows in (0, 1, 10_000):
                await self.ask(method.path, method(self._storage, **{limit: rows}))
        await self._own_ids()
        await self._payloads()
        await self._large_answers()
        await self._batches()
        await self._users()
        await self._owned_runs()
        await self._reads_of_several_runs()
        for user in (ALICE, BOB):
            with acting_as(user):
                await self._methods(deleting=False)
        await self._methods(deleting=True)
        await self._methods(deleting=False)
        await self.ask("run_events.erase", self._storage.run_events.erase(events_of_thread(THREAD)))
        await self.ask("purge_thread", self._storage.purge_thread(THREAD))
        await self.ask("erase_user", self._storage.erase_user(BOB))
        await self.ask("inspect", self._storage.inspect())
        await self.ask("run_events.aclose", self._storage.run_events.aclose())

    async def _methods(self, *, deleting: bool) -> None:
        for method in METHODS:
            if ("delete" in method.name) is deleting:
                await self.ask(method.path, method(self._storage))

    async def _own_ids(self) -> None:
        """Of votes, whose ids are made by the store."""
        feedback = self._storage.feedback
        row = await self.ask(
            "feedback.create", feedback.create(run_id=RUN, thread_id=THREAD, rating=-1, user_id=BOB)
        )
        await self.ask("feedback.get", feedback.get(row["feedback_id"]))
        await self.ask("feedback.delete", feedback.delete(row["feedback_id"], user_id=ALICE))
        await self.ask("feedback.delete", feedback.delete(row["feedback_id"], user_id=BOB))
        await self.ask("feedback.get", feedback.get(row["feedback_id"]))

    async def _payloads(self) -> None:
        """Every kind of value in every store that takes one."""
        runs, threads, events = self._storage.runs, self._storage.threads, self._storage.run_events
        for number, (name, value) in enumerate(ROUND_TRIPS.items()):
            payload, run_id = {name: value}, f"run-{number}"
            fields: dict[str, Any] = {"metadata": payload, "kwargs": payload, "user_id": ALICE}
            await self.ask("runs.create", runs.create(run_id, "payloads", **fields))
            await self.ask(
                "runs.update_status", runs.update_status(run_id, "running", metadata={"$b.c": value})
            )
            await self.ask("runs.get", runs.get(run_id, user_id=ALICE))
            thread = ThreadMetaCreate(thread_id=run_id, user_id=ALICE, metadata=payload)
            await self.ask("threads.create_thread_meta", threads.create_thread_meta(thread))
            await self.ask("threads.get_thread", threads.get_thread(run_id, user_id=ALICE))
            await self.ask("threads.search_threads", threads.search_threads(metadata=payload, user_id=ALICE))
            await self.ask("run_events.put", events.put(**event(value, "payloads", run_id), metadata=payload))
        await self.ask("runs.list_by_thread", runs.list_by_thread("payloads", user_id=ALICE))
        await self.ask("run_events.list_messages", events.list_messages("payloads", limit=1_000))

    async def _large_answers(self) -> None:
        """More than the server puts into one answer."""
        for number in range(4):
            large = {"k": "x" * (5 * _MEBIBYTE)}
            await self.ask(
                "runs.create", self._storage.runs.create(f"l{number}", "l", metadata=large, user_id=None)
            )
        rows = await self.ask(
            "runs.list_by_thread", self._storage.runs.list_by_thread("l", limit=10, user_id=None)
        )
        assert len(rows) == 4

    async def _batches(self) -> None:
        """One unit, a larger batch, several threads at once; what lists and followers see of them."""
        events = self._storage.run_events
        for batch in (
            [],
            [event(number) for number in range(5)],
            [event(number) for number in range(BATCH)],
            [event(number, f"t-{number % 3}", f"r-{number % 2}") for number in range(30)],
        ):
            await self.ask("run_events.put_batch", events.put_batch(batch))
        await self.ask("run_events.flush", events.flush())
        await self.ask("run_events.list_thread_events", events.list_thread_events("t", limit=1_000))
        await self.ask(
            "run_events.list_thread_events", events.list_thread_events("t-0", run_id="r-0", after_seq=2)
        )
        await self.ask("run_events.follow", _first(events.follow("t", after_seq=100), 5))

    async def _users(self) -> None:
        users = self._storage.users
        changed: dict[str, Any] = {**ACCOUNT, "token_version": 4}
        for _ in range(2):
            await self.ask("users.create", users.create("u", **ACCOUNT))
        await self.ask("users.create", users.create("v", email="v@example.org"))
        for user_id in ("u", "v", "none"):
            await self.ask("users.get", users.get(user_id))
            await self.ask("users.get_by_email", users.get_by_email(f"{user_id}@example.org"))
            await self.ask("users.get_by_oauth", users.get_by_oauth("github", "4711"))
            await self.ask("users.update", users.update(user_id, **changed))
        for role in (None, "admin", "user", "none"):
            await self.ask("users.count", users.count(system_role=role))
            await self.ask("users.list_by_role", users.list_by_role(role or "user"))

    async def _owned_runs(self) -> None:
        """Every method of `RunOwnership`, twice: what the second call finds is another state."""
        runs, lease = self._storage.runs, "2999-01-01T00:00:00Z"
        owner: dict[str, Any] = {"owner_worker_id": "w", "lease_expires_at": lease}
        payload = {"a.b": {"$gt": 2**70}, "c": [1, 2**40, None]}
        for strategy in ("reject", "interrupt", "interrupt"):
            for run_id, key in (("a", None), ("b", "k"), ("c", "k")):
                admission = runs.create_thread_operation_atomic(
                    run_id,
                    thread_id="owned",
                    **owner,
                    multitask_strategy=strategy,
                    idempotency_key=key,
                    metadata=payload,
                    user_id=ALICE,
                )
                await self.ask("runs.create_thread_operation_atomic", admission)
        for run_id in ("p", "p", "q"):
            put = runs.put(run_id, thread_id="put", **owner, metadata=payload, user_id=ALICE)
            await self.ask("runs.put", put)
        spent: Any = {"gpt-4.1": {"input_tokens": 7, "cache_read_tokens": 3}}
        ending: dict[str, Any] = {"status": "error", "error": "E: x", "stop_reason": "y"}
        for run_id in ("p", "p", "none"):
            await self.ask("runs.start_run", runs.start_run(run_id))
            progress = runs.update_run_progress(run_id, total_tokens=7, token_usage_by_model=spent)
            await self.ask("runs.update_run_progress", progress)
            await self.ask("runs.update_lease", runs.update_lease(run_id, **owner))
            await self.ask("runs.renew_lease", runs.renew_lease(run_id, **owner))
            await self.ask("runs.request_cancel", runs.request_cancel(run_id, action="rollback"))
            await self.ask("runs.renew_lease", runs.renew_lease(run_id, **owner))
            finalization = runs.finalize_if_not_cancelled(run_id, **ending)
            await self.ask("runs.finalize_if_not_cancelled", finalization)
            claim = runs.claim_for_takeover(run_id, grace_seconds=10, error="E: x")
            await self.ask("runs.claim_for_takeover", claim)
        for _ in range(2):
            renewal = runs.renew_leases_of_worker("w", lease_expires_at="2020-01-01")
            await self.ask("runs.renew_leases_of_worker", renewal)
            await self.ask("runs.list_inflight", runs.list_inflight())
            await self.ask("runs.list_inflight_with_expired_lease", runs.list_inflight_with_expired_lease())
            await self.ask("runs.end_runs_of_worker", runs.end_runs_of_worker("w", **ending))

    async def _reads_of_several_runs(self) -> None:
        runs, feedback, events = self._storage.runs, self._storage.feedback, self._storage.run_events
        repeats = {"regenerate_from_run_id": RUN, "replay_kind": "edit"}
        repeat = runs.create("repeat", THREAD, status="success", metadata=repeats, user_id=ALICE)
        await self.ask("runs.create", repeat)
        for user in (ALICE, BOB, None):
            reads = {
                "runs.get_many_by_thread": runs.get_many_by_thread(THREAD, [RUN, "repeat"], user_id=user),
                "runs.list_successful_regenerate_sources": runs.list_successful_regenerate_sources(
                    THREAD, user_id=user
                ),
                "runs.list_edit_regenerate_runs": runs.list_edit_regenerate_runs(THREAD, user_id=user),
                "feedback.list_by_run_ids": feedback.list_by_run_ids(THREAD, [RUN], user_id=user),
                "run_events.get_last_visible_ai_seq_by_run": events.get_last_visible_ai_seq_by_run(
                    THREAD, [RUN], user_id=user
                ),
            }
            for name, read in reads.items():
                await self.ask(name, read)


async def _first(rows: AsyncIterator[Any], number: int) -> list[Any]:
    return [await anext(rows) for _ in range(number)]


class AnswerContract(DriverFixtures):
    async def test_every_method_answers_as_on_pymongo(
        self, new_storage: Opener, raw_client: Raw, new_database: str
    ) -> None:
        found: list[list[tuple[str, Any]]] = []
        for driver in ("pymongo", self.driver):
            async with new_storage(database=new_database, driver=driver) as storage:
                once = Pass(storage)
                await once.run()
            found.append(once.answers)
            raw_client.drop_database(new_database)
        expected, answers = found
        assert len(answers) == len(expected)
        for position, (name, answer) in enumerate(answers):
            assert (name, answer) == expected[position], f"answer {position}, of {name}"
        assert _methods() <= {name for name, _ in answers}

    async def test_a_longer_timeout_of_one_command_reaches_the_driver(
        self, storage: MongoStorage, new_storage: Opener
    ) -> None:
        """As the build of an index needs it."""
        await storage.runs.create("r", "t", user_id=None)
        async with connected(new_storage(timeout_ms=TIMEOUT_MS)) as hasty:
            with long_running(30):
                found = await hasty.driver.command(
                    {"find": "runs", "filter": {"$where": f"sleep({TIMEOUT_MS * 3}) || true"}}
                )
        assert len(found["cursor"]["firstBatch"]) == 1

    async def test_calls_at_once_each_act_for_their_own_user(self, storage: MongoStorage) -> None:
        async def create_and_list(user_id: str) -> set[str | None]:
            with acting_as(user_id):
                for number in range(5):
                    await storage.runs.create(f"{user_id}-{number}", "t")
                rows = await storage.runs.list_by_thread("t")
            assert len(rows) == 5
            return {row["user_id"] for row in rows}

        users = [f"user-{number}" for number in range(12)]
        assert await asyncio.gather(*map(create_and_list, users)) == [{user} for user in users]


_OF_TELEMETRY = {"run_events.counts", "run_events.observe_background"}


def _methods() -> set[str]:
    """Every public method of every store, but for those that telemetry calls, which send nothing."""
    return {
        f"{store}.{name}"
        for store, kind in _STORES.items()
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and callable(value)
    } - _OF_TELEMETRY
