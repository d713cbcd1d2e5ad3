"""Backends: built-in ones and entry points, what they get, and the errors of a wrong configuration."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from deerflow_mongo import BackendNotFoundError, MongoStorage, Storage, StorageConfigError, create_storage
from deerflow_mongo.contract import factory
from deerflow_mongo.memory.storage import MemoryStorage
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
            "foreign": f"{__name__}:foreign_backend",
            "broken": "no_such_module_at_all:build",
            "odd": f"{__name__}:no_backend",
        }.items()
    ]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "deerflow.storage_backends"
        return [entry for entry in entries if name in (None, entry.name)]

    monkeypatch.setattr(factory, "entry_points", entry_points)


def test_built_in_backend_needs_no_installed_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a vendored copy or a frozen application."""

    def none(**_: str) -> list[EntryPoint]:
        return []

    monkeypatch.setattr(factory, "entry_points", none)
    assert factory.backend_names() == ["memory", "mongodb"]
    assert isinstance(create_storage({"backend": "memory"}), MemoryStorage)
    assert isinstance(create_storage({"backend": "mongodb", "driver": "mongomock"}), MongoStorage)


def test_url_alone_is_a_configuration(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_URL", "mongodb+srv://cluster0.example.net/own")
    databases = {
        "mongodb://127.0.0.1:1/other": "other",
        "mongodb://127.0.0.1:1": "deerflow",
        "embedded": "deerflow",
        "$STORAGE_URL": "own",
    }
    for url, database in databases.items():
        storage = create_storage(url)
        assert isinstance(storage, MongoStorage)
        assert storage.config.database == database
    create_storage("foreign+tls://user@host/x")
    assert seen == {"url": "foreign+tls://user@host/x"}


def test_one_word_selects_the_backend_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_URL", "memory")
    for word in ("memory", "$STORAGE_URL"):
        assert isinstance(create_storage(word), MemoryStorage)


def test_text_that_is_not_a_url_is_refused_without_being_shown() -> None:
    for text in ("", "s3cret", "mongodb:/user:s3cret@host", "//user:s3cret@host"):
        with pytest.raises(StorageConfigError, match="not a URL; pass a mapping") as refused:
            create_storage(text)
        assert "s3cret" not in str(refused.value)
    with pytest.raises(BackendNotFoundError, match="no storage backend 'redis'"):
        create_storage("redis://localhost")


def test_foreign_backend_gets_the_resolved_mapping_without_backend(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREIGN_DSN", "dsn")
    options = {"backend": "foreign", "dsn": "$FOREIGN_DSN", "pool": {"dsn": ["$FOREIGN_DSN", 1]}}
    assert isinstance(create_storage(options), Storage)
    assert seen == {"dsn": "dsn", "pool": {"dsn": ["dsn", 1]}}
    assert options["backend"] == "foreign"


def test_unknown_backend_lists_the_known_ones(installed: None) -> None:
    with pytest.raises(BackendNotFoundError, match=r"'sqlite'; known: broken, foreign, memory, mongodb, odd"):
        create_storage({"backend": "sqlite"})


@pytest.mark.parametrize("config", [{}, {"backend": ""}, {"backend": None}, {"backend": ["mongodb"]}])
def test_configuration_without_backend_lists_the_known_ones(config: dict[str, Any], installed: None) -> None:
    with pytest.raises(StorageConfigError, match="needs `backend`: one of broken, foreign, memory, mongodb"):
        create_storage(config)


def test_blanks_around_a_url_or_a_backend_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_URL", " memory\n")
    for config in ("memory\n", " $STORAGE_URL", {"backend": " memory\n"}):
        assert isinstance(create_storage(config), MemoryStorage)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("${STORAGE_URL}", "the configuration"),
        ("$STORAGE_URL/db", "the configuration"),
        ({"backend": "${STORAGE_URL}"}, "`backend`"),
    ],
)
def test_reference_that_is_not_a_whole_value_is_an_error(config: Any, place: str) -> None:
    words = rf"{place}: .* is not replaced: only a value that is \$STORAGE_URL as a whole"
    with pytest.raises(StorageConfigError, match=words):
        create_storage(config)


@pytest.mark.parametrize("config", [None, 5, ["backend"]])
def test_configuration_of_another_type_is_refused(config: Any) -> None:
    with pytest.raises(StorageConfigError, match="must be a mapping or a URL"):
        create_storage(config)


def test_backend_that_cannot_be_loaded_is_named(installed: None) -> None:
    with pytest.raises(StorageConfigError, match=r"'broken'.*no_such_module_at_all"):
        create_storage({"backend": "broken"})


def test_backend_that_returns_no_storage_is_named(installed: None) -> None:
    with pytest.raises(StorageConfigError, match="'odd' returned a object, which is not a Storage"):
        create_storage({"backend": "odd"})
