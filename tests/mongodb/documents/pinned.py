"""The stored documents of every kind: what `test_stored_documents.py` pins, and the README prints.

`python -m tests.mongodb.documents.pinned` writes them into `deerflow_mongo/mongodb/README.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from bson import Int64, ObjectId

Document = dict[str, Any]

README: Final = Path(__file__).parents[3] / "deerflow_mongo" / "mongodb" / "README.md"
BEGIN, END = "<!-- stored documents: begin -->", "<!-- stored documents: end -->"
WIDTH: Final = 116
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


def _utc(text: str) -> datetime:
    """As the driver returns a date: naive, in UTC."""
    return datetime.fromisoformat(text)


RUN: Final[Document] = {
    "_id": "run-1",
    "schema_version": 2,
    "thread_id": "thread-1",
    "user_id": "alice",
    "assistant_id": "lead_agent",
    "status": "error",
    "model_name": "gpt-4.1",
    "multitask_strategy": "reject",
    "follow_up_to_run_id": None,
    "metadata": {
        "source": "web",
        "a.b": {"$gt": 1},
        "big": {"_json": "1180591620717411303424"},
        '_json"n\\u0000l"': 1,
        '_json"_json"': "x",
    },
    "kwargs": {"input": {"_json": '{"messages":[{"$ref":"x","$id":1}]}'}},
    "created_at": _utc("2026-04-22T03:26:38.123"),
    "order": Int64(1776828398123456),
    "order_tie": Int64(1776828398200000),
    "updated_at": _utc("2026-04-22T03:27:02.001"),
    "updated_at_us": 9,
    "started_at": _utc("2026-04-22T03:26:38.200"),
    "ended_at": _utc("2026-04-22T03:27:02"),
    "ended_at_us": 17,
    "duration_ms": Int64(23800),
    "error": "RateLimitError: the model is busy",
    "error_type": "RateLimitError",
    "tokens": {
        "input": 7,
        "output": 5,
        "total": 12,
        "llm_calls": 1,
        "by_caller": {"lead_agent": 12, "subagent": 0, "middleware": 0},
        "by_model": {
            "gpt-4%2E1": {"input": 7, "output": 5, "llm_calls": 1, "total": 12, "model": "gpt-4.1"},
        },
    },
    "message_count": 0,
    "first_human_message": None,
    "last_ai_message": None,
}

OWNED_RUN: Final[Document] = {
    "_id": "run-2",
    "schema_version": 2,
    "thread_id": "thread-1",
    "user_id": "alice",
    "assistant_id": "lead_agent",
    "status": "running",
    "model_name": None,
    "multitask_strategy": "interrupt",
    "follow_up_to_run_id": None,
    "metadata": {},
    "kwargs": {},
    "created_at": _utc("2026-04-22T03:30:00"),
    "order": Int64(1776828600000000),
    "order_tie": Int64(1776828600000321),
    "updated_at": _utc("2026-04-22T03:30:10.003"),
    "updated_at_us": 120,
    "started_at": _utc("2026-04-22T03:30:00.004"),
    "started_at_us": 500,
    "ended_at": None,
    "duration_ms": None,
    "error": None,
    "error_type": None,
    "tokens": {
        "input": 9,
        "output": 0,
        "total": 9,
        "llm_calls": 0,
        "by_caller": {"lead_agent": 0, "subagent": 0, "middleware": 0},
        "by_model": {
            "gpt-4%2E1": {
                "model": "gpt-4.1",
                "input": 9,
                "output": 0,
                "total": 9,
                "llm_calls": 0,
                "cache_read": 4,
            },
        },
    },
    "message_count": 0,
    "first_human_message": None,
    "last_ai_message": None,
    "operation_kind": "run",
    "stop_reason": None,
    "owner_worker_id": "host-1:4f2a",
    "lease_expires_at": _utc("2026-04-22T03:30:40.002"),
    "lease_expires_at_us": 880,
    "lease_renewed_at": _utc("2026-04-22T03:30:10.005"),
    "lease_ms": 30000,
    "cancel_action": "rollback",
    "cancel_requested_at": _utc("2026-04-22T03:30:08.150"),
    "cancel_requested_at_us": 61,
    "idempotency_key": "mcp-task:7:1:1",
}

VOTE: Final[Document] = {
    "_id": "7f0c5a3e-52c3-4f10-9b2a-6d1a35a1f0c4",
    "schema_version": 2,
    "thread_id": "thread-1",
    "run_id": "run-1",
    "user_id": "alice",
    "message_id": None,
    "rating": -1,
    "comment": "too long",
    "created_at": _utc("2026-04-22T03:28:00.000"),
    "order": Int64(1776828480000321),
    "vote": True,
}

THREAD: Final[Document] = {
    "_id": "thread-1",
    "schema_version": 2,
    "user_id": "alice",
    "assistant_id": "lead_agent",
    "display_name": "A title",
    "status": "idle",
    "metadata": {"source": "web", "n": 1},
    # BLAKE2b-64 of the JSON text "source" and BLAKE2b-96 of ["source","web"]; of "n" and ["n",1].
    # They are stored, so the way they are computed must not change.
    "metadata_digests": [
        "0f0bd31dd81b3045f2ce9504dde4b939b6724cae",
        "fd661c26408c6ed2b88170f9cb4d5cff493f0fe9",
    ],
    "created_at": _utc("2026-04-22T03:26:38.000"),
    "order": Int64(1776828398000250),
    "updated_at": _utc("2026-04-22T03:27:02.001"),
    "updated_at_us": 9,
}

EVENT: Final[Document] = {
    "_id": ObjectId("6807f0ae0f1d2c3b4a596877"),
    "schema_version": 2,
    "thread_id": "thread-1",
    "seq": 1,
    "run_id": "run-1",
    "event_type": "ai_message",
    "category": "message",
    "content": {"text": "Hello", "a.b": {"$gt": 1}, "big": {"_json": "1180591620717411303424"}},
    "metadata": {"caller": "lead_agent"},
    "created_at": _utc("2026-04-22T03:26:40.500"),
    "created_at_us": 7,
    "user_id": "alice",
    "stored_at": _utc("2026-04-22T03:26:40.502"),
}

ANCHOR: Final[Document] = {
    "_id": ObjectId("6807f0ae0f1d2c3b4a596876"),
    "schema_version": 2,
    "thread_id": "thread-1",
    "seq": 0,
    "minimum_next_seq": 1,
    "anchored_at": _utc("2026-04-22T03:26:40.502"),
}

TOMBSTONE: Final[Document] = {
    "_id": ObjectId("6807f0ae0f1d2c3b4a596878"),
    "schema_version": 2,
    "thread_id": "thread-1",
    "seq": 1,
    "event_stored_at": _utc("2026-04-22T03:26:40.502"),
    "expires_at": _utc("2026-04-23T03:30:00.000"),
    "deletion": ObjectId("6807f0b00f1d2c3b4a596879"),
}

USER: Final[Document] = {
    "_id": "0b6ad8a6-3c0a-4b0e-9a37-0a8b0f6f2f11",
    "schema_version": 2,
    "email": "alice@example.org",
    "email_key": "alice@example.org",
    "password_hash": "$2b$12$hash",
    "system_role": "admin",
    "oauth_provider": "github",
    "oauth_id": "4711",
    "needs_setup": True,
    "token_version": 0,
    "created_at": _utc("2026-04-22T03:20:00.000"),
    "order": Int64(1776828000000000),
}

VERSION: Final[Document] = {
    "_id": "deerflow-mongo",
    "version": 2,
    "readable_from": 2,
    "updated_at": _utc("2026-04-22T03:20:00.000"),
    "updated_at_us": 128,
}

KINDS: Final[tuple[tuple[str, str, Document], ...]] = (
    ("runs", "a run", RUN),
    ("runs", "an active run with an owner", OWNED_RUN),
    ("feedback", "a vote", VOTE),
    ("threads", "a thread", THREAD),
    ("run_events", "a run event", EVENT),
    ("run_events", "the anchor of a thread's numbers", ANCHOR),
    ("run_events", "the tombstone of a deleted event", TOMBSTONE),
    ("users", "an account", USER),
    ("schema_versions", "the version of the database", VERSION),
)


# -- printing --------------------------------------------------------------------------------------


def printed() -> str:
    """All kinds as mongosh shows them."""
    blocks = [f"// {collection}: {kind}\n{shell_text(document, 0)}" for collection, kind, document in KINDS]
    return "```javascript\n" + "\n\n".join(blocks) + "\n```"


def shell_text(value: object, indent: int) -> str:
    """A value as mongosh takes and shows it."""
    if isinstance(value, dict):
        return _object(cast("Document", value), indent)
    if isinstance(value, datetime):
        naive = value.replace(tzinfo=None)
        return f'ISODate("{naive.isoformat(timespec="milliseconds")}Z")'
    if isinstance(value, Int64):
        return f'Long("{value}")'
    if isinstance(value, ObjectId):
        return f'ObjectId("{value}")'
    if isinstance(value, list):
        return "[" + ", ".join(shell_text(item, indent) for item in cast("list[object]", value)) + "]"
    return json.dumps(value)


def _object(document: Document, indent: int) -> str:
    """On one line if it fits, else filled lines, with objects that do not fit on lines of their own."""
    fields = [f"{_key(key)}: {shell_text(item, indent + 2)}" for key, item in document.items()]
    line = "{ " + ", ".join(fields) + " }"
    if len(line) + indent <= WIDTH - 24 and "\n" not in line:
        return line
    lines = "\n".join(_filled(fields, " " * (indent + 2)))
    return f"{{\n{lines}\n{' ' * indent}}}"


def _filled(fields: list[str], margin: str) -> Iterator[str]:
    line = ""
    for place, field in enumerate(fields):
        text = field + ("," if place < len(fields) - 1 else "")
        if line and ("\n" in text or len(margin) + len(line) + 1 + len(text) > WIDTH):
            yield margin + line
            line = ""
        line = f"{line} {text}" if line else text
        if "\n" in text:
            yield margin + line
            line = ""
    if line:
        yield margin + line


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) else json.dumps(key)


def readme_with(content: str, begin: str, end: str) -> str:
    """The README with this content between two marks."""
    return text_with(README.read_text(encoding="utf-8"), content, begin, end)


def text_with(text: str, content: str, begin: str, end: str) -> str:
    """The text with this content between two marks."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def readme_with_documents() -> str:
    return readme_with(printed(), BEGIN, END)


if __name__ == "__main__":
    README.write_text(readme_with_documents(), encoding="utf-8")
