"""What a caller may pass as `client`, and what it decides where the configuration does not."""

from __future__ import annotations

from typing import Any

import pytest

from deerflow_mongo import StorageConfigError, create_storage

from .fixtures import DriverFixtures, close_client

_URL = "mongodb://127.0.0.1:1"


def _open(client: Any, **options: Any) -> Any:
    return create_storage({"backend": "mongodb", **options}, client=client)


class ClientContract(DriverFixtures):
    async def test_database_or_collection_in_place_of_a_client_is_refused(self) -> None:
        client = self.client_class(_URL)
        for value in (client["d"], client["d"]["runs"]):
            with pytest.raises(StorageConfigError, match=r"expected .* \(pass its client, and name"):
                _open(value)
        await close_client(client)

    async def test_client_without_acknowledged_writes_is_refused(self) -> None:
        for client in (self.client_class(_URL, w=0), self.client_class(f"{_URL}/?w=0")):
            with pytest.raises(StorageConfigError, match="client has w=0"):
                _open(client)
            await close_client(client)

    async def test_closed_client_is_refused(self) -> None:
        client = self.client_class(_URL)
        await close_client(client)
        with pytest.raises(StorageConfigError, match="client is closed"):
            _open(client)

    async def test_contradicting_driver_is_refused(self) -> None:
        client = self.client_class(_URL)
        other = "motor" if self.driver == "pymongo" else "pymongo"
        with pytest.raises(
            StorageConfigError, match=f"`driver` is {other} and client is one of {self.driver}"
        ):
            _open(client, driver=other)
        for options in ({}, {"driver": self.driver}, {"driver": ""}):
            assert _open(client, **options).config.driver == self.driver
        await close_client(client)

    async def test_clients_default_database_is_used_where_none_is_given(self) -> None:
        own, plain = self.client_class(f"{_URL}/own"), self.client_class(_URL)
        assert _open(own).config.database == "own"
        assert _open(own, url=f"{_URL}/of_the_url").config.database == "own"
        assert _open(own, database="given").config.database == "given"
        assert _open(own, database="").config.database == "own"
        assert _open(plain, url=f"{_URL}/of_the_url").config.database == "of_the_url"
        assert _open(plain).config.database == "deerflow"
        for client in (own, plain):
            await close_client(client)

    async def test_clients_own_timeout_is_used_where_none_is_given(self) -> None:
        client = self.client_class(_URL, timeoutMS=700)
        assert _open(client).config.timeout_ms == 700
        assert _open(client, timeout_ms=90).config.timeout_ms == 90
        await close_client(client)
