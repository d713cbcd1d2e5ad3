"""Erasing a thread, or a user, with everything that belongs to it: a capability of a storage.

Deleting a row of one store leaves what the others have of the same thread; an erasure does not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable


@dataclass(slots=True)
class Erased:
    """How many rows of each kind an erasure has removed, or would remove."""

    threads: int = 0
    runs: int = 0
    run_events: int = 0
    feedback: int = 0
    checkpoints: int = 0
    accounts: int = 0

    def add(self, other: Erased) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@runtime_checkable
class Erasure(Protocol):
    """A storage that erases threads and users.

    No method asks for an actor: they are for a host that has checked who asks, and for operators. An erasure
    works in bounded batches and may be repeated after any interruption: what is left is erased then, and the
    counts are those of the call. What was stored before the call is erased. A writer that is at work
    meanwhile may store more, which the next call erases; so a host first ends the active run of a thread.

    What stays of a thread is its id with numbers, and no text: no event number is given again, also not after
    an erasure.
    """

    async def purge_thread(self, thread_id: str) -> Erased:
        """Erase a thread: its runs, run events, feedback of all users, checkpoints and metadata.

        The metadata goes last, so that a thread whose erasure was interrupted is still listed.
        """
        ...

    async def erase_user(self, user_id: str) -> Erased:
        """Erase a user: the user's threads, what the user has in the threads of others, and the account.

        A thread is the user's that has this owner, or that has no owner and runs of this user only. In other
        threads the user's runs go, with their events and all feedback on them, the events that were written
        for the user, and the user's feedback. Checkpoints of others' threads stay. The account goes last.
        Raises `ArgumentValueError` for an empty id.
        """
        ...

    async def count_thread(self, thread_id: str) -> Erased:
        """What `purge_thread` would erase; changes nothing."""
        ...

    async def count_user(self, user_id: str) -> Erased:
        """What `erase_user` would erase; changes nothing."""
        ...
