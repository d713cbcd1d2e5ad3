"""Schema versions of documents: one that a newer release wrote is not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deerflow_mongo.mongodb.documents.encoding import UnreadableError
from deerflow_mongo.mongodb.documents.feedback import feedback_row
from deerflow_mongo.mongodb.documents.run_events import event_row
from deerflow_mongo.mongodb.documents.runs import run_row
from deerflow_mongo.mongodb.documents.threads import thread_row
from deerflow_mongo.mongodb.documents.users import user_row
from deerflow_mongo.mongodb.documents.versions import SCHEMA_VERSION


@pytest.mark.parametrize("to_row", [run_row, feedback_row, thread_row, user_row, event_row])
@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "2", None, float(SCHEMA_VERSION), True])
def test_document_of_another_version_is_refused_in_every_collection(
    to_row: Callable[[dict[str, Any]], object], version: object
) -> None:
    """What its text is: see `test_corrupt_documents.py`."""
    with pytest.raises(UnreadableError):
        to_row({"_id": "x", "schema_version": version})
