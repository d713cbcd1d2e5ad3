"""DeerFlow as the hosts use it: importing its modules, the installed release, the check of its interfaces.

Importing this module needs no DeerFlow. What is done with DeerFlow's modules is not here but in `runtime.py`
and in the adapters; what differs between its releases is in `releases.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one part of the installed DeerFlow and this package lack of each other."""

    subject: str
    lacks: tuple[str, ...] = ()
    """What this package uses and DeerFlow does not have."""

    needs: tuple[str, ...] = ()
    """What DeerFlow uses and this package does not have."""

    @property
    def fits(self) -> bool:
        return not self.lacks and not self.needs


def compare_names(names: Names) -> list[Comparison]:
    """One comparison for each module."""
    return [
        Comparison(module, lacks=tuple(_missing_names(module, wanted))) for module, wanted in names.items()
    ]


def compare_adapters(adapters: Mapping[type, Any]) -> list[Comparison]:
    """One comparison for each of our adapters, with the class of DeerFlow that it replaces."""
    return [
        Comparison(adapter.__name__, needs=tuple(unknown_uses(adapter, replaced)))
        for adapter, replaced in adapters.items()
    ]


def check_comparisons(comparisons: Iterable[Comparison]) -> None:
    """Raise `UnsupportedReleaseError`, in one sentence that names all of it, if anything is lacking."""
    found = list(comparisons)
    lacks = [name for row in found for name in row.lacks]
    needs = [name for row in found for name in row.needs]
    reasons = [f"it lacks {', '.join(lacks)}"] if lacks else []
    reasons += [f"it needs {', '.join(needs)}, which deerflow-mongo does not have"] if needs else []
    if reasons:
        raise UnsupportedReleaseError(
            f"{installed_release()} does not fit this release of deerflow-mongo: {'; '.join(reasons)}. "
            f"These fit: {FITTING}"
        )


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
