"""The tests of DeerFlow that cannot pass on our adapters, with the reason of each: names and reasons only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_FAKE_SESSION = "it gives the store a fake SQL session and reads the statement that the store compiles"
_SQLITE_ERROR = "it expects SQLite's own exception as the cause of the duplicate key"
_PRIVATE_SQL = (
    "it calls private parts of the SQL store: its locks in the process, its query of the last number"
)
_SQL_ROWS = "it seeds, deletes or reads rows through SQLAlchemy beside the store"

_MEMORY: Final[Mapping[str, tuple[str, ...]]] = {
    "it reads or changes the dict in which DeerFlow's run store in memory has its rows": (
        "multi_worker_run_ownership.py::test_renewal_exception_through_confirmed_expiry_fail_stops_run",
        "multi_worker_run_ownership.py::test_hung_renewal_is_bounded_by_confirmed_lease_deadline",
        "multi_worker_run_ownership.py::test_late_successful_renewal_still_fences_local_run",
        "multi_worker_run_ownership.py::test_list_inflight_with_expired_lease_handles_malformed_created_at",
        "multi_worker_run_ownership.py::test_cancel_takeover_race_owner_renewed_lease",
        "multi_worker_run_ownership.py::test_cancel_returns_taken_over_when_peer_claims_during_local_cancel",
        "multi_worker_run_ownership.py::test_peer_reconciliation_fences_late_success_and_completion",
        "multi_worker_run_ownership.py::test_cancel_claim_lost_to_terminal_returns_not_cancellable",
        "multi_worker_run_ownership.py::test_cancel_claim_lost_to_takeover_returns_taken_over",
    ),
    "it replaces `update_lease`, by which DeerFlow's store in memory renews; ours renews and reads the "
    "requested cancellation in one command, as DeerFlow's SQL store does": (
        "multi_worker_run_ownership.py::test_heartbeat_renews_pending_run_before_task_is_spawned",
        "multi_worker_run_ownership.py::test_transient_renewal_exception_before_deadline_keeps_run_alive",
        "run_manager.py::test_reservation_lease_loss_surfaces_as_conflict_after_cancelling_body",
        "run_manager.py::test_late_failed_renewal_does_not_cancel_released_reservation",
    ),
    "it replaces `delete`, by which DeerFlow's stores release a reservation; ours has a command for that": (
        "run_manager.py::test_reservation_delete_failure_preserves_body_error_and_clears_local_record",
    ),
    "it expects `ConflictError` of the store in memory; the SQL store and ours raise the duplicate key": (
        "multi_worker_run_ownership.py::test_create_thread_operation_atomic_reject_prevents_duplicate",
    ),
    "it stores two active runs of one thread, which no database allows": (
        "multi_worker_run_ownership.py::"
        "test_create_thread_operation_atomic_interrupt_rolls_back_earlier_mutations_on_conflict",
        "run_manager.py::test_reconcile_orphaned_inflight_runs_marks_stale_rows_error",
    ),
    "it stores a run without a status, which is a `ValueError`": (
        "run_manager.py::test_get_hydrates_run_with_null_enum_fields",
        "run_manager.py::test_list_by_thread_hydrates_run_with_null_enum_fields",
    ),
}
"""Reason -> tests that build DeerFlow's run store in memory."""

CANNOT_PASS: Final[Mapping[str, str]] = {
    "test_run_repository.py::TestRunRepository::"
    "test_aggregate_tokens_by_thread_returns_zeros_when_no_rows[asyncio]": _FAKE_SESSION,
    "test_run_repository.py::TestRunRepository::"
    "test_aggregate_tokens_by_thread_compiles_on_postgres_dialect[asyncio]": _FAKE_SESSION,
    "test_run_repository.py::TestRunRepository::"
    "test_is_unique_violation_detects_real_sqlite_integrity_error[asyncio]": _SQLITE_ERROR,
    "test_run_event_store.py::TestDbRunEventStore::"
    "test_postgres_max_seq_uses_advisory_lock_without_for_update[asyncio]": _PRIVATE_SQL,
    "test_run_event_store.py::TestDbRunEventStoreWriteLock::"
    "test_delete_by_thread_evicts_orphaned_write_lock[asyncio]": _PRIVATE_SQL,
    "test_run_event_store.py::TestDbRunEventStoreWriteLock::"
    "test_delete_by_thread_keeps_lock_held_by_inflight_writer[asyncio]": _PRIVATE_SQL,
    "test_run_event_store.py::TestDbRunEventStoreWriteLock::"
    "test_get_write_lock_same_thread_returns_same_lock": _PRIVATE_SQL,
    "test_run_event_store.py::TestDbRunEventStoreWriteLock::"
    "test_get_write_lock_distinct_threads_get_distinct_locks": _PRIVATE_SQL,
    "test_auth.py::test_update_user_raises_when_row_concurrently_deleted": _SQL_ROWS,
    "test_auth.py::test_create_user_rejects_legacy_mixed_case_email": _SQL_ROWS,
    "test_auth.py::test_legacy_mixed_case_duplicate_rows_resolve_without_error": _SQL_ROWS,
    "test_auth.py::test_update_user_on_legacy_mixed_case_row_does_not_collide": _SQL_ROWS,
    **{f"test_{test}[asyncio]": reason for reason, tests in _MEMORY.items() for test in tests},
}
"""Test -> why it fails. A test that a release does not have is not counted there."""
