"""A table for other tests: every method of the stores (`contract/methods.py`) with valid arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..contract.protocols import Storage
from ..contract.rows import ThreadMetaCreate
from .contract import ALICE, RUN, THREAD

REQUIRED = frozenset({"run_id", "thread_id", "feedback_id"})
OPTIONAL = frozenset({"user_id", "owner_id", "assistant_id", "message_id", "follow_up_to_run_id", "task_id"})


@dataclass(frozen=True)
class Method:
    """One method with valid arguments; `path` is `store.name`."""

    path: str
    arguments: Mapping[str, Any]
    auto_by_default: bool = False

    @property
    def name(self) -> str:
        return self.path.partition(".")[2]

    def named(self, names: frozenset[str]) -> list[str]:
        return [name for name in self.arguments if name in names]

    async def __call__(self, storage: Storage, **changes: Any) -> Any:
        """Call the method with its arguments and these changes."""
        return await self.exactly(storage, {**self.arguments, **changes})

    async def exactly(self, storage: Storage, arguments: Mapping[str, Any]) -> Any:
        store, _, name = self.path.partition(".")
        call = getattr(getattr(storage, store), name)
        if name == "create_thread_meta":
            return await call(ThreadMetaCreate(**arguments))
        return await call(**arguments)


_FEEDBACK_ID = "0b6ad8a6-3c0a-4b0e-9a37-0a8b0f6f2f11"
_OF_RUN = {"thread_id": THREAD, "run_id": RUN}
_EVENT = {"event_type": "ai_message", "category": "message"}

METHODS: tuple[Method, ...] = (
    Method("runs.get", {"run_id": RUN, "user_id": ALICE}, auto_by_default=True),
    Method("runs.list_by_thread", {"thread_id": THREAD, "user_id": ALICE}, auto_by_default=True),
    Method(
        "runs.create",
        {**_OF_RUN, "user_id": ALICE, "assistant_id": "assistant", "follow_up_to_run_id": "run-0"},
        auto_by_default=True,
    ),
    Method("runs.update_status", {"run_id": RUN, "status": "running"}),
    Method("runs.set_error", {"run_id": RUN, "error": "broken"}),
    Method("runs.update_run_completion", {"run_id": RUN, "status": "success"}),
    Method("runs.update_model_name", {"run_id": RUN, "model_name": "model"}),
    Method("runs.list_pending", {}),
    Method(
        "runs.get_many_by_thread",
        {"thread_id": THREAD, "run_ids": [RUN], "user_id": ALICE},
        auto_by_default=True,
    ),
    Method(
        "runs.list_successful_regenerate_sources",
        {"thread_id": THREAD, "user_id": ALICE},
        auto_by_default=True,
    ),
    Method("runs.list_edit_regenerate_runs", {"thread_id": THREAD, "user_id": ALICE}, auto_by_default=True),
    Method("runs.delete", {"run_id": RUN, "user_id": ALICE}, auto_by_default=True),
    Method("runs.record_token_usage", {"run_id": RUN, "caller": "lead_agent"}),
    Method("runs.token_usage_by_thread", {"thread_id": THREAD, "user_id": ALICE}, auto_by_default=True),
    Method("feedback.create", {**_OF_RUN, "rating": 1, "user_id": ALICE, "message_id": "message"}),
    Method("feedback.create", {**_OF_RUN, "rating": 1, "owner_id": ALICE}),
    Method("feedback.upsert", {**_OF_RUN, "rating": 1, "user_id": ALICE}),
    Method("feedback.get", {"feedback_id": _FEEDBACK_ID, "user_id": ALICE}),
    Method("feedback.delete", {"feedback_id": _FEEDBACK_ID, "user_id": ALICE}),
    Method("feedback.list_by_run", {**_OF_RUN, "user_id": ALICE}),
    Method("feedback.list_by_thread", {"thread_id": THREAD, "user_id": ALICE}),
    Method("feedback.list_by_thread_grouped", {"thread_id": THREAD, "user_id": ALICE}),
    Method("feedback.list_by_run_ids", {"thread_id": THREAD, "run_ids": [RUN], "user_id": ALICE}),
    Method("feedback.aggregate_by_run", _OF_RUN),
    Method("feedback.delete_by_run", {**_OF_RUN, "user_id": ALICE}),
    Method(
        "threads.create_thread_meta", {"thread_id": THREAD, "assistant_id": "assistant", "user_id": ALICE}
    ),
    Method("threads.get_thread_meta", {"thread_id": THREAD}),
    Method(
        "threads.update_thread_meta", {"thread_id": THREAD, "assistant_id": "assistant", "user_id": ALICE}
    ),
    Method("threads.update_thread_meta", {"thread_id": THREAD, "owner_id": ALICE, "user_id": ALICE}),
    Method("threads.merge_thread_metadata", {"thread_id": THREAD, "metadata": {"a": 1}, "user_id": ALICE}),
    Method("threads.get_thread", {"thread_id": THREAD, "user_id": ALICE}, auto_by_default=True),
    Method(
        "threads.ensure_thread",
        {"thread_id": THREAD, "assistant_id": "assistant", "user_id": ALICE},
        auto_by_default=True,
    ),
    Method("threads.ensure_thread_running", {"thread_id": THREAD, "assistant_id": "assistant"}),
    Method("threads.sync_thread_title", {"thread_id": THREAD, "title": "a title"}),
    Method("threads.sync_thread_assistant_id", {"thread_id": THREAD, "assistant_id": "assistant"}),
    Method("threads.sync_thread_status", {"thread_id": THREAD, "status": "busy"}),
    Method("threads.sync_thread_metadata", {"thread_id": THREAD, "metadata": {"a": 1}}),
    Method("threads.search_threads", {"user_id": ALICE, "assistant_id": "assistant"}, auto_by_default=True),
    Method("threads.delete_thread", {"thread_id": THREAD, "user_id": ALICE}),
    Method("run_events.put_batch", {"events": [{**_OF_RUN, **_EVENT, "user_id": ALICE}]}),
    Method("run_events.put", {**_OF_RUN, **_EVENT, "user_id": ALICE}),
    Method("run_events.put_if_absent", {**_OF_RUN, **_EVENT, "user_id": ALICE}),
    Method("run_events.list_messages", {"thread_id": THREAD, "user_id": ALICE}),
    Method("run_events.list_events", {**_OF_RUN, "user_id": ALICE, "task_id": "task"}),
    Method("run_events.list_messages_by_run", {**_OF_RUN, "user_id": ALICE}),
    Method(
        "run_events.get_last_visible_ai_seq_by_run",
        {"thread_id": THREAD, "run_ids": [RUN], "user_id": ALICE},
    ),
    Method("run_events.count_messages", {"thread_id": THREAD, "user_id": ALICE}),
    Method("run_events.delete_by_run", {**_OF_RUN, "user_id": ALICE}),
    Method("run_events.delete_by_thread", {"thread_id": THREAD, "user_id": ALICE}),
)

LIMITED: tuple[tuple[Method, str], ...] = (
    (Method("runs.list_by_thread", {"thread_id": THREAD, "user_id": None}), "limit"),
    (Method("feedback.list_by_run", {**_OF_RUN, "user_id": None}), "limit"),
    (Method("feedback.list_by_thread", {"thread_id": THREAD}), "limit"),
    (Method("threads.search_threads", {"user_id": None}), "limit"),
    (Method("threads.search_threads", {"user_id": None}), "offset"),
    (Method("threads.search_threads", {"user_id": None, "order": "last_updated_first"}), "limit"),
    (Method("threads.search_threads", {"user_id": None, "order": "last_updated_first"}), "offset"),
    (Method("threads.search_threads", {"user_id": None, "order": "pinned_first"}), "limit"),
    (Method("threads.search_threads", {"user_id": None, "order": "pinned_first"}), "offset"),
    (Method("run_events.list_messages", {"thread_id": THREAD}), "limit"),
    (Method("run_events.list_events", _OF_RUN), "limit"),
    (Method("run_events.list_events", {**_OF_RUN, "after_seq": 0}), "limit"),
    (Method("run_events.list_messages_by_run", _OF_RUN), "limit"),
)
"""Methods with a limit or an offset, and the argument's name."""

_TAKES_THE_OWNER = {"create_thread_meta", "put", "put_if_absent"}
"""Here `user_id` is the owner of what is written, whoever the actor is; `AUTO` is not accepted."""

OWNED: tuple[Method, ...] = tuple(
    method for method in METHODS if "user_id" in method.arguments and method.name not in _TAKES_THE_OWNER
)
"""Methods that act for a user: their `user_id` may be `AUTO`."""

_WORKER = "worker-1"
_LEASE = "2999-01-01T00:00:00+00:00"
_OF_WORKER = {"run_id": RUN, "owner_worker_id": _WORKER, "lease_expires_at": _LEASE}

OWNERSHIP_METHODS: tuple[Method, ...] = (
    Method(
        "runs.put",
        {
            **_OF_RUN,
            "user_id": ALICE,
            "assistant_id": "assistant",
            "follow_up_to_run_id": "run-0",
            "owner_worker_id": _WORKER,
            "lease_expires_at": _LEASE,
            "idempotency_key": "key-1",
        },
        auto_by_default=True,
    ),
    Method(
        "runs.create_thread_operation_atomic",
        {
            **_OF_WORKER,
            "thread_id": THREAD,
            "user_id": ALICE,
            "assistant_id": "assistant",
            "follow_up_to_run_id": "run-0",
            "idempotency_key": "key-1",
        },
        auto_by_default=True,
    ),
    Method("runs.start_run", {"run_id": RUN}),
    Method("runs.update_lease", _OF_WORKER),
    Method("runs.renew_lease", _OF_WORKER),
    Method("runs.renew_leases_of_worker", {"owner_worker_id": _WORKER, "lease_expires_at": _LEASE}),
    Method("runs.request_cancel", {"run_id": RUN, "action": "interrupt"}),
    Method("runs.finalize_if_not_cancelled", {"run_id": RUN, "status": "success"}),
    Method("runs.claim_for_takeover", {"run_id": RUN, "grace_seconds": 10, "error": "expired"}),
    Method("runs.end_runs_of_worker", {"owner_worker_id": _WORKER, "status": "error", "error": "stopped"}),
    Method("runs.list_inflight", {}),
    Method("runs.list_inflight_with_expired_lease", {}),
    Method("runs.update_run_progress", {"run_id": RUN, "total_tokens": 1}),
)
"""The methods of `RunOwnership`, which not every storage has."""
