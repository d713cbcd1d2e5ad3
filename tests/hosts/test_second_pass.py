"""Every update that DeerFlow's own repositories make is carried by the second pass of a transfer.

Each method that changes a stored row is called between two passes. A method without an entry in `UPDATES` or
`NOT_UPDATES` fails a test, so that a new release cannot bring an update that the summaries of rows miss.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import pytest

from deerflow_mongo.contract.bulk_rows import RowKind

from ..transfer.sql.dict_target import DictTarget
from ..transfer.sql.passes import one_pass
from ..transfer.sql.sources import Source
from .gateway_process import needs_deerflow
from .host_stores import FEEDBACK, RUNS, THREADS, USERS, named

pytestmark = needs_deerflow

USER, THREAD, RUN = "00000000-0000-4000-8000-000000000001", "thread-1", "run-1"
LEASE = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
SQL_CLASSES = {"runs": RUNS.sql, "threads": THREADS.sql, "feedback": FEEDBACK.sql, "users": USERS.sql}

Update: TypeAlias = Callable[[Any], Awaitable[Any]]


async def _update_user(users: Any, **fields: Any) -> None:
    user = await users.get_user_by_id(USER)
    for name, value in fields.items():
        setattr(user, name, value)
    await users.update_user(user)


UPDATES: dict[tuple[RowKind, str], dict[str, Update]] = {
    ("runs", "update_status"): {
        "status": lambda s: s.update_status(RUN, "interrupted"),
        "error": lambda s: s.update_status(RUN, "error", error="boom"),
    },
    ("runs", "update_model_name"): {"model": lambda s: s.update_model_name(RUN, "other")},
    ("runs", "update_run_completion"): {
        "counts": lambda s: s.update_run_completion(RUN, status="running", total_tokens=9),
        "texts": lambda s: s.update_run_completion(RUN, status="running", last_ai_message="answers"),
    },
    ("runs", "update_run_progress"): {
        "counts": lambda s: s.update_run_progress(RUN, message_count=9),
        "counts by model": lambda s: s.update_run_progress(
            RUN, token_usage_by_model={"m": {"input_tokens": 2, "output_tokens": 1, "total_tokens": 3}}
        ),
    },
    ("runs", "start_run"): {"start": lambda s: s.start_run("run-pending")},
    ("runs", "update_lease"): {
        "lease": lambda s: s.update_lease(RUN, owner_worker_id="w", lease_expires_at=LEASE)
    },
    ("runs", "renew_lease"): {
        "lease": lambda s: s.renew_lease(RUN, owner_worker_id="w", lease_expires_at=LEASE)
    },
    ("runs", "request_cancel"): {"cancel": lambda s: s.request_cancel(RUN, action="rollback")},
    ("runs", "finalize_if_not_cancelled"): {
        "end": lambda s: s.finalize_if_not_cancelled(RUN, status="success", error=None, stop_reason=None)
    },
    ("runs", "claim_for_takeover"): {
        "takeover": lambda s: s.claim_for_takeover("run-expired", grace_seconds=0, error="lost")
    },
    ("threads", "update_display_name"): {
        "name": lambda s: s.update_display_name(THREAD, "other", user_id=None)
    },
    ("threads", "update_status"): {"status": lambda s: s.update_status(THREAD, "busy", user_id=None)},
    ("threads", "update_metadata"): {
        "metadata": lambda s: s.update_metadata(THREAD, {"n": 2}, user_id=None),
        "metadata without a time": lambda s: s.update_metadata(THREAD, {"n": 2}, user_id=None, touch=False),
    },
    ("threads", "update_owner"): {"owner": lambda s: s.update_owner(THREAD, "other", user_id=None)},
    ("feedback", "upsert"): {
        "rating": lambda s: s.upsert(run_id=RUN, thread_id=THREAD, rating=-1, user_id=USER, comment="good"),
        "comment": lambda s: s.upsert(run_id=RUN, thread_id=THREAD, rating=1, user_id=USER, comment="fine"),
    },
    ("users", "update_user"): {
        "email": lambda s: _update_user(s, email="b@example.com"),
        "password": lambda s: _update_user(s, password_hash="$2b$12$other"),  # noqa: S106
        "role": lambda s: _update_user(s, system_role="admin"),
        "oauth": lambda s: _update_user(s, oauth_provider="github", oauth_id="7"),
        "setup": lambda s: _update_user(s, needs_setup=True),
        "tokens": lambda s: _update_user(s, token_version=4),
    },
}
"""Table and method of its repository -> calls that change one stored row."""

NOT_UPDATES: dict[RowKind, frozenset[str]] = {
    "runs": frozenset(
        {
            *(
                "put",
                "get",
                "get_many_by_thread",
                "list_by_thread",
                "list_pending",
                "list_inflight",
                "delete",
            ),
            *("list_successful_regenerate_sources", "list_edit_regenerate_runs", "delete_thread_operation"),
            *("aggregate_tokens_by_thread", "list_inflight_with_expired_lease", "delete"),
            # Interrupt another run of the thread as well, and set its time.
            *("create_thread_operation_atomic", "create_run_atomic"),
        }
    ),
    "threads": frozenset({"create", "get", "check_access", "search", "delete"}),
    "feedback": frozenset(
        {
            *("create", "get", "list_by_run", "list_by_thread", "delete", "delete_by_run"),
            *("list_by_thread_grouped", "list_by_run_ids", "aggregate_by_run"),
        }
    ),
    "users": frozenset(
        {
            *("create_user", "get_user_by_id", "get_user_by_email", "get_user_by_oauth"),
            *("count_users", "count_admin_users"),
        }
    ),
}
"""Methods that read, insert or delete."""


def methods_of(kind: RowKind) -> dict[str, Any]:
    found = inspect.getmembers(named(SQL_CLASSES[kind]), inspect.iscoroutinefunction)
    return {name: method for name, method in found if not name.startswith("_")}


@pytest.mark.parametrize("kind", list(SQL_CLASSES))
def test_every_method_of_deerflow_is_known(kind: RowKind) -> None:
    updates = {method for of_kind, method in UPDATES if of_kind == kind}
    assert methods_of(kind).keys() - updates - NOT_UPDATES[kind] == set()


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncGenerator[Any]:
    engine = importlib.import_module("deerflow.persistence.engine")
    url = f"sqlite+aiosqlite:///{tmp_path / 'deerflow.db'}"
    await engine.init_engine("sqlite", url=url, sqlite_dir=str(tmp_path))
    yield engine.get_session_factory()
    await engine.close_engine()


async def _fill(sessions: Any) -> None:
    """One row of each table that the updates change, and another one of each."""
    user = named("app.gateway.auth.models:User")
    stores = {kind: named(path)(sessions) for kind, path in SQL_CLASSES.items()}
    for number, user_id in enumerate((USER, str(UUID(int=2, version=4)))):
        email = f"user{number}@example.com"
        await stores["users"].create_user(user(id=UUID(user_id), email=email, password_hash="$2b$12$hash"))  # noqa: S106
    for thread_id in (THREAD, "thread-2"):
        await stores["threads"].create(thread_id, user_id=USER, display_name="name", metadata={"n": 1})
    has_owners = "owner_worker_id" in inspect.signature(stores["runs"].put).parameters
    expired = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    leases = {RUN: LEASE, "run-pending": LEASE, "run-expired": expired}
    for number, (run_id, lease) in enumerate(leases.items(), 1):
        owner = {"owner_worker_id": "w", "lease_expires_at": lease} if has_owners else {}
        status = "pending" if run_id == "run-pending" else "running"
        await stores["runs"].put(run_id, thread_id=f"thread-{number}", user_id=USER, status=status, **owner)
    completion = {"total_tokens": 1, "message_count": 1, "last_ai_message": "answered"}
    await stores["runs"].update_run_completion(RUN, status="running", **completion)
    vote = {"run_id": RUN, "thread_id": THREAD, "user_id": USER}
    await stores["feedback"].upsert(rating=1, comment="good", **vote)


def _text_of(row: Any) -> str:
    return json.dumps(row, sort_keys=True)


@pytest.mark.parametrize(
    ("kind", "method", "update"),
    [
        pytest.param(kind, method, update, id=f"{kind}-{method}-{name}")
        for (kind, method), updates in UPDATES.items()
        for name, update in updates.items()
    ],
)
async def test_update_of_deerflow_is_carried(
    request: pytest.FixtureRequest, tmp_path: Path, sessions: Any, kind: RowKind, method: str, update: Update
) -> None:
    of_release = methods_of(kind)
    needs_touch = request.node.callspec.id.endswith("without a time")
    if method not in of_release or (
        needs_touch and "touch" not in inspect.signature(of_release[method]).parameters
    ):
        pytest.skip("the installed DeerFlow has no such method")
    await _fill(sessions)
    source, target = Source(f"sqlite:///{tmp_path / 'deerflow.db'}", ""), DictTarget()
    await one_pass(source, target)
    before = {_text_of(row) for row in target.rows[kind].values()}
    await update(named(SQL_CLASSES[kind])(sessions))
    outcome = (await one_pass(source, target))[kind]
    assert (outcome.replaced, outcome.equal_by_summary) == (1, outcome.rows - 1)
    assert len({_text_of(row) for row in target.rows[kind].values()} - before) == 1
    whole = (await one_pass(source, target, compare_all=True))[kind]
    assert whole.unchanged == whole.rows
