"""Times as documents have them: BSON dates, and beside a date the microseconds that it cannot hold.

A BSON date counts milliseconds. The microseconds below the millisecond of `started_at` are in
`started_at_us` (1 to 999), which a document has only where they are not zero. The time of creation is in
`order` as well, whole, in microseconds since 1970: rows are sorted by it and take `created_at` from it.
Where a caller gave `created_at`, `order_tie` has the clock's stamp, so that rows of equal `created_at` are
listed in the order in which they were created.

A stamp is a time as microseconds since 1970, as the contract's clock counts them. Dates are naive and in UTC,
as the driver returns them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from ...contract.times import parse_time
from .encoding import WHOLE, Document, UnreadableError

ORDER = "order"
"""The stamp of creation."""

ORDER_TIE = "order_tie"
"""The stamp of the clock when a row was created with a given `created_at`; absent from other rows."""

BELOW_MS = "_us"
"""A date's field with this suffix has the microseconds below its millisecond."""

REMOVED = "$$REMOVE"
"""In an update's pipeline: the document does not have the field afterwards."""

NOW = "$$NOW"
"""In a pipeline or an expression: the time on the server's clock."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def stamp_of(moment: datetime) -> int:
    """The stamp of an aware time."""
    return (moment - _EPOCH_UTC) // _MICROSECOND


def stamp_from_optional(name: str, value: object) -> int | None:
    """The stamp of a time that a caller passed; None for None. Raises as `parse_time` does."""
    return None if value is None else stamp_of(parse_time(name, value))


def date_of(stamp_us: int) -> datetime:
    """The stamp's BSON date, cut to its millisecond."""
    return _EPOCH + timedelta(0, 0, stamp_us - stamp_us % 1_000)


# -- to documents ----------------------------------------------------------------------------------


def time_fields(name: str, stamp_us: int | None) -> Document:
    """The one or two fields of a time in a new document."""
    if stamp_us is None:
        return {name: None}
    below_ms = stamp_us % 1_000
    if below_ms == 0:
        return {name: date_of(stamp_us)}
    return {name: date_of(stamp_us), name + BELOW_MS: below_ms}


def created_fields(created_us: int, clock_us: int | None = None) -> Document:
    """The fields of the time of creation; `clock_us` is the clock's stamp, where `created_us` was given."""
    fields = {"created_at": date_of(created_us), ORDER: created_us}
    return fields if clock_us is None else {**fields, ORDER_TIE: clock_us}


def set_update(changes: Document, **times: int) -> Document:
    """The update that sets `changes`, which becomes part of it, and these times."""
    update: Document = {"$set": changes}
    for name, stamp_us in times.items():
        changes[name] = date_of(stamp_us)
        below_ms = stamp_us % 1_000
        if below_ms:
            changes[name + BELOW_MS] = below_ms
        else:
            update.setdefault("$unset", {})[name + BELOW_MS] = ""
    return update


def time_stage(name: str, stamp_us: int) -> Document:
    """The fields of a time in a `$set` stage of an update's pipeline."""
    return {name: date_of(stamp_us), name + BELOW_MS: stamp_us % 1_000 or REMOVED}


# -- from documents --------------------------------------------------------------------------------


# Several of these times are built for every row, and the same rows are read again and again: a cache answers
# most. Otherwise the parts of a text come from tables, because `isoformat` and `replace` would double the
# cost of a row.

_CACHED_TIMES = 4_096
_MINUTES = tuple(f"{minute // 60:02d}:{minute % 60:02d}:" for minute in range(24 * 60))
_SECONDS = tuple(f"{second:02d}" for second in range(60))
_THOUSANDTHS = tuple(f"{number:03d}" for number in range(1_000))


@lru_cache(maxsize=1_024)
def _day_text(ordinal: int) -> str:
    return f"{datetime.fromordinal(ordinal).date().isoformat()}T"


def _check(date: object, below_ms: Any) -> None:
    """Refuse other types. A number that equals a cached one is not checked: its time is the same."""
    if type(date) is not datetime or type(below_ms) not in WHOLE or not 0 <= below_ms < 1_000:
        raise UnreadableError


@lru_cache(maxsize=_CACHED_TIMES)
def row_time(date: datetime, below_ms: int) -> str:
    """A date and the microseconds below it as rows have them: as `isoformat` writes the time, in UTC."""
    _check(date, below_ms)
    minute, us = _MINUTES[date.hour * 60 + date.minute], date.microsecond
    whole = f"{_day_text(date.toordinal())}{minute}{_SECONDS[date.second]}"
    if not us and not below_ms:
        return f"{whole}+00:00"
    return f"{whole}.{_THOUSANDTHS[us // 1_000]}{_THOUSANDTHS[below_ms]}+00:00"


@lru_cache(maxsize=_CACHED_TIMES)
def row_time_of_stamp(stamp_us: int) -> str:
    """A stamp as rows have it: as `isoformat` writes it, in UTC."""
    return row_time(date_of(stamp_us), stamp_us % 1_000)


@lru_cache(maxsize=_CACHED_TIMES)
def time_of_stamp(stamp_us: int) -> datetime:
    """The aware time of a stamp."""
    return _EPOCH_UTC + timedelta(0, 0, stamp_us)


@lru_cache(maxsize=_CACHED_TIMES)
def aware_time(date: datetime, below_ms: int) -> datetime:
    """A date and the microseconds below it as one aware time."""
    _check(date, below_ms)
    return _EPOCH_UTC + (date - _EPOCH) + timedelta(0, 0, below_ms)
