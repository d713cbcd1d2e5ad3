"""`deerflow-mongo demo`: replays recorded threads, checks the storage under concurrent writers, prints both.

What is replayed, checked and printed is in `deerflow_mongo.demo`; here are the options and the exit code.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..demo import consistency
from ..demo.consistency import ConsistencyReport, check_consistency
from ..demo.details import show_details
from ..demo.recording import SAMPLE, RecordedThread, RecordingError, load_thread
from ..demo.replay import ReplayedThread, Replayer
from ..demo.screen import DEMO_DATABASE, next_commands, show_screen
from ..demo.summary import USER_NAMES, DatabaseReader, ReplayResult, Summary
from ..demo.text import counted
from ..mongodb.storage import MongoStorage
from .options import JsonOption
from .storage_options import ServerOptions
from .terminal import (
    PROBLEM_EXIT,
    console_for,
    explained,
    failure,
    json_of,
    logged_errors,
    progress,
    status,
    stoppable,
)

MAX_USERS = 1_000
STEPS_WITHOUT_SERVER = 2
"""Steps of the consistency check on mongomock, which scans its data at every write."""


@dataclass(frozen=True, slots=True)
class DemoOptions(ServerOptions):
    """The database of the demo is the default."""

    database: Annotated[
        str | None,
        typer.Option("--database", help="The database to write to; nothing that was in it is deleted."),
    ] = DEMO_DATABASE


def demo(
    context: typer.Context,
    where: DemoOptions,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Recorded threads as JSON files; by default a sample is replayed for every user."
        ),
    ] = None,
    users: Annotated[
        int, typer.Option("--users", min=1, max=MAX_USERS, help="The number of users who replay threads.")
    ] = 3,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print tables of everything that was stored as well.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded threads of several users at once, then check that no write is lost or stored twice.

    Every turn of a recorded thread becomes one run, with its status changes, token counts, votes and events.
    Replaying again adds runs to the same threads. The check writes with many concurrent writers, reads
    everything back, compares it with what was acknowledged, and deletes what it wrote.

    The exit code is 0 if all is as it should be, 1 if the check found a difference or a write failed, and 2
    if an option or a file is wrong.
    """
    with explained():
        names = _user_names(users)
        threads = _recordings(files or [], names)
        storage = MongoStorage.open(where.given)
        with logged_errors() as errors:
            summary, report = asyncio.run(stoppable(_run(storage, threads, names)))
        if as_json:
            typer.echo(json_of(_as_json(summary, report), indent=2))
        else:
            console = console_for()
            if verbose:
                show_details(console, summary)
            program = context.find_root().info_name or "deerflow-mongo"
            commands = next_commands(program, storage.config, where.url, summary.story["thread_id"])
            show_screen(console, summary, report, commands)
        if errors.count:
            raise failure(f"{counted(errors.count, 'write')} could not be stored; see above", PROBLEM_EXIT)
        if not report.passed:
            raise failure(_verdict(report), PROBLEM_EXIT)


def _user_names(count: int) -> list[str]:
    return [*USER_NAMES[:count], *(f"user{number}" for number in range(len(USER_NAMES) + 1, count + 1))]


def _recordings(files: Sequence[Path], users: Sequence[str]) -> list[RecordedThread]:
    """All of them, read before anything is written; without files the sample, one copy for each user."""
    if not files:
        sample = load_thread(SAMPLE)
        return [sample.copy_for(user) for user in users]
    found: dict[str, Path] = {}
    threads = [load_thread(file) for file in files]
    for file, thread in zip(files, threads, strict=True):
        first = found.setdefault(thread.thread_id, file)
        if first is not file:
            raise RecordingError(f"{first} and {file} are recordings of the same thread: name only one")
    return threads


async def _run(
    storage: MongoStorage, threads: Sequence[RecordedThread], users: Sequence[str]
) -> tuple[Summary, ConsistencyReport]:
    console = console_for(stderr=True)
    try:
        with status(console, "opening the database"):
            await storage.setup()
        reader = DatabaseReader(storage)
        await reader.count_before()
        runs = sum(len(thread.turns) for thread in threads)
        started = time.perf_counter()
        with progress(console, "replaying", runs, "runs") as on_run:
            replayed = await Replayer(storage, users, on_run).replay(threads)
        duration_ms = round((time.perf_counter() - started) * 1000)
        summary = await reader.summary(_result(replayed, runs, users, duration_ms), replayed)
        writers = consistency.WRITERS
        steps = consistency.STEPS if storage.config.has_server else STEPS_WITHOUT_SERVER
        with progress(console, "checking", writers * steps, "steps") as on_step:
            report = await check_consistency(storage, users, writers=writers, steps=steps, on_step=on_step)
        return summary, report
    finally:
        await storage.aclose()


def _result(
    replayed: Sequence[ReplayedThread], runs: int, users: Sequence[str], duration_ms: int
) -> ReplayResult:
    return ReplayResult(
        threads=len(replayed),
        runs=runs,
        events=sum(thread.event_count for thread in replayed),
        users=list(users),
        duration_ms=duration_ms,
        other_owners=[
            (thread.thread_id, thread.owner) for thread in replayed if thread.owner != thread.requested_user
        ],
    )


def _as_json(summary: Summary, report: ConsistencyReport) -> dict[str, object]:
    return {**asdict(summary), "consistency": {"passed": report.passed, **asdict(report)}}


def _verdict(report: ConsistencyReport) -> str:
    total = report.total
    return (
        f"the consistency check failed: {total.lost:,} lost, {total.doubled:,} doubled, "
        f"{counted(len(report.differences), 'difference')}"
    )
