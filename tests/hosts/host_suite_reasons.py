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
}
"""Test -> why it fails. A test that a release does not have is not counted there."""
