"""`deerflow-mongo stats`: statistics of a database as text, as JSON, and as a page; it changes nothing.

What is counted is in `mongodb/reports/`, how the page looks in `page.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..contract.errors import StorageConfigError
from ..demo.text import plain
from ..mongodb.reports.report import (
    DEFAULT_DAYS,
    DEFAULT_LISTED,
    DEFAULT_SECTION_TIMEOUT_S,
    Report,
    ReportOptions,
    read_report,
    section_names,
)
from ..mongodb.storage import MongoStorage
from .options import JsonOption, age
from .page import page_of
from .report_tables import facts_of, period_text, tables_of
from .storage_options import ReadStorageOptions
from .tables import table_lines, width_of
from .terminal import PROBLEM_EXIT, console_for, counting_progress, explained, failure, json_of, stoppable

MAX_DAYS = 3_660
MAX_ROWS = 1_000

DaysOption: TypeAlias = Annotated[
    int,
    typer.Option("--days", metavar="N", min=1, max=MAX_DAYS, help="The period: the last N days in UTC."),
]
HtmlOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with charts into this file instead of text."),
]
ListedOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--limit",
        metavar="N",
        min=1,
        max=MAX_ROWS,
        help="The length of the lists of users, runs, threads.",
    ),
]
LeftAfterOption: TypeAlias = Annotated[
    timedelta,
    typer.Option(
        "--left-after",
        parser=age,
        metavar="AGE",
        help="A run that is active for longer was left running, such as 90m; units are m, h, d and w.",
    ),
]
CheckpointsOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--checkpoints", help="Measure the threads' checkpoints as well; the server reads all of them."
    ),
]
TimeoutOption: TypeAlias = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long the server may work on a section."),
]


def stats(
    where: ReadStorageOptions,
    days: DaysOption = DEFAULT_DAYS,
    html: HtmlOption = None,
    limit: ListedOption = DEFAULT_LISTED,
    left_after: LeftAfterOption = "1h",  # pyright: ignore[reportArgumentType] - typer parses it
    checkpoints: CheckpointsOption = False,
    timeout: TimeoutOption = DEFAULT_SECTION_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Print statistics of a database: runs, tokens, votes, failures, threads, collections, indexes.

    Runs, tokens and votes are those of runs created in the period; the rest is of now. Each section is one
    command that reads a range of an index and that the server ends after --timeout; a section that takes
    longer, or that the user may not read, is named and left out. Broken documents are left out.

    The exit code is 0 if everything was read, and 1 if a section was not.
    """
    with explained():
        if html is not None:
            _check_writable(html)
        storage = where.existing_storage("runs")
        options = ReportOptions(days, limit, left_after, timeout, checkpoints)
        report = asyncio.run(stoppable(_read(storage, options)))
        if html is not None:
            _write(html, page_of(report))
        if as_json:
            typer.echo(json_of(_as_json(report), indent=2))
        elif html is not None:
            typer.echo(f"wrote {plain(html)}: {period_text(report)}")
        else:
            for line in _lines(report, width_of(console_for())):
                typer.echo(line)
        if report.unavailable:
            raise failure(f"not everything was read: {', '.join(report.unavailable)}", PROBLEM_EXIT)


async def _read(storage: MongoStorage, options: ReportOptions) -> Report:
    names, done = section_names(), 0
    total = len(names) if options.checkpoints else len(names) - 1
    async with contextlib.aclosing(storage):
        with counting_progress(console_for(stderr=True), "reading", "sections") as show:

            def on_section(name: str) -> None:
                nonlocal done
                show(done, total, name.replace("_", " "))
                done += 1

            driver, prefix = storage.driver, storage.config.collection_prefix
            return await read_report(driver, prefix, options, on_section=on_section)


def _as_json(report: Report) -> dict[str, Any]:
    left_after_s = int(report.left_after.total_seconds())
    document = {**asdict(report), "left_after_s": left_after_s}
    del document["left_after"]
    return document


def _lines(report: Report, width: int | None) -> Iterator[str]:
    yield f"Database {plain(report.database)}, {period_text(report)}"
    yield ", ".join(f"{name.lower()}: {value}" for name, value in facts_of(report))
    for table in tables_of(report):
        yield ""
        yield table.title
        if table.unavailable is not None:
            yield f"  {plain(table.unavailable)}"
        elif not table.rows:
            yield f"  {table.empty}"
        else:
            indented = None if width is None else width - 2
            yield from (f"  {line}" for line in table_lines(table.columns, table.rows, indented))


# -- the file --------------------------------------------------------------------------------------


def _check_writable(file: Path) -> None:
    """Raise `StorageConfigError` before anything is read where the page could not be written."""
    folder = file.absolute().parent
    if file.is_dir():
        raise StorageConfigError(f"--html {file} is a folder: name a file in it")
    if not folder.is_dir():
        raise StorageConfigError(f"--html {file}: its folder does not exist")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise StorageConfigError(f"--html {file} cannot be written: permission denied")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageConfigError(f"--html {file} cannot be written: {error.strerror}") from error
