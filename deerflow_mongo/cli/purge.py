"""`deerflow-mongo purge`: erases threads, or a user, with everything that belongs to them.

What belongs to a thread or a user is decided in `mongodb/erasure.py`; here are the options, the progress and
the exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeAlias

import typer

from ..contract.erasure import Erased
from ..contract.errors import StorageConfigError
from ..demo.text import counted
from ..mongodb.erasure import Counting, Deleting, MongoErasure
from ..mongodb.storage import MongoStorage
from .options import JsonOption, age, identifier_text
from .storage_options import StorageOptions
from .terminal import console_for, counting_progress, explained, json_of, stoppable


@dataclass(frozen=True, slots=True)
class _Selection:
    """What to erase: these threads, this user, or threads by their age and status."""

    threads: Sequence[str]
    user: str | None
    older_than: timedelta | None
    statuses: Sequence[str]

    def check(self) -> None:
        """Raise `StorageConfigError` unless exactly one of the three is named."""
        given = [bool(self.threads), self.user is not None, self.older_than is not None]
        if sum(given) != 1:
            raise StorageConfigError("name what to erase with one of --thread, --user and --older-than")
        if self.statuses and self.older_than is None:
            raise StorageConfigError("--status belongs to --older-than")


ThreadsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--thread",
        parser=identifier_text,
        metavar="THREAD",
        help="This thread, by its whole id; may be given several times.",
    ),
]
UserOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--user",
        parser=identifier_text,
        metavar="USER",
        help="This user, by the whole id, with all of the user's threads.",
    ),
]
OlderThanOption: TypeAlias = Annotated[
    timedelta | None,
    typer.Option(
        "--older-than",
        parser=age,
        metavar="AGE",
        help="Threads that were last updated longer ago, such as 90d; units are m, h, d and w.",
    ),
]
StatusOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--status",
        metavar="STATUS",
        help="With --older-than, only threads of this status, such as idle; may be given several times.",
    ),
]
DryRunOption: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Erase nothing; print what would be erased.")
]


def purge(
    where: StorageOptions,
    thread: ThreadsOption = None,
    user: UserOption = None,
    older_than: OlderThanOption = None,
    status: StatusOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Erase threads, or a user, for good, also while hosts use the database.

    A thread goes with its runs, run events, feedback and checkpoints. A user goes with the own threads, with
    runs, events and feedback in the threads of others, and with the account. Only a backup brings them back.

    With --older-than, threads that have an active run stay. With --thread and --user they go, and what an
    agent still stores afterwards needs the command once more. The command may be interrupted and repeated.
    """
    with explained():
        selection = _Selection(thread or (), user, older_than, status or ())
        selection.check()
        storage = where.existing_storage("threads")
        started = time.perf_counter()
        erased = asyncio.run(stoppable(_purge(storage, selection, dry_run=dry_run)))
        seconds = time.perf_counter() - started
        if as_json:
            outcome = {"dry_run": dry_run, "seconds": round(seconds, 3), "erased": asdict(erased)}
            typer.echo(json_of(outcome, indent=2))
        else:
            typer.echo(_line_of(erased, seconds, dry_run=dry_run))


async def _purge(storage: MongoStorage, selection: _Selection, *, dry_run: bool) -> Erased:
    total = Erased()
    async with contextlib.aclosing(storage):
        await storage.check_set_up()
        with counting_progress(console_for(stderr=True), "erasing", "threads") as report:
            done = 0

            def show(erased: Erased) -> None:
                nonlocal done
                done += 1
                total.add(erased)
                report(done, 0, f"{total.run_events:,} events  {total.checkpoints:,} checkpoints")

            erasure = storage.erasure(Counting if dry_run else Deleting, on_thread=show)
            if selection.user is not None:
                return await erasure.user(selection.user)
            async for thread_id in _threads(erasure, selection):
                await erasure.thread(thread_id)
    return total


async def _threads(erasure: MongoErasure, selection: _Selection) -> AsyncGenerator[str]:
    for thread_id in dict.fromkeys(selection.threads):
        yield thread_id
    if selection.older_than is not None:
        updated_before = datetime.now(UTC) - selection.older_than
        async for thread_id in erasure.old_threads(updated_before, selection.statuses):
            yield thread_id


_UNITS = {
    "threads": "thread",
    "runs": "run",
    "run_events": "run event",
    "feedback": "feedback row",
    "checkpoints": "checkpoint",
    "accounts": "account",
}


def _line_of(erased: Erased, seconds: float, *, dry_run: bool) -> str:
    counts: dict[str, Any] = asdict(erased)
    *most, last = (counted(counts[name], unit) for name, unit in _UNITS.items())
    done = "would be erased; nothing was changed," if dry_run else "erased in"
    return f"{', '.join(most)} and {last} {done} {seconds:,.1f} s."
