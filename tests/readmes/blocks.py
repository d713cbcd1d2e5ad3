"""Finds the code blocks of Markdown files, with the comments before them. Does not run them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

PYTHON = frozenset({"python"})
SHELL = frozenset({"console", "bash", "sh"})
MONGOSH = frozenset({"javascript"})
DATA = frozenset({"yaml", "toml", "json", "dockerfile"})
OUTPUT = frozenset({"text"})
LANGUAGES = PYTHON | SHELL | MONGOSH | DATA | OUTPUT

CHECKED, EXECUTED_BY, STOPPED, SERVER = "checked", "executed by", "stopped", "server"
NOTES = frozenset({CHECKED, EXECUTED_BY, STOPPED, SERVER})

_FENCE = re.compile(r"(\s*)(`{3,}|~{3,})(.*)")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->\s*")
_FILE_NAME = re.compile(r"(?:#|//) ([\w.-]+\.\w+|Dockerfile[\w.]*)(?:,.*|:.*)?")


class ReadmeError(AssertionError):
    """What is wrong with a block, with its file and line."""


@dataclass(frozen=True)
class Block:
    """One code block."""

    file: Path
    line: int
    """The number of its first line, below the fence."""
    language: str
    text: str
    notes: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The file that the reader makes of it: the comment in its first line."""
        first = self.text.partition("\n")[0]
        match = _FILE_NAME.fullmatch(first)
        return match[1] if match else None

    @property
    def module_name(self) -> str:
        """A name for a Python file with this text."""
        parts = self.file.relative_to(ROOT).with_suffix("").parts
        return f"{'_'.join(parts)}_{self.line}".lower().replace("-", "_")

    @property
    def way(self) -> str:
        """What a test does with it: "executed", "parsed", or only "checked"."""
        if CHECKED in self.notes:
            return "checked"
        return "parsed" if self.language in DATA else "executed"


def markdown_files() -> list[Path]:
    """Every Markdown file of the repository."""
    folders = [ROOT.glob("*.md"), *((ROOT / name).rglob("*.md") for name in _FOLDERS)]
    return sorted(path for folder in folders for path in folder)


_FOLDERS = ("deerflow_mongo", "benchmarks", "tests")


def blocks_of(file: Path) -> list[Block]:
    """The blocks of the file, in order. Raises `ReadmeError` for one that could be missed or misread."""
    found: list[Block] = []
    lines = file.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        match = _FENCE.fullmatch(lines[number])
        if match is None:
            number += 1
            continue
        indentation, fence = match[1], match[2]
        end = next((at for at in range(number + 1, len(lines)) if lines[at].strip() == fence), None)
        place = f"{file.relative_to(ROOT)}:{number + 1}"
        language = match[3].strip()
        if end is None:
            raise ReadmeError(f"{place}: this block has no end")
        _check_language(place, language)
        text = "".join(f"{line.removeprefix(indentation)}\n" for line in lines[number + 1 : end])
        notes = _notes_before(lines, number, place)
        if language in OUTPUT and found:
            notes = {**found[-1].notes, **notes}
        found.append(Block(file, number + 2, language, text, notes))
        number = end + 1
    return found


def _check_language(place: str, language: str) -> None:
    if language not in LANGUAGES:
        known = ", ".join(sorted(LANGUAGES))
        raise ReadmeError(f"{place}: a block in {language or 'no language'!r}; expected one of {known}")


def _notes_before(lines: list[str], fence: int, place: str) -> dict[str, str]:
    notes: dict[str, str] = {}
    for line in reversed(lines[:fence]):
        comment = _COMMENT.fullmatch(line.strip())
        if comment is None:
            break
        kind, colon, text = comment[1].partition(":")
        if kind in NOTES:
            if not text.strip():
                raise ReadmeError(f"{place}: `{kind}:` needs a text")
            notes[kind] = text.strip()
        elif colon and kind.lower() in NOTES:
            raise ReadmeError(f"{place}: write `{kind.lower()}:` in lower case")
    return notes
