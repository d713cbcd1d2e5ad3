"""The checkpoints of a thread in an export file, and the source that a copy reads them from.

Values are in their stored form, cut into pieces: a value, or an entry of a list, such as a message. A piece
that several checkpoints have is there once per thread, so that a thread of many steps does not grow with
their square. In memory is one checkpoint at a time, and an index of the pieces.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

from ..contract.errors import StorageConfigError
from ..contract.row_digests import DIGEST_BYTES
from .sources import Source, SourceThread
from .stored_values import (
    STORED_FORM,
    Fingerprint,
    Key,
    ListedCheckpoint,
    Record,
    Write,
    fingerprint_of_record,
)

THREAD: Final = "thread"
PIECE: Final = "piece"
MORE: Final = "more"
CHECKPOINT: Final = "checkpoint"

CHUNK_BYTES: Final = 1024 * 1024
"""What one line has of a piece; the rest is in lines that follow."""

_SPOOL_IN_MEMORY_BYTES: Final = 32 * 1024 * 1024

_Reference: TypeAlias = "int | dict[str, str]"
"""The number of a piece in its thread, or the numbers of a list's entries, such as {"list": "0-3,7"}."""


def checkpoint_digest(thread_id: str, key: Key, fingerprint: Fingerprint) -> int:
    """A number below 2^128, equal for equal checkpoints of all savers."""
    parts = [thread_id, *key, fingerprint.head.hex()]
    parts += [f"{name}={digest.hex()}" for name, digest in sorted(fingerprint.channels.items())]
    parts += ["writes", *sorted(digest.hex() for digest in fingerprint.writes)]
    encoded = json.dumps(parts).encode()
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest(), "big")


# -- writing ---------------------------------------------------------------------------------------


class ThreadWriter:
    """Writes the lines of one thread, by a function that takes the name and the value of each."""

    def __init__(self, write: Callable[[str, Any], None], thread: SourceThread) -> None:
        self._write = write
        self._thread_id = thread.thread_id
        self._numbers: dict[bytes, int] = {}
        write(THREAD, {"thread_id": thread.thread_id, "checkpoints": thread.checkpoints})

    def write(self, record: Record) -> int:
        """Write a checkpoint with its pending writes; its digest."""
        values = record.channel_values
        head = {name: value for name, value in record.checkpoint.items() if name != "channel_values"}
        line = {
            "ns": record.key.namespace,
            "id": record.key.checkpoint_id,
            "parent": record.parent_id,
            "head": self._piece(head),
            "metadata": self._piece(dict(record.metadata)),
            "channels": {name: self._reference(value) for name, value in values.items()},
            "writes": [
                [write.task_id, write.task_path, write.index, write.channel, self._reference(write.value)]
                for write in record.writes
            ],
        }
        self._write(CHECKPOINT, line)
        return checkpoint_digest(self._thread_id, record.key, fingerprint_of_record(record))

    def _reference(self, value: Any) -> _Reference:
        if type(value) is not list:
            return self._piece(value)
        return {"list": _ranges(self._piece(entry) for entry in cast("list[Any]", value))}

    def _piece(self, value: Any) -> int:
        """The number of a piece, which is written unless the thread has it already."""
        type_, data = STORED_FORM.dumps_typed(value)
        digest = hashlib.blake2b(f"{type_} ".encode() + data, digest_size=DIGEST_BYTES).digest()
        number = self._numbers.get(digest)
        if number is None:
            number = self._numbers[digest] = len(self._numbers)
            self._write(PIECE, [type_, _base64(data[:CHUNK_BYTES])])
            for start in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
                self._write(MORE, _base64(data[start : start + CHUNK_BYTES]))
        return number


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in their order, such as "0-3,7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _numbers(ranges: str) -> Iterator[int]:
    for part in ranges.split(",") if ranges else ():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


# -- reading ---------------------------------------------------------------------------------------


class SpooledThread:
    """The lines of one thread, in a temporary file, for reads of its checkpoints in any order."""

    def __init__(self, thread: Mapping[str, Any]) -> None:
        self.thread_id: str = thread["thread_id"]
        self.checkpoints: list[ListedCheckpoint] = []
        self._file = tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY_BYTES)  # noqa: SIM115 - has `close`
        self._types: list[str] = []
        self._begins = array("Q")
        self._ends = array("Q")
        """Where each piece begins and ends in the file."""
        self._lines: dict[Key, tuple[int, int]] = {}

    def close(self) -> None:
        self._file.close()

    def add(self, name: str, value: Any) -> None:
        """Add a line. Raises `StorageConfigError` for one that no release writes."""
        try:
            if name == PIECE:
                type_, data = value
                self._types.append(type_)
                begin, end = self._append(base64.b64decode(data))
                self._begins.append(begin)
                self._ends.append(end)
            elif name == MORE:
                self._ends[-1] = self._append(base64.b64decode(value))[1]
            elif name == CHECKPOINT:
                self._add_checkpoint(value)
            else:
                raise ValueError  # noqa: TRY301 - reported below
        except (ValueError, TypeError, KeyError, IndexError) as error:
            text = f"the export file has a line {name!r} that this release cannot read, in thread "
            raise StorageConfigError(text + repr(self.thread_id)) from error

    def _add_checkpoint(self, value: Mapping[str, Any]) -> None:
        key = Key(value["ns"], value["id"])
        self.checkpoints.append(ListedCheckpoint(key, value["parent"]))
        self._lines[key] = self._append(json.dumps(value).encode())

    def _append(self, data: bytes) -> tuple[int, int]:
        begin = self._file.seek(0, 2)
        self._file.write(data)
        return begin, begin + len(data)

    def _read(self, begin: int, end: int) -> bytes:
        self._file.seek(begin)
        return self._file.read(end - begin)

    def record(self, key: Key) -> Record | None:
        place = self._lines.get(key)
        if place is None:
            return None
        line: dict[str, Any] = json.loads(self._read(*place))
        head = self._piece(line["head"])
        values = {name: self._value(reference) for name, reference in line["channels"].items()}
        return Record(
            key,
            line["parent"],
            {**head, "channel_values": values},
            self._piece(line["metadata"]),
            [
                Write(task_id, task_path, index, channel, self._value(reference))
                for task_id, task_path, index, channel, reference in line["writes"]
            ],
        )

    def _piece(self, number: int) -> Any:
        data = self._read(self._begins[number], self._ends[number])
        return STORED_FORM.loads_typed((self._types[number], data))

    def _value(self, reference: _Reference) -> Any:
        if isinstance(reference, dict):
            return [self._piece(number) for number in _numbers(reference["list"])]
        return self._piece(reference)


class SpooledSource(Source):
    """The one thread that was read last, as a copy of checkpoints reads it."""

    def __init__(self, thread: SpooledThread) -> None:
        self._thread = thread

    async def threads(self) -> Sequence[SourceThread]:
        return [SourceThread(self._thread.thread_id, len(self._thread.checkpoints))]

    async def checkpoints(self, thread_id: str) -> Sequence[ListedCheckpoint]:
        return self._thread.checkpoints if thread_id == self._thread.thread_id else []

    async def read(self, thread_id: str, key: Key) -> Record | None:
        return self._thread.record(key) if thread_id == self._thread.thread_id else None

    async def ping(self) -> None:
        """The file is on this machine."""

    async def aclose(self) -> None:
        self._thread.close()
