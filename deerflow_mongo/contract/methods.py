"""Every method of the four stores with what it does to the data: a table for suites and benchmarks.

Signatures and promises are in `protocols.py`. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["read_by_id", "read", "write"]

STORES = ("runs", "feedback", "threads", "run_events")
"""In the order of the contract."""

METHOD_KINDS: Mapping[str, Kind] = {
    "runs.get": "read_by_id",
    "runs.list_by_thread": "read",
    "runs.list_pending": "read",
    "runs.get_many_by_thread": "read",
    "runs.list_successful_regenerate_sources": "read",
    "runs.list_edit_regenerate_runs": "read",
    "runs.token_usage_by_thread": "read",
    "runs.create": "write",
    "runs.update_status": "write",
    "runs.set_error": "write",
    "runs.update_run_completion": "write",
    "runs.update_model_name": "write",
    "runs.record_token_usage": "write",
    "runs.delete": "write",
    "feedback.get": "read_by_id",
    "feedback.list_by_run": "read",
    "feedback.list_by_thread": "read",
    "feedback.list_by_thread_grouped": "read",
    "feedback.list_by_run_ids": "read",
    "feedback.aggregate_by_run": "read",
    "feedback.create": "write",
    "feedback.upsert": "write",
    "feedback.delete": "write",
    "feedback.delete_by_run": "write",
    "threads.get_thread": "read_by_id",
    "threads.get_thread_meta": "read_by_id",
    "threads.search_threads": "read",
    "threads.create_thread_meta": "write",
    "threads.ensure_thread": "write",
    "threads.ensure_thread_running": "write",
    "threads.update_thread_meta": "write",
    "threads.merge_thread_metadata": "write",
    "threads.sync_thread_title": "write",
    "threads.sync_thread_assistant_id": "write",
    "threads.sync_thread_status": "write",
    "threads.sync_thread_metadata": "write",
    "threads.delete_thread": "write",
    "run_events.list_messages": "read",
    "run_events.list_events": "read",
    "run_events.list_messages_by_run": "read",
    "run_events.get_last_visible_ai_seq_by_run": "read",
    "run_events.count_messages": "read",
    "run_events.put": "write",
    "run_events.put_batch": "write",
    "run_events.put_if_absent": "write",
    "run_events.delete_by_run": "write",
    "run_events.delete_by_thread": "write",
}
"""`store.method` -> kind."""

OWNERSHIP_KINDS: Mapping[str, Kind] = {
    "runs.list_inflight": "read",
    "runs.list_inflight_with_expired_lease": "read",
    "runs.put": "write",
    "runs.create_thread_operation_atomic": "write",
    "runs.start_run": "write",
    "runs.update_lease": "write",
    "runs.renew_lease": "write",
    "runs.renew_leases_of_worker": "write",
    "runs.request_cancel": "write",
    "runs.finalize_if_not_cancelled": "write",
    "runs.claim_for_takeover": "write",
    "runs.end_runs_of_worker": "write",
    "runs.update_run_progress": "write",
}
"""The same of `RunOwnership`, a capability of the runs."""


def store_of(path: str) -> str:
    return path.partition(".")[0]


def section_of(path: str) -> int:
    """The section of the contract that describes the method's store."""
    return 3 + STORES.index(store_of(path))
