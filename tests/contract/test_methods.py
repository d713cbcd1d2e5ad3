"""The tables of methods against the Protocols that they list."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from deerflow_mongo.contract.capabilities import RunOwnership
from deerflow_mongo.contract.methods import METHOD_KINDS, OWNERSHIP_KINDS
from deerflow_mongo.contract.protocols import FeedbackStore, RunEventStore, RunStore, ThreadStore
from deerflow_mongo.testing.methods import METHODS, OWNERSHIP_METHODS, Method

CORE: dict[str, Any] = {
    "runs": RunStore,
    "feedback": FeedbackStore,
    "threads": ThreadStore,
    "run_events": RunEventStore,
}
CAPABILITY: dict[str, Any] = {"runs": RunOwnership}


def declared(protocols: dict[str, Any]) -> set[str]:
    return {
        f"{store}.{name}"
        for store, protocol in protocols.items()
        for name in dir(protocol)
        if not name.startswith("_")
    }


def test_methods_of_the_core_are_in_the_tables() -> None:
    assert set(METHOD_KINDS) == declared(CORE) == {method.path for method in METHODS}


def test_methods_of_run_ownership_are_in_the_tables() -> None:
    assert set(OWNERSHIP_KINDS) == declared(CAPABILITY) == {method.path for method in OWNERSHIP_METHODS}
    assert set(OWNERSHIP_KINDS).isdisjoint(METHOD_KINDS)


@pytest.mark.parametrize("method", OWNERSHIP_METHODS, ids=lambda method: method.path)
def test_arguments_of_run_ownership_fit_the_signature(method: Method) -> None:
    inspect.signature(getattr(RunOwnership, method.name)).bind(None, **method.arguments)
