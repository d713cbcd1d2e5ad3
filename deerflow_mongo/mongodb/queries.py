"""The filters of the stores; only modules of this name build any. A caller's values are checked first.

Those for checkpoints, bulk rows and reports are beside the code that needs them. An identifier in a filter is
plain text, or `contract/arguments.py` refused it, so no operator document can reach a query. What an update
writes is in `documents/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeAlias

from ..contract.arguments import acting_user, filter_text, identifier, identifiers, names, optional_text
from ..contract.regeneration import EDIT
from ..contract.rows import ACTIVE_STATUSES, ENDED_STATUSES, MAX_COUNT, MESSAGE, PENDING
from .documents.run_events import ANCHOR_SEQ, DELETION
from .documents.run_ownership import CANCEL_ACTION, IDEMPOTENCY_KEY, KIND, LEASE_MS, OWNER, lease_has_expired
from .documents.runs import REGENERATED_RUN_PATH, REPLAY_KIND_PATH
from .documents.stored_times import ORDER
from .documents.users import EMAIL_KEY, email_key
from .documents.versions import DATABASE_VERSION_ID, RETENTION_MARK, SCHEMA_VERSION

Query: TypeAlias = dict[str, Any]

_MAX_PLANNED_DIGESTS = 16
"""The server plans a search for each digest of an `$all`: for a thousand that takes seconds."""


def owned(query: Query, user_id: object, method_name: str) -> Query:
    """`query`, limited to the rows of the user that a method acts for; None does not limit it."""
    user = acting_user(user_id, method_name)
    if user is not None:
        query["user_id"] = user
    return query


def of_thread(thread_id: object) -> Query:
    return {"thread_id": identifier("thread_id", thread_id)}


def of_run(thread_id: object, run_id: object) -> Query:
    return {**of_thread(thread_id), "run_id": identifier("run_id", run_id)}


# -- documents of another version ------------------------------------------------------------------


def changeable(query: Query) -> Query:
    """`query` for a write: without the documents of a newer version, which this release never changes."""
    # `$not` also finds a document whose version is missing or no number: it is broken and may be deleted.
    return {**query, "schema_version": {"$not": {"$gt": SCHEMA_VERSION}}}


def newer(query: Query) -> Query:
    """The documents that `changeable` leaves out."""
    return {**query, "schema_version": {"$gt": SCHEMA_VERSION}}


# -- runs ------------------------------------------------------------------------------------------

NO_RESERVATION: Query = {KIND: {"$in": [None, "run"]}}
"""Runs, with or without an owner."""

_ACTIVE: Query = {"status": {"$in": list(ACTIVE_STATUSES)}}


def run_by_id(run_id: object) -> Query:
    return {"_id": identifier("run_id", run_id)}


def in_statuses(query: Query, statuses: object, name: str = "statuses") -> Query:
    """`query`, limited to runs in one of these statuses; None does not limit it."""
    wanted = names(name, statuses)
    if wanted is not None:
        query["status"] = {"$in": wanted}
    return query


def run_not_ended(run_id: object, from_statuses: Sequence[str] | None) -> Query:
    """The run of this id while it has not ended and, where they are given, is in one of these statuses."""
    if from_statuses is None:
        return {**run_by_id(run_id), "status": {"$nin": list(ENDED_STATUSES)}}
    wanted = [status for status in from_statuses if status not in ENDED_STATUSES]
    return {**run_by_id(run_id), "status": {"$in": wanted}}


def runs_of_thread(thread_id: object) -> Query:
    """A thread's runs, and no reservations of the thread."""
    return {**of_thread(thread_id), **NO_RESERVATION}


def runs_of_thread_by_id(thread_id: object, run_ids: object) -> Query:
    """Those of these runs that the thread has."""
    return {**runs_of_thread(thread_id), "_id": {"$in": identifiers("run_ids", run_ids)}}


def successful_regenerations(thread_id: object) -> Query:
    """A thread's successful runs that repeat another one, if their metadata has its id as a text."""
    return {**runs_of_thread(thread_id), "status": "success", REGENERATED_RUN_PATH: {"$exists": True}}


def edit_regenerations(thread_id: object) -> Query:
    """A thread's runs that repeat another one with an edited message, with the same condition."""
    return {**runs_of_thread(thread_id), REPLAY_KIND_PATH: EDIT, REGENERATED_RUN_PATH: {"$exists": True}}


def pending_until(stamp_us: int) -> Query:
    """Pending runs created at or before this stamp."""
    return {"status": PENDING, ORDER: {"$lte": stamp_us}, **NO_RESERVATION}


# -- runs and reservations with an owner -----------------------------------------------------------


def new_run_by_id(run_id: str) -> Query:
    """No document: an upsert with it inserts one of this id, or is refused."""
    return {"_id": run_id, "schema_version": {"$in": []}}


def pending_run(run_id: object) -> Query:
    return {**run_by_id(run_id), "status": PENDING}


def running_run(run_id: object) -> Query:
    return {**run_by_id(run_id), "status": "running"}


def active_run(run_id: object) -> Query:
    """The run of this id while it is active; any kind."""
    return {**run_by_id(run_id), **_ACTIVE}


def uncancelled_run(run_id: object) -> Query:
    """The run of this id while it is active and no cancellation was requested."""
    return {**active_run(run_id), CANCEL_ACTION: None}


def active_run_of_worker(run_id: object, owner_worker_id: object) -> Query:
    return {**active_run(run_id), **_of_worker(owner_worker_id)}


def expired_run(run_id: object, grace_seconds: float) -> Query:
    """The run of this id while it is active and its lease has expired, or it has none."""
    return {**active_run(run_id), **_expired(grace_seconds)}


def active_runs_of_worker(owner_worker_id: object) -> Query:
    return {**_ACTIVE, **_of_worker(owner_worker_id)}


def active_until(stamp_us: int) -> Query:
    """Active runs and reservations created at or before this stamp."""
    return {**_ACTIVE, ORDER: {"$lte": stamp_us}}


def expired_until(stamp_us: int, grace_seconds: float) -> Query:
    """Those of them whose lease has expired, or that have none."""
    return {**active_until(stamp_us), **_expired(grace_seconds)}


def active_operation(thread_id: str) -> Query:
    """What occupies the thread: the filter of the unique index."""
    return {"thread_id": thread_id, KIND: {"$gte": ""}, **_ACTIVE}


def interruptible_operation(
    thread_id: str, owner_worker_id: str, grace_seconds: float, idempotency_key: str | None
) -> Query:
    """What occupies the thread, if a new run of this worker may replace it.

    A run does if it is the worker's own or its lease has expired, a reservation only if it has a lease that
    has expired. The run that already has the new one's idempotency key does not.
    """
    expired = _expired(grace_seconds)
    query = active_operation(thread_id)
    query["$or"] = [
        {KIND: "run", OWNER: owner_worker_id},
        {KIND: "run", **expired},
        {KIND: {"$ne": "run"}, LEASE_MS: {"$ne": None}, **expired},
    ]
    if idempotency_key is not None:
        query[IDEMPOTENCY_KEY] = {"$ne": idempotency_key}
    return query


def run_by_idempotency_key(idempotency_key: str) -> Query:
    return {IDEMPOTENCY_KEY: idempotency_key}


def _of_worker(owner_worker_id: object) -> Query:
    return {OWNER: identifier("owner_worker_id", owner_worker_id)}


def _expired(grace_seconds: float) -> Query:
    return {"$expr": lease_has_expired(grace_seconds)}


# -- feedback --------------------------------------------------------------------------------------


def feedback_by_id(feedback_id: object) -> Query:
    return {"_id": identifier("feedback_id", feedback_id)}


def of_user_in_thread(thread_id: object, user_id: str | None) -> Query:
    """A user's rows in a thread; None is the anonymous user."""
    return {**of_thread(thread_id), "user_id": user_id}


def of_runs(query: Query, run_ids: list[str]) -> Query:
    """`query`, limited to these runs, whose ids are checked already."""
    return {**query, "run_id": {"$in": run_ids}}


def vote_of(thread_id: object, run_id: object, user_id: str | None) -> Query:
    """The rows of a user that are, or may become, the one vote on the run: those not on a message."""
    return {**of_run(thread_id, run_id), "user_id": user_id, "message_id": None}


# -- threads ---------------------------------------------------------------------------------------


def thread_by_id(thread_id: object) -> Query:
    return {"_id": identifier("thread_id", thread_id)}


def threads_by_id(thread_ids: list[str]) -> Query:
    """Threads by ids that are checked already."""
    return {"_id": {"$in": thread_ids}}


def threads_matching(*, status: object, assistant_id: object, metadata_digests: list[str]) -> Query:
    """Threads that match everything given; None and a blank status or assistant match any."""
    query: Query = {}
    for name, value in (("status", status), ("assistant_id", assistant_id)):
        wanted = filter_text(name, value)
        if wanted is not None:
            query[name] = wanted
    if len(metadata_digests) > _MAX_PLANNED_DIGESTS:
        query["metadata_digests"] = metadata_digests[0]
        union = {"$setUnion": ["$metadata_digests", metadata_digests]}
        query["$expr"] = {"$setEquals": ["$metadata_digests", union]}
    elif metadata_digests:
        query["metadata_digests"] = {"$all": metadata_digests}
    return query


# -- run events ------------------------------------------------------------------------------------


def events_of_thread(thread_id: object) -> Query:
    """A thread's events, and neither its anchor nor the tombstones of deleted events."""
    return {**of_thread(thread_id), "run_id": {"$exists": True}}


def all_rows(kind: str) -> Query:
    """The documents that are rows of this kind; a thread's anchor and tombstones are no events."""
    return {"run_id": {"$exists": True}} if kind == "run_events" else {}


def parts_of_documents(ids: Sequence[str], projection: Query) -> list[Query]:
    """What the projection takes of the documents with these ids."""
    return [{"$match": {"_id": {"$in": list(ids)}}}, {"$project": projection}]


def counts_of_events(thread_ids: Sequence[str]) -> list[Query]:
    """Of each of these threads that has events: how many, and the highest number, from an index alone."""
    # Anchors and tombstones have no run. `$exists` would read every document.
    query = {"thread_id": {"$in": list(thread_ids)}, "run_id": {"$gte": ""}}
    group = {"_id": "$thread_id", "events": {"$sum": 1}, "last_seq": {"$max": "$seq"}}
    return [{"$match": query}, {"$group": group}]


def events_of_run(thread_id: object, run_id: object, *event_types: str) -> Query:
    """A run's events of these types, or of all types without any."""
    query = of_run(thread_id, run_id)
    if event_types:
        query["event_type"] = event_types[0] if len(event_types) == 1 else {"$in": list(event_types)}
    return query


def events_after(thread_id: object, run_id: object, after_seq: int | None) -> Query:
    """The events of a thread, or of one run, with higher numbers."""
    query = events_of_thread(thread_id) if run_id is None else events_of_run(thread_id, run_id)
    return between(query, after_seq=after_seq, before_seq=None)


def of_task(query: Query, task_id: object) -> Query:
    """`query`, limited to run events whose metadata has this text under "task_id"; None does not limit it."""
    wanted = optional_text("task_id", task_id)
    if wanted is not None:
        # An array that contains the text is another value.
        query["metadata.task_id"] = {"$eq": wanted, "$not": {"$type": "array"}}
    return query


def deletable_events(query: Query, *, after_seq: int = -1, up_to_seq: int = MAX_COUNT) -> Query:
    """The events of `query` that can become tombstones, which have their events' ids and numbers."""
    is_numbered = {"_id": {"$type": "objectId"}, "seq": {"$type": ["int", "long"]}}
    bounds = {"seq": {"$gt": after_seq, "$lte": up_to_seq}}
    return {"$and": [changeable(query), is_numbered, bounds]}


def events_without_number(query: Query) -> Query:
    """The broken events of `query` that cannot become tombstones, and occupy no number."""
    has_number = {"_id": {"$type": "objectId"}, "seq": {"$gte": 0, "$type": ["int", "long"]}}
    return {**changeable(query), "$nor": [has_number]}


def messages_of_thread(thread_id: object) -> Query:
    return {**of_thread(thread_id), "category": MESSAGE}


def messages_of_run(thread_id: object, run_id: object) -> Query:
    return {**of_run(thread_id, run_id), "category": MESSAGE}


def messages_of_type(query: Query, event_types: Sequence[str]) -> Query:
    """The messages of `query` that are of one of these types."""
    return {**query, "category": MESSAGE, "event_type": {"$in": list(event_types)}}


def between(query: Query, *, after_seq: int | None, before_seq: int | None) -> Query:
    """`query`, limited to run events with numbers between these two, both excluded."""
    bounds = {"$gt": after_seq, "$lt": before_seq}
    given = {operator: seq for operator, seq in bounds.items() if seq is not None}
    if given:
        query["seq"] = given
    return query


def numbers_of_thread(thread_id: str) -> Query:
    """Everything that occupies a number of the thread: events, tombstones and the anchor."""
    # Among other types a text sorts above all numbers: one broken document would be the last of its thread.
    return {"thread_id": thread_id, "seq": {"$gte": 0, "$lte": MAX_COUNT}}


def anchor_of_thread(thread_id: str) -> Query:
    return {"thread_id": thread_id, "seq": ANCHOR_SEQ}


def anchor_not_renewed_since(thread_id: str, anchored_at: datetime) -> Query:
    """The thread's anchor, unless another process has changed it."""
    # The second name is that of an anchor of version 1, while a database is upgraded.
    names = ("anchored_at", "founded_at")
    return {**anchor_of_thread(thread_id), "$or": [{name: anchored_at} for name in names]}


def events_by_id(thread_id: str, event_ids: list[Any]) -> Query:
    return {"thread_id": thread_id, "_id": {"$in": event_ids}}


def events_by_event_id(thread_id: str, event_ids: list[str]) -> Query:
    """The stored events of the thread that carry these ids of their callers', which are checked already."""
    return {"thread_id": thread_id, "event_id": {"$in": event_ids}}


def events_of_deletion(thread_id: str, deletion: Any) -> Query:
    """The tombstones that one deletion has left."""
    return {"thread_id": thread_id, DELETION: deletion}


# -- users -----------------------------------------------------------------------------------------


def user_by_id(user_id: object) -> Query:
    return {"_id": identifier("user_id", user_id)}


def users_by_email(email: object) -> Query:
    """The accounts with this email in any case: one, unless an older release has stored more."""
    return {EMAIL_KEY: email_key(identifier("email", email))}


def user_with_email(user_id: object, email: str) -> Query:
    """The account, if an email differs from its own at most in case."""
    return {**user_by_id(user_id), EMAIL_KEY: email_key(email)}


def other_user_with_email(user_id: object, email: str) -> Query:
    return {"_id": {"$ne": identifier("user_id", user_id)}, EMAIL_KEY: email_key(email)}


def users_without_email_key() -> Query:
    """The accounts that an older release stored."""
    return {EMAIL_KEY: None, "email": {"$type": "string"}}


def users_without_email_key_after(last: Any) -> Query:
    """Those behind this id, in the order of ids; all with None."""
    return {**after_id(last), **users_without_email_key()}


def users_to_be_keyed(user_ids: list[Any], validator: Query) -> Query:
    """Those of these accounts that have no key yet, without documents that the validator would refuse."""
    return {"$and": [changeable({**users_without_email_key(), "_id": {"$in": user_ids}}), validator]}


def user_by_oauth(oauth_provider: object, oauth_id: object) -> Query:
    return {
        "oauth_provider": identifier("oauth_provider", oauth_provider),
        "oauth_id": identifier("oauth_id", oauth_id),
    }


def users_of_role(system_role: object) -> Query:
    """The accounts with this role; all with None."""
    return {} if system_role is None else {"system_role": identifier("system_role", system_role)}


# -- the database's schema version -----------------------------------------------------------------


def database_version() -> Query:
    return {"_id": DATABASE_VERSION_ID}


def other_than_database_version() -> Query:
    """What no release of this package has written into the versions' collection."""
    return {"_id": {"$ne": DATABASE_VERSION_ID}}


def outside(validator: Query) -> Query:
    """Documents that this release's validator would refuse."""
    return {"$nor": [validator]}


def inside_or_of_version(validator: Query, schema_version: int) -> Query:
    """Documents that this release's validator accepts, and those of an older version."""
    return {"$or": [validator, {"schema_version": schema_version}]}


def duplicates(keys: Sequence[str], partial: Query | None) -> list[Query]:
    """The pipeline that finds values of these keys that a unique index would refuse; at most one document."""
    # A unique index takes an absent field for null.
    group = {f"key{number}": {"$ifNull": [f"${key}", None]} for number, key in enumerate(keys)}
    return [
        {"$match": partial or {}},
        {"$group": {"_id": group, "count": {"$sum": 1}}},
        {"$match": {"count": {"$gt": 1}}},
        {"$limit": 1},
    ]


def no_document() -> Query:
    """A filter that the server evaluates without reading a document."""
    return {"_id": {"$in": []}}


def after_id(last: Any) -> Query:
    """The documents behind this id in the order of ids; all with None."""
    return {} if last is None else {"_id": {"$gt": last}}


def of_versions(schema_versions: Sequence[int]) -> Query:
    return {"schema_version": {"$in": list(schema_versions)}}


def sharded_collection(namespace: str) -> Query:
    """The entry of a collection in the cluster's own list; servers before 5.0 left those of dropped ones."""
    return {"_id": namespace, "dropped": {"$ne": True}}


def sampled(documents: int, schema_versions: Sequence[int]) -> list[Query]:
    """The pipeline that counts and measures documents drawn at random, and counts those of these versions."""
    is_of_version: Query = {"$in": ["$schema_version", list(schema_versions)]}
    return [
        {"$sample": {"size": documents}},
        {
            "$group": {
                "_id": None,
                "sampled": {"$sum": 1},
                "bytes": {"$avg": {"$bsonSize": "$$ROOT"}},
                "old": {"$sum": {"$cond": [is_of_version, 1, 0]}},
            }
        },
    ]


def of_version_after(schema_version: int, last: Any) -> Query:
    """The documents of this version behind this id in the order of ids; all with None."""
    return {**after_id(last), "schema_version": schema_version}


def of_version_between(schema_version: int, first: Any, last: Any) -> Query:
    return {"_id": {"$gte": first, "$lte": last}, "schema_version": schema_version}


def database_version_without_retention() -> Query:
    return {**database_version(), RETENTION_MARK: None}


# -- erasures --------------------------------------------------------------------------------------


def of_user(user_id: object) -> Query:
    """What belongs to a user, in each collection that has owners."""
    return {"user_id": identifier("user_id", user_id)}


def active_in_thread(thread_id: object) -> Query:
    """The active runs and reservations of a thread, with or without an owner."""
    return {**of_thread(thread_id), **_ACTIVE}


def of_others_in_thread(thread_id: str, user_id: str) -> Query:
    """What belongs to another user, or to nobody, in a thread."""
    return {"thread_id": thread_id, "user_id": {"$ne": user_id}}


def without_thread(query: Query) -> Query:
    """Those of these documents that are broken: their thread is no text."""
    return {**query, "thread_id": {"$not": {"$type": "string"}}}


def behind(query: Query, last: Any) -> Query:
    """Those of these documents behind this id in the order of ids; all with None."""
    return {**query, **after_id(last)}


def by_ids(ids: Sequence[Any]) -> Query:
    return {"_id": {"$in": list(ids)}}
