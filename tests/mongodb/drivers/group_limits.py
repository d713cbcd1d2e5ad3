"""How large groups are, how long calls wait, and how they end: by a time limit, a cancellation, a close."""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import bson
import pymongo
import pytest

from deerflow_mongo import MongoStorage, StorageClosedError, StorageError, StorageUnavailableError
from deerflow_mongo.mongodb.drivers.groups.lane import MAX_BYTES, MAX_CALLS, SMALLEST_GROUP
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT, MOST_IN_FLIGHT, Places
from deerflow_mongo.mongodb.drivers.groups.upserts import Upserts

from ...busy_machine import until_answered
from ...faults.proxy import FaultProxy
from .fixtures import Opener, close_client
from .group_fixtures import KINDS, GroupFixtures, SentCommands, answers_of, counts_of
from .time_limits import CLOSE_S

TIMEOUT_MS = 2_000
_END_S = 60.0

Grouped = Callable[[MongoStorage, str], Coroutine[Any, Any, Any]]

GROUPED: dict[str, Grouped] = {
    "find": lambda s, name: s.runs.get(name, user_id=None),
    "list": lambda s, name: s.runs.list_by_thread(name, limit=10, user_id=None),
    "aggregate": lambda s, name: s.feedback.aggregate_by_run(name, name),
    "insert": lambda s, name: s.runs.create(name, name, user_id=None),
    "update": lambda s, name: s.runs.update_model_name(name, "m"),
    "upsert": lambda s, name: s.feedback.upsert(run_id=name, thread_id="t", rating=1, user_id="alice"),
}
"""A call of each kind."""

COMMANDS: dict[str, tuple[str, list[str]]] = {
    "find": ("find", ["find"]),
    "list": ("find", ["aggregate"]),
    "aggregate": ("aggregate", ["aggregate"]),
    "insert": ("insert", ["insert"]),
    "update": ("update", ["update"]),
    "upsert": ("findAndModify", ["find", "insert"]),
}
"""What a call alone sends, and what a group does."""

each_kind = pytest.mark.parametrize("kind", KINDS)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(_END_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def _stalled(
    storage: MongoStorage, proxy: FaultProxy, kind: str, calls: int
) -> list[asyncio.Task[Any]]:
    """So many calls: as many as may be in flight without an answer, the others wait for them."""
    alone, group = COMMANDS[kind]
    rule = proxy.stall(alone, *group)
    tasks = [asyncio.create_task(GROUPED[kind](storage, f"r-{number}")) for number in range(calls)]
    await _until(lambda: rule.hits >= LEAST_IN_FLIGHT)
    return tasks


async def _names(storage: MongoStorage, kind: str, number: int, prefix: str = "r") -> list[str]:
    """So many different names for calls of a kind; of an update, those of runs that are stored."""
    names = [f"{prefix}-{each}" for each in range(number)]
    if kind == "update":
        await asyncio.gather(*(GROUPED["insert"](storage, name) for name in names))
    return names


async def _in_turn(storage: MongoStorage, kind: str, names: list[str], callers: int) -> None:
    """A call with each name, by so many callers, each of which makes one after the other."""

    async def caller(number: int) -> None:
        for name in names[number::callers]:
            await GROUPED[kind](storage, name)

    await asyncio.gather(*map(caller, range(callers)))


async def _ended(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(_END_S):
        return await asyncio.gather(*tasks, return_exceptions=True)


class GroupLimitContract(GroupFixtures):
    # How large a group is.

    @each_kind
    async def test_call_alone_is_a_command_of_its_own_and_many_are_few(
        self, kind: str, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        storage, sent = listened
        await GROUPED["insert"](storage, "r")
        alone, group = COMMANDS[kind]
        for calls in (1, LEAST_IN_FLIGHT, 64):
            sent.clear()
            names = ["r"] * calls if kind == "update" else [f"r-{calls}-{number}" for number in range(calls)]
            await asyncio.gather(*(GROUPED[kind](storage, name) for name in names))
            commands = [alone] * min(calls, LEAST_IN_FLIGHT) + (group if calls > LEAST_IN_FLIGHT else [])
            assert [command.name for command in sent.all] == commands
            assert len(commands) <= 4

    @pytest.mark.parametrize("kind", ["find", "insert", "update"])
    async def test_group_has_a_largest_number_of_calls(
        self, kind: str, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        storage, sent = listened
        calls = 3 * MAX_CALLS + LEAST_IN_FLIGHT
        names = await _names(storage, kind, calls)
        sent.clear()
        await asyncio.gather(*(GROUPED[kind](storage, name) for name in names))
        sizes = sorted(len(command.parts) for command in sent.named(kind))
        assert sum(sizes) == calls
        # The last of them are divided where both commands before them were answered at the same moment.
        assert sizes in ([1, 1, *[MAX_CALLS] * 3], [1, 1, *[MAX_CALLS // 2] * 2, *[MAX_CALLS] * 2])
        assert sent.most_under_way <= LEAST_IN_FLIGHT
        assert counts_of(storage, kind)["largest"] == MAX_CALLS

    @pytest.mark.parametrize("kind", ["find", "insert", "update"])
    async def test_load_that_lasts_is_divided_between_the_commands_in_flight(
        self, kind: str, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        """Else the callers of a large group call again at once, and all are in one command for ever."""
        storage, sent = listened
        callers, rounds = 8 * LEAST_IN_FLIGHT, 20
        names = await _names(storage, kind, callers * rounds)
        sent.clear()
        await _in_turn(storage, kind, names, callers)
        sizes = [len(command.parts) for command in sent.named(kind)]
        assert sum(sizes) == len(names)
        alone = next(place for place, size in enumerate(sizes) if size > 1)
        burst, *divided = sizes[alone:]
        # Behind the burst a call may wait whose command nobody shares; there is one place more then.
        assert LEAST_IN_FLIGHT <= alone <= LEAST_IN_FLIGHT + 2
        assert burst == callers - LEAST_IN_FLIGHT
        assert max(divided) == callers / LEAST_IN_FLIGHT
        assert len(divided) <= 1.5 * LEAST_IN_FLIGHT * rounds
        assert sent.most_under_way in (LEAST_IN_FLIGHT, LEAST_IN_FLIGHT + 1)

    @each_kind
    async def test_few_callers_do_not_wait_time_and_again(self, kind: str, storage: MongoStorage) -> None:
        """One more than the commands in flight would wait each time, and nobody would share its command."""
        rounds = 30
        pays_from = Upserts.pays_from if kind == "upsert" else SMALLEST_GROUP
        for callers in range(LEAST_IN_FLIGHT + 1, LEAST_IN_FLIGHT + pays_from):
            names = await _names(storage, kind, callers * rounds, prefix=f"of {callers}")
            before = counts_of(storage, kind)
            await _in_turn(storage, kind, names, callers)
            after = counts_of(storage, kind)
            assert after["grouped"] - before["grouped"] <= callers
            assert after["alone"] - before["alone"] >= callers * (rounds - 1)

    @each_kind
    async def test_more_callers_share_commands_again(self, kind: str, storage: MongoStorage) -> None:
        """Those of before leave no place that keeps the others apart."""
        few, many, rounds = LEAST_IN_FLIGHT + 1, 8 * LEAST_IN_FLIGHT, 30
        await _in_turn(storage, kind, await _names(storage, kind, few * rounds, prefix="few"), few)
        names = await _names(storage, kind, many * rounds, prefix="many")
        before = counts_of(storage, kind)["grouped"]
        await _in_turn(storage, kind, names, many)
        assert counts_of(storage, kind)["grouped"] - before > 4 * LEAST_IN_FLIGHT * rounds

    @pytest.mark.parametrize("round_trip_ms", [0.9, 5, 20, 500])
    async def test_far_from_the_server_more_commands_are_in_flight(
        self, round_trip_ms: float, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        """One more for each whole millisecond of the round trip: a call that waits there loses much time."""
        storage, sent = listened
        storage.driver.places = Places(lambda: round_trip_ms / 1_000)
        in_flight = min(LEAST_IN_FLIGHT + int(round_trip_ms), MOST_IN_FLIGHT)
        await asyncio.gather(*(GROUPED["find"](storage, f"r-{number}") for number in range(64)))
        sizes = sorted(len(command.parts) for command in sent.named("find"))
        assert sizes == [1] * in_flight + [64 - in_flight]
        assert sent.most_under_way <= in_flight

    async def test_distance_of_the_server_is_measured_by_the_driver(
        self, new_storage: Opener, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()  # see `nearby`
        delay_ms = 20
        proxy.harm("delay", {"hello", "ismaster"}, delay_s=delay_ms / 1_000)
        async with new_storage(url=f"{proxy.url}&heartbeatFrequencyMS=500") as storage:
            await until_answered(storage.ping)
            # The driver tells the shortest one once it has measured two.
            await _until(lambda: storage.driver.places.number() >= LEAST_IN_FLIGHT + delay_ms)

    @pytest.mark.parametrize("kind", ["insert", "update"])
    async def test_group_has_a_largest_size(
        self, kind: str, listened: tuple[MongoStorage, SentCommands]
    ) -> None:
        storage, sent = listened
        text, names = "x" * (MAX_BYTES // 5), [f"r-{number}" for number in range(20)]
        scratch = storage.driver.collection("scratch")
        if kind == "update":
            await scratch.insert_many([{"_id": name} for name in names])
            sent.clear()
            calls: list[Awaitable[Any]] = [
                scratch.update_one({"_id": name}, {"$set": {"k": text}}) for name in names
            ]
            calls.append(scratch.update_one({"_id": "r-0"}, {"$set": {"large": text * 6}}))
        else:
            calls = [scratch.insert_one({"_id": name, "k": text}) for name in names]
            calls.append(scratch.insert_one({"_id": "large", "k": text * 6}))
        await asyncio.gather(*calls)
        sizes = [sum(map(_size_bytes, command.parts)) for command in sent.named(kind)]
        assert sorted(len(command.parts) for command in sent.named(kind)) == [1, 1, 1, 2, 4, 4, 4, 4]
        assert sum(size > MAX_BYTES for size in sizes) == 1
        assert all(size < MAX_BYTES * 1.01 or size > MAX_BYTES * 1.19 for size in sizes)

    async def test_without_groups_each_call_is_a_command(self, new_storage: Opener, mongodb_url: str) -> None:
        sent = SentCommands()
        client = self.client_class(mongodb_url, event_listeners=[sent])
        async with new_storage(client=client, groups=False) as storage:
            for kind in KINDS:
                sent.clear()
                await asyncio.gather(*(GROUPED[kind](storage, f"r-{number}") for number in range(20)))
                assert [command.name for command in sent.all] == [COMMANDS[kind][0]] * 20
                assert counts_of(storage, kind)["groups"] == 0
        await close_client(client)

    async def test_statistics_count_the_calls_of_each_collection_and_kind(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        async with new_storage(url=proxy.url) as storage:
            await until_answered(storage.ping)
            before = storage.statistics()["runs"]
            assert {kind: before[kind]["alone"] + before[kind]["groups"] for kind in KINDS} == dict.fromkeys(
                KINDS, 0
            )
            proxy.delay("insert", 0.2, LEAST_IN_FLIGHT)
            await asyncio.gather(*(GROUPED["insert"](storage, f"r-{number}") for number in range(10)))
            await GROUPED["find"](storage, "r-1")
            after = storage.statistics()
            inserts, grouped = after["runs"]["insert"], 10 - LEAST_IN_FLIGHT
            assert inserts == {
                "alone": LEAST_IN_FLIGHT,
                "groups": 1,
                "grouped": grouped,
                "largest": grouped,
                "waited_seconds": inserts["waited_seconds"],
            }
            assert inserts["waited_seconds"] >= grouped * 0.19
            assert (after["runs"]["find"]["alone"], after["runs"]["find"]["grouped"]) == (1, 0)
            assert after["threads"]["insert"]["grouped"] == 0

    # How long a call waits.

    @pytest.mark.parametrize("kind", ["find", "insert", "update"])
    async def test_timeout_counts_from_the_start_of_each_call(
        self, kind: str, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        """Two calls of one group, the second of which began later: each waits for its own time, no longer."""
        async with new_storage():
            pass
        storage = new_storage(url=proxy.url, timeout_ms=TIMEOUT_MS)
        await until_answered(storage.ping)
        tasks = await _stalled(storage, proxy, kind, LEAST_IN_FLIGHT + 1)
        await asyncio.sleep(TIMEOUT_MS / 1000 * 0.75)
        later = asyncio.create_task(GROUPED[kind](storage, "later"))
        earlier = await _ended(tasks)
        assert not later.done()
        for error in (*earlier, *await _ended([later])):
            assert type(error) is StorageUnavailableError
            assert "did not answer in time" in str(error)
            assert re.search(rf"`({'|'.join([COMMANDS[kind][0], *COMMANDS[kind][1]])})` on `", str(error))
        proxy.clear()
        await until_answered(lambda: GROUPED["find"](storage, "r"))
        await storage.aclose()

    @pytest.mark.parametrize("kind", ["find", "insert", "update"])
    async def test_callers_own_timeout_ends_its_call_and_no_other(
        self, kind: str, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        async with new_storage():
            pass
        storage = new_storage(url=proxy.url, timeout_ms=20_000)
        await until_answered(storage.ping)
        delay_s = 2.5
        proxy.delay(COMMANDS[kind][0], delay_s, LEAST_IN_FLIGHT)
        calls = [asyncio.create_task(GROUPED[kind](storage, f"r-{number}")) for number in range(5)]
        await asyncio.sleep(0)  # two of them are in flight

        async def hasty() -> Any:
            with pymongo.timeout(0.1):
                return await GROUPED[kind](storage, "hasty")

        [error] = await answers_of([hasty()])
        assert type(error) is StorageUnavailableError
        assert not any(call.done() for call in calls)
        assert not any(isinstance(answer, BaseException) for answer in await _ended(calls))
        assert await GROUPED["find"](storage, "hasty") is None
        await storage.aclose()

    async def test_callers_own_cancellation_by_a_timeout_stays_its_own(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        storage = new_storage(url=proxy.url, timeout_ms=20_000)
        await until_answered(storage.ping)
        tasks = await _stalled(storage, proxy, "find", 4)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(GROUPED["find"](storage, "r"), 0.1)
        assert not any(task.done() for task in tasks)
        await storage.aclose()
        proxy.go_down()
        await _ended(tasks)

    # What a failure of the command is to each caller.

    @each_kind
    async def test_lost_command_is_an_error_of_its_own_for_each_caller(
        self, kind: str, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        """With the text and the cause of the error of a call alone."""
        async with new_storage(url=f"{proxy.url}&retryWrites=false&retryReads=false") as storage:
            command, [of_group, *_] = COMMANDS[kind]
            proxy.lose(command)
            [alone] = await answers_of([GROUPED[kind](storage, "r-0")])
            proxy.lose(of_group)
            with self.forcing(True):
                errors = await answers_of([GROUPED[kind](storage, f"r-{number}") for number in range(1, 7)])
            assert proxy.lost == 2
            for error in errors:
                assert type(error) is type(alone) is StorageUnavailableError
                assert str(error) == str(alone).replace(f"`{command}`", f"`{of_group}`")
                assert type(error.__cause__) is type(alone.__cause__)
                assert len(traceback.extract_tb(error.__traceback__)) < 30
            assert len({id(error) for error in errors}) == 6

    # Cancellation.

    @pytest.mark.parametrize("kind", ["insert", "update"])
    async def test_cancelled_call_leaves_a_group_that_was_not_sent(
        self, kind: str, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        async with new_storage(url=proxy.url) as storage:
            names = [f"r-{number}" for number in range(8)]
            if kind == "update":
                await asyncio.gather(*(GROUPED["insert"](storage, name) for name in names))
            rule = proxy.delay(kind, 0.5, LEAST_IN_FLIGHT)
            tasks = [asyncio.create_task(GROUPED[kind](storage, name)) for name in names]
            await _until(lambda: rule.hits == LEAST_IN_FLIGHT)
            for task in tasks[3::2]:
                task.cancel()
            answers = await _ended(tasks)
            changed = [await storage.runs.get(name, user_id=None) for name in names]
            assert counts_of(storage, kind)["largest"] <= max(3, counts_of(storage, "insert")["largest"])
        cancelled = [isinstance(answer, asyncio.CancelledError) for answer in answers]
        assert cancelled == [False, False, False, True, False, True, False, True]
        done = [row is not None and (kind == "insert" or row["model_name"] == "m") for row in changed]
        assert done == [not was_cancelled for was_cancelled in cancelled]

    @each_kind
    async def test_cancelled_call_of_a_group_that_was_sent_leaves_the_others_their_answers(
        self, kind: str, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        async with new_storage(url=proxy.url) as storage:
            await GROUPED["insert"](storage, "r-0")
            rule = proxy.delay(COMMANDS[kind][1][-1], 0.3, 1)
            with self.forcing(True):
                names = ["r-0"] * 6 if kind in ("find", "update") else [f"s-{number}" for number in range(6)]
                tasks = [asyncio.create_task(GROUPED[kind](storage, name)) for name in names]
                await _until(lambda: rule.hits == 1)
                tasks[0].cancel()
                tasks[3].cancel()
                answers = await _ended(tasks)
                assert await GROUPED["find"](storage, "r-0") is not None
        for number, answer in enumerate(answers):
            assert isinstance(answer, asyncio.CancelledError) is (number in (0, 3))
            assert not isinstance(answer, StorageError)

    # Closing.

    @each_kind
    async def test_closing_ends_calls_that_wait(
        self, kind: str, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        """At once, not when the commands in flight end, which nothing answers."""
        before = asyncio.all_tasks()
        async with new_storage():
            pass
        storage = new_storage(url=proxy.url)
        await until_answered(storage.ping)
        tasks = await _stalled(storage, proxy, kind, 5 * MAX_CALLS)
        await storage.aclose()
        waiting = await _ended(tasks[LEAST_IN_FLIGHT:])
        assert {type(answer) for answer in waiting} == {StorageClosedError}
        assert len({id(answer) for answer in waiting}) == len(waiting)
        with pytest.raises(StorageClosedError):
            await GROUPED[kind](storage, "r")
        proxy.go_down()
        assert {type(answer) for answer in await _ended(tasks)} == {StorageClosedError}
        await _until(lambda: not asyncio.all_tasks() - before)
        assert proxy.seen[COMMANDS[kind][0]] == LEAST_IN_FLIGHT

    async def _on_a_callers_client(self, new_storage: Opener, proxy: FaultProxy) -> tuple[Any, MongoStorage]:
        async with new_storage():
            pass
        client = self.client_class(proxy.url)
        storage = new_storage(client=client)
        await until_answered(storage.ping)
        return client, storage

    async def test_closing_leaves_a_callers_client_its_commands_and_ends_what_waits(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        client, storage = await self._on_a_callers_client(new_storage, proxy)
        rule = proxy.delay("insert", 0.5)
        tasks = [asyncio.create_task(GROUPED["insert"](storage, f"r-{number}")) for number in range(20)]
        await _until(lambda: rule.hits >= LEAST_IN_FLIGHT)
        await storage.aclose()
        answers = await _ended(tasks)
        assert answers[:LEAST_IN_FLIGHT] == [None] * LEAST_IN_FLIGHT
        assert {type(answer) for answer in answers[LEAST_IN_FLIGHT:]} == {StorageClosedError}
        await close_client(client)

    async def test_closing_with_groups_in_flight_takes_no_longer_the_more_there_are(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        """A client of the caller's goes on with them: they are waited for together, for a moment."""
        client, storage = await self._on_a_callers_client(new_storage, proxy)
        rule = proxy.stall("find", "insert", "update")
        stores = ("runs", "threads", "feedback", "users")
        collections = [storage.driver.collection(name) for name in stores]
        with self.forcing(True):
            calls = [
                call
                for collection in collections
                for _ in range(2)
                for call in (
                    collection.find_one({"_id": "r"}),
                    collection.insert_one({"_id": "r"}),
                    collection.update_one({"_id": "r"}, {"$set": {"k": 1}}),
                )
            ]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await _until(lambda: rule.hits >= len(stores))  # Motor has few threads
        await asyncio.wait_for(storage.aclose(), CLOSE_S)
        for task in tasks:
            task.cancel()
        await _ended(tasks)
        await close_client(client)

    # Event loops and threads.

    async def test_calls_of_another_event_loop_are_refused_while_others_wait(
        self, new_storage: Opener, proxy: FaultProxy
    ) -> None:
        async with new_storage(url=proxy.url) as storage:
            for kind in KINDS:
                rule = proxy.delay(COMMANDS[kind][0], 0.2, LEAST_IN_FLIGHT)
                tasks = [asyncio.create_task(GROUPED[kind](storage, f"r-{n}")) for n in range(5)]
                await _until(lambda rule=rule: rule.hits == LEAST_IN_FLIGHT)

                with pytest.raises(StorageError, match="one storage per event loop"):
                    await asyncio.to_thread(_run, GROUPED[kind](storage, "other"))
                answers = await _ended(tasks)
                assert [answer for answer in answers if isinstance(answer, BaseException)] == []
                proxy.clear()
            assert await storage.runs.get("other", user_id=None) is None


def _run(call: Coroutine[Any, Any, Any]) -> None:
    """In an event loop of its own."""
    asyncio.run(call)


def _size_bytes(part: Any) -> int:
    return len(part.raw) if hasattr(part, "raw") else len(bson.encode(part))
