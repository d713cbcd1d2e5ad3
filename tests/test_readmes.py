"""The READMEs: every Python example passes pyright strict, one runs, and every link leads to a file."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .child_processes import run_child

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted((ROOT / "deerflow_mongo").rglob("README.md"))]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(readme: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(readme.read_text(encoding="utf-8")) if kind == language]


def examples() -> Iterator[tuple[str, str]]:
    """Each Python block and the name of the module that a test makes of it."""
    for readme in READMES:
        place = "_".join(readme.relative_to(ROOT).parts[:-1]) or "main"
        for number, text in enumerate(blocks(readme, "python"), 1):
            yield f"{place}_{number}", text


def test_main_readme_has_at_most_180_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(readme: Path) -> None:
    links = [link for link in _LINK.findall(readme.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (readme.parent / link).exists()] == []


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_every_python_example_passes_pyright_strict(tmp_path: Path) -> None:
    found = dict(examples())
    assert found
    for name, text in found.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "include": ["."]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    checked = run_child([sys.executable, "-m", "pyright", "--pythonpath", sys.executable], cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_example_of_a_host_runs(tmp_path: Path) -> None:
    """On an embedded server of its own, as a reader would paste it."""
    [example] = [text for text in blocks(ROOT / "README.md", "python") if "asyncio.run" in text]
    path = tmp_path / "example.py"
    path.write_text(example, encoding="utf-8")
    done = run_child([sys.executable, str(path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 []")
