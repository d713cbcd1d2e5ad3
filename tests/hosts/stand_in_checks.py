"""What is checked on the stand-in of DeerFlow main: in a child process, whose `app` and `deerflow` it is.

`python -m tests.hosts.stand_in_checks FOLDER URL DATABASE` prints the outcome of every check as JSON: None,
or the traceback. The stand-in and the web framework, if it is not installed, are in folders in `FOLDER`.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pymongo
import pytest

from .stand_in import INTERFACES, Interface

Check = Callable[["Ground"], Coroutine[Any, Any, None]]

CONFIG: Final[dict[str, Any]] = {
    "database": {
        "backend": "sqlite",
        "checkpoint_channel_mode": "delta",
        "checkpoint_cache": {"max_entries": 7},
    },
    "run_events": {"max_trace_content": 123},
    "run_ownership": {"lease_seconds": 21, "grace_seconds": 5},
}
"""DeerFlow's configuration; what is not about our stores must reach its runtime unchanged."""

ADAPTERS: Final = {
    "RunStore": "runs:RunStoreAdapter",
    "RunEventStore": "run_events:RunEventStoreAdapter",
    "ThreadMetaStore": "threads:ThreadMetaStoreAdapter",
    "UserRepository": "users:UserRepositoryAdapter",
    "FeedbackRepository": "feedback:FeedbackRepositoryAdapter",
}


@dataclass(frozen=True)
class Ground:
    """Where the checks work: a folder, and one database, which has no runs when a check begins."""

    folder: Path
    url: str
    database: str

    def options(self) -> dict[str, Any]:
        return {"backend": "mongodb", "url": self.url, "database": self.database}

    def clear(self) -> None:
        with pymongo.MongoClient[dict[str, Any]](self.url) as client:
            client[self.database]["runs"].delete_many({})


def module(name: str) -> Any:
    return importlib.import_module(name)


def attributes(owner: Any) -> dict[str, Any]:
    """The attributes of a module or a class."""
    return dict(owner.__dict__) if isinstance(owner, type) else owner.__dict__


def adapter(interface: Interface) -> Any:
    """Our class for the interface."""
    name, _, attribute = ADAPTERS[interface.name].partition(":")
    return getattr(module(f"deerflow_mongo.hosts.adapters.{name}"), attribute)


# -- interfaces ------------------------------------------------------------------------------------


async def adapters_implement_every_method(ground: Ground) -> None:
    for interface in INTERFACES:
        ours, theirs = adapter(interface), getattr(module(interface.module), interface.name)
        assert not getattr(ours, "__abstractmethods__", None), ours.__abstractmethods__
        for name, method in inspect.getmembers(theirs, inspect.isfunction):
            if not name.startswith("_"):
                assert getattr(ours, name) is not method, f"{ours.__name__}.{name} is inherited"
                assert inspect.iscoroutinefunction(getattr(ours, name)), name


async def adapters_take_every_argument(ground: Ground) -> None:
    for interface in INTERFACES:
        ours, theirs = adapter(interface), getattr(module(interface.module), interface.name)
        for name, method in inspect.getmembers(theirs, inspect.isfunction):
            if name.startswith("_"):
                continue
            wanted = inspect.signature(method).parameters
            given = inspect.signature(getattr(ours, name)).parameters
            for parameter in wanted.values():
                found = given.get(parameter.name)
                assert found is not None, f"{ours.__name__}.{name} lacks {parameter.name}"
                assert found.kind is parameter.kind, f"{ours.__name__}.{name}: {found}"
                # The interfaces say None where the classes on SQL, which callers expect, say AUTO.
                if parameter.name != "user_id":
                    assert found.default == parameter.default, f"{ours.__name__}.{name}: {found}"


# -- the check of names and signatures ---------------------------------------------------------------


def refusal() -> str:
    """The sentence with which the installed DeerFlow is refused."""
    errors: Any = module("deerflow_mongo.contract.errors")
    try:
        module("deerflow_mongo.hosts.runtime").check_release()
    except errors.StorageConfigError as error:
        return str(error)
    raise AssertionError("this DeerFlow was accepted")


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Generator[None]:
    """Set an attribute for a block; None deletes it."""
    before = attributes(owner).get(name)
    if value is None:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


async def stand_in_is_accepted_as_main(ground: Ground) -> None:
    release: Any = module("deerflow_mongo.hosts.runtime").check_release()
    assert release.has_run_ownership
    assert "main" in release.name


async def missing_seam_is_refused_by_name(ground: Ground) -> None:
    for owner, name in (
        ("deerflow.persistence.engine", "get_session_factory"),
        ("deerflow.persistence.thread_meta", "make_thread_store"),
        ("deerflow.persistence.scheduled_tasks", "ScheduledTaskRepository"),
        ("deerflow.runtime", "make_stream_bridge"),
        ("deerflow.extensions.gateway", "start_services"),
        ("app.gateway.deps", "_cached_local_provider"),
    ):
        holder = module(owner)
        with renamed(holder, name):
            sentence = refusal()
        assert f"{owner}.{name}" in sentence, sentence
        assert "\n" not in sentence
        assert "0.1.7" in sentence  # the releases that fit
    await stand_in_is_accepted_as_main(ground)


@contextmanager
def renamed(owner: Any, name: str) -> Generator[None]:
    """The module without this name; its value may be None."""
    value = attributes(owner).pop(name)
    try:
        yield
    finally:
        setattr(owner, name, value)


async def unknown_abstract_method_is_refused_by_name(ground: Ground) -> None:
    async def archive(self: Any, run_id: str) -> None: ...

    archive.__isabstractmethod__ = True  # pyright: ignore[reportFunctionMemberAccess]
    for interface in INTERFACES:
        theirs = getattr(module(interface.module), interface.name)
        with attribute(theirs, "archive", archive):
            sentence = refusal()
        assert f"{adapter(interface).__name__}.archive" in sentence, sentence


async def unknown_parameter_is_refused_by_name(ground: Ground) -> None:
    async def put(self: Any, run_id: str, *, thread_id: str, priority: int = 0) -> None: ...
    async def search(self: Any, *, metadata: Any = None, archived: bool = False) -> None: ...

    for interface, changed in ((INTERFACES[0], put), (INTERFACES[2], search)):
        theirs = getattr(module(interface.module), interface.name)
        with attribute(theirs, changed.__name__, changed):
            sentence = refusal()
        unknown = list(inspect.signature(changed).parameters)[-1]
        assert f"{changed.__name__}({unknown}" in sentence, sentence


async def runtime_with_another_signature_is_refused(ground: Ground) -> None:
    deps = module("app.gateway.deps")

    @asynccontextmanager
    async def langgraph_runtime(app: Any, startup_config: Any, plugins: Any) -> AsyncGenerator[None]:
        yield

    with attribute(deps, "langgraph_runtime", langgraph_runtime):
        assert "plugins" in refusal()


# -- the seams -------------------------------------------------------------------------------------


def seams() -> dict[str, Any]:
    """Every name that this package uses or exchanges, with its value."""
    release: Any = module("deerflow_mongo.hosts.runtime").check_release()
    return {
        f"{owner}.{name}": vars(module(owner))[name]
        for owner, names in release.interfaces.items()
        for name in names
        if "." not in name
    }


@asynccontextmanager
async def started(ground: Ground) -> AsyncGenerator[Any]:
    """The gateway's application, started on a database of its own."""
    app: Any = module("deerflow_mongo.hosts.gateway").create_app(ground.options())
    async with app.router.lifespan_context(app):
        yield app


async def runtime_is_built_on_our_stores(ground: Ground) -> None:
    async with started(ground) as app:
        state, adapters = app.state, "deerflow_mongo.hosts.adapters"
        for name in ("run_store", "feedback_repo", "thread_store", "run_event_store"):
            assert type(getattr(state, name)).__module__.startswith(adapters), name
        assert "Mongo" in type(state.checkpointer.inner).__name__
        assert (state.mcp_task_repo, state.scheduled_task_repo, state.scheduled_task_run_repo) == (None,) * 3
        assert state.services[1] is None  # an extension gets no SQL sessions
        assert state.store == ("store", "memory")
        assert state.sessions_after_runtime is None
        users: Any = module("app.gateway.deps")._cached_repo
        assert type(users).__module__.startswith(adapters)
        assert await users.count_users() == 0


async def garbage_collector_leaves_out_what_the_start_loaded(ground: Ground) -> None:
    before = gc.get_freeze_count()
    async with started(ground):
        assert gc.get_freeze_count() > before + 10_000
    assert gc.get_freeze_count() <= before


async def manager_recovers_and_renews_on_our_stores(ground: Ground) -> None:
    async with started(ground) as app:
        manager = app.state.run_manager
        assert ("recovery", []) in manager.steps
        assert ("heartbeat", True) in manager.steps
        assert (manager.ownership.lease_seconds, manager.ownership.grace_seconds) == (21, 5)
        await manager.store.create_thread_operation_atomic(
            "r", thread_id="t", owner_worker_id=manager.worker_id, lease_expires_at=None, user_id="u"
        )
        assert (await app.state.run_store.get("r", user_id=None))["status"] == "pending"
        assert await app.state.run_store.start_run("r")
    assert manager.steps[-1][0] == "drain"


async def other_settings_reach_the_runtime(ground: Ground) -> None:
    async with started(ground) as app:
        assert app.state.checkpoint_channel_mode == "delta"
        config = app.state.services[0]
        assert config.database.checkpoint_cache.max_entries == 7
        assert app.state.run_events_config.max_trace_content == 123


async def keys_of_the_checkpoint_cache_begin_with_the_databases_prefix(ground: Ground) -> None:
    prefixes: list[str] = []
    for database in (ground.database, ground.database, f"{ground.database}_2"):
        async with started(replace(ground, database=database)) as app:
            prefixes.append(app.state.checkpointer.key_prefix)
    with pymongo.MongoClient[dict[str, Any]](ground.url) as client:
        client.drop_database(f"{ground.database}_2")
    assert prefixes[0] == prefixes[1] != prefixes[2]
    assert all(prefix.startswith("deerflow-mongo-history:") for prefix in prefixes)


async def several_workers_pass_the_gate(ground: Ground) -> None:
    os.environ["GATEWAY_WORKERS"] = "4"
    try:
        async with started(ground) as app:
            assert app.state.run_manager.ownership.heartbeat_enabled
    finally:
        del os.environ["GATEWAY_WORKERS"]


async def names_are_restored_after_entering(ground: Ground) -> None:
    module("app.channels.dedupe_store")
    before = seams()
    async with started(ground):
        accounts = {"app.gateway.deps._cached_repo", "app.gateway.deps._cached_local_provider"}
        changed = {name for name, value in seams().items() if before[name] is not value}
        assert changed <= accounts, changed
    assert seams() == before


async def names_are_restored_after_a_failed_start(ground: Ground) -> None:
    before = seams()
    manager = module("deerflow.runtime.runs.manager").RunManager

    async def fail(*_: Any, **__: Any) -> None:
        raise LookupError("no recovery today")

    with attribute(manager, "reconcile_orphaned_inflight_runs", fail), pytest.raises(LookupError):
        async with started(ground):
            raise AssertionError("it started")
    assert seams() == before


async def names_are_restored_after_a_cancelled_start(ground: Ground) -> None:
    before = seams()
    manager = module("deerflow.runtime.runs.manager").RunManager
    reached = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def start() -> None:
        async with started(ground):
            raise AssertionError("it started")

    with attribute(manager, "reconcile_orphaned_inflight_runs", hang):
        task = asyncio.create_task(start())
        await reached.wait()
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    assert seams() == before


# -- the manager's calls over our run store -------------------------------------------------------------


@asynccontextmanager
async def run_store(ground: Ground) -> AsyncGenerator[Any]:
    """Our adapter on a database of its own."""
    create_storage: Any = module("deerflow_mongo").create_storage
    async with create_storage(ground.options()) as storage:
        yield adapter(INTERFACES[0])(storage.runs)


def lease(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def admit(store: Any, run_id: str, worker: str, *, seconds: float = 30, **options: Any) -> Any:
    fields: dict[str, Any] = {"thread_id": "t", "user_id": "u", "grace_seconds": 2, **options}
    return await store.create_thread_operation_atomic(
        run_id, owner_worker_id=worker, lease_expires_at=lease(seconds), **fields
    )


async def run_is_admitted_started_renewed_and_finalised(ground: Ground) -> None:
    async with run_store(ground) as store:
        row, interrupted = await admit(store, "r", "a", metadata={"a.b": {"$x": 1}}, kwargs={"k": 1})
        assert (row["status"], row["operation_kind"], row["owner_worker_id"]) == ("pending", "run", "a")
        assert (row["metadata"], interrupted) == ({"a.b": {"$x": 1}}, [])
        assert await store.start_run("r")
        assert not await store.start_run("r")
        renewal = await store.renew_lease("r", owner_worker_id="a", lease_expires_at=lease(60))
        assert (renewal.renewed, renewal.cancel_action) == (True, None)
        assert not (await store.renew_lease("r", owner_worker_id="b", lease_expires_at=lease(60))).renewed
        await store.update_run_progress("r", total_tokens=5)
        ended = await store.finalize_if_not_cancelled("r", status="success")
        assert (ended.finalized, ended.cancel_action) == (True, None)
        counts = {"m": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}
        assert await store.update_run_completion(
            "r", status="success", total_tokens=3, token_usage_by_model=counts
        )
        row = await store.get("r", user_id=None)
        assert (row["status"], row["total_tokens"], row["token_usage_by_model"]) == ("success", 3, counts)
        assert not (await store.renew_lease("r", owner_worker_id="a", lease_expires_at=lease(60))).renewed


async def second_run_of_a_thread_is_a_unique_violation(ground: Ground) -> None:
    integrity_error: Any = module("sqlalchemy.exc").IntegrityError
    async with run_store(ground) as store:
        await admit(store, "r1", "a")
        with pytest.raises(integrity_error) as caught:
            await admit(store, "r2", "b")
        assert caught.value.sqlstate == "23505"
        assert await store.get("r2", user_id=None) is None


async def cancellation_reaches_the_owner_with_its_renewal(ground: Ground) -> None:
    async with run_store(ground) as store:
        await admit(store, "r", "a")
        await store.start_run("r")
        assert await store.request_cancel("r", action="rollback") == "rollback"
        assert await store.request_cancel("r", action="interrupt") == "rollback"
        renewal = await store.renew_lease("r", owner_worker_id="a", lease_expires_at=lease(60))
        assert (renewal.renewed, renewal.cancel_action) == (True, "rollback")
        ended = await store.finalize_if_not_cancelled("r", status="success")
        assert (ended.finalized, ended.cancel_action) == (False, "rollback")
        assert await store.update_status("r", "interrupted")
        assert await store.request_cancel("r", action="interrupt") is None


async def expired_run_is_taken_over_once(ground: Ground) -> None:
    async with run_store(ground) as store:
        await admit(store, "alive", "a", thread_id="t1")
        await admit(store, "dead", "a", thread_id="t2", seconds=-10)
        found = await store.list_inflight_with_expired_lease(grace_seconds=2)
        assert [row["run_id"] for row in found] == ["dead"]
        claims = [
            await store.claim_for_takeover(
                run_id, grace_seconds=2, error="gone", stop_reason="orphan_recovered"
            )
            for run_id in ("alive", "dead", "dead")
        ]
        assert claims == [False, True, False]
        row = await store.get("dead", user_id=None)
        assert (row["status"], row["error"], row["stop_reason"]) == ("error", "gone", "orphan_recovered")
        assert not (await store.renew_lease("dead", owner_worker_id="a", lease_expires_at=lease(9))).renewed


async def interrupt_replaces_the_own_run_and_no_other_workers(ground: Ground) -> None:
    conflict: Any = module("deerflow.runtime.runs.manager").ConflictError
    async with run_store(ground) as store:
        await admit(store, "r1", "a")
        with pytest.raises(conflict):
            await admit(store, "r2", "b", multitask_strategy="interrupt")
        row, interrupted = await admit(store, "r3", "a", multitask_strategy="interrupt")
        assert row["status"] == "pending"
        assert [old["run_id"] for old in interrupted] == ["r1"]
        assert (await store.get("r1", user_id=None))["error"] == "Cancelled by newer run"


async def reservation_holds_the_thread_until_it_is_deleted(ground: Ground) -> None:
    integrity_error: Any = module("sqlalchemy.exc").IntegrityError
    async with run_store(ground) as store:
        await admit(store, "reserved", "a", operation_kind="checkpoint_write")
        assert await store.list_by_thread("t", user_id=None) == []
        with pytest.raises(integrity_error):
            await admit(store, "r", "b")
        await store.delete_thread_operation("reserved", user_id="u")
        assert (await admit(store, "r", "b"))[0]["status"] == "pending"


async def known_idempotency_key_returns_the_first_row(ground: Ground) -> None:
    known: Any = module("deerflow.runtime.runs.store.base").RunIdempotencyConflict
    async with run_store(ground) as store:
        await admit(store, "r1", "a", idempotency_key="k")
        with pytest.raises(known) as caught:
            await admit(store, "r2", "a", thread_id="t2", idempotency_key="k")
        assert caught.value.existing["run_id"] == "r1"


async def bound_user_owns_an_operation_without_a_user(ground: Ground) -> None:
    context = module("deerflow.runtime.user_context")
    token = context.set_current_user(SimpleNamespace(id="bound"))
    try:
        async with run_store(ground) as store:
            row, _ = await admit(store, "r", "a", user_id=None)
            assert row["user_id"] == "bound"
    finally:
        context.reset_current_user(token)


CHECKS: Final[tuple[Check, ...]] = (
    adapters_implement_every_method,
    adapters_take_every_argument,
    stand_in_is_accepted_as_main,
    missing_seam_is_refused_by_name,
    unknown_abstract_method_is_refused_by_name,
    unknown_parameter_is_refused_by_name,
    runtime_with_another_signature_is_refused,
    runtime_is_built_on_our_stores,
    garbage_collector_leaves_out_what_the_start_loaded,
    manager_recovers_and_renews_on_our_stores,
    other_settings_reach_the_runtime,
    keys_of_the_checkpoint_cache_begin_with_the_databases_prefix,
    several_workers_pass_the_gate,
    names_are_restored_after_entering,
    names_are_restored_after_a_failed_start,
    names_are_restored_after_a_cancelled_start,
    run_is_admitted_started_renewed_and_finalised,
    second_run_of_a_thread_is_a_unique_violation,
    cancellation_reaches_the_owner_with_its_renewal,
    expired_run_is_taken_over_once,
    interrupt_replaces_the_own_run_and_no_other_workers,
    reservation_holds_the_thread_until_it_is_deleted,
    known_idempotency_key_returns_the_first_row,
    bound_user_owns_an_operation_without_a_user,
)


def outcome_of(check: Check, ground: Ground) -> str | None:
    ground.clear()
    try:
        asyncio.run(check(ground))
    except BaseException:  # noqa: BLE001 - the parent reports whatever it was
        return traceback.format_exc()
    return None


def main(folder: str, url: str, database: str) -> None:
    """Run every check."""
    ground = Ground(Path(folder), url, database)
    sys.path.append(str(ground.folder / "framework"))
    config = ground.folder / "config.yaml"
    config.write_text(json.dumps(CONFIG))
    os.environ.update(DEER_FLOW_CONFIG_PATH=str(config), DEER_FLOW_HOME=str(ground.folder / "home"))
    output, sys.stdout = sys.stdout, sys.stderr
    output.write(json.dumps({check.__name__: outcome_of(check, ground) for check in CHECKS}))


if __name__ == "__main__":
    main(*sys.argv[1:])
