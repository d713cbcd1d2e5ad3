"""The command `deerflow-mongo`. No host needs it, and no rule of the storage is here: the commands call the
stores or, about the server itself, their driver.

Its packages come with the extra `cli`; without them `main` prints which extra to install and exits with 2.
"""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper

from ..contract.errors import MissingDependencyError


def main(program: str = "deerflow-mongo") -> None:
    """The entry point of the console script. `program` is the command as the user types it."""
    try:
        for package in ("typer", "rich"):
            import_module(package)
    except ImportError:
        sys.stderr.write(f"{MissingDependencyError('the command deerflow-mongo', 'typer', 'cli')}\n")
        raise SystemExit(2) from None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from .app import app
    except KeyboardInterrupt:  # importing takes a second
        sys.stderr.write("error: stopped\n")
        raise SystemExit(130) from None
    app(prog_name=program)
