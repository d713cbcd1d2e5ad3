"""`deerflow-mongo export` and `import`: everything of a storage as one file, and back.

The format and the rules are in `transfer/`; here are the options, the progress, what is printed and the exit
codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from ..contract.bulk_rows import ROW_KINDS, Imported, RowKind
from ..contract.errors import StorageUnavailableError
from ..demo.text import counted, plain
from ..mongodb.row_counts import count_rows
from ..mongodb.storage import MongoStorage
from ..transfer.export_files import STANDARD_STREAM, ExportReader, check_file, reading, writing
from ..transfer.exporting import CHECKPOINTS, Export, Exported, Progress
from ..transfer.importing import FileImport, ImportedFile
from ..transfer.storage_checkpoints import checkpoints_of, savers_of
from .checkpoints import copied_as_json
from .options import JsonOption
from .storage_options import StorageOptions
from .terminal import (
    MAX_SENTENCE_SHOWN,
    PROBLEM_EXIT,
    RowProgress,
    console_for,
    counting_progress,
    duration,
    explained,
    json_of,
    logged_errors,
    status,
    stoppable,
)

MAX_LISTED = 20
"""How many rows of each list are printed; `--json` has all of them."""

_COUNTED_KINDS: list[RowKind] = [kind for kind in ROW_KINDS if kind != "event_numbers"]
"""Those of which there is a count without reading them; the others are few."""

CheckpointsOption: TypeAlias = Annotated[
    bool, typer.Option("--checkpoints/--no-checkpoints", help="With LangGraph's checkpoints, or without.")
]


# -- export ----------------------------------------------------------------------------------------


def export(
    where: StorageOptions,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The file to write, such as backup.jsonl.gz; - for standard output."
        ),
    ],
    checkpoints: CheckpointsOption = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write accounts, threads, runs, feedback, run events and checkpoints into one file.

    The file is JSON Lines, compressed by gzip, and gets its name once it is complete. Any storage that can
    import rows reads it, with `deerflow-mongo import`. Two exports of the same data have equal digests.
    Nothing is changed here. What a host writes meanwhile may be missing: stop it for an exact copy.

    The file has everything, also password hashes: only its owner can read it. Keep it that way.
    """
    with explained():
        storage = where.existing_storage("data")
        started = time.perf_counter()
        with logged_errors():
            work = _export(storage, file, with_checkpoints=checkpoints, overwrite=force)
            exported = asyncio.run(stoppable(work))
        seconds = time.perf_counter() - started
        console = console_for(stderr=file == STANDARD_STREAM)
        if as_json:
            result = {"file": file, "seconds": round(seconds, 3), "contents": exported.as_json()}
            typer.echo(json_of(result, indent=2), err=file == STANDARD_STREAM)
        else:
            _show_exported(console, exported, seconds)


async def _export(storage: MongoStorage, file: str, *, with_checkpoints: bool, overwrite: bool) -> Exported:
    console = console_for(stderr=True)
    async with contextlib.aclosing(storage):
        with writing(file, overwrite=overwrite) as writer:
            with status(console, "looking at the database"):
                await storage.ping()  # reads without a time limit follow
                found = await checkpoints_of(storage) if with_checkpoints else None
                total = sum([await count_rows(storage, kind) for kind in _COUNTED_KINDS])
            if found is not None:
                total += sum(thread.checkpoints for thread in found.threads)
            with counting_progress(console, "exporting", "rows") as report:
                progress = RowProgress(report, total)

                def show(kind: str, rows: int) -> None:
                    progress.add(_name(kind), rows)

                return await Export(storage, writer, found, show).run(storage.config.database)


def _show_exported(console: Console, exported: Exported, seconds: float) -> None:
    for kind, total in exported.totals.items():
        console.print(Text(f"{total.rows:>12,}  {_name(kind):<13}  {total.digest}"), soft_wrap=True)
    rows = sum(total.rows for total in exported.totals.values())
    console.print(Text(f"{counted(rows, 'row')} exported in {seconds:,.1f} s."), soft_wrap=True)


def _name(kind: str) -> str:
    return kind.replace("_", " ")


# -- import ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ImportOptions:
    with_checkpoints: bool
    overwrite: bool


def import_(
    where: StorageOptions,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A file of `deerflow-mongo export`; - for standard input."),
    ],
    checkpoints: CheckpointsOption = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace rows that were changed here, and threads of checkpoints that differ; never events.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Store everything of an export file, exactly as it was: ids, times, counts and numbers.

    A file is checked first, and refused before anything is written if it is incomplete or damaged. The
    command may be interrupted and repeated: what is there already stays as it is. A row that was changed here
    since an earlier import stays as well and is listed, unless --overwrite is given. Imported events and
    checkpoints are as old as the import, as far as retention is concerned.

    The exit code is 0 if everything is stored, 1 if a row or a thread was refused, and 2 if an option or the
    file is wrong.
    """
    with explained():
        storage = where.storage_on_server("data that stays")
        options = _ImportOptions(with_checkpoints=checkpoints, overwrite=overwrite)
        started = time.perf_counter()
        with logged_errors():
            imported = asyncio.run(stoppable(_import(storage, file, options)))
        seconds = time.perf_counter() - started
        if as_json:
            typer.echo(json_of(_imported_as_json(imported, seconds), indent=2))
        else:
            for line in _lines_of_imported(imported, seconds):
                console_for().print(Text(line), soft_wrap=True)
        if not imported.is_complete:
            raise typer.Exit(PROBLEM_EXIT)


async def _import(storage: MongoStorage, file: str, options: _ImportOptions) -> ImportedFile:
    console = console_for(stderr=True)
    async with contextlib.aclosing(storage):
        with status(console, "checking the file"):
            size_bytes = await asyncio.to_thread(check_file, file)
        with reading(file) as reader:
            has_checkpoints = options.with_checkpoints and bool(reader.header.get("checkpoint_threads"))
            savers = await savers_of(storage) if has_checkpoints else None
            await storage.setup()
            with counting_progress(console, "importing", "rows") as report:
                try:
                    return await FileImport(
                        reader,
                        storage,
                        savers,
                        overwrite=options.overwrite,
                        on_progress=_progress_of(reader, size_bytes, report),
                    ).run()
                except StorageUnavailableError as error:
                    text = f"{error}; repeat the command to continue"
                    raise StorageUnavailableError(text) from error


def _progress_of(
    reader: ExportReader, size_bytes: int | None, report: Callable[[int, int, str], None]
) -> Progress:
    """Counts rows; the time that is left is that of the part of the file that is not read yet."""
    started, done = time.perf_counter(), 0

    def show(kind: str, rows: int) -> None:
        nonlocal done
        done += rows
        seconds = max(time.perf_counter() - started, 0.001)
        details = f"{_name(kind)}  {done / seconds:,.0f}/s"
        total = done
        if size_bytes is not None:
            part = max(reader.compressed_bytes_read, 1) / size_bytes
            total = round(done / min(part, 1.0))
            details += f"  {duration(seconds / part - seconds)} left"
        report(done, total, details)

    return show


def _lines_of_imported(imported: ImportedFile, seconds: float) -> Iterator[str]:
    for kind, outcome in imported.rows.items():
        if outcome.rows:
            yield f"{outcome.rows:>12,}  {_name(kind):<13}  {_outcome(outcome)}"
    if imported.threads:
        results = ", ".join(f"{count:,} {result}" for result, count in _results(imported).items())
        yield f"{len(imported.threads):>12,}  threads of checkpoints: {results}"
    if imported.skipped_checkpoints:
        yield f"{imported.skipped_checkpoints:>12,}  checkpoints left out"
    yield from _listed(imported)
    rows = sum(outcome.rows for outcome in imported.rows.values())
    yield f"{counted(rows, 'row')} in {seconds:,.1f} s."


def _outcome(outcome: Imported) -> str:
    counts = {
        "stored": outcome.stored,
        "replaced": outcome.replaced,
        "there already": outcome.unchanged,
        "changed here and left alone": len(outcome.changed_here),
        "refused": len(outcome.refused),
    }
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _results(imported: ImportedFile) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for thread in imported.threads:
        counts[thread.result] = counts.get(thread.result, 0) + 1
    return counts


def _listed(imported: ImportedFile) -> Iterator[str]:
    """The first rows and threads that are not as in the file."""
    changed = [f"{kind} {_key(key)}" for kind, one in imported.rows.items() for key in one.changed_here]
    refused = [
        f"{kind} {_key(row.key)}: {plain(row.reason, MAX_SENTENCE_SHOWN)}"
        for kind, one in imported.rows.items()
        for row in one.refused
    ]
    refused += [
        f"checkpoints of thread {plain(thread.thread_id)}: {plain(thread.reason, MAX_SENTENCE_SHOWN)}"
        for thread in imported.threads
        if not thread.is_successful
    ]
    for title, entries in (("changed here and left alone:", changed), ("refused:", refused)):
        if entries:
            yield title
            yield from (f"  {entry}" for entry in entries[:MAX_LISTED])
            if len(entries) > MAX_LISTED:
                yield f"  ... and {len(entries) - MAX_LISTED:,} more; --json lists all"


def _key(key: tuple[Any, ...]) -> str:
    return "/".join(plain(str(part)) for part in key)


def _imported_as_json(imported: ImportedFile, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 3),
        "rows": {kind: asdict(outcome) for kind, outcome in imported.rows.items()},
        CHECKPOINTS: copied_as_json(imported.threads, seconds, dry_run=False),
        "skipped_checkpoints": imported.skipped_checkpoints,
    }
