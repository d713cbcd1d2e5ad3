"""`deerflow-mongo demo`: replays recorded threads and shows what the database then says.

What is shown is asked of the database, through the stores or their driver; how a thread is replayed is in
`replay.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, TypeAlias, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..contract.factory import create_storage
from ..contract.rows import FeedbackTotals, RunEventRow, RunRow, TokenUsage
from ..demo.replay import (
    HOW_EVENTS_ARE_KEPT,
    HOW_TOKENS_COUNT,
    HOW_USERS_VOTE,
    RecordedThread,
    RecordingError,
    ReplayedThread,
    Replayer,
    load_thread,
)
from ..mongodb.config import EMBEDDED, MongoConfig, redacted
from ..mongodb.documents.runs import run_row
from ..mongodb.schema import NEWEST_FIRST, RUN_EVENTS, RUNS, THREADS
from ..mongodb.storage import MongoStorage
from .events import words_of
from .options import DEMO_DATABASE, DataDirOption, DriverOption, UrlOption, options_given
from .terminal import (
    PROBLEM_EXIT,
    and_more,
    cell,
    console_for,
    counted,
    explained,
    failed_events,
    failure,
    heading,
    json_of,
    json_text,
    plain,
    stoppable,
    table_of,
)

Document: TypeAlias = dict[str, Any]

SAMPLE = Path(__file__).parents[1] / "demo" / "samples" / "weather.json"
USER_NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
MAX_USERS = 1_000

ROWS_SHOWN = 20
THREADS_SUMMED = 1_000
ID_WIDTH, USER_WIDTH, STATUS_WIDTH, MODEL_WIDTH = 8, 9, 11, 20
TIME_WIDTH, TYPE_WIDTH, WHO_WIDTH = 8, 13, 10
MAX_ITEMS_SHOWN = 12
STORY_PAGE, STORY_PAGES = 5, 5


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
    would write, and every message one run event; the threads of several users are replayed at once.
    Replaying again adds runs to the same threads.
    """
    with explained():
        names = _user_names(users)
        threads = _recordings(files or [], names)
        storage = cast("MongoStorage", create_storage(options_given(url, data_dir, database, driver)))
        with failed_events() as failed:
            summary = asyncio.run(stoppable(_replay_and_ask(storage, threads, names)))
        console = console_for()
        if as_json:
            typer.echo(json_of(asdict(summary), indent=2))
        else:
            _show_summary(console, summary, storage.config)
        if failed.count:
            raise failure(
                f"{counted(failed.count, 'write')} could not be stored, as told above", PROBLEM_EXIT
            )


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
    events_before: int
    events_now: int
    events_by_category: dict[str, int]
    tokens: TokenUsage
    newest_runs: list[RunRow]
    votes: list[FeedbackTotals]
    threads_now: int
    threads: list[Document]
    ownership: Document
    story: Document
    document: Document
    rules: Document = field(
        default_factory=lambda: {
            "tokens": HOW_TOKENS_COUNT,
            "votes": HOW_USERS_VOTE,
            "events": HOW_EVENTS_ARE_KEPT,
        }
    )


async def _replay_and_ask(
    storage: MongoStorage, threads: Sequence[RecordedThread], users: Sequence[str]
) -> Summary:
    console = console_for(stderr=True)
    try:
        with console.status("opening the database") if console.is_terminal else contextlib.nullcontext():
            await storage.setup()
        questions = _Questions(storage)
        runs_before = sum((await questions.runs_by_status()).values())
        events_before = sum((await questions.events_by_category()).values())
        turns = sum(len(thread.turns) for thread in threads)
        started = time.perf_counter()
        with _progress(console, turns) as step:
            replayed = await Replayer(storage, users, step).replay(threads)
        spent_ms = round((time.perf_counter() - started) * 1000)
        word: Document = {
            "threads": len(threads),
            "runs": turns,
            "events": sum(thread.event_count for thread in replayed),
            "users": list(users),
            "duration_ms": spent_ms,
        }
        word["kept_owners"] = [[x.thread_id, x.owner] for x in replayed if x.owner != x.asked_for]
        return await questions.summary(word, replayed[0], runs_before, events_before)
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
        self._events = storage.driver.collection(prefix + RUN_EVENTS)

    async def runs_by_status(self) -> dict[str, int]:
        groups = await self._runs.aggregate(
            [{"$group": {"_id": "$status", "runs": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
        )
        return {group["_id"]: group["runs"] for group in groups}

    async def events_by_category(self) -> dict[str, int]:
        """Of all threads; what has no category is no event, but keeps a thread's numbers."""
        groups = await self._events.aggregate(
            [
                {"$match": {"category": {"$exists": True}}},
                {"$group": {"_id": "$category", "events": {"$sum": 1}}},
                {"$sort": {"_id": 1}},
            ]
        )
        return {group["_id"]: group["events"] for group in groups}

    async def summary(
        self, replayed: Document, told: ReplayedThread, runs_before: int, events_before: int
    ) -> Summary:
        """`told` is the thread whose story is shown."""
        storage, by_status = self._storage, await self.runs_by_status()
        by_category = await self.events_by_category()
        documents = await self._runs.find({}, sort=NEWEST_FIRST, limit=ROWS_SHOWN)
        rows = [run_row(document) for document in documents]
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
            events_before=events_before,
            events_now=sum(by_category.values()),
            events_by_category=by_category,
            tokens=_sum_of(usages),
            newest_runs=rows,
            votes=[await storage.feedback.aggregate_by_run(row["thread_id"], row["run_id"]) for row in rows],
            threads_now=counts[0]["threads"],
            threads=[asdict(thread) for thread in threads[:ROWS_SHOWN]],
            ownership=await self._ownership(rows[most_calls], replayed["users"]),
            story=await self._story(told),
            document=documents[most_calls],
        )

    async def _story(self, thread: ReplayedThread) -> Document:
        """A thread's messages as a host's page would read them, page after page from the first."""
        events, thread_id = self._storage.run_events, thread.thread_id
        pages: list[Document] = []
        after_seq = 0
        while len(pages) < STORY_PAGES:
            rows = await events.list_messages(thread_id, after_seq=after_seq, limit=STORY_PAGE)
            if not rows:
                break
            pages.append({"after_seq": after_seq, "messages": [_told(row, thread.owner) for row in rows]})
            after_seq = rows[-1]["seq"]
        messages = await events.count_messages(thread_id)
        return {"thread_id": thread_id, "owner": thread.owner, "messages": messages, "pages": pages}

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


def _told(row: RunEventRow, owner: str | None) -> Document:
    """A line of a story: a tool goes by its name, a model by who called it, a human by the thread's owner."""
    content, caller = row["content"], row["metadata"].get("caller")
    name = content.get("name") if isinstance(content, dict) else None
    return {
        "seq": row["seq"],
        "created_at": row["created_at"],
        "run_id": row["run_id"],
        "event_type": row["event_type"],
        "who": str(name or caller or owner or "everybody"),
        "words": words_of(content),
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
        "url": None if in_memory else plain(redacted(config.url)),
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
    _show_story(console, summary.story)
    _show_one_run(console, summary)
    _show_next_steps(console, summary, config)


def _show_replay(console: Console, summary: Summary, config: MongoConfig) -> None:
    replayed, users = summary.replayed, summary.replayed["users"]
    names = ", ".join(users[:MAX_ITEMS_SHOWN]) + (", ..." if len(users) > MAX_ITEMS_SHOWN else "")
    console.print(
        f"Replayed {counted(replayed['threads'], 'thread')} of {counted(len(users), 'user')} ({names}) as "
        f"{counted(replayed['runs'], 'run')} with {counted(replayed['events'], 'run event')} in "
        f"{replayed['duration_ms']:,} ms."
    )
    for thread_id, owner in replayed["kept_owners"][:ROWS_SHOWN]:
        console.print(f"Thread {plain(thread_id)} stays with its owner, {plain(owner)}, and so do its runs.")
    and_more(console, ROWS_SHOWN, len(replayed["kept_owners"]))
    console.print(f"Tokens: {HOW_TOKENS_COUNT}")
    console.print(f"Votes: {HOW_USERS_VOTE}")
    console.print(f"Events: {HOW_EVENTS_ARE_KEPT}")
    heading(console, "What the database says")
    version = summary.server["version"]
    server = "mongomock, no server" if version is None else f"MongoDB {version}"
    console.print(f"{server}, {_place(config)}, database {config.database}, driver {config.driver}.")
    console.print(f"Runs before: {summary.runs_before:,}; now: {summary.runs_now:,}.")
    console.print(f"Run events before: {summary.events_before:,}; now: {summary.events_now:,}.")


def _place(config: MongoConfig) -> str:
    if config.driver == "mongomock":
        return "in this process's memory"
    if config.url != EMBEDDED:
        return f"at {plain(redacted(config.url))}"
    return "in a temporary folder" if config.data_dir is None else f"in {config.data_dir}"


def _show_figures(console: Console, summary: Summary) -> None:
    heading(console, "Runs by status")
    table = table_of("status", "runs", right=("runs",))
    for status, runs in summary.runs_by_status.items():
        table.add_row(cell(status, 40), f"{runs:,}")
    console.print(table)
    heading(console, "Run events by category")
    table = table_of("category", "events", right=("events",))
    for category, events in list(summary.events_by_category.items())[:ROWS_SHOWN]:
        table.add_row(cell(category, 40), f"{events:,}")
    console.print(table)
    and_more(console, ROWS_SHOWN, len(summary.events_by_category))
    summed = min(summary.threads_now, THREADS_SUMMED)
    heading(console, f"Tokens by model (of {counted(summed, 'thread')})")
    figures = ("runs", "llm_calls", "input_tokens", "output_tokens", "tokens")
    heads = [name.removesuffix("_tokens").removeprefix("llm_") for name in figures]
    table = table_of("model", *heads, right=heads)
    by_model = sorted(summary.tokens["by_model"].items(), key=lambda item: -item[1]["tokens"])
    for model, usage in by_model[:ROWS_SHOWN]:
        table.add_row(cell(model, MODEL_WIDTH), *(f"{usage[name]:,}" for name in figures))
    console.print(table)
    and_more(console, ROWS_SHOWN, len(by_model))
    heading(console, "Tokens by caller")
    table = table_of("caller", "tokens", right=("tokens",))
    for caller, tokens in summary.tokens["by_caller"].items():
        table.add_row(caller, f"{tokens:,}")
    table.add_row("all", f"{summary.tokens['total_tokens']:,}")
    console.print(table)


def _show_runs(console: Console, summary: Summary) -> None:
    heading(console, "Runs, newest first, with their votes")
    right = ("tokens", "calls", "+1", "-1")
    table = table_of("run", "user", "status", "model", *right, right=right)
    for row, votes in zip(summary.newest_runs, summary.votes, strict=True):
        table.add_row(
            plain(row["run_id"])[:ID_WIDTH],
            cell(row["user_id"], USER_WIDTH),
            cell(row["status"], STATUS_WIDTH),
            cell(row["model_name"], MODEL_WIDTH),
            f"{row['total_tokens']:,}",
            f"{row['llm_call_count']:,}",
            f"{votes['positive']:,}",
            f"{votes['negative']:,}",
        )
    console.print(table)
    and_more(console, len(summary.newest_runs), summary.runs_now)


def _show_threads(console: Console, summary: Summary) -> None:
    heading(console, "Threads, newest first")
    table = table_of("thread", "owner", "status", "title")
    for thread in summary.threads:
        table.add_row(
            plain(thread["thread_id"])[:ID_WIDTH],
            cell(thread["user_id"], USER_WIDTH),
            cell(thread["status"], STATUS_WIDTH),
            cell(thread["display_name"], max(10, console.width - ID_WIDTH - USER_WIDTH - STATUS_WIDTH - 6)),
        )
    console.print(table)
    and_more(console, len(summary.threads), summary.threads_now)
    seen = summary.ownership
    console.print(
        f"Of thread {plain(seen['thread_id'])}, {plain(seen['owner'] or 'everybody')} is shown "
        f"{counted(seen['owner_sees'], 'run')} and {plain(seen['other'])} {seen['other_sees']:,}."
    )


def _show_story(console: Console, story: Document) -> None:
    heading(console, f"One thread's messages, {STORY_PAGE} a page, as run_events.list_messages gives them")
    shown = [line for page in story["pages"] for line in page["messages"]]
    table = table_of("after", "seq", "time", "type", "who", "words", right=("after", "seq"))
    digits = len(str(max((line["seq"] for line in shown), default=0)))
    widths = max(5, digits) + max(3, digits) + TIME_WIDTH + TYPE_WIDTH + WHO_WIDTH + 10
    for page in story["pages"]:
        for position, line in enumerate(page["messages"]):
            table.add_row(
                "" if position else f"{page['after_seq']}",
                f"{line['seq']}",
                plain(line["created_at"])[11:19],
                cell(line["event_type"], TYPE_WIDTH),
                cell(line["who"], WHO_WIDTH),
                cell(line["words"], max(10, console.width - widths)),
            )
    console.print(table)
    and_more(console, len(shown), story["messages"])
    console.print(
        f"Thread {plain(story['thread_id'])} of {plain(story['owner'] or 'everybody')} has "
        f"{counted(story['messages'], 'message')}. A page begins after the last seq of the one before; "
        "numbers that are not shown are events of another category."
    )


def _show_one_run(console: Console, summary: Summary) -> None:
    row = next(row for row in summary.newest_runs if row["run_id"] == summary.document["_id"])
    heading(console, "One run's row, as runs.get gives it")
    table = Table.grid(padding=(0, 2))
    for name, value in row.items():
        table.add_row(name, plain(json.dumps(value, ensure_ascii=False)))
    console.print(table)
    heading(console, "The same run, as it is stored")
    shortened = json.dumps(_shortened(summary.document), ensure_ascii=False, indent=2, default=json_text)
    console.print(Text(shortened), soft_wrap=True)


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value, 60)
    if isinstance(value, dict):
        items = cast("Document", value).items()
        return {plain(key, 60): _shortened(item) for key, item in islice(items, 2 * MAX_ITEMS_SHOWN)}
    if isinstance(value, list):
        return [_shortened(item) for item in cast("list[Any]", value)[:MAX_ITEMS_SHOWN]]
    return value


def _show_next_steps(console: Console, summary: Summary, config: MongoConfig) -> None:
    heading(console, "What to do next")
    steps = [("demo THREAD.json ...", "replays threads of your own")]
    place, thread = f" --url {quote(plain(redacted(config.url)))}", plain(summary.story["thread_id"])
    if config.url == EMBEDDED:
        place = "" if config.data_dir is None else f" --data-dir {quote(str(config.data_dir))}"
        if not place:
            steps.append(("demo --data-dir DIR", "keeps the data for the next time"))
    database = "" if config.database == DEMO_DATABASE else f" --database {quote(config.database)}"
    kept = f"{place or ' --data-dir DIR'}{database}"
    steps.append((f"events {quote(thread)}{kept}", "prints that thread's run events, as they are kept there"))
    steps.append((f"events {quote(thread)}{kept} --follow", "goes on with every new one, until Ctrl-C"))
    steps.append((f"check{place} --database {config.database}", "tells whether a host would work with it"))
    steps.append(("check --config FILE", "does so for a host's configuration file"))
    for command, purpose in steps:
        console.print(f"  deerflow-mongo {command}\n      {purpose}", soft_wrap=True)
