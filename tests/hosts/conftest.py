"""A gateway on our storage, with its folder and an empty database."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from .gateway_process import Gateway, running_gateway, write_config


@pytest.fixture
def gateway_folder(tmp_path: Path, mongodb_url: str, database_name: str) -> Path:
    """A folder with the configuration of a gateway on an empty database."""
    write_config(tmp_path, {"url": mongodb_url, "database": database_name})
    return tmp_path


@pytest.fixture
def gateway(gateway_folder: Path) -> Generator[Gateway]:
    """Our gateway under uvicorn, in that folder."""
    with running_gateway(gateway_folder) as started:
        yield started
