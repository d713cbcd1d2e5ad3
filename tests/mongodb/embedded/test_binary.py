"""Which `mongod` is run, and the errors when there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deerflow_mongo.contract.errors import MissingDependencyError, StorageConfigError
from deerflow_mongo.mongodb.embedded import binary, find_mongod, start_embedded

from .sandbox import error_text, script


def test_missing_mongod_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(binary, "_wheel_folders", list)
    assert "pip install 'deerflow-mongo[embedded]'" in error_text(MissingDependencyError, start_embedded)


def test_mongod_path_comes_before_path_and_path_before_the_extra(
    mongod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = Path(script(tmp_path / "mongod", "exit 1"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mongod() == on_path
    assert find_mongod(str(mongod)) == mongod


def test_installed_mongod_is_made_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mongod = tmp_path / "db" / "bin" / "mongod"
    mongod.parent.mkdir(parents=True)
    mongod.touch(mode=0o644)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(binary, "_wheel_folders", lambda: [str(tmp_path)])
    assert find_mongod() == mongod
    assert os.access(mongod, os.X_OK)


@pytest.mark.parametrize("name", ["missing", "not-executable", "."])
def test_wrong_mongod_path_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "not-executable").touch(mode=0o644)
    text = error_text(StorageConfigError, lambda: start_embedded(mongod_path=str(tmp_path / name)))
    assert text.startswith(f"mongod_path is '{tmp_path / name}', which is not an executable file")
