"""DeerFlow's own gateway, with everything that it stores in SQL stored in MongoDB or another backend.

`uvicorn deerflow_mongo.hosts.gateway:app` serves the application that `app.gateway.app:create_app` makes. Its
lifespan runs unchanged on a configuration without a database; then the stores that it has put into
`app.state` are replaced by adapters over ours, before the first request. No file of DeerFlow is changed, none
of its code is repeated here, and no SQL engine is created.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

from ..contract.capabilities import Accounts, Checkpointing, require_capabilities
from ..contract.errors import MissingDependencyError, StorageConfigError
from ..contract.factory import create_storage, load_config
from ..contract.protocols import Storage
from .deerflow import check_adapters, check_interfaces, import_deerflow, unsupported_release

SECTION: Final = "storage"
"""The section of DeerFlow's `config.yaml`."""

ENVIRONMENT_PREFIX: Final = "DEER_FLOW_STORAGE_"
"""`DEER_FLOW_STORAGE_URL` is the option `url`, and so on; the environment wins over the file."""

DEFAULT_BACKEND: Final = "mongodb"

EMBEDDED_URL: Final = "embedded"
EMBEDDED_FOLDER: Final = "data/mongodb"
"""The default `data_dir` of `url: embedded`, in DeerFlow's home."""

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]

_HELP = f"""\
the gateway has no storage configured: add a section to DeerFlow's config.yaml
{SECTION}:
  backend: mongodb
  url: $MONGODB_URL        # or: embedded
or set {ENVIRONMENT_PREFIX}URL"""

_SQL_ONLY = (
    "`python -m app.gateway.auth.reset_admin` works on SQL only; use "
    "`python -m deerflow_mongo.hosts.reset_admin`",
)
"""What of DeerFlow works on SQL only, and what to use instead."""

logger = logging.getLogger(__name__)


@runtime_checkable
class GatewayStorage(Storage, Accounts, Checkpointing, Protocol):
    """What the gateway needs of a storage: the core, accounts and checkpoints."""


def create_app(config: Mapping[str, Any] | None = None) -> Any:
    """DeerFlow's gateway as a FastAPI application, on our storage.

    `config` is what `create_storage` takes; without it, it is read at start-up from the section `storage:` of
    DeerFlow's `config.yaml` and from `DEER_FLOW_STORAGE_...` variables. A factory, for
    `uvicorn --factory deerflow_mongo.hosts.gateway:create_app`. Raises `StorageConfigError` if the installed
    DeerFlow lacks something that is needed here.
    """
    check_interfaces()
    app: Any = import_deerflow("app.gateway.app").create_app()
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
    """The storage's options from DeerFlow's configuration file and the environment."""
    file = _config_file()
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
    options = {"backend": DEFAULT_BACKEND, **options, **environment}
    if options.get("url") == EMBEDDED_URL:
        home: Path = import_deerflow("deerflow.config.runtime_paths").runtime_home()
        options.setdefault("data_dir", str(home / EMBEDDED_FOLDER))
    return options


def _config_file() -> Path:
    """DeerFlow's `config.yaml`."""
    try:
        return import_deerflow("deerflow.config.app_config").AppConfig.resolve_config_path()
    except FileNotFoundError as error:
        raise StorageConfigError(
            f"DeerFlow has no configuration ({error}): start in the folder of config.yaml, or set "
            "DEER_FLOW_CONFIG_PATH"
        ) from error


def open_storage(config: Mapping[str, Any] | None = None) -> GatewayStorage:
    """The storage of the gateway, not connected yet.

    Raises `StorageConfigError` for a storage without accounts or checkpoints.
    """
    storage = create_storage(storage_options() if config is None else config)
    require_capabilities(storage, "DeerFlow's gateway", Accounts, Checkpointing)
    return cast("GatewayStorage", storage)


# -- lifespan --------------------------------------------------------------------------------------


def _on_storage(inner: Lifespan, config: Mapping[str, Any] | None) -> Lifespan:
    """DeerFlow's lifespan `inner`, on a storage that is open for as long as the application runs."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[Any]:
        _config_file()  # its error names what to do; DeerFlow's does not
        settings: Any = import_deerflow("deerflow.config.app_config").get_app_config()
        async with AsyncExitStack() as stack:
            storage = await stack.enter_async_context(open_storage(config))
            adapters = await _build_adapters(storage, settings)
            stack.enter_context(_accounts_in(storage))
            with _without_sql(settings):
                state = await stack.enter_async_context(inner(app))
            _replace_app_state(app.state, {**adapters, "config": settings})
            await _log_startup(storage, app.state)
            yield state

    return lifespan


async def _build_adapters(storage: GatewayStorage, settings: Any) -> dict[str, Any]:
    """What DeerFlow's routes read from `app.state`, by its names."""
    # Not at the top: an adapter's class needs DeerFlow's base class, and importing this module does not.
    from .adapters.counts_by_model import CountsByModel
    from .adapters.feedback import FeedbackRepositoryAdapter
    from .adapters.run_events import RunEventStoreAdapter
    from .adapters.runs import RunStoreAdapter
    from .adapters.threads import ThreadMetaStoreAdapter
    from .run_manager import OwnerCheckingRunManager

    check_adapters(RunEventStoreAdapter, RunStoreAdapter, ThreadMetaStoreAdapter)
    counts = CountsByModel()
    run_store = RunStoreAdapter(storage.runs, counts)
    thread_store = ThreadMetaStoreAdapter(storage.threads, storage.runs)
    return {
        "checkpointer": await storage.checkpointer(),
        "run_store": run_store,
        "feedback_repo": FeedbackRepositoryAdapter(storage.feedback),
        "thread_store": thread_store,
        "run_event_store": RunEventStoreAdapter(
            storage.run_events, counts, max_trace_content=settings.run_events.max_trace_content
        ),
        "run_manager": OwnerCheckingRunManager(storage.runs, thread_store, counts),
    }


def _replace_app_state(state: Any, replacements: Mapping[str, Any]) -> None:
    """Set these names of `app.state`; each must be one that DeerFlow has set."""
    missing = [f"app.state.{name}" for name in replacements if not hasattr(state, name)]
    if missing:
        raise unsupported_release(f"it lacks {', '.join(missing)}")
    _set_attributes(state, replacements)


@contextmanager
def _without_sql(settings: Any) -> Generator[None]:
    """While DeerFlow's lifespan starts, its configuration has no database."""
    module: Any = import_deerflow("deerflow.config.app_config")
    checkpointer: Any = import_deerflow("deerflow.config.checkpointer_config").CheckpointerConfig
    in_memory = {
        "database": type(settings.database)(backend="memory"),
        "checkpointer": checkpointer(type="memory"),
    }
    module.push_current_app_config(settings.model_copy(update=in_memory))
    try:
        yield
    finally:
        module.pop_current_app_config()


@contextmanager
def _accounts_in(storage: GatewayStorage) -> Generator[None]:
    """Replace the repository of accounts that DeerFlow caches, and would otherwise make over SQL."""
    from .adapters.users import UserRepositoryAdapter

    check_adapters(UserRepositoryAdapter)
    deps: Any = import_deerflow("app.gateway.deps")
    names = ("_cached_repo", "_cached_local_provider")
    before = {name: getattr(deps, name) for name in names}
    _set_attributes(deps, dict(zip(names, (UserRepositoryAdapter(storage.users), None), strict=True)))
    try:
        yield
    finally:
        _set_attributes(deps, before)


def _set_attributes(owner: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, value)


async def _log_startup(storage: GatewayStorage, state: Any) -> None:
    extra = {"backend": type(storage).__name__}
    logger.info(
        "runs, events, feedback, threads, checkpoints, accounts are stored in %r", storage, extra=extra
    )
    parts = cast("Mapping[str, Any]", vars(state)["_state"])
    absent = sorted(name for name, value in parts.items() if value is None)
    if absent:
        logger.warning("not available, DeerFlow has it on SQL only: %s", ", ".join(absent), extra=extra)
    for note in _SQL_ONLY:
        logger.info(note, extra=extra)
    if not await storage.users.count(system_role="admin"):
        logger.info("there is no admin account yet: create the first one at /setup", extra=extra)
