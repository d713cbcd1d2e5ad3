"""What followers of run events learn from the database's change stream: new events, and runs that ended."""

from __future__ import annotations

from typing import NamedTuple

from bson import Timestamp

from ...contract.errors import StorageUnavailableError
from ...contract.rows import ACTIVE_STATUSES
from .encoding import Document

_DROPPED = ("drop", "rename", "dropDatabase")


class Change(NamedTuple):
    """A new event of a thread, or a run that ended or was deleted; the other id is None."""

    thread_id: str | None
    run_id: str | None
    is_deletion: bool
    time: Timestamp
    """Of the cluster: a state as of then has the change."""


def change_pipeline(events: str, runs: str) -> list[Document]:
    """The stages that select these changes and project their ids; the arguments name collections."""
    active = list(ACTIVE_STATUSES)
    ended_by_update = {"$exists": True, "$nin": active}
    selected: list[Document] = [
        {"ns.coll": events, "operationType": "insert"},
        {"ns.coll": runs, "operationType": "delete"},
        {
            "ns.coll": runs,
            "operationType": "update",
            "updateDescription.updatedFields.status": ended_by_update,
        },
        {
            "ns.coll": runs,
            "operationType": {"$in": ["insert", "replace"]},
            "fullDocument.status": {"$nin": active},
        },
        {"ns.coll": {"$in": [events, runs]}, "operationType": {"$in": list(_DROPPED)}},
        {"operationType": "dropDatabase"},
    ]
    is_of_run = {"$eq": ["$ns.coll", runs]}
    ids: Document = {
        "operationType": 1,
        "clusterTime": 1,
        "thread_id": {"$cond": [is_of_run, "$$REMOVE", "$fullDocument.thread_id"]},
        "run_id": {"$cond": [is_of_run, "$documentKey._id", "$$REMOVE"]},
    }
    return [{"$match": {"$or": selected}}, {"$project": ids}]


def change_of(document: Document) -> Change:
    """Raises `StorageUnavailableError` where the collections of the events or runs are gone."""
    operation = document["operationType"]
    if operation in _DROPPED or operation == "invalidate":
        raise StorageUnavailableError(f"the change stream ended: its collection is gone ({operation})")
    ids = document.get("thread_id"), document.get("run_id")
    return Change(*ids, operation == "delete", document["clusterTime"])
