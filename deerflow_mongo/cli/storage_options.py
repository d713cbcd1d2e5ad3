"""The options by which a command's user names a storage, declared once for all commands, and that storage.

A command takes them as one argument that is annotated with `StorageOptions` or a subclass; `app.py` expands
it. Opens no storage.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, get_type_hints

import typer

from ..contract.errors import StorageConfigError
from ..contract.factory import create_storage, load_config, with_environment
from ..contract.protocols import Storage
from ..demo.screen import DEMO_DATABASE
from ..hosts.options import split_options
from ..mongodb.config import EMBEDDED, names_database
from ..mongodb.embedded.folder import DATABASE
from ..mongodb.storage import MongoStorage

NOTHING_GIVEN: Final[Mapping[str, Any]] = {"backend": "mongodb", "url": EMBEDDED}
"""The configuration without any of these options."""

UrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A MongoDB URI; '$NAME' for the value of an environment variable; or 'embedded' (the default), "
        "a private server.",
    ),
]
DataDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The embedded server's data folder, for data that stays; the default is a temporary folder.",
    ),
]
DatabaseOption: TypeAlias = Annotated[
    str | None, typer.Option("--database", help="The database; the default is the URI's, else deerflow.")
]
DriverOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--driver", help="pymongo (the default), motor, or mongomock, which needs no server."),
]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """A server and a database on it."""

    url: UrlOption = None
    data_dir: DataDirOption = None
    database: DatabaseOption = None
    driver: DriverOption = None

    @property
    def given(self) -> Mapping[str, Any]:
        """The configuration that these options describe; `NOTHING_GIVEN` itself without any."""
        options = {name: getattr(self, name) for name in ("url", "data_dir", "database", "driver")}
        options = {name: value for name, value in options.items() if value is not None}
        return {**NOTHING_GIVEN, **options} if options else NOTHING_GIVEN


@dataclass(frozen=True, slots=True)
class StorageOptions(ServerOptions):
    """Those, or a file that has the whole configuration."""

    config: Annotated[
        Path | None, typer.Option("--config", help="A YAML file with the storage's configuration.")
    ] = None
    section: Annotated[str, typer.Option("--section", help="The section of that file.")] = "storage"

    @property
    def names_a_storage(self) -> bool:
        return self.config is not None or self.given is not NOTHING_GIVEN

    def configuration(self) -> Mapping[str, Any]:
        """What `create_storage` takes. Raises `StorageConfigError` where there is more than a file."""
        if self.config is None:
            return self.given
        if self.given is not NOTHING_GIVEN:
            raise StorageConfigError("--config has the whole configuration: omit --url and the like")
        return split_options(load_config(self.config, self.section))[1]

    def storage_on_server(self, contents: str) -> MongoStorage:
        """The storage that the options name, not opened yet.

        Raises `StorageConfigError` where they name none, or none on a MongoDB server, or a temporary server,
        which never has these `contents`.
        """
        if not self.names_a_storage:
            raise StorageConfigError("name the database with --url, --data-dir or --config")
        storage = create_storage(self.configuration())
        if not isinstance(storage, MongoStorage) or not storage.config.has_server:
            raise StorageConfigError("this command needs the backend mongodb, on a server")
        if storage.config.url == EMBEDDED and storage.config.data_dir is None:
            require_existing_data(storage, contents)
        return storage

    def existing_storage(self, contents: str) -> MongoStorage:
        """As `storage_on_server`; raises `StorageConfigError` for a data folder that has no data as well."""
        storage = self.storage_on_server(contents)
        require_existing_data(storage, contents)
        return storage


@dataclass(frozen=True, slots=True)
class ReadStorageOptions(StorageOptions):
    """Those of a command that reads: the demo's database is the default, since nothing is created."""

    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            help=f"The database; the default is the URI's, else that of the demo, {DEMO_DATABASE}.",
        ),
    ] = None

    def configuration(self) -> Mapping[str, Any]:
        options = StorageOptions.configuration(self)
        return options if self.config is not None else with_demo_database(options)


def with_demo_database(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the demo's database where neither an option nor the URI names one."""
    options = with_environment(given)
    if not names_database(str(options["url"])):
        options.setdefault("database", DEMO_DATABASE)
    return options


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


def with_storage_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each field of such options as a parameter of its own, which typer makes an option."""
    hints = get_type_hints(command, include_extras=True)
    classes: dict[str, type[ServerOptions]] = {
        name: kind
        for name, kind in hints.items()
        if isinstance(kind, type) and issubclass(kind, ServerOptions)
    }
    if not classes:
        return command

    @wraps(command)
    def expanded(**values: Any) -> None:
        for name, kind in classes.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values)

    parameters: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in classes:
            parameters[parameter.name] = _option(parameter.name, hints[parameter.name], parameter.default)
    for kind in classes.values():
        of_fields = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            parameters[field.name] = _option(field.name, of_fields[field.name], field.default)
    expanded.__dict__["__signature__"] = inspect.Signature(list(parameters.values()))
    expanded.__annotations__ = {name: option.annotation for name, option in parameters.items()}
    return expanded


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
