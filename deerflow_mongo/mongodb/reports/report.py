"""Reads a report of a database, section by section, without getting in the way of the hosts that use it.

One command per section (three for the largest threads), one after the other, each within a time limit that
the server enforces, sorted and grouped on the server's disk where its memory does not suffice. A section that
takes too long, or that the user may not read, is named in the report and left out; the others are there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ...contract.errors import StorageAccessError, StorageError, StorageUnavailableError
from ...contract.times import system_clock_us
from ..checkpoints.statistics import CheckpointStatistics, statistics
from ..documents.encoding import Document
from ..documents.stored_times import date_of, stamp_of
from ..drivers.driver import Driver
from ..drivers.time_limit import LONG_RUNNING_TIMEOUT_S, long_running
from ..schema import CHECKPOINTS, COLLECTIONS, RUN_EVENTS, RUNS
from . import queries, sections
from .activity import active_of
from .rows import (
    ActiveRun,
    BusyThread,
    CollectionSize,
    DayOfRuns,
    FailedRuns,
    IndexUse,
    LargeThread,
    ModelTokens,
    ModelVotes,
    SlowRun,
    UserTokens,
    collection_size,
    index_use,
    readable,
)
from .sections import SECTIONS, Pipeline, Scope, Section

DEFAULT_DAYS: Final = 30
DEFAULT_LISTED: Final = 10
DEFAULT_SECTION_TIMEOUT_S: Final = 30.0
DEFAULT_LEFT_AFTER: Final = timedelta(hours=1)


@dataclass(slots=True)
class Report:
    """What was found; a list is empty where there is nothing, and where `unavailable` has its name.

    Runs are those created from `since` to `until`; whole days in UTC, but for the last one. Active runs,
    largest threads, collections and indexes are of now, whatever the period.
    """

    database: str
    since: datetime
    until: datetime
    days: int
    listed: int
    """The length of the lists that are cut; those of days, models, collections and indexes are whole."""
    left_after: timedelta
    runs_by_day: list[DayOfRuns] = field(default_factory=list[DayOfRuns])
    tokens_by_model: list[ModelTokens] = field(default_factory=list[ModelTokens])
    tokens_by_user: list[UserTokens] = field(default_factory=list[UserTokens])
    votes_by_model: list[ModelVotes] = field(default_factory=list[ModelVotes])
    slowest_runs: list[SlowRun] = field(default_factory=list[SlowRun])
    failed_runs: list[FailedRuns] = field(default_factory=list[FailedRuns])
    busiest_threads: list[BusyThread] = field(default_factory=list[BusyThread])
    left_running: list[ActiveRun] = field(default_factory=list[ActiveRun])
    left_running_count: int = 0
    largest_threads: list[LargeThread] = field(default_factory=list[LargeThread])
    collections: list[CollectionSize] = field(default_factory=list[CollectionSize])
    indexes: list[IndexUse] = field(default_factory=list[IndexUse])
    checkpoints: CheckpointStatistics | None = None
    """Only where they were asked for: the server reads all of them."""
    unavailable: dict[str, str] = field(default_factory=dict[str, str])
    """The names of the sections that could not be read, with the reason."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a report covers, and what it may cost."""

    days: int = DEFAULT_DAYS
    listed: int = DEFAULT_LISTED
    left_after: timedelta = DEFAULT_LEFT_AFTER
    section_timeout_s: float = DEFAULT_SECTION_TIMEOUT_S
    checkpoints: bool = False
    """Whether to measure the threads' checkpoints as well."""


def _no_progress(section: str) -> None:
    pass


async def read_report(
    driver: Driver, prefix: str, options: ReportOptions, *, on_section: Callable[[str], None] = _no_progress
) -> Report:
    """The report of a database; `on_section` is called with the name of each section before it is read.

    Raises `StorageError` where the server cannot be reached, or the database has no collection of ours.
    """
    names = [prefix + schema.name for schema in COLLECTIONS]
    listed = await driver.list_collections(names)
    existing = [name for name in names if listed.get(name, {}).get("type") == "collection"]
    if not existing:
        raise StorageError(f"database {driver.database_name} has no collection of deerflow-mongo")
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    since = midnight - timedelta(days=options.days - 1)
    report = Report(
        driver.database_name,
        since.replace(tzinfo=None),
        date_of(stamp_of(now)),
        options.days,
        options.listed,
        options.left_after,
    )
    await _Reading(driver, prefix, options, report, on_section).read(existing)
    return report


def section_names() -> list[str]:
    """The names of all sections that are lists, as `Report.unavailable` has them."""
    return [*SECTIONS, "left_running", "largest_threads", "collections", "indexes", "checkpoints"]


@dataclass(slots=True)
class _Reading:
    """Fills a report."""

    driver: Driver
    prefix: str
    options: ReportOptions
    report: Report
    on_section: Callable[[str], None]
    index_sizes: dict[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])

    async def read(self, existing: list[str]) -> None:
        for name, section in SECTIONS.items():
            await self._section(name, self._rows(section))
        await self._section("left_running", self._left_running())
        await self._section("largest_threads", self._largest_threads())
        await self._section("collections", self._collections(existing))
        await self._section("indexes", self._indexes(existing))
        if self.options.checkpoints:
            await self._section("checkpoints", self._checkpoints(), limit_s=LONG_RUNNING_TIMEOUT_S)

    async def _section(
        self, name: str, reading: Coroutine[Any, Any, object], *, limit_s: float | None = None
    ) -> None:
        """Set what was read, or why it was not."""
        limit_s = limit_s or self.options.section_timeout_s
        self.on_section(name)
        try:
            with long_running(limit_s):
                found = await reading
        except StorageAccessError as error:
            self.report.unavailable[name] = str(error)
        except StorageUnavailableError:
            await self.driver.command({"ping": 1})  # else no other section could be read
            self.report.unavailable[name] = f"not read within {limit_s:g} s, the limit of a section"
        else:
            setattr(self.report, name, found)

    async def _aggregate(self, collection: str, pipeline: Pipeline) -> list[Document]:
        return await self.driver.collection(collection).aggregate(
            pipeline, batch_size=sections.MAX_GROUPS, allowDiskUse=True, comment="deerflow-mongo stats"
        )

    async def _rows(self, section: Section) -> list[Any]:
        options = self.options
        scope = Scope(self.report.since, self.report.until, options.listed, self.prefix)
        found = await self._aggregate(self.prefix + section.collection, section.pipeline(scope))
        return readable(found, section.row)

    async def _left_running(self) -> list[ActiveRun]:
        now_us = system_clock_us()
        left_since_us = now_us - self.options.left_after // timedelta(microseconds=1)
        pipeline = sections.active_runs(now_us, self.options.listed, left_since_us=left_since_us)
        rows, self.report.left_running_count = active_of(await self._aggregate(self.prefix + RUNS, pipeline))
        return rows

    async def _largest_threads(self) -> list[LargeThread]:
        """By three commands: a `$lookup` cannot count from an index alone."""
        events = self.prefix + RUN_EVENTS
        [found] = await self._aggregate(events, sections.highest_numbers())
        threads = [document["_id"] for kind in ("numbered", "restarted") for document in found[kind]]
        ids = [thread for thread in threads if isinstance(thread, str)]
        counts = await self._counts(events, queries.events_of_threads(ids))
        largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: self.options.listed]
        runs = await self._counts(
            self.prefix + RUNS, queries.runs_of_threads([thread for thread, _ in largest])
        )
        return [LargeThread(thread, count, runs.get(thread, 0)) for thread, count in largest]

    async def _counts(self, collection: str, query: queries.Query) -> dict[str, int]:
        found = await self._aggregate(collection, sections.count_by_thread(query))
        return {document["_id"]: int(document["count"]) for document in found}

    async def _collections(self, existing: list[str]) -> list[CollectionSize]:
        found = await self._aggregate(existing[0], sections.collection_sizes(existing))
        merged = sections.merged_sizes(found)
        self.index_sizes = {document["collection"]: document["index_sizes"] for document in merged}
        return readable(merged, collection_size)

    async def _indexes(self, existing: list[str]) -> list[IndexUse]:
        found = await self._aggregate(existing[0], sections.index_uses(existing))
        merged = sections.merged_uses(found)
        for document in merged:
            document["size"] = self.index_sizes.get(document["collection"], {}).get(document["name"], 0)
        order = {name: number for number, name in enumerate(existing)}
        return sorted(readable(merged, index_use), key=lambda row: (order[row.collection], row.index))

    async def _checkpoints(self) -> CheckpointStatistics:
        return await statistics(
            self.driver.collection(self.prefix + CHECKPOINTS), largest=self.options.listed
        )
