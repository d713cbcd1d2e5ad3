"""Reads and writes the values of checkpoints in their stored form, without the classes of their objects.

Not for a graph: an object is an opaque msgpack extension here, and is written back byte for byte. A copy
needs therefore no module of the application, loses no type that cannot be imported, and executes no
constructor.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import ormsgpack
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    CheckpointTuple,
    PendingWrite,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT, JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot  # pyright: ignore[reportPrivateUsage]

_DIGEST_BYTES = 16

Digest = bytes


class Serialised:
    """A value in a form that is not decoded: of pickle, of an encrypted store, or of JSON."""

    __slots__ = ("data", "type")

    def __init__(self, type_: str, data: bytes) -> None:
        self.type = type_
        self.data = data


def _undecoded(code: int, data: bytes) -> Any:
    if code == EXT_DELTA_SNAPSHOT:  # savers treat it in a special way, so its type is needed
        value = ormsgpack.unpackb(data, ext_hook=_undecoded, option=ormsgpack.OPT_NON_STR_KEYS)
        return _DeltaSnapshot(value)
    return ormsgpack.Ext(code, data)


class StoredFormSerializer(JsonPlusSerializer):
    """LangGraph's serializer, whose objects are opaque extensions of msgpack.

    With `decode_json`, the form of LangGraph before 2025, JSON, is decoded with its objects, for savers that
    store a checkpoint as a whole.
    """

    def __init__(self, *, decode_json: bool = False) -> None:
        super().__init__(__unpack_ext_hook__=_undecoded)
        self._decoded = {"null", "bytes", "bytearray", "msgpack", *(["json"] if decode_json else [])}

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if isinstance(obj, Serialised):
            return obj.type, obj.data
        return super().dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        type_, content = data
        return super().loads_typed(data) if type_ in self._decoded else Serialised(type_, content)


STORED_FORM: Final = StoredFormSerializer()

ELEMENTWISE: Final = JsonPlusSerializer(__unpack_ext_hook__=_undecoded)
"""For writing what is decoded. A saver may take apart the lists of LangGraph's own serializer only."""


def with_serializer(saver: BaseCheckpointSaver[Any], serde: SerializerProtocol) -> BaseCheckpointSaver[Any]:
    """The same saver with another serializer, as LangGraph's `with_allowlist` makes it."""
    clone = copy.copy(saver)
    clone.serde = serde
    return clone


# -- records ---------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A checkpoint of a thread."""

    namespace: str
    checkpoint_id: str

    def __str__(self) -> str:
        return (
            f"{self.checkpoint_id} of namespace {self.namespace!r}" if self.namespace else self.checkpoint_id
        )


class ListedCheckpoint(NamedTuple):
    key: Key
    parent_id: str | None


@dataclass(frozen=True, slots=True)
class Write:
    """A pending write, with what no method of a saver returns: its task's path and its place."""

    task_id: str
    task_path: str
    index: int
    channel: str
    value: Any


@dataclass(frozen=True, slots=True)
class Record:
    """A checkpoint as a source has it, with its pending writes in the order of their execution."""

    key: Key
    parent_id: str | None
    checkpoint: Mapping[str, Any]
    metadata: Mapping[str, Any]
    writes: Sequence[Write]

    @property
    def is_decoded(self) -> bool:
        values = [*self.channel_values.values(), *(write.value for write in self.writes)]
        return not any(isinstance(value, Serialised) for value in values)

    @property
    def channel_values(self) -> Mapping[str, Any]:
        return self.checkpoint.get("channel_values") or {}

    @property
    def channel_versions(self) -> Mapping[str, Any]:
        return self.checkpoint.get("channel_versions") or {}


def write_of(
    task_id: str, task_path: str | None, index: int, channel: str, stored: tuple[str | None, Any]
) -> Write:
    """A write from its row; old savers gave special channels the places of ordinary ones."""
    type_, data = stored
    value = STORED_FORM.loads_typed((type_ or "null", b"" if data is None else data))
    return Write(task_id, task_path or "", WRITES_IDX_MAP.get(channel, index), channel, value)


def record_of(found: CheckpointTuple, key: Key, writes: Iterable[Write]) -> Record:
    """A checkpoint that a saver with a `StoredFormSerializer` returned. Raises `ValueError`."""
    checkpoint = cast("object", found.checkpoint)
    if isinstance(checkpoint, Serialised):
        raise ValueError(f"it is stored as {checkpoint.type!r}, which is not decoded here")  # noqa: TRY004
    places = {(write.task_id, write.index): write for write in writes}  # a repeated special write replaces
    return Record(
        key,
        parent_id(found),
        cast("Mapping[str, Any]", checkpoint),
        get_checkpoint_metadata({}, found.metadata),
        sorted(places.values(), key=lambda write: (write.task_path, write.task_id, write.index)),
    )


def parent_id(found: CheckpointTuple) -> str | None:
    parent = found.parent_config
    return parent.get("configurable", {}).get("checkpoint_id") or None if parent else None


# -- fingerprints ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a checkpoint is compared by: digests of its parts as they are serialised, and their size."""

    head: Digest
    channels: Mapping[str, Digest]
    writes: Sequence[Digest]
    size_bytes: int

    def difference(self, other: Fingerprint) -> str | None:
        """What the other has otherwise, its writes left out; None if nothing."""
        if self.head != other.head:
            return "its metadata, versions or parent"
        names = self.channels.keys() | other.channels.keys()
        changed = sorted(name for name in names if self.channels.get(name) != other.channels.get(name))
        return f"the value of channel {changed[0]!r}" if changed else None


def fingerprint_of_record(record: Record) -> Fingerprint:
    writes = [(write.task_id, write.channel, write.value) for write in record.writes]
    return _fingerprint(record.checkpoint, record.metadata, record.parent_id, writes)


def fingerprint_of_tuple(found: CheckpointTuple) -> Fingerprint:
    """Of a checkpoint as a saver with a `StoredFormSerializer` lists it."""
    checkpoint = cast("Mapping[str, Any]", found.checkpoint)
    metadata = get_checkpoint_metadata({}, found.metadata)
    return _fingerprint(checkpoint, metadata, parent_id(found), found.pending_writes or [])


def key_of(found: CheckpointTuple) -> Key:
    place = found.config.get("configurable", {})
    return Key(place.get("checkpoint_ns", ""), place["checkpoint_id"])


_OPTIONAL = ("pending_sends", "updated_channels")
"""Keys of a checkpoint that some savers leave out where they are empty."""


def _fingerprint(
    checkpoint: Mapping[str, Any],
    metadata: Mapping[str, Any],
    parent_id: str | None,
    writes: Sequence[PendingWrite],
) -> Fingerprint:
    head = {
        name: checkpoint[name]
        for name in sorted(checkpoint)
        if name != "channel_values" and (checkpoint[name] or name not in _OPTIONAL)
    }
    measure = _Measure()
    values: Mapping[str, Any] = checkpoint.get("channel_values") or {}
    return Fingerprint(
        measure.digest([parent_id, head, sorted(metadata), *(metadata[name] for name in sorted(metadata))]),
        {name: measure.digest(value) for name, value in values.items()},
        [measure.digest([task_id, channel], value) for task_id, channel, value in writes],
        measure.size_bytes,
    )


class _Measure:
    """Digests of values, and the size of all that was serialised for them.

    Lists and dicts are serialised entry by entry, so that a large one is never in memory twice.
    """

    def __init__(self) -> None:
        self.size_bytes = 0

    def digest(self, *values: Any) -> Digest:
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for value in values:
            for part in _parts(value):
                type_, data = STORED_FORM.dumps_typed(part)
                self.size_bytes += len(data)
                digest.update(f"{type_} {len(data)} ".encode())
                digest.update(data)
        return digest.digest()


def _parts(value: Any) -> Iterable[Any]:
    if type(value) in (list, tuple):  # msgpack has one form for both
        entries = cast("Sequence[Any]", value)
        yield f"list {len(entries)}"
        yield from entries
    elif type(value) is dict:
        items = cast("dict[Any, Any]", value)
        yield f"dict {len(items)}"
        yield from ([name, entry] for name, entry in items.items())
    else:
        yield value
