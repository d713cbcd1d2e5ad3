"""The rows of a report: plain values, read from what the pipelines in `sections.py` return.

Dates are naive and in UTC, as the driver returns them; sizes are in bytes, durations in milliseconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar, cast

from ...contract.rows import CALLERS
from ..corruption import READ_ERRORS
from ..documents.encoding import Document

LeaseState: TypeAlias = Literal["none", "valid", "expired"]


@dataclass(frozen=True, slots=True)
class DayOfRuns:
    """The runs that were created on a day (in UTC) and are in one status now. `tokens_by_caller` is whole."""

    day: str
    status: str
    runs: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    tokens_by_caller: dict[str, int]


@dataclass(frozen=True, slots=True)
class ModelTokens:
    """What the runs have spent on one model. A run without counts by model counts under its own model."""

    model: str
    runs: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    llm_calls: int
    cache_read_tokens: int


@dataclass(frozen=True, slots=True)
class UserTokens:
    """A user's runs; None is the anonymous user."""

    user_id: str | None
    runs: int
    failed_runs: int
    input_tokens: int
    output_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class ModelVotes:
    """All votes on the runs of the period, whenever they were given, by the run's own model."""

    model: str
    positive: int
    negative: int


@dataclass(frozen=True, slots=True)
class SlowRun:
    run_id: str
    thread_id: str
    user_id: str | None
    status: str
    model: str | None
    created_at: datetime
    duration_ms: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class FailedRuns:
    """The runs that failed with one error type, and the newest of them; its text is cut."""

    status: str
    error_type: str | None
    runs: int
    last_at: datetime
    last_run_id: str
    last_thread_id: str
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run, or a reservation of a thread, that has not ended. Age and lease are by the server's clock.

    `kind` is None for a run that does not occupy its thread; `lease_left_ms` is negative once it has expired.
    """

    run_id: str
    thread_id: str
    user_id: str | None
    kind: str | None
    status: str
    model: str | None
    created_at: datetime
    age_ms: int
    total_tokens: int
    owner: str | None
    lease: LeaseState
    lease_left_ms: int | None


@dataclass(frozen=True, slots=True)
class LargeThread:
    """A thread with many events, at any time."""

    thread_id: str
    events: int
    runs: int


@dataclass(frozen=True, slots=True)
class BusyThread:
    """A thread with many runs in the period."""

    thread_id: str
    user_id: str | None
    runs: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class CollectionSize:
    """`size_bytes` is before compression, `storage_bytes` on disk, without the indexes."""

    collection: str
    documents: int
    size_bytes: int
    storage_bytes: int
    indexes: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class IndexUse:
    """How often queries have used an index since it was created, or the server that answered was started.

    A unique index and one that expires documents serve without being counted.
    """

    collection: str
    index: str
    keys: str
    size_bytes: int
    uses: int
    since: datetime


# -- from documents --------------------------------------------------------------------------------

_Row = TypeVar("_Row")


def readable(documents: Iterable[Document], to_row: Callable[[Document], _Row]) -> list[_Row]:
    """The rows of the documents that can be read; a list leaves out broken ones."""
    rows: list[_Row] = []
    for document in documents:
        with contextlib.suppress(*READ_ERRORS):
            rows.append(to_row(document))
    return rows


# Each of these raises one of `READ_ERRORS` for a group that has something else than expected.


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _date(value: Any) -> datetime:
    if type(value) is not datetime:
        raise TypeError
    return value


def _counts(document: Document) -> dict[str, int]:
    return {f"{name}_tokens": _whole(document[name]) for name in ("input", "output", "total")}


def day_of_runs(document: Document) -> DayOfRuns:
    key = document["_id"]
    callers = {str(caller): _whole(document[caller]) for caller in CALLERS}
    return DayOfRuns(
        _text(key["day"]),
        _text(key["status"]),
        _whole(document["runs"]),
        **_counts(document),
        tokens_by_caller=callers,
    )


def model_tokens(document: Document) -> ModelTokens:
    return ModelTokens(
        _text(document["_id"]),
        _whole(document["runs"]),
        **_counts(document),
        llm_calls=_whole(document["llm_calls"]),
        cache_read_tokens=_whole(document["cache_read"]),
    )


def user_tokens(document: Document) -> UserTokens:
    runs, failed = _whole(document["runs"]), _whole(document["failed"])
    return UserTokens(_optional_text(document["_id"]), runs, failed, **_counts(document))


def model_votes(document: Document) -> ModelVotes:
    return ModelVotes(_text(document["_id"]), _whole(document["positive"]), _whole(document["negative"]))


def slow_run(document: Document) -> SlowRun:
    return SlowRun(
        _text(document["_id"]),
        _text(document["thread_id"]),
        _optional_text(document["user_id"]),
        _text(document["status"]),
        _optional_text(document["model_name"]),
        _date(document["created_at"]),
        _whole(document["duration_ms"]),
        _whole(document["tokens"]["total"]),
    )


def failed_runs(document: Document) -> FailedRuns:
    key, last = document["_id"], document["last"]
    return FailedRuns(
        _text(key["status"]),
        _optional_text(key["error_type"]),
        _whole(document["runs"]),
        _date(last["at"]),
        _text(last["run"]),
        _text(last["thread"]),
        _optional_text(last["error"]),
    )


def active_run(document: Document) -> ActiveRun:
    left = document["lease_left_ms"]
    return ActiveRun(
        _text(document["_id"]),
        _text(document["thread_id"]),
        _optional_text(document.get("user_id")),
        _optional_text(document.get("kind")),
        _text(document["status"]),
        _optional_text(document.get("model_name")),
        _date(document["created_at"]),
        _whole(document["age_ms"]),
        _whole(document.get("total")),
        _optional_text(document.get("owner")),
        cast("LeaseState", _text(document["lease"])),
        None if left is None else _whole(left),
    )


def busy_thread(document: Document) -> BusyThread:
    return BusyThread(
        _text(document["_id"]),
        _optional_text(document["user"]),
        _whole(document["runs"]),
        _whole(document["total"]),
    )


def index_use(document: Document) -> IndexUse:
    keys = ", ".join(
        name if direction == 1 else f"-{name}" if direction == -1 else f"{name} ({direction})"
        for name, direction in document["key"].items()
    )
    accesses = document["accesses"]
    return IndexUse(
        _text(document["collection"]),
        _text(document["name"]),
        keys,
        _whole(document["size"]),
        _whole(accesses["ops"]),
        _date(accesses["since"]),
    )


def collection_size(document: Document) -> CollectionSize:
    return CollectionSize(
        _text(document["collection"]),
        *(_whole(document[name]) for name in ("documents", "size", "storage", "indexes", "index_size")),
    )
