"""Copies the checkpoints of another LangGraph saver, thread by thread, and compares what both sides return.

A copy can be interrupted and repeated: a thread continues where it stopped, one that is there already is
compared and left alone. The source is only read, one checkpoint at a time; what is written to it meanwhile is
copied by the next run. Reads and writes values in their stored form (`stored_values.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ..contract.errors import StorageAccessError, StorageClosedError, StorageUnavailableError
from ..mongodb.drivers.threads import in_thread
from .sources import Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from langgraph.checkpoint.base import BaseCheckpointSaver

    from .stored_values import Digest, Fingerprint, Key, ListedCheckpoint, Record, Write

Result = Literal["copied", "continued", "unchanged", "ahead", "different", "overwritten", "failed"]
"""What became of a thread; in a dry run, what would."""

UNSUCCESSFUL: frozenset[Result] = frozenset({"different", "failed"})


class Target(Protocol):
    """The methods of a LangGraph saver that a copy calls."""

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any: ...

    async def aput_writes(
        self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None: ...

    def alist(self, config: Any) -> AsyncIterator[Any]: ...

    async def adelete_thread(self, thread_id: str) -> None: ...


class CopiedThread(NamedTuple):
    """What became of one thread: the checkpoints that were written, and the size of their states."""

    thread_id: str
    result: Result
    checkpoints: int = 0
    size_bytes: int = 0
    reason: str = ""

    @property
    def is_successful(self) -> bool:
        return self.result not in UNSUCCESSFUL


@dataclass(frozen=True, slots=True)
class CopyOptions:
    overwrite: bool = False
    """Replace a thread of the target that differs, instead of reporting it."""
    verify: bool = True
    """Compare values; without it, the checkpoints' ids only."""
    dry_run: bool = False


def _ignore_size(size_bytes: int) -> None:
    pass


class CheckpointCopy:
    """Copies threads from a source to a LangGraph saver.

    `reader` is another saver of the same database, which has nothing of what was written in its memory.
    `on_checkpoint` gets the size of each checkpoint that was written.
    """

    def __init__(
        self,
        source: Source,
        target: BaseCheckpointSaver[Any],
        options: CopyOptions,
        *,
        reader: BaseCheckpointSaver[Any] | None = None,
        on_checkpoint: Callable[[int], None] = _ignore_size,
    ) -> None:
        from .stored_values import STORED_FORM, with_serializer

        self._source = source
        self._target = target
        self._reader: Target = with_serializer(reader or target, STORED_FORM)
        self._options = options
        self._on_checkpoint = on_checkpoint

    async def copy(self, thread_id: str) -> CopiedThread:
        """Copy a thread. An error of this thread alone is its result; others are raised.

        Raises `StorageUnavailableError`, `StorageAccessError` or `StorageClosedError` where no other thread
        could be copied either.
        """
        try:
            return await self._copy(thread_id)
        except (StorageUnavailableError, StorageAccessError, StorageClosedError):
            raise
        except Exception as error:  # noqa: BLE001 - of another library, or about one document
            await self._check_source(error)
            return CopiedThread(thread_id, "failed", reason=_text_of(error))

    async def _check_source(self, cause: Exception) -> None:
        try:
            await self._source.ping()
        except Exception as error:  # noqa: BLE001 - of another library
            text = f"the source cannot be read any more: {_text_of(error)}"
            raise StorageUnavailableError(text) from cause

    async def _copy(self, thread_id: str) -> CopiedThread:
        listed = parents_first(await self._source.checkpoints(thread_id))
        if not listed:
            return CopiedThread(thread_id, "failed", reason="the source has no checkpoints of this thread")
        stored = await self._stored(thread_id)
        thread = self._thread_copy(thread_id, listed)
        difference = _diverged(thread.keys, stored) or await self._compared(thread, stored)
        result: Result = "continued" if stored else "copied"
        if difference is not None:
            if not self._options.overwrite:
                return CopiedThread(thread_id, "different", reason=difference)
            if not self._options.dry_run:
                await self._target.adelete_thread(thread_id)
            result, stored = "overwritten", {}
            thread = self._thread_copy(thread_id, listed)
        missing = [checkpoint for checkpoint in listed if checkpoint.key not in stored]
        if not missing and not thread.without_writes:
            is_ahead = thread.is_behind or len(stored) > len(listed)
            return CopiedThread(thread_id, "ahead" if is_ahead else "unchanged")
        if self._options.dry_run:
            return CopiedThread(thread_id, result, len(missing))
        return await self._written(thread, stored, result)

    def _thread_copy(self, thread_id: str, listed: Sequence[ListedCheckpoint]) -> _ThreadCopy:
        return _ThreadCopy(self._source, self._target, thread_id, listed)

    async def _compared(self, thread: _ThreadCopy, stored: Mapping[Key, Fingerprint | None]) -> str | None:
        """The first difference of the checkpoints that both have; notes which lack pending writes."""
        if not self._options.verify:
            return None
        for checkpoint in thread.listed:
            there = stored.get(checkpoint.key)
            if there is not None and (difference := await thread.compare(checkpoint, there)) is not None:
                return difference
        return None

    async def _written(
        self, thread: _ThreadCopy, stored: Mapping[Key, Fingerprint | None], result: Result
    ) -> CopiedThread:
        count = size_bytes = 0
        for checkpoint in thread.listed:
            if checkpoint.key in stored and checkpoint.key not in thread.without_writes:
                continue
            size = await thread.write(checkpoint, only_writes=checkpoint.key in stored)
            if size is not None:
                count, size_bytes = count + 1, size_bytes + size
                self._on_checkpoint(size)
        if self._options.verify:
            difference = thread.verified(await self._stored(thread.thread_id))
            if difference is not None:
                reason = f"compared after the copy: {difference}"
                return CopiedThread(thread.thread_id, "failed", count, size_bytes, reason)
        return CopiedThread(thread.thread_id, result, count, size_bytes)

    async def _stored(self, thread_id: str) -> dict[Key, Fingerprint | None]:
        """What the target returns of a thread, one checkpoint at a time; None without `verify`."""
        from .stored_values import fingerprint_of_tuple, key_of

        stored: dict[Key, Fingerprint | None] = {}
        async for found in self._reader.alist(_config(thread_id)):
            if self._options.verify:
                stored[key_of(found)] = await asyncio.to_thread(fingerprint_of_tuple, found)
            else:
                stored[key_of(found)] = None
            del found  # so that the next one is not read beside it
        return stored


class _ThreadCopy:
    """The state of copying one thread: the fingerprints of what was read from the source."""

    def __init__(
        self,
        source: Source,
        target: BaseCheckpointSaver[Any],
        thread_id: str,
        listed: Sequence[ListedCheckpoint],
    ) -> None:
        from .stored_values import ELEMENTWISE, STORED_FORM, with_serializer

        self.thread_id = thread_id
        self.listed = listed
        self.keys = {checkpoint.key for checkpoint in listed}
        self.without_writes: set[Key] = set()
        """Checkpoints of the target that lack pending writes of the source."""
        self.is_behind = False
        """Whether a checkpoint of the target has pending writes that the source does not have."""
        self._source = source
        self._target: Target = with_serializer(target, ELEMENTWISE)
        self._exact_target: Target = with_serializer(target, STORED_FORM)
        self._read: dict[Key, Fingerprint] = {}
        self._versions: dict[Key, Mapping[str, Any]] = {}

    async def _record(self, key: Key) -> tuple[Record, Fingerprint] | None:
        """A checkpoint of the source; None if it was removed since it was listed."""
        from .stored_values import fingerprint_of_record

        record = await self._source.read(self.thread_id, key)
        if record is None:
            return None
        fingerprint = await in_thread(lambda: fingerprint_of_record(record))
        self._read[key] = fingerprint
        self._versions[key] = dict(record.channel_versions)
        return record, fingerprint

    async def compare(self, checkpoint: ListedCheckpoint, there: Fingerprint) -> str | None:
        found = await self._record(checkpoint.key)
        if found is None:
            return None
        here = found[1]
        difference = here.difference(there)
        if difference is None and here.writes != there.writes:
            here_only, there_only = _counted_difference(here.writes, there.writes)
            if here_only and there_only:
                difference = "its pending writes"
            elif here_only:
                self.without_writes.add(checkpoint.key)
            elif there_only:
                self.is_behind = True
            else:
                difference = "the order of its pending writes"
        return None if difference is None else f"checkpoint {checkpoint.key} differs: {difference}"

    async def write(self, checkpoint: ListedCheckpoint, *, only_writes: bool) -> int | None:
        """Write a checkpoint with its pending writes, or these alone. Returns the size of its state."""
        found = await self._record(checkpoint.key)
        if found is None:
            return None
        record, fingerprint = found
        target = self._target if record.is_decoded else self._exact_target
        namespace, checkpoint_id = checkpoint.key
        if not only_writes:
            await target.aput(
                _config(self.thread_id, namespace, record.parent_id),
                {
                    **record.checkpoint,
                    "channel_values": dict(record.channel_values),
                    "channel_versions": dict(record.channel_versions),
                },
                dict(record.metadata),
                self._new_versions(record, fingerprint),
            )
        await _put_writes(target, _config(self.thread_id, namespace, checkpoint_id), record.writes)
        return fingerprint.size_bytes

    def _new_versions(self, record: Record, fingerprint: Fingerprint) -> dict[str, Any]:
        """The channels that differ from those of the parent, whose values the target can refer to."""
        versions = record.channel_versions
        parent = None if record.parent_id is None else record.key._replace(checkpoint_id=record.parent_id)
        if parent is None or parent not in self._read:
            return dict(versions)
        before, values_before = self._versions[parent], self._read[parent].channels
        return {
            name: version
            for name, version in versions.items()
            if before.get(name) != version or values_before.get(name) != fingerprint.channels.get(name)
        }

    def verified(self, stored: Mapping[Key, Fingerprint | None]) -> str | None:
        """The first difference between what was read from the source and what the target returns."""
        for key, here in self._read.items():
            there = stored.get(key)
            if there is None:
                return f"checkpoint {key} is missing"
            difference = here.difference(there)
            if difference is None and not self.is_behind and list(here.writes) != list(there.writes):
                difference = "its pending writes or their order"
            if difference is not None:
                return f"checkpoint {key} differs: {difference}"
        return None


async def _put_writes(target: Target, config: Any, writes: Sequence[Write]) -> None:
    """Write the pending writes of a checkpoint: its tasks at once, the calls of one task in order."""
    tasks: dict[str, list[WriteCall]] = {}
    for call in write_calls(writes):
        tasks.setdefault(call.task_id, []).append(call)

    async def put(calls: Sequence[WriteCall]) -> None:
        for call in calls:
            await target.aput_writes(config, call.writes, call.task_id, call.task_path)

    outcomes = await asyncio.gather(*map(put, tasks.values()), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


def _config(thread_id: str, namespace: str | None = None, checkpoint_id: str | None = None) -> dict[str, Any]:
    place = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
    return {"configurable": {name: value for name, value in place.items() if value is not None}}


def _diverged(keys: set[Key], stored: Mapping[Key, object]) -> str | None:
    """Why a thread cannot be continued, if both sides have checkpoints that the other does not have."""
    missing, additional = len(keys - stored.keys()), len(stored.keys() - keys)
    if not missing or not additional:
        return None
    return f"{missing:,} of its checkpoints are only in the source, and {additional:,} only in the target"


def _counted_difference(here: Sequence[Digest], there: Sequence[Digest]) -> tuple[int, int]:
    first, second = Counter(here), Counter(there)
    return (first - second).total(), (second - first).total()


def _text_of(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# -- orders ----------------------------------------------------------------------------------------


def parents_first(checkpoints: Iterable[ListedCheckpoint]) -> list[ListedCheckpoint]:
    """The checkpoints from old to new by their ids, except that a parent always precedes its children.

    Ids rise within one process only.
    """
    rising = sorted(
        checkpoints, key=lambda checkpoint: (checkpoint.key.checkpoint_id, checkpoint.key.namespace)
    )
    by_key = {checkpoint.key: checkpoint for checkpoint in rising}
    ordered: dict[Key, ListedCheckpoint] = {}
    for checkpoint in rising:
        ancestors: dict[Key, ListedCheckpoint] = {}  # a circle of parents ends at the first that repeats
        current: ListedCheckpoint | None = checkpoint
        while current is not None and current.key not in ordered and current.key not in ancestors:
            ancestors[current.key] = current
            parent_id = current.parent_id
            current = None if parent_id is None else by_key.get(current.key._replace(checkpoint_id=parent_id))
        ordered.update(reversed(ancestors.items()))
    return list(ordered.values())


class WriteCall(NamedTuple):
    """The arguments of one call of `aput_writes`."""

    task_id: str
    task_path: str
    writes: Sequence[tuple[str, Any]]


def write_calls(writes: Sequence[Write]) -> list[WriteCall]:
    """Calls of `aput_writes` that give each write the place that it has in the source.

    A saver takes the place from the list, but for special channels, which have places of their own. A gap in
    the numbers is therefore where the task wrote to a special channel, and is filled with such a write.
    """
    tasks: dict[str, dict[str, list[Write]]] = {}
    for write in writes:
        tasks.setdefault(write.task_id, {}).setdefault(write.task_path, []).append(write)
    calls: list[WriteCall] = []
    for task_id, by_path in tasks.items():
        placed: dict[int, Write] = {}  # by calls with another path: a saver ignores them when they come again
        for task_path, of_path in by_path.items():
            calls.append(WriteCall(task_id, task_path, _in_places(of_path, placed)))
            placed.update((write.index, write) for write in of_path if write.index >= 0)
    return calls


def _in_places(writes: Sequence[Write], placed: Mapping[int, Write]) -> list[tuple[str, Any]]:
    ordinary = {write.index: write for write in writes if write.index >= 0}
    special = [write for write in writes if write.index < 0]
    unused = list(special)
    found: list[Write] = []
    for place in range(max(ordinary, default=-1) + 1):
        write = ordinary.get(place) or placed.get(place)
        if write is None and special:
            write = unused.pop(0) if unused else special[0]
        if write is not None:
            found.append(write)
    return [(write.channel, write.value) for write in [*found, *unused]]
