"""Collections, indexes, validators and sort orders: data only. `migrations.py` applies it to a database.

The operations that need an index are listed beside it. A validator describes the fields that `documents/`
writes and refuses a document in which one of them is missing or of another type; other fields are allowed,
an operator's own or those of a newer release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ..contract.arguments import RATINGS
from ..contract.rows import CALLERS, CANCEL_ACTIONS, MESSAGE
from .documents import checkpoints
from .documents.encoding import JSON_MARK, Document
from .documents.feedback import VOTE
from .documents.run_events import DELETION, EXPIRES_AT, ONCE
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
from .documents.versions import MIGRATING_FROM, RETENTION_MARK, SCHEMA_VERSION

RUNS = "runs"
FEEDBACK = "feedback"
THREADS = "threads"
RUN_EVENTS = "run_events"
USERS = "users"
CHECKPOINTS = "checkpoint_data"
"""Another name than those of langgraph-checkpoint-mongodb's collections, which are never touched."""
VERSIONS = "schema_versions"

RETENTION = "retention"
"""The name of the index that `run_events_ttl_days` asks for."""

DAY_S = 86_400

_TITLE_START = "deerflow-mongo, schema version"
VALIDATOR_TITLE = f"{_TITLE_START} {SCHEMA_VERSION}"
"""Of every validator: it marks the collection as one that this package has set up."""

Keys: TypeAlias = tuple[tuple[str, int], ...]
NEWEST_FIRST: Keys = ((ORDER, -1), (ORDER_TIE, -1))
OLDEST_FIRST: Keys = ((ORDER, 1), (ORDER_TIE, 1))
BY_EVENT_ID: Keys = (("event_id", 1),)
LAST_UPDATED_FIRST: Keys = (("updated_at", -1), ("updated_at" + BELOW_MS, -1), ("_id", -1))
PINNED_FIRST: Keys = ((IS_PINNED, -1), *LAST_UPDATED_FIRST)
"""A thread that is not pinned lacks the field, which sorts below true."""
SEQ_RISING: Keys = (("seq", 1),)
SEQ_FALLING: Keys = (("seq", -1),)
OLDEST_USER_FIRST: Keys = ((ORDER, 1), ("_id", 1))
VOTE_FIRST: Keys = ((VOTE, -1), *NEWEST_FIRST)
"""The document that is the vote, else the newest that can become it."""


@dataclass(frozen=True, slots=True)
class Index:
    """One index; `serves` says which operation needs it."""

    name: str
    keys: Keys
    serves: str
    unique: bool = False
    partial: Document | None = None
    expire_after_s: int | None = None

    def specification(self) -> Document:
        """As the server's `createIndexes` takes it and `listIndexes` returns it."""
        specification: Document = {"name": self.name, "key": dict(self.keys)}
        if self.unique:
            specification["unique"] = True
        if self.partial is not None:
            specification["partialFilterExpression"] = self.partial
        if self.expire_after_s is not None:
            specification["expireAfterSeconds"] = self.expire_after_s
        return specification


@dataclass(frozen=True, slots=True)
class CollectionSchema:
    name: str
    validator: Document
    indexes: tuple[Index, ...]

    @property
    def stored_validator(self) -> Document:
        """The validator as the server takes it and lists it among a collection's options."""
        return {"$jsonSchema": {"title": VALIDATOR_TITLE, **self.validator}}


# -- validators ------------------------------------------------------------------------------------

_WHOLE = ["int", "long"]
_ID: Document = {"bsonType": "string", "minLength": 1}
_OPTIONAL_ID: Document = {"bsonType": ["string", "null"]}
_DATE: Document = {"bsonType": "date"}
_OPTIONAL_DATE: Document = {"bsonType": ["date", "null"]}
_ORDERED: dict[str, Document] = {ORDER: {"bsonType": _WHOLE}, ORDER_TIE: {"bsonType": _WHOLE}}
_COUNT: Document = {"bsonType": _WHOLE, "minimum": 0}
_OPTIONAL_COUNT: Document = {"bsonType": [*_WHOLE, "null"], "minimum": 0}
_PAYLOAD: Document = {"bsonType": "object"}
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

_RUN = _object(
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
    },
    optional=(ORDER_TIE, *_RUN_TIMES, *_RUN_OWNERSHIP),
)

_FEEDBACK = _object(
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
    },
    optional=(ORDER_TIE, VOTE),
)

_THREAD_TIMES = _exact("updated_at")

_THREAD = _object(
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
    },
    optional=(ORDER_TIE, IS_PINNED, *_THREAD_TIMES),
)

_USER = _object(
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
    },
    optional=(EMAIL_KEY,),
)

_CONTENT: Document = {"bsonType": ["string", "object", "array", "bool", "double", *_WHOLE]}
_NUMBERED: Document = {
    "_id": {"bsonType": "objectId"},
    "schema_version": _SCHEMA_VERSION,
    "thread_id": _ID,
    "seq": _COUNT,
}

_EVENT_TIMES = _exact("created_at")

_RUN_EVENT: Document = {
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
            },
            optional=(DELETION,),
        ),
        _object({**_NUMBERED, "minimum_next_seq": _COUNT, "anchored_at": _DATE}),
    ]
}

_BYTES: Document = {"bsonType": "binData"}
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

_CHECKPOINT_DATA: Document = {
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

_VERSION = _object(
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

# -- collections -----------------------------------------------------------------------------------

VOTE_INDEX = Index(
    "one_vote_per_user",
    (("thread_id", 1), ("run_id", 1), ("user_id", 1)),
    "feedback.upsert: at most one vote of a user on a run",
    unique=True,
    partial={VOTE: True},
)

EVENT_NUMBERS = Index(
    "thread_seq",
    (("thread_id", 1), ("seq", 1)),
    "run_events: no number is used twice in a thread; the thread's last number",
    unique=True,
)

EMAIL_INDEX = Index(
    "one_account_per_email",
    (("email", 1),),
    "users.create and update: one account per email",
    unique=True,
)

EMAIL_KEY_INDEX = Index(
    "by_email_key",
    ((EMAIL_KEY, 1), *OLDEST_USER_FIRST),
    "users.get_by_email, create and update: an email's account, whatever the case of its letters",
    # Not unique: an older release may have stored emails that differ in case only.
)

OAUTH_INDEX = Index(
    "one_account_per_oauth_identity",
    (("oauth_provider", 1), ("oauth_id", 1)),
    "users.create and update: one account per OAuth identity; get_by_oauth",
    unique=True,
    # Any text. Not `$type`: the planner does not see that a filter for one text lies within it.
    partial={"oauth_provider": {"$gte": ""}, "oauth_id": {"$gte": ""}},
)

EVENT_IDS = Index(
    "by_event_id",
    (("thread_id", 1), ("event_id", 1)),
    "run_events.put and put_batch: an event with an `event_id` is stored once in its thread",
    unique=True,
    # Any text; see OAUTH_INDEX.
    partial={"event_id": {"$gte": ""}},
)

ONCE_PER_RUN = Index(
    "once_per_run",
    (("thread_id", 1), ("run_id", 1), ("event_type", 1)),
    "run_events.put_if_absent: at most one event that it stored",
    unique=True,
    partial={ONCE: True},
)

FEEDBACK_BY_USER = Index(
    "by_user",
    (("thread_id", 1), ("user_id", 1), ("run_id", 1), *NEWEST_FIRST),
    "feedback.list_by_run for one user, list_by_thread_grouped, upsert, delete_by_run",
)

ACTIVE_RANGE: Document = {"status": {"$gte": "pending", "$lte": "starting"}}
"""Statuses from "pending" to "starting", "running" among them, and no ending of DeerFlow's.

A range, because a partial index takes `$in` only from MongoDB 6.0 on.
"""

ACTIVE_OPERATION_INDEX = Index(
    "one_active_operation_per_thread",
    (("thread_id", 1),),
    "runs.put and create_thread_operation_atomic: at most one active run or reservation of a thread",
    unique=True,
    # Any kind that is a text; see OAUTH_INDEX. By the status itself, so that no other field can be stale.
    partial={KIND: {"$gte": ""}, **ACTIVE_RANGE},
)

IDEMPOTENCY_INDEX = Index(
    "by_idempotency_key",
    ((IDEMPOTENCY_KEY, 1),),
    "runs.put and create_thread_operation_atomic: an idempotency key belongs to one run",
    unique=True,
    # Any text; see OAUTH_INDEX.
    partial={IDEMPOTENCY_KEY: {"$gte": ""}},
)

IS_CHECKPOINT: Document = {checkpoints.METADATA: {"$exists": True}}
"""A document that is a checkpoint. A filter has the same condition, so that it can use the index."""

IS_NUMBERED: Document = {checkpoints.SEQ: {"$exists": True}}
"""A checkpoint, its tombstone or a deletion record.

Arrays make the index multikey: the server sorts by it without reading all only where a filter has no bounds.
"""

CHECKPOINT_NUMBERS = Index(
    "thread_seq",
    (("_id.thread", 1), (checkpoints.SEQ, 1)),
    "checkpointer: a checkpoint is stored only where nothing happened in its thread that its writer missed",
    unique=True,
    partial=IS_NUMBERED,
)

COLLECTIONS: tuple[CollectionSchema, ...] = (
    CollectionSchema(
        RUNS,
        _RUN,
        (
            Index(
                "by_thread",
                (("thread_id", 1), *NEWEST_FIRST),
                "runs.list_by_thread and token_usage_by_thread for everybody",
            ),
            Index(
                "by_thread_and_user",
                (("thread_id", 1), ("user_id", 1), *NEWEST_FIRST),
                "runs.list_by_thread and token_usage_by_thread for one user",
            ),
            # Not by `order`: a list of one thread could then be planned over all runs of its user.
            Index("by_user", (("user_id", 1), ("created_at", -1)), "a user's newest runs over all threads"),
            Index("by_time", (("created_at", -1),), "runs of a period: per day, failures, slowest"),
            Index(
                "active",
                (("status", 1), *OLDEST_FIRST),
                "runs.list_pending, list_inflight and list_inflight_with_expired_lease; a worker's runs",
                partial=ACTIVE_RANGE,
            ),
            ACTIVE_OPERATION_INDEX,
            IDEMPOTENCY_INDEX,
        ),
    ),
    CollectionSchema(
        FEEDBACK,
        _FEEDBACK,
        (
            VOTE_INDEX,
            Index("by_thread", (("thread_id", 1), *NEWEST_FIRST), "feedback.list_by_thread"),
            Index(
                "by_run",
                (("thread_id", 1), ("run_id", 1), *NEWEST_FIRST, ("rating", 1)),
                "feedback.list_by_run for everybody; aggregate_by_run, from the index alone",
            ),
            FEEDBACK_BY_USER,
        ),
    ),
    CollectionSchema(
        THREADS,
        _THREAD,
        (
            Index("by_time", NEWEST_FIRST, "threads.search_threads for everybody"),
            Index("by_user", (("user_id", 1), *NEWEST_FIRST), "threads.search_threads for one user"),
            Index(
                "by_user_and_status",
                (("user_id", 1), ("status", 1), *NEWEST_FIRST),
                "threads.search_threads for one user by status",
            ),
            Index(
                "by_user_last_updated",
                (("user_id", 1), *LAST_UPDATED_FIRST),
                "threads.search_threads for one user, last updated first",
            ),
            Index("pinned_first", PINNED_FIRST, "threads.search_threads for everybody, pinned first"),
            Index(
                "by_status_pinned_first",
                (("status", 1), *PINNED_FIRST),
                "threads.search_threads for everybody by status, pinned first",
            ),
            Index(
                "by_metadata_pinned_first",
                (("metadata_digests", 1), *PINNED_FIRST),
                "threads.search_threads for everybody by metadata, pinned first",
            ),
            Index(
                "by_user_pinned_first",
                (("user_id", 1), *PINNED_FIRST),
                "threads.search_threads for one user, pinned first",
            ),
            Index(
                "by_user_and_status_pinned_first",
                (("user_id", 1), ("status", 1), *PINNED_FIRST),
                "threads.search_threads for one user by status, pinned first",
            ),
            Index(
                "by_user_and_metadata_pinned_first",
                (("user_id", 1), ("metadata_digests", 1), *PINNED_FIRST),
                "threads.search_threads for one user by metadata, pinned first",
            ),
            Index(
                "by_metadata",
                (("metadata_digests", 1), *NEWEST_FIRST),
                "threads.search_threads by metadata, any key",
            ),
            Index(
                "by_user_and_metadata",
                (("user_id", 1), ("metadata_digests", 1), *NEWEST_FIRST),
                "threads.search_threads for one user by metadata, any key",
            ),
        ),
    ),
    CollectionSchema(
        RUN_EVENTS,
        _RUN_EVENT,
        (
            EVENT_NUMBERS,
            EVENT_IDS,
            Index(
                "message_seq",
                (("thread_id", 1), ("category", 1), ("seq", 1)),
                "run_events.list_messages and count_messages",
                partial={"category": MESSAGE},
            ),
            Index(
                "run_seq",
                (("thread_id", 1), ("run_id", 1), ("seq", 1), ("event_type", 1)),
                "run_events.list_events, by type from the index alone; delete_by_run",
            ),
            Index(
                "run_message_seq",
                (("thread_id", 1), ("run_id", 1), ("category", 1), ("seq", 1)),
                "run_events.list_messages_by_run",
                partial={"category": MESSAGE},
            ),
            Index(
                "run_messages_by_type",
                (
                    *(("thread_id", 1), ("run_id", 1), ("event_type", 1), ("seq", 1)),
                    *(("user_id", 1), ("metadata.caller", 1)),
                ),
                "run_events.get_last_visible_ai_seq_by_run, from the index alone",
                partial={"category": MESSAGE},
            ),
            ONCE_PER_RUN,
            Index(
                "expired_tombstones",
                ((EXPIRES_AT, 1),),
                "the server removes the tombstones of deleted events",
                partial={EXPIRES_AT: {"$type": "date"}},
                expire_after_s=0,
            ),
        ),
    ),
    CollectionSchema(
        USERS,
        _USER,
        (
            EMAIL_INDEX,
            EMAIL_KEY_INDEX,
            OAUTH_INDEX,
            Index(
                "by_role",
                (("system_role", 1), *OLDEST_USER_FIRST),
                "users.list_by_role; users.count of a role",
            ),
        ),
    ),
    CollectionSchema(
        CHECKPOINTS,
        _CHECKPOINT_DATA,
        (
            CHECKPOINT_NUMBERS,
            Index(
                "by_thread",
                (("_id.thread", 1), ("_id.checkpoint", -1)),
                "checkpointer: a thread's checkpoints over all namespaces",
                partial=IS_CHECKPOINT,
            ),
            Index(
                "by_checkpoint",
                (("_id.checkpoint", -1),),
                "checkpointer: the newest checkpoints of all threads",
                partial=IS_CHECKPOINT,
            ),
            Index(
                "by_run",
                ((checkpoints.RUN_ID, 1),),
                "checkpointer: delete the checkpoints of runs",
                # Any text; see OAUTH_INDEX.
                partial={checkpoints.RUN_ID: {"$gte": ""}},
            ),
            Index(
                "expired_records",
                ((checkpoints.EXPIRES_AT, 1),),
                "the server removes the records of deletions",
                partial={checkpoints.EXPIRES_AT: {"$type": "date"}},
                expire_after_s=0,
            ),
        ),
    ),
    CollectionSchema(VERSIONS, _VERSION, ()),
)


def schema_of(name: str) -> CollectionSchema:
    """The schema of the collection with this name, without its prefix."""
    return next(schema for schema in COLLECTIONS if schema.name == name)


RETENTION_KEYS: Final = ("stored_at",)


def has_our_title(validator: Document | None) -> bool:
    """Whether some release of this package, from version 2 on, has set this validator."""
    title: Any = validator.get("$jsonSchema", {}).get("title") if validator else None
    return isinstance(title, str) and title.startswith(_TITLE_START)


def retention_index(ttl_days: int) -> Index:
    """The index by which the server removes run events that were stored more than `ttl_days` ago."""
    return Index(
        RETENTION,
        tuple((key, 1) for key in RETENTION_KEYS),
        "the server removes run events after run_events_ttl_days",
        expire_after_s=ttl_days * DAY_S,
    )
