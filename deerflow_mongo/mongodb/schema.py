"""Collections, indexes and sort orders: data only. `migrations.py` applies it to a database.

The operations that need an index are listed beside it. What a document must look like is in `validators.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from ..contract.rows import MESSAGE
from . import validators
from .documents import checkpoints
from .documents.encoding import Document
from .documents.feedback import VOTE
from .documents.run_events import EXPIRES_AT, ONCE
from .documents.run_ownership import IDEMPOTENCY_KEY, KIND
from .documents.stored_times import BELOW_MS, ORDER, ORDER_TIE
from .documents.threads import IS_PINNED
from .documents.users import EMAIL_KEY
from .documents.versions import SCHEMA_VERSION

RUNS = "runs"
FEEDBACK = "feedback"
THREADS = "threads"
RUN_EVENTS = "run_events"
USERS = "users"
CHECKPOINTS = "checkpoint_data"
"""Another name than those of langgraph-checkpoint-mongodb's collections, which are never touched."""
VERSIONS = "schema_versions"

DAY_S = 86_400

_TITLE_START = "deerflow-mongo, schema version"
VALIDATOR_TITLE = f"{_TITLE_START} {SCHEMA_VERSION}"
"""Of every validator: it marks the collection as one that this package has set up."""
_ACCEPTS = "; while it is upgraded, also accepts version "

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
    shard_key: Keys = ()
    """The key of a collection that `setup(shard=True)` distributes over the shards of a cluster.

    Every unique index begins with it, as a cluster demands, so that one shard decides about each value.
    """
    shard_index: Index | None = None
    """The index that supports the shard key, where none of the others, which may not be partial, does."""

    @property
    def stored_validator(self) -> Document:
        """The validator as the server takes it and lists it among a collection's options."""
        return {"$jsonSchema": {"title": VALIDATOR_TITLE, **self.validator}}

    def transitional_validator(self, older_version: int) -> Document:
        """The same for the time of an upgrade: it accepts every document of the older version as well."""
        older: Document = {
            "required": ["schema_version"],
            "properties": {"schema_version": {"enum": [older_version]}},
        }
        title = f"{VALIDATOR_TITLE}{_ACCEPTS}{older_version}"
        return {"$jsonSchema": {"title": title, "anyOf": [self.validator, older]}}


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

EVENTS_OF_RUNS = Index(
    "run_seq",
    (("thread_id", 1), ("run_id", 1), ("seq", 1), ("event_type", 1)),
    "run_events.list_events, by type from the index alone; delete_by_run; counts of a transfer",
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
        validators.RUN,
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
        validators.FEEDBACK,
        (
            VOTE_INDEX,
            Index("by_thread", (("thread_id", 1), *NEWEST_FIRST), "feedback.list_by_thread"),
            Index("by_time", (("created_at", -1),), "votes of a period"),
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
        validators.THREAD,
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
        validators.RUN_EVENT,
        (
            EVENT_NUMBERS,
            EVENT_IDS,
            Index(
                "message_seq",
                (("thread_id", 1), ("category", 1), ("seq", 1)),
                "run_events.list_messages and count_messages",
                partial={"category": MESSAGE},
            ),
            EVENTS_OF_RUNS,
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
        shard_key=(("thread_id", 1),),
    ),
    CollectionSchema(
        USERS,
        validators.USER,
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
        validators.CHECKPOINT_DATA,
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
        shard_key=(("_id.thread", 1),),
        shard_index=Index("shard_key", (("_id.thread", 1),), "a cluster's splitting and moving of threads"),
    ),
    CollectionSchema(VERSIONS, validators.VERSION, ()),
)


def schema_of(name: str) -> CollectionSchema:
    """The schema of the collection with this name, without its prefix."""
    return next(schema for schema in COLLECTIONS if schema.name == name)


def has_our_title(validator: Document | None) -> bool:
    """Whether some release of this package, from version 2 on, has set this validator."""
    return _title_of(validator).startswith(_TITLE_START)


def accepted_older_version(validator: Document | None) -> int | None:
    """The older version that a `transitional_validator` accepts; None for any other validator."""
    title, _, version = _title_of(validator).partition(_ACCEPTS)
    return int(version) if title.startswith(_TITLE_START) and version.isdecimal() else None


def _title_of(validator: Document | None) -> str:
    title: Any = validator.get("$jsonSchema", {}).get("title") if validator else None
    return title if isinstance(title, str) else ""


# -- retention -------------------------------------------------------------------------------------


class Expiry(NamedTuple):
    """An index by which the server removes documents at some age."""

    index_name: str
    date: str
    """The field that the age counts from; a document without a date there stays."""
    partial: Document | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """The documents of a collection that the server removes once this option is given."""

    option: str
    collection: str
    subject: str
    expiries: tuple[Expiry, ...]
    """The first one says after how many days; others are for documents that it does not cover."""
    removes_numbers: bool = False
    """Whether what is removed occupied numbers of its thread, which are then no longer known."""

    def indexes(self, ttl_days: int) -> list[Index]:
        """The indexes by which the server removes what is older than this."""
        return [
            Index(
                expiry.index_name,
                ((expiry.date, 1),),
                f"the server removes {self.subject} after {self.option}",
                partial=expiry.partial,
                expire_after_s=ttl_days * DAY_S,
            )
            for expiry in self.expiries
        ]


_HAS_ENDED: Document = {"duration_ms": {"$gte": 0}}
"""An ended run has a duration, an active one none. A partial index takes no `$nin`."""

RETENTIONS: Final = (
    Retention(
        "run_events_ttl_days",
        RUN_EVENTS,
        "run events",
        (Expiry("retention", "stored_at"),),
        removes_numbers=True,
    ),
    Retention(
        "runs_ttl_days",
        RUNS,
        "ended runs",
        # Not by `ended_at`, which a host need not set. The last change of a run is its end, or soon after.
        (
            Expiry("retention", "updated_at", _HAS_ENDED),
            Expiry("retention_of_unchanged_runs", "created_at", {**_HAS_ENDED, "updated_at": None}),
        ),
    ),
    Retention("feedback_ttl_days", FEEDBACK, "feedback", (Expiry("retention", "created_at"),)),
    Retention(
        "threads_ttl_days",
        THREADS,
        "threads that are not pinned",
        (Expiry("retention", "updated_at", {IS_PINNED: None}),),
    ),
)
"""One per option."""


def retention_of(collection: str) -> Retention | None:
    """The retention of the collection with this name, without its prefix."""
    return next((retention for retention in RETENTIONS if retention.collection == collection), None)
