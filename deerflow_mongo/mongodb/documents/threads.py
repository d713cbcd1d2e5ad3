"""Thread documents: a thread's owner, status and title, and its metadata with a digest of every key."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ...contract.rows import PINNED, JSONValue, ThreadMeta
from ...contract.times import clock
from .digests import KEY_DIGEST_LENGTH, key_part, metadata_digests
from .encoding import WHOLE, Document, UnreadableError, decode_mapping, decode_text, encode_mapping
from .stored_times import (
    BELOW_MS,
    ORDER,
    REMOVED,
    aware_time,
    created_fields,
    set_update,
    time_fields,
    time_of_stamp,
    time_stage,
)
from .version_1 import as_current
from .versions import READABLE_FROM, SCHEMA_VERSION

IS_PINNED = "pinned"
"""Present and true on a thread whose metadata has true under `PINNED`."""


def thread_fields(
    *,
    user_id: str | None,
    assistant_id: str | None,
    metadata: dict[str, JSONValue],
    stamp_us: int,
    display_name: Any = None,
    status: str = "idle",
    updated_stamp_us: int | None = None,
) -> Document:
    """A thread without its id, created at the stamp, and updated then where no other time is given."""
    return {
        "schema_version": READABLE_FROM,
        "user_id": user_id,
        "assistant_id": assistant_id,
        "display_name": display_name,
        "status": status,
        **thread_metadata(metadata),
        **created_fields(stamp_us),
        **time_fields("updated_at", stamp_us if updated_stamp_us is None else updated_stamp_us),
    }


def new_thread(thread_id: str, fields: Document) -> Document:
    return {"_id": thread_id, **fields}


def thread_metadata(payload: dict[str, JSONValue]) -> Document:
    """The fields that hold a thread's metadata; every write sets all of them, or removes `IS_PINNED`."""
    stored = {"metadata": encode_mapping(payload), "metadata_digests": metadata_digests(payload)}
    return {**stored, IS_PINNED: True} if _pins(payload) else stored


def _pins(payload: dict[str, JSONValue]) -> bool:
    return payload.get(PINNED) is True


def thread_row(document: Document) -> ThreadMeta:
    if document["schema_version"] is not SCHEMA_VERSION:
        document = as_current(document, "updated_at")
    thread_id, user_id, assistant_id = document["_id"], document["user_id"], document["assistant_id"]
    status, order = document["status"], document[ORDER]
    if (
        not (type(thread_id) is type(status) is str)
        or (user_id is not None and type(user_id) is not str)
        or (assistant_id is not None and type(assistant_id) is not str)
        or type(order) not in WHOLE
        or type(document["metadata_digests"]) is not list
        or type(document["created_at"]) is not datetime
    ):
        raise UnreadableError
    return ThreadMeta(
        thread_id=thread_id,
        assistant_id=assistant_id,
        user_id=user_id,
        display_name=decode_text(document["display_name"]),
        status=status,
        metadata=decode_mapping(document["metadata"]),
        created_time=time_of_stamp(order),
        updated_time=aware_time(document["updated_at"], document.get("updated_at_us", 0)),
    )


# -- updates ---------------------------------------------------------------------------------------


def thread_update(
    *,
    assistant_id: str | None,
    display_name: Any,
    status: str | None,
    metadata: dict[str, JSONValue] | None,
    owner_id: str | None,
) -> Document:
    """Set what is not None; the metadata is replaced as a whole."""
    given = {
        "assistant_id": assistant_id,
        "display_name": display_name,
        "status": status,
        "user_id": owner_id,
    }
    changes: Document = {name: value for name, value in given.items() if value is not None}
    if metadata is not None:
        changes |= thread_metadata(metadata)
    update = set_update(changes, updated_at=clock.stamp_us())
    if metadata is not None and not _pins(metadata):
        update.setdefault("$unset", {})[IS_PINNED] = ""
    return update


def metadata_merge_update(payload: dict[str, JSONValue], *, touch: bool) -> list[Document]:
    """Merge `payload` into a thread's metadata by its top-level keys, and replace these keys' digests.

    Without `touch` the time of the last update stays as it is.
    """
    new = thread_metadata(payload)
    # As an object by the digests of the keys, so that the cost does not grow with one number times the other.
    key_of_digest = {"$substrBytes": ["$$digest", 0, KEY_DIGEST_LENGTH]}
    pair = {"k": key_of_digest, "v": "$$digest"}
    stored = {"$arrayToObject": {"$map": {"input": "$metadata_digests", "as": "digest", "in": pair}}}
    given = {"$literal": {key_part(digest): digest for digest in new["metadata_digests"]}}
    pairs = {"$objectToArray": {"$mergeObjects": [stored, given]}}
    merged = {"$map": {"input": pairs, "as": "pair", "in": "$$pair.v"}}
    stage: Document = {
        "metadata": {"$mergeObjects": ["$metadata", {"$literal": new["metadata"]}]},
        # A broken document stays broken: digests of the new keys alone would look complete.
        "metadata_digests": {"$cond": [{"$isArray": "$metadata_digests"}, merged, "$metadata_digests"]},
    }
    if PINNED in payload:
        stage[IS_PINNED] = True if _pins(payload) else REMOVED
    if touch:
        stage |= time_stage("updated_at", clock.stamp_us())
    return [{"$set": stage}]


def insert_if_absent_update(fields: Document) -> Document:
    """The upsert that stores a new thread and leaves an existing one unchanged."""
    return {"$setOnInsert": fields}


def running_update(fields: Document) -> Document:
    """The upsert that sets a thread's status to "running" and stores a new thread where there is none."""
    update = set_update({"status": "running"}, updated_at=clock.stamp_us())
    changed = ("status", "updated_at", "updated_at" + BELOW_MS)
    update["$setOnInsert"] = {name: value for name, value in fields.items() if name not in changed}
    return update
