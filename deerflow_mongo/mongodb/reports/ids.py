"""Looks up ids by their beginning, as people type them; a few entries of an index for each lookup, no scan.

Hosts pass whole ids to the stores, which never guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from ...contract.arguments import identifier
from ...contract.errors import ArgumentValueError
from ..drivers.collection import Collection
from ..drivers.driver import Driver
from ..schema import CHECKPOINTS, RUN_EVENTS, RUNS, THREADS, USERS
from . import queries

Kind: TypeAlias = Literal["thread", "run", "user"]

MIN_PREFIX_LENGTH: Final = 4
"""A shorter text is taken as a whole id."""

MAX_CANDIDATES: Final = 5

_PLACES: Final[Mapping[Kind, tuple[tuple[str, str], ...]]] = {
    "thread": (
        (THREADS, "_id"),
        (RUN_EVENTS, "thread_id"),
        (RUNS, "thread_id"),
        (CHECKPOINTS, "_id.thread"),
    ),
    "run": ((RUNS, "_id"),),
    "user": ((USERS, "_id"), (THREADS, "user_id"), (RUNS, "user_id")),
}
"""Where an id of each kind is found: a collection and its field, which begins an index.

A thread that the host never described has events, runs or checkpoints only, a user without an account threads
and runs.
"""


async def complete_id(driver: Driver, prefix: str, kind: Kind, text: str) -> str:
    """The id that is `text`, or else the only one that begins with it; `text` itself where none does.

    `prefix` is that of the collections. Raises `ArgumentValueError` where several ids begin with it.
    """
    identifier(f"{kind}_id", text)
    if len(text) < MIN_PREFIX_LENGTH:
        return text
    found: set[str] = set()
    for collection, field in _PLACES[kind]:
        found.update(await _ids(driver.collection(prefix + collection), field, text))
        if text in found:
            return text
    if len(found) > 1:
        raise ArgumentValueError(_ambiguity(kind, text, sorted(found)))
    return next(iter(found), text)


async def _ids(collection: Collection, field: str, text: str) -> list[str]:
    """The first different ids, one more than are named; one read of one document for each."""
    found: list[str] = []
    while len(found) <= MAX_CANDIDATES:
        query = queries.beginning_with(field, text, after=found[-1] if found else None)
        documents = await collection.find(query, sort=((field, 1),), limit=1, projection=(field,))
        if not documents:
            break
        value: Any = documents[0]
        for step in field.split("."):
            value = value[step]
        found.append(value)
    return found


def _ambiguity(kind: Kind, text: str, found: list[str]) -> str:
    named = ", ".join(found[:MAX_CANDIDATES])
    more = " and others" if len(found) > MAX_CANDIDATES else ""
    return f"several {kind}s begin with {text}: {named}{more}; give more of the id"
