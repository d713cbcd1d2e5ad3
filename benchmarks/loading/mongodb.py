"""Loads a dataset as the documents that deerflow-mongo stores, made by its own writers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pymongo import MongoClient

from deerflow_mongo.contract.times import clock
from deerflow_mongo.mongodb import schema
from deerflow_mongo.mongodb.documents.encoding import Document, encode_content, encode_mapping, encode_text
from deerflow_mongo.mongodb.documents.feedback import VOTE, new_feedback
from deerflow_mongo.mongodb.documents.run_events import new_event
from deerflow_mongo.mongodb.documents.runs import COUNT_PATHS, new_run
from deerflow_mongo.mongodb.documents.stored_times import stamp_from_optional, stamp_of, time_fields
from deerflow_mongo.mongodb.documents.threads import new_thread, thread_fields
from deerflow_mongo.mongodb.events.numbers import utc_now

from ..contenders.known import Contender
from ..dataset import Rows


def _run(row: Mapping[str, Any]) -> Document:
    document = new_run(
        **{name: row[name] for name in ("run_id", "thread_id", "user_id", "assistant_id", "model_name")},
        status=row["status"],
        multitask_strategy="reject",
        follow_up_to_run_id=None,
        metadata=encode_mapping(row["metadata"]),
        kwargs=encode_mapping(row["kwargs"]),
        created_stamp_us=None,
        started_stamp_us=stamp_of(row["created_at"]),
        ended_stamp_us=stamp_from_optional("ended_at", row.get("ended_at")),
        error=row.get("error"),
        stamp_us=stamp_of(row["created_at"]),
    )
    document |= {
        name: encode_text(name, row.get(name)) for name in ("first_human_message", "last_ai_message")
    }
    for name, path in COUNT_PATHS.items():
        *steps, last = path.split(".")
        place = document
        for step in steps:
            place = place[step]
        place[last] = row.get(name, 0)
    return document


def _vote(row: Mapping[str, Any]) -> Document:
    given = {name: row[name] for name in ("thread_id", "run_id", "user_id", "rating", "comment")}
    document = new_feedback(**given, message_id=None, stamp_us=stamp_of(row["created_at"]))
    return {**document, "_id": row["feedback_id"], VOTE: True}


def _thread(row: Mapping[str, Any]) -> Document:
    given = {name: row[name] for name in ("user_id", "assistant_id", "display_name", "status", "metadata")}
    return new_thread(row["thread_id"], thread_fields(**given, stamp_us=stamp_of(row["created_at"])))


def event_document(event: Mapping[str, Any], seq: int, stamp_us: int | None = None) -> Document:
    """An event, whose payloads are encoded, as the document with this number, created at the stamp or now."""
    fields = {**event, **time_fields("created_at", stamp_us or clock.stamp_us())}
    return {**new_event(fields), "seq": seq, "stored_at": utc_now()}


def _event(row: Mapping[str, Any]) -> Document:
    payloads = {"content": encode_content(row["content"]), "metadata": encode_mapping(row["metadata"])}
    return event_document({**row, **payloads}, row["seq"], stamp_of(row["created_at"]))


_DOCUMENTS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Document]]] = {
    "threads": (schema.THREADS, _thread),
    "runs": (schema.RUNS, _run),
    "feedback": (schema.FEEDBACK, _vote),
    "run_events": (schema.RUN_EVENTS, _event),
}


def load(_contender: Contender, url: str, database: str, batches: Iterable[Rows]) -> None:
    """Inserts into existing collections."""
    with MongoClient[Document](url) as client:
        for rows in batches:
            for name, (collection, document) in _DOCUMENTS.items():
                if documents := list(map(document, getattr(rows, name))):
                    client[database][collection].insert_many(documents, ordered=False)
        client.admin.command("fsync")


def bytes_of_runs(_contender: Contender, url: str, database: str) -> int:
    """Disk space of the runs collection with its indexes."""
    with MongoClient[Document](url) as client:
        client.admin.command("fsync")
        stats: Document = client[database].command("collStats", schema.RUNS)
        return stats["storageSize"] + stats["totalIndexSize"]


def drop(url: str, database: str) -> None:
    with MongoClient[Document](url) as client:
        client.drop_database(database)


def version(url: str) -> str:
    with MongoClient[Document](url) as client:
        return str(client.server_info()["version"])
