"""Stores checkpoints and the writes of their tasks, each by one command where it is small.

A checkpoint's values are cut into pieces (`values.py`), of which only those that the thread does not have yet
are sent. The checkpoint is inserted behind them, under the thread's next number. A unique index refuses it
where something happened in the thread that this writer did not know of:

- Other checkpoints: it takes the next number and is inserted again.
- A deletion: pieces may be gone that it refers to. The stored ones get the deletion's number as `generation`,
  by which the deletion leaves them alone from then on; missing ones are stored again; then it is inserted.

So a checkpoint that is stored has all its pieces, whatever is deleted meanwhile.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Binary

from ..documents import checkpoints as documents
from ..documents.checkpoints import CheckpointRow, StoredWrite, TaskWrites, Typed
from ..documents.encoding import Document
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..drivers.threads import in_thread
from ..observation import BackgroundObserver
from . import queries
from .cached_piece import CachedPiece
from .cutting import Piece
from .elements import Encoded
from .group_commit import MAX_COMMAND_BYTES, GroupCommit
from .knowledge import Knowledge, KnownCheckpoint, ThreadKnowledge
from .thread_cache import EncodedCache, PieceCache
from .values import Before, ValueCodec, ValueEncoder

LARGE_VALUE_BYTES: Final = 256 * 1024
"""From this size on, a value is serialised and hashed in a thread: that takes longer than a millisecond."""

KNOWN_VALUE_BYTES: Final = 1024 * 1024
"""From this size on, a value is compared with the one before it in a thread: for the same reason."""

MAX_INLINE_WRITE_BYTES: Final = 256 * 1024
"""A larger value of a task's write is stored in parts of its own."""

MAX_INLINE_WRITES_BYTES: Final = 4 * 1024 * 1024
"""Of all writes in one document; above it, all but small values are stored in parts."""

PART_BYTES: Final = 4 * 1024 * 1024

_SMALL_WRITE_BYTES: Final = 512
_DOCUMENT_BYTES: Final = 4 * 1024
"""What a value takes within a checkpoint's document, about."""

_MAX_KEYS: Final = 10_000
_MAX_ATTEMPTS: Final = 1_000
"""Refusals in a row of one checkpoint; each means that another writer of the thread went on."""


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint to be stored. `changed` are the channels whose versions are new."""

    thread: str
    ns: str
    checkpoint: str
    parent: str | None
    run_id: str | None
    metadata: Mapping[str, Any]
    body: Mapping[str, Any]
    values: Mapping[str, Any]
    versions: Mapping[str, object]
    changed: Container[str]
    delta: tuple[str, ...] = ()

    def row(self, seq: int, generation: int, draft: Draft) -> CheckpointRow:
        return CheckpointRow(
            thread=self.thread,
            ns=self.ns,
            checkpoint=self.checkpoint,
            seq=seq,
            generation=generation,
            parent=self.parent,
            run_id=self.run_id,
            metadata=draft.metadata,
            body=draft.body,
            channels=draft.channels,
            delta=self.delta,
        )


@dataclass(slots=True)
class Draft:
    """The stored values of a checkpoint, how they were encoded, all their keys, and the missing pieces."""

    metadata: Document = field(default_factory=dict[str, Any])
    body: Document = field(default_factory=dict[str, Any])
    channels: dict[str, Document] = field(default_factory=dict[str, Document])
    encoded: dict[str, Encoded] = field(default_factory=dict[str, Encoded])
    keys: set[bytes] = field(default_factory=set[bytes])
    missing: list[Piece] = field(default_factory=list[Piece])
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Work:
    """What the values of one checkpoint are serialised for. `stored` are the pieces that need not be sent."""

    thread: str
    codec: ValueCodec
    generation: int
    stored: Container[bytes]
    draft: Draft


class _Everything(Container[bytes]):
    def __contains__(self, _: object) -> bool:
        return True


class CheckpointWriter:
    """Writes to one collection. Raises what `Collection` raises, and what serde raises."""

    def __init__(
        self, collection: Collection, knowledge: Knowledge, cache: PieceCache, encoded_values: EncodedCache
    ) -> None:
        self._collection = collection
        self._knowledge = knowledge
        self._cache = cache
        self._encoded_values = encoded_values
        self._commit = GroupCommit(self._insert_documents)
        self.retries = 0
        """Tries to store a checkpoint that were repeated, because something else happened in its thread."""

    def observe_background(self, observer: BackgroundObserver) -> None:
        self._commit.observe = observer

    async def close(self) -> None:
        """Accept nothing more, and return once everything accepted is stored or has failed."""
        await self._commit.close()

    # Checkpoints.

    async def put(self, new: NewCheckpoint, codec: ValueCodec) -> None:
        async with self._knowledge.writing(new.thread) as known:
            if known.last_seq is None:
                draft = await self._first_draft(new, codec, known)
            else:
                draft = await self._draft(new, codec, known, known.pieces)
            await self._store(new, codec, known, draft)

    async def _first_draft(self, new: NewCheckpoint, codec: ValueCodec, known: ThreadKnowledge) -> Draft:
        """For a thread whose last number is not known."""
        as_of = time.monotonic()
        last_seq, generation = await self._last_entry(queries.numbered(new.thread))
        if generation != known.generation:
            return await self._renewed_draft(new, codec, known, last_seq, generation)
        known.last_seq = last_seq
        if not known.pieces:
            known.as_of = as_of
        return await self._draft(new, codec, known, known.pieces)

    async def _store(
        self, new: NewCheckpoint, codec: ValueCodec, known: ThreadKnowledge, draft: Draft
    ) -> None:
        is_stored_already = False
        for _ in range(_MAX_ATTEMPTS):
            as_of = time.monotonic()
            seq = (known.last_seq or 0) + 1
            row = new.row(seq, known.generation, draft)
            try:
                if is_stored_already:
                    await self._insert_missing(new.thread, draft, known)
                    is_stored_already = await self._replace(row)
                    if not is_stored_already:
                        continue  # it was deleted
                else:
                    await self._insert(row, draft, known)
            except DuplicateKeyError as error:
                self.retries += 1
                if error.keys == ("_id",):
                    is_stored_already = True
                    continue
                last_seq, generation = await self._last_entry(queries.numbered_after(new.thread, seq - 1))
                if generation > known.generation:
                    draft = await self._renewed_draft(new, codec, known, last_seq, generation)
                known.last_seq = max(last_seq, known.last_seq or 0)
                continue
            known.last_seq, known.as_of = seq, as_of
            known.pieces |= draft.keys
            known.remember((new.ns, new.checkpoint), KnownCheckpoint(new.versions, draft.channels))
            for name, encoded in draft.encoded.items():
                self._encoded_values.put(new.thread, (new.ns, name), encoded, encoded.size_bytes)
            return
        raise RuntimeError("a checkpoint was refused again and again")

    async def _insert(self, row: CheckpointRow, draft: Draft, known: ThreadKnowledge) -> None:
        """The missing pieces, then the checkpoint. Raises `DuplicateKeyError` for the latter only."""
        pieces = self._piece_documents(row.thread, draft.missing, known.generation)
        document = documents.checkpoint_document(row)
        size_bytes = draft.missing_bytes + _DOCUMENT_BYTES * (1 + len(row.channels))
        draft.missing, draft.missing_bytes = [], 0
        try:
            await self._commit.insert([*pieces, document], size_bytes)
        except DuplicateKeyError as error:
            if error.stored == len(pieces):
                raise
            # Another writer has stored a piece. What the repeat raises is about the checkpoint.
            await self._upsert(pieces[error.stored :])
            await self._commit.insert([document], size_bytes)

    async def _insert_missing(self, thread: str, draft: Draft, known: ThreadKnowledge) -> None:
        pieces = self._piece_documents(thread, draft.missing, known.generation)
        draft.missing, draft.missing_bytes = [], 0
        if pieces:
            await self._upsert(pieces)

    async def _replace(self, row: CheckpointRow) -> bool:
        """Store a checkpoint in the place of the one with its id; False where there is none any more."""
        document = documents.checkpoint_document(row)
        query = queries.by_key(document["_id"])
        return bool(await self._collection.update_one(query, documents.replacement_pipeline(document)))

    async def _last_entry(self, query: queries.Query) -> tuple[int, int]:
        found = await self._collection.find(
            query, sort=((documents.SEQ, -1),), limit=1, projection=(documents.SEQ, documents.GENERATION)
        )
        return documents.last_entry(found[0] if found else None)

    async def _insert_documents(self, new: list[Document]) -> None:
        if len(new) == 1:  # half of the driver's work
            await self._collection.insert_one(new[0])
        else:
            await self._collection.insert_many(new)

    # Pieces.

    async def _draft(
        self, new: NewCheckpoint, codec: ValueCodec, known: ThreadKnowledge, stored: Container[bytes]
    ) -> Draft:
        """Serialise what changed; the pieces that are not among the `stored` ones are to be inserted."""
        work = _Work(new.thread, codec, known.generation, stored, Draft())
        draft = work.draft
        draft.metadata = codec.inline(new.metadata) or (await self._encoded(work, new.metadata)).document
        draft.body = codec.inline(new.body) or (await self._encoded(work, new.body)).document
        base = known.checkpoints.get((new.ns, new.parent)) if new.parent else None
        for name, value in new.values.items():
            if base is not None and _is_unchanged(new, base, name):
                draft.channels[name] = base.channels[name]
                continue
            encoded = self._encoded_values.get(new.thread, (new.ns, name))
            encoder = await self._encoded(work, value, Before(encoded, stored) if encoded else None)
            draft.channels[name] = encoder.document
            if encoder.encoded is not None:
                draft.encoded[name] = encoder.encoded
        return draft

    async def _encoded(self, work: _Work, value: object, before: Before | None = None) -> ValueEncoder:
        """The encoder, finished: its pieces are added to the draft, or stored where they are many."""
        encoder = work.codec.encoder(value, before)
        pieces, draft = encoder.pieces(), work.draft
        is_large = before is not None and before.encoded.size_bytes >= KNOWN_VALUE_BYTES
        while True:
            if is_large:
                is_complete = await in_thread(lambda: _collect(pieces, work.stored, draft, MAX_COMMAND_BYTES))
            else:
                is_complete = _collect(pieces, work.stored, draft, LARGE_VALUE_BYTES)
            if is_complete:
                draft.keys.update(encoder.reused_keys)
                return encoder
            is_large = True
            if draft.missing_bytes >= MAX_COMMAND_BYTES:
                await self._upsert(self._piece_documents(work.thread, draft.missing, work.generation))
                draft.missing, draft.missing_bytes = [], 0

    async def _renewed_draft(
        self, new: NewCheckpoint, codec: ValueCodec, known: ThreadKnowledge, last_seq: int, generation: int
    ) -> Draft:
        """After a deletion: give every piece of the checkpoint its generation, and find the missing ones."""
        known.forget()
        known.last_seq, known.generation = last_seq, generation
        keys = list((await self._draft(new, codec, known, _Everything())).keys)
        for start in range(0, len(keys), _MAX_KEYS):
            some = keys[start : start + _MAX_KEYS]
            query = queries.by_keys([documents.piece_key(new.thread, key) for key in some])
            matched = await self._collection.update_all(query, documents.generation_update(generation))
            if matched == len(some):
                known.pieces.update(some)
            else:
                found = await self._collection.find(
                    queries.of_generation(query, generation),
                    sort=(("_id", 1),),
                    limit=len(some),
                    projection=("_id",),
                )
                known.pieces.update(bytes(document["_id"]["piece"]) for document in found)
        return await self._draft(new, codec, known, known.pieces)

    def _piece_documents(self, thread: str, pieces: Sequence[Piece], generation: int) -> list[Document]:
        for piece in pieces:
            cached = CachedPiece(piece.data, piece.elements)
            self._cache.put(thread, piece.key, cached, cached.held_bytes)
        return [
            documents.piece_document(thread, piece.key, piece.data, piece.elements, generation)
            for piece in pieces
        ]

    async def _upsert(self, pieces: Sequence[Document]) -> None:
        await self._collection.upsert_many(
            [(queries.by_key(piece["_id"]), documents.piece_upsert(piece)) for piece in pieces]
        )

    # Writes of tasks.

    async def put_writes(
        self,
        thread: str,
        ns: str,
        checkpoint: str,
        task: str,
        path: str,
        writes: Sequence[tuple[int, str, Typed]],
    ) -> None:
        """Add writes, each with its index, to those of the task. The indexes are not repeated.

        Where all indexes are negative, the writes replace stored ones; else stored ones stay.
        """
        row = TaskWrites(thread, ns, checkpoint, task, path, ())
        stored: list[StoredWrite] = []
        inline_bytes = 0
        for index, channel, (kind, data) in writes:
            is_small = len(data) <= _SMALL_WRITE_BYTES
            fits = inline_bytes + len(data) <= MAX_INLINE_WRITES_BYTES and len(data) <= MAX_INLINE_WRITE_BYTES
            if fits or is_small:
                inline_bytes += len(data)
                value = documents.typed_document((kind, data))
            else:
                value = await self._put_parts(row, kind, data)
            stored.append(StoredWrite(index, channel, value))
        row = TaskWrites(thread, ns, checkpoint, task, path, tuple(stored))
        document = documents.writes_document(row)
        try:
            await self._commit.insert([document], inline_bytes)
        except DuplicateKeyError:
            query = queries.by_key(document["_id"])
            if not await self._collection.update_one(query, documents.merged_writes_pipeline(row)):
                await self._commit.insert([document], inline_bytes)  # deleted meanwhile

    async def _put_parts(self, row: TaskWrites, kind: str, data: bytes) -> Document:
        token = secrets.token_bytes(8)
        view = memoryview(data)
        starts = range(0, len(data), PART_BYTES)
        for part, start in enumerate(starts):
            some = bytes(view[start : start + PART_BYTES])
            await self._collection.insert_one(documents.part_document(row, token, part, some))
        return {"type": kind, "parts": len(starts), "token": Binary(token), "size": len(data)}


def _is_unchanged(new: NewCheckpoint, base: KnownCheckpoint, name: str) -> bool:
    version = new.versions.get(name)
    is_known = name in base.channels and version is not None and base.versions.get(name) == version
    return is_known and name not in new.changed


def _collect(pieces: Iterator[Piece], stored: Container[bytes], draft: Draft, max_bytes: int) -> bool:
    """Take pieces until many are new, or `max_bytes` of them were hashed; True when there are no more."""
    seen = 0
    for piece in pieces:
        if piece.key not in draft.keys:
            draft.keys.add(piece.key)
            if piece.key not in stored:
                draft.missing.append(piece)
                draft.missing_bytes += len(piece.data)
        seen += len(piece.data)
        if draft.missing_bytes >= MAX_COMMAND_BYTES or seen >= max_bytes:
            return False
    return True
