"""One deletion of checkpoints in one thread, with the pieces that nobody needs any more, beside any writers.

A writer inserts its checkpoint under the number behind the last one that it knows of, and takes pieces for
stored that it knows to be there. A deletion keeps it from being wrong, in this order:

1. A record takes the next number p of the thread. From now on each writer that does not know of it is
   refused, reads it, and claims its pieces: it raises their `generation` to p, or stores them again.
2. The checkpoints become tombstones, which no reader sees. They go on to occupy their numbers: one that was
   free below p would let such a writer in. A checkpoint that was stored again since step 1 stays.
3. Their writes go.
4. All checkpoints of the thread that live now are read for the pieces that they refer to.
5. The other pieces go, unless their generation is p or higher: a writer may have claimed them.

Each step may be repeated, several deletions may run at once, and after each of them the process may die: what
it leaves is invisible, and `remove_orphans` removes it. Which checkpoints a thread loses is in `pruning.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from ...contract.errors import CorruptDocumentError, StorageUnavailableError
from ...contract.rows import MAX_COUNT
from ..documents import checkpoint_deletions as documents
from ..documents.checkpoints import DELTA, EXPIRES_AT, GENERATION, SEQ, stored_values
from ..documents.encoding import Document, UnreadableError
from ..documents.versions import is_newer
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from . import queries
from .cutting import referenced_keys, split_keys

logger = logging.getLogger(__name__)

SKELETON: Final = (
    "_id",
    "schema_version",
    SEQ,
    GENERATION,
    "parent",
    "created_at",
    DELTA,
    "channels.name",
    *(f"{value}.{keys}" for value in ("metadata", "body", "channels") for keys in ("nodes", "pieces")),
    EXPIRES_AT,
)
"""What a deletion reads of checkpoints: everything but their values."""

UNREADABLE: Final = (UnreadableError, KeyError, TypeError, AttributeError)

ORPHAN_AGE: Final = timedelta(hours=1)
"""How old what nobody refers to has to be, unless a checkpoint that was deleted referred to it.

A put that is under way may refer to it in a moment. It would store it again, so this only saves it the work.
"""

MAX_CANDIDATES: Final = 500_000
"""Pieces that are compared with all references at a time, at about 100 bytes each."""

_RECORD_RENEWAL_S: Final = 1_800.0
_RECORD_LIMIT_S: Final = documents.LIFETIME.total_seconds() / 2
_MAX_ATTEMPTS: Final = 1_000
_MAX_NUMBERS: Final = 100_000
_BATCH: Final = 250
"""Pieces of one command: they may have 4 MiB each, which the server reads."""

_SKELETONS: Final = 200
"""Checkpoints of one batch, each with up to some ten KiB of keys."""


_Item = TypeVar("_Item")


class Collections(NamedTuple):
    """The collection of checkpoints, read as it is now, and as no failover can roll it back."""

    data: Collection
    committed: Collection


@dataclass(slots=True)
class Removed:
    """What a deletion has removed, or would; `size_bytes` is 0 unless it was measured."""

    checkpoints: int = 0
    writes: int = 0
    pieces: int = 0
    size_bytes: int = 0

    def add(self, other: Removed) -> None:
        self.checkpoints += other.checkpoints
        self.writes += other.writes
        self.pieces += other.pieces
        self.size_bytes += other.size_bytes


class Deletion:
    """Begin it, remove checkpoints, then the pieces. `removed` counts what is gone."""

    def __init__(self, collections: Collections, thread: str, *, measured: bool = False) -> None:
        self.removed = Removed()
        self.number = 0
        self._data = collections.data
        self._committed = collections.committed
        self._thread = thread
        self._measured = measured
        self._began_at = datetime.now(UTC)
        self._recorded_at = 0.0
        self._candidates: set[bytes] = set()

    @property
    def _has_record(self) -> bool:
        return self.number != 0

    @property
    def is_full(self) -> bool:
        """Whether `remove_pieces` should come before more checkpoints are removed."""
        return len(self._candidates) >= MAX_CANDIDATES

    # Step 1.

    async def begin(self, at_least: int = 0) -> None:
        """Take the thread's next number, or all up to `at_least`; once more for a newer one."""
        for _ in range(_MAX_ATTEMPTS):
            recorded_at = time.monotonic()
            next_number = await self._last_number() + 1
            numbers = range(next_number, max(next_number, at_least) + 1)
            if await self._record(numbers):
                self.number, self._recorded_at = numbers[-1], recorded_at
                return
        raise StorageUnavailableError(
            "the thread's checkpoints changed all the time: no deletion could begin"
        )

    async def _last_number(self) -> int:
        found = await self._data.find(
            queries.numbered(self._thread), sort=((SEQ, -1),), limit=1, projection=(SEQ,)
        )
        return documents.highest_number(found[0] if found else None)

    async def _record(self, numbers: range) -> bool:
        """Whether the numbers were free."""
        query = queries.new_record(documents.record_key(self._thread, numbers[-1]))
        try:
            return await self._data.insert_if_absent(query, documents.record_pipeline(numbers))
        except DuplicateKeyError:
            return False

    # Steps 2 and 3.

    async def remove_checkpoints(self, skeletons: Sequence[Document]) -> None:
        """Remove these checkpoints, read with `SKELETON`, and their writes; some hundreds at a time."""
        keys = [skeleton["_id"] for skeleton in skeletons]
        await self._entomb(keys)
        entombed = await self._entombed(keys)
        await self._remove_writes([queries.writes_of(key) for key in entombed], self._began_at)
        await self._add_candidates(skeletons)

    async def _entomb(self, keys: Sequence[Document]) -> None:
        query = queries.removable_checkpoints(keys, self.number)
        await self._measure(query)
        self.removed.checkpoints += await self._data.update_many(
            query, documents.tombstone_pipeline(self.number)
        )

    async def _entombed(self, keys: Sequence[Document]) -> list[Document]:
        """Those that are tombstones now, whoever made them."""
        found = await self._data.find(
            queries.tombstones(queries.by_keys(keys)),
            sort=(("_id", 1),),
            limit=len(keys),
            projection=("_id",),
        )
        return [document["_id"] for document in found]

    async def _remove_writes(self, ranges: Sequence[queries.Query], until: datetime) -> None:
        """Those until this time: a checkpoint that is stored again meanwhile keeps later ones."""
        for some in batches_of(ranges, _SKELETONS):
            stored = [queries.stored_until(query, until) for query in some]
            await self._measure(queries.any_of(stored))
            self.removed.writes += await self._data.delete_each(stored)

    async def _add_candidates(self, skeletons: Iterable[Document]) -> None:
        nodes: set[bytes] = set()
        for skeleton in skeletons:
            try:
                own_nodes, leaves = references_of(skeleton)
            except UNREADABLE:
                continue  # `remove_orphans` finds its pieces later
            nodes.update(own_nodes)
            self._candidates.update(leaves)
        nodes -= self._candidates  # those of them that were read before
        self._candidates |= nodes
        async for leaves in children_of(self._data, self._thread, nodes):
            self._candidates.update(leaves)

    async def remove_everything(self) -> None:
        """Remove all checkpoints of the thread that were stored before the record, and what belongs to them.

        No references are read: a later checkpoint refers to pieces of the record's generation only.
        """
        await self._remove_all_checkpoints()
        if await self._exists(queries.live_checkpoints(self._thread, self.number)):
            logger.warning("thread %r has checkpoints of a newer release: all pieces stay", self._thread)
            return
        await self._remove_orphaned_writes(self._began_at)
        await self._remove_all_pieces()
        highest = await self._highest_generation()
        if highest >= self.number and not await self._exists(queries.live_checkpoints(self._thread)):
            # Numbers start again from 1 where all records have expired, and these pieces are older.
            await self.begin(min(highest + 1, self.number + _MAX_NUMBERS))
            if not await self._exists(queries.live_checkpoints(self._thread, self.number)):
                await self._remove_all_pieces()

    async def _remove_all_checkpoints(self) -> None:
        batches = self._data.stream(
            queries.live_checkpoints(self._thread, self.number),
            projection=("_id",),
            batch_size=_SKELETONS,
        )
        async with aclosing(batches):
            async for batch in batches:
                await self.remove_checkpoints(batch)

    async def _remove_all_pieces(self) -> None:
        async for keys in self._all_pieces():
            await self._delete_pieces(keys, older_than=None)

    async def _highest_generation(self) -> int:
        found = await self._data.find(
            queries.pieces_of(self._thread), sort=((GENERATION, -1),), limit=1, projection=(GENERATION,)
        )
        return int(found[0][GENERATION]) if found else 0

    async def _exists(self, query: queries.Query) -> bool:
        return bool(await self._data.find(query, sort=(), limit=1, projection=("_id",)))

    # Steps 4 and 5.

    async def remove_pieces(self) -> None:
        """Remove the pieces of the removed checkpoints that no other one refers to."""
        if self._candidates:
            candidates, self._candidates = self._candidates, set()
            await self._renew()
            unreferenced = await self._unreferenced(candidates)
            await self._delete_pieces(unreferenced, older_than=None)

    async def remove_orphans(self) -> None:
        """Remove writes without a checkpoint, and pieces that nobody refers to, if they are an hour old.

        A process that died in the middle of a put or a deletion has left them.
        """
        until = datetime.now(UTC) - ORPHAN_AGE
        await self._remove_orphaned_writes(until)
        async for candidates in self._all_pieces():
            if self.number == 0 and not await self._has_old(await self._unreferenced(candidates), until):
                continue  # without anything to remove no record is stored
            await self._renew()
            await self._delete_pieces(await self._unreferenced(candidates), older_than=until)

    async def _has_old(self, keys: Iterable[bytes], until: datetime) -> bool:
        for some in batches_of(keys, _BATCH):
            query = queries.by_keys(documents.piece_keys(self._thread, some))
            if await self._exists(queries.stored_until(query, until)):
                return True
        return False

    async def _remove_orphaned_writes(self, until: datetime) -> None:
        async for some in self._orphaned_writes():
            await self._remove_writes(some, until)

    async def _renew(self) -> None:
        """Take a number where there is none, or a newer one long before the record expires."""
        if self.number == 0 or time.monotonic() - self._recorded_at > _RECORD_RENEWAL_S:
            await self.begin()

    async def _unreferenced(self, candidates: Iterable[bytes]) -> set[bytes]:
        """Those of these pieces that no checkpoint refers to."""
        candidates = set(candidates)
        is_recorded = not self._has_record
        seen: set[bytes] = set()
        # By one cursor with the record: what it shows is not older than that.
        batches = self._committed.stream(
            queries.numbered(self._thread), sort=((SEQ, -1),), projection=SKELETON, batch_size=_SKELETONS
        )
        async with aclosing(batches):
            async for batch in batches:
                nodes: set[bytes] = set()
                for document in batch:
                    if EXPIRES_AT in document:
                        is_recorded |= documents.highest_number(document) == self.number
                        continue
                    if self._is_removed(document):
                        continue
                    own_nodes, leaves = self._readable_references(document)
                    nodes.update(own_nodes)
                    candidates.difference_update(leaves)
                if not is_recorded and batch:
                    self._check_not_behind(batch)
                nodes -= seen
                seen |= nodes
                candidates -= nodes
                async for leaves in children_of(self._data, self._thread, nodes):
                    candidates.difference_update(leaves)
        if not is_recorded:
            raise StorageUnavailableError("the record of a deletion is not committed yet: repeat it")
        return candidates

    def _is_removed(self, document: Document) -> bool:
        """Whether a checkpoint counts as removed, though it is there."""
        return False

    def _check_not_behind(self, batch: Sequence[Document]) -> None:
        """The record is in the first batch that goes down to its number."""
        if documents.highest_number(batch[-1]) < self.number:
            raise StorageUnavailableError("the record of a deletion is not committed yet: repeat it")

    def _readable_references(self, document: Document) -> tuple[list[bytes], list[bytes]]:
        """Raises `CorruptDocumentError` where they cannot be read: nobody knows which pieces they are."""
        try:
            if is_newer(document):
                raise UnreadableError
            return references_of(document)
        except UNREADABLE as error:
            raise CorruptDocumentError(
                self._data.name,
                str(document["_id"]),
                "channels",
                "cannot be read, so no piece of its thread is deleted",
            ) from error

    async def _delete_pieces(self, keys: Iterable[bytes], older_than: datetime | None) -> None:
        for some in batches_of(keys, _BATCH):
            if time.monotonic() - self._recorded_at > _RECORD_LIMIT_S:
                raise StorageUnavailableError("a deletion took longer than its record lives: repeat it")
            query = queries.removable_pieces(
                queries.by_keys(documents.piece_keys(self._thread, some)), self.number
            )
            if older_than is not None:
                query = queries.stored_until(query, older_than)
            await self._measure(query)
            self.removed.pieces += await self._data.delete_many(query)

    # What is left behind.

    async def _all_pieces(self) -> AsyncGenerator[set[bytes]]:
        """The keys of the thread's pieces, `MAX_CANDIDATES` at a time."""
        batches = self._data.stream(
            queries.pieces_of(self._thread), sort=(("_id", 1),), projection=("_id",), batch_size=10_000
        )
        keys: set[bytes] = set()
        async with aclosing(batches):
            async for batch in batches:
                keys.update(documents.piece_of(document) for document in batch)
                if len(keys) >= MAX_CANDIDATES:
                    yield keys
                    keys = set()
        if keys:
            yield keys

    async def _orphaned_writes(self) -> AsyncGenerator[list[queries.Query]]:
        """The writes, by ranges, of checkpoints that are not there, or tombstones."""
        tombstones = {_place(key) for key in await self._tombstones()}
        batches = self._data.stream(
            queries.keys_of_writes(self._thread, None), sort=(("_id", 1),), projection=("_id",)
        )
        checkpoint: tuple[str, str] | None = None
        orphaned: dict[tuple[str, str], queries.Query] = {}
        async with aclosing(batches):
            async for batch in batches:
                for document in batch:
                    key = document["_id"]
                    place = _place(key)
                    if "task" not in key:
                        checkpoint = place
                    elif place != checkpoint or place in tombstones:
                        owner = {name: key[name] for name in ("thread", "ns", "checkpoint")}
                        orphaned[place] = queries.writes_of(owner)
                if orphaned:
                    yield list(orphaned.values())
                    orphaned.clear()

    async def _tombstones(self) -> list[Document]:
        found: list[Document] = []
        batches = self._data.stream(
            queries.tombstones(queries.numbered(self._thread)), projection=("_id",), batch_size=_BATCH
        )
        async with aclosing(batches):
            async for batch in batches:
                found += [document["_id"] for document in batch]
        return found

    async def _measure(self, query: queries.Query) -> None:
        if self._measured:
            self.removed.size_bytes += (await size_of(self._data, query))[1]


class DryDeletion(Deletion):
    """Counts and measures what a deletion would remove, and changes nothing."""

    def __init__(self, collections: Collections, thread: str) -> None:
        super().__init__(collections, thread)
        self.number = MAX_COUNT
        self._removed_places: set[tuple[str, str]] = set()

    @property
    def _has_record(self) -> bool:
        return False

    @property
    def is_full(self) -> bool:
        return False

    async def begin(self, at_least: int = 0) -> None:
        """No writer is refused."""

    async def remove_everything(self) -> None:
        await self._remove_all_checkpoints()
        await self._remove_orphaned_writes(self._began_at)
        await self._remove_all_pieces()

    async def _entomb(self, keys: Sequence[Document]) -> None:
        self.removed.checkpoints += await self._count(queries.removable_checkpoints(keys, MAX_COUNT))
        self._removed_places.update(map(_place, keys))

    async def _entombed(self, keys: Sequence[Document]) -> list[Document]:
        return list(keys)

    async def _remove_writes(self, ranges: Sequence[queries.Query], until: datetime) -> None:
        for some in batches_of(ranges, _SKELETONS):
            stored = [queries.stored_until(query, until) for query in some]
            self.removed.writes += await self._count(queries.any_of(stored))

    async def _renew(self) -> None: ...

    def _is_removed(self, document: Document) -> bool:
        return _place(document["_id"]) in self._removed_places

    async def _delete_pieces(self, keys: Iterable[bytes], older_than: datetime | None) -> None:
        for some in batches_of(keys, _BATCH):
            query = queries.by_keys(documents.piece_keys(self._thread, some))
            if older_than is not None:
                query = queries.stored_until(query, older_than)
            self.removed.pieces += await self._count(query)

    async def _count(self, query: queries.Query) -> int:
        count, size_bytes = await size_of(self._data, query)
        self.removed.size_bytes += size_bytes
        return count


async def size_of(collection: Collection, query: queries.Query) -> tuple[int, int]:
    """The number of these documents, and their size before the server compresses them."""
    found = await collection.aggregate(queries.total_size(query))
    return (int(found[0]["count"]), int(found[0]["size_bytes"])) if found else (0, 0)


async def children_of(
    collection: Collection, thread: str, nodes: Iterable[bytes]
) -> AsyncGenerator[list[bytes]]:
    """The keys in these node pieces, of those that are stored and can be read."""
    for some in batches_of(nodes, _BATCH):
        query = queries.by_keys(documents.piece_keys(thread, some))
        for piece in await collection.find(
            query, sort=(("_id", 1),), limit=len(some), projection=("_id", "data")
        ):
            try:
                yield split_keys(piece["data"])
            except UNREADABLE:
                continue  # the value cannot be read either way


def references_of(skeleton: Document) -> tuple[list[bytes], list[bytes]]:
    """The keys of the node and leaf pieces of a checkpoint. Raises `UnreadableError`."""
    nodes: list[bytes] = []
    leaves: list[bytes] = []
    for value in stored_values(skeleton):
        own_nodes, own_leaves = referenced_keys(value)
        nodes += own_nodes
        leaves += own_leaves
    return nodes, leaves


def _place(key: Document) -> tuple[str, str]:
    return key["ns"], key["checkpoint"]


def batches_of(items: Iterable[_Item], size: int) -> Iterable[list[_Item]]:
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some
