"""LangGraph's interface to the checkpoints of a storage. `writer.py` and `reader.py` store and read them.

It follows LangGraph's own savers where their documentation leaves something open: lists are sorted by
checkpoint id, newest first; a filter compares values of the metadata for equality; a write of an index that
is stored is left as it is, but for special ones (`ERROR`, `INTERRUPT`, ...) that are put without others: they
replace. Where the savers differ, it follows those for SQLite and PostgreSQL.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from ...contract.errors import ArgumentTypeError, ArgumentValueError
from ..drivers.collection import Collection
from ..observation import BackgroundObserver
from .copying import copy_thread
from .deletion import Collections
from .knowledge import Knowledge
from .pruning import KEEP_LATEST, Rule, delete_for_runs, delete_thread, prune
from .reader import CheckpointReader, Found, Pieces, ReadCheckpoint
from .retention import Retention
from .sync import SyncCalls
from .thread_cache import ENCODED_SHARE, PIECE_SHARE, EncodedCache, PieceCache
from .values import ValueCodec
from .writer import CheckpointWriter, NewCheckpoint

_JSON: Final = "metadata as JSON"
"""The one key of metadata that is stored as JSON text."""

_VERSION_DIGITS: Final = 32
_MAX_PIECES_BYTES: Final = 64 * 1024 * 1024
"""Pieces that a list remembers for its next rows."""


class MongoCheckpointSaver(SyncCalls):
    """LangGraph's checkpoints on MongoDB, from `await storage.checkpointer()`, or `from_url` without a loop.

    Any state that fits on the disk is stored, each part of it once per thread: a checkpoint refers to the
    pieces of its values. It belongs to the storage: it uses its client and event loop and is closed with it,
    after which its methods raise `StorageClosedError`. Other errors are the package's as well, but for those
    of serde, which come before anything is stored.
    """

    def __init__(
        self,
        collection: Collection,
        committed: Collection | None = None,
        *,
        serde: SerializerProtocol | None = None,
        retention: Sequence[Rule] = (),
    ) -> None:
        """`committed` is the same collection, whose reads no failover can roll back.

        Checkpoints that one of the `retention` rules takes are pruned after puts, in the background.
        """
        super().__init__(serde=serde)
        knowledge = Knowledge()
        pieces, encoded = PieceCache(share=PIECE_SHARE), EncodedCache(share=ENCODED_SHARE)
        self._collection = collection
        self._writer = CheckpointWriter(collection, knowledge, pieces, encoded)
        self._reader = CheckpointReader(collection, knowledge, pieces)
        self._codecs: dict[int, ValueCodec] = {}
        self._caches = pieces, encoded
        self._knowledge = knowledge
        self._collections = Collections(collection, committed or collection)
        self.retention = Retention(self._collections, retention)

    async def aclose(self) -> None:
        """Return once everything accepted is stored or has failed; the storage's `aclose` does this."""
        await asyncio.gather(self._writer.close(), self.retention.close())

    def observe_background(self, observer: BackgroundObserver) -> None:
        """Report group commits and retention to the observer."""
        self._writer.observe_background(observer)
        self.retention.observe = observer

    @property
    def put_retries(self) -> int:
        """Tries to store a checkpoint that were repeated, because something else happened in its thread."""
        return self._writer.retries

    @property
    def _codec(self) -> ValueCodec:
        """Of the serde that the saver has now: a clone with another allowlist shares everything else."""
        codec = self._codecs.get(id(self.serde))
        if codec is None or codec.serde is not self.serde:
            codec = self._codecs[id(self.serde)] = ValueCodec(self.serde, self._collection.name)
        return codec

    # Reading.

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, else the newest of its namespace, which is "" by default.

        Raises `CorruptDocumentError` for one that cannot be read.
        """
        thread, ns = _thread_of(config), _ns_of(config) or ""
        read = await self._reader.get(thread, ns, _checkpoint_of(config), self._codec)
        return None if read is None else self._tuple(read)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints by id, newest first; those that cannot be read are left out and logged.

        Without a `thread_id` of all threads, without a `checkpoint_ns` of all namespaces. `filter` compares
        values of the metadata; `before` lists those with a lower id than its own.
        """
        if limit is not None and limit <= 0:
            return
        codec, pieces, count = self._codec, Pieces(), 0
        async for found in self._found(config, before, None if filter else limit):
            if filter and not await self._matches(found, filter, codec):
                continue
            read = await self._reader.read(found, codec, pieces)
            if read is None:
                continue
            yield self._tuple(read)
            if limit is not None:
                limit -= 1
                if limit == 0:
                    return
            if len(pieces) != count:
                count = len(pieces)
                if sum(piece.size for piece in pieces.values()) > _MAX_PIECES_BYTES:
                    pieces.clear()

    def _found(
        self, config: RunnableConfig | None, before: RunnableConfig | None, limit: int | None
    ) -> AsyncIterator[Found]:
        configurable = _configurable(config)
        thread = _thread_of(config) if configurable.get("thread_id") is not None else None
        ns = _ns_of(config)
        checkpoint = _checkpoint_of(config)
        below = _checkpoint_of(before)
        if thread is not None and ns is not None and checkpoint is None:
            return self._reader.of_namespace(thread, ns, before=below, limit=limit)
        return self._reader.over_namespaces(thread, ns=ns, checkpoint=checkpoint, before=below, limit=limit)

    async def _matches(self, found: Found, wanted: Mapping[str, Any], codec: ValueCodec) -> bool:
        metadata = await self._reader.metadata_of(found, codec)
        if metadata is None:
            return True  # reading it whole finds out why
        found_metadata = _with_large_integers(metadata)
        return all(found_metadata.get(key) == value for key, value in wanted.items())

    def _tuple(self, read: ReadCheckpoint) -> CheckpointTuple:
        row = read.row
        checkpoint = cast("Checkpoint", {**read.body, "channel_values": read.values})
        writes: list[PendingWrite] = [(write.task, write.channel, write.value) for write in read.writes]
        return CheckpointTuple(
            config=_config(row.thread, row.ns, row.checkpoint),
            checkpoint=checkpoint,
            metadata=cast("CheckpointMetadata", _with_large_integers(read.metadata)),
            parent_config=None if row.parent is None else _config(row.thread, row.ns, row.parent),
            pending_writes=writes,
        )

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What the ancestors of a checkpoint contributed to these channels; pages of ancestors are read.

        For each channel, `seed` is its value at the nearest ancestor that has one, and `writes` are those of
        this ancestor and of all between, oldest first. Without such an ancestor there is no `seed`.
        """
        codec, thread, ns = self._codec, _thread_of(config), _ns_of(config) or ""
        history: dict[str, DeltaChannelHistory] = {name: {"writes": []} for name in channels}
        missing = set(channels)
        if not missing:
            return history
        async for found in self._reader.ancestors(thread, ns, _checkpoint_of(config)):
            for write in reversed(await self._reader.writes_of(found, missing, codec)):
                history[write.channel]["writes"].append((write.task, write.channel, write.value))
            for name, value in (await self._reader.some_values(found, missing, codec)).items():
                history[name]["seed"] = value
                missing.discard(name)
            if not missing:
                break
        for entry in history.values():
            entry["writes"].reverse()
        return history

    # Writing.

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, or store it again under its id; `config` names its parent.

        It is stored whole or not at all, of any size. Values of channels that are not in `new_versions` are
        taken from the parent where this saver has read or written it.
        """
        thread, ns = _thread_of(config), _ns_of(config) or ""
        self._collection.check_owner()
        values = checkpoint["channel_values"]
        all_metadata = get_checkpoint_metadata(config, metadata)
        run_id = cast("dict[str, Any]", all_metadata).get("run_id")
        new = NewCheckpoint(
            thread=thread,
            ns=ns,
            checkpoint=_text("checkpoint id", checkpoint["id"]),
            parent=_checkpoint_of(config),
            run_id=None if run_id is None else str(run_id),
            metadata=_without_large_integers(cast("dict[str, Any]", all_metadata)),
            body={name: value for name, value in checkpoint.items() if name != "channel_values"},
            values=dict(values),
            versions=dict(checkpoint["channel_versions"]),
            changed=frozenset(new_versions),
            delta=_delta_channels(checkpoint, all_metadata),
        )
        await self._writer.put(new, self._codec)
        self.retention.note_put(thread)
        return _config(thread, ns, new.checkpoint)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store writes of a task at a checkpoint, which may be stored later than they are."""
        checkpoint = _checkpoint_of(config)
        if checkpoint is None:
            raise ArgumentValueError("config: `checkpoint_id` is missing: writes belong to a checkpoint")
        self._collection.check_owner()
        dumps = self.serde.dumps_typed
        replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        typed: dict[int, tuple[str, tuple[str, bytes]]] = {}
        for position, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, position)
            if replaces or index not in typed:
                typed[index] = (channel, dumps(value))
        if typed:
            await self._writer.put_writes(
                _thread_of(config),
                _ns_of(config) or "",
                checkpoint,
                _text("task_id", task_id),
                _text("task_path", task_path),
                [(index, channel, value) for index, (channel, value) in typed.items()],
            )

    # Deleting and copying.

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything that was stored for the thread; a checkpoint that is put meanwhile stays."""
        thread = _text("thread_id", str(thread_id))
        self._collection.check_owner()
        await delete_thread(self._collections, thread)
        self.forget_thread(thread)

    def forget_thread(self, thread_id: str) -> None:
        """Drop what this process has in memory of a thread, which somebody has deleted."""
        self._knowledge.forget(thread_id)
        for cache in self._caches:
            cache.drop_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints whose metadata has one of these `run_id`s, in all threads.

        As LangGraph documents it, that may take what a delta channel of another checkpoint needs.
        """
        self._collection.check_owner()
        await delete_for_runs(self._collections, run_ids)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = KEEP_LATEST) -> None:
        """Delete all but the newest checkpoint of each namespace (`keep_latest`), or all (`delete`).

        What the newest one needs for its delta channels stays as well.
        """
        self._collection.check_owner()
        await prune(self._collections, thread_ids, strategy, measured=False)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints with their writes; those that the target has otherwise stay.

        Raises `CorruptDocumentError` for damaged checkpoints, after the others were copied.
        """
        source, target = (_text("thread_id", str(name)) for name in (source_thread_id, target_thread_id))
        self._collection.check_owner()
        await copy_thread(self._collection, source, target)

    def get_next_version(self, current: str | float | None, channel: None) -> Any:
        """The version after `current`: a growing number, and a random part that tells forks apart.

        A thread that was copied from a saver with whole numbers goes on with them: LangGraph compares the
        versions of a channel with each other, and a text is not comparable with a number.
        """
        if isinstance(current, int | float):
            return int(current) + 1
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:0{_VERSION_DIGITS}}.{random.random():018.16f}"  # noqa: S311 - no secret


def _delta_channels(checkpoint: Checkpoint, metadata: CheckpointMetadata) -> tuple[str, ...]:
    """The delta channels that were written and have no value here: the ancestors have it."""
    counters: dict[str, Any] | None = cast("dict[str, Any]", metadata).get("counters_since_delta_snapshot")
    if not counters:
        return ()
    versions, values = checkpoint["channel_versions"], checkpoint["channel_values"]
    return tuple(sorted(name for name in counters if name in versions and name not in values))


# -- metadata --------------------------------------------------------------------------------------


def _without_large_integers(metadata: dict[str, Any]) -> Mapping[str, Any]:
    """Metadata that serde can hold: as JSON where it has integers beyond 64 bits, which msgpack does not."""
    if not _has_large_integer(metadata) and list(metadata) != [_JSON]:
        return metadata
    try:
        return {_JSON: json.dumps(metadata)}
    except (TypeError, ValueError):
        return metadata  # serde reports what it refuses


def _with_large_integers(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    return json.loads(metadata[_JSON]) if list(metadata) == [_JSON] else metadata


def _has_large_integer(value: object) -> bool:
    if isinstance(value, int):
        return not -(2**63) <= value < 2**64
    if isinstance(value, dict):
        return any(map(_has_large_integer, cast("dict[Any, Any]", value).values()))
    if isinstance(value, list | tuple):
        return any(map(_has_large_integer, cast("list[Any]", value)))
    return False


# -- configurations --------------------------------------------------------------------------------


def _configurable(config: RunnableConfig | None) -> Mapping[str, Any]:
    return (config or {}).get("configurable") or {}


def _thread_of(config: RunnableConfig | None) -> str:
    thread = _configurable(config).get("thread_id")
    if thread is None:
        raise ArgumentValueError("config: `thread_id` is missing in `configurable`")
    return _text("thread_id", str(thread))


def _ns_of(config: RunnableConfig | None) -> str | None:
    ns = _configurable(config).get("checkpoint_ns")
    return None if ns is None else _text("checkpoint_ns", ns)


def _checkpoint_of(config: RunnableConfig | None) -> str | None:
    checkpoint = get_checkpoint_id(config) if config and "configurable" in config else None
    return None if not checkpoint else _text("checkpoint_id", checkpoint)


def _text(name: str, value: object) -> str:
    """A text that is part of a document's id."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentValueError(f"{name} contains a lone surrogate, which is not a character") from None
    return value if type(value) is str else str.__str__(value)


def _config(thread: str, ns: str, checkpoint: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint}}
