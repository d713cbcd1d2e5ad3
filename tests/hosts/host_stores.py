"""DeerFlow's stores three times: our adapters on a real server, its own on SQLite, its own in memory.

The tests beside this make the same promises of all of them. Where one does not keep a promise, that stands in
`DIFFERENCES` with the reason, and the test must then fail there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo import create_storage
from deerflow_mongo.contract.actor import ActorContext, bind_actor_context, reset_actor_context
from deerflow_mongo.mongodb.storage import MongoStorage

OURS, SQL, MEMORY = "mongodb", "sqlite", "memory"

_ADAPTERS = "deerflow_mongo.hosts.adapters"


@dataclass(frozen=True)
class Kind:
    """One of DeerFlow's interfaces, and what there is of it; classes as `module:name`."""

    part: str
    ours: str
    sql: str
    base: str | None = None
    memory: str | None = None

    @property
    def backends(self) -> tuple[str, ...]:
        return (OURS, SQL) if self.memory is None else (OURS, SQL, MEMORY)


RUNS = Kind(
    part="runs",
    ours=f"{_ADAPTERS}.runs:RunStoreAdapter",
    sql="deerflow.persistence.run.sql:RunRepository",
    base="deerflow.runtime.runs.store.base:RunStore",
    memory="deerflow.runtime.runs.store.memory:MemoryRunStore",
)
RUN_EVENTS = Kind(
    part="run_events",
    ours=f"{_ADAPTERS}.run_events:RunEventStoreAdapter",
    sql="deerflow.runtime.events.store.db:DbRunEventStore",
    base="deerflow.runtime.events.store.base:RunEventStore",
    memory="deerflow.runtime.events.store.memory:MemoryRunEventStore",
)
THREADS = Kind(
    part="threads",
    ours=f"{_ADAPTERS}.threads:ThreadMetaStoreAdapter",
    sql="deerflow.persistence.thread_meta.sql:ThreadMetaRepository",
    base="deerflow.persistence.thread_meta.base:ThreadMetaStore",
    memory="deerflow.persistence.thread_meta.memory:MemoryThreadMetaStore",
)
FEEDBACK = Kind(
    part="feedback",
    ours=f"{_ADAPTERS}.feedback:FeedbackRepositoryAdapter",
    sql="deerflow.persistence.feedback:FeedbackRepository",
)
USERS = Kind(
    part="users",
    ours=f"{_ADAPTERS}.users:UserRepositoryAdapter",
    sql="app.gateway.auth.repositories.sqlite:SQLiteUserRepository",
    base="app.gateway.auth.repositories.base:UserRepository",
)

_NO_USERS = "DeerFlow's store in memory knows no users"
_NO_COLUMNS = "DeerFlow's store in memory keeps what it was given and no more"
_NO_TIMES = "DeerFlow has no such column"
_OVERWRITES = "DeerFlow's store in memory is a dict: the later of two wins"
_LAST_WORD = "DeerFlow takes the last status for the true one, in whatever order two workers say theirs"
_AS_ARGUMENTS = "DeerFlow's store in memory takes an event's keys as the arguments of a function"
_STARTS_OVER = (
    "DeerFlow gives the number behind the highest one that is left, so that a deleted one comes again"
)
_NO_METADATA = "DeerFlow's store in memory looks for metadata among the thread's own fields"
_ALL_RUNS = "DeerFlow sums up the runs of a thread whosever they are, also those that no list shows"
_NAIVE = "SQLite drops the offset of a time"
_NO_UUID = "DeerFlow makes text of the bound user's id, and not of one that is given"
_NO_LIMITS = "SQLite takes a negative limit for none at all (PostgreSQL refuses it)"
_16_MIB = "a document of MongoDB ends at 16 MiB"

DIFFERENCES: dict[str, dict[str, dict[str, str]]] = {
    "runs": {
        "test_put_keeps_which_run_it_follows": {MEMORY: _NO_COLUMNS},
        "test_a_row_has_the_keys_of_the_sql_row": {MEMORY: _NO_COLUMNS},
        "test_a_new_runs_figures_are_zero_and_its_texts_none": {MEMORY: _NO_COLUMNS},
        "test_times_tell_their_offset": {SQL: _NAIVE},
        "test_a_run_that_is_there_is_not_overwritten": {MEMORY: _OVERWRITES},
        "test_what_is_no_json_is_written_down": {MEMORY: _NO_COLUMNS},
        "test_an_odd_argument_comes_back": {
            OURS: f"{_16_MIB}, and our payloads are JSON, which has no infinity"
        },
        "test_a_models_name_is_stripped_and_cut": {MEMORY: _NO_COLUMNS},
        "test_the_bound_user_is_who_acts": {MEMORY: _NO_USERS},
        "test_without_a_bound_user_nobody_acts": {MEMORY: _NO_USERS},
        "test_pending_before_a_datetime": {MEMORY: "DeerFlow's store in memory compares the texts of times"},
        "test_a_status_tells_when_a_run_began_and_ended": {SQL: _NO_TIMES, MEMORY: _NO_TIMES},
        "test_an_ended_run_is_not_put_back": {SQL: _LAST_WORD, MEMORY: _LAST_WORD},
        "test_a_user_may_be_named_by_a_uuid": {SQL: _NO_UUID, MEMORY: _NO_UUID},
        "test_a_huge_error_comes_back_whole": {OURS: _16_MIB},
        "test_a_completions_absent_figure_is_zero": {MEMORY: _NO_COLUMNS},
        "test_a_completions_messages_are_cut": {MEMORY: _NO_COLUMNS},
        "test_a_run_is_deleted_by_its_user": {MEMORY: _NO_USERS},
        "test_a_bound_user_is_told_of_own_tokens_only": {SQL: _ALL_RUNS, MEMORY: _ALL_RUNS},
    },
    "run_events": {
        "test_a_row_has_the_keys_of_the_sql_row": {MEMORY: _NO_USERS},
        "test_content_may_be_none": {OURS: "our events have no content that is None: it is the empty text"},
        "test_metadata_comes_back_as_it_was_given": {
            SQL: "DeerFlow keeps content as text, and in the metadata whether it was JSON"
        },
        "test_an_event_of_a_batch_is_a_trace_unless_it_says_otherwise": {MEMORY: _AS_ARGUMENTS},
        "test_other_keys_of_an_event_are_left_out": {MEMORY: _AS_ARGUMENTS},
        "test_what_is_no_json_is_written_down": {MEMORY: _NO_COLUMNS},
        "test_a_long_trace_is_cut_by_bytes": {MEMORY: _NO_COLUMNS},
        "test_a_long_structured_trace_is_cut_as_json": {MEMORY: _NO_COLUMNS},
        "test_a_content_beyond_16_mib_comes_back_whole": {OURS: _16_MIB},
        "test_a_content_beyond_json_comes_back": {
            OURS: "our payloads are JSON, which has no NaN and no infinity: such content is kept as text"
        },
        "test_an_event_is_the_bound_users": {MEMORY: _NO_USERS},
        "test_an_events_own_user_is_kept": {MEMORY: _NO_USERS},
        "test_a_user_sees_own_events_only": {MEMORY: _NO_USERS},
        "test_a_user_may_be_named_by_a_uuid": {SQL: _NO_UUID, MEMORY: _NO_USERS},
        "test_without_a_bound_user_nobody_reads_or_deletes": {MEMORY: _NO_USERS},
        "test_a_user_deletes_own_events_only": {MEMORY: _NO_USERS},
        "test_a_limit_of_nothing_gives_nothing": {MEMORY: "in memory, the last 0 messages are all of them"},
        "test_a_negative_limit_is_refused": {SQL: _NO_LIMITS, MEMORY: "in memory, a limit is a slice"},
        "test_messages_between_two_numbers": {MEMORY: "in memory, `before_seq` hides `after_seq`"},
        "test_no_types_are_all_types": {MEMORY: "in memory, no types are no types"},
        "test_numbers_go_on_after_a_deletion": {SQL: _STARTS_OVER, MEMORY: _STARTS_OVER},
    },
    "threads": {
        "test_a_row_has_the_keys_of_the_sql_row": {MEMORY: "in memory, a thread has `values`, too"},
        "test_times_tell_their_offset": {SQL: _NAIVE},
        "test_a_thread_that_is_there_is_not_overwritten": {MEMORY: _OVERWRITES},
        "test_a_user_may_be_named_by_a_uuid": {SQL: _NO_UUID, MEMORY: _NO_UUID},
        "test_metadata_beyond_json_comes_back": {OURS: "our payloads are JSON, which has no infinity"},
        "test_a_search_shows_the_last_updated_first": {MEMORY: "in memory, a search has no order"},
        "test_a_search_finds_what_was_merged": {MEMORY: _NO_METADATA},
        "test_a_search_by_metadata": {MEMORY: _NO_METADATA},
        "test_a_search_tells_types_apart": {MEMORY: _NO_METADATA},
        "test_a_search_for_null_finds_what_is_there_and_null": {MEMORY: _NO_METADATA},
        "test_a_search_for_a_float_finds_the_integer": {
            OURS: "we find a value by its digest, which tells 2 from 2.0 as JSON's text does",
            MEMORY: _NO_METADATA,
        },
        "test_what_is_unsafe_to_ask_for_is_left_out": {MEMORY: _NO_METADATA},
        "test_a_search_for_unsafe_metadata_alone_is_refused": {MEMORY: _NO_METADATA},
    },
    "feedback": {
        "test_a_time_tells_its_offset": {SQL: _NAIVE},
        "test_a_user_may_be_named_by_a_uuid": {SQL: _NO_UUID},
        "test_a_rating_is_an_integer": {SQL: "DeerFlow takes whatever equals 1 or -1 for it"},
        "test_a_vote_replaces_what_was_created_on_a_message": {
            OURS: "what a user says of a message is a row of its own, beside the one vote on the run"
        },
        "test_a_user_may_say_more_than_one_thing_of_a_run": {
            SQL: "DeerFlow has one row for a user and a run: a second one is an error of the database"
        },
    },
    "users": {
        "test_an_update_to_a_taken_email_is_an_error_of_the_caller": {
            SQL: "DeerFlow lets SQLAlchemy's IntegrityError through, which is no ValueError"
        },
    },
}
"""Part -> test -> backend -> why it does not keep that promise."""


def named(path: str) -> Any:
    """What stands at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def refusals() -> tuple[type[Exception], ...]:
    """How the stores say that a row is there already."""
    errors: Any = importlib.import_module("deerflow_mongo.contract.errors")
    return (errors.RunExistsError, errors.ThreadExistsError, named("sqlalchemy.exc:IntegrityError"))


def expect_differences(request: pytest.FixtureRequest, kind: Kind) -> None:
    """Let the test fail where `DIFFERENCES` says so, and only there."""
    backends = DIFFERENCES[kind.part].get(request.node.originalname, {})
    if request.param in backends:
        request.node.add_marker(pytest.mark.xfail(strict=True, reason=backends[request.param]))


@asynccontextmanager
async def open_store(
    kind: Kind, backend: str, *, folder: Path, url: str, database: str
) -> AsyncGenerator[Any]:
    """An empty store."""
    if backend == OURS:
        async with open_storage(url, database) as storage:
            yield named(kind.ours)(getattr(storage, kind.part))
    elif backend == SQL:
        engine: Any = importlib.import_module("deerflow.persistence.engine")
        await engine.init_engine(
            "sqlite", url=f"sqlite+aiosqlite:///{folder}/host.db", sqlite_dir=str(folder)
        )
        try:
            yield named(kind.sql)(engine.get_session_factory())
        finally:
            await engine.close_engine()
    else:
        assert kind.memory is not None
        arguments = [named("langgraph.store.memory:InMemoryStore")()] if kind is THREADS else []
        yield named(kind.memory)(*arguments)


@asynccontextmanager
async def open_storage(url: str, database: str) -> AsyncGenerator[MongoStorage]:
    """Our storage, for what is promised of our adapters alone."""
    async with create_storage({"backend": "mongodb", "url": url, "database": database}) as storage:
        assert isinstance(storage, MongoStorage)
        yield storage


@contextmanager
def acting(user_id: Any) -> Generator[None]:
    """`user_id` as the bound user."""
    token = bind_actor_context(ActorContext(user_id))
    try:
        yield
    finally:
        reset_actor_context(token)


# -- signatures ------------------------------------------------------------------------------------


def public_methods(owner: Any) -> list[str]:
    """What of a class others may call, the abstract ones too."""
    return [name for name, _ in inspect.getmembers(owner, callable) if not name.startswith("_")]


def signature_faults(kind: Kind) -> list[str]:
    """What DeerFlow could call on its own classes and not, or not in the same way, on our adapter.

    A default is SQL's where SQL and the interface differ: it is SQL that the gateway's routes expect.
    """
    ours, sql = named(kind.ours), named(kind.sql)
    base = sql if kind.base is None else named(kind.base)
    abstract: frozenset[str] = getattr(base, "__abstractmethods__", frozenset())
    faults = [f"{name} is abstract still" for name in getattr(ours, "__abstractmethods__", ())]
    faults += [f"{name} is the interface's own" for name in abstract if name not in vars(ours)]
    for name in sorted({*public_methods(base), *public_methods(sql)}):
        if name not in vars(ours):
            faults.append(f"{name} is missing")
            continue
        for host_class in (base, sql):
            if hasattr(host_class, name):
                faults += _parameter_faults(name, ours, host_class, defaults_of=sql)
    return faults


def _parameter_faults(name: str, ours: Any, host_class: Any, *, defaults_of: Any) -> list[str]:
    given = inspect.signature(getattr(ours, name)).parameters
    wanted = inspect.signature(getattr(host_class, name)).parameters
    decisive = inspect.signature(getattr(defaults_of, name)).parameters
    faults: list[str] = []
    if not inspect.iscoroutinefunction(getattr(ours, name)):
        faults.append(f"{name} is no coroutine function")
    for parameter, host_parameter in wanted.items():
        if parameter not in given:
            faults.append(f"{name} lacks {parameter}")
            continue
        default = decisive.get(parameter, host_parameter).default
        if given[parameter].default is not default and given[parameter].default != default:
            faults.append(f"{name}: {parameter} defaults to {given[parameter].default!r}, not {default!r}")
        if given[parameter].kind is not host_parameter.kind:
            faults.append(f"{name}: {parameter} is {given[parameter].kind.description}")
    by_position = [p.name for p in wanted.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if [p.name for p in given.values() if p.kind is p.POSITIONAL_OR_KEYWORD] != by_position:
        faults.append(f"{name} does not take {by_position} by position")
    faults += [
        f"{name} needs {p.name}"
        for p in given.values()
        if p.name not in wanted and p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    return faults


def stale_differences(kind: Kind, module: dict[str, Any]) -> list[str]:
    """Differences of tests that there are none of any more."""
    return [test for test in DIFFERENCES[kind.part] if test not in module]
