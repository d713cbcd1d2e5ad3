"""`mongodb+srv://` where the DNS does not answer, or has no such name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec

import dns.asyncresolver
import dns.exception
import dns.message
import dns.resolver
import pytest

from deerflow_mongo import MongoStorage, StorageConfigError, StorageUnavailableError

from .fixtures import DriverFixtures, Opener

_URL = "mongodb+srv://u:Sup3rSecret@cluster0.example.mongodb.test/deerflow"
_TIMEOUT_MS = 2_500
_LOOKUP_S = 0.4


def _calls(storage: MongoStorage) -> tuple[Callable[[], Awaitable[object]], ...]:
    calls = (storage.setup, lambda: storage.runs.get("r", user_id=None), storage.ping)
    return calls if find_spec("langgraph") is None else (*calls, storage.checkpointer)


class NameLookupContract(DriverFixtures):
    @pytest.fixture
    def no_nameserver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A resolver whose only server does not answer."""
        for module, kind in (
            (dns.resolver, dns.resolver.Resolver),
            (dns.asyncresolver, dns.asyncresolver.Resolver),
        ):
            resolver = kind(configure=False)
            resolver.nameservers, resolver.port, resolver.lifetime = ["127.0.0.1"], 1, _LOOKUP_S
            monkeypatch.setattr(module, "default_resolver", resolver)

    @pytest.fixture
    def answering(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
        """Make every lookup fail with one error."""

        def set_error(error: Exception) -> None:
            def resolve(*_: object, **__: object) -> None:
                raise error

            async def resolve_async(*_: object, **__: object) -> None:
                raise error

            monkeypatch.setattr(dns.resolver, "resolve", resolve)
            monkeypatch.setattr(dns.asyncresolver, "resolve", resolve_async)

        return set_error

    @pytest.mark.usefixtures("no_nameserver")
    async def test_silent_dns_is_unavailable_within_the_timeout_and_does_not_block_the_loop(
        self, new_storage: Opener
    ) -> None:
        storage = new_storage(url=f"{_URL}?connectTimeoutMS=400", timeout_ms=_TIMEOUT_MS)
        longest_s = 0.0

        async def watch_loop() -> None:
            nonlocal longest_s
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.01)
                longest_s = max(longest_s, time.monotonic() - began)

        watching = asyncio.create_task(watch_loop())
        began = time.monotonic()
        with pytest.raises(StorageUnavailableError, match=r"`find` on .*: DNS did not answer") as error:
            await storage.runs.get("r", user_id=None)
        assert time.monotonic() - began < _TIMEOUT_MS / 1000 + 1
        watching.cancel()
        assert longest_s < _LOOKUP_S
        assert "Sup3rSecret" not in str(error.value)
        assert "127.0.0.1" not in str(error.value)
        await storage.aclose()

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (dns.resolver.LifetimeTimeout(timeout=1.0, errors=[]), StorageUnavailableError),
            (dns.resolver.NoNameservers(), StorageUnavailableError),
            (dns.resolver.NoResolverConfiguration(), StorageUnavailableError),
            (dns.exception.Timeout(), StorageUnavailableError),
            (OSError("network is unreachable"), StorageUnavailableError),
            (dns.resolver.NXDOMAIN(), StorageConfigError),
            (dns.resolver.NoAnswer(response=dns.message.QueryMessage()), StorageConfigError),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    async def test_only_a_name_without_a_record_is_a_configuration_error(
        self,
        error: Exception,
        kind: type[Exception],
        new_storage: Opener,
        answering: Callable[[Exception], None],
    ) -> None:
        answering(error)
        storage = new_storage(url=_URL, timeout_ms=_TIMEOUT_MS)
        for call in _calls(storage):
            with pytest.raises(kind) as refused:
                await call()
            assert type(refused.value) is kind
            assert "Sup3rSecret" not in str(refused.value)
        await storage.aclose()
