"""One validated configuration object, `$NAME` values from the environment, and YAML sections.

What a MongoDB URI can say (TLS, login, pool, read preference) is not an option here. No text made here shows
a password.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..contract.errors import MissingDependencyError, StorageConfigError

EMBEDDED = "embedded"
"""The `url` that stands for a server of our own."""

DEFAULT_DATABASE = "deerflow"
DEFAULT_TIMEOUT_MS = 25_000
"""Longer than a replica set's election takes by default (about 11 s), so that writers only pause for it."""

# PyMongo ignores the second where a timeoutMS is set, so ours must not be.
_URI_TIMEOUTS = ("timeoutms", "serverselectiontimeoutms")

_ENVIRONMENT_NAME = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
# Up to the last @, be it in the options: a login whose special characters are not escaped may hold anything.
_LOGIN = re.compile(r"(?<=://).*@", re.DOTALL)
_SECRET_OPTIONS = re.compile(r"(tlsCertificateKeyFilePassword=|authMechanismProperties=)[^&]*", re.IGNORECASE)
_NAME_CHARACTERS = re.compile(r'[/\\. "$*<>:|?\0]')
_PREFIX = re.compile(r"[A-Za-z0-9_-]{0,60}")
_MAX_DATABASE_BYTES = 63


def redacted(url: str) -> str:
    """The URL without its login and without options that are secret."""
    return _SECRET_OPTIONS.sub(r"\1***", _LOGIN.sub("***@", url))


class MongoConfig(BaseModel):
    """The options of the MongoDB backend."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(default="", repr=False, description="a MongoDB URI, or `embedded`")
    database: str = Field(default="", description="default: the URI's, else `deerflow`")
    driver: Literal["pymongo", "motor", "mongomock"] = "pymongo"
    collection_prefix: str = Field(default="", description="put before every collection's name")
    timeout_ms: int | None = Field(
        default=None,
        ge=1,
        description="of one operation, its retries included; default: the URI's, else 25,000",
    )
    run_events_ttl_days: int | None = Field(
        default=None,
        ge=1,
        le=20_000,
        description="how long run events are kept, in whole days; default: for ever",
    )
    data_dir: Path | None = Field(
        default=None,
        description="where `url: embedded` keeps its data; default: a folder that goes with the server",
    )
    mongod_path: str | None = Field(
        default=None, description="the server to run for `url: embedded`; default: PATH, else the extra's"
    )

    def __repr_args__(self) -> Any:
        yield "url", redacted(self.url)
        yield from ((name, value) for name, value in super().__repr_args__() if name != "url")

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
    def _fitting_together(self) -> MongoConfig:
        if self.url != EMBEDDED:
            for name in ("data_dir", "mongod_path"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` goes with `url: {EMBEDDED}` only")
        return self


def _uri_options(url: str) -> Mapping[str, Any]:
    """What a URI says, read without any connection, also where its scheme is looked up by DNS."""
    from pymongo.errors import ConfigurationError, InvalidURI
    from pymongo.uri_parser import parse_uri

    plain = url.replace("mongodb+srv://", "mongodb://", 1)
    message = "url is not a MongoDB URI that can be used: "
    try:
        parsed = cast("Mapping[str, Any]", parse_uri(plain, validate=True, warn=False))
    except (InvalidURI, ConfigurationError, ValueError):
        # The driver's text may quote what it takes for a part of the URI: let it judge one without secrets.
        try:
            parse_uri(redacted(plain), validate=True, warn=False)
        except (InvalidURI, ConfigurationError, ValueError) as error:
            raise StorageConfigError(message + str(error)) from error
        raise StorageConfigError(message + "escape the login's special characters (RFC 3986)") from None
    hosts = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    if plain != url and ("," in hosts or ":" in hosts):
        raise StorageConfigError("url: mongodb+srv:// takes one host name and no port")
    return parsed


def mongo_config(options: Mapping[str, Any], *, url_needed: bool = True) -> MongoConfig:
    """The validated options; `StorageConfigError` says which key is wrong, and why."""
    try:
        config = MongoConfig.model_validate(dict(options))
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        raise StorageConfigError("storage configuration: " + "; ".join(map(_sentence, details))) from None
    if config.driver == "mongomock" or config.url == EMBEDDED or not (config.url or url_needed):
        return config.model_copy(update=_defaults(config, None, has_timeout=False))
    if not config.url:
        raise StorageConfigError(
            f"storage configuration: `url` is missing: a MongoDB URI, or `{EMBEDDED}` for a server of our own"
        )
    said = _uri_options(config.url)
    said_options = {str(name).lower(): value for name, value in said["options"].items()}
    if said_options.get("w") == 0:
        raise StorageConfigError("url says w=0, which acknowledges no write: take it out")
    has_timeout = any(name in said_options for name in _URI_TIMEOUTS)
    return config.model_copy(update=_defaults(config, said["database"], has_timeout=has_timeout))


def _defaults(config: MongoConfig, uri_database: str | None, *, has_timeout: bool) -> dict[str, Any]:
    return {
        "database": config.database or uri_database or DEFAULT_DATABASE,
        # A timeout that the URI says is read from there by the client.
        "timeout_ms": config.timeout_ms or (None if has_timeout else DEFAULT_TIMEOUT_MS),
    }


def _sentence(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = ", ".join(sorted(MongoConfig.model_fields))
        return f"unknown key `{place}` (known: {known})"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"`{place}`: {message}" if place else message


def with_environment(options: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with every value that is `$NAME` as a whole read from the environment, nested ones too."""
    return {key: _from_environment(str(key), value) for key, value in options.items()}


def _from_environment(place: str, value: Any) -> Any:
    if isinstance(value, str):
        match = _ENVIRONMENT_NAME.fullmatch(value)
        if match is None:
            return value
        name = match.group(1)
        if name not in os.environ:
            raise StorageConfigError(
                f"`{place}` is ${name}, and the environment has no variable {name}: set it"
            )
        return os.environ[name]
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: _from_environment(f"{place}.{key}", item) for key, item in items}
    if isinstance(value, list):
        return [_from_environment(f"{place}[{i}]", item) for i, item in enumerate(cast("list[Any]", value))]
    return value


def load_config(path: str | os.PathLike[str], section: str = "storage") -> dict[str, Any]:
    """One section of a YAML file, as `create_storage` takes it; `$NAME` values are left for that.

    Raises `StorageConfigError` where the file or the section is missing or is no mapping, and
    `MissingDependencyError` without PyYAML.
    """
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise MissingDependencyError("reading a YAML file", "PyYAML", "yaml") from error
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageConfigError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}"
        # The parser's own text quotes the file, which may hold a password.
        raise StorageConfigError(f"{os.fspath(path)} is not valid YAML{where}") from None
    found = cast("Mapping[str, Any]", content).get(section) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise StorageConfigError(
            f"{os.fspath(path)} has no section `{section}:` with the storage's options, such as\n"
            f"{section}:\n  backend: mongodb\n  url: $MONGODB_URL"
        )
    return dict(cast("Mapping[str, Any]", found))
