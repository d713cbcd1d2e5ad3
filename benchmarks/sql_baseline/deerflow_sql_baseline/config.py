"""The options of the backend: DeerFlow's database section, plus the options that the benchmark varies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from deerflow_mongo import StorageConfigError

SQLITE, POSTGRESQL = "sqlite+aiosqlite", "postgresql+asyncpg"
QUEUED = "queued"

# driver -> values of `synchronous`; the first is the default
_SYNCHRONOUS = {SQLITE: ("normal", "full"), POSTGRESQL: ("on", "off")}
_URL_FORMS = f"{SQLITE}:///FILE or {POSTGRESQL}://USER@HOST/DATABASE"


class SqlConfig(BaseModel):
    """The validated options."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)

    url: URL
    run_event_numbers: Literal["queued", "for_update"] = QUEUED
    """"queued": as in DeerFlow's later releases; "for_update": as in the releases of the adapters."""
    pool_size: int = Field(default=5, ge=1)
    """Size of the connection pool; up to ten more connections are opened when all are in use."""
    synchronous: str
    """SQLite's PRAGMA of that name, or PostgreSQL's `synchronous_commit`."""


def sql_config(options: Mapping[str, Any]) -> SqlConfig:
    """Validates the options; `StorageConfigError` names the invalid one and the reason."""
    url = _url(options.get("url"))
    allowed = _SYNCHRONOUS[url.drivername]
    if options.get("synchronous", allowed[0]) not in allowed:
        raise StorageConfigError(f"storage configuration: `synchronous` must be {' or '.join(allowed)}")
    try:
        return SqlConfig.model_validate({"synchronous": allowed[0], **options, "url": url})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StorageConfigError(f"storage configuration: `{first['loc'][0]}`: {first['msg']}") from None


def _url(value: object) -> URL:
    try:
        url = make_url(value if isinstance(value, str) else "")
    except (ArgumentError, ValueError):
        # SQLAlchemy's own text may quote the URL, password included.
        raise StorageConfigError(f"storage configuration: `url` must be {_URL_FORMS}") from None
    if url.drivername not in _SYNCHRONOUS or url.database in (None, "", ":memory:"):
        raise StorageConfigError(f"storage configuration: `url` must be {_URL_FORMS}")
    return url
