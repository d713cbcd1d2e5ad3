"""The command's options that stand before a command, and the commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .check import check
from .demo import demo
from .events import events

ABOUT = "MongoDB storage for DeerFlow: see it work, check a configuration, read a thread's run events."

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
)
app.command()(demo)
app.command()(check)
app.command()(events)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deerflow-mongo {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """`--version` has ended the process by then."""
