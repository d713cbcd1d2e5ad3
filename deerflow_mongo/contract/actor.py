"""The actor: the user on whose behalf the current task runs, in a context variable, and the `AUTO` marker.

Where DeerFlow is loaded its own variable and marker work too: the stores see what its gateway binds, and
DeerFlow sees what is bound here. Its modules are looked up in `sys.modules` at each call and never imported
or executed. What an actor may do is not decided here but in each store's query.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from .errors import ActorMissingError

HOST_MODULES: Final = ("deerflow.runtime.actor_context", "deerflow.runtime.user_context")
"""Where DeerFlow has its actor: the app layer's module, then the module of the 2.x releases."""

# The same functions under the names of the two modules.
_GET = ("get_actor_context", "get_current_user")
_BIND = ("bind_actor_context", "set_current_user")
_RESET = ("reset_actor_context", "reset_current_user")


@dataclass(frozen=True, slots=True)
class ActorContext:
    """The user on whose behalf a task runs. `id` is the same value under the name that DeerFlow 2.x reads."""

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
        return "AUTO"


AUTO: Final = AutoUser()
"""The default of most `user_id`: the current actor's id. DeerFlow's own marker of this name works as well."""

UserId: TypeAlias = str | AutoUser | None
"""A user's id, `AUTO` for the current actor, or None for no filter."""

_actor: ContextVar[Any] = ContextVar("deerflow_mongo_actor", default=None)


@dataclass(frozen=True, slots=True)
class ActorToken:
    """What `reset_actor_context` needs to restore the actor that was bound before."""

    own: Token[Any]
    host_module: Any
    host: Any


def _host_modules() -> list[Any]:
    """DeerFlow's modules that are loaded; usually none or one."""
    return [module for name in HOST_MODULES if (module := sys.modules.get(name)) is not None]


def _function(module: Any, names: tuple[str, str]) -> Any:
    """The module's function under either name; None while the module is still being imported."""
    return getattr(module, names[0], None) or getattr(module, names[1], None)


def bind_actor_context(actor: Any) -> ActorToken:
    """Make `actor` the current task's actor until `reset_actor_context` gets the returned token.

    `actor` is an `ActorContext`, or any object with a `user_id` or an `id`; None binds nobody.
    """
    for module in _host_modules():
        bind = _function(module, _BIND)
        if bind is not None:
            return ActorToken(_actor.set(actor), module, bind(actor))
    return ActorToken(_actor.set(actor), None, None)


def reset_actor_context(token: ActorToken) -> None:
    """Restore the actor that was bound before."""
    if token.host_module is not None:
        _function(token.host_module, _RESET)(token.host)
    _actor.reset(token.own)


def get_actor_context() -> Any | None:
    """The current task's actor, or None."""
    for module in _host_modules():
        get = _function(module, _GET)
        actor = None if get is None else get()
        if actor is not None:
            return actor
    return _actor.get()


@dataclass(frozen=True, slots=True)
class BoundActor:
    """The actor that is bound, as the stores see it; `user_id` is None for one without an id.

    An actor without an id (an anonymous request) is nobody's owner: it may do what a stranger may.
    """

    user_id: str | None

    def may_use(self, owner: str | None) -> bool:
        """Whether a thread of this owner is open to the actor; one without an owner is open to all."""
        return owner is None or owner == self.user_id


def current_actor() -> BoundActor | None:
    """The bound actor; None where none is bound, as in a host's own code."""
    actor = get_actor_context()
    if actor is None:
        return None
    user_id = getattr(actor, "user_id", None)
    if user_id is None:
        user_id = getattr(actor, "id", None)
    return BoundActor(None if user_id is None else str(user_id))


def bound_user_id(method_name: str) -> str | None:
    """The bound actor's id; None only where no actor is bound.

    Raises `ActorMissingError`, naming the method, for an actor without an id: what it creates would belong to
    nobody, and so be open to all.
    """
    actor = current_actor()
    if actor is not None and actor.user_id is None:
        raise ActorMissingError(method_name)
    return None if actor is None else actor.user_id


def is_auto(value: object) -> bool:
    """Whether `value` is `AUTO`, this package's or that of a DeerFlow that is loaded."""
    if isinstance(value, AutoUser):
        return True
    if value is None or isinstance(value, str):
        return False
    return any(value is getattr(module, "AUTO", AUTO) for module in _host_modules())


def resolve_user_id(value: object, *, method_name: str = "the method") -> object:
    """The user a method acts for: the actor's id for `AUTO`, any other value as it is (unchecked).

    Raises `ActorMissingError`, naming the method, for `AUTO` without an actor or with one that has no id.
    """
    if not is_auto(value):
        return value
    actor = current_actor()
    if actor is None or actor.user_id is None:
        raise ActorMissingError(method_name)
    return actor.user_id
