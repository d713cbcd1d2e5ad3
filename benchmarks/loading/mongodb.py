"""Loads a dataset as the documents that deerflow-mongo stores."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database

from deerflow_mongo.contract.payloads import to_json, to_json_mapping
from deerflow_mongo.mongodb import schema
from deerflow_mongo.mongodb.documents.encoding import Document, encode_content, encode_mapping, encode_text
from deerflow_mongo.mongodb.documents.feedback import VOTE
from deerflow_mongo.mongodb.documents.run_events import new_event
from deerflow_mongo.mongodb.documents.runs import COUNT_PATHS, new_run
from deerflow_mongo.mongodb.documents.stored_times import stored_from_input, stored_from_optional
from deerflow_mongo.mongodb.documents.threads import thread_metadata
from deerflow_mongo.mongodb.documents.versions import SCHEMA_VERSION
from deerflow_mongo.mongodb.events.numbers import utc_now

from ..dataset import Rows

_CHUNK = 1_000


def _time(moment: datetime) -> str:
    return stored_from_input("created_at", moment)


def _order(row: Mapping[str, Any]) -> int:
    """The sort stamp that the clock would have returned at the row's time."""
    return int(row["created_at"].timestamp() * 1e6)


def _run(row: Mapping[str, Any]) -> Document:
    document = new_run(
        run_id=row["run_id"],
        thread_id=row["thread_id"],
        user_id=row["user_id"],
        assistant_id=row["assistant_id"],
        status=row["status"],
        model_name=row["model_name"],
        multitask_strategy="reject",
        follow_up_to_run_id=None,
        metadata=encode_mapping(row["metadata"]),
        kwargs=encode_mapping(row["kwargs"]),
        created_at=_time(row["created_at"]),
        started_at=_time(row["created_at"]),
        ended_at=stored_from_optional("ended_at", row.get("ended_at")),
        error=encode_text("error", row.get("error")),
        stamp_us=_order(row),
    )
    for name, path in COUNT_PATHS.items():
        *steps, last = path.split(".")
        place = document
        for step in steps:
            place = place[step]
        place[last] = row.get(name, 0)
    for name in ("first_human_message", "last_ai_message"):
        document[name] = encode_text(name, row.get(name))
    return document


def _vote(row: Mapping[str, Any]) -> Document:
    return {
        "_id": row["feedback_id"],
        "schema_version": SCHEMA_VERSION,
        "run_id": row["run_id"],
        "thread_id": row["thread_id"],
        "user_id": row["user_id"],
        "message_id": None,
        "rating": row["rating"],
        "comment": row["comment"],
        "created_at": _time(row["created_at"]),
        "order": _order(row),
        VOTE: True,
    }


def _thread(row: Mapping[str, Any]) -> Document:
    return {
        "_id": row["thread_id"],
        "schema_version": SCHEMA_VERSION,
        "user_id": row["user_id"],
        "assistant_id": row["assistant_id"],
        "display_name": row["display_name"],
        "status": row["status"],
        **thread_metadata(row["metadata"]),
        "created_at": _time(row["created_at"]),
        "updated_at": _time(row["created_at"]),
        "order": _order(row),
    }


def _event(row: Mapping[str, Any]) -> Document:
    fields = {
        "thread_id": row["thread_id"],
        "run_id": row["run_id"],
        "event_type": row["event_type"],
        "category": row["category"],
        "content": encode_content(to_json(row["content"], "content")),
        "metadata": encode_mapping(to_json_mapping(row["metadata"], "metadata")),
        "created_at": _time(row["created_at"]),
    }
    return {**new_event(fields), "seq": row["seq"], "stored_at": utc_now()}


_DOCUMENTS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], Document]], ...] = (
    (schema.THREADS, "threads", _thread),
    (schema.RUNS, "runs", _run),
    (schema.FEEDBACK, "feedback", _vote),
    (schema.RUN_EVENTS, "run_events", _event),
)


@contextmanager
def _opened(url: str, database: str) -> Generator[Database[Document]]:
    with MongoClient[Document](url) as client:
        yield client[database]


def load(url: str, database: str, batches: Iterable[Rows]) -> None:
    """Inserts into existing collections."""
    with _opened(url, database) as opened:
        for rows in batches:
            for collection, name, document in _DOCUMENTS:
                _insert(opened, collection, list(map(document, getattr(rows, name))))
        opened.client.admin.command("fsync")


def _insert(database: Database[Document], collection: str, documents: list[Document]) -> None:
    for first in range(0, len(documents), _CHUNK):
        chunk = documents[first : first + _CHUNK]
        database.get_collection(collection).insert_many(chunk, ordered=False)


def bytes_of_runs(url: str, database: str) -> int:
    """Disk space of the runs collection with its indexes."""
    with _opened(url, database) as opened:
        opened.client.admin.command("fsync")
        stats: Document = opened.command("collStats", schema.RUNS)
        return stats["storageSize"] + stats["totalIndexSize"]


def drop(url: str, database: str) -> None:
    with _opened(url, database) as opened:
        opened.client.drop_database(database)


def version(url: str) -> str:
    with _opened(url, "admin") as opened:
        return str(opened.command("buildInfo")["version"])
