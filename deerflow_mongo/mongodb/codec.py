"""Row <-> document. The only place that knows how a document looks.

A payload (`metadata`, `kwargs`) is stored as a native subdocument, so that people can query it. What would
not come back from BSON as it went in (an integer beyond 64 bits, a lone surrogate, a key with NUL, a
`$ref`) is stored as marked JSON instead, `{"_json": "<text>"}`, each top-level value for itself, so that one
odd value neither hides the others nor stands in the way of a merge by key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeAlias, cast

import bson
from bson import Int64, ObjectId

from ..contract.errors import ArgumentTypeError, StorageError
from ..contract.rows import CALLERS, FeedbackRow, JSONValue, RunEventRow, RunRow, ThreadMeta, UserRow
from .documents.stored_times import optional_row_time, row_time

Document: TypeAlias = dict[str, Any]

SCHEMA_VERSION = 1
"""The version of the documents written here and of the indexes and validators beside them."""

JSON_MARK = "_json"
"""The one key of a marked value, and the beginning of a marked key."""

VOTE = "vote"
"""Present and true on the one feedback document that is a user's vote on a run."""

MODEL_NAME_WHEN_UNKNOWN = "unknown"

_DBREF_KEY = "$ref"  # a subdocument with it comes back from BSON as a DBRef
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
_KEY_DIGEST_BYTES, _DIGEST_BYTES = 8, 12
_REMEMBERED_KEY_LENGTH = 128  # keys are a user's: a thousand long ones would fill the memory


# -- payloads --------------------------------------------------------------------------------------


def _text_is_native(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key_is_native(key: str) -> bool:
    return "\0" not in key and key != _DBREF_KEY and _text_is_native(key)


def _is_native(value: JSONValue) -> bool:
    """Whether BSON gives `value` back as it is."""
    kind = type(value)
    if kind is str:
        return _text_is_native(cast("str", value))
    if kind is dict:
        for key, item in cast("dict[str, JSONValue]", value).items():
            if not _key_is_native(key) or not _is_native(item):
                return False
        return True
    if kind is list:
        return all(map(_is_native, cast("list[JSONValue]", value)))
    if kind is int:
        return _MIN_INT64 <= cast("int", value) <= _MAX_INT64
    return True


def _marked(value: JSONValue) -> Document:
    return {JSON_MARK: json.dumps(value, separators=(",", ":"))}


def _is_marked(value: object) -> bool:
    return type(value) is dict and JSON_MARK in value


def encode_value(value: JSONValue) -> Any:
    """A JSON-like value as it is stored."""
    return _marked(value) if _is_marked(value) or not _is_native(value) else value


def _plain(value: object) -> Any:
    """`value` with plain integers for the driver's 64-bit ones, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("Document", value).items()}
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[object]", value)]
    return int(value) if isinstance(value, Int64) else value


def decode_value(stored: Any) -> JSONValue:
    return json.loads(stored[JSON_MARK]) if _is_marked(stored) else _plain(stored)


def _encode_key(key: str) -> str:
    if _key_is_native(key) and not key.startswith(JSON_MARK):
        return key
    return JSON_MARK + json.dumps(key)


def _keys_need_no_mark(payload: dict[str, Any]) -> bool:
    keys = "\n".join(payload)
    return keys.isascii() and "\0" not in keys and _DBREF_KEY not in keys and JSON_MARK not in keys


def _needs_no_mark(payload: dict[str, JSONValue]) -> bool:
    """Whether a payload is stored as it is. True of most; a wrong False only costs a closer look."""
    if not _keys_need_no_mark(payload):
        return False
    todo: list[Any] = [payload.values()]
    for items in todo:
        for item in items:
            kind = type(item)  # pyright: ignore[reportUnknownVariableType]
            if kind is str:
                if not item.isascii() and not _text_is_native(item):
                    return False
            elif kind is dict:
                if not _keys_need_no_mark(item):
                    return False
                todo.append(item.values())
            elif kind is list:
                todo.append(item)
            elif kind is int and not _MIN_INT64 <= item <= _MAX_INT64:
                return False
    return True


def encode_mapping(payload: dict[str, JSONValue]) -> Document:
    """A payload as the subdocument that is stored; keys and values each for themselves."""
    if _needs_no_mark(payload):
        return payload
    return {_encode_key(key): encode_value(value) for key, value in payload.items()}


def _decode_key(key: str) -> str:
    return json.loads(key[len(JSON_MARK) :]) if key.startswith(JSON_MARK) else key


def _is_as_given(stored: dict[str, Any]) -> bool:
    """Whether nothing in a stored payload needs decoding. True of most, and the hot path of every row."""
    if JSON_MARK in "\n".join(stored):
        return False
    todo: list[Any] = [stored.values()]
    for items in todo:
        for item in items:
            kind = type(item)  # pyright: ignore[reportUnknownVariableType]
            if kind is str:
                continue
            if kind is dict:
                if JSON_MARK in item:
                    return False
                todo.append(item.values())
            elif kind is list:
                todo.append(item)
            elif kind is Int64:
                return False
    return True


def decode_mapping(stored: dict[str, Any]) -> dict[str, JSONValue]:
    """The payload that a subdocument stands for; the subdocument itself, where that is the same."""
    if _is_as_given(stored):
        return stored
    return {_decode_key(key): decode_value(value) for key, value in stored.items()}


def encode_text(name: str, value: object) -> Any:
    """A text of any length, or None, as it is stored; `TypeError` for anything else."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name} must be text or None, got {type(value).__name__}")
    return encode_value(value if type(value) is str else str.__str__(value))


def decode_text(stored: Any) -> str | None:
    return json.loads(cast("Document", stored)[JSON_MARK]) if type(stored) is dict else stored


def metadata_digests(payload: Mapping[str, JSONValue]) -> list[str]:
    """One digest for each top-level key and its whole value, equal only for values equal in type and content.

    Stored beside a thread's metadata and indexed: one index answers a search by any key, whatever characters
    are in it and however large the value is.
    """
    return [_digest(key, value) for key, value in payload.items()]


# One encoder for all: `json.dumps` makes a new one at every call with options.
_canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


KEY_DIGEST_LENGTH = 2 * _KEY_DIGEST_BYTES
"""The characters of a metadata digest that tell the key alone, so that an update finds those it replaces."""


def _key_digest(key: str) -> str:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=_KEY_DIGEST_BYTES).hexdigest()


_remembered_key_digest = lru_cache(maxsize=1024)(_key_digest)


def _digest(key: str, value: JSONValue) -> str:
    # Canonical JSON tells 1 from true and from 1.0, and None from a missing key; -0.0 equals 0.0 in Python.
    canonical = _canonical_json([key, value])
    if "-0.0" in canonical:
        canonical = _canonical_json([key, _without_negative_zero(value)])
    of_key = _remembered_key_digest if len(key) <= _REMEMBERED_KEY_LENGTH else _key_digest
    return of_key(key) + hashlib.blake2b(canonical.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _without_negative_zero(value: JSONValue) -> JSONValue:
    if isinstance(value, dict):
        return {key: _without_negative_zero(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_negative_zero(item) for item in value]
    return 0.0 if isinstance(value, float) and value == 0.0 else value


# -- token figures by model ------------------------------------------------------------------------

_MODEL_KEY_ESCAPES = {"%": "%25", ".": "%2E", "$": "%24", "\0": "%00"}
_MODEL_KEY_TABLE = str.maketrans(_MODEL_KEY_ESCAPES)


@lru_cache(maxsize=256)
def model_key(model_name: str) -> str:
    """A model's name as one step of an update's path, where a dot would end the step ("gpt-4.1")."""
    return model_name.translate(_MODEL_KEY_TABLE) or "%"


# -- runs ------------------------------------------------------------------------------------------

FIGURE_PATHS: dict[str, str] = {
    "total_input_tokens": "tokens.input",
    "total_output_tokens": "tokens.output",
    "total_tokens": "tokens.total",
    "llm_call_count": "tokens.llm_calls",
    "lead_agent_tokens": "tokens.by_caller.lead_agent",
    "subagent_tokens": "tokens.by_caller.subagent",
    "middleware_tokens": "tokens.by_caller.middleware",
    "message_count": "message_count",
}
"""A row's figure -> its path in the document."""


def no_tokens() -> Document:
    """The token figures of a run that has spent none."""
    return {
        "input": 0,
        "output": 0,
        "total": 0,
        "llm_calls": 0,
        "by_caller": dict.fromkeys(CALLERS, 0),
        "by_model": {},
    }


def new_run(run_id: str, thread_id: str, fields: Mapping[str, Any], order: int) -> Document:
    """A run's first document. `fields` are checked and encoded; `order` is the clock's stamp."""
    return {
        "_id": run_id,
        "schema_version": SCHEMA_VERSION,
        "thread_id": thread_id,
        "error": None,
        **fields,
        "order": order,
        "updated_at": None,
        "tokens": no_tokens(),
        "message_count": 0,
        "first_human_message": None,
        "last_ai_message": None,
    }


def _check_version(document: Document) -> None:
    """Refuse a document that a newer release wrote, whose fields may mean something else."""
    version = document["schema_version"]
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"document {document['_id']!r} has schema version {version}, and this release of deerflow-mongo "
            f"reads up to {SCHEMA_VERSION}: upgrade deerflow-mongo"
        )


# In rows, `+` gives a plain int for the driver's 64-bit one, at a fraction of the cost of `int`.


def run_row(document: Document) -> RunRow:
    _check_version(document)
    tokens = document["tokens"]
    by_caller = tokens["by_caller"]
    updated_at = document["updated_at"]
    return {
        "run_id": document["_id"],
        "thread_id": document["thread_id"],
        "assistant_id": document["assistant_id"],
        "user_id": document["user_id"],
        "status": document["status"],
        "model_name": document["model_name"],
        "multitask_strategy": document["multitask_strategy"],
        "follow_up_to_run_id": document["follow_up_to_run_id"],
        "metadata": decode_mapping(document["metadata"]),
        "kwargs": decode_mapping(document["kwargs"]),
        "created_at": row_time(document["created_at"]),
        "updated_at": "" if updated_at is None else row_time(updated_at),
        "started_at": optional_row_time(document["started_at"]),
        "ended_at": optional_row_time(document["ended_at"]),
        "error": decode_text(document["error"]),
        "total_input_tokens": +tokens["input"],
        "total_output_tokens": +tokens["output"],
        "total_tokens": +tokens["total"],
        "llm_call_count": +tokens["llm_calls"],
        "lead_agent_tokens": +by_caller["lead_agent"],
        "subagent_tokens": +by_caller["subagent"],
        "middleware_tokens": +by_caller["middleware"],
        "message_count": +document["message_count"],
        "first_human_message": decode_text(document["first_human_message"]),
        "last_ai_message": decode_text(document["last_ai_message"]),
    }


# -- feedback --------------------------------------------------------------------------------------


def feedback_row(document: Document) -> FeedbackRow:
    _check_version(document)
    user_id = document["user_id"]
    return {
        "feedback_id": document["_id"],
        "run_id": document["run_id"],
        "thread_id": document["thread_id"],
        "user_id": user_id,
        "owner_id": user_id,
        "message_id": document["message_id"],
        "rating": +document["rating"],
        "comment": decode_text(document["comment"]),
        "created_at": row_time(document["created_at"]),
    }


# -- users -----------------------------------------------------------------------------------------


def user_row(document: Document) -> UserRow:
    _check_version(document)
    return {
        "user_id": document["_id"],
        "email": document["email"],
        "password_hash": document["password_hash"],
        "system_role": document["system_role"],
        "created_at": row_time(document["created_at"]),
        "oauth_provider": document["oauth_provider"],
        "oauth_id": document["oauth_id"],
        "needs_setup": document["needs_setup"],
        "token_version": +document["token_version"],
    }


# -- threads ---------------------------------------------------------------------------------------


def thread_metadata(payload: dict[str, JSONValue]) -> Document:
    """The two fields that hold a thread's metadata; they are only ever written together."""
    return {"metadata": encode_mapping(payload), "metadata_digests": metadata_digests(payload)}


def merged_thread_metadata(payload: dict[str, JSONValue]) -> Document:
    """The stage of an update that merges `payload` into a thread's metadata by its top-level keys."""
    new = thread_metadata(payload)
    digests: list[str] = new["metadata_digests"]
    replaced = {"$in": [{"$substrBytes": ["$$digest", 0, KEY_DIGEST_LENGTH]}, _key_parts(digests)]}
    kept = {"$filter": {"input": "$metadata_digests", "as": "digest", "cond": {"$eq": [replaced, False]}}}
    return {
        "metadata": {"$mergeObjects": ["$metadata", {"$literal": new["metadata"]}]},
        "metadata_digests": {"$concatArrays": [kept, digests]},
    }


def _key_parts(digests: list[str]) -> list[str]:
    return [digest[:KEY_DIGEST_LENGTH] for digest in digests]


def thread_row(document: Document) -> ThreadMeta:
    _check_version(document)
    return ThreadMeta(
        thread_id=document["_id"],
        assistant_id=document["assistant_id"],
        user_id=document["user_id"],
        display_name=decode_text(document["display_name"]),
        status=document["status"],
        metadata=decode_mapping(document["metadata"]),
        created_time=datetime.fromisoformat(document["created_at"]),
        updated_time=datetime.fromisoformat(document["updated_at"]),
    )


# -- run events ------------------------------------------------------------------------------------

ONCE = "once"
"""Present and true on an event that `put_if_absent` made."""

HEAD_SEQ = 0
"""Where a thread's head stands: below every event, so that it comes last only in an empty thread."""


def encode_content(content: JSONValue) -> Any:
    """An event's content: a mapping by its keys, as payloads are; anything else as one value."""
    return encode_mapping(content) if isinstance(content, dict) else encode_value(content)


def _decode_content(stored: Any) -> JSONValue:
    if type(stored) is dict and JSON_MARK not in stored:
        return decode_mapping(cast("Document", stored))
    return decode_value(stored)


def new_event(fields: Mapping[str, Any]) -> Document:
    """An event's document before it has a number. `fields` are checked and encoded."""
    return {"_id": ObjectId(), "schema_version": SCHEMA_VERSION, "seq": 0, **fields, "stored_at": None}


def thread_head(thread_id: str, founded_at: datetime) -> Document:
    """What stays of a thread when all its events are gone, and from which number it goes on then."""
    return {
        "_id": ObjectId(),
        "schema_version": SCHEMA_VERSION,
        "thread_id": thread_id,
        "seq": HEAD_SEQ,
        "floor": 0,
        "founded_at": founded_at,
    }


def event_stub(last: int, forget_at: datetime) -> list[Document]:
    """The update that leaves an event's number taken and nothing else.

    Of numbers below `last` the stub goes at `forget_at`; the others keep theirs for ever, so that a thread's
    highest number is never forgotten.
    """
    number = {"_id": "$_id", "schema_version": "$schema_version", "thread_id": "$thread_id", "seq": "$seq"}
    goes = {"$cond": [{"$lt": ["$seq", last]}, forget_at, None]}
    return [{"$replaceRoot": {"newRoot": {**number, "was_stored_at": "$stored_at", "forget_at": goes}}}]


def event_size_bytes(document: Document) -> int:
    return len(bson.encode(document))


def event_row(document: Document) -> RunEventRow:
    _check_version(document)
    row: RunEventRow = {
        "thread_id": document["thread_id"],
        "run_id": document["run_id"],
        "event_type": document["event_type"],
        "category": document["category"],
        "content": _decode_content(document["content"]),
        "metadata": decode_mapping(document["metadata"]),
        "created_at": row_time(document["created_at"]),
        "seq": +document["seq"],
    }
    if "user_id" in document:
        row["user_id"] = document["user_id"]
    return row
