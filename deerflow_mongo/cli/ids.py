"""Ids as people type them: whole, or by the beginning that a table shows."""

from __future__ import annotations

from ..contract.protocols import Storage
from ..mongodb.reports.ids import Kind, complete_id
from ..mongodb.storage import MongoStorage


async def whole_id(storage: Storage, kind: Kind, text: str) -> str:
    """The whole id; of a backend other than MongoDB, the text itself.

    Raises `ArgumentValueError` where several ids begin with the text.
    """
    if not isinstance(storage, MongoStorage):
        return text
    return await complete_id(storage.driver, storage.config.collection_prefix, kind, text)
