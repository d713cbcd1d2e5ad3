"""Collections, indexes, validators and the schema's version: data, and the code that applies it.

Which query an index serves stands beside it. A validator refuses every document that `codec.py` would not
write. `apply` is idempotent and may be raced by many processes; `inspect` changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..contract.arguments import RATINGS
from ..contract.errors import StorageConfigError, StorageError
from ..contract.rows import CALLERS, MESSAGE, PENDING
from .codec import JSON_MARK, ONCE, SCHEMA_VERSION, VOTE, Document
from .documents.stored_times import stored_now
from .drivers.base import Collection, Driver

logger = logging.getLogger(__name__)

RUNS = "runs"
FEEDBACK = "feedback"
THREADS = "threads"
RUN_EVENTS = "run_events"
USERS = "users"
VERSIONS = "schema_versions"

RETENTION_MARK = "retention_since"
"""In the version's document since run events were first given a time to live; never taken away again."""

RETENTION = "retention"
"""The name of the index that `run_events_ttl_days` asks for."""

_VERSION_ID = "deerflow-mongo"
_DAY_S = 86_400
_INDEX_CONFLICT_CODES = (85, 86)  # IndexOptionsConflict, IndexKeySpecsConflict
_COLLECTION_EXISTS_CODE = 48
_DUPLICATE_KEY_CODE = 11000

Keys: TypeAlias = tuple[tuple[str, int], ...]
NEWEST_FIRST: Keys = (("created_at", -1), ("order", -1))
OLDEST_FIRST: Keys = (("created_at", 1), ("order", 1))
LAST_UPDATED_FIRST: Keys = (("updated_at", -1), ("_id", -1))
SEQ_RISING: Keys = (("seq", 1),)
SEQ_FALLING: Keys = (("seq", -1),)


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
        """As the server's `createIndexes` takes it and `listIndexes` gives it."""
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

_MODEL_FIGURES = _object(
    {"model": {"bsonType": "string"}, "input": _COUNT, "output": _COUNT, "total": _COUNT, "llm_calls": _COUNT}
)

_TOKENS = _object(
    {
        "input": _COUNT,
        "output": _COUNT,
        "total": _COUNT,
        "llm_calls": _COUNT,
        "by_caller": _object(dict.fromkeys(CALLERS, _COUNT)),
        "by_model": {"bsonType": "object", "additionalProperties": _MODEL_FIGURES},
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
    "run_events: no number twice in a thread; the thread's last number",
    unique=True,
)

EMAIL_INDEX = Index(
    "one_account_per_email",
    (("email", 1),),
    "users.create and update: no email twice; get_by_email",
    unique=True,
)

OAUTH_INDEX = Index(
    "one_account_per_oauth_identity",
    (("oauth_provider", 1), ("oauth_id", 1)),
    "users.create and update: no OAuth identity twice; get_by_oauth",
    unique=True,
    # Any text. Not `$type`: the planner does not see that a read of one text lies within it.
    partial={"oauth_provider": {"$gte": ""}, "oauth_id": {"$gte": ""}},
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
            Index(
                "user_run_newest",
                (("thread_id", 1), ("user_id", 1), ("run_id", 1), *NEWEST_FIRST),
                "feedback.list_by_run for one user, list_by_thread_grouped, upsert, delete_by_run",
            ),
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
                "run_events.put_if_absent: at most one event that it made",
                unique=True,
                partial={ONCE: True},
            ),
            Index(
                "forget_stubs",
                (("forget_at", 1),),
                "the server removes the stubs of deleted events",
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
                (("system_role", 1), ("created_at", 1), ("_id", 1)),
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
        expire_after_s=ttl_days * _DAY_S,
    )


# -- inspecting ------------------------------------------------------------------------------------


@dataclass(slots=True)
class SchemaReport:
    """What a database has of the schema; names of indexes are `collection.index`."""

    version: int | None = None
    collections: list[str] = field(default_factory=lambda: list[str]())
    missing_collections: list[str] = field(default_factory=lambda: list[str]())
    indexes: list[str] = field(default_factory=lambda: list[str]())
    missing_indexes: list[str] = field(default_factory=lambda: list[str]())
    other_indexes: list[str] = field(default_factory=lambda: list[str]())
    """Indexes of the right name with other keys or options."""
    renamed_indexes: list[str] = field(default_factory=lambda: list[str]())
    """Indexes under another name that the server takes for one of ours, and so refuses to make ours."""
    outdated_validators: list[str] = field(default_factory=lambda: list[str]())
    """Collections whose validator is not this release's; `setup()` sets it. The mock keeps none."""
    retention_days: float | None = None
    """After how many days the server removes run events; None for never."""

    @property
    def complete(self) -> bool:
        """Whether the version, the collections and the indexes are this release's."""
        return self.version == SCHEMA_VERSION and not (
            self.missing_collections or self.missing_indexes or self.other_indexes or self.renamed_indexes
        )


def _comparable(index: Document) -> Document:
    return {
        "key": list(dict(index["key"]).items()),
        "unique": bool(index.get("unique")),
        "partial": index.get("partialFilterExpression"),
        "sparse": bool(index.get("sparse")),
        "ttl": index.get("expireAfterSeconds"),
        "collation": index.get("collation"),
        "hidden": bool(index.get("hidden")),
    }


async def stored_version(driver: Driver, prefix: str) -> int | None:
    """The schema's version in the database; None before the first `apply`."""
    document = await driver.collection(prefix + VERSIONS).find_one({"_id": _VERSION_ID})
    return None if document is None else document["version"]


async def inspect(driver: Driver, prefix: str) -> SchemaReport:
    """Hold the database against the schema."""
    report = SchemaReport()
    present = await driver.list_collections()
    if prefix + VERSIONS in present:
        report.version = await stored_version(driver, prefix)
    for schema in COLLECTIONS:
        name = prefix + schema.name
        known = name in present
        (report.collections if known else report.missing_collections).append(name)
        if known and present[name].get("validator") != schema.stored_validator:
            report.outdated_validators.append(name)
        found = {index["name"]: index for index in await driver.list_indexes(name)} if known else {}
        if RETENTION in found:
            report.retention_days = found[RETENTION]["expireAfterSeconds"] / _DAY_S
        for index in schema.indexes:
            label = f"{name}.{index.name}"
            wanted = _comparable(index.specification())
            if index.name not in found:
                report.missing_indexes.append(label)
                renamed = [other for other in found if _comparable(found[other]) == wanted]
                report.renamed_indexes += [f"{name}.{other}" for other in renamed]
            elif _comparable(found[index.name]) == wanted:
                report.indexes.append(label)
            else:
                report.other_indexes.append(label)
    return report


# -- applying --------------------------------------------------------------------------------------


def check_version(version: int | None, database: str) -> None:
    """Refuse a database that a newer release has set up."""
    if version is not None and version > SCHEMA_VERSION:
        raise StorageConfigError(
            f"database {database!r} has schema version {version}, and this release of deerflow-mongo knows "
            f"up to {SCHEMA_VERSION}: upgrade deerflow-mongo"
        )


async def apply(driver: Driver, prefix: str, database: str, *, ttl_days: int | None = None) -> None:
    """Make collections, validators and indexes, and store the version.

    `ttl_days` is how long run events are kept, None for ever; it may change on a collection that is in use.
    """
    check_version(await stored_version(driver, prefix), database)
    present = await driver.list_collections()
    for schema in COLLECTIONS:
        await _apply_collection(driver, prefix + schema.name, schema, present)
    # $max: of two releases that set up the same database, the newer one's version stays.
    await driver.collection(prefix + VERSIONS).find_one_and_upsert(
        {"_id": _VERSION_ID}, {"$max": {"version": SCHEMA_VERSION}, "$set": {"updated_at": stored_now()}}
    )
    await _apply_retention(driver, prefix, ttl_days)


async def _apply_retention(driver: Driver, prefix: str, ttl_days: int | None) -> None:
    name = prefix + RUN_EVENTS
    found = next((index for index in await driver.list_indexes(name) if index["name"] == RETENTION), None)
    if ttl_days is None:
        if found is not None:
            logger.warning("run events are kept for ever from now on: run_events_ttl_days is not set")
            await driver.drop_index(name, RETENTION)
        return
    # First, since from the first removal on a thread's numbers are not told by what is left of it.
    await driver.collection(prefix + VERSIONS).update_one(
        {"_id": _VERSION_ID, RETENTION_MARK: None}, {"$set": {RETENTION_MARK: stored_now()}}
    )
    wanted = retention_index(ttl_days)
    if found is None:
        await _create_index(driver, name, wanted)
    elif found.get("expireAfterSeconds") != wanted.expire_after_s:
        await driver.set_expiry(name, wanted.specification())


async def had_retention(versions: Collection) -> bool:
    """Whether the server has ever been told to remove run events by their age."""
    document = await versions.find_one({"_id": _VERSION_ID})
    return document is not None and RETENTION_MARK in document


async def _apply_collection(
    driver: Driver, name: str, schema: CollectionSchema, present: dict[str, Document]
) -> None:
    validator = schema.stored_validator
    if name not in present:
        present[name] = await _create_collection(driver, name, validator)
    if present[name].get("validator") != validator:
        await driver.set_validator(name, validator)
    for index in schema.indexes:
        await _create_index(driver, name, index)


async def _create_collection(driver: Driver, name: str, validator: Document) -> Document:
    try:
        await driver.create_collection(name, validator)
    except StorageError as error:
        if _code(error) != _COLLECTION_EXISTS_CODE:
            raise
        # Another process was first. With the same validator there is nothing left to do, and a user who may
        # read and write only is not allowed to.
        return (await driver.list_collections())[name]
    return {"validator": validator}


async def _create_index(driver: Driver, name: str, index: Index) -> None:
    try:
        await driver.create_index(name, index.specification())
    except StorageError as error:
        if _code(error) in _INDEX_CONFLICT_CODES:
            raise StorageConfigError(
                f"index {index.name!r} of collection {name!r} cannot be made, because one with other keys "
                f"or options, or another name, is in its place: {error}. Drop that one, then run setup again"
            ) from error
        if _code(error) == _DUPLICATE_KEY_CODE:
            raise StorageConfigError(
                f"unique index {index.name!r} of collection {name!r} cannot be made, because the collection "
                "holds duplicates. Remove them, then run setup again"
            ) from error
        raise


def _code(error: StorageError) -> Any:
    return getattr(error.__cause__, "code", None)
