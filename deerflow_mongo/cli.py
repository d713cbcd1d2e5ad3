"""The command `deerflow-mongo`: `demo` replays recorded threads and shows what the database then says,
`check` tells whether a host would work with a configuration. No host needs it, and no rule of the storage is
here: what is asked goes through the stores or, about the server itself, through their driver.

Its packages come with the extra `cli`; without them the module says so and ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast
from urllib.parse import parse_qsl

from . import __version__, codec
from .config import EMBEDDED, MongoConfig, load_config
from .errors import (
    MissingDependencyError,
    StorageAccessError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from .factory import create_storage
from .protocols import Storage
from .replay import HOW_TOKENS_COUNT, HOW_USERS_VOTE, RecordedThread, RecordingError, Replayer, load_thread
from .rows import FeedbackTotals, RunRow, TokenUsage
from .schema import COLLECTIONS, NEWEST_FIRST, RUNS, THREADS, CollectionSchema, SchemaReport
from .storage import MongoStorage

try:
    import typer
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
    from rich.text import Text
except ImportError:
    sys.stderr.write(f"{MissingDependencyError('the command deerflow-mongo', 'typer', 'cli')}\n")
    raise SystemExit(2) from None

Document: TypeAlias = dict[str, Any]
T = TypeVar("T")

USAGE_EXIT = 2
PROBLEM_EXIT = 1
INTERRUPTED_EXIT = 130

DEMO_DATABASE = "deerflow_demo"
SAMPLE = Path(__file__).parent / "samples" / "weather.json"
USER_NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
MAX_USERS = 1_000

ROWS_SHOWN = 20
THREADS_SUMMED = 1_000
ID_WIDTH, USER_WIDTH, STATUS_WIDTH, MODEL_WIDTH = 8, 9, 11, 20
MAX_TEXT_SHOWN = 160
MAX_ITEMS_SHOWN = 12

OLDEST_SERVER = (5, 0)
TESTED_SERVER = "6.0"
CHECK_TIMEOUT_MS = 5_000
STOP_TIMEOUT_S = 15.0
"""How long Ctrl-C waits for the work to end; the embedded server stops within."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    help="MongoDB storage for DeerFlow: see it work, and check a configuration.",
)


def main() -> None:
    """The entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="deerflow-mongo")


# -- the terminal ----------------------------------------------------------------------------------


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def _fail(message: str, exit_code: int) -> typer.Exit:
    _console(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)
    return typer.Exit(exit_code)


class _FailedEvents(logging.Handler):
    """Counts and tells, in a line each, what the stores and the observer log as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        cause = record.exc_info[1] if record.exc_info else None
        message = record.getMessage() if cause is None else f"{record.getMessage()}: {cause}"
        _console(stderr=True).print(Text(message, style="red"), soft_wrap=True)


@contextlib.contextmanager
def _failed_events() -> Generator[_FailedEvents]:
    logger, failed = logging.getLogger(__package__), _FailedEvents()
    logger.addHandler(failed)
    try:
        yield failed
    finally:
        logger.removeHandler(failed)


async def _stoppable(work: Coroutine[Any, Any, T]) -> T:
    """`work` in a task of its own, so that Ctrl-C always ends it: a driver may swallow a cancellation."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
        if task.done() and not task.cancelled():
            task.exception()  # a task's error that nobody asks for would be logged
        raise


@contextlib.contextmanager
def _explained() -> Generator[None]:
    """Our own errors become one sentence and an exit code; any other is a bug and keeps its traceback."""
    try:
        yield
    except (StorageConfigError, RecordingError) as error:
        raise _fail(str(error), USAGE_EXIT) from None
    except StorageError as error:
        raise _fail(str(error), PROBLEM_EXIT) from None
    except KeyboardInterrupt:
        raise _fail("stopped; the storage is closed", INTERRUPTED_EXIT) from None


def _plain(text: object, length: int = MAX_TEXT_SHOWN) -> str:
    """Text from a recording or a database as one line that cannot steer the terminal."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= length else f"{line[:length]}… ({len(line):,} characters)"


def _cell(text: str | None, width: int) -> Text:
    """Such a line cut to a table's column; a Chinese character is two wide."""
    cell = Text(_plain(text or "-", MAX_TEXT_SHOWN))
    cell.truncate(width, overflow="ellipsis")
    return cell


_SECRET_OPTIONS = re.compile(r"(tlsCertificateKeyFilePassword=|authMechanismProperties=)[^&]*", re.IGNORECASE)


def _plain_url(url: str) -> str:
    """The URL without anything that could be secret, whatever is wrong with it."""
    return _plain(_SECRET_OPTIONS.sub(r"\1***", re.sub(r"(?<=://).*@", "***@", url)))


def _counted(number: int, noun: str) -> str:
    plural = "indexes" if noun == "index" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _and_more(console: Console, shown: int, total: int) -> None:
    if total > shown:
        console.print(f"... and {total - shown:,} more")


def _json(value: object) -> str:
    """What JSON cannot say itself: times, and what somebody else may have put into a document."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


# -- options ---------------------------------------------------------------------------------------

UrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A MongoDB URI, '$NAME' to read one from the environment, or 'embedded' for a private server, "
        "which is the default.",
    ),
]
DataDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where the embedded server keeps its data for the next time; without it, a temporary folder.",
    ),
]
DriverOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--driver", help="pymongo, the default; motor; or mongomock, which has no server at all."),
]


def _options(
    url: str | None, data_dir: Path | None, database: str | None, driver: str | None
) -> dict[str, Any]:
    given = {"url": url, "data_dir": data_dir, "database": database, "driver": driver}
    options = {name: value for name, value in given.items() if value is not None}
    return {"backend": "mongodb", "url": EMBEDDED, **options}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deerflow-mongo {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """MongoDB storage for DeerFlow: see it work, and check a configuration."""


# -- demo ------------------------------------------------------------------------------------------


@app.command()
def demo(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Recorded threads, JSON; without any, a sample is replayed for every user."),
    ] = None,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    database: Annotated[
        str, typer.Option("--database", help="The database to write to; nothing in it is deleted.")
    ] = DEMO_DATABASE,
    driver: DriverOption = None,
    users: Annotated[
        int, typer.Option("--users", min=1, max=MAX_USERS, help="How many users the threads are dealt to.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Replay recorded threads and show what the database says.

    Every turn of a human becomes one run, with the lifecycle events, token figures and votes that a host
    would write; the threads of several users are replayed at once. Replaying again adds runs to the same
    threads.
    """
    with _explained():
        names = _user_names(users)
        threads = _recordings(files or [], names)
        storage = cast("MongoStorage", create_storage(_options(url, data_dir, database, driver)))
        with _failed_events() as failed:
            summary = asyncio.run(_stoppable(_replay_and_ask(storage, threads, names)))
        console = _console()
        if as_json:
            typer.echo(json.dumps(asdict(summary), ensure_ascii=False, indent=2, default=_json))
        else:
            _show_summary(console, summary, storage.config)
        if failed.count:
            raise _fail(f"{_counted(failed.count, 'write')} could not be stored, as told above", PROBLEM_EXIT)


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
            raise RecordingError(f"{first} and {file} record the same thread: name one of them")
    return threads


@dataclass(frozen=True, slots=True)
class Summary:
    """What the database says after a replay, in JSON types; only `replayed` is the replayer's own word."""

    server: Document
    replayed: Document
    runs_before: int
    runs_now: int
    runs_by_status: dict[str, int]
    tokens: TokenUsage
    newest_runs: list[RunRow]
    votes: list[FeedbackTotals]
    threads_now: int
    threads: list[Document]
    ownership: Document
    document: Document
    rules: Document = field(default_factory=lambda: {"tokens": HOW_TOKENS_COUNT, "votes": HOW_USERS_VOTE})


async def _replay_and_ask(
    storage: MongoStorage, threads: Sequence[RecordedThread], users: Sequence[str]
) -> Summary:
    console = _console(stderr=True)
    try:
        with console.status("opening the database") if console.is_terminal else contextlib.nullcontext():
            await storage.setup()
        questions = _Questions(storage)
        before = sum((await questions.runs_by_status()).values())
        turns = sum(len(thread.turns) for thread in threads)
        started = time.perf_counter()
        with _progress(console, turns) as step:
            replayed = await Replayer(storage, users, step).replay(threads)
        spent_ms = round((time.perf_counter() - started) * 1000)
        word: Document = {
            "threads": len(threads),
            "runs": turns,
            "users": list(users),
            "duration_ms": spent_ms,
        }
        word["kept_owners"] = [[x.thread_id, x.owner] for x in replayed if x.owner != x.asked_for]
        return await questions.summary(word, before)
    finally:
        await storage.aclose()


@contextlib.contextmanager
def _progress(console: Console, total: int) -> Generator[Callable[[], None]]:
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


class _Questions:
    """What is asked of a database after a replay: through the stores, or the collections for whole counts."""

    def __init__(self, storage: MongoStorage) -> None:
        self._storage = storage
        prefix = storage.config.collection_prefix
        self._runs = storage.driver.collection(prefix + RUNS)
        self._threads = storage.driver.collection(prefix + THREADS)

    async def runs_by_status(self) -> dict[str, int]:
        groups = await self._runs.aggregate(
            [{"$group": {"_id": "$status", "runs": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
        )
        return {group["_id"]: group["runs"] for group in groups}

    async def summary(self, replayed: Document, runs_before: int) -> Summary:
        storage, by_status = self._storage, await self.runs_by_status()
        documents = await self._runs.find({}, sort=NEWEST_FIRST, limit=ROWS_SHOWN)
        rows = [codec.run_row(document) for document in documents]
        threads = await storage.threads.search_threads(user_id=None, limit=THREADS_SUMMED)
        usages = [await storage.runs.token_usage_by_thread(x.thread_id, user_id=None) for x in threads]
        counts = await self._threads.aggregate([{"$group": {"_id": None, "threads": {"$sum": 1}}}])
        most_calls = max(range(len(rows)), key=lambda position: rows[position]["llm_call_count"])
        return Summary(
            server=await _server_of(storage),
            replayed=replayed,
            runs_before=runs_before,
            runs_now=sum(by_status.values()),
            runs_by_status=by_status,
            tokens=_sum_of(usages),
            newest_runs=rows,
            votes=[await storage.feedback.aggregate_by_run(row["thread_id"], row["run_id"]) for row in rows],
            threads_now=counts[0]["threads"],
            threads=[asdict(thread) for thread in threads[:ROWS_SHOWN]],
            ownership=await self._ownership(rows[most_calls], replayed["users"]),
            document=documents[most_calls],
        )

    async def _ownership(self, row: RunRow, users: Sequence[str]) -> Document:
        """What the owner of a run's thread and somebody else are shown of it."""
        owner, runs = row["user_id"], self._storage.runs
        other = next((name for name in (*users, *USER_NAMES) if name != owner), None)
        return {
            "thread_id": row["thread_id"],
            "owner": owner,
            "other": other,
            "owner_sees": len(await runs.list_by_thread(row["thread_id"], user_id=owner)),
            "other_sees": len(await runs.list_by_thread(row["thread_id"], user_id=other)),
        }


def _sum_of(usages: Iterable[TokenUsage]) -> TokenUsage:
    """The threads' sums, each made by the database, added up."""
    total: Document = {}
    for usage in usages:
        _add(total, cast("Document", usage))
    return cast("TokenUsage", total)


def _add(total: Document, figures: Mapping[str, Any]) -> None:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), cast("Mapping[str, Any]", value))
        else:
            total[name] = total.get(name, 0) + value


async def _server_of(storage: MongoStorage) -> Document:
    config, driver = storage.config, storage.driver
    in_memory = driver.name == "mongomock"
    version = None if in_memory else (await driver.command({"buildInfo": 1}, database="admin"))["version"]
    return {
        "version": version,
        "url": None if in_memory else _plain_url(config.url),
        "data_dir": None if config.data_dir is None else str(config.data_dir),
        "database": config.database,
        "driver": driver.name,
    }


# -- showing a summary -----------------------------------------------------------------------------


def _show_summary(console: Console, summary: Summary, config: MongoConfig) -> None:
    _show_replay(console, summary, config)
    _show_figures(console, summary)
    _show_runs(console, summary)
    _show_threads(console, summary)
    _show_one_run(console, summary)
    _show_next_steps(console, config)


def _show_replay(console: Console, summary: Summary, config: MongoConfig) -> None:
    replayed, users = summary.replayed, summary.replayed["users"]
    names = ", ".join(users[:MAX_ITEMS_SHOWN]) + (", ..." if len(users) > MAX_ITEMS_SHOWN else "")
    console.print(
        f"Replayed {_counted(replayed['threads'], 'thread')} as {_counted(replayed['runs'], 'run')} of "
        f"{_counted(len(users), 'user')} ({names}) in {replayed['duration_ms']:,} ms."
    )
    for thread_id, owner in replayed["kept_owners"][:ROWS_SHOWN]:
        console.print(
            f"Thread {_plain(thread_id)} stays with its owner, {_plain(owner)}, and so do its runs."
        )
    _and_more(console, ROWS_SHOWN, len(replayed["kept_owners"]))
    console.print(f"Tokens: {HOW_TOKENS_COUNT}")
    console.print(f"Votes: {HOW_USERS_VOTE}")
    _heading(console, "What the database says")
    version = summary.server["version"]
    server = "mongomock, no server" if version is None else f"MongoDB {version}"
    console.print(f"{server}, {_place(config)}, database {config.database}, driver {config.driver}.")
    console.print(f"Runs before: {summary.runs_before:,}; now: {summary.runs_now:,}.")


def _place(config: MongoConfig) -> str:
    if config.driver == "mongomock":
        return "in this process's memory"
    if config.url != EMBEDDED:
        return f"at {_plain_url(config.url)}"
    return "in a temporary folder" if config.data_dir is None else f"in {config.data_dir}"


def _show_figures(console: Console, summary: Summary) -> None:
    _heading(console, "Runs by status")
    table = _table("status", "runs", right=("runs",))
    for status, runs in summary.runs_by_status.items():
        table.add_row(_cell(status, 40), f"{runs:,}")
    console.print(table)
    summed = min(summary.threads_now, THREADS_SUMMED)
    _heading(console, f"Tokens by model (of {_counted(summed, 'thread')})")
    figures = ("runs", "llm_calls", "input_tokens", "output_tokens", "tokens")
    heads = [name.removesuffix("_tokens").removeprefix("llm_") for name in figures]
    table = _table("model", *heads, right=heads)
    by_model = sorted(summary.tokens["by_model"].items(), key=lambda item: -item[1]["tokens"])
    for model, usage in by_model[:ROWS_SHOWN]:
        table.add_row(_cell(model, MODEL_WIDTH), *(f"{usage[name]:,}" for name in figures))
    console.print(table)
    _and_more(console, ROWS_SHOWN, len(by_model))
    _heading(console, "Tokens by caller")
    table = _table("caller", "tokens", right=("tokens",))
    for caller, tokens in summary.tokens["by_caller"].items():
        table.add_row(caller, f"{tokens:,}")
    table.add_row("all", f"{summary.tokens['total_tokens']:,}")
    console.print(table)


def _show_runs(console: Console, summary: Summary) -> None:
    _heading(console, "Runs, newest first, with their votes")
    right = ("tokens", "calls", "+1", "-1")
    table = _table("run", "user", "status", "model", *right, right=right)
    for row, votes in zip(summary.newest_runs, summary.votes, strict=True):
        table.add_row(
            _plain(row["run_id"])[:ID_WIDTH],
            _cell(row["user_id"], USER_WIDTH),
            _cell(row["status"], STATUS_WIDTH),
            _cell(row["model_name"], MODEL_WIDTH),
            f"{row['total_tokens']:,}",
            f"{row['llm_call_count']:,}",
            f"{votes['positive']:,}",
            f"{votes['negative']:,}",
        )
    console.print(table)
    _and_more(console, len(summary.newest_runs), summary.runs_now)


def _show_threads(console: Console, summary: Summary) -> None:
    _heading(console, "Threads, newest first")
    table = _table("thread", "owner", "status", "title")
    for thread in summary.threads:
        table.add_row(
            _plain(thread["thread_id"])[:ID_WIDTH],
            _cell(thread["user_id"], USER_WIDTH),
            _cell(thread["status"], STATUS_WIDTH),
            _cell(thread["display_name"], max(10, console.width - ID_WIDTH - USER_WIDTH - STATUS_WIDTH - 6)),
        )
    console.print(table)
    _and_more(console, len(summary.threads), summary.threads_now)
    seen = summary.ownership
    console.print(
        f"Of thread {_plain(seen['thread_id'])}, {_plain(seen['owner'] or 'everybody')} is shown "
        f"{_counted(seen['owner_sees'], 'run')} and {_plain(seen['other'])} {seen['other_sees']:,}."
    )


def _show_one_run(console: Console, summary: Summary) -> None:
    row = next(row for row in summary.newest_runs if row["run_id"] == summary.document["_id"])
    _heading(console, "One run's row, as runs.get gives it")
    table = Table.grid(padding=(0, 2))
    for name, value in row.items():
        table.add_row(name, _plain(json.dumps(value, ensure_ascii=False)))
    console.print(table)
    _heading(console, "The same run, as it is stored")
    shortened = json.dumps(_shortened(summary.document), ensure_ascii=False, indent=2, default=_json)
    console.print(Text(shortened), soft_wrap=True)


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return _plain(value, 60)
    if isinstance(value, dict):
        items = cast("Document", value).items()
        return {_plain(key, 60): _shortened(item) for key, item in islice(items, 2 * MAX_ITEMS_SHOWN)}
    if isinstance(value, list):
        return [_shortened(item) for item in cast("list[Any]", value)[:MAX_ITEMS_SHOWN]]
    return value


def _show_next_steps(console: Console, config: MongoConfig) -> None:
    _heading(console, "What to do next")
    steps = [("demo THREAD.json ...", "replays threads of your own")]
    place = f" --url {_plain_url(config.url)}"
    if config.url == EMBEDDED:
        place = "" if config.data_dir is None else f" --data-dir {config.data_dir}"
        if not place:
            steps.append(("demo --data-dir DIR", "keeps the data for the next time"))
    steps.append((f"check{place} --database {config.database}", "tells whether a host would work with it"))
    steps.append(("check --config FILE", "does so for a host's configuration file"))
    for command, purpose in steps:
        console.print(f"  deerflow-mongo {command}\n      {purpose}", soft_wrap=True)


# -- check -----------------------------------------------------------------------------------------


@app.command()
def check(
    config: Annotated[
        Path | None, typer.Option("--config", help="A YAML file with the storage's configuration.")
    ] = None,
    section: Annotated[str, typer.Option("--section", help="The section of that file.")] = "storage",
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    database: Annotated[
        str | None, typer.Option("--database", help="The database; default: the URI's, else deerflow.")
    ] = None,
    driver: DriverOption = None,
    timeout_ms: Annotated[
        int, typer.Option("--timeout-ms", min=1, help="How long to wait for the server at most.")
    ] = CHECK_TIMEOUT_MS,
    setup: Annotated[
        bool, typer.Option("--setup", help="Make what is missing; without it nothing is changed.")
    ] = False,
) -> None:
    """Tell whether a host would work with a configuration.

    The exit code is 0 if it would, 1 if it would not, and 2 if the configuration itself is wrong.
    """
    with _explained():
        given = _options(url, data_dir, database, driver)
        storage = create_storage(given if config is None else _of_file(config, section, given))
        findings = asyncio.run(_stoppable(_examine(storage, timeout_ms, setup=setup)))
    _show_findings(_console(), findings)
    if any(finding.level == "PROBLEM" for finding in findings):
        raise typer.Exit(PROBLEM_EXIT)


def _of_file(file: Path, section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if given != _options(None, None, None, None):
        raise StorageConfigError("--config holds the whole configuration: leave --url and the like out")
    return load_config(file, section)


Level: TypeAlias = Literal["ok", "note", "PROBLEM"]
_STYLES: Mapping[Level, str] = {"ok": "green", "note": "yellow", "PROBLEM": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check. A problem would stop a host, a note would not."""

    level: Level
    subject: str
    text: str


def _show_findings(console: Console, findings: Sequence[Finding]) -> None:
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.subject, finding.text)
    console.print(table)
    problems, notes = (sum(x.level == level for x in findings) for level in ("PROBLEM", "note"))
    if problems:
        console.print(Text(f"A host would fail: {_counted(problems, 'problem')}.", style="bold red"))
    else:
        console.print(
            f"A host would work, with {_counted(notes, 'note')}." if notes else "A host would work."
        )


async def _examine(storage: Storage, timeout_ms: int, *, setup: bool) -> list[Finding]:
    if not isinstance(storage, MongoStorage):
        await storage.aclose()
        text = f"{type(storage).__name__} of another package; it was built, but not looked into"
        return [Finding("note", "backend", text)]
    examined, finding = _to_examine(storage.config, timeout_ms)
    await storage.aclose()
    if examined.driver == "mongomock":
        note = "mongomock has no server: data is kept in the host's memory until it ends; for tests only"
        return [finding, Finding("note", "server", note)]
    async with contextlib.aclosing(MongoStorage(examined)) as opened:
        return [finding, *await _look_at(opened, setup=setup)]


def _to_examine(config: MongoConfig, timeout_ms: int) -> tuple[MongoConfig, Finding]:
    """The configuration with a check's shorter patience, and without a folder that is yet to be made."""
    told = [f"url {_plain_url(config.url)}", f"database {config.database}", f"driver {config.driver}"]
    if config.collection_prefix:
        told.append(f"collection_prefix {config.collection_prefix}")
    told.append("timeout_ms as in url" if config.timeout_ms is None else f"timeout_ms {config.timeout_ms:,}")
    own_timeout_ms = config.timeout_ms or int(_uri_options(config.url).get("timeoutms", timeout_ms))
    changes: Document = {"timeout_ms": min(timeout_ms, own_timeout_ms or timeout_ms)}
    if config.data_dir is not None:
        told.append(f"data_dir {config.data_dir}")
        if _can_be_made(config.data_dir.expanduser().absolute()):
            told[-1] += " (a host's start makes it; checked in a temporary folder)"
            changes["data_dir"] = None
    finding = Finding("ok", "configuration", "; ".join(told))
    return config.model_copy(update=changes), finding


def _can_be_made(folder: Path) -> bool:
    """Whether a folder does not exist yet and this user may make it."""
    if folder.exists():
        return False
    return os.access(next(parent for parent in folder.parents if parent.exists()), os.W_OK | os.X_OK)


async def _look_at(storage: MongoStorage, *, setup: bool) -> list[Finding]:
    """Stops at the first thing that cannot be asked, which is then the last finding."""
    findings: list[Finding] = []
    try:
        for look in (_look_at_server, _look_at_writes):
            findings += await look(storage)
        if any(finding.level == "PROBLEM" for finding in findings):
            return findings
        seen = await _look_at_schema(storage)
        if setup and not any(finding.level == "PROBLEM" for finding in seen):
            await storage.setup()
            seen = [Finding("ok", "setup", "done"), *await _look_at_schema(storage)]
        findings += seen
    except StorageError as error:
        findings.append(_problem_of(error))
    return findings


_LOGIN_CODES = (18, 33, 8000)


def _problem_of(error: StorageError) -> Finding:
    if isinstance(error, StorageUnavailableError):
        return Finding(
            "PROBLEM",
            "server",
            f"{error}. Start it (of a replica set, a majority), or correct the hosts in `url`",
        )
    if isinstance(error, StorageAccessError):
        if getattr(error.__cause__, "code", None) in _LOGIN_CODES:
            advice = "Check the user, the password and authSource in `url`"
        else:
            advice = "Log in (user:password@ in `url`), or grant the user the role readWrite on the database"
        return Finding("PROBLEM", "login", f"{error}. {advice}")
    return Finding("PROBLEM", "server", str(error))


# -- check: the server -----------------------------------------------------------------------------


async def _look_at_server(storage: MongoStorage) -> list[Finding]:
    async def ask(command: str) -> tuple[Document, float]:
        started = time.perf_counter()
        answer = await storage.driver.command({command: 1}, database="admin")
        return answer, (time.perf_counter() - started) * 1000

    _, first_ms = await ask("ping")
    _, ping_ms = await ask("ping")
    reached = f"reached and answering in {first_ms:,.0f} ms; the next ping took {ping_ms:,.1f} ms"
    build, _ = await ask("buildInfo")
    hello, _ = await ask("hello")
    return [Finding("ok", "server", reached), version_finding(build), topology_finding(hello)]


def version_finding(build: Mapping[str, Any]) -> Finding:
    """What an answer to `buildInfo` means for a host."""
    version = str(build["version"])
    needed = f"{OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or later is needed, {TESTED_SERVER} is tested"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_SERVER:
        return Finding("PROBLEM", "version", f"MongoDB {version} is too old: {needed}. Upgrade the server")
    return Finding("ok", "version", f"MongoDB {version} ({needed})")


def topology_finding(hello: Mapping[str, Any]) -> Finding:
    """What an answer to `hello` means for a host."""
    writable = bool(hello.get("isWritablePrimary"))
    if hello.get("msg") == "isdbgrid":
        return Finding("ok", "topology", "sharded cluster, through a mongos")
    if hello.get("isreplicaset"):
        text = "the server waits to become part of a replica set: run rs.initiate() on it"
        return Finding("PROBLEM", "topology", text)
    name, members = hello.get("setName"), list(hello.get("hosts", ()))
    if name is not None:
        there = f"replica set {name}, {_counted(len(members), 'member')} ({', '.join(members)})"
        if writable:
            return Finding("ok", "topology", f"{there}, connected to the primary {hello.get('primary')}")
        text = f"connected to {hello.get('me')}, which is not the primary and takes no writes"
        advice = f"name the set in `url` (replicaSet={name}) and leave directConnection out"
        return Finding("PROBLEM", "topology", f"{there}: {text}; {advice}")
    if not writable:
        return Finding("PROBLEM", "topology", "the server takes no writes; make it writable")
    text = (
        "standalone: no retryable writes, so a lost connection is an error where a replica set only pauses, "
    )
    return Finding("note", "topology", text + "and no failover. Run it as a replica set, be it of one")


def _uri_options(url: str) -> dict[str, str]:
    return {name.lower(): value for name, value in parse_qsl(url.partition("?")[2])}


async def _look_at_writes(storage: MongoStorage) -> list[Finding]:
    """The write concern in force, and the storage engine where the user may know it."""
    concern: Document = (await storage.driver.opened()).write_concern.document
    findings = [_write_concern_finding(concern)]
    if _uri_options(storage.config.url).get("retrywrites", "").lower() == "false":
        text = "`url` says retryWrites=false: a lost connection may count tokens twice. Take it out"
        findings.append(Finding("note", "writes", text))
    with contextlib.suppress(StorageAccessError):
        status = await storage.driver.command({"serverStatus": 1}, database="admin")
        engine = status.get("storageEngine", {})
        if engine.get("persistent", True):
            findings.append(Finding("ok", "storage", f"engine {engine.get('name', 'unknown')}"))
        else:
            text = f"engine {engine.get('name')} keeps nothing when the server stops"
            findings.append(Finding("note", "storage", text))
    return findings


def _write_concern_finding(concern: Mapping[str, Any]) -> Finding:
    told = ", ".join(f"{name}={value}" for name, value in concern.items())
    if concern.get("w") == 1:
        text = f"write concern {told}: an acknowledged write may be lost in a failover. Take w out of `url`"
        return Finding("note", "writes", text)
    return Finding("ok", "writes", f"write concern {told}")


# -- check: the database ---------------------------------------------------------------------------


async def _look_at_schema(storage: MongoStorage) -> list[Finding]:
    config, driver = storage.config, storage.driver
    report = await storage.inspect()
    present = await driver.list_collections()
    in_the_way: list[str] = []
    outdated: list[str] = []
    for schema in COLLECTIONS:
        name = config.collection_prefix + schema.name
        if name in present:
            in_the_way += renamed_indexes(name, schema, await driver.list_indexes(name))
            if present[name].get("validator") != {"$jsonSchema": schema.validator}:
                outdated.append(name)
    status = await driver.command({"connectionStatus": 1, "showPrivileges": True}, database="admin")
    return [
        login_finding(status["authInfo"], config, report, outdated),
        version_of_schema(report, config.database),
        *_missing(report, outdated),
        *_index_problems(report, in_the_way),
    ]


def renamed_indexes(name: str, schema: CollectionSchema, found: Sequence[Document]) -> Iterator[str]:
    """Indexes that the server takes for one of ours under another name, and so refuses to make ours."""
    for index in schema.indexes:
        wanted = index.specification()
        for other in found:
            same_keys = list(dict(other["key"]).items()) == list(index.keys)
            same_kind = all(
                other.get(option) == wanted.get(option) for option in ("unique", "partialFilterExpression")
            )
            if other["name"] != index.name and same_keys and same_kind:
                yield f"{name}.{other['name']}"


def version_of_schema(report: SchemaReport, database: str) -> Finding:
    known, version = codec.SCHEMA_VERSION, report.version
    if version is not None and version > known:
        text = f"database {database} has schema version {version}, this release knows up to {known}"
        return Finding("PROBLEM", "schema", f"{text}: upgrade deerflow-mongo")
    if version is None:
        return Finding("note", "schema", "no schema version yet; a host's start writes it")
    have = _counted(len(report.collections), "collection")
    return Finding("ok", "schema", f"version {version}, {have}, {_counted(len(report.indexes), 'index')}")


def _missing(report: SchemaReport, outdated: Sequence[str]) -> Iterator[Finding]:
    made = "a host's start makes them"
    if report.missing_collections:
        yield Finding("note", "collections", f"missing: {', '.join(report.missing_collections)}; {made}")
    existing = [
        name for name in report.missing_indexes if name.rpartition(".")[0] not in report.missing_collections
    ]
    if existing:
        yield Finding("note", "indexes", f"missing: {', '.join(existing)}; {made}")
    if outdated:
        yield Finding("note", "validators", f"not this release's: {', '.join(outdated)}; {made}")


def _index_problems(report: SchemaReport, in_the_way: Sequence[str]) -> Iterator[Finding]:
    for label, what in (
        *((label, "has our name and other keys or options") for label in report.other_indexes),
        *((label, "has our keys and another name") for label in in_the_way),
    ):
        collection, _, index = label.rpartition(".")
        drop = f'db.getCollection("{collection}").dropIndex("{index}")'
        yield Finding("PROBLEM", "indexes", f"{label} {what}: drop it with {drop}; a host's start makes ours")


def login_finding(
    login: Mapping[str, Any], config: MongoConfig, report: SchemaReport, outdated: Sequence[str]
) -> Finding:
    """Whether the user may do what a host does, as `connectionStatus` tells it."""
    users = [f"{user['user']}@{user['db']}" for user in login.get("authenticatedUsers", ())]
    if not users:
        return Finding("ok", "login", "none is needed: the server has no access control")
    needed = ["find", "insert", "update", "remove", "createIndex"]
    needed += ["createCollection"] if report.missing_collections else []
    needed += ["collMod"] if outdated else []
    collections = [config.collection_prefix + schema.name for schema in COLLECTIONS]
    privileges: Sequence[Document] = login.get("authenticatedUserPrivileges", ())
    denied = [
        action
        for action in needed
        if not all(_allows(privileges, action, config.database, name) for name in collections)
    ]
    who = f"as {', '.join(users)}"
    if denied:
        role = "readWrite and dbAdmin" if "collMod" in denied else "readWrite"
        text = f"{who}, who may not {', '.join(denied)} in database {config.database}"
        return Finding("PROBLEM", "login", f"{text}: grant the role {role} there")
    return Finding("ok", "login", f"{who}, who may do all that a host does")


def _allows(privileges: Sequence[Document], action: str, database: str, collection: str) -> bool:
    return any(
        action in privilege["actions"] and _covers(privilege["resource"], database, collection)
        for privilege in privileges
    )


def _covers(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in ("", database) and resource.get("collection") in ("", collection)


if __name__ == "__main__":
    main()
