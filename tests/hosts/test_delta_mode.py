"""Delta mode of DeerFlow main, which stores a conversation's writes and few states: answers as on SQL.

`database.checkpoint_channel_mode: delta` makes DeerFlow wrap the saver in one that caches histories. Needs a
release that has this mode; the one on PyPI does not.
"""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer

from .comparison import compare, differences_of_installed_release
from .gateway_process import CONFIG, ON_MONGODB, ON_SQL, SLOW, missing_deerflow, running_gateway, write_config
from .http_script import Transcript, run_script
from .test_gateway import client_of

HAS_DELTA_MODE = (
    missing_deerflow() is None and importlib.util.find_spec("deerflow.runtime.checkpoint_mode") is not None
)

pytestmark = [pytest.mark.skipif(not HAS_DELTA_MODE, reason="this DeerFlow has no delta mode"), SLOW]

DELTA: dict[str, Any] = {"database": {**CONFIG["database"], "checkpoint_channel_mode": "delta"}}
CACHE_IS_OPEN = "Checkpoint history cache initialised: memory"


def session(folder: Path, module: str, storage: dict[str, Any] | None = None) -> tuple[Transcript, str]:
    """The script's transcript, and the gateway's log."""
    write_config(folder, storage, DELTA)
    with running_gateway(folder, module) as gateway:
        transcript = asyncio.run(run_script(lambda: client_of(gateway)))
    return transcript, gateway.log.read_text()


def test_every_answer_equals_sql_in_delta_mode(
    tmp_path: Path, server: EmbeddedServer, database_name: str
) -> None:
    folders = (tmp_path / "mongodb", tmp_path / "sql")
    for folder in folders:
        folder.mkdir()
    storage = {"backend": "mongodb", "url": server.url, "database": database_name}
    ours, log = session(folders[0], ON_MONGODB, storage)
    theirs, _ = session(folders[1], ON_SQL)
    result = compare(ours, theirs, folders, differences_of_installed_release())
    assert result.unexplained == [], "\n".join(result.lines())
    assert CACHE_IS_OPEN in log
