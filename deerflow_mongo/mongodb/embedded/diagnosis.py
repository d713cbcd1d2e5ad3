"""Why a `mongod` ended: its log and exit code -> one sentence."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any, Literal, cast

from .folder import DISK_FULL, SERVER_LOG, tail

_LEAST_FREE_BYTES = 1024 * 1024
FailureKind = Literal["config", "unavailable", "in_use", "busy"]
_NOT_PERMITTED = "{folder} holds files that this user may not read and write; give them to this user"
# The first pattern found in mongod's complaints names the cause. Their order matters: an unsupported file
# version, for one, is reported as "Permission denied".
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
        _NOT_PERMITTED,
    ),
)


class StartFailed(Exception):  # noqa: N818 - an answer on its way, never seen outside
    def __init__(self, kind: FailureKind, text: str) -> None:
        super().__init__(text)
        self.kind: FailureKind = kind
        self.text = text


def diagnose(folder: Path, mongod: Path, exit_code: int) -> StartFailed:
    complaints = complaints_in(tail(folder / SERVER_LOG))
    if exit_code == -signal.SIGILL:
        complaints.append("Illegal instruction")
    if shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
        complaints.append("No space left on device")  # mongod could not even write that
    text = "\n".join(complaints)
    for pattern, kind, sentence in _DIAGNOSES:
        if found := pattern.search(text):
            detail = next((group for group in found.groups() if group), "")
            return StartFailed(kind, sentence.format(folder=folder, mongod=mongod, detail=detail))
    last = complaints[-1] if complaints else "it wrote no reason"
    return StartFailed(
        "unavailable",
        f"mongod ended with exit code {exit_code} while it started on {folder}: {last}",
    )


def complaints_in(log: str) -> list[str]:
    """The errors in a mongod log, those with a reason last, and lines of other origin, as the loader's."""
    found: list[tuple[bool, str]] = []
    for line in log.splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            found.append((True, line))
            continue
        if (
            entry.get("s") in ("E", "F") and entry.get("msg") != "Writing fatal message"
        ):  # before a stack trace
            reason = _reason(entry.get("attr") or {})
            found.append((bool(reason), f"{entry.get('msg')}: {reason}" if reason else f"{entry.get('msg')}"))
    found.sort(key=lambda complaint: complaint[0])
    return [" ".join(text.split()) for _, text in found if text.strip()]


def _reason(attributes: dict[str, Any]) -> str:
    for key in ("message", "error", "reason"):
        reason: Any = attributes.get(key)
        if isinstance(reason, dict):
            parts = cast("dict[str, Any]", reason)
            reason = parts.get("errmsg") or f"{parts.get('msg')} ({parts.get('error_str')})"
        if isinstance(reason, str):
            return reason
    return ""
