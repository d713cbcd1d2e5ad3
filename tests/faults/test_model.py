"""Random calls of every method give the same rows, the same errors and the same warnings as on `memory`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from deerflow_mongo import Storage, create_storage
from deerflow_mongo.contract import times
from deerflow_mongo.contract.methods import METHOD_KINDS, STORES, store_of

from .emptied_database import Opener
from .random_calls import Call, calls_of, creations
from .settings import bounded, run_machine
from .twins import StandingClock, Twins


class TwinMachine(RuleBasedStateMachine):
    """Makes each call of both storages. The subclasses have one rule per method, made from the table."""

    openers: ClassVar[list[Opener]]
    """One."""
    runner: ClassVar[asyncio.Runner]
    clock: ClassVar[StandingClock]
    calls: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.twins = Twins(self.openers[0](), self.clock)

    def make(self, call: Call) -> None:
        next(self.calls)
        self.runner.run(self.twins.compare(call))

    def teardown(self) -> None:
        try:
            self.runner.run(self.twins.compare_everything())
        finally:
            self.runner.run(self.twins.aclose())


def _rule_for(method: str) -> Any:
    def make(self: TwinMachine, call: Call) -> None:
        self.make(call)

    make.__name__ = method.replace(".", "_")
    return rule(call=calls_of(method))(make)


def _first_rule(*stores: str) -> Any:
    def fill(self: TwinMachine, calls: list[Call]) -> None:
        for call in calls:
            self.make(call)

    return initialize(calls=creations(*stores))(fill)


def machine_of(*stores: str, **fields: Any) -> type[TwinMachine]:
    rules = {
        method.replace(".", "_"): _rule_for(method) for method in METHOD_KINDS if store_of(method) in stores
    }
    return type("_".join(stores), (TwinMachine,), {"fill": _first_rule(*stores), **rules, **fields})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StandingClock:
    standing = StandingClock()
    monkeypatch.setattr(times.clock, "stamp_us", standing.stamp_us)
    return standing


@pytest.mark.parametrize("store", [*STORES, "all"])
def test_random_calls_give_what_the_model_gives(
    store: str, open_storage: Opener, runner: asyncio.Runner, clock: StandingClock
) -> None:
    stores = STORES if store == "all" else (store,)
    machine = machine_of(*stores, openers=[open_storage], runner=runner, clock=clock, calls=itertools.count())
    run_machine(machine, bounded(examples=30 if store == "all" else 20, steps=25))
    print(f"\n{store}: {next(machine.calls):,} calls")  # noqa: T201


@pytest.mark.parametrize("store", STORES)
def test_random_calls_on_the_mock_give_what_the_model_gives(
    store: str, runner: asyncio.Runner, clock: StandingClock
) -> None:
    def build() -> Storage:
        storage = create_storage({"backend": "mongodb", "driver": "mongomock"})
        runner.run(storage.setup())
        return storage

    machine = machine_of(store, openers=[build], runner=runner, clock=clock)
    run_machine(machine, bounded(examples=10, steps=20))
