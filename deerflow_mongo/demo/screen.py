"""The demo's output of one screen: what each user's replay stored, the consistency check, the next commands.

At most 24 lines of 80 columns, the prompts around it included. The long output is in `details.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..mongodb.config import EMBEDDED, MongoConfig, names_database, redacted
from .consistency import ConsistencyReport, WriteCount
from .summary import Summary, UserTotals
from .text import cell, counted, plain

DEMO_DATABASE = "deerflow_demo"
EXAMPLE_DATA_DIR = "demo-db"

Command: TypeAlias = tuple[str, ...]
"""A command line in parts: the command with its arguments, then each option."""

MAX_USER_ROWS = 3
MAX_DIFFERENCES_SHOWN = 5
_GAP = 2
_INDENT = "  "


def show_screen(
    console: Console, summary: Summary, report: ConsistencyReport, commands: Sequence[Command]
) -> None:
    """Print the screen. Where the check found a difference, that is printed in place of the next commands."""
    _show_users(console, summary)
    console.print()
    _show_check(console, report)
    console.print()
    if report.passed:
        console.print("Next, in this order:")
        for command in commands:
            console.print(Text(broken(command, console.width)), soft_wrap=True)
    else:
        _show_differences(console, report)


def _show_users(console: Console, summary: Summary) -> None:
    replayed, totals = summary.replayed, summary.by_user
    title = (
        f"Replayed {counted(replayed.threads, 'thread')} of {counted(len(replayed.users), 'user')} at once "
        f"on {_server(summary)}:"
    )
    console.print(cell(title, console.width))
    table = _table("user", "threads", "runs", "events", "tokens")
    shown = len(totals) if len(totals) <= MAX_USER_ROWS else MAX_USER_ROWS - 1
    for row in totals[:shown]:
        _add_user(table, plain(row.user or "nobody"), [row])
    if others := totals[shown:]:
        _add_user(table, f"{len(others):,} more", others)
    _add_user(table, "all", totals)
    console.print(table)


def _server(summary: Summary) -> str:
    version, data_dir = summary.server["version"], summary.server["data_dir"]
    if version is None:
        return "mongomock, without a server"
    is_temporary = summary.server["url"] == EMBEDDED and data_dir is None
    return f"MongoDB {version}" + (" (temporary server)" if is_temporary else "")


def _add_user(table: Table, name: str, rows: Sequence[UserTotals]) -> None:
    columns = ("threads", "runs", "events", "tokens")
    table.add_row(cell(name, 20), *(f"{sum(getattr(row, column) for row in rows):,}" for column in columns))


def _show_check(console: Console, report: ConsistencyReport) -> None:
    console.print(
        f"Consistency check: {report.writers} writers at once on the same {counted(report.runs, 'run')} for "
        f"{report.duration_ms / 1000:.1f} s,"
    )
    console.print("then every acknowledged write was looked up in the database:")
    table = _table("writes", "acknowledged", "lost", "doubled")
    table.add_column(f"{' ' * _GAP}in the database", no_wrap=True)
    gaps = report.missing_numbers
    numbers = "numbers without a gap" if gaps == 0 else f"{counted(gaps, 'number')} missing"
    tokens = f"{report.stored_tokens:,} of {report.recorded_tokens:,} tokens"
    votes = f"{report.stored_votes:,} votes, {report.expected_votes:,} expected"
    if not (report.vote_upserts.lost or report.vote_upserts.doubled):
        votes = f"{counted(report.stored_votes, 'vote')}: one per user and run"
    _add_count(table, "run events", report.run_events, numbers)
    _add_count(table, "token records", report.token_records, tokens)
    _add_count(table, "vote upserts", report.vote_upserts, votes)
    _add_count(table, "all", report.total, "PASSED" if report.passed else "FAILED")
    console.print(table)


def _add_count(table: Table, name: str, count: WriteCount, found: str) -> None:
    style = "bold red" if count.lost or count.doubled or found == "FAILED" else ""
    numbers = (f"{count.acknowledged:,}", f"{count.lost:,}", f"{count.doubled:,}")
    table.add_row(name, *numbers, f"{' ' * _GAP}{found}", style=style)


def _table(name: str, *numbers: str) -> Table:
    # The gaps are in the widths: versions of rich pad the last column differently.
    table = Table(box=None, pad_edge=False, padding=0)
    table.add_column(name, no_wrap=True, min_width=13)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True, min_width=max(7, len(number)) + _GAP)
    return table


def _show_differences(console: Console, report: ConsistencyReport) -> None:
    console.print(Text("Differences between what was acknowledged and what is stored:", style="bold red"))
    for difference in report.differences[:MAX_DIFFERENCES_SHOWN]:
        console.print(Text(_INDENT + plain(difference)), soft_wrap=True)
    if (more := len(report.differences) - MAX_DIFFERENCES_SHOWN) > 0:
        console.print(f"{_INDENT}... and {more:,} more")
    console.print("The threads of the check are still in the database.")


# -- the next commands -----------------------------------------------------------------------------


def next_commands(program: str, config: MongoConfig, url: str | None, thread_id: str) -> list[Command]:
    """Commands that work as printed, one after the other.

    `url` is the option as it was typed. `$NAME` stays as it is; a URL is set as a variable first, or, if it
    has a password, is left to the user. The data of a temporary server is gone after the demo, so that the
    first command creates data that stays.
    """
    commands: list[Command] = []
    database = f"--database {quote(config.database)}"
    is_default = config.database == DEMO_DATABASE and not names_database(config.url)
    options = () if is_default else (database,)
    driver = ("--driver motor",) if config.driver == "motor" else ()
    is_temporary = not config.has_server or (config.url == EMBEDDED and config.data_dir is None)
    if is_temporary:
        place = (f"--data-dir {EXAMPLE_DATA_DIR}", *driver)
        commands.append((f"{program} demo", *place, *options))
    elif config.data_dir is not None:
        place = (f"--data-dir {quote(str(config.data_dir))}", *driver)
    elif url is not None and url.startswith("$"):
        place = (f"--url {quote(url)}", *driver)
    else:
        place = ("--url '$MONGODB_URL'", *driver)
        has_secret = redacted(config.url) != config.url
        variable = f"export MONGODB_URL={quote(config.url)}"
        commands.append(("# with the URI of this demo in MONGODB_URL:" if has_secret else variable,))
    return [
        *commands,
        (f"{program} events {quote(thread_id)}", *place, *options),
        (f"{program} check", *place, database),
        (f"{program} demo --verbose", *place, *options),
    ]


def broken(command: Command, width: int) -> str:
    """The indented command, broken before an option by a backslash where it does not fit the width."""
    first, *options = command
    lines = [_INDENT + first]
    for position, option in enumerate(options, 1):
        room = width if position == len(options) else width - len(" \\")
        if len(lines[-1]) + len(f" {option}") <= room:
            lines[-1] += f" {option}"
        else:
            lines[-1] += " \\"
            lines.append(f"{_INDENT * 3}{option}")
    return "\n".join(lines)
