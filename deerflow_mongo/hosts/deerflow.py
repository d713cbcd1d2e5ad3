"""DeerFlow as the hosts use it: importing its modules, the releases that fit, the check of its interfaces.

Importing this module needs no DeerFlow. What is done with DeerFlow's modules is not here but in `gateway.py`
and in the adapters.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from ..contract.errors import MissingDependencyError, StorageConfigError

EXTRA: Final = "gateway"
"""The extra of this package with what DeerFlow's gateway imports and its distribution does not require."""

PACKAGES: Final = ("app", "deerflow")
"""The top-level packages of DeerFlow."""

DISTRIBUTIONS: Final = ("deerflow-kernel", "deer-flow", "deerflow-harness")
"""What DeerFlow is installed as; a checkout on the path has none of them."""

SUPPORTED: Final = "deerflow-kernel 0.1.7"
"""The release that the tests run on."""

INTERFACES: Final[Mapping[str, tuple[str, ...]]] = {
    "app.gateway.app": ("create_app",),
    "app.gateway.auth.credential_file": ("write_initial_credentials",),
    "app.gateway.auth.models": ("User",),
    "app.gateway.auth.password": ("hash_password_async",),
    "app.gateway.auth.repositories.base": ("UserNotFoundError", "UserRepository"),
    "app.gateway.deps": ("_cached_local_provider", "_cached_repo"),
    "deerflow.config.app_config": (
        "AppConfig.resolve_config_path",
        "get_app_config",
        "pop_current_app_config",
        "push_current_app_config",
    ),
    "deerflow.config.checkpointer_config": ("CheckpointerConfig",),
    "deerflow.config.runtime_paths": ("runtime_home",),
    "deerflow.persistence.json_compat": ("validate_metadata_filter_key", "validate_metadata_filter_value"),
    "deerflow.persistence.thread_meta.base": ("InvalidMetadataFilterError", "ThreadMetaStore"),
    "deerflow.runtime": (
        "RunManager.cancel",
        "RunManager.cleanup",
        "RunManager.create",
        "RunManager.create_or_reject",
        "RunManager.get",
        "RunManager.list_by_thread",
        "RunManager.set_status",
    ),
    "deerflow.runtime.events.store.base": ("RunEventStore",),
    "deerflow.runtime.runs.store.base": ("RunStore",),
    "deerflow.runtime.user_context": (
        "AUTO",
        "get_current_user",
        "reset_current_user",
        "resolve_user_id",
        "set_current_user",
    ),
}
"""The names of DeerFlow that this package uses, by module; `app.state` is checked after its start."""


def import_deerflow(module: str) -> Any:
    """A module of DeerFlow. The error names what to install if the import fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or ""
        if missing and "." not in missing and missing not in PACKAGES:
            raise MissingDependencyError("DeerFlow's gateway", missing, EXTRA) from error
        raise StorageConfigError(
            f"DeerFlow's gateway needs {module}, which cannot be imported ({error}). "
            f"Install DeerFlow, such as {SUPPORTED}, on Python 3.12 or newer"
        ) from error


def check_interfaces() -> None:
    """Raise `StorageConfigError`, naming every missing name, unless the installed DeerFlow has all we use."""
    for package in PACKAGES:
        import_deerflow(package)
    missing = [name for module, names in INTERFACES.items() for name in _missing_names(module, names)]
    if missing:
        raise unsupported_release(f"it lacks {', '.join(missing)}")


def check_adapters(*adapters: type) -> None:
    """Raise `StorageConfigError`, naming them all, if DeerFlow's interfaces have methods that these lack."""
    missing = [
        f"{adapter.__name__}.{method}"
        for adapter in adapters
        for method in sorted(getattr(adapter, "__abstractmethods__", ()))
    ]
    if missing:
        raise unsupported_release(f"it needs {', '.join(missing)}, which deerflow-mongo does not have")


def unsupported_release(reason: str) -> StorageConfigError:
    """The error for a DeerFlow that this package cannot work with."""
    return StorageConfigError(
        f"{installed_release()} is not supported by this release of deerflow-mongo: {reason}. "
        f"{SUPPORTED} is supported"
    )


def installed_release() -> str:
    """DeerFlow's distribution and version, for error texts."""
    for distribution in DISTRIBUTIONS:
        try:
            return f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return "this checkout of DeerFlow"


def _missing_names(module: str, names: Iterable[str]) -> list[str]:
    if not _exists(module):
        return [module]
    found = import_deerflow(module)
    return [f"{module}.{name}" for name in names if not _has(found, name)]


def _exists(module: str) -> bool:
    package = module.rpartition(".")[0]
    if package:
        if not _exists(package):
            return False
        import_deerflow(package)
    return importlib.util.find_spec(module) is not None


def _has(owner: Any, path: str) -> bool:
    """Whether `owner` has what the dotted `path` names."""
    for name in path.split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True
