"""From a configuration to a `Storage`: finds the backend among the installed entry points.

Knows no backend by name, ours neither: one that anyone else installs is found the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..mongodb.config import with_environment
from .errors import BackendNotFoundError, StorageConfigError, StorageError
from .protocols import Storage

BACKENDS_GROUP = "deerflow.storage_backends"
"""An entry point of this group is a callable: the configuration's mapping in, a `Storage` out."""


def backend_names() -> list[str]:
    """The backends that are installed."""
    return sorted({entry.name for entry in entry_points(group=BACKENDS_GROUP)})


def create_storage(config: Mapping[str, Any], *, client: Any = None) -> Storage:
    """The storage that a configuration describes; connects to nothing.

    `config` is a mapping with `backend` and the backend's own keys; a value that is `$NAME` as a whole is
    read from the environment. A `client` that the caller has already is handed to the backend, which never
    closes it. Raises `BackendNotFoundError` and `StorageConfigError`.
    """
    if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise StorageConfigError(f"the configuration must be a mapping, not {type(config).__name__}")
    options = with_environment(config)
    name = options.pop("backend", None)
    if not isinstance(name, str) or not name:
        raise StorageConfigError(f"the configuration needs `backend`: one of {_known()}")
    build = _load(_entry_point(name))
    storage = build(options) if client is None else build(options, client=client)
    if not isinstance(storage, Storage):
        raise StorageConfigError(f"backend {name!r} gave a {type(storage).__name__}, which is no Storage")
    return storage


def _known() -> str:
    return ", ".join(backend_names()) or "none: no backend is installed"


def _entry_point(name: str) -> EntryPoint:
    for entry in entry_points(group=BACKENDS_GROUP, name=name):
        return entry
    raise BackendNotFoundError(f"there is no storage backend {name!r}; known: {_known()}")


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except StorageError:
        raise
    except (ImportError, AttributeError) as error:
        raise StorageConfigError(
            f"backend {entry.name!r} ({entry.value}) cannot be loaded: {error}"
        ) from error
