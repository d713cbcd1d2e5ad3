"""The `$jsonSchema` validator of each collection: data only. Collections and indexes are in `schema.py`.

A validator describes the fields that `documents/` writes and refuses a document in which one of them is
missing or of another type; other fields are allowed, an operator's own or those of a newer release.
"""

from __future__ import annotations

from ..contract.arguments import RATINGS
from ..contract.rows import CALLERS, CANCEL_ACTIONS
from .documents import checkpoints
from .documents.encoding import JSON_MARK, Document
from .documents.exported_rows import IMPORTED
from .documents.feedback import VOTE
from .documents.run_events import DELETION, EXPIRES_AT, ONCE, RESERVED
from .documents.run_ownership import (
    CACHE_READ,
    CANCEL_ACTION,
    CANCEL_REQUESTED_AT,
    IDEMPOTENCY_KEY,
    KIND,
    LEASE_EXPIRES_AT,
    LEASE_MS,
    LEASE_RENEWED_AT,
    OWNER,
    STOP_REASON,
)
from .documents.stored_times import BELOW_MS, ORDER, ORDER_TIE
from .documents.threads import IS_PINNED
from .documents.users import EMAIL_KEY
from .documents.versions import MIGRATING_FROM, RETENTION_MARK

_WHOLE = ["int", "long"]
_ID: Document = {"bsonType": "string", "minLength": 1}
_OPTIONAL_ID: Document = {"bsonType": ["string", "null"]}
_DATE: Document = {"bsonType": "date"}
_OPTIONAL_DATE: Document = {"bsonType": ["date", "null"]}
_ORDERED: dict[str, Document] = {ORDER: {"bsonType": _WHOLE}, ORDER_TIE: {"bsonType": _WHOLE}}
_COUNT: Document = {"bsonType": _WHOLE, "minimum": 0}
_OPTIONAL_COUNT: Document = {"bsonType": [*_WHOLE, "null"], "minimum": 0}
_PAYLOAD: Document = {"bsonType": "object"}
_BYTES: Document = {"bsonType": "binData"}
_TEXT: Document = {
    "anyOf": [
        {"bsonType": ["string", "null"]},
        {
            "bsonType": "object",
            "required": [JSON_MARK],
            "properties": {JSON_MARK: {"bsonType": "string"}},
            "additionalProperties": False,
        },
    ]
}


def _object(properties: Document, *, optional: tuple[str, ...] = ()) -> Document:
    """An object with these properties, and any others."""
    return {
        "bsonType": "object",
        "required": [name for name in properties if name not in optional],
        "properties": properties,
    }


def _exact(*names: str) -> dict[str, Document]:
    """The microseconds below a date's millisecond; absent where they are zero."""
    return {name + BELOW_MS: {"bsonType": _WHOLE, "minimum": 1, "maximum": 999} for name in names}


_SCHEMA_VERSION: Document = {"bsonType": _WHOLE, "minimum": 1}

_MODEL_COUNTS = _object(
    {
        "model": {"bsonType": "string"},
        "input": _COUNT,
        "output": _COUNT,
        "total": _COUNT,
        "llm_calls": _COUNT,
        CACHE_READ: _COUNT,
    },
    optional=(CACHE_READ,),
)

_TOKENS = _object(
    {
        "input": _COUNT,
        "output": _COUNT,
        "total": _COUNT,
        "llm_calls": _COUNT,
        "by_caller": _object(dict.fromkeys(CALLERS, _COUNT)),
        "by_model": {"bsonType": "object", "additionalProperties": _MODEL_COUNTS},
    }
)

_RUN_TIMES = _exact("updated_at", "started_at", "ended_at")

_RUN_OWNERSHIP: dict[str, Document] = {
    KIND: _OPTIONAL_ID,
    STOP_REASON: _TEXT,
    OWNER: _OPTIONAL_ID,
    LEASE_EXPIRES_AT: _OPTIONAL_DATE,
    LEASE_RENEWED_AT: _OPTIONAL_DATE,
    LEASE_MS: {"bsonType": [*_WHOLE, "null"]},
    CANCEL_ACTION: {"enum": [*CANCEL_ACTIONS, None]},
    CANCEL_REQUESTED_AT: _OPTIONAL_DATE,
    IDEMPOTENCY_KEY: _OPTIONAL_ID,
    **_exact(LEASE_EXPIRES_AT, CANCEL_REQUESTED_AT),
}
"""What a run has that has an owner; others have none of these fields."""

RUN = _object(
    {
        "_id": _ID,
        "schema_version": _SCHEMA_VERSION,
        "thread_id": _ID,
        "user_id": _OPTIONAL_ID,
        "assistant_id": _OPTIONAL_ID,
        "status": _ID,
        "model_name": _OPTIONAL_ID,
        "multitask_strategy": _ID,
        "follow_up_to_run_id": _OPTIONAL_ID,
        "metadata": _PAYLOAD,
        "kwargs": _PAYLOAD,
        "created_at": _DATE,
        **_ORDERED,
        "updated_at": _OPTIONAL_DATE,
        "started_at": _OPTIONAL_DATE,
        "ended_at": _OPTIONAL_DATE,
        **_RUN_TIMES,
        "duration_ms": _OPTIONAL_COUNT,
        "error": _TEXT,
        "error_type": _OPTIONAL_ID,
        "tokens": _TOKENS,
        "message_count": _COUNT,
        "first_human_message": _TEXT,
        "last_ai_message": _TEXT,
        **_RUN_OWNERSHIP,
        IMPORTED: _BYTES,
    },
    optional=(ORDER_TIE, *_RUN_TIMES, *_RUN_OWNERSHIP, IMPORTED),
)

FEEDBACK = _object(
    {
        "_id": _ID,
        "schema_version": _SCHEMA_VERSION,
        "run_id": _ID,
        "thread_id": _ID,
        "user_id": _OPTIONAL_ID,
        "message_id": _OPTIONAL_ID,
        "rating": {"enum": list(RATINGS)},
        "comment": _TEXT,
        "created_at": _DATE,
        **_ORDERED,
        VOTE: {"enum": [True]},
        IMPORTED: _BYTES,
    },
    optional=(ORDER_TIE, VOTE, IMPORTED),
)

_THREAD_TIMES = _exact("updated_at")

THREAD = _object(
    {
        "_id": _ID,
        "schema_version": _SCHEMA_VERSION,
        "user_id": _OPTIONAL_ID,
        "assistant_id": _OPTIONAL_ID,
        "display_name": _TEXT,
        "status": _ID,
        "metadata": _PAYLOAD,
        "metadata_digests": {"bsonType": "array", "items": {"bsonType": "string"}},
        "created_at": _DATE,
        **_ORDERED,
        "updated_at": _DATE,
        **_THREAD_TIMES,
        IS_PINNED: {"enum": [True]},
        IMPORTED: _BYTES,
    },
    optional=(ORDER_TIE, IS_PINNED, *_THREAD_TIMES, IMPORTED),
)

USER = _object(
    {
        "_id": _ID,
        "schema_version": _SCHEMA_VERSION,
        "email": _ID,
        EMAIL_KEY: _ID,
        "password_hash": _OPTIONAL_ID,
        "system_role": _ID,
        "created_at": _DATE,
        ORDER: _ORDERED[ORDER],
        "oauth_provider": _OPTIONAL_ID,
        "oauth_id": _OPTIONAL_ID,
        "needs_setup": {"bsonType": "bool"},
        "token_version": _COUNT,
        IMPORTED: _BYTES,
    },
    optional=(EMAIL_KEY, IMPORTED),
)

_CONTENT: Document = {"bsonType": ["string", "object", "array", "bool", "double", *_WHOLE]}
_NUMBERED: Document = {
    "_id": {"bsonType": "objectId"},
    "schema_version": _SCHEMA_VERSION,
    "thread_id": _ID,
    "seq": _COUNT,
}

_EVENT_TIMES = _exact("created_at")

RUN_EVENT: Document = {
    "anyOf": [
        _object(
            {
                **_NUMBERED,
                "run_id": _ID,
                "event_type": _ID,
                "category": _ID,
                "content": _CONTENT,
                "metadata": _PAYLOAD,
                "created_at": _DATE,
                **_EVENT_TIMES,
                "stored_at": _DATE,
                "user_id": {"bsonType": "string"},
                "event_id": _ID,
                ONCE: {"enum": [True]},
            },
            optional=("user_id", "event_id", ONCE, *_EVENT_TIMES),
        ),
        _object(
            {
                **_NUMBERED,
                "event_stored_at": _DATE,
                EXPIRES_AT: _OPTIONAL_DATE,
                DELETION: {"bsonType": "objectId"},
                RESERVED: {"enum": [True]},
            },
            optional=(DELETION, RESERVED),
        ),
        _object({**_NUMBERED, "minimum_next_seq": _COUNT, "anchored_at": _DATE}),
    ]
}

_STORED_VALUE = _object({"type": {"bsonType": "string"}})


def _keyed(*names: str) -> Document:
    """An `_id` that begins with a thread and has these names and no others."""
    kinds: Document = {
        "piece": _BYTES,
        "token": _BYTES,
        "record": {"bsonType": _WHOLE},
        "part": {"bsonType": _WHOLE},
    }
    properties = {name: kinds.get(name, {"bsonType": "string"}) for name in ("thread", *names)}
    return {**_object(properties), "additionalProperties": False}


_NUMBERS: Document = {"bsonType": [*_WHOLE, "array"], "minimum": 0, "items": _COUNT}
_CHANNELS: Document = {"bsonType": "array", "items": _object({"name": {"bsonType": "string"}})}
_TASK_WRITES: Document = {
    "bsonType": "array",
    "items": _object({"idx": {"bsonType": _WHOLE}, "channel": {"bsonType": "string"}}),
}

CHECKPOINT_DATA: Document = {
    "anyOf": [
        _object(
            {
                "_id": _keyed("ns", "checkpoint"),
                "schema_version": _SCHEMA_VERSION,
                checkpoints.SEQ: _NUMBERS,
                checkpoints.GENERATION: _COUNT,
                "parent": _OPTIONAL_ID,
                "created_at": _DATE,
                checkpoints.METADATA: _STORED_VALUE,
                "body": _STORED_VALUE,
                "channels": _CHANNELS,
                checkpoints.RUN_ID: {"bsonType": "string"},
                checkpoints.DELTA: {"bsonType": "array", "items": {"bsonType": "string"}},
            },
            optional=(checkpoints.RUN_ID, checkpoints.DELTA),
        ),
        _object(
            {
                "_id": _keyed("ns", "checkpoint", "task"),
                "schema_version": _SCHEMA_VERSION,
                "path": {"bsonType": "string"},
                "created_at": _DATE,
                "writes": _TASK_WRITES,
            }
        ),
        _object(
            {
                "_id": _keyed("piece"),
                "schema_version": _SCHEMA_VERSION,
                "data": _BYTES,
                "elements": _COUNT,
                checkpoints.GENERATION: _COUNT,
                checkpoints.STORED_AT: _DATE,
            }
        ),
        _object(
            {
                "_id": _keyed("ns", "checkpoint", "task", "token", "part"),
                "schema_version": _SCHEMA_VERSION,
                "data": _BYTES,
                checkpoints.STORED_AT: _DATE,
            }
        ),
        _object(
            {
                "_id": _keyed("record"),
                "schema_version": _SCHEMA_VERSION,
                checkpoints.SEQ: _NUMBERS,
                checkpoints.GENERATION: _COUNT,
                checkpoints.EXPIRES_AT: _DATE,
            }
        ),
        _object(
            {
                "_id": _keyed("ns", "checkpoint"),
                "schema_version": _SCHEMA_VERSION,
                checkpoints.SEQ: _NUMBERS,
                checkpoints.GENERATION: _COUNT,
                checkpoints.EXPIRES_AT: _DATE,
            }
        ),
    ]
}

VERSION = _object(
    {
        "_id": _ID,
        "version": _SCHEMA_VERSION,
        "readable_from": _SCHEMA_VERSION,
        "updated_at": _DATE,
        RETENTION_MARK: _DATE,
        MIGRATING_FROM: _SCHEMA_VERSION,
        **_exact("updated_at", RETENTION_MARK),
    },
    optional=(RETENTION_MARK, MIGRATING_FROM, *_exact("updated_at", RETENTION_MARK)),
)
