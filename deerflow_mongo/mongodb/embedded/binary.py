"""Which `mongod` to run."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from ...contract.errors import MissingDependencyError, StorageConfigError


def find_mongod(mongod_path: str | None = None) -> Path:
    """The mongod to run: `mongod_path`, else the one on PATH, else the one the extra `embedded` installs."""
    if mongod_path is not None:
        return _given_mongod(Path(mongod_path).expanduser())
    if on_path := shutil.which("mongod"):
        return Path(on_path)
    for folder in _wheel_folders():
        mongod = Path(folder) / "db" / "bin" / "mongod"
        if mongod.is_file():
            return _made_executable(mongod)
    raise MissingDependencyError("url: embedded", "a mongod binary", "embedded")


def _given_mongod(mongod: Path) -> Path:
    if mongod.is_file() and os.access(mongod, os.X_OK):
        return mongod.absolute()
    raise StorageConfigError(
        f"mongod_path is {str(mongod)!r}, which is not an executable file; set it to a mongod or leave it out"
    )


def _wheel_folders() -> list[str]:
    # Found without an import: where FiftyOne itself is installed, importing it starts a server of its own.
    spec = importlib.util.find_spec("fiftyone")
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _made_executable(mongod: Path) -> Path:
    # Wheels may lose the execute bit on their way.
    if not os.access(mongod, os.X_OK):
        try:
            mongod.chmod(mongod.stat().st_mode | 0o111)
        except OSError as error:
            raise StorageConfigError(
                f"{mongod} is not executable and this user cannot change that; run chmod +x on it"
            ) from error
    return mongod
