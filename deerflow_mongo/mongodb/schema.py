"""Collections, indexes, validators and sort orders: data only. `migrations.py` applies it to a database.

The operations that need an index are listed beside it. A validator refuses every document that `documents/`
would not write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..contract.arguments import RATINGS
from ..contract.rows import CALLERS, MESSAGE, PENDING
from .documents.encoding import JSON_MARK, Document
from .documents.feedback import VOTE
from .documents.run_events import ONCE
from .documents.versions import RETENTION_MARK

RUNS = "runs"
FEEDBACK = "feedback"
THREADS = "threads"
RUN_EVENTS = "run_events"
USERS = "users"
VERSIONS = "schema_versions"

RETENTION = "retention"
"""The name of the index that `run_events_ttl_days` asks for."""

DAY_S = 86_400

Keys: TypeAlias = tuple[tuple[str, int], ...]
NEWEST_FIRST: Keys = (("created_at", -1), ("order", -1))
OLDEST_FIRST: Keys = (("created_at", 1), ("order", 1))
LAST_UPDATED_FIRST: Keys = (("updated_at", -1), ("_id", -1))
SEQ_RISING: Keys = (("seq", 1),)
SEQ_FALLING: Keys = (("seq", -1),)
VOTE_FIRST: Keys = ((VOTE, -1), *NEWEST_FIRST)
"""The document that is the vote, else the newest that can become it."""
OLDEST_USER_FIRST: Keys = (("created_at", 1), ("_id", 1))


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
        return {"$jsonSchema": self.validator}


# -- validators ------------------------------------------------------------------------------------

_WHOLE = ["int", "long"]
_ID: Document = {"bsonType": "string", "minLength": 1}
_OPTIONAL_ID: Document = {"bsonType": ["string", "null"]}
_TIME: Document = {
    "bsonType": "string",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$",
}
_OPTIONAL_TIME: Document = {"anyOf": [{"bsonType": "null"}, _TIME]}
_COUNT: Document = {"bsonType": _WHOLE, "minimum": 0}
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
    """An object of exactly these properties."""
    return {
        "bsonType": "object",
        "required": [name for name in properties if name not in optional],
        "properties": properties,
        "additionalProperties": False,
    }


_SCHEMA_VERSION: Document = {"bsonType": _WHOLE, "minimum": 1}

_MODEL_COUNTS = _object(
    {"model": {"bsonType": "string"}, "input": _COUNT, "output": _COUNT, "total": _COUNT, "llm_calls": _COUNT}
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
        "created_at": _TIME,
        "started_at": _OPTIONAL_TIME,
        "ended_at": _OPTIONAL_TIME,
        "order": _COUNT,
        "updated_at": _OPTIONAL_TIME,
        "error": _TEXT,
        "tokens": _TOKENS,
        "message_count": _COUNT,
        "first_human_message": _TEXT,
        "last_ai_message": _TEXT,
    }
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
        "created_at": _TIME,
        "order": _COUNT,
        VOTE: {"enum": [True]},
    },
    optional=(VOTE,),
)

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
        "created_at": _TIME,
        "updated_at": _TIME,
        "order": _COUNT,
    }
)

_USER = _object(
    {
        "_id": _ID,
        "schema_version": _SCHEMA_VERSION,
        "email": _ID,
        "password_hash": _OPTIONAL_ID,
        "system_role": _ID,
        "created_at": _TIME,
        "oauth_provider": _OPTIONAL_ID,
        "oauth_id": _OPTIONAL_ID,
        "needs_setup": {"bsonType": "bool"},
        "token_version": _COUNT,
    }
)

_CONTENT: Document = {"bsonType": ["string", "object", "array", "bool", "double", *_WHOLE]}
_DATE: Document = {"bsonType": "date"}
_OPTIONAL_DATE: Document = {"bsonType": ["date", "null"]}
_NUMBERED: Document = {
    "_id": {"bsonType": "objectId"},
    "schema_version": _SCHEMA_VERSION,
    "thread_id": _ID,
    "seq": _COUNT,
}

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
                "created_at": _TIME,
                "stored_at": _DATE,
                "user_id": {"bsonType": "string"},
                ONCE: {"enum": [True]},
            },
            optional=("user_id", ONCE),
        ),
        _object({**_NUMBERED, "was_stored_at": _DATE, "forget_at": _OPTIONAL_DATE}),
        _object({**_NUMBERED, "floor": _COUNT, "founded_at": _DATE}),
    ]
}

_VERSION = _object(
    {"_id": _ID, "version": _SCHEMA_VERSION, "updated_at": _TIME, RETENTION_MARK: _TIME},
    optional=(RETENTION_MARK,),
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
    "users.create and update: one account per email; get_by_email",
    unique=True,
)

OAUTH_INDEX = Index(
    "one_account_per_oauth_identity",
    (("oauth_provider", 1), ("oauth_id", 1)),
    "users.create and update: one account per OAuth identity; get_by_oauth",
    unique=True,
    # Any text. Not `$type`: the planner does not see that a filter for one text lies within it.
    partial={"oauth_provider": {"$gte": ""}, "oauth_id": {"$gte": ""}},
)

FEEDBACK_BY_RUN = Index(
    "user_run_newest",
    (("thread_id", 1), ("user_id", 1), ("run_id", 1), *NEWEST_FIRST),
    "feedback.list_by_run for one user, list_by_thread_grouped, upsert, delete_by_run",
)

COLLECTIONS: tuple[CollectionSchema, ...] = (
    CollectionSchema(
        RUNS,
        _RUN,
        (
            Index(
                "thread_newest",
                (("thread_id", 1), *NEWEST_FIRST),
                "runs.list_by_thread and token_usage_by_thread for everybody",
            ),
            Index(
                "thread_user_newest",
                (("thread_id", 1), ("user_id", 1), *NEWEST_FIRST),
                "runs.list_by_thread and token_usage_by_thread for one user",
            ),
            Index(
                "pending_oldest",
                OLDEST_FIRST,
                "runs.list_pending",
                partial={"status": PENDING},
            ),
        ),
    ),
    CollectionSchema(
        FEEDBACK,
        _FEEDBACK,
        (
            VOTE_INDEX,
            Index("thread_newest", (("thread_id", 1), *NEWEST_FIRST), "feedback.list_by_thread"),
            Index(
                "run_newest",
                (("thread_id", 1), ("run_id", 1), *NEWEST_FIRST, ("rating", 1)),
                "feedback.list_by_run for everybody; aggregate_by_run, from the index alone",
            ),
            FEEDBACK_BY_RUN,
        ),
    ),
    CollectionSchema(
        THREADS,
        _THREAD,
        (
            Index("newest", NEWEST_FIRST, "threads.search_threads for everybody"),
            Index("user_newest", (("user_id", 1), *NEWEST_FIRST), "threads.search_threads for one user"),
            Index(
                "user_status_newest",
                (("user_id", 1), ("status", 1), *NEWEST_FIRST),
                "threads.search_threads for one user by status",
            ),
            Index(
                "user_updated",
                (("user_id", 1), *LAST_UPDATED_FIRST),
                "threads.search_threads for one user, last updated first",
            ),
            Index(
                "metadata_newest",
                (("metadata_digests", 1), *NEWEST_FIRST),
                "threads.search_threads by metadata, any key",
            ),
            Index(
                "user_metadata_newest",
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
                "once_per_run",
                (("thread_id", 1), ("run_id", 1), ("event_type", 1)),
                "run_events.put_if_absent: at most one event that it stored",
                unique=True,
                partial={ONCE: True},
            ),
            Index(
                "forget_stubs",
                (("forget_at", 1),),
                "the server removes the tombstones of deleted events",
                partial={"forget_at": {"$type": "date"}},
                expire_after_s=0,
            ),
        ),
    ),
    CollectionSchema(
        USERS,
        _USER,
        (
            EMAIL_INDEX,
            OAUTH_INDEX,
            Index(
                "role_oldest",
                (("system_role", 1), *OLDEST_USER_FIRST),
                "users.list_by_role; users.count of a role",
            ),
        ),
    ),
    CollectionSchema(VERSIONS, _VERSION, ()),
)


def retention_index(ttl_days: int) -> Index:
    """The index by which the server removes run events that were stored more than `ttl_days` ago."""
    return Index(
        RETENTION,
        (("stored_at", 1),),
        "the server removes run events after run_events_ttl_days",
        expire_after_s=ttl_days * DAY_S,
    )
