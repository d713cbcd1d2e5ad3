"""The options that name a server, and the configuration they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..contract.errors import StorageConfigError
from ..contract.factory import load_config
from ..mongodb.config import EMBEDDED

DEMO_DATABASE = "deerflow_demo"

ConfigOption: TypeAlias = Annotated[
    Path | None, typer.Option("--config", help="A YAML file with the storage's configuration.")
]
SectionOption: TypeAlias = Annotated[str, typer.Option("--section", help="The section of that file.")]
DEFAULT_SECTION = "storage"

UrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A MongoDB URI, '$NAME' to read one from the environment, or 'embedded' for a private server, "
        "which is the default.",
    ),
]
DataDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where the embedded server keeps its data for the next time; without it, a temporary folder.",
    ),
]
DriverOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--driver", help="pymongo, the default; motor; or mongomock, which has no server at all."),
]


def options_given(
    url: str | None, data_dir: Path | None, database: str | None, driver: str | None
) -> dict[str, Any]:
    given = {"url": url, "data_dir": data_dir, "database": database, "driver": driver}
    options = {name: value for name, value in given.items() if value is not None}
    return {"backend": "mongodb", "url": EMBEDDED, **options}


def options_of_file(file: Path, section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says, where nothing else was `given`."""
    if given != options_given(None, None, None, None):
        raise StorageConfigError("--config holds the whole configuration: leave --url and the like out")
    return load_config(file, section)
