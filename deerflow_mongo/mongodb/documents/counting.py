"""Counting documents in one command that an index alone can answer."""

from __future__ import annotations

from collections.abc import Sequence

from .encoding import Document


def count_pipeline(query: Document) -> list[Document]:
    return [{"$match": query}, {"$group": {"_id": None, "count": {"$sum": 1}}}]


def counted(groups: Sequence[Document]) -> int:
    """The count in a `count_pipeline`'s result, which is empty where nothing matched."""
    return +groups[0]["count"] if groups else 0
