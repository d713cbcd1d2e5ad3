"""The gateway's own options in the section `storage:`, which no backend gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from deerflow_mongo import StorageConfigError
from deerflow_mongo.cli.storage_options import StorageOptions
from deerflow_mongo.hosts.environment import known_options
from deerflow_mongo.hosts.options import split_options

STORAGE = {"backend": "mongodb", "url": "mongodb://h"}


def test_options_of_the_gateway_are_split_from_the_storages() -> None:
    assert split_options({**STORAGE, "thread_deletion": "deerflow"}) == (
        {"thread_deletion": "deerflow"},
        STORAGE,
    )


@pytest.mark.parametrize("absent", [{}, {"thread_deletion": None}, {"thread_deletion": " "}])
def test_deleted_thread_is_purged_by_default(absent: dict[str, str]) -> None:
    assert split_options({**STORAGE, **absent})[0] == {"thread_deletion": "purge"}


def test_option_may_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELETION", "deerflow\n")
    assert split_options({"thread_deletion": "$DELETION"})[0] == {"thread_deletion": "deerflow"}
    assert known_options({"thread_deletion": "purge"}, "mongodb") == {"thread_deletion": "purge"}


@pytest.mark.parametrize("wrong", ["keep", True, ["purge"], 1])
def test_unknown_value_is_refused(wrong: object) -> None:
    with pytest.raises(StorageConfigError, match=r"`thread_deletion` is .*; expected one of purge, deerflow"):
        split_options({"thread_deletion": wrong})


def test_commands_read_a_section_with_the_gateways_options(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("storage:\n  backend: mongodb\n  url: mongodb://h\n  thread_deletion: deerflow\n")
    assert StorageOptions(config=file).configuration() == STORAGE
