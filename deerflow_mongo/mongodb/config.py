"""The options of the MongoDB backend, as one validated configuration object.

What a MongoDB URI can express (TLS, login, pool, read preference) is not an option here. No text made here
contains a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..contract.errors import StorageConfigError

EMBEDDED = "embedded"
"""The `url` that stands for a private server."""

DEFAULT_DATABASE = "deerflow"
DEFAULT_TIMEOUT_MS = 25_000
"""Longer than a replica set's election takes by default (about 11 s), so that writers only pause for it."""

# PyMongo ignores the second where a timeoutMS is set, so ours must not be.
_URI_TIMEOUTS = ("timeoutms", "serverselectiontimeoutms")

# Up to the last @, even in the options: a login that is not escaped may contain any character.
_LOGIN = re.compile(r"(?<=://).*@", re.DOTALL)
_SECRET_OPTIONS = re.compile(r"(tlsCertificateKeyFilePassword=|authMechanismProperties=)[^&]*", re.IGNORECASE)
_NAME_CHARACTERS = re.compile(r'[/\\. "$*<>:|?\0]')
_PREFIX = re.compile(r"[A-Za-z0-9_-]{0,60}")
_MAX_DATABASE_BYTES = 63


def redacted(url: str) -> str:
    """The URL without its login and without options that are secret."""
    return _SECRET_OPTIONS.sub(r"\1***", _LOGIN.sub("***@", url))


class Retention(NamedTuple):
    """What a given `run_events_ttl_days` asks for: run events are removed after so many days, or never."""

    days: int | None


class MongoConfig(BaseModel):
    """The options of the MongoDB backend. Every field has its documented default once the object exists.

    Building one connects to nothing. Raises `StorageConfigError`, which names every wrong option.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(default="", repr=False, description="a MongoDB URI, or `embedded`")
    database: str = Field(default="", description="default: the URI's, else `deerflow`")
    driver: Literal["pymongo", "motor", "mongomock"] = "pymongo"
    collection_prefix: str = Field(default="", description="put before every collection's name")
    timeout_ms: int | None = Field(
        default=None,
        ge=1,
        description="of one operation with its retries; default: the URI's (then None here), else 25,000",
    )
    run_events_ttl_days: int | None = Field(
        default=None,
        ge=1,
        le=20_000,
        description="run events are removed after so many whole days; null ends that; default: as it is",
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
    def retention(self) -> Retention | None:
        """The retention that `setup()` applies; None leaves it as it is, where the option is absent."""
        is_given = "run_events_ttl_days" in self.model_fields_set
        return Retention(self.run_events_ttl_days) if is_given else None

    @field_validator("database")
    @classmethod
    def _database_name(cls, value: str) -> str:
        if _NAME_CHARACTERS.search(value) or len(value.encode()) > _MAX_DATABASE_BYTES:
            raise ValueError(
                f"a database's name has at most {_MAX_DATABASE_BYTES} bytes and none of /\\. \"$*<>:|?"
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
        uri_database: str | None = None
        has_timeout = False
        if self.has_server and self.url not in ("", EMBEDDED):
            parsed = _parse_uri(self.url)
            options = {str(name).lower(): value for name, value in parsed["options"].items()}
            if options.get("w") == 0:
                raise StorageConfigError("url has w=0, which acknowledges no write: remove it")
            uri_database = parsed["database"]
            has_timeout = any(name in options for name in _URI_TIMEOUTS)
        filled = {
            "database": self.database or uri_database or DEFAULT_DATABASE,
            # The client reads a timeout in the URI from there.
            "timeout_ms": self.timeout_ms or (None if has_timeout else DEFAULT_TIMEOUT_MS),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)  # the model is frozen


def _parse_uri(url: str) -> Mapping[str, Any]:
    """The parts of a URI, read without any connection, also where its scheme asks for a DNS lookup."""
    # Imported here: importing this package imports no driver.
    from pymongo.errors import ConfigurationError, InvalidURI
    from pymongo.uri_parser import parse_uri

    plain = url.replace("mongodb+srv://", "mongodb://", 1)
    message = "url is not a valid MongoDB URI: "
    try:
        parsed = cast("Mapping[str, Any]", parse_uri(plain, validate=True, warn=False))
    except (InvalidURI, ConfigurationError, ValueError):
        # The driver's text may quote what it parsed as a part of the URI: parse one without secrets instead.
        try:
            parse_uri(redacted(plain), validate=True, warn=False)
        except (InvalidURI, ConfigurationError, ValueError) as error:
            raise StorageConfigError(message + str(error)) from error
        raise StorageConfigError(message + "escape the login's special characters (RFC 3986)") from None
    hosts = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    if plain != url and ("," in hosts or ":" in hosts):
        raise StorageConfigError("url: mongodb+srv:// takes one host name and no port")
    return parsed


def mongo_config(options: Mapping[str, Any]) -> MongoConfig:
    """The validated options of a mapping. Raises `StorageConfigError`."""
    strange = [key for key in options if not isinstance(key, str)]  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
    if strange:
        raise StorageConfigError(f"storage configuration: a key must be text, not {strange[0]!r}")
    return MongoConfig(**options)


def _sentence(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key `{place}`; expected one of {', '.join(sorted(MongoConfig.model_fields))}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"`{place}`: {message}" if place else message
