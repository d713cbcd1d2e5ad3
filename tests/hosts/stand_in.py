"""A stand-in of the interfaces of DeerFlow main, written as packages `app` and `deerflow` into a folder.

It has the names, signatures and exceptions that this package uses, and the order in which the gateway builds
its runtime: what is on this page, and nothing of DeerFlow's code. It serves no requests and runs no agents.
`test_stand_in.py` uses it where no DeerFlow is installed, and compares it with a real checkout where there
is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OPTIONAL: Final = "~ "
"""Before a method that the interface implements, so that a store may lack it."""

_FIGURES = (
    "total_input_tokens, total_output_tokens, total_tokens, llm_call_count, lead_agent_tokens, "
    "subagent_tokens, middleware_tokens"
)


def _figures(default: str) -> str:
    """The counts of a run with this default, in the order of the interface."""
    counts = [f"{name}={default}" for name in _FIGURES.split(", ")]
    texts = ["last_ai_message=None", "first_human_message=None"]
    return ", ".join([*counts, "token_usage_by_model=None", f"message_count={default}", *texts])


@dataclass(frozen=True)
class Interface:
    """A class with coroutine functions."""

    module: str
    name: str
    methods: tuple[str, ...]
    """Their signatures; `AUTO` is DeerFlow's marker for the bound user."""

    is_abstract: bool = True


_ADMISSION = (
    "multitask_strategy='reject', assistant_id=None, user_id=None, model_name=None, metadata=None, "
    "kwargs=None, created_at=None, grace_seconds=10"
)
_EVENT = "thread_id, run_id, event_type, category, content='', metadata=None, created_at=None"

INTERFACES: Final = (
    Interface(
        "deerflow.runtime.runs.store.base",
        "RunStore",
        (
            "put(run_id, *, thread_id, assistant_id=None, user_id=None, model_name=None, status='pending', "
            "operation_kind='run', multitask_strategy='reject', metadata=None, kwargs=None, error=None, "
            "stop_reason=None, created_at=None, owner_worker_id=None, lease_expires_at=None, "
            "idempotency_key=None)",
            "get(run_id, *, user_id=None)",
            "list_by_thread(thread_id, *, user_id=None, limit=100)",
            "~ list_successful_regenerate_sources(thread_id, *, user_id=None)",
            "~ list_edit_regenerate_runs(thread_id, *, user_id=None)",
            "~ get_many_by_thread(thread_id, run_ids, *, user_id=None)",
            "update_status(run_id, status, *, error=None, stop_reason=None)",
            "start_run(run_id)",
            "delete(run_id)",
            "~ delete_thread_operation(run_id, *, user_id)",
            "update_model_name(run_id, model_name)",
            f"update_run_completion(run_id, *, status, {_figures('0')}, error=None)",
            f"~ update_run_progress(run_id, *, {_figures('None')})",
            "list_pending(*, before=None)",
            "list_inflight(*, before=None)",
            "aggregate_tokens_by_thread(thread_id, *, include_active=False)",
            "update_lease(run_id, *, owner_worker_id, lease_expires_at)",
            "~ renew_lease(run_id, *, owner_worker_id, lease_expires_at)",
            "~ request_cancel(run_id, *, action)",
            "~ finalize_if_not_cancelled(run_id, *, status, error=None, stop_reason=None)",
            "claim_for_takeover(run_id, *, grace_seconds, error, stop_reason=None)",
            "list_inflight_with_expired_lease(*, before=None, grace_seconds=10)",
            "~ create_thread_operation_atomic(run_id, *, thread_id, owner_worker_id, lease_expires_at, "
            f"operation_kind='run', {_ADMISSION}, idempotency_key=None)",
            f"~ create_run_atomic(run_id, *, thread_id, owner_worker_id, lease_expires_at, {_ADMISSION})",
        ),
    ),
    Interface(
        "deerflow.runtime.events.store.base",
        "RunEventStore",
        (
            f"put(*, {_EVENT})",
            "put_batch(events)",
            f"put_if_absent(*, {_EVENT})",
            "list_messages(thread_id, *, limit=50, before_seq=None, after_seq=None, user_id=AUTO)",
            "list_events(thread_id, run_id, *, event_types=None, task_id=None, limit=500, after_seq=None)",
            "list_messages_by_run(thread_id, run_id, *, limit=50, before_seq=None, after_seq=None)",
            "get_last_visible_ai_seq_by_run(thread_id, run_ids, *, user_id=AUTO)",
            "count_messages(thread_id)",
            "delete_by_thread(thread_id)",
            "delete_by_run(thread_id, run_id)",
        ),
    ),
    Interface(
        "deerflow.persistence.thread_meta.base",
        "ThreadMetaStore",
        (
            "create(thread_id, *, assistant_id=None, user_id=AUTO, display_name=None, metadata=None)",
            "get(thread_id, *, user_id=AUTO)",
            "search(*, metadata=None, status=None, limit=100, offset=0, user_id=AUTO)",
            "update_display_name(thread_id, display_name, *, user_id=AUTO)",
            "update_status(thread_id, status, *, user_id=AUTO)",
            "update_metadata(thread_id, metadata, *, touch=True, user_id=AUTO)",
            "update_owner(thread_id, owner_user_id, *, user_id=AUTO)",
            "check_access(thread_id, user_id, *, require_existing=False)",
            "delete(thread_id, *, user_id=AUTO)",
        ),
    ),
    Interface(
        "app.gateway.auth.repositories.base",
        "UserRepository",
        (
            "create_user(user)",
            "get_user_by_id(user_id)",
            "get_user_by_email(email)",
            "update_user(user)",
            "count_users()",
            "count_admin_users()",
            "get_user_by_oauth(provider, oauth_id)",
        ),
    ),
    Interface(
        "deerflow.persistence.feedback",
        "FeedbackRepository",
        (
            "create(*, run_id, thread_id, rating, user_id=AUTO, message_id=None, comment=None)",
            "get(feedback_id, *, user_id=AUTO)",
            "list_by_run(thread_id, run_id, *, limit=100, user_id=AUTO)",
            "list_by_thread(thread_id, *, limit=100, user_id=AUTO)",
            "delete(feedback_id, *, user_id=AUTO)",
            "upsert(*, run_id, thread_id, rating, user_id=AUTO, comment=None)",
            "delete_by_run(*, thread_id, run_id, user_id=AUTO)",
            "list_by_thread_grouped(thread_id, *, user_id=AUTO)",
            "list_by_run_ids(thread_id, run_ids, *, user_id=AUTO)",
            "aggregate_by_run(thread_id, run_id)",
        ),
        is_abstract=False,
    ),
)

_SQL_CLASS = """\
class {name}:
    def __init__(self, session_factory, **options):
        raise AssertionError("{name} was built on SQL")
"""

SOURCES: Final[Mapping[str, str]] = {
    # -- accounts and the application ------------------------------------------------------------
    "app.gateway.auth.models": """\
from datetime import UTC, datetime
from uuid import UUID, uuid4
from pydantic import BaseModel, Field

class User(BaseModel):
    id: UUID = Field(default_factory=uuid4)
    email: str
    password_hash: str | None = None
    system_role: str = "user"
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    oauth_provider: str | None = None
    oauth_id: str | None = None
    needs_setup: bool = False
    token_version: int = 0
""",
    "app.gateway.auth.password": "async def hash_password_async(password): return password\n",
    "app.gateway.auth.credential_file": "def write_initial_credentials(*args, **kwargs): ...\n",
    "app.gateway.auth.repositories.base": "class UserNotFoundError(LookupError): ...\n",
    "app.gateway.internal_auth": "INTERNAL_SYSTEM_ROLE = 'internal'\n",
    "app.channels.dedupe_store": "def make_inbound_dedupe_store(config): return ('dedupe', config)\n",
    "app.gateway.deps": """\
from contextlib import AsyncExitStack, asynccontextmanager
from deerflow.runtime import RunManager

_cached_local_provider = None
_cached_repo = None

@asynccontextmanager
async def langgraph_runtime(app, startup_config):
    from deerflow.persistence.engine import close_engine, get_session_factory, init_engine_from_config
    from deerflow.runtime import make_store, make_stream_bridge
    from deerflow.runtime.checkpointer.async_provider import make_checkpointer
    from deerflow.runtime.events.store import make_run_event_store

    config, state = startup_config, app.state
    backends = (config.database.backend, config.run_events.backend)
    if config.gateway_workers > 1 and backends != ("postgres", "db"):
        raise SystemExit("several workers need PostgreSQL")
    async with AsyncExitStack() as stack:
        state.checkpoint_channel_mode = config.database.checkpoint_channel_mode
        state.stream_bridge = await stack.enter_async_context(make_stream_bridge(config))
        stack.push_async_callback(close_engine)
        await init_engine_from_config(config.database)
        state.checkpointer = await stack.enter_async_context(make_checkpointer(config))
        state.store = await stack.enter_async_context(make_store(config))
        sessions = get_session_factory()
        assert sessions is not None
        from deerflow.persistence.feedback import FeedbackRepository
        from deerflow.persistence.run import RunRepository
        state.run_store = RunRepository(sessions)
        state.feedback_repo = FeedbackRepository(sessions)
        from deerflow.extensions.gateway import start_services
        state.services = await start_services((), config, sessions, attempted_services=[])
        from deerflow.persistence.thread_meta import make_thread_store
        state.thread_store = make_thread_store(sessions, state.store)
        from deerflow.persistence.mcp_tasks import McpTaskRepository
        from deerflow.persistence.scheduled_task_runs import ScheduledTaskRunRepository
        from deerflow.persistence.scheduled_tasks import ScheduledTaskRepository
        state.scheduled_task_repo = ScheduledTaskRepository(sessions, run_repository=state.run_store)
        state.scheduled_task_run_repo = ScheduledTaskRunRepository(sessions, run_repository=state.run_store)
        state.mcp_task_repo = McpTaskRepository(sessions)
        state.run_events_config = config.run_events
        state.run_event_store = make_run_event_store(config.run_events)
        state.run_manager = RunManager(
            store=state.run_store,
            run_ownership_config=config.run_ownership,
            event_store=state.run_event_store,
            on_orphans_recovered=state.recovered.append,
        )
        await state.run_manager.reconcile_orphaned_inflight_runs(
            error="restarted", before=None, stop_reason="orphan_recovered"
        )
        await state.run_manager.start_heartbeat()
        try:
            yield
        finally:
            await state.run_manager.drain()
""",
    "app.gateway.app": """\
from contextlib import asynccontextmanager
from types import SimpleNamespace
from app.gateway.deps import langgraph_runtime
from deerflow.config.app_config import get_app_config

class Application:
    def __init__(self):
        self.state = SimpleNamespace(recovered=[], after_runtime=[])
        self.router = SimpleNamespace(lifespan_context=lifespan, routes=[])
        self.user_middleware = []
        self.handlers = {}

    def add_exception_handler(self, error, handler):
        self.handlers[error] = handler

@asynccontextmanager
async def lifespan(app):
    startup_config = get_app_config()
    async with langgraph_runtime(app, startup_config):
        from app.channels.dedupe_store import make_inbound_dedupe_store
        from deerflow.persistence.engine import get_session_factory
        app.state.dedupe = make_inbound_dedupe_store(startup_config)
        app.state.sessions_after_runtime = get_session_factory()
        yield

def create_app():
    return Application()
""",
    # -- configuration -----------------------------------------------------------------------------
    "deerflow.config.app_config": """\
import json, os
from pathlib import Path
from pydantic import BaseModel, ConfigDict, Field
from deerflow.config.checkpointer_config import CheckpointerConfig
from deerflow.config.database_config import CheckpointCacheConfig

class _Section(BaseModel):
    model_config = ConfigDict(extra="allow")

class DatabaseConfig(_Section):
    backend: str = "sqlite"
    checkpoint_channel_mode: str = "full"
    checkpoint_cache: CheckpointCacheConfig = Field(default_factory=CheckpointCacheConfig)

class RunEventsConfig(_Section):
    backend: str = "memory"
    max_trace_content: int = 10240

class RunOwnershipConfig(_Section):
    lease_seconds: int = 30
    grace_seconds: int = 10
    heartbeat_enabled: bool = False

class AppConfig(_Section):
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    run_events: RunEventsConfig = Field(default_factory=RunEventsConfig)
    run_ownership: RunOwnershipConfig = Field(default_factory=RunOwnershipConfig)
    checkpointer: CheckpointerConfig | None = None
    gateway_workers: int = Field(default_factory=lambda: int(os.environ.get("GATEWAY_WORKERS", "1")))

    @classmethod
    def resolve_config_path(cls, config_path=None):
        return Path(config_path or os.environ["DEER_FLOW_CONFIG_PATH"])

def get_app_config():
    return AppConfig(**json.loads(AppConfig.resolve_config_path().read_text()))
""",
    "deerflow.config.checkpointer_config": """\
from pydantic import BaseModel

class CheckpointerConfig(BaseModel):
    type: str = "memory"
""",
    "deerflow.config.database_config": """\
from pydantic import BaseModel

class CheckpointCacheConfig(BaseModel):
    max_entries: int = 128
    key_prefix: str = ""
""",
    "deerflow.config.runtime_paths": """\
import os
from pathlib import Path

def runtime_home():
    return Path(os.environ["DEER_FLOW_HOME"])
""",
    # -- persistence -------------------------------------------------------------------------------
    "deerflow.persistence.engine": """\
async def init_engine_from_config(config): raise AssertionError("an SQL engine was opened")
async def close_engine(): ...
def get_session_factory(): return None
""",
    "deerflow.persistence.json_compat": """\
import re

def validate_metadata_filter_key(key):
    return isinstance(key, str) and re.fullmatch("[A-Za-z0-9_-]+", key) is not None

def validate_metadata_filter_value(value):
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str | bool | float)
""",
    "deerflow.persistence.run": _SQL_CLASS.format(name="RunRepository"),
    "deerflow.persistence.mcp_tasks": _SQL_CLASS.format(name="McpTaskRepository"),
    "deerflow.persistence.scheduled_task_runs": _SQL_CLASS.format(name="ScheduledTaskRunRepository"),
    "deerflow.persistence.scheduled_tasks": _SQL_CLASS.format(name="ScheduledTaskRepository"),
    "deerflow.persistence.thread_meta": """\
THREAD_PINNED_METADATA_KEY = "deerflow_pinned"

def make_thread_store(session_factory, store=None): raise AssertionError("threads were built on SQL")
""",
    "deerflow.persistence.thread_meta.base": "class InvalidMetadataFilterError(ValueError): ...\n",
    "deerflow.extensions.gateway": """\
async def start_services(extensions, config, session_factory, *, attempted_services):
    return (config, session_factory)
""",
    # -- runtime -----------------------------------------------------------------------------------
    "deerflow.runtime.user_context": """\
from contextvars import ContextVar

class _Auto: ...

AUTO = _Auto()
_user = ContextVar("user", default=None)

def get_current_user(): return _user.get()
def set_current_user(user): return _user.set(user)
def reset_current_user(token): _user.reset(token)

def resolve_user_id(value, *, method_name="the method"):
    if value is not AUTO:
        return value
    if _user.get() is None:
        raise RuntimeError(f"{method_name} needs a bound user")
    return str(_user.get().id)
""",
    "deerflow.runtime.runs.store.base": """\
from dataclasses import dataclass

@dataclass(frozen=True)
class LeaseRenewal:
    renewed: bool
    cancel_action: str | None = None

@dataclass(frozen=True)
class StatusFinalization:
    finalized: bool
    cancel_action: str | None = None

class RunIdempotencyConflict(RuntimeError):
    def __init__(self, existing):
        super().__init__("the key is taken")
        self.existing = existing
""",
    "deerflow.runtime.runs.manager": """\
class ConflictError(Exception): ...

class RunManager:
    def __init__(self, store=None, *, run_ownership_config=None, event_store=None, on_orphans_recovered=None):
        self.store, self.event_store = store, event_store
        self.ownership = run_ownership_config
        self.on_orphans_recovered = on_orphans_recovered
        self.steps = []

    @property
    def worker_id(self): return "host:0"

    async def create(self, thread_id, **options): ...
    async def create_or_reject(self, thread_id, **options): ...
    async def get(self, run_id, *, user_id=None): ...
    async def list_by_thread(self, thread_id, *, user_id=None, limit=100): return []
    async def set_status(self, run_id, status, *, error=None, stop_reason=None): ...
    async def cancel(self, run_id, *, action="interrupt"): ...
    async def cleanup(self, run_id, *, delay=300): ...

    async def reconcile_orphaned_inflight_runs(self, *, error, before=None, stop_reason=None):
        found = await self.store.list_inflight_with_expired_lease(
            before=before, grace_seconds=self.ownership.grace_seconds
        )
        self.steps.append(("recovery", [row["run_id"] for row in found]))
        return []

    async def start_heartbeat(self): self.steps.append(("heartbeat", self.ownership.heartbeat_enabled))
    async def drain(self): self.steps.append(("drain", None))
""",
    "deerflow.runtime": """\
from contextlib import asynccontextmanager
from deerflow.runtime.runs.manager import ConflictError, RunManager

class MemoryStreamBridge:
    async def publish(self, run_id, event, data): return (run_id, event, data)

@asynccontextmanager
async def make_stream_bridge(config): yield MemoryStreamBridge()

@asynccontextmanager
async def make_store(config): yield ("store", config.database.backend)
""",
    "deerflow.runtime.checkpointer.async_provider": """\
from contextlib import asynccontextmanager

class CachedHistorySaver:
    def __init__(self, inner, *, key_prefix):
        self.inner, self.key_prefix = inner, key_prefix

@asynccontextmanager
async def _select_inner_checkpointer(config):
    raise AssertionError("a checkpointer was built on SQL")
    yield

@asynccontextmanager
async def make_checkpointer(config):
    async with _select_inner_checkpointer(config) as saver:
        if config.database.checkpoint_channel_mode == "delta":
            saver = CachedHistorySaver(saver, key_prefix=config.database.checkpoint_cache.key_prefix)
        yield saver
""",
    "deerflow.runtime.events.store": """\
def make_run_event_store(config): raise AssertionError("run events were built on SQL")
""",
    "deerflow.runtime.events.store.base": "",
}
"""Module -> what it has beside its interface."""

FRAMEWORK: Final[Mapping[str, str]] = {
    "fastapi": """\
class HTTPException(Exception):
    def __init__(self, status_code, detail=None, headers=None):
        super().__init__(detail)
        self.status_code, self.detail, self.headers = status_code, detail, headers
""",
    "starlette.middleware": """\
class Middleware:
    def __init__(self, cls, **options):
        self.cls, self.options = cls, options
""",
    "starlette.responses": "class JSONResponse: ...\n",
}
"""What this package imports of the web framework, for an environment without it."""


def write_stand_in(
    folder: Path, *, without: Iterable[str] = (), extra: Mapping[str, str] | None = None
) -> None:
    """Write the packages into `folder`.

    `without` are names, `module.name`, that are deleted again; `extra` has more methods by interface.
    """
    by_module: dict[str, str] = dict(SOURCES)
    for interface in INTERFACES:
        more = [text for name, text in (extra or {}).items() if name == interface.name]
        source = _interface_source(interface, [*interface.methods, *more])
        by_module[interface.module] = f"{by_module.get(interface.module, '')}\n{source}"
    for name in without:
        module, _, attribute = name.rpartition(".")
        by_module[module] += f"\ndel {attribute}\n"
    _write_packages(folder, by_module)


def write_framework(folder: Path) -> None:
    """Write what stands for the web framework, for the end of the path: an installed one comes first."""
    _write_packages(folder, FRAMEWORK)


def _interface_source(interface: Interface, methods: Iterable[str]) -> str:
    lines = ["import abc", "from deerflow.runtime.user_context import AUTO", ""]
    lines.append(f"class {interface.name}{'(abc.ABC)' if interface.is_abstract else ''}:")
    for text in methods:
        name, _, parameters = text.removeprefix(OPTIONAL).partition("(")
        if interface.is_abstract and not text.startswith(OPTIONAL):
            lines.append("    @abc.abstractmethod")
        given = f"self, {parameters}" if parameters != ")" else "self)"
        lines.append(f"    async def {name}({given}: raise NotImplementedError")
    return "\n".join([*lines, ""])


def _write_packages(folder: Path, sources: Mapping[str, str]) -> None:
    packages = {parent for name in sources for parent in _parents(name)}
    for name in {*sources, *packages}:
        path = folder.joinpath(*name.split("."))
        file = path / "__init__.py" if name in packages else path.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(sources.get(name, ""))


def _parents(module: str) -> Iterable[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module
