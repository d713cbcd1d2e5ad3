"""Runs a pass of a transfer, and reads what a target has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from deerflow_mongo.contract.bulk_rows import RowKind
from deerflow_mongo.mongodb.documents.row_summaries import RowSummary, summary_of_row
from deerflow_mongo.transfer.sql.carrying import CarryOptions, Stored, Transfer
from deerflow_mongo.transfer.sql.databases import open_database
from deerflow_mongo.transfer.sql.outcomes import TableOutcome
from deerflow_mongo.transfer.sql.reading import EventSummary
from deerflow_mongo.transfer.sql.recognition import recognise
from deerflow_mongo.transfer.sql.survey import Survey, survey

from .dict_target import DictTarget
from .sources import Source


class StoredInDicts:
    """What a target of dicts has, as it is compared first; counts what it is asked for."""

    def __init__(self, target: DictTarget, events: Mapping[str, EventSummary] | None = None) -> None:
        self._target = target
        self._events = events or {}
        self.calls = 0

    async def events(self, thread_ids: Sequence[str]) -> Mapping[str, EventSummary]:
        self.calls += 1
        return {thread_id: self._events[thread_id] for thread_id in thread_ids if thread_id in self._events}

    async def has_rows(self, kind: RowKind) -> bool:
        return bool(self._target.rows[kind])

    async def rows(self, kind: RowKind, ids: Sequence[str]) -> Mapping[str, RowSummary]:
        self.calls += 1
        rows = self._target.rows[kind]
        return {each: summary_of_row(kind, rows[each,]) for each in ids if (each,) in rows}


async def one_pass(
    source: Source, target: Any, *, stored: Stored | None = None, compare_all: bool = False
) -> dict[str, TableOutcome]:
    """The outcomes by kind. The target is one of dicts unless `stored` is given."""
    outcomes: dict[str, TableOutcome] = {}
    database = await open_database(source.url)
    try:
        recognised = await recognise(database)
        work = Transfer(
            database,
            recognised,
            target,
            CarryOptions(compare_all),
            stored=stored or StoredInDicts(target),
            on_progress=lambda outcome, rows: None,
        )
        async with aclosing(work.run()) as tables:
            async for outcome in tables:
                outcomes[outcome.kind] = outcome
    finally:
        await database.aclose()
    return outcomes


async def surveyed(source: Source) -> Survey:
    database = await open_database(source.url)
    try:
        return await survey(database, await recognise(database))
    finally:
        await database.aclose()
