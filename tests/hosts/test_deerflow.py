"""The check of DeerFlow's interfaces, and which storages the gateway accepts."""

from __future__ import annotations

import abc
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deerflow_mongo import Storage, StorageConfigError, hosts
from deerflow_mongo.hosts import deerflow, gateway

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


# -- DeerFlow's interfaces -------------------------------------------------------------------------


@needs_deerflow
def test_supported_release_has_every_interface() -> None:
    deerflow.check_interfaces()
    assert deerflow.installed_release() == deerflow.SUPPORTED


SOURCES = [file.read_text(encoding="utf-8") for file in Path(hosts.__file__).parent.rglob("*.py")]


def test_every_imported_module_of_deerflow_is_checked() -> None:
    imported = {name for source in SOURCES for name in re.findall(r'import_deerflow\("([\w.]+)"\)', source)}
    assert imported == set(deerflow.INTERFACES)


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
    changed = {**deerflow.INTERFACES, "deerflow.no_package.module": ("name",)}
    monkeypatch.setattr(deerflow, "INTERFACES", changed)
    with pytest.raises(StorageConfigError) as refused:
        gateway.create_app()
    assert str(refused.value) == (
        f"{deerflow.SUPPORTED} is not supported by this release of deerflow-mongo: it lacks "
        "app.gateway.deps._cached_repo, deerflow.runtime.RunManager.cleanup, deerflow.no_package.module. "
        f"{deerflow.SUPPORTED} is supported"
    )


def test_missing_app_state_is_named_in_one_error_and_nothing_is_replaced() -> None:
    state = SimpleNamespace(run_store="deerflow's")
    with pytest.raises(StorageConfigError, match=r"it lacks app\.state\.config, app\.state\.run_manager\."):
        gateway._replace_app_state(state, {"run_store": 1, "config": 2, "run_manager": 3})  # pyright: ignore[reportPrivateUsage]
    assert state.run_store == "deerflow's"


def test_methods_that_an_adapter_lacks_are_named_in_one_error() -> None:
    class NewInterface(abc.ABC):
        @abc.abstractmethod
        async def renew_lease(self) -> None: ...
        @abc.abstractmethod
        async def claim(self) -> None: ...

    class Adapter(NewInterface):
        pass

    with pytest.raises(StorageConfigError, match=r"it needs Adapter\.claim, Adapter\.renew_lease, which"):
        deerflow.check_adapters(Adapter)


def test_a_checkout_without_metadata_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deerflow, "DISTRIBUTIONS", ("no-such-distribution",))
    assert deerflow.installed_release() == "this checkout of DeerFlow"


# -- the storage's capabilities --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "missing"),
    [
        (CoreStorage, r"accounts \(`storage\.users`\) and checkpoints \(`storage\.checkpointer\(\)`\)"),
        (StorageWithAccounts, r"checkpoints \(`storage\.checkpointer\(\)`\)"),
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


def test_any_storage_with_accounts_and_checkpoints_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = StorageWithBoth()
    monkeypatch.setattr(gateway, "create_storage", lambda config: storage)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert gateway.open_storage({"backend": "other"}) is storage
    assert isinstance(storage, gateway.GatewayStorage)
