"""The command line's own options, and its commands with their examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from . import checkpoints, schema
from .check import check
from .demo import demo
from .events import events
from .export import export, import_
from .lists import runs, threads
from .purge import purge
from .setup import setup
from .stats import stats
from .storage_options import with_storage_options
from .terminal import quiet_end
from .top import top
from .transfer import transfer

ABOUT = (
    "MongoDB storage for DeerFlow: see it work on a real server, check a host's configuration, move in from "
    "SQL, list and watch threads, runs and run events, print statistics, erase threads and users."
)


class Command(NamedTuple):
    function: Callable[..., None]
    examples: Sequence[str]
    """The arguments of the examples in its help text."""


COMMANDS: Mapping[str, Command] = {
    "demo": Command(demo, ["", "--users 5 --verbose", "--data-dir demo-db"]),
    "check": Command(check, ["--config config.yaml", "--url mongodb://localhost:27017 --setup"]),
    "setup": Command(
        setup, ["--config config.yaml", "--config config.yaml --views", "--url '$MONGOS_URL' --shard --json"]
    ),
    "threads": Command(threads, ["--data-dir demo-db", "--config config.yaml --user USER --since 7d"]),
    "runs": Command(
        runs, ["--data-dir demo-db --limit 5", "THREAD --config config.yaml --status error --json"]
    ),
    "events": Command(
        events,
        [
            "THREAD --data-dir demo-db",
            "THREAD --data-dir demo-db --tail 5",
            "THREAD --config config.yaml --follow",
        ],
    ),
    "top": Command(
        top, ["--config config.yaml", "--data-dir demo-db --once", "--url mongodb://localhost:27017 --json"]
    ),
    "stats": Command(stats, ["--data-dir demo-db", "--config config.yaml --days 7 --html stats.html"]),
    "purge": Command(
        purge,
        [
            "--thread THREAD --config config.yaml",
            "--user USER --url mongodb://localhost:27017 --dry-run",
            "--older-than 90d --status idle --config config.yaml",
        ],
    ),
    "transfer": Command(
        transfer,
        [
            "--from sqlite:////srv/deer-flow/data/deerflow.db --dry-run",
            "--from '$DEERFLOW_SQL_URL' --config config.yaml",
        ],
    ),
    "export": Command(
        export,
        ["backup.jsonl.gz --config config.yaml", "- --data-dir demo-db --no-checkpoints > backup.jsonl.gz"],
    ),
    "import": Command(
        import_, ["backup.jsonl.gz --config config.yaml", "backup.jsonl.gz --url mongodb://localhost:27017"]
    ),
    "schema status": Command(
        schema.schema_status, ["--config config.yaml", "--url mongodb://localhost:27017 --json"]
    ),
    "schema upgrade": Command(
        schema.schema_upgrade, ["--config config.yaml --dry-run", "--config config.yaml"]
    ),
    "checkpoints stats": Command(
        checkpoints.stats, ["--config config.yaml", "--url mongodb://localhost:27017 --limit 5"]
    ),
    "checkpoints prune": Command(
        checkpoints.prune, ["--config config.yaml --keep-last 20 --older-than 30d --dry-run"]
    ),
    "checkpoints copy": Command(
        checkpoints.copy,
        [
            "--from sqlite:///checkpoints.db --config config.yaml",
            "--from '$CHECKPOINTS_URL' --url mongodb://localhost:27017 --dry-run",
        ],
    ),
}
"""Each command by its name as it is typed."""

GROUPS: Mapping[str, str] = {
    "schema": "The schema of a database: how it differs from this release's, and upgrading it.",
    "checkpoints": "LangGraph's checkpoints: what they take up, deleting old ones, copying those of another "
    "saver.",
}
"""The help texts of the names with which several commands begin."""


class _CommandWithExamples(TyperCommand):
    def get_help(self, ctx: Any) -> str:
        """The help text and the command's examples, which name the program as it was started."""
        command = COMMANDS[ctx.command_path.removeprefix(f"{ctx.find_root().command_path} ")]
        examples = [f"  {ctx.command_path} {arguments}".rstrip() for arguments in command.examples]
        return "\n".join([super().get_help(ctx), "", "Examples:", *examples])


class _Program(TyperGroup):
    """The program itself: help, version and every command end quietly."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with quiet_end():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with quiet_end():
            return super().invoke(ctx)


def _group(**options: Any) -> typer.Typer:
    return typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
        rich_markup_mode=None,
        **options,
    )


def _build() -> typer.Typer:
    groups = {name: _group(help=text, add_completion=False) for name, text in GROUPS.items()}
    groups[""] = _group(cls=_Program)
    for path, command in COMMANDS.items():
        group, _, name = path.rpartition(" ")
        function = with_storage_options(command.function)
        groups[group].command(name, cls=_CommandWithExamples)(function)
    for name in GROUPS:
        groups[""].add_typer(groups[name], name=name)
    return groups[""]


app = _build()


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
