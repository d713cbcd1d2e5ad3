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
from ...contract.errors import ActorMissingError
from ..deerflow import import_deerflow

_user_context: Any = import_deerflow("deerflow.runtime.user_context")

AUTO: Any = _user_context.AUTO
"""DeerFlow's marker for the bound user."""


class UserMissingError(ActorMissingError):
    """`ActorMissingError` with DeerFlow's word for the actor: "no user context is set"."""

    def __init__(self, method_name: str) -> None:
        super().__init__(method_name)
        text = (
            f"{method_name} called with user_id=AUTO but no user context is set; pass user_id: a string, or"
        )
        self.args = (f"{text} None for no filter",)


def acting_user(user_id: Any, method_name: str) -> str | None:
    """The user that a method acts for, as text, or None for everybody.

    Raises `UserMissingError`, a `RuntimeError` as in DeerFlow's SQL stores, for `AUTO` without a bound user.
    An actor that is bound without an id gets it for None as well: it must not act for everybody.
    """
    try:
        resolved = resolve_user_id(user_id, method_name=method_name)
    except ActorMissingError:
        raise UserMissingError(method_name) from None
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
