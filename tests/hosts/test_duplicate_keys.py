"""The error of a duplicate key, as DeerFlow's routes and its run manager recognise it."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy, which DeerFlow requires")


def _duplicate_row_error(text: str) -> Any:
    adapter: Any = importlib.import_module("deerflow_mongo.hosts.adapters.duplicate_keys")
    return adapter.DuplicateRowError(text)


def test_duplicate_is_an_integrity_error_with_the_sql_state_of_a_unique_violation() -> None:
    exc: Any = importlib.import_module("sqlalchemy.exc")
    error = _duplicate_row_error("thread 't' exists already")
    assert isinstance(error, exc.IntegrityError)
    assert error.sqlstate == "23505"


def test_text_of_a_duplicate_is_ours_alone() -> None:
    error = _duplicate_row_error("thread 't' exists already")
    assert str(error) == "thread 't' exists already"
    assert "thread 't' exists already" in repr(error)
    assert error.statement is error.params is error.orig is None


def test_duplicate_pickles_and_copies() -> None:
    error = _duplicate_row_error("thread 't' exists already")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(other) is type(error)
        assert (str(other), other.sqlstate) == (str(error), "23505")
