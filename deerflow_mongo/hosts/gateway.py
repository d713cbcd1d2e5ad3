"""DeerFlow's own gateway, with everything that it stores in SQL stored in MongoDB or another backend.

`uvicorn deerflow_mongo.hosts.gateway:app` serves the application that `app.gateway.app:create_app` makes. Its
lifespan runs unchanged on a configuration without a database; then the stores that it has put into
`app.state` are replaced by adapters over ours, before the first request. No file of DeerFlow is changed, none
of its code is repeated here, and no SQL engine is created.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

from ..contract.capabilities import Accounts, Checkpointing, require_capabilities
from ..contract.errors import (
    ActorMissingError,
    MissingDependencyError,
    StorageConfigError,
    StorageUnavailableError,
)
from ..contract.factory import create_storage, load_config, with_environment
from ..contract.protocols import Storage
from .availability import AvailabilityMiddleware, HealthReportingStore, StorageHealth
from .deerflow import check_adapters, check_interfaces, import_deerflow, unsupported_release
from .encodable import EncodableBridge
from .environment import BACKEND, ENVIRONMENT_PREFIX, known_options, variables_of_options
from .json_requests import EncodableRequests

SECTION: Final = "storage"
"""The section of DeerFlow's `config.yaml`."""

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
    health = StorageHealth()
    app.router.lifespan_context = _on_storage(app.router.lifespan_context, config, health)
    app.add_exception_handler(ActorMissingError, _authentication_required)
    _add_middleware(app, health)
    return app


def _add_middleware(app: Any, health: StorageHealth) -> None:
    """Around DeerFlow's middleware, which reads accounts, and within CORS, which adds headers to ours."""
    middleware: Any = importlib.import_module("starlette.middleware").Middleware
    cors = [entry for entry in app.user_middleware if entry.cls.__name__ == "CORSMiddleware"]
    others = [entry for entry in app.user_middleware if entry not in cors]
    ours = [middleware(AvailabilityMiddleware, health=health), middleware(EncodableRequests)]
    app.user_middleware[:] = [*cors, *ours, *others]


async def _authentication_required(request: Any, error: Exception) -> Any:
    """The answer to a request whose user has no id: it is not anybody's."""
    responses: Any = importlib.import_module("starlette.responses")
    return responses.JSONResponse({"detail": "Authentication required"}, status_code=401)


def __getattr__(name: str) -> Any:
    """`app`, made at its first use: importing this module needs no DeerFlow."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = app = create_app()
    return app


# -- configuration ---------------------------------------------------------------------------------


def storage_options() -> dict[str, Any]:
    """The storage's options from DeerFlow's configuration file and the environment, which wins."""
    file = _config_file()
    found = variables_of_options(os.environ)
    try:
        options = load_config(file, SECTION)
    except MissingDependencyError:
        raise
    except StorageConfigError as error:
        if not {"url", BACKEND} & found.keys():
            known_options(found, DEFAULT_BACKEND)  # warns of a misspelt variable
            raise StorageConfigError(f"{_HELP}\n({error})") from error
        options = {}
    backend = found.get(BACKEND) or options.get(BACKEND) or DEFAULT_BACKEND
    backend = str(with_environment({BACKEND: backend})[BACKEND]).strip() or DEFAULT_BACKEND
    options = {**options, **known_options(found, backend), BACKEND: backend}
    if _is_embedded(options) and not options.get("data_dir"):
        home: Path = import_deerflow("deerflow.config.runtime_paths").runtime_home()
        options["data_dir"] = str(home / EMBEDDED_FOLDER)
    return options


def _is_embedded(options: Mapping[str, Any]) -> bool:
    """Whether the storage is a private server, also where a variable in `$NAME` or a blank hides it.

    Such a server without a `data_dir` would have its data in a temporary folder.
    """
    try:
        url = with_environment({"url": options.get("url")})["url"]
    except StorageConfigError:
        return False  # its variable is not set, which `create_storage` reports
    return isinstance(url, str) and url.strip() == EMBEDDED_URL


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


def _on_storage(inner: Lifespan, config: Mapping[str, Any] | None, health: StorageHealth) -> Lifespan:
    """DeerFlow's lifespan `inner`, on a storage that is open for as long as the application runs."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[Any]:
        _config_file()  # its error names what to do; DeerFlow's does not
        settings: Any = import_deerflow("deerflow.config.app_config").get_app_config()
        async with AsyncExitStack() as stack:
            storage = await stack.enter_async_context(_opened(open_storage(config)))
            health.watch(storage)
            stack.push_async_callback(health.aclose)
            adapters = await _build_adapters(storage, settings, health)
            stack.enter_context(_accounts_in(storage, health))
            with _without_sql(settings):
                state = await stack.enter_async_context(inner(app))
            bridge = EncodableBridge.of(app.state.stream_bridge)
            _replace_app_state(app.state, {**adapters, "config": settings, "stream_bridge": bridge})
            await _log_startup(storage, app.state)
            yield state

    return lifespan


@asynccontextmanager
async def _opened(storage: GatewayStorage) -> AsyncGenerator[GatewayStorage]:
    """The storage, open and set up; the error says what to do if it is unavailable."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(storage)
        except StorageUnavailableError as error:
            raise StorageUnavailableError(
                f"the gateway does not start, since its storage is unavailable ({error}): start the server, "
                f"or correct `url` in the section `{SECTION}:` or {ENVIRONMENT_PREFIX}URL"
            ) from error
        yield storage


async def _build_adapters(storage: GatewayStorage, settings: Any, health: StorageHealth) -> dict[str, Any]:
    """What DeerFlow's routes read from `app.state`, by its names."""
    # Not at the top: an adapter's class needs DeerFlow's base class, and importing this module does not.
    from .adapters.counts_by_model import CountsByModel
    from .adapters.feedback import FeedbackRepositoryAdapter
    from .adapters.run_events import RunEventStoreAdapter
    from .adapters.runs import RunStoreAdapter
    from .adapters.threads import ThreadMetaStoreAdapter
    from .run_manager import run_manager_class

    check_adapters(RunEventStoreAdapter, RunStoreAdapter, ThreadMetaStoreAdapter)
    counts = CountsByModel()
    runs, threads, feedback, run_events = (
        HealthReportingStore.over(store, health)
        for store in (storage.runs, storage.threads, storage.feedback, storage.run_events)
    )
    run_store = RunStoreAdapter(runs, counts)
    thread_store = ThreadMetaStoreAdapter(threads, runs)
    return {
        "checkpointer": await storage.checkpointer(),
        "run_store": run_store,
        "feedback_repo": FeedbackRepositoryAdapter(feedback),
        "thread_store": thread_store,
        "run_event_store": RunEventStoreAdapter(
            run_events, counts, max_trace_content=settings.run_events.max_trace_content
        ),
        "run_manager": run_manager_class(lambda: thread_store)(run_store),
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
def _accounts_in(storage: GatewayStorage, health: StorageHealth) -> Generator[None]:
    """Replace the repository of accounts that DeerFlow caches, and would otherwise make over SQL."""
    from .adapters.users import UserRepositoryAdapter

    check_adapters(UserRepositoryAdapter)
    deps: Any = import_deerflow("app.gateway.deps")
    names = ("_cached_repo", "_cached_local_provider")
    before = {name: getattr(deps, name) for name in names}
    users = UserRepositoryAdapter(HealthReportingStore.over(storage.users, health))
    _set_attributes(deps, dict(zip(names, (users, None), strict=True)))
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
