"""Every operation is one command to the server, counted by command monitoring; two where nothing matched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import (
    UNSET,
    ActiveRunError,
    ActorContext,
    IdempotencyKeyError,
    MongoStorage,
    RunOwnership,
    Storage,
    ThreadMetaCreate,
    bind_actor_context,
    create_storage,
    reset_actor_context,
)
from deerflow_mongo.mongodb.stores.runs import MongoRunStore
from deerflow_mongo.mongodb.stores.users import MongoUserStore

RUN, THREAD, USER = "run-1", "thread-1", "alice"


class CommandLog(CommandListener):
    """The names of the commands that a client sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


def _event(run_id: str = RUN, thread_id: str = THREAD) -> Any:
    return {"thread_id": thread_id, "run_id": run_id, "event_type": "said", "category": "message"}


Operation = Callable[[Storage], Awaitable[Any]]

OPERATIONS: dict[str, tuple[str, Operation]] = {
    "runs.get": ("find", lambda s: s.runs.get(RUN, user_id=USER)),
    "runs.list_by_thread": ("find", lambda s: s.runs.list_by_thread(THREAD, limit=500, user_id=USER)),
    "runs.create": ("insert", lambda s: s.runs.create("run-new", THREAD, user_id=USER)),
    "runs.update_status": (
        "update",
        lambda s: s.runs.update_status(
            RUN, "running", started_at="2026-01-01T00:00:00Z", metadata={"a.b": 1}
        ),
    ),
    "runs.set_error": ("update", lambda s: s.runs.set_error(RUN, "boom")),
    "runs.update_run_completion": (
        "update",
        lambda s: s.runs.update_run_completion(RUN, status="success", total_tokens=3),
    ),
    "runs.update_status, an error and no metadata": (
        "update",
        lambda s: s.runs.update_status(RUN, "error", error="boom"),
    ),
    "runs.update_status, all at once": (
        "update",
        lambda s: s.runs.update_status(RUN, "running", error="boom", metadata={"b": 1}),
    ),
    "runs.update_model_name": ("update", lambda s: s.runs.update_model_name(RUN, "m.1")),
    "runs.update_run_completion, texts unchanged": (
        "update",
        lambda s: s.runs.update_run_completion(RUN, status="success", first_human_message=UNSET, error=UNSET),
    ),
    "runs.update_status, from statuses": (
        "update",
        lambda s: s.runs.update_status(RUN, "interrupted", stop_reason="user", from_statuses=["success"]),
    ),
    "runs.update_status, from another status": (
        "update",
        lambda s: s.runs.update_status(RUN, "error", from_statuses=["pending", "running"]),
    ),
    "runs.update_status, of an ended run": (
        "update",
        lambda s: s.runs.update_status(RUN, "running", started_at="2026-01-01T00:00:00Z"),
    ),
    "runs.update_status, active from another status": (
        "update",
        lambda s: s.runs.update_status(RUN, "running", from_statuses=["pending"]),
    ),
    "runs.update_status, of an active run": (
        "update",
        lambda s: s.runs.update_status("run-2", "running", started_at="2026-01-01T00:00:00Z", error="e"),
    ),
    "runs.update_run_completion, from statuses": (
        "update",
        lambda s: s.runs.update_run_completion(RUN, status="success", from_statuses=["interrupted"]),
    ),
    "runs.get_many_by_thread": (
        "find",
        lambda s: s.runs.get_many_by_thread(THREAD, {f"run-{n}" for n in range(ROWS)}, user_id=USER),
    ),
    "runs.list_successful_regenerate_sources": (
        "find",
        lambda s: s.runs.list_successful_regenerate_sources(THREAD, user_id=USER),
    ),
    "runs.list_edit_regenerate_runs": (
        "find",
        lambda s: s.runs.list_edit_regenerate_runs(THREAD, user_id=USER),
    ),
    "runs.list_pending": ("find", lambda s: s.runs.list_pending()),
    "runs.list_pending, before a time": (
        "find",
        lambda s: s.runs.list_pending(before="2999-01-01T00:00:00Z"),
    ),
    "runs.update_status, no such run": ("update", lambda s: s.runs.update_status("none", "running")),
    "runs.record_token_usage": (
        "update",
        lambda s: s.runs.record_token_usage(RUN, caller="lead_agent", model_name="m.1", input_tokens=3),
    ),
    "runs.token_usage_by_thread": ("aggregate", lambda s: s.runs.token_usage_by_thread(THREAD, user_id=USER)),
    "runs.token_usage_by_thread, in statuses": (
        "aggregate",
        lambda s: s.runs.token_usage_by_thread(THREAD, user_id=USER, statuses=["success", "error"]),
    ),
    "runs.delete": ("delete", lambda s: s.runs.delete(RUN, user_id=USER)),
    "feedback.create": (
        "insert",
        lambda s: s.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, user_id=USER),
    ),
    "feedback.upsert": (
        "findAndModify",
        lambda s: s.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=-1, user_id=USER),
    ),
    "feedback.upsert, first vote": (
        "findAndModify",
        lambda s: s.feedback.upsert(run_id=RUN, thread_id=THREAD, rating=-1, user_id="new"),
    ),
    "feedback.get": ("find", lambda s: s.feedback.get("none")),
    "feedback.delete": ("delete", lambda s: s.feedback.delete("none")),
    "feedback.get, of a user": ("find", lambda s: s.feedback.get("none", user_id=USER)),
    "feedback.delete, of a user": ("delete", lambda s: s.feedback.delete("none", user_id=USER)),
    "feedback.list_by_run, oldest first": (
        "find",
        lambda s: s.feedback.list_by_run(THREAD, RUN, limit=500, user_id=USER, order="oldest_first"),
    ),
    "feedback.list_by_thread, of a user": (
        "find",
        lambda s: s.feedback.list_by_thread(THREAD, limit=500, user_id=USER, order="oldest_first"),
    ),
    "feedback.list_by_run": ("find", lambda s: s.feedback.list_by_run(THREAD, RUN, limit=500, user_id=USER)),
    "feedback.list_by_thread": ("find", lambda s: s.feedback.list_by_thread(THREAD, limit=500)),
    "feedback.list_by_thread_grouped": (
        "aggregate",
        lambda s: s.feedback.list_by_thread_grouped(THREAD, user_id=USER),
    ),
    "feedback.list_by_run_ids": (
        "aggregate",
        lambda s: s.feedback.list_by_run_ids(THREAD, {f"run-{n}" for n in range(ROWS)}, user_id=USER),
    ),
    "feedback.aggregate_by_run": ("aggregate", lambda s: s.feedback.aggregate_by_run(THREAD, RUN)),
    "feedback.delete_by_run": (
        "findAndModify",
        lambda s: s.feedback.delete_by_run(thread_id=THREAD, run_id=RUN, user_id=USER),
    ),
    "threads.create_thread_meta": (
        "insert",
        lambda s: s.threads.create_thread_meta(ThreadMetaCreate(thread_id="thread-new")),
    ),
    "threads.get_thread_meta": ("find", lambda s: s.threads.get_thread_meta(THREAD)),
    "threads.update_thread_meta": (
        "update",
        lambda s: s.threads.update_thread_meta(THREAD, status="busy", metadata={"k": 2}),
    ),
    "threads.update_thread_meta, of a user": (
        "update",
        lambda s: s.threads.update_thread_meta(THREAD, status="busy", metadata={"k": 2}, user_id=USER),
    ),
    "threads.merge_thread_metadata": (
        "update",
        lambda s: s.threads.merge_thread_metadata(THREAD, {"k.l": 3, "m": 1}, user_id=USER),
    ),
    "threads.merge_thread_metadata, no such thread": (
        "update",
        lambda s: s.threads.merge_thread_metadata("none", {"k": 3}),
    ),
    "threads.merge_thread_metadata, pinned and not touched": (
        "update",
        lambda s: s.threads.merge_thread_metadata(THREAD, {"deerflow_pinned": True}, touch=False),
    ),
    "threads.update_thread_meta, another owner": (
        "update",
        lambda s: s.threads.update_thread_meta(THREAD, owner_id=USER),
    ),
    "threads.get_thread": ("find", lambda s: s.threads.get_thread(THREAD, user_id=USER)),
    "threads.ensure_thread": (
        "findAndModify",
        lambda s: s.threads.ensure_thread(thread_id=THREAD, user_id=USER),
    ),
    "threads.ensure_thread, new": (
        "findAndModify",
        lambda s: s.threads.ensure_thread(thread_id="thread-newer", user_id=USER),
    ),
    "threads.ensure_thread_running": (
        "findAndModify",
        lambda s: s.threads.ensure_thread_running(thread_id=THREAD),
    ),
    "threads.sync_thread_title": (
        "update",
        lambda s: s.threads.sync_thread_title(thread_id=THREAD, title="t"),
    ),
    "threads.sync_thread_assistant_id": (
        "update",
        lambda s: s.threads.sync_thread_assistant_id(thread_id=THREAD, assistant_id="a"),
    ),
    "threads.sync_thread_status": (
        "update",
        lambda s: s.threads.sync_thread_status(thread_id=THREAD, status="idle"),
    ),
    "threads.sync_thread_metadata": (
        "update",
        lambda s: s.threads.sync_thread_metadata(thread_id=THREAD, metadata={}),
    ),
    "threads.search_threads": (
        "find",
        lambda s: s.threads.search_threads(user_id=USER, metadata={"k": 1}, limit=500),
    ),
    "threads.search_threads, last updated first": (
        "find",
        lambda s: s.threads.search_threads(user_id=USER, order="last_updated_first", limit=500),
    ),
    "threads.search_threads, pinned first": (
        "find",
        lambda s: s.threads.search_threads(user_id=USER, order="pinned_first", limit=500),
    ),
    "threads.delete_thread, of a user": ("delete", lambda s: s.threads.delete_thread("none", user_id=USER)),
    "threads.delete_thread": ("delete", lambda s: s.threads.delete_thread(THREAD)),
    "run_events.put_batch": ("insert", lambda s: s.run_events.put_batch([_event() for _ in range(50)])),
    "run_events.put": ("insert", lambda s: s.run_events.put(**_event())),
    "run_events.put, for a user": ("insert", lambda s: s.run_events.put(**_event(), user_id=USER)),
    "run_events.put_if_absent": ("find", lambda s: s.run_events.put_if_absent(**_event())),
    "run_events.list_messages": ("find", lambda s: s.run_events.list_messages(THREAD, limit=150)),
    "run_events.list_events": (
        "find",
        lambda s: s.run_events.list_events(THREAD, RUN, event_types=["said", "x"]),
    ),
    "run_events.list_events, of a task": (
        "find",
        lambda s: s.run_events.list_events(THREAD, RUN, task_id="task-1", after_seq=3),
    ),
    "run_events.get_last_visible_ai_seq_by_run": (
        "aggregate",
        lambda s: s.run_events.get_last_visible_ai_seq_by_run(THREAD, {f"run-{n}" for n in range(ROWS)}),
    ),
    "run_events.list_messages_by_run": (
        "find",
        lambda s: s.run_events.list_messages_by_run(THREAD, RUN, limit=150),
    ),
    "run_events.list_messages, of a user": (
        "find",
        lambda s: s.run_events.list_messages(THREAD, limit=150, user_id=USER),
    ),
    "run_events.list_events, of a user": (
        "find",
        lambda s: s.run_events.list_events(THREAD, RUN, user_id=USER),
    ),
    "run_events.list_messages_by_run, of a user": (
        "find",
        lambda s: s.run_events.list_messages_by_run(THREAD, RUN, limit=150, user_id=USER),
    ),
    "run_events.count_messages, of a user": (
        "aggregate",
        lambda s: s.run_events.count_messages(THREAD, user_id=USER),
    ),
    "run_events.delete_by_run, of a user": (
        "update",
        lambda s: s.run_events.delete_by_run(THREAD, RUN, user_id=USER),
    ),
    "run_events.delete_by_thread, of a user": (
        "update",
        lambda s: s.run_events.delete_by_thread(THREAD, user_id=USER),
    ),
    "run_events.count_messages": ("aggregate", lambda s: s.run_events.count_messages(THREAD)),
    "run_events.delete_by_run": ("update", lambda s: s.run_events.delete_by_run(THREAD, RUN)),
    "run_events.delete_by_thread": ("update", lambda s: s.run_events.delete_by_thread(THREAD)),
}

WITHOUT_A_MATCH = {
    "runs.update_status, no such run": "findAndModify",
    "runs.update_status, of an ended run": "findAndModify",
    "runs.update_status, from another status": "find",
    "runs.update_status, active from another status": "find",
    "feedback.delete": "find",
    "feedback.delete, of a user": "find",
    "threads.merge_thread_metadata, no such thread": "find",
    "threads.delete_thread, of a user": "find",
    "update, no such account": "find",
}
"""Writes that match nothing, and the second command, which finds out why.

That of a status sets the times that an ended run lacks as well.
"""


def _expected(name: str, command: str) -> list[str]:
    return [command, WITHOUT_A_MATCH[name]] if name in WITHOUT_A_MATCH else [command]


ACCOUNT: dict[str, Any] = {
    "email": "alice@example.org",
    "password_hash": None,
    "system_role": "user",
    "oauth_provider": "github",
    "oauth_id": "4711",
    "needs_setup": False,
    "token_version": 1,
}

USER_OPERATIONS: dict[str, tuple[str, Callable[[MongoUserStore], Awaitable[Any]]]] = {
    "create": ("update", lambda users: users.create(USER, **ACCOUNT)),
    "get": ("find", lambda users: users.get(USER)),
    "get_by_email": ("find", lambda users: users.get_by_email("alice@example.org")),
    "get_by_oauth": ("find", lambda users: users.get_by_oauth("github", "4711")),
    "update": ("update", lambda users: users.update(USER, **ACCOUNT)),
    "update, no such account": ("update", lambda users: users.update("none", **ACCOUNT)),
    "count": ("aggregate", lambda users: users.count()),
    "count, of a role": ("aggregate", lambda users: users.count(system_role="user")),
    "list_by_role": ("find", lambda users: users.list_by_role("user", limit=500)),
}

NO_LEASE: dict[str, Any] = {"user_id": USER, "owner_worker_id": "w1", "lease_expires_at": None}
LEASE: dict[str, Any] = {"owner_worker_id": "w1", "lease_expires_at": "2999-01-01T00:00:00Z"}

OWNERSHIP_OPERATIONS: dict[str, tuple[list[str], Callable[[MongoRunStore], Awaitable[Any]]]] = {
    "put": (["update"], lambda r: r.put("r", thread_id="t", **NO_LEASE)),
    "put, again": (["update"], lambda r: r.put("r", thread_id="t", **NO_LEASE, status="pending")),
    "create_thread_operation_atomic": (
        ["update"],
        lambda r: r.create_thread_operation_atomic("a", thread_id="free", **NO_LEASE),
    ),
    "create_thread_operation_atomic, interrupts": (
        ["update", "findAndModify", "update"],
        lambda r: r.create_thread_operation_atomic(
            "b", thread_id="free", **NO_LEASE, multitask_strategy="interrupt", idempotency_key=None
        ),
    ),
    "create_thread_operation_atomic, interrupts nothing": (
        ["update"],
        lambda r: r.create_thread_operation_atomic(
            "c", thread_id="also free", **NO_LEASE, multitask_strategy="interrupt", idempotency_key="k"
        ),
    ),
    "start_run": (["update"], lambda r: r.start_run("r")),
    "start_run, of a run that is running": (["update", "find"], lambda r: r.start_run("r")),
    "update_lease": (["update"], lambda r: r.update_lease("r", **LEASE)),
    "renew_lease": (["findAndModify"], lambda r: r.renew_lease("r", **LEASE)),
    "renew_lease, no such run": (["findAndModify", "find"], lambda r: r.renew_lease("none", **LEASE)),
    "renew_leases_of_worker": (
        ["update"],
        lambda r: r.renew_leases_of_worker("w1", lease_expires_at=LEASE["lease_expires_at"]),
    ),
    "claim_for_takeover, of a valid lease": (
        ["update", "find"],
        lambda r: r.claim_for_takeover("r", grace_seconds=0, error="x"),
    ),
    "update_run_progress": (
        ["update"],
        lambda r: r.update_run_progress(
            "r", total_tokens=3, token_usage_by_model={"m.1": {"total_tokens": 3}}
        ),
    ),
    "request_cancel": (["findAndModify"], lambda r: r.request_cancel("r", action="interrupt")),
    "finalize_if_not_cancelled, of a cancelled run": (
        ["update", "find"],
        lambda r: r.finalize_if_not_cancelled("r", status="success"),
    ),
    "finalize_if_not_cancelled": (
        ["update"],
        lambda r: r.finalize_if_not_cancelled("b", status="success", error="x", stop_reason="y"),
    ),
    "list_inflight": (["find"], lambda r: r.list_inflight()),
    "list_inflight_with_expired_lease": (["find"], lambda r: r.list_inflight_with_expired_lease()),
    "claim_for_takeover": (["update"], lambda r: r.claim_for_takeover("many-1", grace_seconds=0, error="x")),
    "end_runs_of_worker": (
        ["update"],
        lambda r: r.end_runs_of_worker("w1", status="interrupted", error="x"),
    ),
}

ROWS = 150
"""More than the 101 documents that a server's first batch has by default."""


async def fill(storage: Storage) -> None:
    """Rows of every store, more than a first batch has."""
    await storage.setup()
    for position in range(ROWS):
        run_id = f"run-{position}"
        await storage.runs.create(run_id, THREAD, user_id=USER, model_name="m")
        await storage.feedback.create(run_id=run_id, thread_id=THREAD, rating=1, user_id=USER)
        await storage.feedback.create(run_id=RUN, thread_id=THREAD, rating=1, user_id=USER)
        thread = ThreadMetaCreate(thread_id=f"thread-{position}", user_id=USER, metadata={"k": 1})
        await storage.threads.create_thread_meta(thread)
    await storage.run_events.put_batch([_event() for _ in range(ROWS)])


async def count_commands(storage: Storage, log: CommandLog) -> dict[str, list[str]]:
    """The commands that each operation sent."""
    await fill(storage)
    sent: dict[str, list[str]] = {}
    for name, (_, operation) in OPERATIONS.items():
        log.names.clear()
        await operation(storage)
        sent[name] = list(log.names)
    return sent


@pytest.fixture(params=[AsyncMongoClient, AsyncIOMotorClient], ids=["pymongo", "motor"])
async def listening(
    request: pytest.FixtureRequest, mongodb_url: str, database_name: str
) -> AsyncIterator[tuple[Storage, CommandLog]]:
    log = CommandLog()
    client = request.param(mongodb_url, event_listeners=[log])
    storage = create_storage({"backend": "mongodb", "database": database_name}, client=client)
    yield storage, log
    await storage.aclose()
    closing = client.close()
    if closing is not None:
        await closing


async def test_every_operation_is_one_command(listening: tuple[Storage, CommandLog]) -> None:
    sent = await count_commands(*listening)
    expected = {name: _expected(name, command) for name, (command, _) in OPERATIONS.items()}
    assert sent == expected


async def test_every_operation_on_accounts_is_one_command(listening: tuple[Storage, CommandLog]) -> None:
    storage, log = listening
    assert isinstance(storage, MongoStorage)
    await storage.setup()
    for position in range(ROWS):
        await storage.users.create(f"user-{position}", email=f"{position}@example.org")
    for name, (command, operation) in USER_OPERATIONS.items():
        log.names.clear()
        await operation(storage.users)
        assert (name, log.names) == (name, _expected(name, command))
    methods = {name for name in dir(MongoUserStore) if not name.startswith("_")}
    assert methods == {name.split(",")[0] for name in USER_OPERATIONS}


async def test_only_a_changed_email_costs_more_than_one_command(
    listening: tuple[Storage, CommandLog],
) -> None:
    """The account, another one with that email, and the update."""
    storage, log = listening
    assert isinstance(storage, MongoStorage)
    await storage.setup()
    await storage.users.create(USER, **ACCOUNT)
    for email, commands in (
        ("ALICE@example.org", ["update"]),
        ("new@example.org", ["update", "find", "find", "update"]),
    ):
        changed: dict[str, Any] = {**ACCOUNT, "email": email}
        log.names.clear()
        assert await storage.users.update(USER, **changed)
        assert log.names == commands


async def test_every_operation_of_an_owner_is_one_command(listening: tuple[Storage, CommandLog]) -> None:
    """Another one for a worker's own run that is ended first, and where nothing matched."""
    storage, log = listening
    assert isinstance(storage, MongoStorage)
    await storage.setup()
    for position in range(ROWS):
        await storage.runs.put(f"many-{position}", thread_id=f"many-{position}", user_id=None)
    for name, (commands, operation) in OWNERSHIP_OPERATIONS.items():
        log.names.clear()
        await operation(storage.runs)
        assert (name, log.names) == (name, commands)
    methods = {name for name in dir(RunOwnership) if not name.startswith("_")}
    assert methods == {name.split(",")[0] for name in OWNERSHIP_OPERATIONS}


@pytest.mark.parametrize("key", [None, "known"])
async def test_refused_admission_is_one_command_without_an_idempotency_key(
    key: str | None, listening: tuple[Storage, CommandLog]
) -> None:
    storage, log = listening
    assert isinstance(storage, MongoStorage)
    await storage.setup()
    await storage.runs.put("r", thread_id="t", **NO_LEASE, idempotency_key="known")
    log.names.clear()
    with pytest.raises(ActiveRunError if key is None else IdempotencyKeyError):
        await storage.runs.create_thread_operation_atomic("s", thread_id="t", **NO_LEASE, idempotency_key=key)
    assert log.names == (["update"] if key is None else ["update", "find"])


EVENT_OPERATIONS: dict[str, tuple[list[str], Operation]] = {
    "a first batch in this process": (
        ["find", "insert"],
        lambda s: s.run_events.put_batch([_event(), _event()]),
    ),
    "the next": (["insert"], lambda s: s.run_events.put_batch([_event(), _event()])),
    "a batch larger than one unit": (
        ["insert"],
        lambda s: s.run_events.put_batch([_event() for _ in range(100)]),
    ),
    "twelve calls at once": (
        ["insert"],
        lambda s: asyncio.gather(*(s.run_events.put_batch([_event()] * 5) for _ in range(12))),
    ),
    "put_if_absent, new": (["find", "insert"], lambda s: s.run_events.put_if_absent(**_event("new"))),
    "a deletion": (["update"], lambda s: s.run_events.delete_by_thread(THREAD)),
    "a first batch in an unknown thread": (
        ["find", "insert"],
        lambda s: s.run_events.put_batch([_event(thread_id="new")]),
    ),
}

OWNED_OPERATIONS: dict[str, tuple[list[str], Operation]] = {
    "a batch": (["find", "insert"], lambda s: s.run_events.put_batch([_event(), _event()])),
    "twelve calls at once": (
        ["find", "insert"],
        lambda s: asyncio.gather(*(s.run_events.put_batch([_event()] * 5) for _ in range(12))),
    ),
    "a page": (["find", "find"], lambda s: s.run_events.list_messages(THREAD)),
    "eight pages at once": (
        ["find"] * 9,
        lambda s: asyncio.gather(*(s.run_events.list_messages(THREAD) for _ in range(8))),
    ),
}


async def test_event_operations_send_these_commands(listening: tuple[Storage, CommandLog]) -> None:
    """A thread's last number is looked up once; calls at the same time share one insert."""
    storage, log = listening
    await storage.setup()
    await storage.threads.ensure_thread(thread_id=THREAD, user_id=USER)
    for name, (commands, operation) in EVENT_OPERATIONS.items():
        log.names.clear()
        await operation(storage)
        assert (name, log.names) == (name, commands)


async def test_waiting_calls_of_an_actor_share_one_read_of_the_owner(
    listening: tuple[Storage, CommandLog],
) -> None:
    storage, log = listening
    await storage.setup()
    await storage.threads.ensure_thread(thread_id=THREAD, user_id=USER)
    await storage.run_events.put(**_event())
    token = bind_actor_context(ActorContext(user_id=USER))
    try:
        for name, (commands, operation) in OWNED_OPERATIONS.items():
            log.names.clear()
            await operation(storage)
            assert (name, log.names) == (name, commands)
    finally:
        reset_actor_context(token)


def test_commands_are_counted_for_every_method_of_the_contract() -> None:
    from deerflow_mongo import FeedbackStore, RunEventStore, RunStore, ThreadStore

    stores = {
        "runs": RunStore,
        "feedback": FeedbackStore,
        "threads": ThreadStore,
        "run_events": RunEventStore,
    }
    methods = {
        f"{store}.{name}"
        for store, protocol in stores.items()
        for name in dir(protocol)
        if not name.startswith("_")
    }
    assert methods == {name.split(",")[0] for name in OPERATIONS}
