"""Why mongod does not start: one sentence, in the error for "change something" or for "try again"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo.contract.errors import StorageConfigError, StorageUnavailableError
from deerflow_mongo.mongodb.embedded import server
from deerflow_mongo.mongodb.embedded.diagnosis import diagnose, errors_in, last_error

from .sandbox import Sandbox, error_text, script, unsupervised_mongod

_LOADER = "mongod: error while loading shared libraries: libcrypto.so.3: cannot open shared object file"
_FULL = '{"s":"E","msg":"WiredTiger error message","attr":{"message":"No space left on device"}}'
_DENIED = '{"s":"F","msg":"Terminating.","attr":{"reason":"13: Permission denied"}}'
_VERSION = (
    '{"s":"E","msg":"WiredTiger error message","attr":{"message":"unsupported WiredTiger file version"}}'
)
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
        "this user may not read and write all files in {folder}; correct their owner",
    ),
    "anything else": (
        f"echo '{_OTHER}'; exit 3",
        _UNAVAILABLE,
        "mongod exited with code 3 while it started on {folder}: Oh: no",
    ),
}


@pytest.mark.parametrize(("text", "error", "sentence"), _STAND_INS.values(), ids=_STAND_INS)
def test_reason_of_a_failed_start_is_reported(
    sandbox: Sandbox, text: str, error: type[Exception], sentence: str
) -> None:
    mongod = script(sandbox.path / "mongod", text)
    assert sentence.format(folder=sandbox.folder) in error_text(
        error, lambda: sandbox.start(mongod_path=mongod)
    )
    assert sandbox.has_no_processes()


def test_mongod_that_never_answers_is_reported(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough for the supervisor's interpreter to start on a busy machine; mongod's timeout is short.
    monkeypatch.setattr(server, "_SUPERVISOR_GRACE_MS", 60_000)
    mongod = script(sandbox.path / "mongod", "exec sleep 60")
    text = error_text(
        StorageUnavailableError, lambda: sandbox.start(mongod_path=mongod, start_timeout_ms=500)
    )
    assert "was not writable within " in text
    assert sandbox.has_no_processes()


def test_mongod_for_another_machine_is_reported(sandbox: Sandbox) -> None:
    mongod = sandbox.path / "mongod"
    mongod.write_bytes(b"\x7fELF" + bytes(60))
    mongod.chmod(0o755)
    text = error_text(StorageConfigError, lambda: sandbox.start(mongod_path=str(mongod)))
    assert text.startswith(f"{mongod} cannot run on this machine (Exec format error)")


def test_other_mongod_on_the_folder_is_reported_and_left_running(mongod: Path, sandbox: Sandbox) -> None:
    sandbox.start().release()
    with unsupervised_mongod(mongod, sandbox.folder, sandbox.path / "other.sock") as other:
        text = error_text(StorageUnavailableError, sandbox.start)
        assert other.poll() is None
    assert text == f"another mongod already uses {sandbox.folder}; stop it or choose another data_dir"


def test_data_of_a_newer_mongod_is_reported(sandbox: Sandbox) -> None:
    sandbox.start().release()
    catalogue = sandbox.folder / "db" / "WiredTiger.turtle"
    text = catalogue.read_text()
    assert "version=(major=1" in text
    catalogue.write_text(text.replace("version=(major=1", "version=(major=9"))
    assert "was written by a mongod of a version" in error_text(StorageConfigError, sandbox.start)


# --- the log alone


def _diagnosis(tmp_path: Path, *log: str, exit_code: int = 1) -> dict[str, Any]:
    (tmp_path / "mongod.log").write_text("\n".join(log))
    error = diagnose(tmp_path, Path("/bin/mongod"), exit_code)
    return {"kind": error.kind, "text": error.text}


def test_unsupported_version_wins_over_the_permission_error_logged_with_it(tmp_path: Path) -> None:
    found = _diagnosis(tmp_path, _DENIED, _VERSION)
    assert found["kind"] == "config"
    assert f"the data in {tmp_path} was written by a mongod of a version that /bin/mongod" in found["text"]


def test_data_in_use_wins_over_the_permission_error_logged_with_it(tmp_path: Path) -> None:
    in_use = (
        '{"s":"E","msg":"Fatal","attr":{"error":{"code":98,"codeName":"DBPathInUse","errmsg":"DBPathInUse"}}}'
    )
    assert _diagnosis(tmp_path, _DENIED, in_use)["kind"] == "in_use"


def test_exit_without_logged_error_is_reported_with_its_code(tmp_path: Path) -> None:
    assert _diagnosis(tmp_path, '{"s":"I","msg":"starting"}', exit_code=9) == {
        "kind": "unavailable",
        "text": f"mongod exited with code 9 while it started on {tmp_path}: its log contains no error",
    }


def test_errors_with_a_reason_and_foreign_lines_come_last() -> None:
    log = '{"s":"F","msg":"aborting"}\nlibrary  missing\n{"s":"E","msg":"Oh","attr":{"error":"no"}}\n'
    assert errors_in(log) == ["aborting", "library missing", "Oh: no"]


def test_last_error_without_a_log_is_reported(tmp_path: Path) -> None:
    assert last_error(tmp_path) == "its log contains no error"
