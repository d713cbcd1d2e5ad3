"""Why a `mongod` did not start: its exit code and the errors in its log, as one sentence.

The sentence says what to change, and the kind of failure which error a caller of `start_embedded` gets.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from ...contract.errors import StorageConfigError, StorageError, StorageUnavailableError
from .folder import DISK_FULL, SERVER_LOG, read_tail

FailureKind = Literal["config", "unavailable", "in_use"]
ERROR_TYPES: Mapping[str, type[StorageError]] = {
    "config": StorageConfigError,
    "unavailable": StorageUnavailableError,
    "in_use": StorageUnavailableError,
}
_MIN_FREE_BYTES = 1024 * 1024
# The first pattern found in mongod's errors names the cause. The order matters: an unsupported file version,
# for one, is also logged as "Permission denied".
_DIAGNOSES: tuple[tuple[re.Pattern[str], FailureKind, str], ...] = (
    (
        re.compile(
            r"error while loading shared libraries: ([^:\s]+)|version `(\S+)' not found"
            r"|Library not loaded: (\S+)"
        ),
        "config",
        "{mongod} cannot run on this system, which lacks {detail}; install the system package that has it or"
        " set mongod_path to a mongod built for this system",
    ),
    (
        re.compile(r"Exec format error|Bad CPU type|cannot execute|Illegal instruction"),
        "config",
        "{mongod} is not built for this machine; set mongod_path to a mongod that is",
    ),
    (
        re.compile(r"DBPathInUse|Unable to lock the lock file"),
        "in_use",
        "another mongod already uses {folder}; stop it or choose another data_dir",
    ),
    (re.compile(r"No space left on device|Disk quota exceeded"), "unavailable", DISK_FULL),
    (
        re.compile(
            r"unsupported WiredTiger|WiredTiger version incompat|under any compatibility version"
            r"|UPGRADE PROBLEM|[Ii]nvalid feature ?[Cc]ompatibility ?[Vv]ersion|too recent to start up"
        ),
        "config",
        "the data in {folder} was written by a mongod of a version that {mongod} cannot read; set mongod_path"
        " to one that can or choose another data_dir",
    ),
    (
        re.compile(r"Permission denied|Operation not permitted|Read-only file system"),
        "config",
        "this user may not read and write all files in {folder}; correct their owner and permissions",
    ),
)


class StartError(Exception):
    """A failed start, within the supervisor; it reaches the user as one of `ERROR_TYPES`."""

    def __init__(self, kind: FailureKind, text: str) -> None:
        super().__init__(text)
        self.kind: FailureKind = kind
        self.text = text


def diagnose(folder: Path, mongod: Path, exit_code: int) -> StartError:
    """Why the mongod that has just exited on this folder did not start."""
    errors = errors_in(read_tail(folder / SERVER_LOG))
    if exit_code == -signal.SIGILL:
        errors.append("Illegal instruction")
    if shutil.disk_usage(folder).free < _MIN_FREE_BYTES:
        errors.append("No space left on device")  # mongod may not have had the space to log it
    text = "\n".join(errors)
    for pattern, kind, sentence in _DIAGNOSES:
        if found := pattern.search(text):
            detail = next((group for group in found.groups() if group), "")
            return StartError(kind, sentence.format(folder=folder, mongod=mongod, detail=detail))
    return StartError(
        "unavailable",
        f"mongod exited with code {exit_code} while it started on {folder}: {_most_specific(errors)}",
    )


def last_error(folder: Path) -> str:
    """The error in mongod's log that best explains why it exited."""
    return _most_specific(errors_in(read_tail(folder / SERVER_LOG)))


def errors_in(log: str) -> list[str]:
    """The errors in a mongod log, those with a reason last.

    Lines that mongod did not write, such as the dynamic loader's, count as errors with a reason.
    """
    found: list[tuple[bool, str]] = []
    for line in log.splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            found.append((True, line))
            continue
        # "Writing fatal message" introduces a stack trace.
        if entry.get("s") in ("E", "F") and entry.get("msg") != "Writing fatal message":
            reason = _reason(entry.get("attr") or {})
            found.append((bool(reason), f"{entry.get('msg')}: {reason}" if reason else f"{entry.get('msg')}"))
    found.sort(key=lambda error: error[0])
    return [" ".join(text.split()) for _, text in found if text.strip()]


def _most_specific(errors: list[str]) -> str:
    return errors[-1] if errors else "its log contains no error"


def _reason(attributes: dict[str, Any]) -> str:
    for key in ("message", "error", "reason"):
        reason: Any = attributes.get(key)
        if isinstance(reason, dict):
            parts = cast("dict[str, Any]", reason)
            reason = parts.get("errmsg") or f"{parts.get('msg')} ({parts.get('error_str')})"
        if isinstance(reason, str):
            return reason
    return ""
