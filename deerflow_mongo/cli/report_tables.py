"""A report as tables of text: what a terminal prints and what a page shows under its charts.

Which numbers there are is decided in `mongodb/reports/`; here is only how they are named and written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from ..contract.rows import ACTIVE_STATUSES, CALLERS, ENDED_STATUSES
from ..demo.text import counted, first_words
from ..mongodb.reports.report import Report
from ..mongodb.reports.rows import DayOfRuns
from ..mongodb.reports.sections import FAILED_STATUSES
from .tables import Column, bytes_text, seconds_text, shortened, time_text
from .top import lease_text

Rows = Iterable[Sequence[str]]


@dataclass(frozen=True, slots=True)
class ReportTable:
    """One table: what is counted (`note`), what no rows mean (`empty`), and why it was not read."""

    name: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    empty: str
    unavailable: str | None = None


@dataclass(frozen=True, slots=True)
class _Section:
    """How a section becomes a table. `source` is its name in a report, where that is another one."""

    title: str
    note: str
    empty: str
    columns: Callable[[Report], Sequence[Column]]
    rows: Callable[[Report], Rows]
    source: str | None = None


def tables_of(report: Report) -> list[ReportTable]:
    """All tables, in the order in which they are shown."""
    shown = [name for name in _SECTIONS if name != "checkpoints" or _has_checkpoints(report)]
    return [_table(report, name, _SECTIONS[name]) for name in shown]


def _has_checkpoints(report: Report) -> bool:
    return report.checkpoints is not None or "checkpoints" in report.unavailable


def _table(report: Report, name: str, section: _Section) -> ReportTable:
    left_after = seconds_text(report.left_after.total_seconds())
    return ReportTable(
        name,
        section.title,
        section.note.format(listed=report.listed, left_after=left_after, left=report.left_running_count),
        section.columns(report),
        [tuple(row) for row in section.rows(report)],
        section.empty,
        report.unavailable.get(section.source or name),
    )


def period_text(report: Report) -> str:
    """Such as "30 days, 2026-10-29 to 2026-11-27 (UTC)"."""
    return f"{counted(report.days, 'day')}, {report.since:%Y-%m-%d} to {report.until:%Y-%m-%d} (UTC)"


def facts_of(report: Report) -> list[tuple[str, str]]:
    """The numbers that come first, each with its name."""
    runs = sum(day.runs for day in report.runs_by_day)
    failed = sum(day.runs for day in report.runs_by_day if day.status in FAILED_STATUSES)
    tokens = sum(day.total_tokens for day in report.runs_by_day)
    on_disk = sum(row.storage_bytes + row.index_bytes for row in report.collections)
    facts = {
        "runs_by_day": [
            ("Runs", f"{runs:,}"),
            ("Failed", f"{failed:,} ({share(failed, runs)})"),
            ("Tokens", f"{tokens:,}"),
        ],
        "left_running": [("Left running", f"{report.left_running_count:,}")],
        "collections": [("On disk", bytes_text(on_disk))],
    }
    return [
        (name, "not read" if section in report.unavailable else value)
        for section, named in facts.items()
        for name, value in named
    ]


def share(part: int, whole: int) -> str:
    """In percent; "-" of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


# -- days and statuses -----------------------------------------------------------------------------


def statuses_of(days: Iterable[DayOfRuns]) -> list[str]:
    """Every status that occurs: endings, active ones, then others."""
    found = {day.status for day in days}
    known = [status for status in (*ENDED_STATUSES, *ACTIVE_STATUSES) if status in found]
    return [*known, *sorted(found.difference(known))]


def days_of(report: Report) -> list[date]:
    """Every day of the period, also those without runs."""
    return [report.since.date() + timedelta(days=number) for number in range(report.days)]


def _day_columns(report: Report) -> Sequence[Column]:
    statuses = (Column(status, is_number=True) for status in statuses_of(report.runs_by_day))
    return (Column("day"), *statuses, *_numbers("all", "input tokens", "output tokens", "tokens"))


def _day_rows(report: Report) -> Iterator[Sequence[str]]:
    statuses = statuses_of(report.runs_by_day)
    by_day: dict[str, list[DayOfRuns]] = {}
    for row in report.runs_by_day:
        by_day.setdefault(row.day, []).append(row)
    named = sorted(by_day.items())
    if len(named) > 1:
        named.append(("all days", report.runs_by_day))
    for name, rows in named:
        runs = (sum(row.runs for row in rows if row.status == status) for status in statuses)
        yield (
            name,
            *(f"{count:,}" if count else "-" for count in runs),
            f"{sum(row.runs for row in rows):,}",
            f"{sum(row.input_tokens for row in rows):,}",
            f"{sum(row.output_tokens for row in rows):,}",
            f"{sum(row.total_tokens for row in rows):,}",
        )


def tokens_by_caller(report: Report) -> dict[str, int]:
    """The tokens of the period by who spent them."""
    return {
        caller: sum(day.tokens_by_caller.get(caller, 0) for day in report.runs_by_day) for caller in CALLERS
    }


# -- the other rows --------------------------------------------------------------------------------


def _texts(*titles: str) -> tuple[Column, ...]:
    return tuple(map(Column, titles))


def _numbers(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, is_number=True) for title in titles)


def user_name(user_id: str | None) -> str:
    return "(anonymous)" if user_id is None else user_id


def _model_rows(report: Report) -> Rows:
    all_tokens = sum(row.total_tokens for row in report.tokens_by_model)
    for row in report.tokens_by_model:
        counts = (row.runs, row.llm_calls, row.input_tokens, row.cache_read_tokens, row.output_tokens)
        yield (
            row.model,
            *(f"{count:,}" for count in counts),
            f"{row.total_tokens:,}",
            share(row.total_tokens, all_tokens),
        )


def _user_rows(report: Report) -> Rows:
    for row in report.tokens_by_user:
        counts = (row.runs, row.failed_runs, row.input_tokens, row.output_tokens, row.total_tokens)
        yield (user_name(row.user_id), *(f"{count:,}" for count in counts))


def _caller_rows(report: Report) -> Rows:
    tokens = tokens_by_caller(report)
    total = sum(tokens.values())
    if total:
        for caller, count in tokens.items():
            yield (caller, f"{count:,}", share(count, total))


def _vote_rows(report: Report) -> Rows:
    for row in report.votes_by_model:
        votes = row.positive + row.negative
        yield (row.model, f"{row.positive:,}", f"{row.negative:,}", share(row.positive, votes))


def _slow_rows(report: Report) -> Rows:
    found = report.slowest_runs
    runs, threads = shortened(row.run_id for row in found), shortened(row.thread_id for row in found)
    for row in found:
        yield (
            *(runs[row.run_id], threads[row.thread_id], user_name(row.user_id)),
            *(row.status, time_text(row.created_at), seconds_text(row.duration_ms / 1000)),
            *(f"{row.total_tokens:,}", row.model or "-"),
        )


def _failed_rows(report: Report) -> Rows:
    found = report.failed_runs
    runs, threads = (
        shortened(row.last_run_id for row in found),
        shortened(row.last_thread_id for row in found),
    )
    for row in found:
        yield (
            *(row.error_type or "(none)", row.status, f"{row.runs:,}", time_text(row.last_at)),
            *(runs[row.last_run_id], threads[row.last_thread_id], first_words(row.last_error or "")),
        )


def _left_rows(report: Report) -> Rows:
    found = report.left_running
    runs, threads = shortened(row.run_id for row in found), shortened(row.thread_id for row in found)
    for row in found:
        yield (
            *(runs[row.run_id], threads[row.thread_id], user_name(row.user_id), row.status),
            *(seconds_text(row.age_ms / 1000), lease_text(row), row.owner or "-"),
        )


def _large_rows(report: Report) -> Rows:
    threads = shortened(row.thread_id for row in report.largest_threads)
    for row in report.largest_threads:
        yield (threads[row.thread_id], f"{row.events:,}", f"{row.runs:,}")


def _busy_rows(report: Report) -> Rows:
    threads = shortened(row.thread_id for row in report.busiest_threads)
    for row in report.busiest_threads:
        yield (threads[row.thread_id], user_name(row.user_id), f"{row.runs:,}", f"{row.total_tokens:,}")


def _checkpoint_rows(report: Report) -> Rows:
    if report.checkpoints is None:
        return
    threads = shortened(row.thread for row in report.checkpoints.largest)
    for row in report.checkpoints.largest:
        counts = (f"{count:,}" for count in (row.checkpoints, row.pieces, row.writes))
        yield (threads[row.thread], *counts, bytes_text(row.size_bytes))


def _collection_rows(report: Report) -> Rows:
    for row in report.collections:
        yield (
            *(row.collection, f"{row.documents:,}", bytes_text(row.size_bytes)),
            *(bytes_text(row.storage_bytes), f"{row.indexes:,}", bytes_text(row.index_bytes)),
        )


def _index_rows(report: Report) -> Rows:
    for row in report.indexes:
        size, uses = bytes_text(row.size_bytes), f"{row.uses:,}"
        yield (row.collection, row.index, uses, size, time_text(row.since), row.keys)


def _fixed(*columns: Column) -> Callable[[Report], Sequence[Column]]:
    return lambda _: columns


_NO_RUNS = "No runs in this period."

_SECTIONS: Final[Mapping[str, _Section]] = {
    "runs_by_day": _Section(
        "Runs by day and status",
        "By the day of their creation, in UTC, and the status that they have now.",
        _NO_RUNS,
        _day_columns,
        _day_rows,
    ),
    "tokens_by_model": _Section(
        "Tokens by model",
        "What the runs have spent; a run without counts by model counts under its own model.",
        _NO_RUNS,
        _fixed(
            *_texts("model"),
            *_numbers("runs", "calls", "input tokens", "of it cached", "output tokens", "tokens", "share"),
        ),
        _model_rows,
    ),
    "tokens_by_user": _Section(
        "Tokens by user",
        "The {listed} users who spent most.",
        _NO_RUNS,
        _fixed(*_texts("user"), *_numbers("runs", "failed", "input tokens", "output tokens", "tokens")),
        _user_rows,
    ),
    "tokens_by_caller": _Section(
        "Tokens by caller",
        "Which part of the agent spent them.",
        "No tokens in this period.",
        _fixed(*_texts("caller"), *_numbers("tokens", "share")),
        _caller_rows,
        source="runs_by_day",
    ),
    "votes_by_model": _Section(
        "Votes by model",
        "All votes on the runs of this period, by the run's own model, and the share of positive ones.",
        "No votes on runs of this period.",
        _fixed(*_texts("model"), *_numbers("positive", "negative", "share")),
        _vote_rows,
    ),
    "failed_runs": _Section(
        "Failing runs by error type",
        "Runs with the status error or timeout: the {listed} most frequent types, with their newest run.",
        "No failing runs in this period.",
        _fixed(
            *_texts("error type", "status"),
            *_numbers("runs"),
            *_texts("newest", "run", "thread", "error"),
        ),
        _failed_rows,
    ),
    "slowest_runs": _Section(
        "Slowest runs",
        "The {listed} runs that took longest, of those that have ended.",
        "No ended runs in this period.",
        _fixed(
            *_texts("run", "thread", "user", "status", "created"),
            *_numbers("took", "tokens"),
            *_texts("model"),
        ),
        _slow_rows,
    ),
    "left_running": _Section(
        "Runs left running",
        "Active for more than {left_after}, or with an expired lease, now: {left:,} in all, oldest first.",
        "No run was left running.",
        _fixed(*_texts("run", "thread", "user", "status"), *_numbers("age"), *_texts("lease", "owner")),
        _left_rows,
    ),
    "largest_threads": _Section(
        "Largest threads",
        "By their stored run events, at any time.",
        "No run events.",
        _fixed(*_texts("thread"), *_numbers("events", "runs")),
        _large_rows,
    ),
    "busiest_threads": _Section(
        "Busiest threads",
        "By their runs in this period.",
        _NO_RUNS,
        _fixed(*_texts("thread", "user"), *_numbers("runs", "tokens")),
        _busy_rows,
    ),
    "checkpoints": _Section(
        "Threads with the largest checkpoints",
        "LangGraph's checkpoints, their pieces and writes; sizes before compression.",
        "No checkpoints.",
        _fixed(*_texts("thread"), *_numbers("checkpoints", "pieces", "writes", "size")),
        _checkpoint_rows,
    ),
    "collections": _Section(
        "Collections",
        "As the server counts them: documents, their size before compression, and what is on disk.",
        "No collections.",
        _fixed(
            *_texts("collection"), *_numbers("documents", "size", "on disk", "indexes", "size of indexes")
        ),
        _collection_rows,
    ),
    "indexes": _Section(
        "Indexes and their use",
        "Queries that used an index since then, on the server that answered. Unique indexes and those that "
        "expire documents are needed without being counted.",
        "No indexes.",
        _fixed(*_texts("collection", "index"), *_numbers("uses", "size"), *_texts("since", "keys")),
        _index_rows,
    ),
}
"""The tables by their names, in the order in which they are shown."""
