"""Which checkpoints a thread loses: deletion of a thread and of runs, pruning, and retention's rules.

A rule never takes the newest checkpoint of a namespace, nor one that a delta channel of a remaining
checkpoint needs: the ancestors back to the nearest one that stores the channel's value. How checkpoints are
removed beside writers is in `deletion.py`; when retention runs is in `retention.py`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ...contract.arguments import identifier, identifiers
from ...contract.errors import ArgumentTypeError, ArgumentValueError
from ..documents.checkpoints import DELTA
from ..documents.encoding import Document
from ..drivers.collection import Collection
from . import queries
from .deletion import SKELETON, Collections, Deletion, DryDeletion, Removed, batches_of

logger = logging.getLogger(__name__)

KEEP_LATEST: Final = "keep_latest"
DELETE: Final = "delete"

_RUNS: Final = 1_000
"""Run ids of one query."""

_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Rule:
    """The checkpoints that a thread may lose: those that meet each of the conditions that are given.

    `keep_last`: beyond so many newest ones of their namespace. `older_than`: stored longer ago than this.
    Those with pending writes stay unless `takes_pending`: the ones without a child that have any writes.
    """

    keep_last: int | None = None
    older_than: timedelta | None = None
    takes_pending: bool = False

    def __post_init__(self) -> None:
        if self.keep_last is None and self.older_than is None:
            raise ArgumentValueError("a rule needs `keep_last` or `older_than`")
        if self.keep_last is not None and (
            isinstance(self.keep_last, bool) or not isinstance(self.keep_last, int)  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        ):
            raise ArgumentTypeError("keep_last: a whole number is needed")
        if self.keep_last is not None and self.keep_last < 1:
            raise ArgumentValueError("keep_last: at least 1: the newest checkpoint always stays")
        if self.older_than is not None and self.older_than < timedelta(0):
            raise ArgumentValueError("older_than: must not be negative")


LATEST: Final = Rule(keep_last=1, takes_pending=True)
"""What LangGraph's strategy `keep_latest` leaves: the newest checkpoint of each namespace."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prune is: threads done of all, and what was removed from them, or would be."""

    threads_done: int
    threads: int
    removed: Removed


@dataclass(slots=True)
class Pruned:
    """What became of a prune. `damaged` are threads with a checkpoint whose references cannot be read."""

    threads: list[str] = field(default_factory=list[str])
    """Those that lost something, or would."""

    removed: Removed = field(default_factory=Removed)


OnProgress = Callable[[Progress], None]


# -- threads and runs ------------------------------------------------------------------------------


async def delete_thread(collections: Collections, thread: str, *, measured: bool = False) -> Removed:
    """Remove everything that was stored for the thread before. Without anything, no record is stored."""
    identifier("thread_id", thread)
    deletion = Deletion(collections, thread, measured=measured)
    stored = queries.without_deletions(queries.documents_of(thread))
    if await collections.data.find(stored, sort=(), limit=1, projection=("_id",)):
        await deletion.begin()
        await deletion.remove_everything()
    return deletion.removed


async def delete_for_runs(collections: Collections, run_ids: Sequence[str]) -> Pruned:
    """Remove the checkpoints whose metadata has one of these run ids, of all threads, with their writes.

    A delta channel of another checkpoint may need one of them; LangGraph leaves that to the caller.
    """
    if isinstance(run_ids, str):
        raise ArgumentTypeError("run_ids: a list of run ids is needed, not one text")
    wanted = [str(run_id) for run_id in run_ids]
    pruned = Pruned()
    for some in batches_of(dict.fromkeys(wanted), _RUNS):
        for thread in await _threads_of_runs(collections.data, some):
            deletion = Deletion(collections, thread)
            await deletion.begin()
            await _remove(deletion, _checkpoints_of_runs(collections.data, some, thread))
            _note(pruned, thread, deletion.removed)
    return pruned


async def _threads_of_runs(collection: Collection, run_ids: Sequence[str]) -> list[str]:
    pipeline: list[Document] = [
        {"$match": queries.checkpoints_of_runs(run_ids)},
        {"$group": {"_id": "$_id.thread"}},
        {"$sort": {"_id": 1}},
    ]
    return [document["_id"] for document in await collection.aggregate(pipeline)]


def _checkpoints_of_runs(
    collection: Collection, run_ids: Sequence[str], thread: str
) -> AsyncGenerator[list[Document]]:
    return collection.stream(
        queries.checkpoints_of_runs(run_ids, thread), projection=SKELETON, batch_size=_BATCH
    )


async def _remove(deletion: Deletion, victims: AsyncGenerator[list[Document]]) -> None:
    async with aclosing(victims):
        async for some in victims:
            if deletion.number == 0:
                await deletion.begin()
            await deletion.remove_checkpoints(some)
            if deletion.is_full:
                await deletion.remove_pieces()
    await deletion.remove_pieces()


def _note(pruned: Pruned, thread: str, removed: Removed) -> None:
    pruned.removed.add(removed)
    if removed != Removed() and thread not in pruned.threads[-1:]:
        pruned.threads.append(thread)


# -- pruning ---------------------------------------------------------------------------------------


async def prune(
    collections: Collections,
    threads: Iterable[str] | None,
    rule: Rule | str,
    *,
    dry_run: bool = False,
    measured: bool = True,
    on_progress: OnProgress | None = None,
) -> Pruned:
    """Prune these threads, or all with None, by a rule or a strategy of LangGraph's.

    It may be interrupted and repeated. What puts and deletions have left that died in the middle goes too.
    """
    if isinstance(threads, str):
        raise ArgumentTypeError("thread_ids: a list of thread ids is needed, not one text")
    if isinstance(rule, str) and rule not in (KEEP_LATEST, DELETE):
        raise ArgumentValueError(f"unknown prune strategy {rule!r}; expected {KEEP_LATEST!r} or {DELETE!r}")
    if threads is None:
        names = [thread async for thread in thread_ids(collections.data)]
    else:
        names = identifiers("thread_ids", [str(thread) for thread in threads])
    pruned = Pruned()
    for done, thread in enumerate(names, 1):
        removed = await prune_thread(collections, thread, rule, dry_run=dry_run, measured=measured)
        _note(pruned, thread, removed)
        if on_progress is not None:
            on_progress(Progress(done, len(names), replace(pruned.removed)))
    return pruned


async def prune_thread(
    collections: Collections,
    thread: str,
    rule: Rule | str,
    *,
    dry_run: bool = False,
    measured: bool = False,
    with_orphans: bool = True,
) -> Removed:
    """Prune one thread; `with_orphans` also reads which pieces nobody refers to."""
    deletion = (
        DryDeletion(collections, thread) if dry_run else Deletion(collections, thread, measured=measured)
    )
    if rule == DELETE:
        if not dry_run:
            return await delete_thread(collections, thread, measured=measured)
        await deletion.remove_everything()
        return deletion.removed
    chosen = LATEST if isinstance(rule, str) else rule
    await _remove(deletion, _victims(collections.data, thread, chosen))
    if with_orphans:
        await deletion.remove_orphans()
    return deletion.removed


async def thread_ids(collection: Collection) -> AsyncGenerator[str]:
    """The threads that have anything stored, in the order of their ids."""
    last: str | None = None
    while True:
        found = await collection.find(
            queries.documents_behind(last), sort=(("_id", 1),), limit=1, projection=("_id",)
        )
        if not found:
            return
        thread: str = found[0]["_id"]["thread"]
        yield thread
        last = thread


async def _victims(collection: Collection, thread: str, rule: Rule) -> AsyncGenerator[list[Document]]:
    """The checkpoints that the thread loses, from the newest to the oldest, in batches."""
    choice = _Choice(rule)
    victims: list[Document] = []
    batches = collection.stream(
        queries.live_checkpoints(thread),
        sort=(("_id.checkpoint", -1),),
        projection=SKELETON,
        batch_size=_BATCH,
    )
    async with aclosing(batches):
        async for batch in batches:
            for skeleton in batch:
                loses = choice.loses(skeleton)
                if loses and choice.is_leaf and not rule.takes_pending:
                    loses = not await _has_writes(collection, skeleton)
                if choice.note(skeleton, loses=loses):
                    victims.append(skeleton)
                if choice.is_unordered:
                    logger.warning(
                        "thread %r: a checkpoint needs a parent with a higher id; no older ones are pruned",
                        thread,
                    )
                    return
            if victims:
                yield victims
                victims = []


async def _has_writes(collection: Collection, skeleton: Document) -> bool:
    query = queries.writes_of(skeleton["_id"])
    return bool(await collection.find(query, sort=(("_id", 1),), limit=1, projection=("_id",)))


class _Choice:
    """Applies a rule to a thread's checkpoints, which it is shown by falling ids: children before parents."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._before: datetime | None = None
        if rule.older_than is not None:
            # As the driver returns dates: naive, in UTC.
            self._before = datetime.now(UTC).replace(tzinfo=None) - rule.older_than
        self._counts: dict[str, int] = {}
        self._parents: set[tuple[str, str]] = set()
        self._needs: dict[tuple[str, str], set[str]] = {}
        """Checkpoint -> the delta channels whose value or writes a remaining child needs of it."""

        self.is_leaf = False
        self.is_unordered = False

    def loses(self, skeleton: Document) -> bool:
        """Whether the rule takes it, apart from pending writes; sets `is_leaf`."""
        key = skeleton["_id"]
        ns, place = key["ns"], (key["ns"], key["checkpoint"])
        newer = self._counts.get(ns, 0)
        self._counts[ns] = newer + 1
        self.is_leaf = place not in self._parents
        self._parents.discard(place)
        parent = skeleton.get("parent")
        if parent is not None:
            self._parents.add((ns, parent))
        if newer == 0 or place in self._needs:
            return False
        if self._rule.keep_last is not None and newer < self._rule.keep_last:
            return False
        return self._before is None or _is_before(skeleton.get("created_at"), self._before)

    def note(self, skeleton: Document, *, loses: bool) -> bool:
        """Take the decision into account; returns it."""
        if loses:
            return True
        key = skeleton["_id"]
        needs = self._needs.pop((key["ns"], key["checkpoint"]), set[str]())
        needs.difference_update(channel["name"] for channel in skeleton.get("channels", ()))
        needs.update(skeleton.get(DELTA, ()))
        parent = skeleton.get("parent")
        if needs and parent is not None:
            self.is_unordered = parent >= key["checkpoint"]
            self._needs.setdefault((key["ns"], parent), set()).update(needs)
        return False


def _is_before(stored: Any, at: datetime) -> bool:
    return isinstance(stored, datetime) and stored.replace(tzinfo=None) < at
