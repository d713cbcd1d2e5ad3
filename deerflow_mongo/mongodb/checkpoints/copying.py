"""Copies a thread's checkpoints into another thread, with their writes and pieces, within the server.

The copy is a writer like any other (see `writer.py` and `deletion.py`): each checkpoint is inserted under the
target's next number, behind its pieces, its writes and their parts. What the target has stays, but for the
same checkpoints and writes, which are replaced. Repeating a copy continues it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from ...contract.arguments import identifier
from ...contract.errors import CorruptDocumentError, StorageUnavailableError
from ..documents import checkpoints as documents
from ..documents.encoding import Document
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from . import queries
from .deletion import UNREADABLE, batches_of, children_of, references_of

_BATCH: Final = 50
"""Checkpoints whose documents are in memory."""

_PIECES: Final = 250
"""Of one command: they may have 4 MiB each."""

_MAX_KNOWN: Final = 500_000
_MAX_ATTEMPTS: Final = 1_000


@dataclass(slots=True)
class Copied:
    """What was copied; what the target had already, in the same state, does not count."""

    checkpoints: int = 0
    damaged: list[str] = field(default_factory=list[str])
    """Ids of checkpoints that cannot be read, or lack pieces: they are left out."""


async def copy_thread(collection: Collection, source: str, target: str) -> Copied:
    """Copy all checkpoints of `source`; a thread without any is no error.

    Raises `CorruptDocumentError` at the end, where everything else is copied, for damaged checkpoints.
    """
    identifier("source_thread_id", source)
    identifier("target_thread_id", target)
    copy = _Copy(collection, source, target)
    if source != target:
        await copy.run()
    if copy.copied.damaged:
        raise CorruptDocumentError(
            collection.name,
            f"{source} ({', '.join(copy.copied.damaged)})",
            "channels",
            "refers to pieces that are missing or cannot be read; the other checkpoints were copied",
        )
    return copy.copied


class _Copy:
    def __init__(self, collection: Collection, source: str, target: str) -> None:
        self.copied = Copied()
        self._collection = collection
        self._source = source
        self._target = target
        self._last_seq = 0
        self._generation = 0
        self._pieces: set[bytes] = set()
        """Pieces that the target has with the generation of its last deletion, or a higher one."""

    async def run(self) -> None:
        await self._read_last_entry()
        batches = self._collection.stream(
            queries.live_checkpoints(self._source), sort=(("_id.checkpoint", 1),), batch_size=_BATCH
        )
        async with aclosing(batches):
            async for batch in batches:
                changed = await self._changed(batch)
                if changed:
                    await self._copy_writes(changed)
                    await self._copy_checkpoints(changed)

    async def _read_last_entry(self) -> None:
        found = await self._collection.find(
            queries.numbered(self._target),
            sort=((documents.SEQ, -1),),
            limit=1,
            projection=(documents.SEQ, documents.GENERATION),
        )
        self._last_seq, generation = documents.last_entry(found[0] if found else None)
        if generation != self._generation:
            self._generation = generation
            self._pieces.clear()

    async def _changed(self, batch: Sequence[Document]) -> list[Document]:
        """Those that the target does not have, with their writes, from an earlier copy."""
        keys = [{**document["_id"], "thread": self._target} for document in batch]
        found = await self._collection.find(
            queries.live(queries.by_keys(keys)), sort=(("_id", 1),), limit=len(keys)
        )
        stored = {(document["_id"]["ns"], document["_id"]["checkpoint"]): document for document in found}
        changed: list[Document] = []
        for document in batch:
            other = stored.get((document["_id"]["ns"], document["_id"]["checkpoint"]))
            if other is None or not documents.is_copy(document, other):
                changed.append(document)
        unchanged = [document for document in batch if document not in changed]
        if unchanged:
            await self._copy_writes(unchanged)
        return changed

    # Writes.

    async def _copy_writes(self, batch: Sequence[Document]) -> None:
        """Parts before the documents that refer to them."""
        query = queries.any_of([queries.writes_of(document["_id"]) for document in batch])
        for some in (queries.parts(query), queries.without_parts(query)):
            await self._collection.aggregate(
                documents.copies_of_writes(some, self._target, self._collection.name)
            )

    # Checkpoints.

    async def _copy_checkpoints(self, batch: Sequence[Document]) -> None:
        remaining = await self._with_pieces(batch)
        for _ in range(_MAX_ATTEMPTS):
            if not remaining:
                return
            numbered = [
                documents.copied_checkpoint(document, self._target, self._last_seq + place, self._generation)
                for place, document in enumerate(remaining, 1)
            ]
            try:
                await self._collection.insert_many(numbered)
            except DuplicateKeyError as error:
                self._count(error.stored)
                remaining, numbered = remaining[error.stored :], numbered[error.stored :]
                if error.keys == ("_id",) and await self._replace(numbered[0]):
                    self._count(1)
                    remaining = remaining[1:]
                    continue
                generation = self._generation
                await self._read_last_entry()
                if generation != self._generation:
                    remaining = await self._with_pieces(remaining)
            else:
                self._count(len(remaining))
                return
        raise StorageUnavailableError("the target's checkpoints changed all the time: repeat the copy")

    def _count(self, stored: int) -> None:
        self.copied.checkpoints += stored
        self._last_seq += stored

    async def _replace(self, document: Document) -> bool:
        """Whether it took the place of the stored one; not if its number was taken."""
        try:
            return bool(
                await self._collection.update_one(
                    queries.by_key(document["_id"]), documents.replacement_pipeline(document)
                )
            )
        except DuplicateKeyError:
            return False

    async def _with_pieces(self, batch: Sequence[Document]) -> list[Document]:
        """Those of these checkpoints whose pieces the target has now; damaged ones are noted."""
        complete: list[Document] = []
        for document in batch:
            try:
                keys = await self._keys(document)
            except UNREADABLE:
                self.copied.damaged.append(document["_id"]["checkpoint"])
                continue
            if len(self._pieces) > _MAX_KNOWN:
                self._pieces.clear()
            missing = await self._copy_pieces(keys - self._pieces)
            # What the source has and the target lost went with a deletion there, which refuses the insert.
            if not missing or await self._has_pieces(missing):
                complete.append(document)
            elif await self._is_unchanged(document):
                self.copied.damaged.append(document["_id"]["checkpoint"])
        return complete

    async def _keys(self, document: Document) -> set[bytes]:
        """The node and leaf pieces that a checkpoint refers to. Raises one of `UNREADABLE`."""
        nodes, leaves = references_of(document)
        keys = {*nodes, *leaves}
        async for some in children_of(self._collection, self._source, nodes):
            keys.update(some)
        return keys

    async def _copy_pieces(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those that are not there; the others are in the target afterwards."""
        missing: set[bytes] = set()
        for some in batches_of(keys, _PIECES):
            query = queries.by_keys([documents.piece_key(self._source, key) for key in some])
            await self._collection.aggregate(
                documents.copies_of_pieces(query, self._target, self._generation, self._collection.name)
            )
            query = queries.by_keys([documents.piece_key(self._target, key) for key in some])
            found = await self._collection.find(
                queries.of_generation(query, self._generation),
                sort=(("_id", 1),),
                limit=len(some),
                projection=("_id",),
            )
            stored = {bytes(piece["_id"]["piece"]) for piece in found}
            self._pieces |= stored
            missing.update(set(some) - stored)
        return missing

    async def _has_pieces(self, keys: Iterable[bytes]) -> bool:
        """Whether the source has all of them."""
        for some in batches_of(keys, _PIECES):
            query = queries.by_keys([documents.piece_key(self._source, key) for key in some])
            found = await self._collection.find(
                query, sort=(("_id", 1),), limit=len(some), projection=("_id",)
            )
            if len(found) < len(some):
                return False
        return True

    async def _is_unchanged(self, document: Document) -> bool:
        """Whether the source still has the checkpoint: else its pieces went with it."""
        found = await self._collection.find_one(queries.live(queries.by_key(document["_id"])))
        return found is not None and found[documents.SEQ] == document[documents.SEQ]
