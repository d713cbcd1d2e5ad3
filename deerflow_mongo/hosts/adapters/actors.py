"""The user that a call of DeerFlow acts for: from the `user_id` of its methods to that of our stores."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ...contract.actor import ActorContext, bind_actor_context, reset_actor_context
from ..deerflow import import_deerflow

_user_context: Any = import_deerflow("deerflow.runtime.user_context")

AUTO: Any = _user_context.AUTO
"""DeerFlow's marker for the bound user."""


def acting_user(user_id: Any, method_name: str) -> str | None:
    """The user that a method acts for, as text, or None for everybody.

    For `AUTO` without a bound user this raises DeerFlow's own `RuntimeError`, as its SQL stores do.
    """
    resolved = _user_context.resolve_user_id(user_id, method_name=method_name)
    return None if resolved is None else str(resolved)


@contextmanager
def acting_as(user_id: str | None) -> Generator[None]:
    """Bind this user for a block; with None nobody is bound, and our stores check no thread's owner."""
    token = bind_actor_context(None if user_id is None else ActorContext(user_id=user_id))
    try:
        yield
    finally:
        reset_actor_context(token)
