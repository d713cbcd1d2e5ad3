"""What a saver knows of the threads that it reads and writes, so that it sends only what is new.

A checkpoint takes the next number of its thread (`seq`), and so does the record of a deletion. A writer that
knows the last number inserts its checkpoint under the next one: the unique index refuses it if anything
happened meanwhile. The pieces that a writer knows to be stored are therefore still there when its checkpoint
is stored; see `writer.py` for what happens after a refusal, and `pruning.py` for the deletions.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from ..documents.encoding import Document

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

KNOWLEDGE_LIFETIME_S: Final = 900.0
"""How long a saver relies on what it knows. A deletion's record, which refutes it, stays for a day."""

_MAX_THREADS = 4_096
_MAX_PIECES = 500_000
"""Of all threads, at about 100 bytes each."""

_ROOM_CHECK = 64
"""The bounds are applied after so many new threads, because it takes a look at all."""

_MAX_CHECKPOINTS = 8
"""Of one thread: the parents of the next checkpoints, one for each namespace in use."""


class KnownCheckpoint(NamedTuple):
    """The stored values of a checkpoint's channels, and the versions that they have."""

    versions: Mapping[str, object]
    channels: Mapping[str, Document]


class ThreadKnowledge:
    """One thread. `pieces` are stored as of `last_seq`, or as of a read where that is None."""

    __slots__ = ("as_of", "checkpoints", "generation", "is_outdated", "last_seq", "lock", "pieces")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.forget()

    def forget(self) -> None:
        """For the writer that holds the lock, and while nobody does: a write under way builds on it."""
        self.is_outdated = False
        self.last_seq: int | None = None
        self.generation = 0
        self.as_of = time.monotonic()
        self.pieces: set[bytes] = set()
        self.checkpoints: OrderedDict[tuple[str, str], KnownCheckpoint] = OrderedDict()

    def forget_if_old(self) -> None:
        if self.is_outdated or time.monotonic() - self.as_of > KNOWLEDGE_LIFETIME_S:
            self.forget()

    def remember(self, key: tuple[str, str], checkpoint: KnownCheckpoint) -> None:
        self.checkpoints[key] = checkpoint
        self.checkpoints.move_to_end(key)
        while len(self.checkpoints) > _MAX_CHECKPOINTS:
            self.checkpoints.popitem(last=False)

    def add_read(
        self,
        key: tuple[str, str],
        checkpoint: KnownCheckpoint,
        pieces: Iterable[bytes],
        generation: int,
        as_of: float,
    ) -> None:
        """What a read of a checkpoint that began at `as_of` has found; its writer knew `generation`.

        A deletion that its writer did not know of may be about to remove its pieces: they count as stored
        only where that is the last deletion.
        """
        if self.lock.locked():
            return
        self.forget_if_old()
        if self.last_seq is None and (generation > self.generation or not self.pieces):
            self.forget()
            self.generation, self.as_of = generation, as_of
        if generation != self.generation:
            return
        self.pieces.update(pieces)
        self.remember(key, checkpoint)


class Knowledge:
    """All threads of one saver; the ones used least recently are forgotten first."""

    def __init__(self) -> None:
        self._threads: OrderedDict[str, ThreadKnowledge] = OrderedDict()

    def of(self, thread: str) -> ThreadKnowledge:
        known = self._threads.get(thread)
        if known is None:
            known = self._threads[thread] = ThreadKnowledge()
            if len(self._threads) % _ROOM_CHECK == 0:
                self._make_room()
        else:
            self._threads.move_to_end(thread)
        return known

    @asynccontextmanager
    async def writing(self, thread: str) -> AsyncGenerator[ThreadKnowledge]:
        """The thread for one writer at a time."""
        known = self.of(thread)
        async with known.lock:
            self._threads[thread] = known
            known.forget_if_old()
            yield known

    def forget(self, thread: str) -> None:
        """What was known of a thread; a write under way learns from the server."""
        known = self._threads.get(thread)
        if known is not None:
            known.is_outdated = True

    def _make_room(self) -> None:
        total = 0
        for known in self._threads.values():
            total += len(known.pieces)
        for thread in list(self._threads)[:-1]:
            if len(self._threads) <= _MAX_THREADS and total <= _MAX_PIECES:
                return
            if not self._threads[thread].lock.locked():
                total -= len(self._threads.pop(thread).pieces)
