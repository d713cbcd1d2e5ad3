"""Who the current task works for: the actor's context variable and the `AUTO` marker.

Where DeerFlow is installed, its own variable and marker are used, so that what its gateway binds is what the
stores see. Only that one module of DeerFlow is executed; importing this package must not import an agent
framework. What an actor may do is not decided here but in each store's query.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self

logger = logging.getLogger(__name__)

HOST_MODULES: Final = ("deerflow.runtime.actor_context", "deerflow.runtime.user_context")
"""Where DeerFlow keeps its actor: the app layer's module, then that of the released 2.x line."""


@dataclass(frozen=True, slots=True)
class OwnActorContext:
    """The user on whose behalf a task runs. `id` is the same value under DeerFlow 2.x's name."""

    user_id: str | None = None

    @property
    def id(self) -> str | None:
        return self.user_id


class AutoUser:
    """The type of `AUTO`; it has one instance."""

    _instance: Any = None

    def __new__(cls) -> Self:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "<AUTO>"

    def __reduce__(self) -> str:
        return "_OWN_AUTO"


class _PreloadedFinder(MetaPathFinder, Loader):
    """Answers the host's own later import of a module with the one that was executed here already."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self._name = name
        self._module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._module.__file__, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)


def _host_locations() -> list[str]:
    loaded = sys.modules.get("deerflow")
    if loaded is not None:
        return list(getattr(loaded, "__path__", ()))
    spec = importlib.util.find_spec("deerflow")
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _execute(name: str, path: Path) -> ModuleType | None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except Exception:
        logger.warning("%s cannot be loaded; deerflow-mongo keeps an actor of its own", name, exc_info=True)
        return None
    finally:
        # Left in place, it would hide from the import system that its parent packages are not imported.
        del sys.modules[name]
    sys.meta_path.insert(0, _PreloadedFinder(name, module))
    return module


def load_host_module() -> ModuleType | None:
    """DeerFlow's module that holds the actor, or None where there is no DeerFlow."""
    for name in HOST_MODULES:
        if name in sys.modules:
            return sys.modules[name]
    for name in HOST_MODULES:
        for location in _host_locations():
            path = Path(location, *name.split(".")[1:]).with_suffix(".py")
            if path.is_file():
                return _execute(name, path)
    return None


_OWN_AUTO: Final = AutoUser()
_own_actor: ContextVar[Any] = ContextVar("deerflow_mongo_actor", default=None)
_host: Any = load_host_module()

AUTO: Final[Any] = getattr(_host, "AUTO", _OWN_AUTO)
"""The default of every `user_id`: the current actor's id."""

ActorContext: Any = getattr(_host, "ActorContext", OwnActorContext)
"""What `bind_actor_context` takes; made as `ActorContext(user_id=...)`."""

_bind: Any = (
    getattr(_host, "bind_actor_context", None) or getattr(_host, "set_current_user", None) or _own_actor.set
)
_reset: Any = (
    getattr(_host, "reset_actor_context", None)
    or getattr(_host, "reset_current_user", None)
    or _own_actor.reset
)
_get: Any = (
    getattr(_host, "get_actor_context", None) or getattr(_host, "get_current_user", None) or _own_actor.get
)


def bind_actor_context(actor: Any) -> Token[Any]:
    """Make `actor` the current task's actor until `reset_actor_context` is given the returned token."""
    return _bind(actor)


def reset_actor_context(token: Token[Any]) -> None:
    """Bring back the actor that was bound before."""
    _reset(token)


def get_actor_context() -> Any | None:
    """The current task's actor, or None."""
    return _get()


def current_user_id() -> str | None:
    """The current actor's id as text, or None where no actor is bound or it has no id."""
    actor = _get()
    if actor is None:
        return None
    user_id = getattr(actor, "user_id", None)
    if user_id is None:
        user_id = getattr(actor, "id", None)
    return None if user_id is None else str(user_id)


def resolve_user_id(value: object, *, method_name: str = "the method") -> object:
    """The user a method acts for: the actor's id for `AUTO`, any other value as it is (unchecked).

    Raises `RuntimeError`, naming the method, for `AUTO` without an actor or with one that has no id.
    """
    if value is not AUTO and not isinstance(value, AutoUser):
        return value
    user_id = current_user_id()
    if user_id is None:
        raise RuntimeError(
            f"{method_name} called with user_id=AUTO but no actor context is set; bind one with "
            "bind_actor_context(), or pass user_id: a string, or None for no filter"
        )
    host_resolve = getattr(_host, "resolve_user_id", None)
    return user_id if host_resolve is None else host_resolve(AUTO, method_name=method_name)
