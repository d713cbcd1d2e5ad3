"""Which variables of the environment are options of the storage, and which are only named in a warning."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from deerflow_mongo import BackendNotFoundError
from deerflow_mongo.contract import factory
from deerflow_mongo.hosts.environment import known_options, variables_of_options
from deerflow_mongo.mongodb.config import MongoConfig

PREFIX = "DEER_FLOW_STORAGE_"
SERVICE_LINKS = {
    "SERVICE_HOST": "10.0.0.1",
    "SERVICE_PORT": "27017",
    "SERVICE_PORT_MONGODB": "27017",
    "PORT": "tcp://10.0.0.1:27017",
    "PORT_27017_TCP": "tcp://10.0.0.1:27017",
    "PORT_27017_TCP_PROTO": "tcp",
    "PORT_27017_TCP_PORT": "27017",
    "PORT_27017_TCP_ADDR": "10.0.0.1",
    "MONGODB_SERVICE_HOST": "10.0.0.2",
    "MONGODB_PORT": "udp://10.0.0.2:27017",
    "URL_SERVICE_HOST": "10.0.0.3",
    "NAME": "/web/deer-flow-storage",
    "ENV_MONGO_PASSWORD": "hidden",
    "1_PORT_27017_TCP": "tcp://10.0.0.1:27017",
}
"""What Kubernetes and Docker set for services whose names begin with `deer-flow-storage`."""


@pytest.fixture
def bare_backend(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that does not state its options."""

    def no_storage(options: Any) -> Any:
        raise NotImplementedError

    def found(name: str) -> Any:
        return no_storage

    monkeypatch.setattr(factory, "_backend", found)
    return "bare"


def options_of(backend: str = "mongodb", **variables: str) -> dict[str, str]:
    environment = {f"{PREFIX}{name}": value for name, value in variables.items()}
    return known_options(variables_of_options({**environment, "PATH": "/bin"}), backend)


def test_service_links_are_ignored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert options_of(**SERVICE_LINKS, URL="mongodb://h") == {"url": "mongodb://h"}
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert all(f"{PREFIX}{name}" in record.getMessage() for name in SERVICE_LINKS)
    for value in ("10.0.0", "hidden", "mongodb://"):
        assert value not in record.getMessage()


@pytest.mark.parametrize(
    ("misspelt", "option"), [("DATABSE", "DATABASE"), ("TIMEOUT", "TIMEOUT_MS"), ("BACKENDS", "BACKEND")]
)
def test_misspelt_option_is_ignored_and_the_nearest_one_named(
    misspelt: str, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert options_of(**{misspelt: "x"}) == {}
    assert f"{PREFIX}{misspelt} (did you mean {PREFIX}{option}?)" in caplog.text


def test_every_option_of_mongodb_is_read(caplog: pytest.LogCaptureFixture) -> None:
    given = dict.fromkeys([*MongoConfig.model_fields, "backend"], "value")
    assert options_of(**{name.upper(): value for name, value in given.items()}) == given
    assert caplog.records == []


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_empty_variable_is_not_set(empty: str, caplog: pytest.LogCaptureFixture) -> None:
    assert options_of(URL=empty, DATABSE=empty) == {}
    assert caplog.records == []


def test_backend_without_options_reads_none(caplog: pytest.LogCaptureFixture) -> None:
    assert options_of("memory", BACKEND="memory", URL="mongodb://h") == {"backend": "memory"}
    assert f"{PREFIX}URL" in caplog.text


def test_backend_that_states_no_options_gets_all_but_service_links(
    bare_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"port": "5432", "name": "deer", "dsn": "x", "report": "weekly"}
    variables = {name.upper(): value for name, value in own.items()}
    assert options_of(bare_backend, **{**SERVICE_LINKS, **variables}) == own
    assert f"{PREFIX}SERVICE_HOST" in caplog.text


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(BackendNotFoundError, match="nonesuch"):
        options_of("nonesuch", URL="x")
