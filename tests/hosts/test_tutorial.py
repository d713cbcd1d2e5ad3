"""The tutorial, from its first step to its last, as a reader follows it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer

from ..readmes.blocks import ROOT, blocks_of
from ..readmes.running import Reader, report
from .gateway_process import SLOW, needs_deerflow

TUTORIAL = ROOT / "deerflow_mongo" / "hosts" / "TUTORIAL.md"


@SLOW
@needs_deerflow
@pytest.mark.skipif(importlib.util.find_spec("typer") is None, reason="the extra cli is not installed")
def test_tutorial_leads_to_a_conversation_that_is_stored(tmp_path: Path, server: EmbeddedServer) -> None:
    config = {"backend": "mongodb", "url": server.url, "database": "test_tutorial"}
    reader = Reader(tmp_path / "reader", config, test=Path(__file__).relative_to(ROOT).as_posix())
    problems = reader.follow(blocks_of(TUTORIAL))
    assert not problems, report(problems)
