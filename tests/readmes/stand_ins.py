"""What a reader's `pip`, `uv` and `pytest` would do, checked instead: they install, or take minutes.

Started as `python -m tests.readmes.stand_ins PROGRAM ARGUMENTS...` by files of these names on the PATH.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parents[2]
NAME = "deerflow-mongo"
PROGRAMS = ("pip", "uv", "pytest")

_LOCAL = re.compile(r"(?P<path>[./][^\[]*)(?:\[(?P<extras>[\w,-]+)\])?")
_WITH_VALUE = frozenset({"--python", "-p", "-k", "-n", "-m", "-o", "--dist", "-i", "--index-url"})


def problem_of(program: str, arguments: Sequence[str]) -> str | None:
    """What is wrong with the command, or None."""
    if program == "uv" and list(arguments[:1]) == ["pip"]:
        return problem_of("pip", arguments[1:])
    if program == "pip":
        if list(arguments[:1]) != ["install"]:
            return f"pip {' '.join(arguments[:1])} is not known here"
        return next(filter(None, map(_problem_of_requirement, _operands(arguments[1:]))), None)
    if program == "pytest":
        paths = [argument.partition("::")[0] for argument in _operands(arguments)]
        return next((f"no tests at {path}" for path in paths if not _exists(path)), None)
    known = arguments[:1] in (["venv"], ["sync"])
    return None if known else f"uv {' '.join(arguments[:1])} is not known here"


def _exists(path: str) -> bool:
    return (ROOT / path).exists() or Path(path).exists()


def _operands(arguments: Sequence[str]) -> list[str]:
    """The arguments without options and their values."""
    operands: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.startswith("-"):
            skip = argument in _WITH_VALUE
        else:
            operands.append(argument)
    return operands


def _problem_of_requirement(text: str) -> str | None:
    local = _LOCAL.fullmatch(text)
    if local is None:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            return f"{text!r} is no requirement: {error}"
        return _problem_of_extras(requirement.extras) if requirement.name == NAME else None
    path = local["path"].rstrip("/") or "/"
    if path == "." or path.endswith(f"/{NAME}"):
        return _problem_of_extras((local["extras"] or "").split(","))
    return None if (ROOT / path / "pyproject.toml").exists() else f"no distribution in {path}"


def _problem_of_extras(names: Sequence[str] | set[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = sorted(set(filter(None, names)) - set(project["optional-dependencies"]))
    return f"no such extra: {', '.join(missing)}" if missing else None


def _make_environment(arguments: Sequence[str]) -> None:
    folder = Path(next(iter(_operands(arguments)), ".venv"), "bin")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "activate").touch()


def main(program: str, *arguments: str) -> None:
    problem = problem_of(program, arguments)
    if problem:
        sys.exit(f"{program}: {problem}")
    if program == "pytest" and _operands(arguments):
        # Whether the file can be imported and has tests; running them is a test suite of its own.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            *arguments,
        ]
        sys.exit(subprocess.call(command))  # noqa: S603 - what the README has
    if program == "uv" and arguments[0] == "venv":
        _make_environment(arguments[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
