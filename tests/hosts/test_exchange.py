"""Names that are exchanged while an application starts: for that start only, and restored after it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from deerflow_mongo.hosts.exchange import exchanged, original

MODULE = "a_host_of_the_tests"
MAKE, OTHER = (MODULE, "make"), (MODULE, "other")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A host's module with two functions, which a test must leave as they were."""
    module: Any = ModuleType(MODULE)
    module.make, module.other = _returning("host's"), _returning("other")
    before = (module.make, module.other)
    monkeypatch.setitem(sys.modules, MODULE, module)
    yield module
    assert (module.make, module.other) == before


def _returning(value: str) -> Callable[[], str]:
    return lambda: value


def ours(value: str = "ours") -> dict[tuple[str, str], Callable[..., Any]]:
    return {MAKE: _returning(value)}


def test_name_is_exchanged_within_the_block_only(host: Any) -> None:
    with exchanged(ours()):
        assert (host.make(), host.other()) == ("ours", "other")
        assert original(MAKE)() == "host's"
    assert host.make() == "host's"


def test_arguments_reach_the_replacement(host: Any) -> None:
    with exchanged({MAKE: lambda *arguments, **options: (arguments, options)}):
        assert host.make(1, sf=2) == ((1,), {"sf": 2})


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, SystemExit])
def test_name_is_restored_after_an_error(host: Any, error: type[BaseException]) -> None:
    with pytest.raises(error), exchanged(ours()):
        raise error
    assert host.make() == "host's"


def test_missing_name_exchanges_nothing(host: Any) -> None:
    with pytest.raises(AttributeError, match="absent"), exchanged({**ours(), (MODULE, "absent"): print}):
        pass
    assert host.make() == "host's"


def test_inner_block_hides_the_outer_one(host: Any) -> None:
    with exchanged(ours("outer")):
        with exchanged({**ours("inner"), OTHER: _returning("ours")}):
            assert (host.make(), host.other()) == ("inner", "ours")
        assert (host.make(), host.other()) == ("outer", "other")


async def test_two_starts_at_once_see_their_own_replacements(host: Any) -> None:
    both = asyncio.Barrier(3)

    async def start(value: str) -> str:
        with exchanged(ours(value)):
            await both.wait()
            found = host.make()
            await both.wait()
        return found

    async def plain() -> str:
        await both.wait()
        found = host.make()
        await both.wait()
        return found

    assert await asyncio.gather(start("first"), start("second"), plain()) == ["first", "second", "host's"]


async def test_name_is_restored_when_one_of_two_starts_is_cancelled(host: Any) -> None:
    entered, ends = asyncio.Event(), asyncio.Event()

    async def cancelled() -> None:
        with exchanged(ours("cancelled")):
            entered.set()
            await asyncio.Event().wait()

    async def other() -> str:
        with exchanged(ours("other")):
            await ends.wait()
            return host.make()

    tasks = asyncio.create_task(cancelled()), asyncio.create_task(other())
    await entered.wait()
    tasks[0].cancel()
    await asyncio.wait({tasks[0]})
    ends.set()
    assert await tasks[1] == "other"


async def test_task_of_a_start_sees_the_original_once_the_start_has_ended(host: Any) -> None:
    ended = asyncio.Event()

    async def background() -> str:
        await ended.wait()
        return host.make()

    with exchanged(ours()):
        task = asyncio.create_task(background())
    with exchanged(ours("a later start")):
        ended.set()
        assert await task == "host's"


def test_another_thread_sees_the_original(host: Any) -> None:
    found: list[str] = []
    with exchanged(ours()):
        thread = threading.Thread(target=lambda: found.append(host.make()))
        thread.start()
        thread.join()
    assert found == ["host's"]


def test_name_that_somebody_else_has_set_meanwhile_is_left(host: Any) -> None:
    theirs, before = _returning("theirs"), host.make
    with exchanged(ours()):
        host.make = theirs
    assert host.make is theirs
    host.make = before
