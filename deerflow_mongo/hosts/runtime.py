"""DeerFlow's runtime on our stores: its own start builds everything, from our classes in place of SQL's.

`langgraph_runtime` of DeerFlow imports what it builds by name. While it is entered, and no longer, these
names stand for adapters over a storage; the run manager, recovery and leases that it makes are then its own.
What this package does not have yet is None there, as without SQL.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from ..contract.capabilities import database_identity
from ..contract.erasure import Erasure
from ..contract.errors import StorageConfigError, StorageError
from .availability import HealthReportingStore, StorageHealth
from .deerflow import (
    Comparison,
    check_comparisons,
    compare_adapters,
    compare_names,
    find_release,
    import_deerflow,
)
from .encodable import EncodableBridge
from .exchange import exchanged, original
from .options import PURGE, THREAD_DELETION
from .releases import APP_RUNTIME, DEPS, ENGINE, Name, Release
from .run_leases import RunLeases

WORKERS_VARIABLE: Final = "GATEWAY_WORKERS"

END_TIMEOUT_S: Final = 5.0
"""How long a stop waits for runs to end, and then for the storage to record the rest of them as ended."""

CACHE_PREFIX: Final = "deerflow-mongo-history"
"""Of the keys in a checkpoint cache; a hash of the database's identity follows."""

_PREFIX_DIGITS: Final = 16

STOPPED: Final = "The gateway was stopped before this run ended."
_INTERRUPTED: Final = "interrupted"

_DEDUPE: Final[Name] = ("app.channels.dedupe_store", "make_inbound_dedupe_store")
_START_SERVICES: Final[Name] = ("deerflow.extensions.gateway", "start_services")
_STORE: Final[Name] = ("deerflow.runtime", "make_store")
_STREAM_BRIDGE: Final[Name] = ("deerflow.runtime", "make_stream_bridge")
_RUN_MANAGER: Final[Name] = (DEPS, "RunManager")

logger = logging.getLogger(__name__)


class _NoSessions:
    """Stands for a factory of SQL sessions where DeerFlow only passes it on."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("there are no SQL sessions: this gateway stores its data in deerflow-mongo")


_NO_SESSIONS: Final = _NoSessions()


async def _nothing(*arguments: Any, **options: Any) -> None:
    """In place of what opens and closes the SQL engine."""


def _absent(*arguments: Any, **options: Any) -> None:
    """In place of a repository that this package does not have."""


# -- before the start ------------------------------------------------------------------------------


def check_release() -> Release:
    """The installed release; raises `UnsupportedReleaseError` unless it has and needs what we know."""
    release, comparisons = compare_release()
    check_comparisons(comparisons)
    return release


def compare_release() -> tuple[Release, list[Comparison]]:
    """The row of the installed DeerFlow, and how each of its parts fits.

    The adapters, which need its classes, are compared only where no name is missing.
    """
    release = find_release()
    comparisons = compare_names(release.interfaces)
    if all(comparison.fits for comparison in comparisons):
        comparisons.append(_compare_runtime(release))
        comparisons += compare_adapters(adapters())
    return release, comparisons


def _compare_runtime(release: Release) -> Comparison:
    wanted = ["app", "startup_config"] if release.takes_startup_config else ["app"]
    found = list(inspect.signature(import_deerflow(DEPS).langgraph_runtime).parameters)
    name = f"{DEPS}.langgraph_runtime"
    needs = [] if found == wanted else [f"{name}({', '.join(found)})"]
    return Comparison(f"{name}({', '.join(wanted)})", needs=tuple(needs))


def adapters() -> dict[type, Any]:
    """DeerFlow's class for each of our adapters."""
    # Not at the top: an adapter's class needs DeerFlow's base class, and importing this module does not.
    from .adapters.feedback import FeedbackRepositoryAdapter
    from .adapters.run_events import RunEventStoreAdapter
    from .adapters.runs import RunStoreAdapter
    from .adapters.threads import ThreadMetaStoreAdapter
    from .adapters.users import UserRepositoryAdapter

    bases: list[tuple[type, str, str]] = [
        (FeedbackRepositoryAdapter, "deerflow.persistence.feedback", "FeedbackRepository"),
        (RunEventStoreAdapter, "deerflow.runtime.events.store.base", "RunEventStore"),
        (RunStoreAdapter, "deerflow.runtime.runs.store.base", "RunStore"),
        (ThreadMetaStoreAdapter, "deerflow.persistence.thread_meta.base", "ThreadMetaStore"),
        (UserRepositoryAdapter, "app.gateway.auth.repositories.base", "UserRepository"),
    ]
    return {adapter: getattr(import_deerflow(module), name) for adapter, module, name in bases}


def check_workers(options: Mapping[str, Any]) -> None:
    """Raise `StorageConfigError` for several workers on a storage that is in each worker's memory."""
    try:
        workers = int(os.environ.get(WORKERS_VARIABLE, "1"))
    except ValueError:
        return
    backend, url = options.get("backend", ""), str(options.get("url", ""))
    if workers > 1 and (backend == "memory" or url.startswith("mongomock:")):
        raise StorageConfigError(
            f"{WORKERS_VARIABLE}={workers} needs a storage that the workers share, and this one is in the "
            "memory of each worker; use a MongoDB server or `url: embedded`"
        )


# -- the runtime -----------------------------------------------------------------------------------


@dataclass(slots=True)
class StoredRuntime:
    """What one application's runtime is built from."""

    storage: Any
    release: Release
    leases: RunLeases | None
    run_store: Any
    feedback: Any
    threads: Any
    run_events: Any
    users: Any
    checkpointer: Any
    make_manager: Callable[..., Any]

    @classmethod
    async def over(
        cls,
        storage: Any,
        settings: Any,
        health: StorageHealth,
        release: Release,
        options: Mapping[str, str],
    ) -> StoredRuntime:
        """Adapters over an open storage, for DeerFlow with these settings and the gateway's own options."""
        from .adapters.counts_by_model import CountsByModel
        from .adapters.feedback import FeedbackRepositoryAdapter
        from .adapters.run_events import RunEventStoreAdapter
        from .adapters.runs import RunStoreAdapter, WorkerLease
        from .adapters.threads import ThreadMetaStoreAdapter
        from .adapters.users import UserRepositoryAdapter
        from .run_manager import run_manager_class

        counts, leases, lease = CountsByModel(), None, None
        if not release.has_run_ownership:
            leases = RunLeases.configured(
                storage.runs,
                getattr(settings, "run_ownership", None),
                recovers_at_start=not release.recovers_at_start,
            )
            lease = WorkerLease(leases.owner_worker_id, leases.lease_seconds, leases.grace_seconds)
        runs, threads, feedback, run_events, users = (
            HealthReportingStore.over(store, health)
            for store in (storage.runs, storage.threads, storage.feedback, storage.run_events, storage.users)
        )
        erasing = HealthReportingStore.over(storage, health) if _purges_threads(storage, options) else None
        thread_store = ThreadMetaStoreAdapter(threads, runs, erasing)
        return cls(
            storage=storage,
            release=release,
            leases=leases,
            run_store=RunStoreAdapter(runs, counts, lease),
            feedback=FeedbackRepositoryAdapter(feedback),
            threads=thread_store,
            run_events=RunEventStoreAdapter(
                run_events, counts, max_trace_content=settings.run_events.max_trace_content
            ),
            users=UserRepositoryAdapter(users),
            checkpointer=await storage.checkpointer(),
            make_manager=run_manager_class(None if release.checks_thread_owner else lambda: thread_store),
        )

    def application_names(self) -> dict[Name, Callable[..., Any]]:
        """What the application's lifespan uses while it is entered."""
        names: dict[Name, Callable[..., Any]] = {APP_RUNTIME: self.runtime}
        if _DEDUPE[0] in self.release.interfaces:
            make: Any = original(_DEDUPE)
            names[_DEDUPE] = lambda *configs: make(*map(_in_memory, configs))
        return names

    @asynccontextmanager
    async def runtime(self, app: Any, *startup: Any) -> AsyncGenerator[None]:
        """DeerFlow's `langgraph_runtime`, built on this storage."""
        settings = startup[0] if startup else app.state.config
        arguments = [self._runtime_config(settings)] if startup else []
        async with AsyncExitStack() as stack:
            if self.leases is not None:
                await stack.enter_async_context(self.leases)
            stack.push_async_callback(self._end_runs, app)
            with exchanged(self._runtime_names(settings)):
                await stack.enter_async_context(original(APP_RUNTIME)(app, *arguments))
            yield

    def _runtime_names(self, settings: Any) -> dict[Name, Callable[..., Any]]:
        """What the runtime builds while it is entered."""
        names: dict[Name, Callable[..., Any]] = {
            (ENGINE, "init_engine_from_config"): _nothing,
            (ENGINE, "close_engine"): _nothing,
            (ENGINE, "get_session_factory"): lambda: _NO_SESSIONS,
            ("deerflow.persistence.run", "RunRepository"): lambda *_: self.run_store,
            ("deerflow.persistence.feedback", "FeedbackRepository"): lambda *_: self.feedback,
            ("deerflow.persistence.thread_meta", "make_thread_store"): lambda *_: self.threads,
            ("deerflow.runtime.events.store", "make_run_event_store"): lambda *_: self.run_events,
            self.release.checkpointer: self._make_checkpointer,
            _STORE: _store_in_memory(settings),
            _STREAM_BRIDGE: _encodable_bridge(settings),
            _RUN_MANAGER: self.make_manager,
            **dict.fromkeys(self.release.sql_repositories, _absent),
        }
        if _START_SERVICES[0] in self.release.interfaces:
            names[_START_SERVICES] = _services_without_sql(settings)
        return names

    @asynccontextmanager
    async def _make_checkpointer(self, *_: Any) -> AsyncGenerator[Any]:
        yield self.checkpointer  # closed with the storage

    def _runtime_config(self, settings: Any) -> Any:
        """The configuration with which the runtime starts on our stores; all other fields stay."""
        if getattr(getattr(settings, "agent_storage", None), "backend", None) == "db":
            raise StorageConfigError(
                "`agent_storage.backend: db` stores agents in SQL, which this gateway does not have; "
                "use `file`"
            )
        ownership: Any = getattr(settings, "run_ownership", None)
        if self.release.has_run_ownership and not ownership.heartbeat_enabled:
            logger.info(
                "run_ownership.heartbeat_enabled is on, since several workers may share this storage "
                "(leases of %d s, grace %d s)",
                ownership.lease_seconds,
                ownership.grace_seconds,
            )
        changed = {
            section: getattr(settings, section).model_copy(update=dict(values))
            for section, values in self.release.runtime_config.items()
        }
        changed["database"] = self._with_cache_prefix(changed["database"])
        return settings.model_copy(update=changed)

    def _with_cache_prefix(self, database: Any) -> Any:
        """The section `database:`, with a prefix for the keys of its checkpoint cache.

        DeerFlow derives one from SQL's address, so all databases of MongoDB on one Redis would share theirs.
        """
        cache = getattr(database, "checkpoint_cache", None)
        if cache is None or cache.key_prefix:
            return database
        identity = database_identity(self.storage) or uuid.uuid4().hex
        digest = hashlib.sha256(identity.encode()).hexdigest()[:_PREFIX_DIGITS]
        prefix = {"key_prefix": f"{CACHE_PREFIX}:{digest}"}
        return database.model_copy(update={"checkpoint_cache": cache.model_copy(update=prefix)})

    # -- the end ---------------------------------------------------------------------------------------

    async def _end_runs(self, app: Any) -> None:
        """End what is left of this worker's runs: nobody else executes them."""
        manager = getattr(app.state, "run_manager", None)
        if manager is None:
            return
        if not self.release.drains_runs:
            await _cancel_runs(manager)
        owner = manager.worker_id if self.leases is None else self.leases.owner_worker_id
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                ended = await self.storage.runs.end_runs_of_worker(owner, status=_INTERRUPTED, error=STOPPED)
        except (StorageError, TimeoutError) as error:
            logger.warning(
                "runs of this worker may be left until their leases expire: %s", error or "timeout"
            )
            return
        if ended:
            logger.info("ended what was left of this worker's runs: %d", ended)

    @contextmanager
    def accounts(self) -> Generator[None]:
        """Use these accounts where DeerFlow caches, for the whole process, a repository made over SQL."""
        _accounts.enter(self.users)
        try:
            yield
        finally:
            _accounts.leave(self.users)


def _purges_threads(storage: Any, options: Mapping[str, str]) -> bool:
    if options[THREAD_DELETION] != PURGE:
        return False
    if not isinstance(storage, Erasure):
        logger.warning(
            "%s cannot erase threads: runs, run events and feedback of a deleted thread stay",
            type(storage).__name__,
        )
        return False
    return True


async def _cancel_runs(manager: Any) -> None:
    """Cancel the runs of a manager that has no such step of its own, and wait for them."""
    records: dict[str, Any] = getattr(manager, "_runs", {})
    active = [record for record in records.values() if record.task and not record.task.done()]
    for record in active:
        await manager.cancel(record.run_id)
    if active:
        await asyncio.wait([record.task for record in active], timeout=END_TIMEOUT_S)


# -- DeerFlow's own functions, with other arguments ------------------------------------------------


def _in_memory(settings: Any) -> Any:
    """The settings of a DeerFlow without a database."""
    checkpointer: Any = import_deerflow("deerflow.config.checkpointer_config").CheckpointerConfig
    return settings.model_copy(
        update={
            "database": settings.database.model_copy(update={"backend": "memory"}),
            "checkpointer": checkpointer(type="memory"),
        }
    )


def _store_in_memory(settings: Any) -> Callable[..., Any]:
    """LangGraph's long-term store, which this package does not have."""
    make: Any = original(_STORE)
    return lambda *_: make(_in_memory(settings))


def _encodable_bridge(settings: Any) -> Callable[..., Any]:
    """The bridge that the settings ask for; what runs publish can be sent."""
    make: Any = original(_STREAM_BRIDGE)

    @asynccontextmanager
    async def bridge(*_: Any) -> AsyncGenerator[Any]:
        async with make(settings) as made:
            yield EncodableBridge.of(made)

    return bridge


def _services_without_sql(settings: Any) -> Callable[..., Any]:
    """An extension gets the operator's settings, and no sessions."""
    start: Any = original(_START_SERVICES)

    async def start_services(extensions: Any, _config: Any, _sessions: Any, **options: Any) -> Any:
        return await start(extensions, settings, None, **options)

    return start_services


# -- accounts --------------------------------------------------------------------------------------


class _CachedAccounts:
    """DeerFlow's two globals of its accounts: those of the application that started last."""

    _NAMES: Final = ("_cached_repo", "_cached_local_provider")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Any] = []
        self._before: tuple[Any, ...] = ()

    def enter(self, users: Any) -> None:
        with self._lock:
            if not self._open:
                deps = import_deerflow(DEPS)
                self._before = tuple(getattr(deps, name) for name in self._NAMES)
            self._open.append(users)
            self._set(users, None)

    def leave(self, users: Any) -> None:
        with self._lock:
            self._open.remove(users)
            if not self._open:
                self._set(*self._before)
            else:
                self._set(self._open[-1], None)

    def _set(self, *values: Any) -> None:
        deps = import_deerflow(DEPS)
        for name, value in zip(self._NAMES, values, strict=True):
            setattr(deps, name, value)


_accounts: Final = _CachedAccounts()
