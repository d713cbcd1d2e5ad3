"""The demo's long output, for `--verbose`: tables of what was stored, a thread's messages, a document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..mongodb.config import EMBEDDED
from .recording import HOW_TOKENS_ARE_COUNTED
from .replay import HOW_EVENTS_ARE_STORED, HOW_USERS_VOTE
from .summary import MAX_THREADS_SUMMED, ROWS_SHOWN, STORY_PAGE, Document, Summary
from .text import cell, counted, json_text, plain

ID_WIDTH, USER_WIDTH, STATUS_WIDTH, MODEL_WIDTH = 8, 9, 11, 20
TIME_WIDTH, TYPE_WIDTH, WHO_WIDTH = 8, 13, 10
MAX_ITEMS_SHOWN = 12
_MAX_VALUE_SHOWN = 60


def show_details(console: Console, summary: Summary) -> None:
    """Print everything in the summary."""
    _show_replay(console, summary)
    _show_counts(console, summary)
    _show_tokens(console, summary)
    _show_runs(console, summary)
    _show_threads(console, summary)
    _show_story(console, summary.story)
    _show_one_run(console, summary)
    console.print()


def _show_replay(console: Console, summary: Summary) -> None:
    replayed, users = summary.replayed, summary.replayed.users
    names = ", ".join(users[:MAX_ITEMS_SHOWN]) + (", ..." if len(users) > MAX_ITEMS_SHOWN else "")
    console.print(
        f"Replayed {counted(replayed.threads, 'thread')} of {counted(len(users), 'user')} ({names}) as "
        f"{counted(replayed.runs, 'run')} with {counted(replayed.events, 'run event')} in "
        f"{replayed.duration_ms:,} ms."
    )
    for thread_id, owner in replayed.other_owners[:ROWS_SHOWN]:
        console.print(f"Thread {plain(thread_id)} and its new runs belong to its owner, {plain(owner)}.")
    _show_rest(console, ROWS_SHOWN, len(replayed.other_owners))
    console.print(f"Tokens: {HOW_TOKENS_ARE_COUNTED}")
    console.print(f"Votes: {HOW_USERS_VOTE}")
    console.print(f"Events: {HOW_EVENTS_ARE_STORED}")


def _show_counts(console: Console, summary: Summary) -> None:
    server = summary.server
    _heading(console, "What the database contains")
    name = "mongomock, no server" if server["version"] is None else f"MongoDB {server['version']}"
    console.print(f"{name}, {_place(server)}, database {server['database']}, driver {server['driver']}.")
    console.print(f"Runs before: {summary.runs_before:,}; now: {summary.runs_now:,}.")
    console.print(f"Run events before: {summary.events_before:,}; now: {summary.events_now:,}.")
    _heading(console, "Runs by status")
    table = _table("status", "runs", right=("runs",))
    for status, runs in summary.runs_by_status.items():
        table.add_row(cell(status, 40), f"{runs:,}")
    console.print(table)
    _heading(console, "Run events by category")
    table = _table("category", "events", right=("events",))
    for category, events in list(summary.events_by_category.items())[:ROWS_SHOWN]:
        table.add_row(cell(category, 40), f"{events:,}")
    console.print(table)
    _show_rest(console, ROWS_SHOWN, len(summary.events_by_category))


def _place(server: Document) -> str:
    if server["version"] is None:
        return "in this process's memory"
    if server["url"] != EMBEDDED:
        return f"at {server['url']}"
    return "in a temporary folder" if server["data_dir"] is None else f"in {server['data_dir']}"


def _show_tokens(console: Console, summary: Summary) -> None:
    summed = min(summary.threads_now, MAX_THREADS_SUMMED)
    _heading(console, f"Tokens by model (of {counted(summed, 'thread')})")
    names = ("runs", "llm_calls", "input_tokens", "output_tokens", "tokens")
    headings = [name.removesuffix("_tokens").removeprefix("llm_") for name in names]
    table = _table("model", *headings, right=headings)
    by_model = sorted(summary.tokens["by_model"].items(), key=lambda item: -item[1]["tokens"])
    for model, usage in by_model[:ROWS_SHOWN]:
        table.add_row(cell(model, MODEL_WIDTH), *(f"{usage[name]:,}" for name in names))
    console.print(table)
    _show_rest(console, ROWS_SHOWN, len(by_model))
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
    _show_rest(console, len(summary.newest_runs), summary.runs_now)


def _show_threads(console: Console, summary: Summary) -> None:
    _heading(console, "Threads, newest first")
    table = _table("thread", "owner", "status", "title")
    for thread in summary.threads:
        table.add_row(
            plain(thread["thread_id"])[:ID_WIDTH],
            cell(thread["user_id"], USER_WIDTH),
            cell(thread["status"], STATUS_WIDTH),
            cell(thread["display_name"], max(10, console.width - ID_WIDTH - USER_WIDTH - STATUS_WIDTH - 6)),
        )
    console.print(table)
    _show_rest(console, len(summary.threads), summary.threads_now)
    access = summary.ownership
    console.print(
        f"In thread {plain(access['thread_id'])}, {plain(access['owner'] or 'everybody')} can read "
        f"{counted(access['owner_sees'], 'run')} and {plain(access['other'])} {access['other_sees']:,}."
    )


def _show_story(console: Console, story: Document) -> None:
    _heading(console, f"One thread's messages, {STORY_PAGE} per page, from run_events.list_messages")
    shown = [line for page in story["pages"] for line in page["messages"]]
    table = _table("after", "seq", "time", "type", "who", "words", right=("after", "seq"))
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
    _show_rest(console, len(shown), story["messages"])
    console.print(
        f"Thread {plain(story['thread_id'])} of {plain(story['owner'] or 'everybody')} has "
        f"{counted(story['messages'], 'message')}. Each page starts after the last seq of the previous page; "
        "seqs that are missing here are events of another category."
    )


def _show_one_run(console: Console, summary: Summary) -> None:
    row = next(row for row in summary.newest_runs if row["run_id"] == summary.document["_id"])
    _heading(console, "One run's row, from runs.get")
    table = Table.grid(padding=(0, 2))
    for name, value in row.items():
        table.add_row(name, plain(json.dumps(value, ensure_ascii=False)))
    console.print(table)
    _heading(console, "The same run, as it is stored")
    shortened = json.dumps(_shortened(summary.document), ensure_ascii=False, indent=2, default=json_text)
    console.print(Text(shortened), soft_wrap=True)


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value, _MAX_VALUE_SHOWN)
    if isinstance(value, dict):
        items = cast("Document", value).items()
        return {
            plain(key, _MAX_VALUE_SHOWN): _shortened(item) for key, item in islice(items, 2 * MAX_ITEMS_SHOWN)
        }
    if isinstance(value, list):
        return [_shortened(item) for item in cast("list[Any]", value)[:MAX_ITEMS_SHOWN]]
    return value


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _show_rest(console: Console, shown: int, total: int) -> None:
    if total > shown:
        console.print(f"... and {total - shown:,} more")
