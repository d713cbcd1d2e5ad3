"""Finding the `mongod` binary to run; whether it can run here is found out by running it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from ...contract.errors import MissingDependencyError, StorageConfigError


def find_mongod(mongod_path: str | None = None) -> Path:
    """`mongod_path` if it is set, else the `mongod` on PATH, else the one of the extra `embedded`."""
    if mongod_path is not None:
        return _checked_mongod_path(Path(mongod_path).expanduser())
    if on_path := shutil.which("mongod"):
        return Path(on_path)
    for folder in _wheel_folders():
        mongod = Path(folder) / "db" / "bin" / "mongod"
        if mongod.is_file():
            _make_executable(mongod)
            return mongod
    raise MissingDependencyError("url: embedded", "a mongod binary", "embedded")


def _checked_mongod_path(mongod: Path) -> Path:
    if mongod.is_file() and os.access(mongod, os.X_OK):
        return mongod.absolute()
    raise StorageConfigError(
        f"mongod_path is {str(mongod)!r}, which is not an executable file; set it to a mongod binary or leave"
        " it out"
    )


def _wheel_folders() -> list[str]:
    # Without an import: where FiftyOne itself is installed, importing it starts a server of its own.
    spec = importlib.util.find_spec("fiftyone")
    return [] if spec is None else list(spec.submodule_search_locations or ())


def _make_executable(mongod: Path) -> None:
    # Some installers drop the executable bit of files in a wheel.
    if os.access(mongod, os.X_OK):
        return
    try:
        mongod.chmod(mongod.stat().st_mode | 0o111)
    except OSError as error:
        raise StorageConfigError(
            f"{mongod} is not executable and this user cannot change that; run chmod +x on it"
        ) from error
