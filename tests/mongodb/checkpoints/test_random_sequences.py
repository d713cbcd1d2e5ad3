"""Random sequences of calls leave what LangGraph's SQLite saver would have stored.

Where LangGraph's savers differ, SQLite's and PostgreSQL's are followed: lists are sorted by checkpoint id
across namespaces (the in-memory saver lists one namespace after the other), values belong to a checkpoint
(and not to the version of a channel), and special writes are replaced where they come without others.
"""

from __future__ import annotations

import copy
import random
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, SCHEDULED

from deerflow_mongo.mongodb.checkpoints.saver import MongoCheckpointSaver

from ...faults.settings import run_machine
from .answers import difference
from .rows import config_of, metadata

sqlite: Any = pytest.importorskip("langgraph.checkpoint.sqlite")

MAX_SEQUENCES = 8
MAX_CALLS = 60

TABLES = ("checkpoints", "writes")
THREADS = ["a", "b"]
NAMESPACES = ["", "sub", "sub|x:1"]
RUNS = [f"r{number}" for number in range(8)]
CHANGES = ["append", "append", "append", "edit", "remove", "replace", "nothing", "note", "drop"]
PATHS = {"t1": "", "t2": "~__pull, b", "t3": "~__pull, a"}
WRITES = st.tuples(
    st.sampled_from(sorted(PATHS)),
    st.lists(st.sampled_from(["x", "y"]), max_size=2)
    | st.lists(st.sampled_from([ERROR, INTERRUPT, RESUME]), min_size=1, max_size=3)
    | st.lists(st.sampled_from(["x", "y", ERROR, INTERRUPT, RESUME, SCHEDULED]), max_size=4),
)
DELETIONS = ["delete_for_runs", "delete_for_runs", "keep_latest", "keep_latest", "delete", "delete_thread"]


class SqliteModel(sqlite.SqliteSaver):
    """SQLite's saver, with the methods that it lacks as statements about its rows."""

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            self._delete("json_extract(CAST(metadata AS TEXT), '$.run_id') = ?", run_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        chosen = "thread_id = ?"
        if strategy == "keep_latest":
            same = (
                "other.thread_id = checkpoints.thread_id AND other.checkpoint_ns = checkpoints.checkpoint_ns"
            )
            newest = f"SELECT max(checkpoint_id) FROM checkpoints AS other WHERE {same}"  # noqa: S608
            chosen += f" AND checkpoint_id < ({newest})"
        for thread_id in thread_ids:
            self._delete(chosen, thread_id)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        for table in TABLES:
            rows = self.conn.execute(f"SELECT * FROM {table} WHERE thread_id = ?", (source_thread_id,))  # noqa: S608
            for row in rows.fetchall():
                marks = ", ".join("?" * len(row))
                self.conn.execute(f"INSERT INTO {table} VALUES ({marks})", (target_thread_id, *row[1:]))  # noqa: S608

    def _delete(self, chosen: str, value: str) -> None:
        """The chosen checkpoints with their writes."""
        found = self.conn.execute(
            f"SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints WHERE {chosen}",  # noqa: S608
            (value,),
        ).fetchall()
        for table in TABLES:
            for key in found:
                self.conn.execute(
                    f"DELETE FROM {table} WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",  # noqa: S608
                    key,
                )


def _result(returned: Any) -> Any:
    return list(cast("Iterator[Any]", returned)) if isinstance(returned, Iterator) else returned


def _changed(values: dict[str, Any], change: str, source: random.Random) -> set[str]:
    """Change a state as a step does; the channels that have new versions then."""
    messages = list(values.get("messages", []))
    if change == "nothing":
        return set()
    if change == "drop":
        values.pop("note", None)
        return {"note"}
    if change == "note":
        values["note"] = {"text": _message(source)}
        return {"note"}
    if change == "append" or not messages:
        messages += [_message(source) for _ in range(source.choice([1, 1, 2, 20]))]
    elif change == "edit":
        messages[source.randrange(len(messages))] = _message(source)
    elif change == "remove":
        del messages[source.randrange(len(messages))]
    else:
        messages = [_message(source)]
    values["messages"] = messages
    return {"messages"}


def _message(source: random.Random) -> dict[str, Any]:
    size = source.choice([10, 300, 3_000, 30_000])
    return {"id": source.randrange(10**9), "text": source.randbytes(size // 2).hex()}


class Sequences(RuleBasedStateMachine):
    """Each rule calls both savers and compares what they return."""

    saver: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.model = SqliteModel(sqlite3.connect(":memory:", check_same_thread=False))
        self.model.setup()  # the added methods need the tables
        self.prefix = uuid.uuid4().hex
        self.configs: list[Any] = []  # of all checkpoints that were ever put
        self.values: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
        self.copies = 0

    def teardown(self) -> None:
        for thread in self.threads:
            self.both("list", {"configurable": {"thread_id": self.prefix + thread}})
            for ns in NAMESPACES:
                self.both("get_tuple", config_of(self.prefix + thread, ns=ns))
        self.model.conn.close()
        self.saver.prune([self.prefix + name for name in self.threads], strategy="delete")

    @property
    def threads(self) -> list[str]:
        return [*THREADS, *(f"copy {number}" for number in range(self.copies))]

    def both(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What SQLite's saver returned, after comparing it with what ours did."""
        ours, theirs = (
            _result(getattr(saver, method)(*copy.deepcopy(arguments), **copy.deepcopy(options)))
            for saver in (self.saver, self.model)
        )
        assert difference(ours, theirs) is None, f"{method}: {difference(ours, theirs)}"
        return theirs

    @initialize(seed=st.integers(0, 10**6))
    def fill(self, seed: int) -> None:
        source = random.Random(seed)  # noqa: S311 - reproducible calls
        for _ in range(8):
            self.put(
                source.randrange(100),
                source.choice(NAMESPACES[:2]),
                source.choice(THREADS),
                source.randrange(100),
                source.choice(RUNS),
                source.choice(CHANGES),
                fork=source.random() < 0.2,
            )

    @rule(
        place=st.integers(0, 10**6),
        ns=st.sampled_from(NAMESPACES),
        thread=st.sampled_from(THREADS),
        seed=st.integers(0, 10**6),
        run=st.sampled_from(RUNS),
        changes=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3),
        fork=st.booleans(),
    )
    def put_some(
        self, place: int, ns: str, thread: str, seed: int, run: str, changes: list[str], *, fork: bool
    ) -> None:
        for number, change in enumerate(changes):
            self.put(place, ns, thread, seed + number, run, change, fork=fork and number == 0)

    def put(self, place: int, ns: str, thread: str, seed: int, run: str, change: str, *, fork: bool) -> None:
        """After the newest checkpoint, or after an earlier one."""
        source = random.Random(seed)  # noqa: S311 - reproducible values
        parent = config_of(self.prefix + thread, ns=ns)
        if fork and self.configs:
            parent = self.configs[place % len(self.configs)]
        else:
            newest = self.model.get_tuple(parent)
            parent = parent if newest is None else newest.config
        before = self.values.get(parent["configurable"].get("checkpoint_id", ""), ({}, {}))
        values, versions = {**before[0]}, {**before[1]}
        changed = _changed(values, change, source)
        new = {name: self.saver.get_next_version(versions.get(name), None) for name in changed}
        checkpoint: Any = {
            "v": 4,
            "id": str(uuid6(clock_seq=seed % 100)),
            "ts": "now",
            "channel_values": values,
            "channel_versions": versions | new,
            "versions_seen": {"n": dict(versions)},
            "updated_channels": sorted(changed),
        }
        stored = self.both(
            "put", parent, checkpoint, metadata(run_id=self.prefix + run, step=seed % 4, n=None), new
        )
        self.configs.append(stored)
        self.values[checkpoint["id"]] = values, versions | new

    @rule(place=st.integers(0, 10**6), seed=st.integers(0, 10**6))
    def put_again(self, place: int, seed: int) -> None:
        """The same id with other values."""
        if self.configs:
            stored = self.both("get_tuple", self.configs[place % len(self.configs)])
            if stored is not None:
                value = _message(random.Random(seed))  # noqa: S311
                checkpoint: Any = {**stored.checkpoint, "channel_values": {"again": [value]}}
                version = self.saver.get_next_version(None, None)
                checkpoint["channel_versions"] = {"again": version}
                parent = stored.parent_config or config_of(
                    stored.config["configurable"]["thread_id"],
                    ns=stored.config["configurable"]["checkpoint_ns"],
                )
                self.both("put", parent, checkpoint, metadata(step=9), {"again": version})
                self.values[checkpoint["id"]] = {"again": [value]}, {"again": version}

    @rule(place=st.integers(0, 10**6), seed=st.integers(0, 10**6), calls=st.lists(WRITES, max_size=6))
    def put_writes(self, place: int, seed: int, calls: list[tuple[str, list[str]]]) -> None:
        if not self.configs or self.model.get_tuple(self._chosen(place)) is None:
            return
        source = random.Random(seed)  # noqa: S311 - reproducible values
        for task, channels in calls:
            writes = [(channel, _message(source)) for channel in channels]
            self.both("put_writes", self._chosen(place), writes, task, PATHS[task])
        self.both("get_tuple", self._chosen(place))

    @rule(
        thread=st.sampled_from([*THREADS, None]),
        ns=st.sampled_from([*NAMESPACES, None]),
        place=st.none() | st.integers(0, 10**6),
        before=st.none() | st.integers(0, 10**6),
        limit=st.none() | st.integers(0, 4),
        wanted=st.none()
        | st.sampled_from(
            [
                {"run_id": "r1"},
                {"step": 1},
                {"run_id": "r2", "step": 2},
                {"n": None, "step": 3},
                {"absent": 1},
                {},
            ]
        ),
    )
    def list_some(
        self,
        thread: str | None,
        ns: str | None,
        place: int | None,
        before: int | None,
        limit: int | None,
        wanted: Any,
    ) -> None:
        configurable: dict[str, Any] = {"thread_id": self.prefix + (thread or "a")}
        if ns is not None:
            configurable["checkpoint_ns"] = ns
        if place is not None and self.configs:
            configurable["checkpoint_id"] = self._chosen(place)["configurable"]["checkpoint_id"]
        options = {"filter": wanted, "limit": limit}
        if before is not None and self.configs:
            options["before"] = self._chosen(before)
        self.both("list", {"configurable": configurable}, **options)

    @rule(place=st.integers(0, 10**6))
    def get(self, place: int) -> None:
        if self.configs:
            self.both("get_tuple", self._chosen(place))

    @rule(place=st.integers(0, 10**6))
    def delta_history(self, place: int) -> None:
        if self.configs:
            config = self._chosen(place)
            self.both("get_delta_channel_history", config=config, channels=["x", "messages"])

    @rule(run=st.sampled_from(RUNS), thread=st.sampled_from(THREADS), kind=st.sampled_from(DELETIONS))
    def delete(self, run: str, thread: str, kind: str) -> None:
        if kind == "delete_for_runs":
            self.both(kind, [self.prefix + run])
        elif kind == "delete_thread":
            self.both(kind, self.prefix + thread)
        else:
            self.both("prune", [self.prefix + thread], strategy=kind)

    @rule(thread=st.sampled_from(THREADS))
    def copy_thread(self, thread: str) -> None:
        if self.copies < 3:
            self.copies += 1
            self.both("copy_thread", self.prefix + thread, self.prefix + self.threads[-1])

    def _chosen(self, place: int) -> Any:
        return self.configs[place % len(self.configs)]


def test_random_sequences_leave_what_sqlite_would_have(mongodb_url: str, database_name: str) -> None:
    with MongoCheckpointSaver.from_url(mongodb_url, database=database_name) as saver:

        class Bound(Sequences):
            pass

        Bound.saver = saver
        run_machine(
            Bound,
            settings(
                max_examples=MAX_SEQUENCES,
                stateful_step_count=MAX_CALLS,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],  # shrinking a failure takes minutes; its calls are printed
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
