"""A database of schema version 1: documents, validators and indexes as the last commit of that format stored
them, and the rows that it returned for them. `version_1.json` was written by that commit itself.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bson import json_util
from pymongo.database import Database

from deerflow_mongo import MongoStorage

Document = dict[str, Any]

_CONTENT: Document = json.loads(Path(__file__).with_name("version_1.json").read_text(encoding="utf-8"))
ROWS: Document = _CONTENT["rows"]


def load(database: Database[Document], *, copies: int = 0) -> None:
    """Store the database; `copies` more documents of each kind, under other ids."""
    for name, content in _CONTENT["database"].items():
        options = {"validator": content["validator"]} if content["validator"] else {}
        collection = database.create_collection(name, **options)
        for index in content["indexes"]:
            specification = {key: value for key, value in index.items() if key != "key"}
            collection.create_index(list(index["key"].items()), **specification)
        documents: list[Document] = json_util.loads(json.dumps(content["documents"]))
        for document in documents:
            _renew(document)
        collection.insert_many(documents)
        if name not in ("schema_versions", "users"):
            _insert_copies(collection, documents, copies)


def first_document(collection: str) -> Document:
    """A document of the collection, as the old release stored it."""
    return json_util.loads(json.dumps(_CONTENT["database"][collection]["documents"][0]))


def _renew(document: Document) -> None:
    """Let the deletion of an event be a moment ago: the server removes a tombstone a day later."""
    if "was_stored_at" in document:
        age = datetime.now(UTC).replace(tzinfo=None) - document["was_stored_at"]
        for name in ("was_stored_at", "forget_at"):
            if document.get(name) is not None:
                document[name] += age


def _insert_copies(collection: Any, documents: list[Document], copies: int) -> None:
    for number in range(copies):
        for document in documents:
            copied = {**document, "thread_id": f"{document.get('thread_id')} copy {number}"}
            if isinstance(document["_id"], str):
                copied["_id"] = f"{document['_id']} copy {number}"
            else:
                del copied["_id"]
            if collection.name == "threads":
                del copied["thread_id"]
            collection.insert_one(copied)


async def rows(storage: MongoStorage) -> Document:
    """The rows of the database as `ROWS` has them, by this release."""
    runs = storage.runs
    run_ids = [row["run_id"] for row in ROWS["runs"]]
    return {
        "runs": [await runs.get(run_id, user_id=None) for run_id in run_ids],
        "lists": {
            thread_id: [row["run_id"] for row in await runs.list_by_thread(thread_id, user_id=None)]
            for thread_id in ROWS["lists"]
        },
        "pending": [row["run_id"] for row in await runs.list_pending() if "copy" not in row["run_id"]],
        "usage": await runs.token_usage_by_thread("thread-1", user_id=None),
        "feedback": await storage.feedback.list_by_thread("thread-1"),
        "threads": [
            repr(row)
            for row in await storage.threads.search_threads(user_id=None, limit=10_000)
            if "copy" not in row.thread_id
        ],
        "last_updated": [
            row.thread_id
            for row in await storage.threads.search_threads(
                user_id=None, limit=10_000, order="last_updated_first"
            )
            if "copy" not in row.thread_id
        ],
        "events": await storage.run_events.list_thread_events("thread-1"),
        "users": [await storage.users.get(row["user_id"]) for row in ROWS["users"]],
    }
