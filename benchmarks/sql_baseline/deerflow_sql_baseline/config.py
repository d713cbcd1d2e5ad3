"""The options of the backend: DeerFlow's database section, plus the options that the benchmark varies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from deerflow_mongo import StorageConfigError

SQLITE, POSTGRESQL = "sqlite+aiosqlite", "postgresql+asyncpg"
QUEUED, FOR_UPDATE = "queued", "for_update"

# driver -> values of `synchronous`; the first is the default
_SYNCHRONOUS = {SQLITE: ("normal", "full"), POSTGRESQL: ("on", "off")}
_NUMBERS = (QUEUED, FOR_UPDATE)
_KNOWN = ("url", "run_event_numbers", "pool_size", "synchronous")
_URL_FORMS = f"{SQLITE}:///FILE or {POSTGRESQL}://USER@HOST/DATABASE"


@dataclass(frozen=True, slots=True)
class SqlConfig:
    """The validated options."""

    url: URL
    run_event_numbers: str
    """"queued": as in DeerFlow's later releases; "for_update": as in the releases of the adapters."""
    pool_size: int
    """Size of the connection pool; up to ten more connections are opened when all are in use."""
    synchronous: str
    """SQLite's PRAGMA of that name, or PostgreSQL's `synchronous_commit`."""


def sql_config(options: Mapping[str, Any]) -> SqlConfig:
    """Validates the options; `StorageConfigError` names the invalid one and the reason."""
    unknown = sorted(set(options) - set(_KNOWN))
    if unknown:
        raise StorageConfigError(
            f"storage configuration: unknown key {', '.join(f'`{key}`' for key in unknown)} "
            f"(expected one of {', '.join(_KNOWN)})"
        )
    url = _url(options.get("url"))
    allowed = _SYNCHRONOUS[url.drivername]
    return SqlConfig(
        url=url,
        run_event_numbers=_one_of("run_event_numbers", options.get("run_event_numbers", QUEUED), _NUMBERS),
        pool_size=_pool_size(options.get("pool_size", 5)),
        synchronous=_one_of("synchronous", options.get("synchronous", allowed[0]), allowed),
    )


def _url(value: object) -> URL:
    if not isinstance(value, str) or not value:
        raise StorageConfigError(f"storage configuration: `url` is missing: {_URL_FORMS}")
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        # SQLAlchemy's own text may quote the URL, password included.
        raise StorageConfigError(f"storage configuration: `url` is not a URL: {_URL_FORMS}") from None
    if url.drivername not in _SYNCHRONOUS:
        raise StorageConfigError(f"storage configuration: `url` must be {_URL_FORMS}")
    if url.drivername == SQLITE and url.database in (None, "", ":memory:"):
        raise StorageConfigError(f"storage configuration: `url` must name a file: {SQLITE}:///FILE")
    return url


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        choices = " or ".join(f'"{choice}"' for choice in allowed)
        raise StorageConfigError(f"storage configuration: `{name}` must be {choices}, not {value!r}")
    return value


def _pool_size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise StorageConfigError(
            f"storage configuration: `pool_size` must be an integer of at least 1, not {value!r}"
        )
    return value
