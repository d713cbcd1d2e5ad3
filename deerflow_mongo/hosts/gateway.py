"""DeerFlow's own gateway, with everything that it stores in SQL stored in MongoDB or another backend.

`uvicorn deerflow_mongo.hosts.gateway:app` serves the application that `app.gateway.app:create_app` makes. Its
lifespan runs unchanged, and builds its runtime on adapters over our stores: see `runtime.py`. No file of
DeerFlow is changed, none of its code is repeated here, and no SQL engine is created.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

from ..contract.capabilities import Accounts, Checkpointing, RunOwnership, require_capabilities
from ..contract.errors import (
    ActorMissingError,
    MissingDependencyError,
    StorageConfigError,
    StorageUnavailableError,
)
from ..contract.factory import create_storage, load_config, with_environment
from ..contract.protocols import Storage
from .availability import AvailabilityMiddleware, StorageHealth
from .deerflow import import_deerflow
from .environment import BACKEND, ENVIRONMENT_PREFIX, known_options, variables_of_options
from .exchange import exchanged
from .json_requests import EncodableRequests
from .options import split_options
from .releases import Release
from .runtime import StoredRuntime, check_release, check_workers
from .startup_errors import StartupErrors, exit_with

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
    """What the gateway needs of a storage: the core, accounts, checkpoints; `runs` with `RunOwnership`."""


def create_app(config: Mapping[str, Any] | None = None) -> Any:
    """DeerFlow's gateway as a FastAPI application, on our storage.

    `config` is what `create_storage` takes, with the options of `options.py`; without it, it is read at
    start-up from the section `storage:` of DeerFlow's `config.yaml` and from `DEER_FLOW_STORAGE_...`
    variables. Raises `UnsupportedReleaseError` if the installed DeerFlow does not fit; the attribute `app` of
    this module ends the process instead.
    """
    release = check_release()
    app: Any = import_deerflow("app.gateway.app").create_app()
    health = StorageHealth()
    app.router.lifespan_context = _on_storage(app.router.lifespan_context, config, health, release)
    app.add_exception_handler(ActorMissingError, _authentication_required)
    _add_middleware(app, health)
    return app


def _add_middleware(app: Any, health: StorageHealth) -> None:
    """Around DeerFlow's middleware, which reads accounts, and within CORS, which adds headers to ours."""
    middleware: Any = importlib.import_module("starlette.middleware").Middleware
    cors = [entry for entry in app.user_middleware if entry.cls.__name__ == "CORSMiddleware"]
    others = [entry for entry in app.user_middleware if entry not in cors]
    ours = [
        middleware(StartupErrors),
        middleware(AvailabilityMiddleware, health=health),
        middleware(EncodableRequests),
    ]
    app.user_middleware[:] = [*cors, *ours, *others]


async def _authentication_required(request: Any, error: Exception) -> Any:
    """The answer to a request whose user has no id: it is not anybody's."""
    responses: Any = importlib.import_module("starlette.responses")
    return responses.JSONResponse({"detail": "Authentication required"}, status_code=401)


def __getattr__(name: str) -> Any:
    """`app`, made at its first use: importing this module needs no DeerFlow.

    It is for a server's command line: where no application can be made, the process ends with a sentence.
    """
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        globals()["app"] = app = create_app()
    except StorageConfigError as error:
        exit_with(error)
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

    Raises `StorageConfigError` for a storage without accounts, checkpoints or run ownership.
    """
    _, options = split_options(storage_options() if config is None else config)
    storage = create_storage(options)
    require_capabilities(storage, "DeerFlow's gateway", Accounts, Checkpointing, RunOwnership)
    return cast("GatewayStorage", storage)


# -- lifespan --------------------------------------------------------------------------------------


def _on_storage(
    inner: Lifespan, config: Mapping[str, Any] | None, health: StorageHealth, release: Release
) -> Lifespan:
    """DeerFlow's lifespan `inner`, on a storage that is open for as long as the application runs."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[Any]:
        _config_file()  # its error names what to do; DeerFlow's does not
        settings: Any = import_deerflow("deerflow.config.app_config").get_app_config()
        own_options, options = split_options(storage_options() if config is None else config)
        check_workers(options)
        async with AsyncExitStack() as stack:
            storage = await stack.enter_async_context(_opened(open_storage(options)))
            health.watch(storage)
            stack.push_async_callback(health.aclose)
            runtime = await StoredRuntime.over(storage, settings, health, release, own_options)
            stack.enter_context(runtime.accounts())
            with exchanged(runtime.application_names()):
                state = await stack.enter_async_context(inner(app))
            await _log_startup(storage, runtime)
            stack.enter_context(_start_excluded_from_gc())
            yield state

    return lifespan


@contextmanager
def _start_excluded_from_gc() -> Generator[None]:
    """What the start has loaded lives as long as the application: the garbage collector leaves it out.

    DeerFlow's imports are more than 200,000 objects. A full collection looks at all of them, during which
    every request waits, and its share of a turn's CPU time is 6 %.
    """
    gc.collect()  # else garbage of the start would be left out as well
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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


async def _log_startup(storage: GatewayStorage, runtime: StoredRuntime) -> None:
    extra = {"backend": type(storage).__name__}
    logger.info(
        "runs, events, feedback, threads, checkpoints, accounts are stored in %r", storage, extra=extra
    )
    absent = runtime.release.absent
    if absent:
        logger.warning("not available, DeerFlow has it on SQL only: %s", ", ".join(absent), extra=extra)
    for note in _SQL_ONLY:
        logger.info(note, extra=extra)
    if not await storage.users.count(system_role="admin"):
        logger.info("there is no admin account yet: create the first one at /setup", extra=extra)
