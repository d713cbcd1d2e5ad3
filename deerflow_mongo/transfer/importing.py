"""Stores the contents of an export file in a storage. Idempotent, so that repeating it continues.

Rows are imported in batches, of which the next one is read meanwhile. A row that another one is in the way of
is tried again at the end of its kind. Checkpoints are copied thread by thread, as those of any other source.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..contract.bulk_rows import ROW_KINDS, BulkRow, BulkRows, Imported, Key, RefusedRow, RowKind
from ..contract.checked_rows import given_key
from ..contract.errors import StorageConfigError
from .export_files import ExportReader
from .exporting import CHECKPOINTS, Progress

if TYPE_CHECKING:
    from .checkpoints import CopiedThread
    from .exported_checkpoints import SpooledThread
    from .storage_checkpoints import Savers

MAX_CONFLICTS: Final = 10_000
"""How many rows of a kind wait for its end, because another row is in their way."""

_BATCH_ROWS: Final = 1_000
_BATCH_BYTES: Final = 8 * 1024 * 1024
_THREAD: Final = "thread"


@dataclass(slots=True)
class ImportedFile:
    """What became of the contents of a file."""

    rows: dict[RowKind, Imported] = field(default_factory=dict["RowKind", Imported])
    threads: list[CopiedThread] = field(default_factory=list["CopiedThread"])
    skipped_checkpoints: int = 0

    def of(self, kind: RowKind) -> Imported:
        return self.rows.setdefault(kind, Imported())

    @property
    def is_complete(self) -> bool:
        """Whether nothing was refused."""
        are_rows_complete = not any(imported.refused for imported in self.rows.values())
        return are_rows_complete and all(thread.is_successful for thread in self.threads)


class _Batch(NamedTuple):
    """Rows of one kind; or one line of a thread's checkpoints, in which case `kind` is None."""

    kind: RowKind | None
    rows: list[BulkRow]
    line: tuple[str, Any]


class FileImport:
    """One import of a file."""

    def __init__(
        self,
        reader: ExportReader,
        storage: BulkRows,
        savers: Savers | None,
        *,
        overwrite: bool,
        on_progress: Progress,
    ) -> None:
        """Without `savers`, checkpoints are skipped."""
        self._reader = reader
        self._storage = storage
        self._savers = savers
        self._overwrite = overwrite
        self._on_progress = on_progress
        self._outcome = ImportedFile()
        self._conflicts: dict[Key, BulkRow] = {}
        self._thread: SpooledThread | None = None

    async def run(self) -> ImportedFile:
        """Raises `StorageConfigError` for a file that ends early, or has lines that are none of ours."""
        kind: RowKind | None = None
        try:
            async with aclosing(_read_ahead(self._batches())) as batches:
                async for batch in batches:
                    if batch.kind != kind:
                        await self._finish_kind(kind)
                        kind = batch.kind
                    if kind is not None:
                        await self._import(kind, batch.rows)
                    else:
                        await self._checkpoint_line(*batch.line)
            await self._finish_kind(kind)
            await self._finish_thread()
        finally:
            if self._thread is not None:
                self._thread.close()
        self._check_counts()
        return self._outcome

    def _batches(self) -> Iterator[_Batch]:
        kind: RowKind | None = None
        rows: list[BulkRow] = []
        size_bytes = 0
        for name, value in self._reader.lines():
            is_full = len(rows) == _BATCH_ROWS or size_bytes > _BATCH_BYTES
            if rows and (name != kind or is_full):
                yield _Batch(kind, rows, ("", None))
                rows, size_bytes = [], 0
            if name in ROW_KINDS:
                kind = name
                rows.append(value)
                size_bytes += self._reader.line_bytes
            else:
                yield _Batch(None, [], (name, value))
        if rows:
            yield _Batch(kind, rows, ("", None))

    # Rows.

    async def _import(self, kind: RowKind, rows: list[BulkRow]) -> None:
        imported = await self._storage.import_rows(kind, rows, overwrite=self._overwrite)
        by_key: dict[Key, BulkRow] | None = None
        refused: list[RefusedRow] = []
        for each in imported.refused:
            if each.is_conflict and len(self._conflicts) < MAX_CONFLICTS:
                by_key = by_key or {given_key(kind, row): row for row in rows}
                self._conflicts[each.key] = by_key[each.key]
            else:
                refused.append(each)
        imported.refused = refused
        self._outcome.of(kind).add(imported)
        self._on_progress(kind, len(rows))

    async def _finish_kind(self, kind: RowKind | None) -> None:
        """Import again what was in the way of each other."""
        if kind is None or not self._conflicts:
            return
        rows, self._conflicts = list(self._conflicts.values()), {}
        again = await self._storage.import_rows(kind, rows, overwrite=self._overwrite)
        self._outcome.of(kind).add(again)

    # Checkpoints.

    async def _checkpoint_line(self, name: str, value: Any) -> None:
        if self._savers is None:
            self._outcome.skipped_checkpoints += name == "checkpoint"
            return
        from .exported_checkpoints import SpooledThread

        if name == _THREAD:
            await self._finish_thread()
            self._thread = SpooledThread(value)
        elif self._thread is None:
            raise StorageConfigError(f"the export file has a line {name!r} that this release cannot read")
        else:
            self._thread.add(name, value)

    async def _finish_thread(self) -> None:
        if self._thread is None or self._savers is None:
            return
        from .checkpoints import CheckpointCopy, CopyOptions
        from .exported_checkpoints import SpooledSource

        thread = self._thread
        copy = CheckpointCopy(
            SpooledSource(thread),
            self._savers.target,
            CopyOptions(overwrite=self._overwrite),
            reader=self._savers.reader,
            on_checkpoint=lambda _: self._on_progress(CHECKPOINTS, 1),
        )
        self._outcome.threads.append(await copy.copy(thread.thread_id))
        thread.close()
        self._thread = None

    def _check_counts(self) -> None:
        contents: Any = (self._reader.trailer or {}).get("contents", {})
        for kind in ROW_KINDS:
            expected = contents.get(kind, {}).get("count", 0)
            found = self._outcome.of(kind).rows
            if found != expected:
                raise StorageConfigError(
                    f"the export file has {found:,} rows of {kind}, and its trailer counts {expected:,}"
                )


async def _read_ahead(batches: Iterator[_Batch]) -> AsyncGenerator[_Batch]:
    """The batches, each of which is read in a thread while the one before is used."""
    reading = asyncio.ensure_future(asyncio.to_thread(next, batches, None))
    try:
        while batch := await reading:
            reading = asyncio.ensure_future(asyncio.to_thread(next, batches, None))
            yield batch
    finally:
        await asyncio.wait({reading})  # the file is closed next
        if not reading.cancelled():
            reading.exception()  # an exception that is never retrieved would be logged
