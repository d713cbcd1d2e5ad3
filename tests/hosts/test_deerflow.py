"""The check of DeerFlow's interfaces, and which storages the gateway accepts."""

from __future__ import annotations

import abc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from deerflow_mongo import Storage, StorageConfigError, hosts
from deerflow_mongo.contract.capabilities import RunOwnership
from deerflow_mongo.hosts import deerflow, gateway, releases, runtime

from .gateway_process import needs_deerflow


class CoreStorage:
    """A storage with the core of the contract and no capability."""

    runs = feedback = threads = run_events = None

    def observer(self) -> Any: ...
    async def setup(self) -> None: ...
    async def ping(self) -> None: ...
    async def aclose(self) -> None: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *error: object) -> None: ...


class StorageWithAccounts(CoreStorage):
    users = None


class StorageWithBoth(StorageWithAccounts):
    async def checkpointer(self) -> Any: ...


class StorageWithAll(StorageWithBoth):
    runs: Any = Mock(RunOwnership)


# -- DeerFlow's interfaces -------------------------------------------------------------------------


@needs_deerflow
def test_installed_release_fits() -> None:
    release, comparisons = runtime.compare_release()
    assert release in releases.RELEASES
    assert [comparison for comparison in comparisons if not comparison.fits] == []


SOURCES = [file.read_text(encoding="utf-8") for file in Path(hosts.__file__).parent.rglob("*.py")]


def test_every_imported_module_of_deerflow_is_checked() -> None:
    imported = {name for source in SOURCES for name in re.findall(r'import_deerflow\("([\w.]+)"\)', source)}
    known = {module for release in releases.RELEASES for module in release.interfaces}
    assert {name for name in imported if name.split(".")[0] in deerflow.PACKAGES} <= known


@pytest.mark.parametrize("release", releases.RELEASES, ids=lambda release: release.name)
def test_every_name_that_a_start_exchanges_is_checked(release: releases.Release) -> None:
    names = (*release.sql_repositories, releases.APP_RUNTIME)
    assert [name for name in names if name[1] not in release.interfaces[name[0]]] == []


def test_hosts_import_no_backend() -> None:
    imports = [
        line for source in SOURCES for line in re.findall(r"^\s*(?:from|import) .*", source, re.MULTILINE)
    ]
    assert len(imports) > 50
    assert [line for line in imports if re.search(r"\b(mongodb|pymongo|bson)\b", line)] == []


@needs_deerflow
def test_missing_interfaces_are_named_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import_deerflow = deerflow.import_deerflow
    monkeypatch.delattr(import_deerflow("app.gateway.deps"), "_cached_repo")
    monkeypatch.delattr(import_deerflow("deerflow.runtime").RunManager, "cleanup")
    release = deerflow.find_release()
    changed = replace(release, interfaces={**release.interfaces, "deerflow.no_package.module": ("name",)})
    monkeypatch.setattr(deerflow, "RELEASES", (changed,))
    with pytest.raises(deerflow.UnsupportedReleaseError) as refused:
        gateway.create_app()
    assert str(refused.value) == (
        f"{deerflow.installed_release()} does not fit this release of deerflow-mongo: it lacks "
        "app.gateway.deps._cached_repo, deerflow.runtime.RunManager.cleanup, deerflow.no_package.module. "
        "These fit: deerflow-kernel 0.1.7, DeerFlow 2.0.0, DeerFlow main (2.1.0)"
    )


class NewInterface(abc.ABC):
    """An interface of a DeerFlow that is newer than this package."""

    @abc.abstractmethod
    async def claim(self) -> None: ...
    @abc.abstractmethod
    async def put(self, run_id: str, *, kind: str = "run", region: str | None = None) -> None: ...
    @abc.abstractmethod
    async def get(self, run_id: str, *, region: str | None = None) -> None: ...
    async def count(self, *, region: str | None = None) -> int:
        return 0

    def _private(self, region: str) -> str:
        return region


class OlderAdapter(NewInterface):
    async def put(self, run_id: str, *, kind: str = "run") -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]
    async def get(self, run_id: str, **options: Any) -> None: ...


class ConcreteInterface:
    """A class of DeerFlow that is no interface: there is nothing to inherit."""

    async def list(self) -> None: ...
    async def _query(self) -> None: ...


def test_methods_and_parameters_that_an_adapter_lacks_are_named_in_one_error() -> None:
    class Unrelated: ...

    adapters = {OlderAdapter: NewInterface, Unrelated: ConcreteInterface}
    unknown = r"it needs OlderAdapter\.claim, OlderAdapter\.put\(region=\), Unrelated\.list, which"
    with pytest.raises(deerflow.UnsupportedReleaseError, match=unknown):
        deerflow.check_comparisons(deerflow.compare_adapters(adapters))


@needs_deerflow
def test_runtime_that_is_entered_with_other_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def langgraph_runtime(app: Any, settings: Any, region: str) -> None: ...

    monkeypatch.setattr(deerflow.import_deerflow("app.gateway.deps"), "langgraph_runtime", langgraph_runtime)
    with pytest.raises(
        deerflow.UnsupportedReleaseError, match=r"needs .*runtime\(app, settings, region\), which"
    ):
        gateway.create_app()


@needs_deerflow
def test_application_that_cannot_be_made_ends_the_process_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(deerflow.import_deerflow("app.gateway.deps"), "_cached_repo")
    with pytest.raises(SystemExit) as ended:
        _ = gateway.app
    assert ended.value.code == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "it lacks app.gateway.deps._cached_repo. These fit: " in line


def test_a_checkout_without_metadata_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deerflow, "DISTRIBUTIONS", ("no-such-distribution",))
    assert deerflow.installed_release() == "this checkout of DeerFlow"


# -- the storage's capabilities --------------------------------------------------------------------


CHECKPOINTS = r"checkpoints \(`storage\.checkpointer\(\)`\)"
OWNERSHIP = r"run ownership \(`storage\.runs\.create_thread_operation_atomic`\)"


@pytest.mark.parametrize(
    ("storage", "missing"),
    [
        (CoreStorage, rf"accounts \(`storage\.users`\) and {CHECKPOINTS} and {OWNERSHIP}"),
        (StorageWithAccounts, f"{CHECKPOINTS} and {OWNERSHIP}"),
        (StorageWithBoth, OWNERSHIP),
    ],
)
def test_storage_without_a_capability_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, storage: type[CoreStorage], missing: str
) -> None:
    assert isinstance(storage(), Storage)
    monkeypatch.setattr(gateway, "create_storage", lambda config: storage())  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    refusal = rf"^DeerFlow's gateway needs {missing}, which {storage.__name__} does not have; use [^.]*$"
    with pytest.raises(StorageConfigError, match=refusal):
        gateway.open_storage({"backend": "other"})


def test_any_storage_with_every_capability_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = StorageWithAll()
    monkeypatch.setattr(gateway, "create_storage", lambda config: storage)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert gateway.open_storage({"backend": "other"}) is storage
    assert isinstance(storage, gateway.GatewayStorage)
