"""What the supervisor does when mongod, a user, the supervisor itself or all of them die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pymongo.errors import PyMongoError

from .sandbox import (
    HANG_TIMEOUT_S,
    Sandbox,
    client_of,
    is_running,
    names,
    on_linux,
    script,
    supervisor_of,
    unsupervised_mongod,
    wait_until,
    write,
)


def test_killed_user_ends_the_server_and_its_temporary_folder(sandbox: Sandbox) -> None:
    user = sandbox.temporary_user()
    server = user.server()
    assert is_running(server["pid"])
    user.kill()
    wait_until(sandbox.has_no_processes)
    assert list(sandbox.path.iterdir()) == []


@on_linux
def test_release_removes_the_temporary_folder_of_a_killed_supervisor(sandbox: Sandbox) -> None:
    server = sandbox.start_temporary()
    os.kill(supervisor_of(server.pid), signal.SIGKILL)
    server.release()
    assert list(sandbox.path.iterdir()) == []


@on_linux
def test_killed_supervisor_ends_mongod_and_the_next_start_recovers(sandbox: Sandbox) -> None:
    first = sandbox.start()
    write(first.url, "stored")
    supervisor = supervisor_of(first.pid)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not is_running(supervisor))
    second = sandbox.start()
    assert not is_running(first.pid)
    assert second.url == first.url
    assert names(second.url) == {"stored"}


def test_killing_everything_at_once_leaves_no_process_and_all_data(sandbox: Sandbox) -> None:
    user = sandbox.user()
    server = user.server()
    write(server["url"], "stored")
    # The user last: when it ends, the other two exit, and killing their process ids would fail.
    for pid in (server["pid"], supervisor_of(server["pid"]), user.process.pid):
        os.kill(pid, signal.SIGKILL)
    user.kill()
    wait_until(sandbox.has_no_processes)
    assert names(sandbox.start().url) == {"stored"}


class _Writer:
    """Inserts documents one by one through one client."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.written: list[str] = []
        self.failures: list[PyMongoError] = []

    def _run(self) -> None:
        with client_of(self._url) as client:
            while not self._stop.is_set():
                name = f"thing-{len(self.written)}"
                try:
                    client["app"]["things"].insert_one({"_id": name})
                except PyMongoError as failure:
                    self.failures.append(failure)
                self.written.append(name)

    def wait_for_more(self, count: int) -> None:
        target = len(self.written) + count
        wait_until(lambda: len(self.written) > target)

    @contextmanager
    def running(self) -> Generator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def test_connected_clients_see_a_killed_mongod_as_a_pause(sandbox: Sandbox) -> None:
    server = sandbox.start()
    writer = _Writer(server.url)
    with writer.running():
        writer.wait_for_more(100)
        os.kill(server.pid, signal.SIGKILL)
        writer.wait_for_more(100)
    assert writer.failures == []
    assert names(server.url) == set(writer.written)
    assert sandbox.start().pid != server.pid


def test_mongod_that_keeps_failing_is_given_up_until_the_next_start(mongod: Path, sandbox: Sandbox) -> None:
    broken = sandbox.path / "broken"
    breakable = script(sandbox.path / "mongod", f'[ -e {broken} ] && exit 3\nexec {mongod} "$@"')
    server = sandbox.start(mongod_path=breakable)
    supervisor = supervisor_of(server.pid)
    broken.touch()
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(supervisor))
    assert "giving up after 5 restarts" in (sandbox.folder / "supervisor.log").read_text()
    broken.unlink()
    write(sandbox.start(mongod_path=breakable).url, "again")


def test_sigterm_to_the_supervisor_stops_the_server_cleanly(sandbox: Sandbox) -> None:
    server = sandbox.start()
    os.kill(supervisor_of(server.pid), signal.SIGTERM)
    wait_until(sandbox.has_no_processes)
    assert '"exitCode":0' in (sandbox.folder / "mongod.log").read_text()
    assert not (sandbox.folder / "server.json").exists()
    write(sandbox.start().url, "again")


def test_orphaned_mongod_is_stopped_by_the_next_start(mongod: Path, sandbox: Sandbox) -> None:
    sandbox.start().release()
    with unsupervised_mongod(mongod, sandbox.folder, sandbox.folder / "server.sock") as orphan:
        server = sandbox.start()
        assert orphan.wait(HANG_TIMEOUT_S) == 0
    write(server.url, "ours")


def test_supervisor_imports_no_module_from_the_data_folder(sandbox: Sandbox) -> None:
    sandbox.start().release()
    (sandbox.folder / "json.py").write_text("raise SystemExit('imported')")
    write(sandbox.start().url, "again")


def test_moving_the_folder_away_ends_its_server(sandbox: Sandbox) -> None:
    sandbox.start()
    sandbox.folder.rename(sandbox.path / "elsewhere")
    wait_until(sandbox.has_no_processes)
