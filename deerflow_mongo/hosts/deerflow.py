"""DeerFlow as the hosts use it: importing its modules, the installed release, the check of its interfaces.

Importing this module needs no DeerFlow. What is done with DeerFlow's modules is not here but in `runtime.py`
and in the adapters; what differs between its releases is in `releases.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from ..contract.errors import MissingDependencyError, StorageConfigError
from .releases import FITTING, RELEASES, Names, Release

EXTRA: Final = "gateway"
"""The extra of this package with what DeerFlow's gateway imports and its distribution does not require."""

PACKAGES: Final = ("app", "deerflow")
"""The top-level packages of DeerFlow."""

DISTRIBUTIONS: Final = ("deerflow-kernel", "deer-flow", "deerflow-harness")
"""What DeerFlow is installed as; a checkout on the path has none of them."""


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
            f"Install DeerFlow, one of {FITTING}, on Python 3.12 or newer"
        ) from error


class UnsupportedReleaseError(StorageConfigError):
    """The installed DeerFlow lacks what this package needs, or needs what this package lacks."""


def find_release() -> Release:
    """The row of the installed DeerFlow, by its names. Raises `StorageConfigError` without a DeerFlow."""
    for package in PACKAGES:
        import_deerflow(package)
    return next(release for release in RELEASES if not missing_names(release.marks))


def missing_names(names: Names) -> list[str]:
    """Those of the names that the installed DeerFlow does not have."""
    return [name for module, wanted in names.items() for name in _missing_names(module, wanted)]


def check_interfaces() -> Release:
    """The installed release. Raises `UnsupportedReleaseError`, naming every missing name, if any is."""
    release = find_release()
    missing = missing_names(release.interfaces)
    if missing:
        raise unsupported_release(f"it lacks {', '.join(missing)}")
    return release


def check_adapters(adapters: Mapping[type, Any]) -> None:
    """Raise `UnsupportedReleaseError`, naming them all, if DeerFlow uses what these adapters do not have.

    `adapters` has DeerFlow's class for each of ours.
    """
    unknown = [name for adapter, replaced in adapters.items() for name in unknown_uses(adapter, replaced)]
    if unknown:
        raise unsupported_release(f"it needs {', '.join(unknown)}, which deerflow-mongo does not have")


def unknown_uses(adapter: type, replaced: Any) -> list[str]:
    """The methods of DeerFlow's class, and their parameters, that the adapter in its place does not have.

    Of an abstract class, its other methods have an implementation that the adapter inherits.
    """
    found: list[str] = []
    for name, method in inspect.getmembers(replaced, inspect.isfunction):
        ours = getattr(adapter, name, None)
        if ours is None or getattr(ours, "__isabstractmethod__", False):
            if not name.startswith("_"):
                found.append(f"{adapter.__name__}.{name}")
        elif ours is not method and not name.startswith("_"):
            found += (f"{adapter.__name__}.{name}({parameter}=)" for parameter in _unknown(ours, method))
    return found


def _unknown(ours: Any, method: Any) -> Iterator[str]:
    """The parameters of DeerFlow's method that ours does not take by name."""
    known = inspect.signature(ours).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name, parameter in inspect.signature(method).parameters.items():
        variadic = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        if name not in known and not variadic:
            yield name


def unsupported_release(reason: str) -> UnsupportedReleaseError:
    """The error for a DeerFlow that this package cannot work with."""
    return UnsupportedReleaseError(
        f"{installed_release()} does not fit this release of deerflow-mongo: {reason}. These fit: {FITTING}"
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
