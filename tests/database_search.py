"""Finds a text in every collection of a database, wherever it stands in a document."""

from __future__ import annotations

from typing import Any

from pymongo.synchronous.database import Database


def documents_with(database: Database[dict[str, Any]], text: str) -> dict[str, list[str]]:
    """The documents that contain this text, by collection, as Python prints them."""
    found: dict[str, list[str]] = {}
    for name in database.list_collection_names():
        for document in database[name].find():
            if text in (printed := repr(document)):
                found.setdefault(name, []).append(printed)
    return found
