"""The options that several commands have, and the configuration that they describe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from ..contract.arguments import identifier
from ..contract.errors import StorageConfigError
from ..contract.factory import create_storage, load_config, with_environment
from ..contract.protocols import Storage
from ..contract.times import parse_time
from ..demo.screen import DEMO_DATABASE
from ..hosts.options import split_options
from ..mongodb.config import EMBEDDED, names_database
from ..mongodb.embedded.folder import DATABASE
from ..mongodb.storage import MongoStorage

# -- parsers of values ------------------------------------------------------------------------------

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def age(text: str) -> timedelta:
    """An option's value such as 30d; the parser of `--older-than`."""
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if match is None:
        raise typer.BadParameter("expected a number and a unit, such as 30d, 12h, 90m or 4w")
    return int(match[1]) * _UNITS[match[2]]


def since(text: str) -> datetime:
    """An option's value such as 7d or 2026-11-01, as a time in UTC; the parser of `--since`."""
    try:
        return datetime.now(UTC) - age(text)
    except typer.BadParameter:
        pass
    except OverflowError:
        raise typer.BadParameter("it is before the year 1") from None
    try:
        return parse_time("the time", text)
    except ValueError:
        raise typer.BadParameter(
            "expected an age such as 7d or 12h, or a time in UTC such as 2026-11-01 or 2026-11-01T08:00"
        ) from None


def identifier_text(text: str) -> str:
    """An argument's value as an identifier, or the beginning of one; the parser of ids."""
    try:
        return identifier("the id", text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


# -- options ----------------------------------------------------------------------------------------

ConfigOption: TypeAlias = Annotated[
    Path | None, typer.Option("--config", help="A YAML file with the storage's configuration.")
]
SectionOption: TypeAlias = Annotated[str, typer.Option("--section", help="The section of that file.")]
DEFAULT_SECTION = "storage"

MAX_LISTED = 10_000

UrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A MongoDB URI; '$NAME' for the value of an environment variable; or 'embedded' (the default), "
        "a private server.",
    ),
]
DatabaseOption: TypeAlias = Annotated[
    str | None, typer.Option("--database", help="The database; the default is the URI's, else deerflow.")
]
DataDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The embedded server's data folder, for data that stays; the default is a temporary folder.",
    ),
]
DriverOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--driver", help="pymongo (the default), motor, or mongomock, which needs no server."),
]

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
JsonLinesOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print each row as one line of JSON instead of a table.")
]

ReadDatabaseOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--database", help=f"The database; the default is the URI's, else that of the demo, {DEMO_DATABASE}."
    ),
]
UserOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--user",
        parser=identifier_text,
        metavar="USER",
        help="Only those of this user; an id or its beginning.",
    ),
]
SinceOption: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=since,
        metavar="TIME",
        help="Only those created since then: an age such as 7d or 12h, or a time in UTC such as 2026-11-01.",
    ),
]
LimitOption: TypeAlias = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, max=MAX_LISTED, help="At most so many, newest first.")
]

# -- the configuration that they describe ------------------------------------------------------------

NOTHING_GIVEN: Final[Mapping[str, Any]] = {"backend": "mongodb", "url": EMBEDDED}
"""The configuration without any of these options."""


def options_given(
    url: str | None, data_dir: Path | None, database: str | None, driver: str | None
) -> Mapping[str, Any]:
    """The configuration that these options describe; `NOTHING_GIVEN` itself without any."""
    given = {"url": url, "data_dir": data_dir, "database": database, "driver": driver}
    options = {name: value for name, value in given.items() if value is not None}
    return {**NOTHING_GIVEN, **options} if options else NOTHING_GIVEN


def with_demo_database(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the demo's database where neither an option nor the URI names one."""
    options = with_environment(given)
    if not names_database(str(options["url"])):
        options.setdefault("database", DEMO_DATABASE)
    return options


def options_of_file(file: Path, section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The storage's options in the file. Raises `StorageConfigError` if another one was `given` as well."""
    if given is not NOTHING_GIVEN:
        raise StorageConfigError("--config has the whole configuration: omit --url and the like")
    return split_options(load_config(file, section))[1]


def storage_on_server(
    file: Path | None, section: str, given: Mapping[str, Any], contents: str
) -> MongoStorage:
    """The storage that the options name, not opened yet.

    Raises `StorageConfigError` where they name none, or none on a MongoDB server, or a temporary server,
    which never has these `contents`.
    """
    if file is None and given is NOTHING_GIVEN:
        raise StorageConfigError("name the database with --url, --data-dir or --config")
    options = given if file is None else options_of_file(file, section, given)
    storage = create_storage(options)
    if not isinstance(storage, MongoStorage) or not storage.config.has_server:
        raise StorageConfigError("this command needs the backend mongodb, on a server")
    if storage.config.url == EMBEDDED and storage.config.data_dir is None:
        require_existing_data(storage, contents)
    return storage


def storage_to_read(file: Path | None, section: str, given: Mapping[str, Any], contents: str) -> MongoStorage:
    """As `storage_on_server`, with the demo's database where nothing names one.

    Raises `StorageConfigError` as well for a data folder that does not exist yet.
    """
    if file is None and given is not NOTHING_GIVEN:
        given = with_demo_database(given)
    storage = storage_on_server(file, section, given, contents)
    require_existing_data(storage, contents)
    return storage


def require_existing_data(storage: Storage, contents: str) -> None:
    """Raise `StorageConfigError` for an embedded server that would start with an empty data folder."""
    if not isinstance(storage, MongoStorage):
        return
    config = storage.config
    if config.url == EMBEDDED and config.has_server:
        if config.data_dir is None:
            raise StorageConfigError(
                f"a temporary server has no {contents}: name the server with --url, --data-dir or --config"
            )
        if not os.path.isdir(config.data_dir.expanduser() / DATABASE):  # noqa: PTH112 - Path's raises
            raise StorageConfigError(f"data_dir {config.data_dir} has no data of an embedded server")
