"""Whom a call of DeerFlow's is for: the `user_id` of its methods, as our stores take it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ...contract.actor import ActorContext, bind_actor_context, reset_actor_context
from ...contract.arguments import is_valid_id
from ..gateway import host

_user_context: Any = host("deerflow.runtime.user_context")

AUTO: Any = _user_context.AUTO
"""DeerFlow's marker for "the user that is bound"."""


def acting_user(user_id: Any, method_name: str) -> str | None:
    """The user a method acts for as text, or None for everybody. `AUTO` needs a bound user."""
    resolved = _user_context.resolve_user_id(user_id, method_name=method_name)
    return None if resolved is None else str(resolved)


@contextmanager
def acting_as(user_id: str | None) -> Generator[None]:
    """This user as the only one that our stores see; with None they see none, and hide nothing."""
    token = bind_actor_context(None if user_id is None else ActorContext(user_id=user_id))
    try:
        yield
    finally:
        reset_actor_context(token)


def can_be_stored(*texts: object) -> bool:
    """Whether these can be somebody's id, status or email. What cannot is in no row: no error, nothing found.

    DeerFlow looks up whatever stands in a request, also what is longer than anything that we store.
    """
    return is_valid_id(*texts)
