"""Reads checkpoints with their pending writes by one command, and the pieces of their values by another.

Pieces never change under their key, so those of the cache are not read again. A checkpoint that is
deleted while it is read counts as deleted; one whose pieces are missing is damaged, and raises
`CorruptDocumentError`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ...contract.errors import CorruptDocumentError
from ..corruption import READ_ERRORS, corruption_of
from ..documents import checkpoints as documents
from ..documents.checkpoints import CheckpointRow, StoredWrite, TaskWrites, Typed
from ..documents.encoding import Document
from ..documents.versions import is_newer
from ..drivers.collection import Collection
from ..drivers.threads import in_thread
from ..schema import CHECKPOINTS, schema_of
from . import queries
from .cached_piece import CachedPiece
from .knowledge import Knowledge, KnownCheckpoint
from .thread_cache import PieceCache
from .values import ValueCodec, ValueDecoder

logger = logging.getLogger(__name__)

_FIRST_DOCUMENTS: Final = 4
"""Read for the newest checkpoint: its writes stand before it."""

_PAGE: Final = 50
"""Documents of a list that are read at a time, at most; the first pages are smaller."""

_PIECES_BYTES: Final = 16 * 1024 * 1024
"""Pieces that are read at a time, about."""

_LARGE_BYTES: Final = 256 * 1024
"""From this size on, values are deserialised in a thread."""

_NEWEST_FIRST = (("_id", -1),)
_ID_RISING = (("_id", 1),)
_HIGHEST_ID_FIRST = (("_id.checkpoint", -1),)


class Found(NamedTuple):
    """A checkpoint's document and those of its pending writes."""

    checkpoint: Document
    writes: list[Document]


Pieces: TypeAlias = dict[bytes, CachedPiece]
"""The pieces that were read, by key."""


@dataclass(frozen=True, slots=True)
class ReadWrite:
    """A pending write."""

    task: str
    channel: str
    value: Any


@dataclass(frozen=True, slots=True)
class ReadCheckpoint:
    """A checkpoint, the values of its channels, and its pending writes in LangGraph's order.

    `body` is LangGraph's checkpoint without `channel_values`.
    """

    row: CheckpointRow
    metadata: dict[str, Any]
    body: dict[str, Any]
    values: dict[str, Any]
    writes: Sequence[ReadWrite]

    @property
    def versions(self) -> Mapping[str, object]:
        return self.body.get("channel_versions") or {}


_Decoders: TypeAlias = Mapping[str, tuple[Document, ValueDecoder]]
"""The stored values of a checkpoint, by what an error's text calls them."""


class _MissingPieceError(Exception):
    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


class CheckpointReader:
    def __init__(self, collection: Collection, knowledge: Knowledge, cache: PieceCache) -> None:
        self._collection = collection
        self._knowledge = knowledge
        self._cache = cache

    # One checkpoint.

    async def get(
        self, thread: str, ns: str, checkpoint: str | None, codec: ValueCodec
    ) -> ReadCheckpoint | None:
        """The checkpoint, the newest of the namespace where none is named; None without one.

        Raises `CorruptDocumentError`.
        """
        damaged: tuple[object, ...] = ()
        while True:
            as_of = time.monotonic()
            found = await self._find(thread, ns, checkpoint)
            if found is None:
                return None
            row = self._row(found.checkpoint)
            try:
                read, keys = await self._read(row, found.writes, codec, {})
            except _MissingPieceError as error:
                state = (row.checkpoint, row.seq, error.place)
                if state == damaged:  # it is still there, as it was
                    raise self._missing(row, error.place) from None
                damaged = state
            else:
                known = KnownCheckpoint(read.versions, row.channels)
                self._knowledge.of(thread).add_read((ns, row.checkpoint), known, keys, row.generation, as_of)
                return read

    async def _find(self, thread: str, ns: str, checkpoint: str | None) -> Found | None:
        if checkpoint is not None:
            query = queries.checkpoints_with_writes(thread, ns, checkpoint=checkpoint)
            return _newest(await self._all(query))[0]
        query = queries.checkpoints_with_writes(thread, ns)
        limit, writes = _FIRST_DOCUMENTS, list[Document]()
        while True:
            page = await self._collection.find(query, sort=_NEWEST_FIRST, limit=limit)
            found, writes = _newest([*writes, *page])
            if found is not None or len(page) < limit:
                return found
            query = queries.checkpoints_and_writes_below(thread, ns, page[-1]["_id"])
            limit *= 4

    async def _all(self, query: queries.Query) -> list[Document]:
        found: list[Document] = []
        limit = _PAGE
        while True:
            page = await self._collection.find(query, sort=_NEWEST_FIRST, limit=limit, skip=len(found))
            found += page
            if len(page) < limit:
                return found
            limit *= 4

    # The history of delta channels.

    async def ancestors(self, thread: str, ns: str, checkpoint: str | None) -> AsyncIterator[Found]:
        """The parent of a checkpoint, its parent, and so on; of the newest one where none is named."""
        found = await self._find(thread, ns, checkpoint)
        listed: dict[str, Found] = {}
        while found is not None:
            parent = self._row(found.checkpoint).parent
            if parent is None:
                return
            if parent not in listed:
                # Mostly, it is one of those just below.
                query = queries.checkpoints_and_writes_below(thread, ns, found.checkpoint["_id"])
                listed = _listed(await self._collection.find(query, sort=_NEWEST_FIRST, limit=_PAGE))
            found = listed.pop(parent, None) or await self._find(thread, ns, parent)
            if found is not None:
                yield found

    async def some_values(self, found: Found, names: Iterable[str], codec: ValueCodec) -> dict[str, Any]:
        """The values of those of these channels that the checkpoint has. Raises `CorruptDocumentError`."""
        row = self._row(found.checkpoint)
        decoders = {
            name: (row.channels[name], codec.decoder(row.channels[name], f"{_place(row)}, {_channel(name)}"))
            for name in names
            if name in row.channels
        }
        try:
            return await self._values(row, decoders, codec, {})
        except _MissingPieceError as error:
            raise self._missing(row, _channel(error.place)) from None

    async def writes_of(self, found: Found, channels: Container[str], codec: ValueCodec) -> list[ReadWrite]:
        """The pending writes of a checkpoint to these channels, in LangGraph's order."""
        return await self._writes(found.writes, codec, channels)

    # Lists.

    async def of_namespace(
        self, thread: str, ns: str, *, before: str | None, limit: int | None
    ) -> AsyncIterator[Found]:
        """Checkpoints of a namespace below `before`, newest first. `limit` is a hint for the first page."""
        query = queries.checkpoints_with_writes(thread, ns, before=before)
        size = _PAGE if limit is None else min(_PAGE, 2 * limit + 2)
        writes: list[Document] = []
        while True:
            page = await self._collection.find(query, sort=_NEWEST_FIRST, limit=size)
            rest = [*writes, *page]
            while True:
                found, rest = _newest(rest)
                if found is None:
                    break
                yield found
            writes = rest
            if len(page) < size:
                return
            query = queries.checkpoints_and_writes_below(thread, ns, page[-1]["_id"])
            size = _PAGE

    async def over_namespaces(
        self,
        thread: str | None,
        *,
        ns: str | None,
        checkpoint: str | None,
        before: str | None,
        limit: int | None,
    ) -> AsyncIterator[Found]:
        """Checkpoints of a thread, or of all, by their ids downwards, from all namespaces or one."""
        size = _PAGE if limit is None else min(_PAGE, limit + 1)
        up_to, last_keys = None, list[Document]()
        while True:
            query = queries.checkpoints_over_namespaces(
                thread, ns=ns, checkpoint=checkpoint, before=before, up_to=up_to, without=last_keys
            )
            page = await self._collection.find(query, sort=_HIGHEST_ID_FIRST, limit=size)
            for found in await self._with_writes(page):
                yield found
            if len(page) < size:
                return
            lowest = page[-1]["_id"]["checkpoint"]
            keys = [document["_id"] for document in page if document["_id"]["checkpoint"] == lowest]
            last_keys = [*last_keys, *keys] if lowest == up_to else keys
            up_to, size = lowest, _PAGE

    async def _with_writes(self, page: Sequence[Document]) -> list[Found]:
        if not page:
            return []
        by_checkpoint: dict[tuple[str, str, str], list[Document]] = {}
        keys = [document["_id"] for document in page]
        for document in await self._all(queries.writes_of_checkpoints(keys)):
            by_checkpoint.setdefault(_key(document), []).append(document)
        return [Found(document, by_checkpoint.get(_key(document), [])) for document in page]

    async def read(self, found: Found, codec: ValueCodec, pieces: Pieces) -> ReadCheckpoint | None:
        """A checkpoint of a list; None, and an entry in the log, for one that cannot be read.

        `pieces` are those that were read for the list before; others are added.
        """
        try:
            row = self._row(found.checkpoint)
            try:
                return (await self._read(row, found.writes, codec, pieces))[0]
            except _MissingPieceError:
                # Deleted since the list was read, or damaged: reading it alone finds out which.
                return await self.get(row.thread, row.ns, row.checkpoint, codec)
        except CorruptDocumentError as error:
            logger.error(
                "%s; it is left out",
                error,
                extra={
                    "collection": error.collection,
                    "document_id": error.document_id,
                    "field": error.field,
                },
            )
            return None

    # Values.

    async def metadata_of(self, found: Found, codec: ValueCodec) -> Mapping[str, Any] | None:
        """The metadata of a checkpoint of a list; None for one that cannot be read, or was deleted."""
        try:
            row = self._row(found.checkpoint)
            decoder = codec.decoder(row.metadata, f"{_place(row)}, metadata")
            return (await self._values(row, {"metadata": (row.metadata, decoder)}, codec, {}))["metadata"]
        except (_MissingPieceError, CorruptDocumentError):
            return None

    def _row(self, document: Document) -> CheckpointRow:
        if is_newer(document):
            raise self._corruption(document)
        try:
            return documents.checkpoint_row(document)
        except READ_ERRORS as error:
            raise self._corruption(document) from error

    async def _read(
        self, row: CheckpointRow, writes: Iterable[Document], codec: ValueCodec, pieces: Pieces
    ) -> tuple[ReadCheckpoint, set[bytes]]:
        """The checkpoint, and the keys of all its pieces."""
        stored = {"metadata": row.metadata, "body": row.body}
        stored |= {_channel(name): value for name, value in row.channels.items()}
        decoders = {
            place: (value, codec.decoder(value, f"{_place(row)}, {place}")) for place, value in stored.items()
        }
        values = await self._values(row, decoders, codec, pieces)
        body, metadata = values["body"], values["metadata"]
        if not isinstance(body, dict) or not isinstance(metadata, dict):
            raise CorruptDocumentError(self._collection.name, _place(row), "body", "is no checkpoint")
        read = ReadCheckpoint(
            row=row,
            metadata=cast("dict[str, Any]", metadata),
            body=cast("dict[str, Any]", body),
            values={name: values[_channel(name)] for name in row.channels},
            writes=await self._writes(writes, codec),
        )
        return read, {
            key for _, decoder in decoders.values() for key in (*decoder.node_keys, *decoder.leaf_keys)
        }

    async def _values(
        self, row: CheckpointRow, decoders: _Decoders, codec: ValueCodec, pieces: Pieces
    ) -> dict[str, Any]:
        nodes = [key for _, decoder in decoders.values() for key in decoder.node_keys]
        await self._load(row.thread, nodes, pieces, codec)
        for place, (_, decoder) in decoders.items():
            if decoder.node_keys:
                found = _of(pieces, decoder.node_keys, place)
                decoder.feed_nodes([piece.data for piece in found])
        sizes = {place: _size_of(value) for place, (value, _) in decoders.items()}
        is_small = sum(sizes.values()) <= _PIECES_BYTES
        if is_small:
            leaves = [key for _, decoder in decoders.values() for key in decoder.leaf_keys]
            await self._load(row.thread, leaves, pieces, codec)
        values: dict[str, Any] = {}
        for place, (_, decoder) in decoders.items():
            size_bytes, leaves = sizes[place], decoder.leaf_keys
            step = max(1, len(leaves) if is_small else len(leaves) * _PIECES_BYTES // max(size_bytes, 1))
            for start in range(0, len(leaves), step):
                some = leaves[start : start + step]
                # Of a large value only a part is in memory beside it.
                loaded = pieces if is_small else await self._load(row.thread, some, {}, codec)
                fed = _of(loaded, some, place)
                if size_bytes < _LARGE_BYTES:
                    _feed(decoder, fed)
                else:
                    await in_thread(partial(_feed, decoder, fed))
            values[place] = decoder.value()
            for key, copy in decoder.copies:
                self._keep(row.thread, key, copy, pieces)
        return values

    async def _load(self, thread: str, keys: Sequence[bytes], pieces: Pieces, codec: ValueCodec) -> Pieces:
        """Add those of these pieces that exist; from the cache, and the others by one command."""
        missing: list[bytes] = []
        for key in keys:
            if key not in pieces:
                cached = self._cache.get(thread, key)
                if cached is None or not cached.is_for(codec):
                    missing.append(key)
                else:
                    pieces[key] = cached
        if missing:
            query = queries.by_keys([documents.piece_key(thread, key) for key in dict.fromkeys(missing)])
            found = await self._collection.find(
                query, sort=_ID_RISING, limit=len(missing), projection=documents.PIECE_FIELDS
            )
            for key, (data, elements) in documents.piece_data(found).items():
                self._keep(thread, key, CachedPiece(data, elements), pieces)
        return pieces

    def _keep(self, thread: str, key: bytes, piece: CachedPiece, pieces: Pieces) -> None:
        pieces[key] = piece
        self._cache.put(thread, key, piece, piece.held_bytes)

    # Writes.

    async def _writes(
        self, found: Iterable[Document], codec: ValueCodec, channels: Container[str] | None = None
    ) -> list[ReadWrite]:
        """Sorted as LangGraph applies them: by the path of the task, the task, and the index."""
        rows = sorted(
            (self._task_writes(document) for document in found), key=lambda row: (row.path, row.task)
        )
        writes: list[ReadWrite] = []
        for row in rows:
            for write in sorted(row.writes, key=lambda write: write.index):
                if channels is None or write.channel in channels:
                    value = await self._written_value(row, write, codec)
                    writes.append(ReadWrite(row.task, write.channel, value))
        return writes

    async def _written_value(self, row: TaskWrites, write: StoredWrite, codec: ValueCodec) -> Any:
        if "parts" in write.value:
            typed = write.value["type"], await self._joined_parts(row, write)
        else:
            typed = self._typed(row, write)
        try:
            return codec.serde.loads_typed(typed)
        except (NotImplementedError, MemoryError):
            raise  # serde does not know the type: another serde has written it, and nothing is damaged
        except Exception as error:
            reason = f"cannot be decoded ({type(error).__name__}: {error})"
            raise self._damaged_write(row, write, reason) from error

    def _task_writes(self, document: Document) -> TaskWrites:
        if is_newer(document):
            raise self._corruption(document)
        try:
            return documents.task_writes(document)
        except READ_ERRORS as error:
            raise self._corruption(document) from error

    def _typed(self, row: TaskWrites, write: StoredWrite) -> Typed:
        try:
            return documents.typed_value(write.value)
        except READ_ERRORS as error:
            raise self._damaged_write(row, write, "has no type or data") from error

    async def _joined_parts(self, row: TaskWrites, write: StoredWrite) -> bytes:
        try:
            count, token, size = int(write.value["parts"]), write.value["token"], int(write.value["size"])
            buffer = bytearray(size)
        except READ_ERRORS as error:
            raise self._damaged_write(row, write, "has no parts, token or size") from error
        end = 0
        for part in range(count):
            document = await self._collection.find_one(queries.by_key(documents.part_key(row, token, part)))
            data = b"" if document is None else document["data"]
            if not data or end + len(data) > size:
                raise self._damaged_write(row, write, f"lacks its part {part}, or has another one")
            buffer[end : end + len(data)] = data
            end += len(data)
        if end != size:
            raise self._damaged_write(row, write, f"has {size} bytes, of which {end} were found")
        return bytes(buffer)

    # Errors.

    def _damaged_write(self, row: TaskWrites, write: StoredWrite, reason: str) -> CorruptDocumentError:
        field = f"write {write.index} to channel {write.channel!r}"
        return CorruptDocumentError(self._collection.name, f"{_place(row)}, task {row.task!r}", field, reason)

    def _missing(self, row: CheckpointRow, place: str) -> CorruptDocumentError:
        return CorruptDocumentError(
            self._collection.name, f"{_place(row)}, {place}", "pieces", "refers to a piece that is not stored"
        )

    def _corruption(self, document: Document) -> CorruptDocumentError:
        return corruption_of(self._collection.name, schema_of(CHECKPOINTS), document)


def _newest(documents_falling: Sequence[Document]) -> tuple[Found | None, list[Document]]:
    """The first checkpoint and its writes, which stand before it, and what follows.

    Writes before it that belong to no checkpoint are left out: it is not stored yet, or never was.
    """
    for position, document in enumerate(documents_falling):
        if "task" not in document["_id"]:
            key = _key(document)
            writes = [other for other in documents_falling[:position] if _key(other) == key]
            return Found(document, writes), list(documents_falling[position + 1 :])
    return None, list(documents_falling)


def _listed(documents_falling: Sequence[Document]) -> dict[str, Found]:
    """All checkpoints of a page of one namespace, by their id."""
    listed: dict[str, Found] = {}
    found, rest = _newest(documents_falling)
    while found is not None:
        listed[found.checkpoint["_id"]["checkpoint"]] = found
        found, rest = _newest(rest)
    return listed


def _key(document: Document) -> tuple[str, str, str]:
    key = document["_id"]
    return key["thread"], key["ns"], key["checkpoint"]


def _place(row: CheckpointRow | TaskWrites) -> str:
    return f"thread {row.thread!r}, namespace {row.ns!r}, checkpoint {row.checkpoint!r}"


def _of(pieces: Pieces, keys: Iterable[bytes], place: str) -> list[CachedPiece]:
    try:
        return [pieces[key] for key in keys]
    except KeyError:
        raise _MissingPieceError(place) from None


def _feed(decoder: ValueDecoder, pieces: Iterable[CachedPiece]) -> None:
    for piece in pieces:
        decoder.feed(piece)


def _channel(name: str) -> str:
    return f"channel {name!r}"


def _size_of(value: Document) -> int:
    size = value.get("size", 0)
    return size if isinstance(size, int) else 0
