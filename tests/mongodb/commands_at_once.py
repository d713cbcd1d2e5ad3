"""How many commands each method sends for one call, and for 64 at once of as many rows.

`python -m tests.mongodb.commands_at_once` counts them on a server of its own and prints a table. The README
of `mongodb/` has what is expected, by kinds; `tables.py` prints it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from deerflow_mongo import MongoStorage, ThreadMetaCreate
from deerflow_mongo.mongodb.embedded import start_embedded

CALLS: Final = 64
SPARE: Final = CALLS
"""The row of the call that is made alone."""
WORKER, LEASE = "w", "2999-01-01T00:00:00Z"
USER = "alice"
LIMIT: Final = 10
"""Of lists: those of a group have at most `MAX_LISTED` rows together."""

Call = Callable[[MongoStorage, int], Awaitable[Any]]


def _vote(n: int) -> Any:
    return {"run_id": f"run-{n}", "thread_id": f"thread-{n}", "user_id": USER}


def _event(n: int, **fields: Any) -> Any:
    about = {"thread_id": f"thread-{n}", "run_id": f"run-{n}", "event_type": "said", "category": "message"}
    return {**about, **fields}


def _lease(n: int) -> Any:
    return {"owner_worker_id": f"{WORKER}-{n}", "lease_expires_at": LEASE}


def _account(n: int) -> dict[str, Any]:
    return {
        "email": f"{n}@example.org",
        "password_hash": None,
        "system_role": "user",
        "oauth_provider": "github",
        "oauth_id": f"{n}",
        "needs_setup": False,
        "token_version": 1,
    }


async def fill(storage: MongoStorage) -> None:
    """A thread with runs, a vote, feedback and an event, for each call; and an account."""
    await storage.setup()
    async with asyncio.TaskGroup() as group:
        for n in range(CALLS + 1):
            thread = ThreadMetaCreate(thread_id=f"thread-{n}", user_id=USER)
            group.create_task(storage.threads.create_thread_meta(thread))
            for name in ("run", "deleted"):
                group.create_task(storage.runs.create(f"{name}-{n}", f"thread-{n}", user_id=USER))
            for name in ("owned", "started", "claimed", "ended"):
                lease = "2020-01-01T00:00:00Z" if name == "claimed" else LEASE
                operation: Any = {**_lease(n), "user_id": USER, "lease_expires_at": lease}
                status = "pending" if name == "started" else "running"
                put = storage.runs.put(f"{name}-{n}", thread_id=f"{name}-{n}", status=status, **operation)
                group.create_task(put)
            group.create_task(storage.feedback.upsert(**_vote(n), rating=1))
            group.create_task(storage.run_events.put(**_event(n)))
            group.create_task(storage.users.create(f"user-{n}", **_account(n)))
    feedback = storage.driver.collection("feedback")
    [vote] = await feedback.find({"run_id": "run-0"}, sort=[("_id", 1)], limit=1)
    del vote["vote"]
    await feedback.insert_many([{**vote, "_id": f"feedback-{n}"} for n in range(CALLS + 1)])


COMMANDS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("find", "list", "aggregate", "insert", "update"), 3),
    "upsert": 4,
}
"""Of 64 calls at once: two alone and those of a group."""

# By the kind of their groups, in the order in which they are called: what deletes comes last.
METHODS: Mapping[str, Mapping[str, Call]] = {
    "find": {
        "runs.get": lambda s, n: s.runs.get(f"run-{n}", user_id=USER),
        "feedback.get": lambda s, n: s.feedback.get(f"feedback-{n}", user_id=USER),
        "threads.get_thread": lambda s, n: s.threads.get_thread(f"thread-{n}", user_id=USER),
        "threads.get_thread_meta": lambda s, n: s.threads.get_thread_meta(f"thread-{n}"),
        "users.get": lambda s, n: s.users.get(f"user-{n}"),
    },
    "list": {
        "runs.list_by_thread": lambda s, n: s.runs.list_by_thread(f"thread-{n}", limit=LIMIT, user_id=USER),
        "feedback.list_by_run": lambda s, n: s.feedback.list_by_run(f"thread-{n}", f"run-{n}", limit=LIMIT),
        "feedback.list_by_thread": lambda s, n: s.feedback.list_by_thread(f"thread-{n}", limit=LIMIT),
        "threads.search_threads": lambda s, n: s.threads.search_threads(
            user_id=USER, metadata={"k": n}, limit=LIMIT
        ),
        "users.list_by_role": lambda s, n: s.users.list_by_role("user", limit=LIMIT),
        "users.get_by_email": lambda s, n: s.users.get_by_email(f"{n}@example.org"),
    },
    "aggregate": {
        "runs.token_usage_by_thread": lambda s, n: s.runs.token_usage_by_thread(f"thread-{n}", user_id=USER),
        "feedback.list_by_thread_grouped": lambda s, n: s.feedback.list_by_thread_grouped(
            f"thread-{n}", user_id=USER
        ),
        "feedback.list_by_run_ids": lambda s, n: s.feedback.list_by_run_ids(
            f"thread-{n}", [f"run-{n}"], user_id=USER
        ),
        "feedback.aggregate_by_run": lambda s, n: s.feedback.aggregate_by_run(f"thread-{n}", f"run-{n}"),
        "run_events.count_messages": lambda s, n: s.run_events.count_messages(f"thread-{n}"),
        "run_events.get_last_visible_ai_seq_by_run": lambda s, n: s.run_events.get_last_visible_ai_seq_by_run(
            f"thread-{n}", [f"run-{n}"]
        ),
        "users.count": lambda s, n: s.users.count(),
    },
    "insert": {
        "runs.create": lambda s, n: s.runs.create(f"new-{n}", f"thread-{n}", user_id=USER),
        "feedback.create": lambda s, n: s.feedback.create(**_vote(n), rating=1),
        "threads.create_thread_meta": lambda s, n: s.threads.create_thread_meta(
            ThreadMetaCreate(thread_id=f"new-{n}")
        ),
        "run_events.put": lambda s, n: s.run_events.put(**_event(n)),
    },
    "update": {
        "runs.update_status": lambda s, n: s.runs.update_status(f"run-{n}", "running", metadata={"k": 1}),
        "runs.update_model_name": lambda s, n: s.runs.update_model_name(f"run-{n}", "m"),
        "runs.record_token_usage": lambda s, n: s.runs.record_token_usage(
            f"run-{n}", caller="lead_agent", input_tokens=1
        ),
        "runs.set_error": lambda s, n: s.runs.set_error(f"run-{n}", "E: x"),
        "runs.update_run_completion": lambda s, n: s.runs.update_run_completion(
            f"run-{n}", status="success", total_tokens=3
        ),
        "runs.start_run": lambda s, n: s.runs.start_run(f"started-{n}"),
        "runs.update_lease": lambda s, n: s.runs.update_lease(f"owned-{n}", **_lease(n)),
        "runs.update_run_progress": lambda s, n: s.runs.update_run_progress(f"owned-{n}", total_tokens=3),
        "runs.finalize_if_not_cancelled": lambda s, n: s.runs.finalize_if_not_cancelled(
            f"ended-{n}", status="success"
        ),
        "threads.update_thread_meta": lambda s, n: s.threads.update_thread_meta(f"thread-{n}", status="busy"),
        "threads.merge_thread_metadata": lambda s, n: s.threads.merge_thread_metadata(
            f"thread-{n}", {"a": 1}, user_id=USER
        ),
        "threads.sync_thread_title": lambda s, n: s.threads.sync_thread_title(
            thread_id=f"thread-{n}", title="t"
        ),
        "threads.sync_thread_assistant_id": lambda s, n: s.threads.sync_thread_assistant_id(
            thread_id=f"thread-{n}", assistant_id="a"
        ),
        "threads.sync_thread_status": lambda s, n: s.threads.sync_thread_status(
            thread_id=f"thread-{n}", status="idle"
        ),
        "threads.sync_thread_metadata": lambda s, n: s.threads.sync_thread_metadata(
            thread_id=f"thread-{n}", metadata={"b": 1}
        ),
        "users.update": lambda s, n: s.users.update(f"user-{n}", **_account(n)),
    },
    "upsert": {
        "feedback.upsert": lambda s, n: s.feedback.upsert(**_vote(n), rating=-1),
        "threads.ensure_thread": lambda s, n: s.threads.ensure_thread(thread_id=f"newer-{n}", user_id=USER),
    },
    "single": {
        "run_events.list_messages": lambda s, n: s.run_events.list_messages(f"thread-{n}", limit=LIMIT),
        "run_events.list_events": lambda s, n: s.run_events.list_events(
            f"thread-{n}", f"run-{n}", limit=LIMIT
        ),
        "run_events.list_messages_by_run": lambda s, n: s.run_events.list_messages_by_run(
            f"thread-{n}", f"run-{n}", limit=LIMIT
        ),
        "run_events.put_if_absent": lambda s, n: s.run_events.put_if_absent(**_event(n)),
        "runs.claim_for_takeover": lambda s, n: s.runs.claim_for_takeover(
            f"claimed-{n}", grace_seconds=0, error="E: x"
        ),
        "run_events.put_batch": lambda s, n: s.run_events.put_batch([_event(n), _event(n)]),
        "runs.list_pending": lambda s, n: s.runs.list_pending(),
        "runs.list_inflight": lambda s, n: s.runs.list_inflight(),
        "runs.list_inflight_with_expired_lease": lambda s, n: s.runs.list_inflight_with_expired_lease(),
        "runs.get_many_by_thread": lambda s, n: s.runs.get_many_by_thread(
            f"thread-{n}", [f"run-{n}"], user_id=USER
        ),
        "runs.list_successful_regenerate_sources": lambda s, n: s.runs.list_successful_regenerate_sources(
            f"thread-{n}", user_id=USER
        ),
        "runs.list_edit_regenerate_runs": lambda s, n: s.runs.list_edit_regenerate_runs(
            f"thread-{n}", user_id=USER
        ),
        "users.get_by_oauth": lambda s, n: s.users.get_by_oauth("github", f"{n}"),
        "users.create": lambda s, n: s.users.create(f"new-{n}", email=f"new-{n}@example.org"),
        "runs.put": lambda s, n: s.runs.put(f"owned-{n}", thread_id=f"owned-{n}", user_id=USER, **_lease(n)),
        "runs.create_thread_operation_atomic": lambda s, n: s.runs.create_thread_operation_atomic(
            f"admitted-{n}", thread_id=f"free-{n}", user_id=USER, **_lease(n)
        ),
        "runs.renew_lease": lambda s, n: s.runs.renew_lease(f"owned-{n}", **_lease(n)),
        "runs.renew_leases_of_worker": lambda s, n: s.runs.renew_leases_of_worker(
            f"{WORKER}-{n}", lease_expires_at=LEASE
        ),
        "runs.request_cancel": lambda s, n: s.runs.request_cancel(f"owned-{n}", action="interrupt"),
        "runs.end_runs_of_worker": lambda s, n: s.runs.end_runs_of_worker(
            f"{WORKER}-{n}", status="interrupted", error="E: x"
        ),
        "threads.ensure_thread_running": lambda s, n: s.threads.ensure_thread_running(
            thread_id=f"thread-{n}"
        ),
        "runs.delete": lambda s, n: s.runs.delete(f"deleted-{n}", user_id=USER),
        "feedback.delete": lambda s, n: s.feedback.delete(f"feedback-{n}"),
        "feedback.delete_by_run": lambda s, n: s.feedback.delete_by_run(**_vote(n)),
        "threads.delete_thread": lambda s, n: s.threads.delete_thread(f"new-{n}"),
        "run_events.delete_by_run": lambda s, n: s.run_events.delete_by_run(f"thread-{n}", f"run-{n}"),
        "run_events.delete_by_thread": lambda s, n: s.run_events.delete_by_thread(f"thread-{n}"),
    },
}


class CommandCounts(CommandListener):
    """How often a client sent each command."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Motor sends from several threads
        self.counts: Counter[str] = Counter()

    def started(self, event: CommandStartedEvent) -> None:
        with self._lock:
            self.counts[event.command_name] += 1

    def succeeded(self, event: CommandSucceededEvent) -> None: ...

    def failed(self, event: CommandFailedEvent) -> None: ...


Counts = dict[str, tuple[Counter[str], Counter[str]]]


async def count_commands(storage: MongoStorage, sent: CommandCounts) -> Counts:
    """Of each method, the commands of one call and those of 64 at once."""
    await fill(storage)
    found: Counts = {}
    for methods in METHODS.values():
        for name, call in methods.items():
            sent.counts.clear()
            await call(storage, SPARE)
            alone = Counter(sent.counts)
            sent.counts.clear()
            await asyncio.gather(*(call(storage, n) for n in range(CALLS)))
            found[name] = alone, Counter(sent.counts)
    return found


def table_of(counts: Counts) -> str:
    """A row for each method."""

    def text(sent: Counter[str]) -> str:
        return " + ".join(f"{number} {name}" for name, number in sorted(sent.items()))

    rows: list[str] = []
    for kind, methods in METHODS.items():
        for name in methods:
            alone, together = counts[name]
            rows.append(f"| `{name}` | {kind} | {text(alone)} | {text(together)} | {together.total()} |")
    head = [f"| method | shares | 1 call | {CALLS} at once | in all |", "| --- | --- | --- | --- | --: |"]
    return "\n".join([*head, *rows])


async def _main(url: str) -> str:
    sent = CommandCounts()
    client = AsyncMongoClient[dict[str, Any]](url, event_listeners=[sent])
    async with client, MongoStorage.open({"database": "commands"}, client=client) as storage:
        return table_of(await count_commands(storage, sent))


if __name__ == "__main__":
    server = start_embedded()
    try:
        sys.stdout.write(asyncio.run(_main(server.url)) + "\n")
    finally:
        server.release()
