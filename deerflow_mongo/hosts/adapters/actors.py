"""The user that a call of DeerFlow acts for: from the `user_id` of its methods to that of our stores."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ...contract.actor import (
    ActorContext,
    bind_actor_context,
    bound_user_id,
    reset_actor_context,
    resolve_user_id,
)
from ..deerflow import import_deerflow

_user_context: Any = import_deerflow("deerflow.runtime.user_context")

AUTO: Any = _user_context.AUTO
"""DeerFlow's marker for the bound user."""


def acting_user(user_id: Any, method_name: str) -> str | None:
    """The user that a method acts for, as text, or None for everybody.

    Raises `ActorMissingError`, a `RuntimeError` as in DeerFlow's SQL stores, for `AUTO` without a bound user.
    An actor that is bound without an id gets it for None as well: it must not act for everybody.
    """
    resolved = resolve_user_id(user_id, method_name=method_name)
    if resolved is None:
        bound_user_id(method_name)
        return None
    return str(resolved)


@contextmanager
def acting_as(user_id: str | None) -> Generator[None]:
    """Bind this user for a block; with None nobody is bound, and our stores check no thread's owner.

    `user_id` comes from `acting_user`, which refuses None to an actor without an id.
    """
    token = bind_actor_context(None if user_id is None else ActorContext(user_id=user_id))
    try:
        yield
    finally:
        reset_actor_context(token)
