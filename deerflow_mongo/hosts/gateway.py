"""DeerFlow 2.x's own gateway, with everything it keeps in SQL kept in MongoDB.

`uvicorn deerflow_mongo.hosts.gateway:app` starts the application that `app.gateway.app:create_app` makes. Its
lifespan runs as it is, on a configuration without a database, and what it then has in `app.state` is
exchanged for adapters over our stores before the first request. No file of DeerFlow is changed, and none of
its code is repeated here; its own engine and tables are never made.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

from ..contract.errors import MissingDependencyError, StorageConfigError
from ..contract.factory import create_storage, load_config
from ..mongodb.config import EMBEDDED
from ..mongodb.storage import MongoStorage

SECTION = "storage"
"""The section of DeerFlow's `config.yaml`."""

ENVIRONMENT_PREFIX = "DEER_FLOW_STORAGE_"
"""`DEER_FLOW_STORAGE_URL` is the option `url`, and so on; the environment wins over the file."""

EMBEDDED_FOLDER = "data/mongodb"
"""Where `url: embedded` keeps its data under DeerFlow's home, unless `data_dir` says otherwise."""

EXTRA = "gateway"

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]

_HELP = f"""\
the gateway does not know where to store: add a section to DeerFlow's config.yaml
{SECTION}:
  backend: mongodb
  url: $MONGODB_URL        # or: embedded
or set {ENVIRONMENT_PREFIX}URL"""

_SQL_ONLY = (
    "`python -m app.gateway.auth.reset_admin` looks for accounts in SQL: use "
    "`python -m deerflow_mongo.hosts.reset_admin`",
)
"""What of DeerFlow still needs SQL, and what to do instead."""

logger = logging.getLogger(__name__)


def host(module: str) -> Any:
    """A module of DeerFlow's. An error of ours tells what to install where that fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = str(error.name or "").partition(".")[0]
        if missing in ("app", "deerflow", ""):
            raise StorageConfigError(
                f"DeerFlow's gateway needs {module}, which cannot be imported ({error}). Install DeerFlow "
                "2.x, such as its distribution deerflow-kernel, on Python 3.12 or newer"
            ) from error
        raise MissingDependencyError("DeerFlow's gateway", missing, EXTRA) from error


def create_app(config: Mapping[str, Any] | None = None) -> Any:
    """DeerFlow's gateway as a FastAPI application, on our storage.

    `config` is what `create_storage` takes; without it, it is read at start-up from the section `storage:` of
    DeerFlow's `config.yaml` and from `DEER_FLOW_STORAGE_...` variables. A factory, for
    `uvicorn --factory deerflow_mongo.hosts.gateway:create_app`.
    """
    app: Any = host("app.gateway.app").create_app()
    app.router.lifespan_context = _on_storage(app.router.lifespan_context, config)
    return app


def __getattr__(name: str) -> Any:
    """`app`, made at its first use: importing this module needs no DeerFlow."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = app = create_app()
    return app


# -- configuration ---------------------------------------------------------------------------------


def storage_options() -> dict[str, Any]:
    """The storage's options, as DeerFlow's configuration file and the environment have them."""
    file: Path = host("deerflow.config.app_config").AppConfig.resolve_config_path()
    environment = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    try:
        options = load_config(file, SECTION)
    except MissingDependencyError:
        raise
    except StorageConfigError as error:
        if "url" not in environment:
            raise StorageConfigError(f"{_HELP}\n({error})") from error
        options = {}
    options = {"backend": "mongodb", **options, **environment}
    if options.get("url") == EMBEDDED:
        home: Path = host("deerflow.config.runtime_paths").runtime_home()
        options.setdefault("data_dir", str(home / EMBEDDED_FOLDER))
    return options


def open_storage(config: Mapping[str, Any] | None = None) -> MongoStorage:
    """The storage that the gateway works on, not connected yet."""
    storage = create_storage(storage_options() if config is None else config)
    if not isinstance(storage, MongoStorage):
        raise StorageConfigError(
            f"the gateway keeps accounts and checkpoints too, which {type(storage).__name__} does not: "
            "it needs `backend: mongodb`"
        )
    return storage


# -- lifespan --------------------------------------------------------------------------------------


def _on_storage(inner: Lifespan, config: Mapping[str, Any] | None) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[Any]:
        settings: Any = host("deerflow.config.app_config").get_app_config()
        async with AsyncExitStack() as stack:
            storage = await stack.enter_async_context(open_storage(config))
            parts = await _parts(storage, settings)
            stack.enter_context(_accounts(storage))
            with _without_sql(settings):
                state = await stack.enter_async_context(inner(app))
            _exchange(app.state, {**parts, "config": settings})
            await _tell(storage, app.state)
            yield state

    return lifespan


async def _parts(storage: MongoStorage, settings: Any) -> dict[str, Any]:
    """What DeerFlow's routes find in `app.state`, by its names."""
    from .adapters.feedback import FeedbackRepositoryAdapter
    from .adapters.run_events import RunEventStoreAdapter
    from .adapters.runs import RunStoreAdapter
    from .adapters.threads import ThreadMetaStoreAdapter
    from .run_manager import OwnRunsManager

    run_store = RunStoreAdapter(storage.runs)
    thread_store = ThreadMetaStoreAdapter(storage.threads, storage.runs)
    return {
        "checkpointer": await storage.checkpointer(),
        "run_store": run_store,
        "feedback_repo": FeedbackRepositoryAdapter(storage.feedback),
        "thread_store": thread_store,
        "run_event_store": RunEventStoreAdapter(
            storage.run_events, max_trace_content=settings.run_events.max_trace_content
        ),
        "run_manager": OwnRunsManager(storage.runs, thread_store),
    }


def _exchange(state: Any, parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        if not hasattr(state, name):
            raise StorageConfigError(
                f"this release of DeerFlow has no app.state.{name}: deerflow-mongo does not know it"
            )
        setattr(state, name, part)


@contextmanager
def _without_sql(settings: Any) -> Generator[None]:
    """While DeerFlow's lifespan starts, its configuration says that there is no database."""
    module: Any = host("deerflow.config.app_config")
    in_memory = {
        "database": type(settings.database)(backend="memory"),
        "checkpointer": host("deerflow.config.checkpointer_config").CheckpointerConfig(type="memory"),
    }
    module.push_current_app_config(settings.model_copy(update=in_memory))
    try:
        yield
    finally:
        module.pop_current_app_config()


@contextmanager
def _accounts(storage: MongoStorage) -> Generator[None]:
    """The repository of accounts, where DeerFlow keeps the one that it would make over SQL."""
    from .adapters.users import UserRepositoryAdapter

    deps: Any = host("app.gateway.deps")
    names = ("_cached_repo", "_cached_local_provider")
    before = {name: getattr(deps, name) for name in names}
    _set(deps, dict(zip(names, (UserRepositoryAdapter(storage.users), None), strict=True)))
    try:
        yield
    finally:
        _set(deps, before)


def _set(module: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(module, name, value)


async def _tell(storage: MongoStorage, state: Any) -> None:
    logger.info("runs, events, votes, threads, checkpoints and accounts are kept by %r", storage)
    kept = cast("Mapping[str, Any]", vars(state)["_state"])
    without = sorted(name for name, value in kept.items() if value is None)
    if without:
        logger.warning("without storage, because DeerFlow has it for SQL only: %s", ", ".join(without))
    for note in _SQL_ONLY:
        logger.info(note)
    if not await storage.users.count(system_role="admin"):
        logger.info("there is no admin account yet: make the first one at /setup")
