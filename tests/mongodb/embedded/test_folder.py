"""The data folder: which ones are accepted, moved and copied ones, temporary ones, and their sockets."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from deerflow_mongo.contract.errors import StorageConfigError, StorageUnavailableError
from deerflow_mongo.mongodb.embedded import start_embedded

from .sandbox import Sandbox, as_root, error_text, names, output_of, write


def test_open_folder_is_closed_to_other_users(sandbox: Sandbox) -> None:
    sandbox.folder.mkdir(mode=0o755)
    assert sandbox.start().data_dir.stat().st_mode & 0o777 == 0o700


def test_data_survives_a_move_of_the_folder(sandbox: Sandbox) -> None:
    first = sandbox.start()
    write(first.url, "stored")
    first.release()
    moved = sandbox.folder.rename(sandbox.path / "moved")
    assert names(sandbox.start(moved).url) == {"stored"}


def test_copy_of_a_running_folder_does_not_affect_the_original(sandbox: Sandbox) -> None:
    original = sandbox.start()
    (sandbox.path / "copy").mkdir(mode=0o700)
    for name in ("start.lock", "users.lock", "supervisor.lock", "server.json"):
        shutil.copy(sandbox.folder / name, sandbox.path / "copy" / name)
    copy = sandbox.start(sandbox.path / "copy")
    write(copy.url, "in the copy")
    assert names(original.url) == set()
    assert sandbox.start().pid == original.pid


@pytest.mark.parametrize("name", ["with space, ünd more", "x" * 120])
def test_folder_whose_path_is_unfit_for_sockets_works(sandbox: Sandbox, name: str) -> None:
    server = sandbox.start(sandbox.path / name)
    write(server.url, "reachable")
    server.release()
    assert [path.name for path in sandbox.path.iterdir()] == [name]


# --- temporary folders


def test_temporary_folder_is_removed_with_its_server(sandbox: Sandbox) -> None:
    server = sandbox.start_temporary()
    assert server.data_dir.parent == sandbox.path
    write(server.url, "short-lived")
    server.release()
    assert list(sandbox.path.iterdir()) == []


def test_abandoned_temporary_folder_is_removed_by_the_next_start(sandbox: Sandbox) -> None:
    old, recent, foreign = (sandbox.path / f"deerflow-mongo-{name}" for name in ("old", "recent", "foreign"))
    for folder in (old, recent, foreign):
        folder.mkdir()
        (folder / "users.lock").touch()
        (folder / "temporary").touch()
    (foreign / "temporary").unlink()
    for folder in (old, foreign):
        os.utime(folder, (0, 0))
    sandbox.start_temporary().release()
    assert sorted(sandbox.path.iterdir()) == [foreign, recent]


# --- unusable folders


def test_file_as_folder_is_reported(sandbox: Sandbox) -> None:
    sandbox.folder.touch()
    assert "is not a folder" in error_text(StorageConfigError, sandbox.start)
    below = error_text(StorageConfigError, lambda: sandbox.start(sandbox.folder / "below"))
    assert "cannot be used (Not a directory)" in below


def test_empty_data_dir_is_reported() -> None:
    assert "data_dir is empty" in error_text(StorageConfigError, lambda: start_embedded(""))


def test_folder_without_write_permission_is_reported(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.folder.mkdir()

    def only_execute(_path: object, mode: int) -> bool:
        return mode == os.X_OK

    monkeypatch.setattr(os, "access", only_execute)
    assert "is not writable" in error_text(StorageConfigError, sandbox.start)


@as_root
def test_folder_of_another_user_is_reported(sandbox: Sandbox) -> None:
    sandbox.folder.mkdir()
    os.chown(sandbox.folder, 65534, 65534)
    assert "belongs to another user" in error_text(StorageConfigError, sandbox.start)


@pytest.mark.parametrize("name", ["WiredTiger", "thesis.txt"])
def test_folder_with_other_files_is_reported_and_unchanged(sandbox: Sandbox, name: str) -> None:
    sandbox.folder.mkdir(mode=0o755)
    (sandbox.folder / name).touch()
    assert f"contains other files, such as '{name}'" in error_text(StorageConfigError, sandbox.start)
    assert [path.name for path in sandbox.folder.iterdir()] == [name]
    assert sandbox.folder.stat().st_mode & 0o777 == 0o755


_MOUNT_TINY_DISK = ("mount", "-t", "tmpfs", "-o", "size=100k,mode=0700", "tmpfs")


@as_root
def test_full_disk_is_reported(sandbox: Sandbox) -> None:
    sandbox.folder.mkdir()
    if subprocess.run((*_MOUNT_TINY_DISK, str(sandbox.folder)), capture_output=True).returncode:  # noqa: S603
        pytest.skip("may not mount a file system")
    try:
        assert "is full; free some space" in error_text(StorageUnavailableError, sandbox.start)
    finally:
        sandbox.close()
        assert output_of("umount", str(sandbox.folder)) == ""
        assert not sandbox.folder.is_mount()
