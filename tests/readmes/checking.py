"""Checks blocks that are not executed: data by what it is, commands by their programs and options."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast
from unittest.mock import patch

import yaml
from pymongo.errors import PyMongoError

from deerflow_mongo import StorageError, create_storage

from ..child_processes import run_child
from . import mongosh, stand_ins
from .blocks import CHECKED, DATA, EXECUTED_BY, MONGOSH, PYTHON, ROOT, SHELL, Block, ReadmeError
from .manifests import problem_of_manifest

_LOCAL_URL = "mongodb://localhost/deerflow"
EXTERNAL: Final = frozenset(
    """
    awk bash bsondump cat chmod chown cp curl date df diff docker du git helm kill kubectl ln ls lvcreate
    lvremove make mkdir mongod mongodump mongorestore mongosh mount mv openssl pg_dump rm rsync sed sh
    sqlite3 systemctl tar umask umount
    """.split()  # noqa: SIM905
)
"""Programs that a reader has, beside those of Python."""

_SHELL_WORDS: Final = frozenset(
    ": . cd do done echo else exec export fi for if printf set source then true while".split()  # noqa: SIM905
)
_URI: Final = re.compile(r"mongodb(?:\+srv)?://[^\s\"'`<>)|,;]*(?:,[^\s\"'`<>)|;]+)*")
_FILE_OPTION: Final = re.compile(r"(?<=[?&])tls(?:CA|CRL|CertificateKey)File=[^&]*&?")
_DOCKER: Final = frozenset(
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN USER WORKDIR".split()  # noqa: SIM905
)


def check(block: Block) -> None:
    """Check a block that is not executed. Raises `ReadmeError` with the reason."""
    try:
        _check_reason(block)
        _CHECKS[block.language](block.text)
        for uri in uris_of(block.text):
            _check_uri(uri)
    except ReadmeError as error:
        raise ReadmeError(f"{block.place}: {error}") from error
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        raise ReadmeError(f"{block.place}: this {block.language} block is malformed: {error}") from error


def _check_reason(block: Block) -> None:
    if needs_a_reason(block) and not {CHECKED, EXECUTED_BY} & set(block.notes):
        raise ReadmeError("it cannot run here: give the reason, `<!-- checked: needs Docker -->`")
    for note in (CHECKED, EXECUTED_BY):
        for path in re.findall(r"tests/[\w/]+\.py", block.notes.get(note, "")):
            if not (ROOT / path).exists():
                raise ReadmeError(f"`{note}:` names {path}, which does not exist")


def needs_a_reason(block: Block) -> bool:
    """Whether the file is for a program that no test starts."""
    if block.language == "dockerfile":
        return True
    return block.language == "yaml" and bool(re.search(r"(?m)^(?:services|apiVersion):", block.text))


# -- URIs ---------------------------------------------------------------------------------------------


def uris_of(text: str) -> list[str]:
    """The complete MongoDB URIs in a text; `mongodb://...` is none."""
    found = [uri.rstrip(".:") for uri in _URI.findall(text)]
    return [uri for uri in found if uri.partition("://")[2].strip("./") and "$" not in uri and "{" not in uri]


def _check_uri(uri: str) -> None:
    """Our own configuration accepts it; the files that it names are the reader's."""
    try:
        create_storage({"backend": "mongodb", "url": _FILE_OPTION.sub("", uri).rstrip("?&")})
    except (StorageError, PyMongoError) as error:
        raise ReadmeError(f"the URI {uri!r}: {error}") from error


# -- commands -----------------------------------------------------------------------------------------


def check_shell(text: str) -> None:
    """The syntax of a script, and each of its commands."""
    parsed = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)  # noqa: S607
    if parsed.returncode:
        raise ReadmeError(parsed.stderr.strip())
    for command in commands_of(text):
        check_command(command)


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command of a script, without variables before it and redirections behind it."""
    text = re.sub(r"<<-?\s*'?(\w+)'?(.*)\n(?:.*\n)*?\s*\1\n", r"\2\n", text)
    text = re.sub(r"(?m)(?:^|(?<=\s))#.*$", "", text.replace("\\\n", " "))
    text = re.sub(r"\$\([^()\"']*\)", "OUTPUT", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    redirected = False
    for word in [*lexer, "\n"]:
        if set(word) <= set("<>"):
            redirected = True
        elif set(word) <= set(";&|()<>\n"):
            if words:
                yield words
            words, redirected = [], False
        elif redirected:
            redirected = False
        elif words or not re.match(r"\w+=", word):
            words.append(word)


def check_command(words: list[str]) -> None:
    """Raise `ReadmeError` for an unknown program or option."""
    program, *arguments = words
    name = program.rpartition("/")[2]
    if name in {"exec", "nohup", "time", "sudo"} and arguments:
        check_command(arguments)
    elif name == "uv" and arguments[:1] == ["run"]:
        check_command([argument for argument in arguments[1:] if not argument.startswith("--no-")])
    elif name == "deerflow-mongo":
        _check_own_command(arguments)
    elif name in {"python", "python3"}:
        if arguments[:1] == ["-m"]:
            _check_module(arguments[1], arguments[2:])
    elif name == "uvicorn":
        _check_module(arguments[0].partition(":")[0], [])
    elif name in stand_ins.PROGRAMS:
        problem = stand_ins.problem_of(name, arguments)
        if problem:
            raise ReadmeError(f"{name}: {problem}")
    elif name not in EXTERNAL and name not in _SHELL_WORDS and "=" not in name:
        raise ReadmeError(f"{program!r} is no known program (tests/readmes/checking.py lists them)")


def _check_own_command(arguments: list[str]) -> None:
    typer = importlib.import_module("typer.main")
    app = importlib.import_module("deerflow_mongo.cli.app").app
    command: Any = typer.get_command(app)
    rest = arguments
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        found = command.commands.get(rest[0])
        if found is None:
            raise ReadmeError(f"deerflow-mongo has no command {rest[0]!r}")
        command, rest = found, rest[1:]
    try:
        command.make_context(command.name, list(rest))
    except Exception as error:  # click's own errors, or those of Typer's copy of it
        if type(error).__name__ in {"Exit", "NoArgsIsHelpError"}:
            return
        shown = getattr(error, "message", str(error))
        raise ReadmeError(f"deerflow-mongo {' '.join(arguments)}: {shown}") from error


def _check_module(name: str, arguments: list[str]) -> None:
    """The module exists; each of its options occurs in its package, where that is in this repository."""
    if name.partition(".")[0] not in {"deerflow_mongo", "tests", "benchmarks"}:
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ReadmeError(f"there is no module {name}")
    folder = ROOT.joinpath(*name.split("."))
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    missing = [option for option in options if f'"{option}"' not in source]
    if missing:
        until_options = itertools.takewhile(lambda argument: not argument.startswith("-"), arguments)
        shown = _help_of(name, *until_options)
        missing = [option for option in missing if option not in shown]
    if missing:
        raise ReadmeError(f"{name} has no option {', '.join(missing)}")


@functools.cache
def _help_of(*arguments: str) -> str:
    return run_child([sys.executable, "-m", *arguments, "--help"], cwd=ROOT).stdout


# -- data ---------------------------------------------------------------------------------------------


def _check_python(text: str) -> None:
    compile(text, "block", "exec")


def _check_yaml(text: str) -> None:
    documents: list[Any] = list(yaml.safe_load_all(text))
    for document in documents:
        if not isinstance(document, dict):
            raise ReadmeError("a YAML file is a mapping")
        mapping = cast("dict[str, Any]", document)
        if "storage" in mapping and "dbPath" not in (mapping["storage"] or ()):  # which is MongoDB's own
            _check_storage_section(mapping["storage"])
        problem = problem_of_manifest(mapping, check_shell)
        if problem:
            raise ReadmeError(problem)


def _check_storage_section(section: Any) -> None:
    if not isinstance(section, dict):
        raise ReadmeError("`storage:` is a mapping")
    options = cast("Mapping[str, Any]", section)
    names = [value[1:] for value in options.values() if isinstance(value, str) and value.startswith("$")]
    with patch.dict(os.environ, {name: _LOCAL_URL for name in names if name.endswith("_URL")}):
        try:
            create_storage(dict(options))
        except StorageError as error:
            raise ReadmeError(f"`storage:` is refused: {error}") from error


def _check_dockerfile(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if not instruction or instruction.startswith("#"):
            continue
        if instruction not in _DOCKER:
            raise ReadmeError(f"{instruction!r} is no instruction of a Dockerfile")
        if instruction == "RUN":
            check_shell(rest)
        if instruction in {"CMD", "ENTRYPOINT"} and rest.startswith("["):
            words = json.loads(rest)
            if words[:2] == ["sh", "-c"]:
                check_shell(words[2])


_CHECKS: Final[Mapping[str, Callable[[str], object]]] = {
    **dict.fromkeys(PYTHON, _check_python),
    **dict.fromkeys(SHELL, check_shell),
    **dict.fromkeys(MONGOSH, mongosh.check_text),
    "yaml": _check_yaml,
    "toml": tomllib.loads,
    "json": json.loads,
    "dockerfile": _check_dockerfile,
    "text": str,
}
assert set(_CHECKS) >= DATA
