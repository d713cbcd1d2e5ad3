"""Runs the command: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from typer.testing import CliRunner, Result

from deerflow_mongo.cli.app import app

from ..child_processes import run_child

PROGRAM = "deerflow-mongo"
COMMAND = [sys.executable, "-m", "deerflow_mongo"]
UNREACHABLE = "mongodb://me:hunter2@127.0.0.1:9/?timeoutMS=300"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name=PROGRAM)


def output_of(*arguments: str, exit_code: int = 0) -> str:
    """What is printed, with every run of white space as one space."""
    result = run(*arguments)
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_child([*COMMAND, *arguments], env={**os.environ, **environment})


def summary_of(*arguments: str) -> dict[str, Any]:
    """The JSON that `demo --json` prints."""
    result = run("demo", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)
