"""What differs between the releases of DeerFlow that fit: one row for each of them.

The row of the installed DeerFlow is found by what it has, names and parameters, not by its version: a
checkout between two releases gets the row of the newest one whose marks it has. This module imports nothing
of DeerFlow; `deerflow.py` compares a row with what is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

Names: TypeAlias = Mapping[str, tuple[str, ...]]
"""Names, dotted where they are attributes of a class, by their module."""

Name: TypeAlias = tuple[str, str]
"""A module, and a name in it."""

Sections: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Values of some fields of some sections of `config.yaml`."""

APP_RUNTIME: Final[Name] = ("app.gateway.app", "langgraph_runtime")
"""What the application's lifespan enters; our wrapper is entered in its place."""

DEPS: Final = "app.gateway.deps"

ENGINE: Final = "deerflow.persistence.engine"

_CHECKPOINTER: Final = "deerflow.runtime.checkpointer.async_provider"

_INTERFACES: Final[Names] = {
    "app.gateway.app": ("create_app", "langgraph_runtime"),
    "app.gateway.auth.credential_file": ("write_initial_credentials",),
    "app.gateway.auth.models": ("User",),
    "app.gateway.auth.password": ("hash_password_async",),
    "app.gateway.internal_auth": (),
    "app.gateway.auth.repositories.base": ("UserNotFoundError", "UserRepository"),
    DEPS: ("_cached_local_provider", "_cached_repo", "RunManager", "langgraph_runtime"),
    "deerflow.config.app_config": ("AppConfig.resolve_config_path", "get_app_config"),
    "deerflow.config.checkpointer_config": ("CheckpointerConfig",),
    "deerflow.config.runtime_paths": ("runtime_home",),
    ENGINE: ("close_engine", "get_session_factory", "init_engine_from_config"),
    "deerflow.persistence.feedback": ("FeedbackRepository",),
    "deerflow.persistence.json_compat": ("validate_metadata_filter_key", "validate_metadata_filter_value"),
    "deerflow.persistence.run": ("RunRepository",),
    "deerflow.persistence.thread_meta": ("make_thread_store",),
    "deerflow.persistence.thread_meta.base": ("InvalidMetadataFilterError", "ThreadMetaStore"),
    "deerflow.runtime": (
        "RunManager.cancel",
        "RunManager.cleanup",
        "RunManager.create",
        "RunManager.create_or_reject",
        "RunManager.get",
        "RunManager.list_by_thread",
        "RunManager.set_status",
        "make_store",
        "make_stream_bridge",
    ),
    _CHECKPOINTER: ("make_checkpointer",),
    "deerflow.runtime.events.store": ("make_run_event_store",),
    "deerflow.runtime.events.store.base": ("RunEventStore",),
    "deerflow.runtime.runs.manager": ("ConflictError",),
    "deerflow.runtime.runs.store.base": ("RunStore",),
    "deerflow.runtime.user_context": (
        "AUTO",
        "get_current_user",
        "reset_current_user",
        "resolve_user_id",
        "set_current_user",
    ),
}
"""What this package uses of every release."""

_MAIN_INTERFACES: Final[Names] = {
    "app.channels.dedupe_store": ("make_inbound_dedupe_store",),
    "deerflow.extensions.gateway": ("start_services",),
    "deerflow.persistence.mcp_tasks": ("McpTaskRepository",),
    "deerflow.persistence.scheduled_task_runs": ("ScheduledTaskRunRepository",),
    "deerflow.persistence.scheduled_tasks": ("ScheduledTaskRepository",),
    "deerflow.runtime.runs.manager": (
        "ConflictError",
        "RunManager.reconcile_orphaned_inflight_runs",
        "RunManager.start_heartbeat",
        "RunManager.worker_id",
    ),
    _CHECKPOINTER: ("_select_inner_checkpointer", "make_checkpointer"),
}

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Release:
    """The facts of one release that this package depends on."""

    name: str
    """How messages name it."""

    marks: Names
    """What this release has and older ones do not."""

    interfaces: Names
    """Every name that is used or exchanged."""

    takes_startup_config: bool
    """Whether `langgraph_runtime` is given the configuration; else it reads `app.state.config`."""

    has_run_ownership: bool
    """Whether its manager writes leases and renews them; else `run_leases.py` does."""

    checks_thread_owner: bool
    """Whether its routes check the owner of the thread that a request's body names."""

    drains_runs: bool
    """Whether its runtime ends the runs of this process before its stores are closed."""

    checkpointer: Name = (_CHECKPOINTER, "make_checkpointer")
    """The async context manager in whose place ours gives the saver.

    Where the release caches the histories of delta channels, it is the function whose saver it wraps.
    """

    runtime_config: Sections = field(default_factory=lambda: _NOTHING)
    """What the runtime's configuration has instead of the file's values, so that it starts on our stores.

    With these values a release does what it does on a database that outlives the process, or that several
    workers share: it recovers the runs of workers that have died. Nothing else reads this configuration.
    """

    sql_repositories: tuple[Name, ...] = ()
    """Classes whose instances are None without SQL; DeerFlow answers 503 for what they are needed for."""

    absent: tuple[str, ...] = ()
    """What it has on SQL only and this package does not have, for messages."""

    recovers_at_start: bool = True
    """Whether its runtime ends the runs of dead workers when it starts."""


RELEASES: Final = (
    Release(
        name="DeerFlow main (2.1.0)",
        marks={
            "deerflow.runtime": ("RunManager.start_heartbeat",),
            "deerflow.runtime.runs.store.base": ("RunStore.create_thread_operation_atomic",),
        },
        interfaces={**_INTERFACES, **_MAIN_INTERFACES},
        takes_startup_config=True,
        has_run_ownership=True,
        checks_thread_owner=True,
        drains_runs=True,
        runtime_config={
            "database": {"backend": "postgres"},
            "run_events": {"backend": "db"},
            "run_ownership": {"heartbeat_enabled": True},
        },
        checkpointer=(_CHECKPOINTER, "_select_inner_checkpointer"),
        sql_repositories=(
            ("deerflow.persistence.mcp_tasks", "McpTaskRepository"),
            ("deerflow.persistence.scheduled_task_runs", "ScheduledTaskRunRepository"),
            ("deerflow.persistence.scheduled_tasks", "ScheduledTaskRepository"),
        ),
        absent=("scheduled tasks", "MCP tasks", "channel connections", "the console"),
    ),
    Release(
        name="DeerFlow 2.0.0",
        marks={"deerflow.runtime.runs.store.base": ("RunStore.list_inflight",)},
        interfaces=_INTERFACES,
        takes_startup_config=True,
        has_run_ownership=False,
        checks_thread_owner=True,
        drains_runs=True,
        runtime_config={"database": {"backend": "sqlite"}},
        absent=("channel connections",),
    ),
    Release(
        name="deerflow-kernel 0.1.7",
        marks={},
        interfaces=_INTERFACES,
        takes_startup_config=False,
        has_run_ownership=False,
        checks_thread_owner=False,
        drains_runs=False,
        recovers_at_start=False,
    ),
)
"""Newest first: the first one whose marks are there is the installed one's row."""

FITTING: Final = ", ".join(release.name for release in reversed(RELEASES))
"""The releases that fit, for error texts."""
