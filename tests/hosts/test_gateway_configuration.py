"""How an operator configures the gateway's storage: a section, the environment, and the errors of both."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deerflow_mongo import (
    ActorMissingError,
    MissingDependencyError,
    StorageConfigError,
    StorageUnavailableError,
)
from deerflow_mongo.hosts import deerflow, gateway

from .gateway_process import (
    ROOT,
    START_TIMEOUT_S,
    environment,
    missing_deerflow,
    needs_deerflow,
    write_config,
)

URL = "mongodb://somewhere:1234"
Configured = Callable[..., dict[str, Any]]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configured:
    """The options from a section and from variables of the environment."""

    def configured(section: dict[str, Any] | None, **variables: str) -> dict[str, Any]:
        write_config(tmp_path, section)
        for name, value in {**environment(tmp_path), **variables}.items():
            monkeypatch.setenv(name, value)
        return gateway.storage_options()

    return configured


@needs_deerflow
def test_options_come_from_the_section_of_the_file(options: Configured) -> None:
    section = {"backend": "mongodb", "url": "$MONGODB_URL", "database": "d"}
    assert options(section) == section


@needs_deerflow
def test_options_may_come_from_the_environment_alone(options: Configured) -> None:
    assert options(None, DEER_FLOW_STORAGE_URL=URL) == {"backend": "mongodb", "url": URL}


@needs_deerflow
def test_environment_wins_over_the_file(options: Configured) -> None:
    found = options({"url": "mongodb://file", "database": "d"}, DEER_FLOW_STORAGE_URL=URL)
    assert found == {"backend": "mongodb", "url": URL, "database": "d"}


@needs_deerflow
def test_embedded_server_has_its_data_in_deerflows_home(options: Configured, tmp_path: Path) -> None:
    assert options({"url": "embedded"})["data_dir"] == str(tmp_path / "home/data/mongodb")
    assert options({"url": "embedded", "data_dir": "elsewhere"})["data_dir"] == "elsewhere"


@needs_deerflow
def test_error_without_configuration_shows_what_to_write(options: Configured) -> None:
    with pytest.raises(StorageConfigError, match=r"(?s)storage:\n  backend: mongodb.*DEER_FLOW_STORAGE_URL"):
        options(None)


@needs_deerflow
def test_error_without_config_yaml_names_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEER_FLOW_CONFIG_PATH", raising=False)
    monkeypatch.setenv("DEER_FLOW_PROJECT_ROOT", str(tmp_path))
    with pytest.raises(
        StorageConfigError, match=r"start in the folder of config\.yaml, or set DEER_FLOW_CONFIG"
    ):
        gateway.storage_options()


@needs_deerflow
def test_unknown_key_is_named(options: Configured) -> None:
    with pytest.raises(StorageConfigError, match="unknown key `pool`"):
        gateway.open_storage(options({"url": URL, "pool": 5}))


@needs_deerflow
def test_gateway_without_configuration_does_not_start(tmp_path: Path) -> None:
    write_config(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "deerflow_mongo.hosts.gateway:app", "--port", "0"],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(ROOT), **environment(tmp_path)},
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 3
    assert "the gateway has no storage configured" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.rglob("*.db")) == []


@pytest.mark.skipif(missing_deerflow() is None, reason="DeerFlow is installed")
def test_error_without_deerflow_names_what_to_install() -> None:
    with pytest.raises(StorageConfigError, match=r"deerflow-kernel .* on Python 3\.12 or newer"):
        gateway.create_app()


def test_missing_dependency_of_deerflow_is_reported_with_our_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="bcrypt")

    monkeypatch.setattr(deerflow.importlib, "import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r"bcrypt.*pip install 'deerflow-mongo\[gateway\]'"):
        gateway.create_app()


def test_gateway_module_imports_without_deerflow() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = gateway.other  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]


@needs_deerflow
def test_service_links_of_kubernetes_do_not_stop_the_start(
    options: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    found = options(
        None,
        DEER_FLOW_STORAGE_URL=URL,
        DEER_FLOW_STORAGE_SERVICE_HOST="10.0.0.1",
        DEER_FLOW_STORAGE_PORT="tcp://10.0.0.1:27017",
        DEER_FLOW_STORAGE_PORT_27017_TCP="tcp://10.0.0.1:27017",
    )
    assert found == {"backend": "mongodb", "url": URL}
    assert "DEER_FLOW_STORAGE_PORT_27017_TCP" in caplog.text
    gateway.open_storage(found)


@needs_deerflow
def test_empty_variable_leaves_the_files_value(options: Configured) -> None:
    section = {"backend": "mongodb", "url": URL, "database": "d"}
    assert options(section, DEER_FLOW_STORAGE_DATABASE="", DEER_FLOW_STORAGE_BACKEND=" ") == section


@needs_deerflow
def test_backend_alone_may_come_from_the_environment(options: Configured) -> None:
    assert options(None, DEER_FLOW_STORAGE_BACKEND="memory") == {"backend": "memory"}


@needs_deerflow
@pytest.mark.parametrize(
    "section",
    [{"url": " embedded\n"}, {"url": "$SERVER"}, {"url": "embedded", "data_dir": None}],
    ids=["blanks", "variable", "no folder"],
)
def test_embedded_server_never_has_its_data_in_a_temporary_folder(
    options: Configured, section: dict[str, Any], tmp_path: Path
) -> None:
    assert options(section, SERVER="embedded")["data_dir"] == str(tmp_path / "home/data/mongodb")


@needs_deerflow
async def test_request_of_a_user_without_an_id_is_answered_with_401() -> None:
    app = gateway.create_app({"backend": "memory"})

    async def of_nobody() -> None:
        raise ActorMissingError("RunManager.get")

    app.add_api_route("/docs/of-nobody", of_nobody)  # DeerFlow asks for no login there
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        response = await client.get("/docs/of-nobody")
        assert (response.status_code, response.json()) == (401, {"detail": "Authentication required"})
        assert (await client.get("/health")).status_code == 503  # no storage is open


@needs_deerflow
async def test_answers_during_an_outage_have_the_headers_of_cors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_CORS_ORIGINS", "https://frontend.example")
    app = gateway.create_app({"backend": "memory"})
    names = [entry.cls.__name__ for entry in app.user_middleware]
    assert names[:4] == ["CORSMiddleware", "StartupErrors", "AvailabilityMiddleware", "EncodableRequests"]
    assert "AuthMiddleware" in names[4:]


@needs_deerflow
async def test_gateway_without_a_server_does_not_start_and_says_what_to_do(options: Configured) -> None:
    options({"url": "mongodb://someone:hidden@127.0.0.1:1/d", "timeout_ms": 300})
    configuration: Any = importlib.import_module("deerflow.config.app_config")
    configuration.reset_app_config()
    app = gateway.create_app()
    expected = r"the gateway does not start, .* or correct `url` in .* DEER_FLOW_STORAGE_URL"
    with pytest.raises(StorageUnavailableError, match=expected) as refused:
        async with app.router.lifespan_context(app):
            pass
    assert "hidden" not in str(refused.value)
    configuration.reset_app_config()
