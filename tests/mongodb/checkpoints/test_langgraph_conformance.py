"""LangGraph's own conformance tests for savers: each capability is supported, and none of its tests fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

conformance: Any = pytest.importorskip("langgraph.checkpoint.conformance")
capabilities: Any = pytest.importorskip("langgraph.checkpoint.conformance.capabilities")


@pytest.mark.parametrize("capability", sorted(item.value for item in capabilities.ALL_CAPABILITIES))
async def test_capability_passes_the_tests_of_langgraph(saver: Any, capability: str) -> None:
    @conformance.checkpointer_test(name="MongoCheckpointSaver")
    async def checkpointer() -> AsyncGenerator[Any]:
        yield saver

    report = await conformance.validate(checkpointer, capabilities={capability})
    result = report.results[capability]
    assert result.detected
    assert result.failures == []
    assert result.tests_passed >= MINIMUM[capability]
    assert result.passed


MINIMUM = {
    "put": 17,
    "put_writes": 10,
    "get_tuple": 10,
    "list": 16,
    "delete_thread": 5,
    "delete_for_runs": 7,
    "copy_thread": 8,
    "prune": 8,
}
"""How many tests the package has in its version 0.0.2."""
