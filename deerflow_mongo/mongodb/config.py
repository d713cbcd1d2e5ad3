"""The options of the MongoDB backend, as one validated configuration object.

What a MongoDB URI can express (TLS, login, pool) is not an option here; `uri_options.py` has what becomes of
it. No text made here contains a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..contract.errors import StorageConfigError
from ..contract.factory import unread_reference
from .schema import RETENTIONS
from .uri_options import MongoUri, nearest, read_uri
from .uri_options import redacted as redacted

EMBEDDED = "embedded"
"""The `url` that stands for a private server."""

DEFAULT_DATABASE = "deerflow"
DEFAULT_TIMEOUT_MS = 25_000
"""Longer than a replica set's election takes by default (about 11 s), so that writers only pause for it."""

_MAX_TIMEOUT_MS = 2**31 - 1
"""What a server accepts as the limit of a command."""
_NAME_CHARACTERS = re.compile(r'[/\\. "$*<>:|?\s\0-\x1f\x7f]')
_PREFIX = re.compile(r"[A-Za-z0-9_-]{0,60}")
_MAX_DATABASE_BYTES = 63
_BYTE_ORDER_MARK = "\ufeff"
_MEANINGFUL_NULLS: Final = frozenset(retention.option for retention in RETENTIONS)
"""Options in which null is a value of its own and not "not set"."""


def names_database(url: str) -> bool:
    """Whether the URI has a database of its own."""
    return bool(url.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[2])


class MongoConfig(BaseModel):
    """The options of the MongoDB backend. Every field has its documented default once the object exists.

    Blanks and line breaks at the ends of a text are removed, and an option that is then empty, or None, is
    not set; only in the options of retention, such as `run_events_ttl_days`, None has a meaning of its own.
    Building one connects to nothing. Raises `StorageConfigError`, which names every wrong option.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(default="", repr=False, description="a MongoDB URI, or `embedded`")
    database: str = Field(default="", description="default: the URI's, else `deerflow`")
    driver: Literal["pymongo", "motor", "mongomock"] = "pymongo"
    collection_prefix: str = Field(default="", description="put before every collection's name")
    timeout_ms: int = Field(
        default=DEFAULT_TIMEOUT_MS,
        ge=1,
        le=_MAX_TIMEOUT_MS,
        description="of one operation with its retries; default: the URI's `timeoutMS`, else 25,000",
    )
    run_events_ttl_days: int | None = Field(
        default=None,
        ge=1,
        le=20_000,
        description="run events are removed after so many whole days; null ends that; default: as it is",
    )
    runs_ttl_days: int | None = Field(
        default=None,
        ge=1,
        le=20_000,
        description="the same of runs, so many days after their last change; active ones stay",
    )
    feedback_ttl_days: int | None = Field(
        default=None, ge=1, le=20_000, description="the same of feedback, from its creation on"
    )
    threads_ttl_days: int | None = Field(
        default=None,
        ge=1,
        le=20_000,
        description="the same of threads, so many days after their last change; pinned ones stay",
    )
    checkpoints_keep_last: int | None = Field(
        default=None,
        ge=1,
        description="LangGraph checkpoints that stay in each namespace of a thread; default: all",
    )
    checkpoints_ttl_days: int | None = Field(
        default=None,
        ge=1,
        le=20_000,
        description="LangGraph checkpoints but the newest are removed after so many days; default: never",
    )
    telemetry: Literal["otel"] | None = Field(
        default=None, description="`otel`: spans and metrics through OpenTelemetry; default: none"
    )
    metrics: bool = Field(default=False, description="count for `storage.metrics()` and Prometheus")
    slow_ms: int | None = Field(
        default=None, ge=1, description="log operations that took as long or longer; default: none"
    )
    groups: bool = Field(
        default=True,
        description="whether calls that wait share commands; false: one command for each call, as for the "
        "server's profiler",
    )
    upgrade_at_start: bool = Field(
        default=True,
        description="whether a start converts documents of an older version and builds missing indexes of "
        "existing collections; false: an error that names the command `schema upgrade`",
    )
    data_dir: Path | None = Field(
        default=None,
        description="data folder of `url: embedded`; default: a temporary folder, removed with the server",
    )
    mongod_path: str | None = Field(
        default=None, description="the server to run for `url: embedded`; default: PATH, else the extra's"
    )

    if not TYPE_CHECKING:  # the type checker derives a better signature from the fields

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                details = error.errors(include_url=False, include_input=False, include_context=False)
                raise StorageConfigError(
                    "storage configuration: " + "; ".join(map(_sentence, details))
                ) from None

    def __repr_args__(self) -> Any:
        yield "url", redacted(self.url)
        yield from ((name, value) for name, value in super().__repr_args__() if name != "url")

    @property
    def has_server(self) -> bool:
        """Whether the driver talks to a server; mongomock does not."""
        return self.driver != "mongomock"

    @property
    def is_observed(self) -> bool:
        """Whether anything is recorded of what the storage does."""
        return self.telemetry is not None or self.metrics or self.slow_ms is not None

    @property
    def retention(self) -> Mapping[str, int | None]:
        """The days of each option of retention that is given, None for never; `setup()` changes no other."""
        given = self.model_fields_set
        return {rule.option: getattr(self, rule.option) for rule in RETENTIONS if rule.option in given}

    @property
    def database_identity(self) -> str | None:
        """Which database this is: equal wherever it is used, without a login; None for a temporary one."""
        if not self.has_server or not self.url:
            return None
        if self.url == EMBEDDED:
            place = None if self.data_dir is None else str(self.data_dir.absolute())
        else:
            place = ",".join(read_uri(self.url).hosts)
        return None if place is None else f"mongodb:{place}/{self.database}/{self.collection_prefix}"

    @model_validator(mode="before")
    @classmethod
    def _without_empty_options(cls, options: Any) -> Any:
        if not isinstance(options, Mapping):
            return options
        given = {key: _stripped(value) for key, value in cast("Mapping[str, Any]", options).items()}
        return {key: value for key, value in given.items() if not _is_unset(key, value)}

    @field_validator(
        "timeout_ms",
        "checkpoints_keep_last",
        "checkpoints_ttl_days",
        "slow_ms",
        *_MEANINGFUL_NULLS,
        mode="before",
    )
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a whole number is needed, not a truth value")  # noqa: TRY004 - pydantic's rule
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_reference(cls, value: Any) -> Any:
        """What was meant to be read from the environment and was not."""
        sentence = unread_reference(value) if isinstance(value, str) else None
        if sentence is not None:
            raise ValueError(sentence)
        return value

    @field_validator("database")
    @classmethod
    def _database_name(cls, value: str) -> str:
        if _NAME_CHARACTERS.search(value) or len(value.encode()) > _MAX_DATABASE_BYTES:
            raise ValueError(
                f"a database's name has at most {_MAX_DATABASE_BYTES} bytes, no blanks and none of "
                '/\\. "$*<>:|?'
            )
        return value

    @field_validator("collection_prefix")
    @classmethod
    def _collection_prefix(cls, value: str) -> str:
        if not _PREFIX.fullmatch(value):
            raise ValueError("a prefix has at most 60 letters, digits, _ and -")
        return value

    @model_validator(mode="after")
    def _checked_together(self) -> MongoConfig:
        if self.url != EMBEDDED:
            for name in ("data_dir", "mongod_path"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` goes with `url: {EMBEDDED}` only")
        self._fill_defaults()
        return self

    def _fill_defaults(self) -> None:
        uri = MongoUri(None, {})
        if self.has_server and self.url not in ("", EMBEDDED):
            uri = read_uri(self.url)
        filled: dict[str, Any] = {}
        if "timeout_ms" not in self.model_fields_set and (timeout_ms := uri.ms("timeoutMS")):
            filled["timeout_ms"] = min(timeout_ms, _MAX_TIMEOUT_MS)
        if "database" not in self.model_fields_set:
            try:
                filled["database"] = self._database_name(uri.database or DEFAULT_DATABASE)
            except ValueError as error:
                raise ValueError(f"`url`: {error}") from None
        for name, value in filled.items():
            object.__setattr__(self, name, value)  # the model is frozen


def _stripped(value: Any) -> Any:
    """A text or a path without blanks, line breaks and byte order marks at its ends."""
    if isinstance(value, Path):
        return Path(str(value).strip())
    return value.strip().strip(_BYTE_ORDER_MARK).strip() if isinstance(value, str) else value


def _is_unset(key: str, value: Any) -> bool:
    """Whether an option is as good as absent; an unknown key is an error all the same."""
    empty = value == "" or (value is None and key not in _MEANINGFUL_NULLS)
    return empty and key in MongoConfig.model_fields


def mongo_config(options: Mapping[str, Any]) -> MongoConfig:
    """The validated options of a mapping. Raises `StorageConfigError`."""
    strange = [key for key in options if not isinstance(key, str)]  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
    if strange:
        raise StorageConfigError(f"storage configuration: a key must be text, not {strange[0]!r}")
    return MongoConfig(**options)


def _sentence(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = MongoConfig.model_fields
        return f"unknown key `{place}`; expected one of {', '.join(sorted(known))}{nearest(place, known)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"`{place}`: {message}" if place else message
