"""The embedded server: it starts, is shared, heals, ends with its last user, and says what is wrong.

Every test runs real processes below its own folder, and fails if it leaves one of them behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from deerflow_mongo.contract.errors import (
    MissingDependencyError,
    StorageConfigError,
    StorageUnavailableError,
)
from deerflow_mongo.mongodb.embedded import EmbeddedServer, binary, find_mongod, start_embedded

if sys.platform == "win32":
    pytest.skip("the embedded server needs a Unix system", allow_module_level=True)

try:
    _MONGOD = find_mongod()
except MissingDependencyError:
    pytest.skip("no mongod on this machine", allow_module_level=True)

_REPOSITORY = Path(binary.__file__).parents[3]
_GONE_WITHIN_S = 20.0

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_USER = """
import json, os, sys
from deerflow_mongo.mongodb.embedded import start_embedded
server = start_embedded(sys.argv[1] or None)
print(json.dumps({"url": server.url, "pid": server.pid, "folder": str(server.data_dir)}), flush=True)
for line in sys.stdin:
    if line == "fork\\n":
        child = os.fork()
        if child == 0:
            server.release()
            os._exit(0)
        os.waitpid(child, 0)
        print("forked", flush=True)
server.release()
"""


class _User:
    """A process that holds the server of a folder until it is told to leave, or killed."""

    def __init__(self, folder: Path | str) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter
            [sys.executable, "-c", _USER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        )

    def server(self) -> dict[str, Any]:
        return json.loads(self._line())

    def fork_and_release_in_child(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("fork\n")
        self.process.stdin.flush()
        assert self._line() == "forked\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(_GONE_WITHIN_S) == 0
        self._close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _Place:
    """The folder of a test, whose path stands in the command line of every process the test starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / "data"
        self._servers: list[EmbeddedServer] = []
        self._users: list[_User] = []

    def start(self, data_dir: Path | None = None, **options: Any) -> EmbeddedServer:
        server = start_embedded(data_dir or self.folder, **options)
        self._servers.append(server)
        return server

    def start_temporary(self) -> EmbeddedServer:
        server = start_embedded()
        self._servers.append(server)
        return server

    def user(self, folder: Path | None = None) -> _User:
        user = _User(folder or self.folder)
        self._users.append(user)
        return user

    def temporary_user(self) -> _User:
        user = _User("")
        self._users.append(user)
        return user

    def processes(self) -> list[int]:
        rows = [
            line.split(None, 2) for line in _output("ps", "-A", "-ww", "-o", "pid=,stat=,args=").splitlines()
        ]
        return [int(row[0]) for row in rows if row[1][0] != "Z" and str(self.path) in row[2]]

    def is_quiet(self) -> bool:
        return not self.processes()

    def clear(self) -> list[int]:
        for user in self._users:
            user.kill()
        for server in self._servers:
            server.release()
        with contextlib.suppress(TimeoutError):
            _until(self.is_quiet)
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


def _output(*command: str) -> str:
    """What a command prints; nothing if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603 - ours
    return run.stdout if run.returncode == 0 else ""


def _until(holds: Callable[[], bool], within_s: float = _GONE_WITHIN_S) -> None:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


@contextlib.contextmanager
def _place(path: Path) -> Generator[_Place]:
    place = _Place(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(path))
        patch.setattr(tempfile, "tempdir", str(path))
        try:
            yield place
        finally:
            left = place.clear()
    assert left == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[_Place]:
    with _place(tmp_path) as place:
        yield place


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server for the tests that only look at it."""
    with _place(tmp_path_factory.mktemp("running")) as place:
        yield place.start()


@contextlib.contextmanager
def _client(url: str) -> Generator[pymongo.MongoClient[dict[str, Any]]]:
    with pymongo.MongoClient[dict[str, Any]](url, timeoutMS=25_000) as client:
        yield client


def _write(url: str, name: str) -> None:
    with _client(url) as client:
        client["app"]["things"].insert_one({"_id": name})


def _names(url: str) -> set[str]:
    with _client(url) as client:
        return {document["_id"] for document in client["app"]["things"].find()}


def _supervisor_of(pid: int) -> int:
    return int(_output("ps", "-o", "ppid=", "-p", str(pid)))


def _is_running(pid: int) -> bool:
    state = _output("ps", "-o", "stat=", "-p", str(pid))
    return bool(state) and not state.startswith("Z")


def _script(path: Path, text: str) -> str:
    """A stand-in for mongod."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def _accepts(socket_path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(socket_path))
        return True
    return False


@contextlib.contextmanager
def _plain_mongod(folder: Path, socket_path: Path) -> Generator[subprocess.Popen[bytes]]:
    """A mongod on the data of `folder` that no supervisor knows of."""
    (folder / "db").mkdir(parents=True, exist_ok=True)
    arguments = [
        str(_MONGOD),
        "--dbpath",
        str(folder / "db"),
        "--bind_ip",
        str(socket_path),
        "--nounixsocket",
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)  # noqa: S603 - the tested mongod
    try:
        _until(lambda: _accepts(socket_path))
        yield process
    finally:
        process.kill()
        process.wait()


# --- what it is


def test_a_started_server_offers_transactions_and_change_streams(running: EmbeddedServer) -> None:
    with _client(running.url) as client:
        things = client["app"]["things"]
        things.insert_one({"_id": "first"})
        with things.watch() as changes, client.start_session() as session:
            with session.start_transaction():
                things.insert_one({"_id": "second"}, session=session)
            assert next(changes)["documentKey"] == {"_id": "second"}


def test_the_url_carries_no_secret_and_no_timeout(running: EmbeddedServer) -> None:
    parsed = parse_uri(running.url)
    assert (parsed["username"], parsed["password"]) == (None, None)
    assert list(parsed["options"]) == ["directConnection"]
    assert running.url in repr(running)


@on_linux
def test_nothing_listens_on_the_network(running: EmbeddedServer) -> None:
    mine = {str(link.readlink()) for link in Path(f"/proc/{running.pid}/fd").iterdir() if link.is_symlink()}
    tables = [Path(f"/proc/{running.pid}/net/{name}") for name in ("tcp", "tcp6", "udp", "udp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    assert mine & {f"socket:[{row[9]}]" for row in rows} == set()
    assert any(name.startswith("socket:") for name in mine)


def test_everything_in_the_folder_is_for_its_owner_only(running: EmbeddedServer) -> None:
    modes = {
        path.name: path.lstat().st_mode & 0o077
        for path in running.data_dir.iterdir()
        if not path.is_symlink()
    }
    assert {name: mode for name, mode in modes.items() if mode} == {}
    assert running.data_dir.stat().st_mode & 0o777 == 0o700


@as_root
def test_another_user_of_the_machine_cannot_connect(place: _Place) -> None:
    public = Path(tempfile.mkdtemp(prefix="deerflow-mongo-test-", dir="/tmp"))
    public.chmod(0o755)
    server = place.start(public / str(place.path).replace("/", "_")[-30:])
    try:
        os.seteuid(65534)
        try:
            with socket.socket(socket.AF_UNIX) as probe, pytest.raises(PermissionError):
                probe.connect(str(server.data_dir / "mongod.sock"))
        finally:
            os.seteuid(0)
    finally:
        server.release()
        shutil.rmtree(public)


def test_an_open_folder_is_closed_to_others(place: _Place) -> None:
    place.folder.mkdir(mode=0o755)
    assert place.start().data_dir.stat().st_mode & 0o777 == 0o700


def test_importing_it_needs_no_driver_and_no_unix() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; import deerflow_mongo.mongodb.embedded;"
        "print([name for name in ('pymongo', 'bson', 'motor') if name in sys.modules])"
    )
    assert _output(sys.executable, "-c", code) == "[]\n"


# --- sharing and stopping


def test_data_is_there_next_time_at_the_same_address(place: _Place) -> None:
    first = place.start()
    _write(first.url, "kept")
    first.release()
    second = place.start()
    assert _names(second.url) == {"kept"}
    assert (second.url, second.pid != first.pid) == (first.url, True)


def test_data_survives_a_move_of_the_folder(place: _Place) -> None:
    first = place.start()
    _write(first.url, "kept")
    first.release()
    moved = place.folder.rename(place.path / "moved")
    assert _names(place.start(moved).url) == {"kept"}


def test_a_copy_of_a_running_folder_leaves_the_original_alone(place: _Place) -> None:
    original = place.start()
    (place.path / "copy").mkdir(mode=0o700)
    for name in ("start.lock", "users.lock", "supervisor.lock", "server.json"):
        shutil.copy(place.folder / name, place.path / "copy" / name)
    copy = place.start(place.path / "copy")
    _write(copy.url, "in the copy")
    assert _names(original.url) == set()
    assert place.start().pid == original.pid


def test_processes_share_a_server_that_ends_with_the_last_of_them(place: _Place) -> None:
    user = place.user()
    theirs = user.server()
    mine = place.start()
    assert (mine.pid, mine.url) == (theirs["pid"], theirs["url"])
    user.leave()
    _write(mine.url, "after the first user left")
    mine.release()
    assert not _is_running(mine.pid)
    assert place.is_quiet()


def test_release_may_be_repeated_and_counts_once(place: _Place) -> None:
    first, second = place.start(), place.start()
    first.release()
    first.release()
    _write(second.url, "still held")
    second.release()
    assert place.is_quiet()


def test_release_in_a_forked_child_leaves_the_parents_hold(place: _Place) -> None:
    user = place.user()
    server = user.server()
    user.fork_and_release_in_child()
    _write(server["url"], "still held")
    user.leave()
    assert place.is_quiet()


def test_a_user_who_comes_while_the_server_stops_gets_a_new_one(place: _Place) -> None:
    leaving = place.start()
    release = threading.Thread(target=leaving.release)
    release.start()
    time.sleep(0.3)
    server = place.start()
    release.join()
    _write(server.url, "late")
    assert server.pid != leaving.pid


def test_eight_processes_that_race_get_one_server(place: _Place) -> None:
    users = [place.user() for _ in range(8)]
    assert len({user.server()["pid"] for user in users}) == 1
    for user in users:
        user.leave()
    assert place.is_quiet()


def test_a_temporary_folder_goes_with_its_server(place: _Place) -> None:
    server = place.start_temporary()
    assert server.data_dir.parent == place.path
    _write(server.url, "short-lived")
    server.release()
    assert list(place.path.iterdir()) == []


def test_an_abandoned_temporary_folder_is_removed_by_the_next_start(place: _Place) -> None:
    old, recent, foreign = (place.path / f"deerflow-mongo-{name}" for name in ("old", "recent", "foreign"))
    for folder in (old, recent, foreign):
        folder.mkdir()
        (folder / "users.lock").touch()
        (folder / "temporary").touch()
    (foreign / "temporary").unlink()
    for folder in (old, foreign):
        os.utime(folder, (0, 0))
    place.start_temporary().release()
    assert sorted(place.path.iterdir()) == [foreign, recent]


@pytest.mark.parametrize("name", ["with space, ünd more", "x" * 120])
def test_a_folder_whose_path_suits_no_socket_works_all_the_same(place: _Place, name: str) -> None:
    server = place.start(place.path / name)
    _write(server.url, "reachable")
    server.release()
    assert [path.name for path in place.path.iterdir()] == [name]


# --- kill -9


def test_a_killed_user_ends_the_server_and_its_temporary_folder(place: _Place) -> None:
    user = place.temporary_user()
    server = user.server()
    assert _is_running(server["pid"])
    user.kill()
    _until(place.is_quiet)
    assert list(place.path.iterdir()) == []


@on_linux
def test_after_a_killed_supervisor_the_user_removes_the_temporary_folder(place: _Place) -> None:
    server = place.start_temporary()
    os.kill(_supervisor_of(server.pid), signal.SIGKILL)
    server.release()
    assert list(place.path.iterdir()) == []


@on_linux
def test_a_killed_supervisor_takes_mongod_along_and_the_next_start_recovers(place: _Place) -> None:
    first = place.start()
    _write(first.url, "kept")
    supervisor = _supervisor_of(first.pid)
    os.kill(supervisor, signal.SIGKILL)
    _until(lambda: not _is_running(supervisor))
    second = place.start()
    assert not _is_running(first.pid)
    assert second.url == first.url
    assert _names(second.url) == {"kept"}


def test_everything_killed_at_once_leaves_no_process_and_all_data(place: _Place) -> None:
    user = place.user()
    server = user.server()
    _write(server["url"], "kept")
    for pid in (_supervisor_of(server["pid"]), server["pid"], user.process.pid):
        os.kill(pid, signal.SIGKILL)
    user.kill()
    _until(place.is_quiet)
    assert _names(place.start().url) == {"kept"}


def test_a_killed_mongod_is_a_pause_for_connected_clients(place: _Place) -> None:
    server = place.start()
    stored: list[str] = []
    enough = threading.Event()
    failures: list[PyMongoError] = []

    def write() -> None:
        with _client(server.url) as client:
            while not enough.is_set():
                name = f"thing-{len(stored)}"
                try:
                    client["app"]["things"].insert_one({"_id": name})
                except PyMongoError as failure:
                    failures.append(failure)
                stored.append(name)

    writer = threading.Thread(target=write)
    writer.start()
    _until(lambda: len(stored) > 100)
    os.kill(server.pid, signal.SIGKILL)
    stored_at_kill = len(stored)
    _until(lambda: len(stored) > stored_at_kill + 100)
    enough.set()
    writer.join()
    assert failures == []
    assert _names(server.url) == set(stored)
    assert place.start().pid != server.pid


def test_a_mongod_that_keeps_failing_is_given_up_and_the_next_start_tries_anew(place: _Place) -> None:
    broken = place.path / "broken"
    mongod = _script(place.path / "mongod", f'[ -e {broken} ] && exit 3\nexec {_MONGOD} "$@"')
    server = place.start(mongod_path=mongod)
    supervisor = _supervisor_of(server.pid)
    broken.touch()
    os.kill(server.pid, signal.SIGKILL)
    _until(lambda: not _is_running(supervisor))
    assert "giving up after 5 restarts" in (place.folder / "supervisor.log").read_text()
    broken.unlink()
    _write(place.start(mongod_path=mongod).url, "again")


def test_a_supervisor_sent_sigterm_stops_the_server_cleanly(place: _Place) -> None:
    server = place.start()
    os.kill(_supervisor_of(server.pid), signal.SIGTERM)
    _until(place.is_quiet)
    assert '"exitCode":0' in (place.folder / "mongod.log").read_text()
    assert not (place.folder / "server.json").exists()
    _write(place.start().url, "again")


def test_an_orphaned_server_is_ended_by_the_next_start(place: _Place) -> None:
    place.start().release()
    with _plain_mongod(place.folder, place.folder / "server.sock") as orphan:
        server = place.start()
        assert orphan.wait(_GONE_WITHIN_S) == 0
    _write(server.url, "ours")


def test_a_folder_taken_away_ends_its_server(place: _Place) -> None:
    place.start()
    place.folder.rename(place.path / "elsewhere")
    _until(place.is_quiet)


# --- what can be wrong, in one sentence


def _refusal(error: type[Exception], start: Callable[[], object]) -> str:
    with pytest.raises(error) as refusal:
        start()
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_it_says_that_there_is_no_mongod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(binary, "_wheel_folders", list)
    assert "pip install 'deerflow-mongo[embedded]'" in _refusal(MissingDependencyError, start_embedded)


def test_the_mongod_on_the_path_comes_before_the_installed_one(place: _Place) -> None:
    mongod = Path(_script(place.path / "mongod", "exit 1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(place.path))
        assert find_mongod() == mongod
        assert find_mongod(str(_MONGOD)) == _MONGOD


def test_the_installed_mongod_is_made_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mongod = tmp_path / "db" / "bin" / "mongod"
    mongod.parent.mkdir(parents=True)
    mongod.touch(mode=0o644)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(binary, "_wheel_folders", lambda: [str(tmp_path)])
    assert find_mongod() == mongod
    assert os.access(mongod, os.X_OK)


@pytest.mark.parametrize("name", ["missing", "not-executable", "."])
def test_it_says_that_mongod_path_is_wrong(tmp_path: Path, name: str) -> None:
    (tmp_path / "not-executable").touch(mode=0o644)
    text = _refusal(StorageConfigError, lambda: start_embedded(mongod_path=str(tmp_path / name)))
    assert text.startswith(f"mongod_path is '{tmp_path / name}', which is not an executable file")


def test_it_says_that_windows_will_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert "Linux and macOS only" in _refusal(StorageConfigError, start_embedded)


def test_it_says_that_the_folder_is_a_file(place: _Place) -> None:
    place.folder.touch()
    assert "is not a folder" in _refusal(StorageConfigError, place.start)
    below = _refusal(StorageConfigError, lambda: place.start(place.folder / "below"))
    assert "cannot be used (Not a directory)" in below


def test_it_says_that_the_folder_is_empty_text() -> None:
    assert "data_dir is empty" in _refusal(StorageConfigError, lambda: start_embedded(""))


def test_it_says_that_the_folder_is_not_writable(place: _Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.folder.mkdir()

    def nothing_but_running(_path: object, mode: int) -> bool:
        return mode == os.X_OK

    monkeypatch.setattr(os, "access", nothing_but_running)
    assert "is not writable" in _refusal(StorageConfigError, place.start)


@as_root
def test_it_says_that_the_folder_is_someone_elses(place: _Place) -> None:
    place.folder.mkdir()
    os.chown(place.folder, 65534, 65534)
    assert "belongs to another user" in _refusal(StorageConfigError, place.start)


@pytest.mark.parametrize("name", ["WiredTiger", "thesis.txt"])
def test_it_says_that_the_folder_holds_other_things_and_leaves_them(place: _Place, name: str) -> None:
    place.folder.mkdir(mode=0o755)
    (place.folder / name).touch()
    assert f"contains other files, such as '{name}'" in _refusal(StorageConfigError, place.start)
    assert [path.name for path in place.folder.iterdir()] == [name]
    assert place.folder.stat().st_mode & 0o777 == 0o755


def test_it_says_that_another_mongod_uses_the_folder(place: _Place) -> None:
    place.start().release()
    with _plain_mongod(place.folder, place.path / "plain.sock") as other:
        text = _refusal(StorageUnavailableError, place.start)
        assert other.poll() is None
    assert text == f"another mongod already uses {place.folder}; stop it or choose another data_dir"


_MOUNT_TINY_DISK = ("mount", "-t", "tmpfs", "-o", "size=100k,mode=0700", "tmpfs")


@as_root
def test_it_says_that_the_disk_is_full(place: _Place) -> None:
    place.folder.mkdir()
    if subprocess.run((*_MOUNT_TINY_DISK, str(place.folder)), capture_output=True).returncode:  # noqa: S603
        pytest.skip("may not mount a file system")
    try:
        assert "is full; free some space" in _refusal(StorageUnavailableError, place.start)
    finally:
        place.clear()
        assert _output("umount", str(place.folder)) == ""
        assert not place.folder.is_mount()


def test_it_says_that_a_newer_mongod_wrote_the_data(place: _Place) -> None:
    place.start().release()
    catalogue = place.folder / "db" / "WiredTiger.turtle"
    text = catalogue.read_text()
    assert "version=(major=1" in text
    catalogue.write_text(text.replace("version=(major=1", "version=(major=9"))
    assert "was written by a mongod of a version" in _refusal(StorageConfigError, place.start)


_LOADER = "mongod: error while loading shared libraries: libcrypto.so.3: cannot open shared object file"
_FULL = '{"s":"E","msg":"WiredTiger error message","attr":{"message":"No space left on device"}}'
_DENIED = '{"s":"F","msg":"Terminating.","attr":{"reason":"13: Permission denied"}}'
_OTHER = (
    '{"s":"I","msg":"No space left on device"}\n{"s":"E","msg":"Oh","attr":{"error":"no"}}\n'
    '{"s":"F","msg":"aborting"}\n'
)
_CONFIG, _UNAVAILABLE = StorageConfigError, StorageUnavailableError

_STAND_INS: dict[str, tuple[str, type[Exception], str]] = {
    "missing library": (
        f"echo '{_LOADER}' >&2; exit 127",
        _CONFIG,
        "cannot run on this system, which lacks libcrypto.so.3; install",
    ),
    "other processor": ("kill -ILL $$", _CONFIG, "is not built for this machine; set mongod_path"),
    "full disk": (f"echo '{_FULL}'; exit 14", _UNAVAILABLE, "is full; free some space"),
    "unreadable data": (
        f"echo '{_DENIED}'; exit 14",
        _CONFIG,
        "this user may not read and write all files in {folder}",
    ),
    "anything else": (
        f"echo '{_OTHER}'; exit 3",
        _UNAVAILABLE,
        "mongod exited with code 3 while it started on {folder}: Oh: no",
    ),
    "silence": ("exec sleep 60", _UNAVAILABLE, "was not writable within "),
}


@pytest.mark.parametrize(("script", "error", "sentence"), _STAND_INS.values(), ids=_STAND_INS)
def test_it_says_why_mongod_does_not_start(
    place: _Place, script: str, error: type[Exception], sentence: str
) -> None:
    mongod = _script(place.path / "mongod", script)
    text = _refusal(error, lambda: place.start(mongod_path=mongod, start_timeout_ms=500))
    assert sentence.format(folder=place.folder) in text
    assert place.is_quiet()


def test_it_says_that_mongod_is_for_another_machine(place: _Place) -> None:
    mongod = place.path / "mongod"
    mongod.write_bytes(b"\x7fELF" + bytes(60))
    mongod.chmod(0o755)
    text = _refusal(StorageConfigError, lambda: place.start(mongod_path=str(mongod)))
    assert text.startswith(f"{mongod} cannot run on this machine (Exec format error)")


def test_it_says_that_python_cannot_be_started(place: _Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(place.path / "no-python"))
    assert "cannot start the Python interpreter" in _refusal(StorageConfigError, place.start)


def test_a_start_that_fails_leaves_no_temporary_folder(place: _Place) -> None:
    mongod = _script(place.path / "mongod", "exit 3")
    _refusal(StorageUnavailableError, lambda: start_embedded(mongod_path=mongod))
    assert [path.name for path in place.path.iterdir()] == ["mongod"]
