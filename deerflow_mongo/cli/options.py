"""The options that several commands have, and the configuration that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..contract.errors import StorageConfigError
from ..contract.factory import load_config
from ..mongodb.config import EMBEDDED

ConfigOption: TypeAlias = Annotated[
    Path | None, typer.Option("--config", help="A YAML file with the storage's configuration.")
]
SectionOption: TypeAlias = Annotated[str, typer.Option("--section", help="The section of that file.")]
DEFAULT_SECTION = "storage"

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
DriverOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--driver", help="pymongo (the default), motor, or mongomock, which needs no server."),
]


def options_given(
    url: str | None, data_dir: Path | None, database: str | None, driver: str | None
) -> dict[str, Any]:
    """The configuration that these options describe."""
    given = {"url": url, "data_dir": data_dir, "database": database, "driver": driver}
    options = {name: value for name, value in given.items() if value is not None}
    return {"backend": "mongodb", "url": EMBEDDED, **options}


def options_of_file(file: Path, section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in the file. Raises `StorageConfigError` if another option was `given` as well."""
    if given != options_given(None, None, None, None):
        raise StorageConfigError("--config has the whole configuration: omit --url and the like")
    return load_config(file, section)
