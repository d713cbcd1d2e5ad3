"""The command line's own options, and its commands with their examples."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .. import __version__
from . import checkpoints
from .check import check
from .demo import demo
from .events import events
from .lists import runs, threads
from .purge import purge
from .transfer import transfer

ABOUT = (
    "MongoDB storage for DeerFlow: see it work on a real server, check a host's configuration, list threads, "
    "runs and run events, erase threads and users, move in from SQL, copy, measure and prune checkpoints."
)
EXAMPLES = {
    "demo": ["", "--users 5 --verbose", "--data-dir demo-db"],
    "check": ["--config config.yaml", "--url mongodb://localhost:27017 --setup"],
    "events": [
        "THREAD --data-dir demo-db",
        "THREAD --data-dir demo-db --tail 5",
        "THREAD --config config.yaml --follow",
    ],
    "threads": ["--data-dir demo-db", "--config config.yaml --user USER --since 7d"],
    "runs": ["--data-dir demo-db --limit 5", "THREAD --config config.yaml --status error --json"],
    "purge": [
        "--thread THREAD --config config.yaml",
        "--user USER --url mongodb://localhost:27017 --dry-run",
        "--older-than 90d --status idle --config config.yaml",
    ],
    "transfer": [
        "--from sqlite:////srv/deer-flow/data/deerflow.db --dry-run",
        "--from '$DEERFLOW_SQL_URL' --config config.yaml",
    ],
    "checkpoints stats": ["--config config.yaml", "--url mongodb://localhost:27017 --limit 5"],
    "checkpoints prune": ["--config config.yaml --keep-last 20 --older-than 30d --dry-run"],
    "checkpoints copy": [
        "--from sqlite:///checkpoints.db --config config.yaml",
        "--from '$CHECKPOINTS_URL' --url mongodb://localhost:27017 --dry-run",
    ],
}
"""The arguments of each command's examples, by the command's name as it is typed."""


def _group(**options: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
        rich_markup_mode=None,
        **options,
    )


app = _group()
checkpoints_app = _group(
    help="LangGraph's checkpoints: what they take up, deleting old ones, copying those of another saver."
)
app.add_typer(checkpoints_app, name="checkpoints")


class _CommandWithExamples(TyperCommand):
    def get_help(self, ctx: Any) -> str:
        """The help text and the command's examples, which name the program as it was started."""
        name = ctx.command_path.removeprefix(f"{ctx.find_root().command_path} ")
        examples = [f"  {ctx.command_path} {arguments}".rstrip() for arguments in EXAMPLES[name]]
        return "\n".join([super().get_help(ctx), "", "Examples:", *examples])


_COMMANDS = (
    demo,
    check,
    events,
    threads,
    runs,
    purge,
    transfer,
)
for _command in _COMMANDS:
    app.command(cls=_CommandWithExamples)(_command)
for _command in (checkpoints.stats, checkpoints.prune, checkpoints.copy):
    checkpoints_app.command(cls=_CommandWithExamples)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deerflow-mongo {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Nothing to do: `--version` exits in its callback."""
