"""Erasing a thread, or a user, with everything that belongs to it: a capability of a storage.

Deleting a row of one store leaves what others have of the same thread; this does not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, Self, runtime_checkable


@dataclass(slots=True)
class Erased:
    """How many rows an erasure removed, or would remove, of each kind."""

    threads: int = 0
    runs: int = 0
    run_events: int = 0
    feedback: int = 0
    checkpoints: int = 0
    accounts: int = 0

    def add(self, other: Self) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@runtime_checkable
class Erasure(Protocol):
    """A storage that erases threads and users.

    Neither method needs an actor: they are for a host that has checked who asks, and for operators. Both
    work in bounded batches, and may be repeated after any interruption: what is left is erased then, and the
    counts are those of the call.

    Beside writers, what was stored before the call is erased. A writer that is at work meanwhile may store
    more of a thread, which the next call erases; a host therefore ends the thread's active run first. No
    event number is given again, also not after an erasure.
    """

    async def purge_thread(self, thread_id: str) -> Erased:
        """Erase the thread's metadata, runs, run events, feedback of all users, and checkpoints.

        The metadata goes last, so that a thread whose erasure was interrupted is still listed.
        """
        ...

    async def erase_user(self, user_id: str) -> Erased:
        """Erase the user's threads as `purge_thread` does, and what the user has in others'.

        That is runs, run events that were written for the user, feedback, and the account, which goes last.
        The runs of other users in the user's threads go with these threads. A text that another user wrote
        about this one is not found. Raises `ArgumentValueError` for an empty id.
        """
        ...
