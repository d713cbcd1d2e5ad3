"""DeerFlow's tables as data: which columns become which fields of our rows, release by release.

A release that changes a table is one more entry here; a table that the storage begins to have moves from
`NOT_CARRIED` to the layouts. What a row becomes in the database is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from ...contract.bulk_rows import RowKind
from .conversions import (
    as_stored,
    counts_by_model,
    flag,
    mapping,
    moment,
    optional_moment,
    text,
    update_time,
    whole,
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column and the field of a row that it becomes."""

    name: str
    field: str
    convert: Callable[[Any], Any] = as_stored
    is_optional: bool = False
    """Whether a database on its way to this release may lack it; null is read then."""
    otherwise: str | None = None
    """The column that is read where this one is null."""


_LONG_FIELDS: Final = frozenset(
    {
        *("content", "metadata", "kwargs", "token_usage_by_model", "comment"),
        *("error", "first_human_message", "last_ai_message"),
    }
)


def _unchanged(row: Row) -> Row:
    return row


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is carried, and how one of its rows becomes one of ours."""

    name: str
    kind: RowKind
    key: tuple[str, ...]
    """The columns that order and identify its rows."""
    columns: tuple[Column, ...]
    ignored: frozenset[str] = frozenset()
    """Columns without a meaning outside of the database, such as a number that it gives."""
    constants: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    """Fields of our rows for which the table has no column."""
    finish: Callable[[Row], Row] = _unchanged
    """What needs several columns at once."""

    @property
    def known_columns(self) -> frozenset[str]:
        return self.ignored | {column.name for column in self.columns}

    @property
    def required_columns(self) -> frozenset[str]:
        return self.known_columns - {column.name for column in self.columns if column.is_optional}

    @property
    def long_columns(self) -> list[str]:
        """Columns whose values may be large."""
        return [column.name for column in self.columns if column.field in _LONG_FIELDS]


@dataclass(frozen=True, slots=True)
class Layout:
    """The tables of one release."""

    release: str
    tables: tuple[Table, ...]

    def table(self, kind: RowKind) -> Table | None:
        return next((table for table in self.tables if table.kind == kind), None)


def _columns(*fields: str, **renamed: str) -> tuple[Column, ...]:
    """Columns whose values stay as they are: those named like the field, then `field="column"`."""
    return (
        *(Column(name, name) for name in fields),
        *(Column(name, to) for to, name in renamed.items()),
    )


# -- fields that need several columns --------------------------------------------------------------

CONTENT_MARKS: Final = ("content_is_json", "content_is_dict")
"""In the metadata of an event whose content SQL holds as JSON; not in our rows, which hold the value."""


def _event(row: Row) -> Row:
    if row["user_id"] is None:
        del row["user_id"]
    if not isinstance(row["metadata"], dict):
        return row  # refused by the storage
    metadata = cast("dict[str, Any]", row["metadata"])
    if any(metadata.get(mark) for mark in CONTENT_MARKS):
        try:
            content = json.loads(row["content"])
        except ValueError:
            return row  # as DeerFlow: the text, with its marks
        row["content"] = "" if content is None else content  # what an event without content has here
        row["metadata"] = {name: value for name, value in metadata.items() if name not in CONTENT_MARKS}
    return row


def _feedback(row: Row) -> Row:
    row["owner_id"] = row["user_id"]
    return row


# -- the layouts -----------------------------------------------------------------------------------

_COUNTS = (
    *("total_input_tokens", "total_output_tokens", "total_tokens", "llm_call_count"),
    *("lead_agent_tokens", "subagent_tokens", "middleware_tokens", "message_count"),
)
_RUN_COLUMNS = (
    *_columns("run_id", "thread_id", "assistant_id", "user_id", "status", "model_name"),
    *_columns("multitask_strategy", "error", "follow_up_to_run_id"),
    *(Column(name, name, whole) for name in _COUNTS),
    *_columns("first_human_message", "last_ai_message"),
    Column("kwargs", "kwargs", mapping),
)
_NEVER_STORED = {"started_at": None, "ended_at": None}
"""DeerFlow's SQL has no time of a run's start or end."""

_NO_OWNER: Final[Mapping[str, Any]] = dict.fromkeys(
    (
        *("operation_kind", "stop_reason", "owner_worker_id", "lease_expires_at"),
        *("cancel_action", "cancel_requested_at", "idempotency_key"),
    )
)
"""What a gateway of a release without owners stores on MongoDB, too: such runs do not occupy their thread."""

_FEEDBACK_COLUMNS = _columns(
    "feedback_id", "run_id", "thread_id", "user_id", "message_id", "rating", "comment"
)
_EVENT_COLUMNS = (
    *_columns("thread_id", "run_id", "user_id", "event_type", "category", "seq"),
    Column("content", "content", text),
    Column("created_at", "created_at", moment),
)
_THREAD_COLUMNS = _columns("thread_id", "assistant_id", "user_id", "display_name", "status")

SEED: Final = Layout(
    "the storage package before 2.0",
    (
        Table(
            "thread_meta",
            "threads",
            ("thread_id",),
            (
                *_THREAD_COLUMNS,
                Column("metadata", "metadata", mapping),
                Column("created_time", "created_time", moment),
                Column("updated_time", "updated_time", moment, otherwise="created_time"),
            ),
            ignored=frozenset({"id"}),
        ),
        Table(
            "runs",
            "runs",
            ("run_id",),
            (
                *_RUN_COLUMNS,
                Column("metadata", "metadata", mapping),
                Column("created_time", "created_at", moment),
                Column("updated_time", "updated_at", update_time),
            ),
            ignored=frozenset({"id"}),
            constants={**_NEVER_STORED, "token_usage_by_model": {}},
        ),
        Table(
            "feedback",
            "feedback",
            ("feedback_id",),
            (*_FEEDBACK_COLUMNS, Column("created_time", "created_at", moment)),
            ignored=frozenset({"id"}),
            finish=_feedback,
        ),
        Table(
            "run_events",
            "run_events",
            ("thread_id", "seq", "id"),
            (*_EVENT_COLUMNS, Column("metadata", "metadata", mapping)),
            ignored=frozenset({"id"}),
            finish=_event,
        ),
    ),
)

_USERS = Table(
    "users",
    "users",
    ("id",),
    (
        *_columns("email", "password_hash", "system_role", "oauth_provider", "oauth_id", user_id="id"),
        Column("created_at", "created_at", moment),
        Column("needs_setup", "needs_setup", flag),
        Column("token_version", "token_version", whole),
    ),
)
_RUNS_0_1_7 = Table(
    "runs",
    "runs",
    ("run_id",),
    (
        *(column for column in _RUN_COLUMNS if column.name != "kwargs"),
        Column("metadata_json", "metadata", mapping),
        Column("kwargs_json", "kwargs", mapping),
        Column("created_at", "created_at", moment),
        Column("updated_at", "updated_at", update_time),
    ),
    constants={**_NEVER_STORED, **_NO_OWNER, "token_usage_by_model": {}},
)
V0_1_7: Final = Layout(
    "DeerFlow 0.1.7",
    (
        _USERS,
        Table(
            "threads_meta",
            "threads",
            ("thread_id",),
            (
                *_THREAD_COLUMNS,
                Column("metadata_json", "metadata", mapping),
                Column("created_at", "created_time", moment),
                Column("updated_at", "updated_time", moment, otherwise="created_at"),
            ),
        ),
        _RUNS_0_1_7,
        Table(
            "feedback",
            "feedback",
            ("feedback_id",),
            (*_FEEDBACK_COLUMNS, Column("created_at", "created_at", moment)),
            finish=_feedback,
        ),
        Table(
            "run_events",
            "run_events",
            ("thread_id", "seq", "id"),
            (*_EVENT_COLUMNS, Column("event_metadata", "metadata", mapping)),
            ignored=frozenset({"id"}),
            finish=_event,
        ),
    ),
)


def _later(release: str, before: Layout, columns: Sequence[Column], constants: Mapping[str, Any]) -> Layout:
    """The layout of a later release, whose runs have these columns as well."""
    [runs] = [table for table in before.tables if table.kind == "runs"]
    changed = replace(runs, columns=(*runs.columns, *columns), constants=constants)
    return Layout(release, tuple(changed if table is runs else table for table in before.tables))


_BY_MODEL = Column("token_usage_by_model", "token_usage_by_model", counts_by_model, is_optional=True)

V2_0_0: Final = _later("DeerFlow 2.0.0", V0_1_7, [_BY_MODEL], {**_NEVER_STORED, **_NO_OWNER})


def _operation_kind(value: str | None) -> str:
    return value or "run"  # the column's default, before its migration


MAIN: Final = _later(
    "DeerFlow main (2.1.0)",
    V2_0_0,
    [
        Column("operation_kind", "operation_kind", _operation_kind, is_optional=True),
        Column("stop_reason", "stop_reason", is_optional=True),
        Column("owner_worker_id", "owner_worker_id", is_optional=True),
        Column("lease_expires_at", "lease_expires_at", optional_moment, is_optional=True),
        Column("cancel_action", "cancel_action", is_optional=True),
        Column("cancel_requested_at", "cancel_requested_at", optional_moment, is_optional=True),
        Column("idempotency_key", "idempotency_key", is_optional=True),
    ],
    _NEVER_STORED,
)

LAYOUTS: Final = (SEED, V0_1_7, V2_0_0, MAIN)
"""From old to new; the first that has every column of a database is its layout."""

REVISIONS: Final = frozenset(
    {
        *("0001_baseline", "0002_runs_token_usage", "0003_scheduled_tasks", "0004_run_ownership"),
        *("0005_run_stop_reason", "0006_agents", "0007_scheduled_run_active_index"),
        *("0008_thread_operation_kind", "0009_webhook_dedupe", "0010_run_cancel_request"),
        *("0011_mcp_tasks", "0012_mcp_task_results", "0013_mcp_task_notifications"),
    }
)
"""The values of `alembic_version` up to main of August 2026."""

NOT_CARRIED: Final[Mapping[str, str]] = {
    "scheduled_tasks": "schedules",
    "scheduled_task_runs": "runs of schedules",
    "channel_connections": "channels",
    "channel_credentials": "credentials of channels",
    "channel_oauth_states": "logins to channels in progress",
    "channel_conversations": "conversations of channels",
    "agents": "agents",
    "mcp_tasks": "MCP tasks",
    "webhook_deliveries": "webhook deliveries of the last minutes",
    "store": "LangGraph's store",
    "store_vectors": "vectors of LangGraph's store",
}
"""Tables of DeerFlow and LangGraph that the storage does not have yet: table -> what is in it."""

BOOKKEEPING: Final = frozenset(
    {
        *("alembic_version", "checkpoints", "writes", "checkpoint_writes", "checkpoint_blobs"),
        *("checkpoint_migrations", "store_migrations", "vector_migrations"),
    }
)
"""Tables that hold nothing to carry, or checkpoints, which LangGraph's savers read."""

WRITES_TABLES: Final[Mapping[str, str]] = {"sqlite": "writes", "postgresql": "checkpoint_writes"}
"""Dialect -> the table that LangGraph's saver has beside `checkpoints`."""
