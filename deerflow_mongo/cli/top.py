"""`deerflow-mongo top`: what is active now, refreshed on a terminal until Ctrl-C; it changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..contract.errors import StorageUnavailableError
from ..demo.text import plain
from ..mongodb.reports.activity import Activity, read_activity
from ..mongodb.reports.rows import ActiveRun
from ..mongodb.schema import RUNS
from ..mongodb.storage import MongoStorage
from .options import MAX_LISTED, JsonOption
from .storage_options import ReadStorageOptions
from .tables import Column, seconds_text, shortened, table_lines, time_text, width_of
from .terminal import MAX_SENTENCE_SHOWN, console_for, explained, json_of, stoppable

DEFAULT_INTERVAL_S, LEAST_INTERVAL_S = 1.0, 0.2
DEFAULT_SHOWN = 50

_LINES_AROUND = 3
"""Of a terminal's height, what is not a row: the headline, the columns' titles, and a line for the rest."""


def top(
    where: ReadStorageOptions,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", metavar="SECONDS", min=LEAST_INTERVAL_S, help="How long to wait between two reads."
        ),
    ] = DEFAULT_INTERVAL_S,
    once: Annotated[bool, typer.Option("--once", help="Print what is active now, and exit.")] = False,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", metavar="N", min=1, max=MAX_LISTED, help="At most so many rows, oldest first."
        ),
    ] = DEFAULT_SHOWN,
    as_json: JsonOption = False,
) -> None:
    """Show what runs now, over all threads, oldest first; Ctrl-C ends it.

    A row is a run that is pending or running, or a short reservation of a thread for another write. Its lease
    is what lets another worker take the run over once it has expired; ages and leases are by the server's
    clock. With --once, with --json, and where the output is no terminal, one snapshot is printed.
    """
    with explained():
        storage = where.existing_storage("runs")
        console = console_for()
        if as_json or once or not console.is_terminal:
            activity = asyncio.run(stoppable(_snapshot(storage, limit)))
            if as_json:
                typer.echo(json_of({"database": storage.config.database, **asdict(activity)}, indent=2))
            else:
                for line in _lines(activity, storage.config.database, width_of(console)):
                    typer.echo(line)
            return
        asyncio.run(stoppable(_refresh(storage, console, interval, limit)))


async def _snapshot(storage: MongoStorage, limit: int) -> Activity:
    async with contextlib.aclosing(storage):
        runs = storage.driver.collection(storage.config.collection_prefix + RUNS)
        return await read_activity(runs, limit)


async def _refresh(storage: MongoStorage, console: Console, interval_s: float, limit: int) -> None:
    """Show the active runs until the task is cancelled, also while the server cannot be reached."""
    async with contextlib.aclosing(storage):
        runs = storage.driver.collection(storage.config.collection_prefix + RUNS)
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                shown = max(1, min(limit, console.height - _LINES_AROUND))
                try:
                    activity = await read_activity(runs, shown)
                except StorageUnavailableError as error:
                    text = Text(plain(f"{error}; retrying", MAX_SENTENCE_SHOWN), style="red")
                else:
                    text = _screen(activity, storage.config.database, console.width)
                live.update(text, refresh=True)
                await asyncio.sleep(interval_s)


# -- printing --------------------------------------------------------------------------------------

_COLUMNS = (
    *map(Column, ("run", "thread", "user", "status")),
    Column("age", is_number=True),
    Column("tokens", is_number=True),
    *map(Column, ("model", "lease", "owner")),
)


def _screen(activity: Activity, database: str, width: int) -> Text:
    headline, *lines = _lines(activity, database, width)
    text = Text(headline, style="bold", no_wrap=True, end="")
    for number, line in enumerate(lines):
        run = activity.runs[number - 1] if 0 < number <= len(activity.runs) else None
        style = "dim" if number == 0 else "red" if run is not None and run.lease == "expired" else "default"
        text.append(f"\n{line}", style=f"not bold {style}")
    return text


def _lines(activity: Activity, database: str, width: int | None) -> Iterator[str]:
    yield f"{activity.count:,} active in database {plain(database)} at {time_text(activity.at)}"
    if activity.runs:
        yield from table_lines(_COLUMNS, _rows(activity.runs), width)
    if activity.count > len(activity.runs):
        yield f"and {activity.count - len(activity.runs):,} more, newer ones"


def _rows(runs: list[ActiveRun]) -> Iterator[tuple[str, ...]]:
    run_ids = shortened(run.run_id for run in runs)
    threads, users = shortened(run.thread_id for run in runs), shortened(run.user_id for run in runs)
    for run in runs:
        is_reservation = run.kind not in (None, "run")
        yield (
            run_ids[run.run_id],
            threads[run.thread_id],
            users[run.user_id],
            f"{run.status} ({run.kind})" if is_reservation else run.status,
            seconds_text(run.age_ms / 1000),
            f"{run.total_tokens:,}",
            run.model or "-",
            lease_text(run),
            run.owner or "-",
        )


def lease_text(run: ActiveRun) -> str:
    """Such as "valid, 25.0 s" or "expired 3 m 2 s ago"; "-" without a lease."""
    if run.lease_left_ms is None:
        return "-"
    seconds = seconds_text(abs(run.lease_left_ms) / 1000)
    return f"valid, {seconds}" if run.lease == "valid" else f"expired {seconds} ago"
