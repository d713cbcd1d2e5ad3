"""Runs a pass of a transfer, and reads what a target has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from deerflow_mongo.contract.bulk_rows import BulkRows
from deerflow_mongo.transfer.sql.carrying import CarryOptions, Transfer
from deerflow_mongo.transfer.sql.databases import open_database
from deerflow_mongo.transfer.sql.outcomes import TableOutcome
from deerflow_mongo.transfer.sql.reading import EventSummary
from deerflow_mongo.transfer.sql.recognition import recognise
from deerflow_mongo.transfer.sql.survey import Survey, survey

from .sources import Source


async def nothing_stored(_: Sequence[str]) -> Mapping[str, EventSummary]:
    return {}


async def one_pass(
    source: Source, target: BulkRows, *, summaries: Any = nothing_stored, compare_all: bool = False
) -> dict[str, TableOutcome]:
    """The outcomes by kind."""
    outcomes: dict[str, TableOutcome] = {}
    database = await open_database(source.url)
    try:
        recognised = await recognise(database)
        work = Transfer(
            database,
            recognised,
            target,
            CarryOptions(compare_all),
            summaries=summaries,
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
