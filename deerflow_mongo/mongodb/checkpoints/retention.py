"""Retention without a daemon: a saver prunes, in the background, the threads that it puts checkpoints into.

A thread's turn comes after so many of its puts, or after some time, whichever is first; one thread at a time.
A thread that nobody writes to any more is left to the command `checkpoints prune`. What is pruned is decided
in `pruning.py`; a prune that is cut short by the end of the process is taken up by the next one.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from ...contract.errors import StorageClosedError, StorageError
from ..observation import BackgroundObserver, unobserved
from .deletion import Collections
from .pruning import Rule, prune_thread

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 600.0
"""From a thread's prune, or its first put here, to the next one."""

MIN_PUTS: Final = 50
"""Puts between two prunes of a thread, at least; a quarter of `keep_last` where that is more."""

RETENTION: Final = "checkpointer.retention"
"""The name of a prune, for observers of background work."""

_MAX_THREADS: Final = 10_000


@dataclass(slots=True)
class _Turn:
    """What happened in a thread since its last prune."""

    puts: int
    since: float


class Retention:
    """Of one saver. `note_put` never waits and never raises."""

    def __init__(self, collections: Collections, rules: Sequence[Rule]) -> None:
        """A checkpoint goes where any of the rules takes it."""
        self._collections = collections
        self._rules = tuple(rules)
        self._max_puts = max(MIN_PUTS, *(4 + (rule.keep_last or 0) // 4 for rule in rules)) if rules else 0
        self._threads: OrderedDict[str, _Turn] = OrderedDict()
        self._due: OrderedDict[str, None] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.observe: BackgroundObserver = unobserved

    @property
    def is_on(self) -> bool:
        return bool(self._rules)

    def note_put(self, thread: str) -> None:
        """A checkpoint was stored in the thread."""
        if not self._rules or self._is_closed:
            return
        now = time.monotonic()
        turn = self._threads.get(thread)
        if turn is None:
            turn = self._threads[thread] = _Turn(0, now)
            if len(self._threads) > _MAX_THREADS:
                self._threads.popitem(last=False)
        self._threads.move_to_end(thread)
        turn.puts += 1
        if turn.puts < self._max_puts and now - turn.since < INTERVAL_S:
            return
        turn.puts, turn.since = 0, now
        self._due[thread] = None
        if self._task is None:
            self._task = asyncio.create_task(self._prune_due(), context=contextvars.Context())

    async def drain(self) -> None:
        """Return once no thread is due."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Stop where it is; what is left is pruned another time."""
        self._is_closed = True
        self._due.clear()
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _prune_due(self) -> None:
        try:
            while self._due:
                thread, _ = self._due.popitem(last=False)
                await self._prune(thread)
        finally:
            self._task = None

    async def _prune(self, thread: str) -> None:
        try:
            with self.observe(RETENTION):
                await self._apply_rules(thread)
        except StorageClosedError:
            self._is_closed = True
        except StorageError as error:
            logger.warning("retention of thread %r failed, and is repeated later: %s", thread, error)

    async def _apply_rules(self, thread: str) -> None:
        for rule in self._rules:
            removed = await prune_thread(self._collections, thread, rule, with_orphans=False)
            if removed.checkpoints:
                logger.info("retention removed %d checkpoints of thread %r", removed.checkpoints, thread)


def rules_of(keep_last: int | None, ttl_days: int | None) -> list[Rule]:
    """The rules of a configuration; none where both are off."""
    rules: list[Rule] = []
    if keep_last is not None:
        rules.append(Rule(keep_last=keep_last))
    if ttl_days is not None:
        rules.append(Rule(older_than=timedelta(days=ttl_days)))
    return rules
