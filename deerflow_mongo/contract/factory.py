"""From a configuration to a `Storage`: a built-in backend, or one that an installed package registers.

Also what every configuration shares: a section of a YAML file, and `$NAME` values from the environment. The
backend's own keys are checked by the backend.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from .errors import BackendNotFoundError, MissingDependencyError, StorageConfigError, StorageError
from .protocols import Storage

BACKENDS_GROUP: Final = "deerflow.storage_backends"
"""An entry point of this group is a callable: the configuration's mapping in, a `Storage` out."""

BUILT_IN: Final[Mapping[str, tuple[str, str]]] = {
    "memory": ("..memory.storage", "create_memory_storage"),
    "mongodb": ("..mongodb.storage", "create_mongo_storage"),
}
"""Backends of this package: module and callable, found without installed metadata (in a vendored copy)."""

URL_WORDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "embedded": {"backend": "mongodb", "url": "embedded"},
    "memory": {"backend": "memory"},
}
"""Configurations of one word that are no URL, and what they stand for."""

_ENVIRONMENT_NAME = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_BRACED_NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)[^}]*\}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9-]*)(?:\+[A-Za-z0-9.+-]*)?://")


def backend_names() -> list[str]:
    """The backends that can be configured."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=BACKENDS_GROUP))})


def create_storage(config: Mapping[str, Any] | str, *, client: Any = None) -> Storage:
    """The storage that a configuration describes; connects to nothing.

    `config` is a mapping with `backend` and the backend's own keys; a value that is `$NAME` as a whole is
    read from the environment. A URL alone is a configuration too, and its scheme names the backend:
    `create_storage("mongodb://localhost")`. The backend gets a `client` that the caller made, and never
    closes it. Raises `BackendNotFoundError` and `StorageConfigError`.
    """
    options = with_environment(_mapping_of(config))
    name = options.pop("backend", None)
    name = name.strip() if isinstance(name, str) else name
    if not isinstance(name, str) or not name:
        raise StorageConfigError(f"the configuration needs `backend`: one of {_known()}")
    reference = unread_reference(name)
    if reference is not None:
        raise StorageConfigError(f"`backend`: {reference}")
    build = _backend(name)
    storage = build(options) if client is None else build(options, client=client)
    if not isinstance(storage, Storage):
        raise StorageConfigError(
            f"backend {name!r} returned a {type(storage).__name__}, which is not a Storage"
        )
    return storage


def _mapping_of(config: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if not isinstance(config, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise StorageConfigError(f"the configuration must be a mapping or a URL, not {type(config).__name__}")
    url = cast("str", _from_environment("url", config.strip())).strip()
    if not url and config.strip():
        raise StorageConfigError(f"the configuration is {config.strip()}, and that variable is empty: set it")
    reference = unread_reference(url)
    if reference is not None:
        raise StorageConfigError(f"the configuration: {reference}")
    if url in URL_WORDS:
        return URL_WORDS[url]
    scheme = _SCHEME.match(url)
    if scheme is None:
        # The text itself is not shown: it may be a URL with a password and a slip in its scheme.
        raise StorageConfigError(
            "the configuration is a text that is not a URL; pass a mapping with `backend`, or a URL such as "
            "mongodb://localhost"
        )
    return {"backend": scheme[1].lower(), "url": url}


def _known() -> str:
    return ", ".join(backend_names())


def _backend(name: str) -> Callable[..., Any]:
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name]
        return getattr(importlib.import_module(module, __package__), attribute)
    entry = next(iter(entry_points(group=BACKENDS_GROUP, name=name)), None)
    if entry is None:
        raise BackendNotFoundError(f"there is no storage backend {name!r}; known: {_known()}")
    try:
        return entry.load()
    except StorageError:
        raise
    except (ImportError, AttributeError) as error:
        raise StorageConfigError(
            f"backend {entry.name!r} ({entry.value}) cannot be loaded: {error}"
        ) from error


# -- a backend's own options -----------------------------------------------------------------------

_OPTIONS: Final = "options"

BuildStorage = TypeVar("BuildStorage", bound=Callable[..., Any])


def with_options(names: Iterable[str]) -> Callable[[BuildStorage], BuildStorage]:
    """State the names of a backend's options at its callable, as the attribute `options`.

    A host reads only these from the environment. A backend that states none has all variables read.
    """

    def state(build: BuildStorage) -> BuildStorage:
        setattr(build, _OPTIONS, frozenset(names))
        return build

    return state


def backend_options(name: str) -> frozenset[str] | None:
    """The names of the backend's options, without `backend`; None if it does not state them."""
    stated: Iterable[str] | None = getattr(_backend(name), _OPTIONS, None)
    return None if stated is None else frozenset(stated)


# -- what every configuration shares ---------------------------------------------------------------


def with_environment(options: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with every value that is `$NAME` as a whole read from the environment, nested ones too."""
    return {key: _from_environment(str(key), value) for key, value in options.items()}


def unread_reference(value: str) -> str | None:
    """The sentence for a value that was meant to come from the environment and does not; else None.

    `$NAME` is read where it is the whole value. A `$` inside a URL may belong to a password.
    """
    whole = _ENVIRONMENT_NAME.fullmatch(value)
    if whole is not None:
        return f"{value} is read from the environment by create_storage() and MongoStorage.open() only"
    match = _BRACED_NAME.search(value) or _ENVIRONMENT_NAME.match(value)
    if match is None:
        return None
    return (
        f"{match[0]} is not replaced: only a value that is ${match[1]} as a whole is read from the "
        "environment; put the whole value into one variable"
    )


def _from_environment(place: str, value: Any) -> Any:
    if isinstance(value, str):
        match = _ENVIRONMENT_NAME.fullmatch(value)
        if match is None:
            return value
        name = match.group(1)
        if name not in os.environ:
            raise StorageConfigError(
                f"`{place}` is ${name}, and the environment has no variable {name}: set it"
            )
        return os.environ[name]
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: _from_environment(f"{place}.{key}", item) for key, item in items}
    if isinstance(value, list):
        return [_from_environment(f"{place}[{i}]", item) for i, item in enumerate(cast("list[Any]", value))]
    return value


def load_config(path: str | os.PathLike[str], section: str = "storage") -> dict[str, Any]:
    """One section of a YAML file, as `create_storage` takes it; its `$NAME` values stay as they are.

    Raises `StorageConfigError` where the file or the section is missing or is not a mapping, and
    `MissingDependencyError` without PyYAML.
    """
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise MissingDependencyError("reading a YAML file", "PyYAML", "yaml") from error
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageConfigError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}"
        # The parser's own text quotes the file, which may contain a password.
        raise StorageConfigError(f"{os.fspath(path)} is not valid YAML{where}") from None
    found = cast("Mapping[str, Any]", content).get(section) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise StorageConfigError(
            f"{os.fspath(path)} has no section `{section}:` with the storage's options, such as\n"
            f"{section}:\n  backend: mongodb\n  url: $MONGODB_URL"
        )
    return dict(cast("Mapping[str, Any]", found))
