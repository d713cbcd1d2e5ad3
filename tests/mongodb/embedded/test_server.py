"""What a running server offers, who can reach it, and how processes share and release it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from pymongo.uri_parser import parse_uri

from deerflow_mongo.contract.errors import StorageConfigError, StorageUnavailableError
from deerflow_mongo.mongodb.embedded import EmbeddedServer, server, start_embedded

from .sandbox import (
    Sandbox,
    as_root,
    client_of,
    error_text,
    is_running,
    names,
    on_linux,
    output_of,
    script,
    wait_until,
    write,
)

# --- what it offers


def test_started_server_supports_transactions_and_change_streams(running: EmbeddedServer) -> None:
    with client_of(running.url) as client:
        things = client["app"]["things"]
        things.insert_one({"_id": "first"})
        with things.watch() as changes, client.start_session() as session:
            with session.start_transaction():
                things.insert_one({"_id": "second"}, session=session)
            assert next(changes)["documentKey"] == {"_id": "second"}


def test_url_contains_no_secret_and_no_timeout(running: EmbeddedServer) -> None:
    parsed = parse_uri(running.url)
    assert (parsed["username"], parsed["password"]) == (None, None)
    assert list(parsed["options"]) == ["directConnection"]
    assert running.url in repr(running)


def test_import_needs_no_driver_and_no_unix() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; import deerflow_mongo.mongodb.embedded;"
        "print([name for name in ('pymongo', 'bson', 'motor') if name in sys.modules])"
    )
    assert output_of(sys.executable, "-c", code) == "[]\n"


# --- who can reach it


@on_linux
def test_no_network_port_is_opened(running: EmbeddedServer) -> None:
    mine = {str(link.readlink()) for link in Path(f"/proc/{running.pid}/fd").iterdir() if link.is_symlink()}
    tables = [Path(f"/proc/{running.pid}/net/{name}") for name in ("tcp", "tcp6", "udp", "udp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    assert mine & {f"socket:[{row[9]}]" for row in rows} == set()
    assert any(name.startswith("socket:") for name in mine)


def test_every_file_is_accessible_to_its_owner_only(running: EmbeddedServer) -> None:
    modes = {
        path.name: path.lstat().st_mode & 0o077
        for path in running.data_dir.iterdir()
        if not path.is_symlink()
    }
    assert {name: mode for name, mode in modes.items() if mode} == {}
    assert running.data_dir.stat().st_mode & 0o777 == 0o700


@as_root
def test_other_user_of_the_machine_cannot_connect(sandbox: Sandbox) -> None:
    public = Path(tempfile.mkdtemp(prefix="deerflow-mongo-test-", dir="/tmp"))
    public.chmod(0o755)
    try:
        server = sandbox.start(public / str(sandbox.path).replace("/", "_")[-30:])
        os.seteuid(65534)
        try:
            with socket.socket(socket.AF_UNIX) as connection, pytest.raises(PermissionError):
                connection.connect(str(server.data_dir / "mongod.sock"))
        finally:
            os.seteuid(0)
        server.release()
    finally:
        shutil.rmtree(public)


# --- sharing and releasing


def test_data_and_url_are_the_same_after_stop_and_start(sandbox: Sandbox) -> None:
    first = sandbox.start()
    write(first.url, "stored")
    first.release()
    second = sandbox.start()
    assert names(second.url) == {"stored"}
    assert (second.url, second.pid != first.pid) == (first.url, True)


def test_processes_share_one_server_until_the_last_releases_it(sandbox: Sandbox) -> None:
    user = sandbox.user()
    theirs = user.server()
    mine = sandbox.start()
    assert (mine.pid, mine.url) == (theirs["pid"], theirs["url"])
    user.leave()
    write(mine.url, "after the first user left")
    mine.release()
    assert not is_running(mine.pid)
    assert sandbox.has_no_processes()


def test_repeated_release_counts_once(sandbox: Sandbox) -> None:
    first, second = sandbox.start(), sandbox.start()
    first.release()
    first.release()
    write(second.url, "still in use")
    second.release()
    assert sandbox.has_no_processes()


def test_release_in_forked_child_does_not_release_the_parents_use(sandbox: Sandbox) -> None:
    user = sandbox.user()
    server = user.server()
    user.fork_and_release_in_child()
    write(server["url"], "still in use")
    user.leave()
    assert sandbox.has_no_processes()


def test_start_while_the_server_stops_gets_a_new_server(sandbox: Sandbox) -> None:
    leaving = sandbox.start()
    release = threading.Thread(target=leaving.release)
    release.start()
    try:
        wait_until(lambda: not (sandbox.folder / "server.json").exists())  # the stop has begun
        server = sandbox.start()
    finally:
        release.join()
    write(server.url, "late")
    assert server.pid != leaving.pid


def test_eight_processes_that_start_at_once_get_one_server(sandbox: Sandbox) -> None:
    users = [sandbox.user() for _ in range(8)]
    assert len({user.server()["pid"] for user in users}) == 1
    for user in users:
        user.leave()
    assert sandbox.has_no_processes()


# --- errors of the start


def test_windows_is_reported_as_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert "Linux and macOS only" in error_text(StorageConfigError, start_embedded)


def test_missing_python_interpreter_is_reported(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(sandbox.path / "no-python"))
    assert "cannot start the Python interpreter" in error_text(StorageConfigError, sandbox.start)


def test_supervisor_that_exits_without_reply_is_reported(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SUPERVISOR_MODULE", "no_such_module")
    text = error_text(StorageUnavailableError, sandbox.start)
    assert text.startswith(f"the supervisor of {sandbox.folder} did not reply (last line of supervisor.log: ")
    assert "No module named no_such_module); try again" in text


def test_failed_start_leaves_no_temporary_folder(sandbox: Sandbox) -> None:
    mongod = script(sandbox.path / "mongod", "exit 3")
    error_text(StorageUnavailableError, lambda: start_embedded(mongod_path=mongod))
    assert [path.name for path in sandbox.path.iterdir()] == ["mongod"]
