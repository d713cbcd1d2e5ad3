"""Backends are entry points, ours and anyone's; what they get, and what an unknown one is told."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from deerflow_mongo import BackendNotFoundError, Storage, StorageConfigError, create_storage
from deerflow_mongo.contract import factory
from deerflow_mongo.mongodb.storage import create_mongo_storage

seen: dict[str, Any] = {}


def foreign_backend(options: Mapping[str, Any]) -> Storage:
    seen.clear()
    seen.update(options)
    return create_mongo_storage({"driver": "mongomock"})


def no_backend(options: Mapping[str, Any]) -> object:
    return object()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends that other distributions would have installed."""
    entries = [
        EntryPoint(name, value, factory.BACKENDS_GROUP)
        for name, value in {
            "mongodb": "deerflow_mongo.mongodb.storage:create_mongo_storage",
            "foreign": f"{__name__}:foreign_backend",
            "broken": "no_such_module_at_all:build",
            "odd": f"{__name__}:no_backend",
        }.items()
    ]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "deerflow.storage_backends"
        return [entry for entry in entries if name in (None, entry.name)]

    monkeypatch.setattr(factory, "entry_points", entry_points)


def test_our_backend_is_registered_as_an_entry_point() -> None:
    assert "mongodb" in factory.backend_names()


def test_a_foreign_backend_gets_the_resolved_mapping_without_backend(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREIGN_DSN", "dsn")
    options = {"backend": "foreign", "dsn": "$FOREIGN_DSN", "pool": {"dsn": ["$FOREIGN_DSN", 1]}}
    assert isinstance(create_storage(options), Storage)
    assert seen == {"dsn": "dsn", "pool": {"dsn": ["dsn", 1]}}
    assert options["backend"] == "foreign"


def test_an_unknown_backend_lists_the_known_ones(installed: None) -> None:
    with pytest.raises(BackendNotFoundError, match=r"'sqlite'; known: broken, foreign, mongodb, odd"):
        create_storage({"backend": "sqlite"})


@pytest.mark.parametrize("config", [{}, {"backend": ""}, {"backend": None}, {"backend": ["mongodb"]}])
def test_a_configuration_without_backend_is_told(config: dict[str, Any], installed: None) -> None:
    with pytest.raises(StorageConfigError, match="needs `backend`: one of broken, foreign, mongodb"):
        create_storage(config)


@pytest.mark.parametrize("config", [None, "mongodb", ["backend"]])
def test_a_configuration_that_is_no_mapping_is_told(config: Any) -> None:
    with pytest.raises(StorageConfigError, match="must be a mapping"):
        create_storage(config)


def test_a_backend_that_cannot_be_loaded_is_told(installed: None) -> None:
    with pytest.raises(StorageConfigError, match=r"'broken'.*no_such_module_at_all"):
        create_storage({"backend": "broken"})


def test_a_backend_that_gives_no_storage_is_told(installed: None) -> None:
    with pytest.raises(StorageConfigError, match="'odd' gave a object, which is no Storage"):
        create_storage({"backend": "odd"})
