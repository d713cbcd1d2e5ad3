"""The sizes that the guide states are what the server stores."""

from __future__ import annotations

import re
from typing import Any

import pymongo
import pytest

from . import sizes

ROWS = 600
STATED_WITHIN = 0.2
PAGE_BYTES = 4_096


def stated() -> dict[str, tuple[float, ...]]:
    """The figures of the guide's table, by kind of row."""
    _, _, rest = sizes.GUIDE.read_text(encoding="utf-8").partition(sizes.BEGIN)
    rows = [
        line.strip("| ").split(" | ") for line in rest.partition(sizes.END)[0].splitlines() if "|" in line
    ]
    return {
        kind: tuple(float(text.replace(",", "")) for text in figures[:3])
        for kind, *figures in rows
        if re.fullmatch(r"[\d,]+", figures[0])
    }


async def test_stated_sizes_of_documents_and_indexes_are_measured(
    mongodb_url: str, new_database: str, raw_client: pymongo.MongoClient[dict[str, Any]]
) -> None:
    """Documents within 20 %, indexes within a factor of two and two pages each, which few rows do not fill.

    An index is a file, whose free blocks depend on the moments of the server's checkpoints, as does the
    compressed size on disk, which is not compared.
    """
    await sizes.store({"url": mongodb_url, "database": new_database}, ROWS)
    measured = sizes.measured(raw_client[new_database], ROWS)
    table = stated()
    assert table.keys() == measured.keys()
    for kind, size in measured.items():
        document, indexes, _ = table[kind]
        assert size.document == pytest.approx(document, rel=STATED_WITHIN), kind
        pages = 2 * PAGE_BYTES * size.number_of_indexes / size.rows
        assert indexes / 2 - pages <= size.indexes <= 2 * indexes + pages, kind
