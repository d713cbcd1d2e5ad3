"""DeerFlow's stores three times: our adapters on a real server, its own on SQLite, its own in memory.

The tests in this folder check the same promises on all of them. A promise that one does not make is listed in
`DIFFERENCES` with the reason, and its test must then fail there.
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
    """One of DeerFlow's interfaces and its implementations, as `module:name`."""

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

_NO_USERS = "DeerFlow's store in memory has no users"
_NO_COLUMNS = "DeerFlow's store in memory stores what it is given, without columns or conversions"
_NO_TIMES = "DeerFlow has no such column"
_OVERWRITES = "DeerFlow's store in memory is a dict: the last write wins"
_LAST_STATUS = "DeerFlow stores the last status it gets, in whatever order two workers send theirs"
_AS_ARGUMENTS = "DeerFlow's store in memory passes an event's keys as the arguments of a function"
_REUSES_NUMBERS = "DeerFlow's next number follows the highest remaining one: deleted numbers are given again"
_NO_METADATA = "DeerFlow's store in memory looks for metadata among the thread's own fields"
_ALL_RUNS = "DeerFlow sums the thread's runs of all users, also those that no list shows"
_NAIVE = "SQLite drops the offset of a time"
_NO_UUID = "DeerFlow converts the bound user's id to text, and not one that is passed"
_NO_LIMITS = "for SQLite a negative limit is no limit (PostgreSQL refuses it)"
_16_MIB = "a document of MongoDB holds at most 16 MiB"

DIFFERENCES: dict[str, dict[str, dict[str, str]]] = {
    "runs": {
        "test_put_stores_the_followed_run": {MEMORY: _NO_COLUMNS},
        "test_row_has_the_keys_of_the_sql_row": {MEMORY: _NO_COLUMNS},
        "test_new_run_has_zero_counts_and_no_texts": {MEMORY: _NO_COLUMNS},
        "test_times_have_an_offset": {SQL: _NAIVE},
        "test_repeated_put_leaves_one_run_that_has_the_last_fields": {
            SQL: "DeerFlow refuses a known id before its release 2.0",
            MEMORY: "DeerFlow's store in memory replaces the time of a run as well",
        },
        "test_values_that_are_not_json_are_stored_as_text": {MEMORY: _NO_COLUMNS},
        "test_oversized_or_infinite_argument_comes_back_unchanged": {
            OURS: f"{_16_MIB}, and our payloads are JSON, which has no infinity"
        },
        "test_model_name_is_stripped_and_truncated": {MEMORY: _NO_COLUMNS},
        "test_default_user_is_the_bound_user": {MEMORY: _NO_USERS},
        "test_default_user_without_a_bound_user_is_an_error": {MEMORY: _NO_USERS},
        "test_pending_before_a_datetime": {MEMORY: "DeerFlow's store in memory compares the texts of times"},
        "test_status_sets_started_at_and_ended_at": {SQL: _NO_TIMES, MEMORY: _NO_TIMES},
        "test_ended_run_never_becomes_active_again": {SQL: _LAST_STATUS, MEMORY: _LAST_STATUS},
        "test_user_id_may_be_a_uuid": {SQL: _NO_UUID, MEMORY: _NO_UUID},
        "test_huge_error_comes_back_unchanged": {OURS: _16_MIB},
        "test_absent_count_of_a_completion_becomes_zero": {MEMORY: _NO_COLUMNS},
        "test_messages_of_a_completion_are_truncated": {MEMORY: _NO_COLUMNS},
        "test_run_is_deleted_by_its_owner_only": {MEMORY: _NO_USERS},
        "test_token_sums_cover_the_bound_users_runs_only": {SQL: _ALL_RUNS, MEMORY: _ALL_RUNS},
    },
    "run_events": {
        "test_row_has_the_keys_of_the_sql_row": {MEMORY: _NO_USERS},
        "test_content_may_be_none": {
            OURS: "our events have no content that is None: it becomes the empty text"
        },
        "test_metadata_of_a_returned_event_marks_content_that_is_no_text": {
            MEMORY: "DeerFlow's store in memory stores content as it is"
        },
        "test_default_category_of_a_batch_is_trace": {MEMORY: _AS_ARGUMENTS},
        "test_unknown_keys_of_an_event_are_ignored": {MEMORY: _AS_ARGUMENTS},
        "test_values_that_are_not_json_are_stored_as_text": {MEMORY: _NO_COLUMNS},
        "test_long_trace_is_truncated_by_bytes": {MEMORY: _NO_COLUMNS},
        "test_long_structured_trace_is_truncated_as_json": {MEMORY: _NO_COLUMNS},
        "test_content_over_16_mib_comes_back_unchanged": {OURS: _16_MIB},
        "test_content_with_infinity_comes_back_unchanged": {
            OURS: "our payloads are JSON, which has no NaN and no infinity: such content is stored as text"
        },
        "test_event_belongs_to_the_bound_user": {MEMORY: _NO_USERS},
        "test_explicit_user_of_an_event_wins_over_the_bound_user": {MEMORY: _NO_USERS},
        "test_user_sees_own_events_only": {MEMORY: _NO_USERS},
        "test_user_id_may_be_a_uuid": {SQL: _NO_UUID, MEMORY: _NO_USERS},
        "test_reads_and_deletions_without_a_bound_user_are_errors": {MEMORY: _NO_USERS},
        "test_user_deletes_own_events_only": {MEMORY: _NO_USERS},
        "test_limit_zero_gives_nothing": {MEMORY: "in memory, the last 0 messages are all of them"},
        "test_negative_limit_is_refused": {SQL: _NO_LIMITS, MEMORY: "in memory, a limit is a slice"},
        "test_messages_between_two_numbers": {MEMORY: "in memory, `before_seq` overrides `after_seq`"},
        "test_empty_event_types_mean_all_types": {MEMORY: "in memory, empty types match nothing"},
        "test_numbers_are_not_reused_after_a_deletion": {SQL: _REUSES_NUMBERS, MEMORY: _REUSES_NUMBERS},
    },
    "threads": {
        "test_row_has_the_keys_of_the_sql_row": {MEMORY: "in memory, a thread has `values`, too"},
        "test_times_have_an_offset": {SQL: _NAIVE},
        "test_existing_thread_is_not_overwritten": {MEMORY: _OVERWRITES},
        "test_user_id_may_be_a_uuid": {SQL: _NO_UUID, MEMORY: _NO_UUID},
        "test_metadata_with_infinity_comes_back_unchanged": {
            OURS: "our payloads are JSON, which has no infinity"
        },
        "test_search_is_last_updated_first": {MEMORY: "in memory, a search has no order"},
        "test_search_finds_merged_metadata": {MEMORY: _NO_METADATA},
        "test_search_by_metadata": {MEMORY: _NO_METADATA},
        "test_search_distinguishes_types": {MEMORY: _NO_METADATA},
        "test_search_for_null_finds_null_and_not_missing": {MEMORY: _NO_METADATA},
        "test_search_for_a_float_finds_the_integer": {
            OURS: "we find a value by its digest, which differs for 2 and 2.0 as their JSON text does",
            MEMORY: _NO_METADATA,
        },
        "test_unsearchable_metadata_is_ignored_and_logged": {MEMORY: _NO_METADATA},
        "test_search_by_unsearchable_metadata_alone_is_refused": {MEMORY: _NO_METADATA},
    },
    "feedback": {
        "test_time_has_an_offset": {SQL: _NAIVE},
        "test_user_id_may_be_a_uuid": {SQL: _NO_UUID},
        "test_rating_that_only_equals_one_is_refused": {SQL: "DeerFlow accepts whatever equals 1 or -1"},
        "test_vote_replaces_a_row_created_on_a_message": {
            OURS: "feedback on a message is a row of its own, beside the one vote on the run"
        },
        "test_user_may_have_feedback_on_several_messages_of_a_run": {
            SQL: "DeerFlow has one row per user and run: a second one is an error of the database"
        },
    },
    "users": {
        "test_update_to_a_taken_email_is_a_value_error": {
            SQL: "DeerFlow raises SQLAlchemy's IntegrityError, which is not a ValueError"
        },
    },
}
"""Part -> test -> backend -> why it does not make that promise."""


def named(path: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def refusals() -> tuple[type[Exception], ...]:
    """The errors of the stores for a row that exists already."""
    errors: Any = importlib.import_module("deerflow_mongo.contract.errors")
    return (errors.RunExistsError, errors.ThreadExistsError, named("sqlalchemy.exc:IntegrityError"))


def expect_differences(request: pytest.FixtureRequest, kind: Kind) -> None:
    """Require the test to fail on the backends that `DIFFERENCES` lists, and only there."""
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
    """Our storage, for promises of our adapters alone."""
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
    """The public methods of a class, with the abstract ones."""
    return [name for name, _ in inspect.getmembers(owner, callable) if not name.startswith("_")]


def signature_faults(kind: Kind) -> list[str]:
    """The methods of DeerFlow's classes that our adapter lacks or takes other arguments for.

    A default is SQL's where SQL and the interface differ: the gateway's routes expect SQL.
    """
    ours, sql = named(kind.ours), named(kind.sql)
    base = sql if kind.base is None else named(kind.base)
    abstract: frozenset[str] = getattr(base, "__abstractmethods__", frozenset())
    faults = [f"{name} is still abstract" for name in getattr(ours, "__abstractmethods__", ())]
    faults += [f"{name} is not implemented" for name in abstract if name not in vars(ours)]
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
    """Differences of tests that do not exist any more."""
    return [test for test in DIFFERENCES[kind.part] if test not in module]
