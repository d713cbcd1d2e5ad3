"""The Markdown files: every code block is executed or checked, Python is typed, and links lead to files."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pymongo
import pytest

from .child_processes import run_child
from .readmes import demo_data
from .readmes.blocks import PYTHON, ROOT, Block, blocks_of, markdown_files
from .readmes.running import Reader, report

FILES = markdown_files()
WITH_BLOCKS = [path for path in FILES if "```" in path.read_text(encoding="utf-8")]

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def all_blocks() -> list[Block]:
    return [block for path in FILES for block in blocks_of(path)]


def test_main_readme_has_at_most_180_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_relative_link_leads_to_a_file(file: Path) -> None:
    links = [link for link in _LINK.findall(file.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (file.parent / link).exists()] == []


@pytest.mark.parametrize("file", WITH_BLOCKS, ids=name_of)
def test_every_block_runs_or_is_checked(
    file: Path, tmp_path: Path, mongodb_url: str, raw_client: pymongo.MongoClient[dict[str, Any]]
) -> None:
    """The rules are in `tests/readmes/__init__.py`."""
    database = f"readme_{re.sub(r'[^a-z]+', '_', name_of(file).lower())}"[:60]
    config = {"backend": "mongodb", "url": mongodb_url, "database": database}
    try:
        asyncio.run(demo_data.fill(config))
        problems = Reader(tmp_path / "reader", config).follow(blocks_of(file))
    finally:
        raw_client.drop_database(database)
    assert not problems, report(problems)


def test_no_block_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Each fence belongs to a block, and more blocks are executed than only checked."""
    blocks = all_blocks()
    ways = Counter(block.way for block in blocks)
    fences = sum(len(re.findall(r"(?m)^\s*```", path.read_text(encoding="utf-8"))) for path in FILES)
    with capsys.disabled():
        sys.stdout.write(f" {dict(ways)} ")
    assert fences == 2 * len(blocks)
    assert ways["executed"] > ways["checked"]


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_every_python_example_passes_pyright_strict(tmp_path: Path) -> None:
    blocks = [block for block in all_blocks() if block.language in PYTHON]
    assert blocks
    for block in blocks:
        (tmp_path / f"{block.module_name}.py").write_text(block.text, encoding="utf-8")
    settings = {
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "include": ["."],
        "extraPaths": [str(ROOT)],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    checked = run_child([sys.executable, "-m", "pyright", "--pythonpath", sys.executable], cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
