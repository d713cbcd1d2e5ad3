"""Every query that a source is asked: pages of rows by key, summaries, counts. None of them writes.

Columns have no types here, so that values come as the database stores them; `conversions.py` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ...mongodb.documents.row_summaries import LENGTH
from .layouts import Column, Table

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select, TableClause

    Query: TypeAlias = Select[*tuple[Any, ...]]


def _table(name: str, *columns: str) -> TableClause:
    from sqlalchemy import ColumnClause, column, table

    given: list[ColumnClause[Any]] = [column(each) for each in columns]
    return table(name, *given)


def revisions(table: str) -> Query:
    from sqlalchemy import select

    source = _table(table, "version_num")
    return select(source.c.version_num)


def rows_with_value(table: str, column: str) -> Query:
    """A row whose column has a value, if there is one."""
    from sqlalchemy import literal, select

    source = _table(table, column)
    return select(literal(1)).select_from(source).where(source.c[column].is_not(None)).limit(1)


def count_of(table: str) -> Query:
    from sqlalchemy import func, select

    return select(func.count()).select_from(_table(table))


# -- rows ------------------------------------------------------------------------------------------


def rows_of(
    table: Table, columns: frozenset[str], *, after: Sequence[Any] | None, **conditions: Any
) -> Query:
    """Rows behind a key, in rising order: the key's columns, then those of the table, null for missing ones.

    `conditions` are those of `of_keys`, `of_threads` and `are_replaced`.
    """
    from sqlalchemy import select, tuple_

    source = _table(table.name, *sorted(columns))
    key = [source.c[name] for name in table.key]
    fields = [_value(source, column, columns) for column in table.columns]
    query = select(*key, *fields).order_by(*key)
    if after is not None:
        query = query.where(key[0] > after[0] if len(key) == 1 else tuple_(*key) > tuple_(*after))
    for condition, value in conditions.items():
        query = query.where(_CONDITIONS[condition](source, table, value))
    return query


def _value(source: TableClause, column: Column, columns: frozenset[str]) -> ColumnElement[Any]:
    from sqlalchemy import func, null

    if column.name not in columns:
        return null()
    value = source.c[column.name]
    return value if column.otherwise is None else func.coalesce(value, source.c[column.otherwise])


def small_values(
    table: Table,
    columns: frozenset[str],
    names: Sequence[str],
    dialect: str,
    *,
    after: Any,
    **conditions: Any,
) -> Query:
    """Rows behind a key of one column: the key, and the values of these fields of a summary."""
    from sqlalchemy import select

    source = _table(table.name, *sorted(columns))
    [key] = [source.c[name] for name in table.key]
    by_field = {column.field: column for column in table.columns}
    values: list[ColumnElement[Any]] = []
    for name in names:
        value = _value(source, by_field[name.removesuffix(LENGTH)], columns)
        values.append(_length(value, dialect) if name.endswith(LENGTH) else value)
    query = select(key, *values).order_by(key)
    if after is not None:
        query = query.where(key > after)
    for condition, value in conditions.items():
        query = query.where(_CONDITIONS[condition](source, table, value))
    return query


def _of_keys(source: TableClause, table: Table, keys: Sequence[Any]) -> ColumnElement[bool]:
    [key] = table.key
    return source.c[key].in_(list(keys))


def _of_threads(source: TableClause, _: Table, thread_ids: Sequence[str]) -> ColumnElement[bool]:
    return source.c.thread_id.in_(list(thread_ids))


def _are_replaced(source: TableClause, table: Table, value: bool) -> ColumnElement[bool]:
    return _is_replaced(source, table) if value else ~_is_replaced(source, table)


_CONDITIONS = {"of_keys": _of_keys, "of_threads": _of_threads, "are_replaced": _are_replaced}


# -- votes -----------------------------------------------------------------------------------------


def _is_replaced(source: TableClause, table: Table) -> ColumnElement[bool]:
    """Whether a row is no user's vote: it is on a message, or the user has a newer one on the run."""
    from sqlalchemy import exists, or_, tuple_

    newer = source.alias("newer")
    created = next(column.name for column in table.columns if column.field == "created_at")
    has_newer = exists().where(
        newer.c.run_id == source.c.run_id,
        newer.c.thread_id == source.c.thread_id,
        newer.c.user_id.is_not_distinct_from(source.c.user_id),
        newer.c.message_id.is_(None),
        tuple_(newer.c[created], newer.c.feedback_id) > tuple_(source.c[created], source.c.feedback_id),
    )
    return or_(source.c.message_id.is_not(None), has_newer)


def replaced_votes(table: Table, columns: frozenset[str]) -> Query:
    """The number of rows without a message that are not their user's newest on the run."""
    from sqlalchemy import func, select

    source = _table(table.name, *sorted(columns))
    query = select(func.count()).select_from(source)
    return query.where(_is_replaced(source, table), source.c.message_id.is_(None))


# -- run events ------------------------------------------------------------------------------------


def event_summaries(table: Table, after: str | None, limit: int) -> Query:
    """Of so many threads: id, events, the highest number, and time and user of the events that have it."""
    from sqlalchemy import func, select

    # An index answers the inner query; what it does not have is read of one event of each thread.
    source = _table(table.name, "id", "thread_id", "seq", "user_id", "created_at")
    last = func.max(source.c.seq).label("last_seq")
    inner = select(source.c.thread_id, func.count().label("events"), last)
    if after is not None:
        inner = inner.where(source.c.thread_id > after)
    threads = inner.group_by(source.c.thread_id).order_by(source.c.thread_id).limit(limit).subquery()
    event = source.alias("last_event")
    is_last = (event.c.thread_id == threads.c.thread_id) & (event.c.seq == threads.c.last_seq)
    query = select(*threads.c, event.c.created_at, event.c.user_id)
    return query.select_from(threads.outerjoin(event, is_last)).order_by(threads.c.thread_id, event.c.id)


def repeated_numbers(table: Table) -> Query:
    """The number of events whose number an event before them has."""
    from sqlalchemy import func, select

    source = _table(table.name, "thread_id", "seq")
    key = (source.c.thread_id, source.c.seq)
    repeated = select((func.count() - 1).label("surplus")).select_from(source)
    groups = repeated.group_by(*key).having(func.count() > 1).subquery()
    return select(func.coalesce(func.sum(groups.c.surplus), 0))


# -- checkpoints of LangGraph's savers --------------------------------------------------------------


def checkpoint_summaries() -> Query:
    """Of each thread: its id, its checkpoints and the highest id of one."""
    from sqlalchemy import func, select

    source = _table("checkpoints", "thread_id", "checkpoint_id")
    query = select(source.c.thread_id, func.count(), func.max(source.c.checkpoint_id))
    return query.group_by(source.c.thread_id)


def write_counts(table: str) -> Query:
    """Of each thread with pending writes: its id, and how many."""
    from sqlalchemy import func, select

    source = _table(table, "thread_id")
    return select(source.c.thread_id, func.count()).group_by(source.c.thread_id)


def threads_with_replaceable_writes(table: str) -> Query:
    """The threads whose tasks wait or have failed: LangGraph may replace such writes of a last checkpoint."""
    from sqlalchemy import exists, select

    names = ("thread_id", "checkpoint_ns", "checkpoint_id")
    writes = _table(table, *names, "idx")
    later = _table("checkpoints", "thread_id", "checkpoint_ns", "parent_checkpoint_id")
    has_later = exists().where(
        later.c.thread_id == writes.c.thread_id,
        later.c.checkpoint_ns == writes.c.checkpoint_ns,
        later.c.parent_checkpoint_id == writes.c.checkpoint_id,
    )
    # Errors, interrupts and answers to them have fixed numbers below 0.
    return select(writes.c.thread_id).distinct().where(writes.c.idx < 0, ~has_later)


# -- the survey ------------------------------------------------------------------------------------


def runs_in(table: Table, statuses: Sequence[str], limit: int) -> Query:
    """Runs of these statuses: id, thread and status."""
    from sqlalchemy import select

    source = _table(table.name, "run_id", "thread_id", "status")
    query = select(source.c.run_id, source.c.thread_id, source.c.status)
    return query.where(source.c.status.in_(list(statuses))).order_by(source.c.run_id).limit(limit)


def count_of_runs_in(table: Table, statuses: Sequence[str]) -> Query:
    from sqlalchemy import func, select

    source = _table(table.name, "status")
    return select(func.count()).select_from(source).where(source.c.status.in_(list(statuses)))


def emails_that_differ_in_case(table: Table, limit: int) -> Query:
    """Emails in lower case that several accounts have, and how many."""
    from sqlalchemy import func, select

    source = _table(table.name, "email")
    email = func.lower(source.c.email)
    query = select(email, func.count()).select_from(source).group_by(email)
    return query.having(func.count() > 1).order_by(email).limit(limit)


def _bytes_of(source: TableClause, columns: Sequence[str], dialect: str) -> ColumnElement[int]:
    """The bytes of a row's values as texts."""
    from sqlalchemy import func

    sizes = [func.coalesce(_length(source.c[name], dialect), 0) for name in columns]
    total: ColumnElement[int] = sizes[0]
    for size in sizes[1:]:
        total = total + size
    return total


def _length(value: ColumnElement[Any], dialect: str) -> ColumnElement[int]:
    """The bytes of a value as a text; null of null."""
    from sqlalchemy import LargeBinary, Text, cast, func

    if dialect == "sqlite":
        return func.length(cast(value, LargeBinary))
    return func.octet_length(cast(value, Text))


def sample_size(table: Table, columns: frozenset[str], rows: int, dialect: str) -> Query:
    """The average size of some rows."""
    from sqlalchemy import func, select

    source = _table(table.name, *sorted(columns))
    sample = select(_bytes_of(source, sorted(columns), dialect).label("size")).limit(rows).subquery()
    return select(func.avg(sample.c.size))


def large_rows(
    table: Table, columns: frozenset[str], more_than_bytes: int, limit: int, dialect: str
) -> Query:
    """The keys and sizes of rows whose long values have more bytes than this together."""
    from sqlalchemy import select

    source = _table(table.name, *sorted(columns))
    size = _bytes_of(source, [name for name in table.long_columns if name in columns], dialect)
    key = [source.c[name] for name in table.key]
    return select(*key, size).where(size > more_than_bytes).limit(limit)
