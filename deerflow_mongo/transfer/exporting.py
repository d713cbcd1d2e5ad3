"""Writes everything of a storage into an export file: rows of every kind, then checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from .. import __version__
from ..contract.bulk_rows import ROW_KINDS, BulkRow, BulkRows, RowKind
from ..contract.errors import CorruptDocumentError, StorageError
from .digests import NOTHING, Total, row_digest
from .export_files import ExportWriter
from .storage_checkpoints import Checkpoints

CHECKPOINTS: Final = "checkpoints"
"""The name of the checkpoints among the kinds of rows in progress, header and trailer."""

_BATCH: Final = 1_000

Progress = Callable[[str, int], None]
"""Gets a kind, or `CHECKPOINTS`, and how many more of it are done."""


@dataclass(slots=True)
class Exported:
    """What was written: the number and the digest of each kind."""

    totals: dict[str, Total] = field(default_factory=dict[str, Total])

    def add(self, kind: str, digest: int) -> None:
        self.totals[kind] = self.totals.get(kind, NOTHING).plus(Total(1, digest))

    def as_json(self) -> dict[str, Any]:
        return {
            kind: {"count": total.rows, "digest": total.digest}
            for kind in (*ROW_KINDS, CHECKPOINTS)
            for total in [self.totals.get(kind, NOTHING)]
        }


class Export:
    """One export. What is written meanwhile may be missing or present; a host should be stopped."""

    def __init__(
        self, storage: BulkRows, writer: ExportWriter, checkpoints: Checkpoints | None, on_progress: Progress
    ) -> None:
        self._storage = storage
        self._writer = writer
        self._checkpoints = checkpoints
        self._on_progress = on_progress
        self._exported = Exported()

    async def run(self, database: str) -> Exported:
        """Write the whole file. Raises `CorruptDocumentError` for what cannot be read."""
        threads = self._checkpoints.threads if self._checkpoints is not None else ()
        self._writer.write_header(
            {
                "release": __version__,
                "database": database,
                "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "checkpoint_threads": len(threads),
            }
        )
        for kind in ROW_KINDS:
            async with aclosing(self._storage.export_rows(kind, batch_size=_BATCH)) as batches:
                async for batch in batches:
                    # The next batch is not read meanwhile: the connection stays alive all the same.
                    await asyncio.to_thread(self._write_rows, kind, batch)
                    self._on_progress(kind, len(batch))
        if self._checkpoints is not None:
            await self._write_checkpoints(self._checkpoints)
        self._writer.finish({"contents": self._exported.as_json()})
        return self._exported

    def _write_rows(self, kind: RowKind, batch: Sequence[BulkRow]) -> None:
        for row in batch:
            self._exported.add(kind, row_digest(row))
            self._writer.write(kind, row)

    async def _write_checkpoints(self, checkpoints: Checkpoints) -> None:
        from .checkpoints import parents_first
        from .exported_checkpoints import ThreadWriter

        for thread in checkpoints.threads:
            writer = ThreadWriter(self._writer.write, thread)
            for listed in parents_first(await checkpoints.source.checkpoints(thread.thread_id)):
                try:
                    record = await checkpoints.source.read(thread.thread_id, listed.key)
                except StorageError:
                    raise
                except Exception as error:
                    name = f"{thread.thread_id}/{listed.key}"
                    raise CorruptDocumentError(CHECKPOINTS, name, "checkpoint", str(error)) from error
                if record is not None:
                    digest = await asyncio.to_thread(writer.write, record)
                    self._exported.add(CHECKPOINTS, digest)
                    self._on_progress(CHECKPOINTS, 1)
