"""Random calls of every method of the four stores, as strategies for Hypothesis, and how a call is made.

Most arguments of a call are valid, odd ones among them: keys with dots, dollars and NUL, half an emoji,
integers beyond 64 bits, limits of 0. At most one is a value that the contract refuses, because the order of
the checks is not part of the contract. What the calls are checked for is in the test modules.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeAlias

from hypothesis import strategies as st

from deerflow_mongo import AUTO, UNSET, Storage, ThreadMetaCreate
from deerflow_mongo.contract.methods import METHOD_KINDS, store_of
from deerflow_mongo.contract.regeneration import EDIT, REGENERATED_RUN, REPLAY_KIND
from deerflow_mongo.contract.rows import PINNED
from deerflow_mongo.testing.contract import acting_as

ALICE, BOB = "alice", "bob"
RUNS, THREADS, USERS = ("r1", "r2", "r.$3"), ("t1", "t2", "t\x00\u00e9"), (ALICE, BOB)
EVENT_TYPES, EVENT_IDS = ("said", "run.start", "$tool", "ai_message", "llm.ai.response"), ("e1", "e2")
MAX_COUNT = 2**63 - 1

Strategy: TypeAlias = st.SearchStrategy[Any]

_TIMES = (
    "2026-04-22T03:26:38.123456+00:00",
    "2026-04-22T03:26:38Z",
    "2026-04-22T05:26:38.000001+02:00",
    "1969-12-31T23:59:59.999999",
    datetime(2026, 4, 22, 3, 26, 38, 999),  # noqa: DTZ001 - a naive one means UTC
    datetime(2026, 4, 22, 9, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59.999999+00:00",
)
_TEXTS = ("", "x", "a\x00b", "\ud83d", "\U0001f600", "$x", "a.b", "Timeout: it took too long", "z" * 3_000)
_STATUSES = ("pending", "starting", "running", "success", "error", "timeout", "interrupted", "paused", "p.$")
_COUNTS = (None, 0, 1, 7, 2**31, 2**53 + 1)
_MODELS = (None, "", "gpt-4.1", "$m", "%2E", "a\x00b", "unknown")

# -- what the contract refuses ---------------------------------------------------------------------

_NO_ID = ("", None, 5, b"r1", {"$ne": None}, ["r1"], "x" * 1_025, "\u00e9" * 513, "a\ud800")
_NO_OPTIONAL_ID = (5, {"$ne": None}, "x" * 1_025, "\udc00")
_NO_USER = (5, {"$ne": None}, "x" * 1_025, "\ud800", [ALICE])
_NO_LIMIT = (-1, -(2**70), True, 1.0, "5", None)
_NO_SEQ: tuple[Any, ...] = (True, 1.0, "5", [])
_NO_TEXT = (5, b"x", {"$ne": None})
_NO_TIME: tuple[Any, ...] = ("yesterday", 5, 1.5, "", {}, date(2026, 1, 1), "0001-01-01T00:00:00+02:00")
_NO_COUNT = (-1, True, 1.5, "1", 2**63)
_NO_RATING = (0, 5, 1.0, 1.5, "1", True, None, -2)
_NO_METADATA = ([1], "x", 5, {"a": float("nan")}, {"a": [float("inf")]}, {1: "x", "1": "y"})
_NO_NAMES = ("running", {"$ne": None}, [5], 5, [""])
_NO_EVENT_TYPES = ("said", {"$ne": None}, [5], [""])
_NO_IDS = ("r1", {"$ne": None}, [5], [""], ["r1", "a\ud800"], 5, None)

# -- payloads --------------------------------------------------------------------------------------

_LEAVES: Strategy = st.sampled_from(
    (
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**53 + 1,
        2**63 - 1,
        -(2**63),
        2**63,
        -(2**64),
        10**40,
        0.0,
        -0.0,
        1.0,
        1e308,
        "",
        "x",
        "1",
        "a\x00b",
        "\ud83d",
        "\U0001f600",
        "$x",
        datetime(2026, 4, 22, tzinfo=UTC),
        uuid.UUID(int=7),
        b"\x00\xff",
        Decimal("1.10"),
        (1, 2),
        frozenset({3}),
    )
)
_KEYS = st.sampled_from(("a", "b", "", "a.b", "$set", "$ref", "$id", "_id", "a\x00", "\ud83d", "\u00e9", "$"))
PAYLOADS: Strategy = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_KEYS, inner, max_size=2),
    max_leaves=4,
)
_METADATA: Strategy = st.dictionaries(_KEYS, PAYLOADS, max_size=3)
_SEARCHED: Strategy = st.dictionaries(_KEYS, _LEAVES, max_size=1)


def _metadata_with(**values: tuple[Any, ...]) -> Strategy:
    """Metadata in which these keys, that a method compares, have one of these values, or any metadata."""
    compared = st.fixed_dictionaries({key: st.sampled_from(of) for key, of in values.items()})
    return _METADATA | st.tuples(_METADATA, compared).map(lambda parts: {**parts[0], **parts[1]})


_RUN_METADATA = _metadata_with(
    **{
        REGENERATED_RUN: ("r1", "r1", "r2", "unknown", "a\x00", "\ud83d", "", None, 1, ["r1"], {"$ne": None}),
        REPLAY_KIND: (EDIT, EDIT, EDIT, "EDIT", "", None, [EDIT], {"$eq": EDIT}),
    }
)
_THREAD_METADATA = _metadata_with(**{PINNED: (True, True, False, None, 1, 1.0, "true", [True])})
_TASKS = ("task", "a.$b\x00", "")
_EVENT_METADATA = _metadata_with(
    task_id=(*_TASKS, "\ud83d", None, 5, ["task"]),
    caller=(
        "lead_agent",
        "middleware:title",
        "middleware:",
        "middleware",
        "Middleware:x",
        "",
        None,
        5,
        ["x"],
    ),
)


@dataclass(frozen=True, slots=True)
class Argument:
    """The valid values of an argument, and those that the contract refuses."""

    valid: Strategy
    refused: tuple[Any, ...] = ()


def _one_of(*values: Any, refused: tuple[Any, ...] = ()) -> Argument:
    return Argument(st.sampled_from(values), refused)


_RUN_ID, _THREAD_ID = _one_of(*RUNS, refused=_NO_ID), _one_of(*THREADS, refused=_NO_ID)
_USER_ID = _one_of(AUTO, AUTO, None, *USERS, "", refused=_NO_USER)
_OPTIONAL_ID = _one_of(None, "", "lead", "a.$b\x00", refused=_NO_OPTIONAL_ID)
_TEXT = _one_of(None, *_TEXTS, refused=_NO_TEXT)
_COMPLETION_TEXT = _one_of(UNSET, None, *_TEXTS, refused=_NO_TEXT)
_TIME = _one_of(None, None, *_TIMES, refused=_NO_TIME)
_STATUS = _one_of(*_STATUSES, refused=_NO_ID)
_FROM_STATUSES = _one_of(
    None, None, [], ["running"], ("pending", "starting", "running"), ["success", "p.$"], refused=_NO_NAMES
)
_RUN_IDS = _one_of(
    [], ["r1"], RUNS, ["r1", "r2", "r1"], frozenset({"r2", "r.$3"}), ["unknown", "r1"], refused=_NO_IDS
)
_LIMIT = _one_of(0, 1, 2, 3, 100, 2**31, 2**70, refused=_NO_LIMIT)
_SEQ = _one_of(None, None, 0, 1, 2, 3, 4, 6, -1, 2**70, -(2**70), refused=_NO_SEQ)
_COUNT = _one_of(*_COUNTS, refused=_NO_COUNT)
_MODEL = _one_of(*_MODELS, refused=_NO_OPTIONAL_ID)
_PAYLOAD = Argument(st.none() | _METADATA, _NO_METADATA)
_OF_RUN = Argument(_RUN_METADATA | st.none(), _NO_METADATA)
_OF_THREAD = Argument(_THREAD_METADATA | st.none(), _NO_METADATA)
_MERGED = Argument(_THREAD_METADATA, _NO_METADATA)
_RATING = _one_of(1, -1, refused=_NO_RATING)
_ORDER = _one_of("newest_first", "oldest_first", refused=("NEWEST_FIRST", None, 1))
_BY_MODEL = Argument(
    st.none()
    | st.dictionaries(
        st.sampled_from([model for model in _MODELS if model is not None]),
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("input_tokens", "output_tokens", "total_tokens", "llm_calls", "cache_read_tokens"),
                _COUNT.valid,
            ),
        ),
        max_size=2,
    ),
    ([], {"m": 5}, {5: {}}, {"m": {"llm_calls": -1}}, {"m": {"cache_read_tokens": True}}, {"\ud800": {}}),
)
_COUNT_NAMES = (
    "total_input_tokens",
    "total_output_tokens",
    "total_tokens",
    "llm_call_count",
    "lead_agent_tokens",
    "subagent_tokens",
    "middleware_tokens",
    "message_count",
)

_FEEDBACK_ID = Argument(st.integers(0, 3).map(lambda number: FeedbackId(number)), _NO_ID)
_PAGE = {"limit": _LIMIT, "before_seq": _SEQ, "after_seq": _SEQ, "user_id": _USER_ID}
_EVENT = {
    "content": Argument(PAYLOADS, (float("nan"), [float("inf")])),
    "metadata": Argument(st.none() | _EVENT_METADATA, _NO_METADATA),
    "created_at": _TIME,
    "user_id": _one_of(None, None, *USERS, "", refused=_NO_OPTIONAL_ID),
    "event_id": _one_of(None, None, *EVENT_IDS, refused=("", 5, "x" * 1_025)),
}
_EVENT_REQUIRED = {
    "thread_id": _THREAD_ID,
    "run_id": _RUN_ID,
    "event_type": _one_of(*EVENT_TYPES, refused=_NO_ID),
    "category": _one_of("message", "message", "trace", refused=_NO_ID),
}


@dataclass(frozen=True, slots=True)
class FeedbackId:
    """The id of the feedback that was created as the n-th, which differs from storage to storage."""

    number: int


# method -> (required arguments, optional arguments)
_ARGUMENTS: Mapping[str, tuple[Mapping[str, Argument], Mapping[str, Argument]]] = {
    "runs.get": ({"run_id": _RUN_ID}, {"user_id": _USER_ID}),
    "runs.list_by_thread": ({"thread_id": _THREAD_ID}, {"limit": _LIMIT, "user_id": _USER_ID}),
    "runs.list_pending": ({}, {"before": _TIME}),
    "runs.get_many_by_thread": ({"thread_id": _THREAD_ID, "run_ids": _RUN_IDS}, {"user_id": _USER_ID}),
    "runs.list_successful_regenerate_sources": ({"thread_id": _THREAD_ID}, {"user_id": _USER_ID}),
    "runs.list_edit_regenerate_runs": ({"thread_id": _THREAD_ID}, {"user_id": _USER_ID}),
    "runs.token_usage_by_thread": (
        {"thread_id": _THREAD_ID},
        {
            "user_id": _USER_ID,
            "statuses": _one_of(None, [], ["success"], ("error", "running"), refused=_NO_NAMES),
        },
    ),
    "runs.create": (
        {"run_id": _RUN_ID, "thread_id": _THREAD_ID},
        {
            "status": _STATUS,
            "created_at": _TIME,
            "started_at": _TIME,
            "ended_at": _TIME,
            "assistant_id": _OPTIONAL_ID,
            "user_id": _USER_ID,
            "follow_up_to_run_id": _OPTIONAL_ID,
            "metadata": _OF_RUN,
            "kwargs": _PAYLOAD,
            "model_name": _MODEL,
            "multitask_strategy": _one_of("reject", "enqueue", refused=_NO_ID),
            "error": _TEXT,
        },
    ),
    "runs.update_status": (
        {"run_id": _RUN_ID, "status": _STATUS},
        {
            "started_at": _TIME,
            "ended_at": _TIME,
            "metadata": _OF_RUN,
            "error": _TEXT,
            "stop_reason": _TEXT,
            "from_statuses": _FROM_STATUSES,
        },
    ),
    "runs.set_error": ({"run_id": _RUN_ID, "error": _TEXT}, {}),
    "runs.update_run_completion": (
        {"run_id": _RUN_ID, "status": _STATUS},
        {
            **dict.fromkeys(_COUNT_NAMES, _COUNT),
            **dict.fromkeys(("first_human_message", "last_ai_message", "error"), _COMPLETION_TEXT),
            "ended_at": _TIME,
            "token_usage_by_model": _BY_MODEL,
            "from_statuses": _FROM_STATUSES,
        },
    ),
    "runs.update_model_name": ({"run_id": _RUN_ID, "model_name": _MODEL}, {}),
    "runs.record_token_usage": (
        {
            "run_id": _RUN_ID,
            "caller": _one_of("lead_agent", "subagent", "middleware", refused=("agent", None, 5)),
        },
        {"model_name": _MODEL, "input_tokens": _COUNT, "output_tokens": _COUNT, "llm_calls": _COUNT},
    ),
    "runs.delete": ({"run_id": _RUN_ID}, {"user_id": _USER_ID}),
    "feedback.get": ({"feedback_id": _FEEDBACK_ID}, {"user_id": _USER_ID}),
    "feedback.list_by_run": (
        {"thread_id": _THREAD_ID, "run_id": _RUN_ID},
        {"limit": _LIMIT, "user_id": _USER_ID, "order": _ORDER},
    ),
    "feedback.list_by_thread": (
        {"thread_id": _THREAD_ID},
        {"limit": _LIMIT, "user_id": _USER_ID, "order": _ORDER},
    ),
    "feedback.list_by_thread_grouped": ({"thread_id": _THREAD_ID, "user_id": _USER_ID}, {}),
    "feedback.list_by_run_ids": (
        {"thread_id": _THREAD_ID, "run_ids": _RUN_IDS, "user_id": _USER_ID},
        {},
    ),
    "feedback.aggregate_by_run": ({"thread_id": _THREAD_ID, "run_id": _RUN_ID}, {}),
    "feedback.create": (
        {"run_id": _RUN_ID, "thread_id": _THREAD_ID, "rating": _RATING},
        {
            "owner_id": _one_of(None, *USERS, refused=_NO_OPTIONAL_ID),
            "user_id": _USER_ID,
            "message_id": _OPTIONAL_ID,
            "comment": _TEXT,
        },
    ),
    "feedback.upsert": (
        {"run_id": _RUN_ID, "thread_id": _THREAD_ID, "rating": _RATING, "user_id": _USER_ID},
        {"comment": _TEXT},
    ),
    "feedback.delete": ({"feedback_id": _FEEDBACK_ID}, {"user_id": _USER_ID}),
    "feedback.delete_by_run": ({"thread_id": _THREAD_ID, "run_id": _RUN_ID, "user_id": _USER_ID}, {}),
    "threads.get_thread": ({"thread_id": _THREAD_ID}, {"user_id": _USER_ID}),
    "threads.get_thread_meta": ({"thread_id": _THREAD_ID}, {}),
    "threads.search_threads": (
        {},
        {
            "metadata": Argument(st.none() | _SEARCHED, _NO_METADATA),
            "status": _one_of(None, "", "  ", *_STATUSES, refused=_NO_OPTIONAL_ID),
            "user_id": _USER_ID,
            "assistant_id": _OPTIONAL_ID,
            "limit": _LIMIT,
            "offset": _one_of(0, 1, 2, 2**70, refused=_NO_LIMIT),
            "order": _one_of(
                "newest_first", "last_updated_first", "pinned_first", refused=("oldest_first", None)
            ),
        },
    ),
    "threads.create_thread_meta": (
        {"thread_id": _THREAD_ID},
        {
            "assistant_id": _OPTIONAL_ID,
            "user_id": _one_of(None, *USERS, "", refused=_NO_OPTIONAL_ID),
            "display_name": _TEXT,
            "status": _STATUS,
            "metadata": _MERGED,
        },
    ),
    "threads.ensure_thread": (
        {"thread_id": _THREAD_ID},
        {"assistant_id": _OPTIONAL_ID, "metadata": _OF_THREAD, "user_id": _USER_ID},
    ),
    "threads.ensure_thread_running": (
        {"thread_id": _THREAD_ID},
        {"assistant_id": _OPTIONAL_ID, "metadata": _OF_THREAD},
    ),
    "threads.update_thread_meta": (
        {"thread_id": _THREAD_ID},
        {
            "assistant_id": _OPTIONAL_ID,
            "display_name": _TEXT,
            "status": _one_of(None, *_STATUSES, refused=("", 5, {"$ne": None})),
            "metadata": _OF_THREAD,
            "owner_id": _one_of(None, None, *USERS, "", refused=_NO_OPTIONAL_ID),
            "user_id": _USER_ID,
        },
    ),
    "threads.merge_thread_metadata": (
        {"thread_id": _THREAD_ID, "metadata": _MERGED},
        {"user_id": _USER_ID, "touch": _one_of(True, False, refused=(None, 0, 1, "yes"))},
    ),
    "threads.sync_thread_title": ({"thread_id": _THREAD_ID, "title": _TEXT}, {}),
    "threads.sync_thread_assistant_id": ({"thread_id": _THREAD_ID, "assistant_id": _OPTIONAL_ID}, {}),
    "threads.sync_thread_status": (
        {"thread_id": _THREAD_ID, "status": _one_of(*_STATUSES, refused=("", 5, {}))},
        {},
    ),
    "threads.sync_thread_metadata": ({"thread_id": _THREAD_ID, "metadata": _OF_THREAD}, {}),
    "threads.delete_thread": ({"thread_id": _THREAD_ID}, {"user_id": _USER_ID}),
    "run_events.list_messages": ({"thread_id": _THREAD_ID}, _PAGE),
    "run_events.list_events": (
        {"thread_id": _THREAD_ID, "run_id": _RUN_ID},
        {
            "event_types": _one_of(
                None, [], ["said"], ("run.start", "$tool"), ["said", "said"], refused=_NO_EVENT_TYPES
            ),
            "task_id": _one_of(None, *_TASKS, refused=_NO_OPTIONAL_ID),
            "limit": _LIMIT,
            "after_seq": _SEQ,
            "user_id": _USER_ID,
        },
    ),
    "run_events.get_last_visible_ai_seq_by_run": (
        {"thread_id": _THREAD_ID, "run_ids": _RUN_IDS},
        {"user_id": _USER_ID},
    ),
    "run_events.list_messages_by_run": ({"thread_id": _THREAD_ID, "run_id": _RUN_ID}, _PAGE),
    "run_events.count_messages": ({"thread_id": _THREAD_ID}, {"user_id": _USER_ID}),
    "run_events.put": (_EVENT_REQUIRED, _EVENT),
    "run_events.put_if_absent": (_EVENT_REQUIRED, _EVENT),
    "run_events.delete_by_run": ({"thread_id": _THREAD_ID, "run_id": _RUN_ID}, {"user_id": _USER_ID}),
    "run_events.delete_by_thread": ({"thread_id": _THREAD_ID}, {"user_id": _USER_ID}),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is bound during a call; nobody where `is_bound` is false, an anonymous request without an id."""

    user_id: str | None = None
    is_bound: bool = True

    def __repr__(self) -> str:
        return repr(self.user_id) if self.is_bound else "nobody"


NOBODY, WITHOUT_ID = Actor(is_bound=False), Actor()
ACTORS: Strategy = st.sampled_from((NOBODY, WITHOUT_ID, Actor(ALICE), Actor(ALICE), Actor(BOB), Actor(BOB)))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store's method by an actor."""

    method: str
    arguments: Mapping[str, Any]
    actor: Actor

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.method}({given}) by {self.actor!r}"

    async def on(self, storage: Storage) -> Any:
        """The method's result or error in `storage`."""
        method: Callable[..., Awaitable[Any]] = getattr(
            getattr(storage, store_of(self.method)), self.method.partition(".")[2]
        )
        given = dict(self.arguments)
        if self.method == "threads.create_thread_meta":
            given = {"data": ThreadMetaCreate(**given)}
        with acting_as(self.actor.user_id) if self.actor.is_bound else nullcontext():
            return await method(**given)

    def with_arguments(self, **changed: Any) -> Call:
        return replace(self, arguments={**self.arguments, **changed})


# -- strategies ------------------------------------------------------------------------------------


@st.composite
def _arguments(
    draw: st.DrawFn,
    required: Mapping[str, Argument],
    optional: Mapping[str, Argument],
    *,
    with_refused: bool = True,
) -> dict[str, Any]:
    given = {name: argument.valid for name, argument in required.items()}
    chosen = draw(st.fixed_dictionaries(given, optional={name: arg.valid for name, arg in optional.items()}))
    if with_refused and draw(st.integers(0, 9)) == 9:
        every = {**required, **optional}
        name = draw(st.sampled_from([name for name, argument in every.items() if argument.refused]))
        chosen[name] = draw(st.sampled_from(every[name].refused))
    return chosen


@st.composite
def _batches(draw: st.DrawFn, *, with_refused: bool = True) -> dict[str, Any]:
    events: list[Any] = draw(st.lists(_arguments(_EVENT_REQUIRED, _EVENT, with_refused=False), max_size=4))
    if with_refused and draw(st.integers(0, 9)) == 9:
        events.append(draw(st.sampled_from((None, "event", {}, {**_VALID_EVENT, "colour": "red"}))))
    return {"events": events}


_VALID_EVENT = {"thread_id": "t1", "run_id": "r1", "event_type": "said", "category": "message"}


def calls_of(method: str, *, with_refused: bool = True) -> Strategy:
    """Calls of one method by any actor."""
    if method == "regenerations":
        return _REGENERATIONS
    if method == "run_events.put_batch":
        arguments: Strategy = _batches(with_refused=with_refused)
    else:
        arguments = _arguments(*_ARGUMENTS[method], with_refused=with_refused)
    return st.builds(Call, st.just(method), arguments, ACTORS)


_REGENERATIONS: Strategy = st.builds(
    Call,
    st.just("runs.create"),
    st.fixed_dictionaries(
        {
            "run_id": st.sampled_from(RUNS),
            "thread_id": st.sampled_from(THREADS),
            "user_id": st.sampled_from((None, *USERS)),
            "status": st.just("success"),
            "metadata": _RUN_METADATA,
        }
    ),
    st.just(NOBODY),
)
"""Successful runs that most often repeat another one: by chance few have all that the lists look for."""

_CREATING = {
    "runs": ("runs.create", "regenerations"),
    "feedback": ("feedback.create", "feedback.upsert"),
    "threads": ("threads.create_thread_meta",),
    "run_events": ("threads.create_thread_meta", "run_events.put", "run_events.put_batch"),
}


def creations(*stores: str) -> Strategy:
    """Lists of calls that create what the other calls of these stores find."""
    methods = [method for store in stores for method in _CREATING[store]]
    return st.lists(
        st.one_of(*(calls_of(method, with_refused=False) for method in methods)), min_size=4, max_size=12
    )


def calls(*stores: str, with_refused: bool = True) -> Strategy:
    """Calls of every method of these stores."""
    return st.one_of(
        *(
            calls_of(method, with_refused=with_refused)
            for method in METHOD_KINDS
            if store_of(method) in stores
        )
    )
