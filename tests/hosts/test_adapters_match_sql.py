"""Hundreds of random calls to our adapters and to DeerFlow's SQL stores: every answer is the same.

The calls avoid what `host_stores.DIFFERENCES` lists. Times are compared if the call passed them, the ids of
votes by the order of their creation.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, cast
from uuid import UUID

import pytest

from .gateway_process import needs_deerflow
from .host_stores import (
    FEEDBACK,
    OURS,
    RUN_EVENTS,
    RUNS,
    SQL,
    THREADS,
    acting,
    named,
    open_store,
    refusals,
)

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

Call: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]

CALLS = 300
LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)
OUR_KEYS = ("started_at", "ended_at")
RETURN_NOTHING = ("update_status", "update_run_completion")
"""In releases before 2.0.0; later ones return whether the run was changed, as ours do."""
SQL_METADATA = ("content_is_json", "content_is_dict")
CONTENTS = ["", "text", '{"a": 1}', {}, {"type": "ai", "content": [{"t": "ü"}]}, ["x"], 5, True, "é" * 6_000]
VALUES = [0, 1, -1, True, False, None, "1", "true", "", "ü", 2.5, 2**40]


class Caller:
    """Draws calls."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)  # noqa: S311 - not used for a secret
        self._hours = 0

    def one_of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def up_to(self, highest: int) -> int:
        return self.random.randint(0, highest)

    def user(self) -> Any:
        return self.one_of("alice", "bob", "", None, named("deerflow.runtime.user_context:AUTO"))

    def thread(self) -> str:
        return self.one_of("t1", "t2", "t3")

    def run(self) -> str:
        return self.one_of("r1", "r2", "r3", "r4")

    def limit(self) -> int:
        return self.one_of(0, 1, 2, 100)

    def metadata(self) -> dict[str, Any]:
        return {key: self.one_of(*VALUES) for key in self.random.sample(["a", "b-c", "d_e"], self.up_to(3))}

    def time(self) -> str:
        self._hours += 1
        return (LONG_AGO + timedelta(hours=self._hours)).isoformat()


def thread_call(draw: Caller) -> Call:
    method = draw.one_of(
        *("create", "get", "search", "search", "check_access", "delete"),
        *("update_display_name", "update_status", "update_metadata", "update_metadata"),
    )
    thread, user = draw.thread(), {"user_id": draw.user()}
    match method:
        case "create":
            names = {"assistant_id": draw.one_of(None, "a"), "display_name": draw.one_of(None, "n", "")}
            return method, (thread,), {**user, **names, "metadata": draw.one_of(None, draw.metadata())}
        case "search":
            unsafe = draw.one_of({}, {"a.b": 1}, {"list": [1]}, {"large": 2**70})
            wanted = draw.one_of(None, draw.metadata(), {**draw.metadata(), **unsafe})
            page = {"limit": draw.limit(), "offset": draw.one_of(0, 0, 1, 5)}
            status = draw.one_of(None, "", "idle", "busy", " ")
            return method, (), {**user, **page, "metadata": wanted, "status": status}
        case "check_access":
            return (
                method,
                (thread, draw.one_of("alice", "bob")),
                {"require_existing": draw.one_of(True, False)},
            )
        case "update_metadata":
            return method, (thread, draw.metadata()), user
        case "update_display_name" | "update_status":
            return method, (thread, draw.one_of("idle", "busy")), user
        case _:
            return method, (thread,), user


def run_call(draw: Caller) -> Call:
    method = draw.one_of(
        *("put", "put", "get", "list_by_thread", "list_by_thread", "list_pending", "delete"),
        *("update_status", "update_status", "update_model_name", "update_run_completion"),
        *("update_run_completion", "aggregate_tokens_by_thread"),
    )
    run, user = draw.run(), {"user_id": draw.user()}
    ending, model = draw.one_of("success", "error", "interrupted"), draw.one_of(None, "", " m ", "n" * 200)
    match method:
        case "put":
            fields = {"thread_id": draw.thread(), "created_at": draw.time(), "model_name": model}
            fields |= {"status": draw.one_of("pending", "running", ending), "error": draw.one_of(None, "e")}
            payloads = {"metadata": draw.one_of(None, draw.metadata()), "kwargs": {"input": draw.metadata()}}
            return method, (run,), {**user, **fields, **payloads, "assistant_id": draw.one_of(None, "", "a")}
        case "list_by_thread":
            return method, (draw.thread(),), {**user, "limit": draw.limit()}
        case "list_pending":
            return method, (), {"before": draw.one_of(None, draw.time())}
        case "aggregate_tokens_by_thread":
            return method, (draw.thread(),), {}
        case "update_status":
            return method, (run, ending), {"error": draw.one_of(None, "boom", "")}
        case "update_model_name":
            return method, (run, model), {}
        case "update_run_completion":
            counts = {"total_tokens": draw.up_to(9), "subagent_tokens": draw.up_to(9)}
            texts = {
                "last_ai_message": draw.one_of(None, "", "x" * 3_000),
                "error": draw.one_of(None, "late"),
            }
            return method, (run,), {"status": ending, **counts, **texts}
        case _:
            return method, (run,), user


def feedback_call(draw: Caller) -> Call:
    method = draw.one_of(
        *("create", "upsert", "upsert", "upsert", "get", "delete", "delete_by_run"),
        *("list_by_run", "list_by_thread", "list_by_thread_grouped", "aggregate_by_run"),
    )
    run = {"thread_id": draw.thread(), "run_id": draw.run()}
    user, limit = {"user_id": draw.user()}, {"limit": draw.limit()}
    someone = {"user_id": draw.one_of("alice", "bob", "carol", None, "")}
    match method:
        case "create":  # of a run of its own: DeerFlow's SQL has one row per user and run
            of_message = {"run_id": f"r{draw.random.random()}", "message_id": draw.one_of(None, "m")}
            return method, (), {**run, **of_message, **someone, "rating": draw.one_of(1, -1, 0)}
        case "upsert":
            vote = {"rating": draw.one_of(1, -1, 2), "comment": draw.one_of(None, "", "c")}
            return method, (), {**run, **someone, **vote}
        case "get" | "delete":
            return method, (draw.up_to(30),), user
        case "delete_by_run":
            return method, (), {**run, **someone}
        case "list_by_run":
            return method, (run["thread_id"], run["run_id"]), {**user, **limit}
        case "list_by_thread":
            return method, (run["thread_id"],), {**user, **limit}
        case "list_by_thread_grouped":  # for all users SQL returns any one row
            return method, (run["thread_id"],), {"user_id": draw.one_of("alice", "bob", "carol")}
        case _:
            return method, (run["thread_id"], run["run_id"]), {}


def event_call(draw: Caller) -> Call:
    method = draw.one_of(
        *("put", "put_batch", "put_batch", "count_messages"),
        *("list_messages", "list_messages", "list_messages_by_run", "list_events"),
    )
    thread, run, user = draw.thread(), draw.run(), {"user_id": draw.user()}
    page = {**user, "limit": draw.limit()}
    page |= {name: draw.one_of(None, 0, draw.up_to(60)) for name in ("before_seq", "after_seq")}
    match method:
        case "put":
            return method, (), _event(draw, thread)
        case "put_batch":
            batch = [_event(draw, thread) for _ in range(draw.up_to(4))]
            for event in batch:
                event |= draw.one_of({}, {"user_id": draw.one_of("alice", "bob", None)})
                for absent in draw.one_of((), ("category", "content", "metadata")):
                    del event[absent]
            return method, (batch,), {}
        case "count_messages":
            return method, (thread,), user
        case "list_messages":
            return method, (thread,), page
        case "list_messages_by_run":
            return method, (thread, run), page
        case _:
            types = draw.one_of(None, [], ["ai"], ["ai", "human"], ["other"])
            return method, (thread, run), {**user, "limit": draw.limit(), "event_types": types}


def _event(draw: Caller, thread: str) -> dict[str, Any]:
    return {
        "thread_id": thread,
        "run_id": draw.run(),
        "event_type": draw.one_of("human", "ai"),
        "category": draw.one_of("message", "message", "trace", "lifecycle"),
        "content": draw.one_of(*CONTENTS),
        "metadata": draw.one_of(None, draw.metadata()),
        "created_at": draw.one_of(None, "", draw.time()),
    }


# -- comparing -------------------------------------------------------------------------------------


class Side:
    """One of the two stores, with the ids of the votes that it created."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._votes: list[str] = []

    async def answer(self, user: Any, method: str, arguments: tuple[Any, ...], options: Any) -> Any:
        if arguments and isinstance(arguments[0], int):
            arguments = (self._votes[arguments[0]] if arguments[0] < len(self._votes) else "no id",)
        try:
            with acting(user) if user else nullcontext():
                return self._plain(await getattr(self._store, method)(*arguments, **options))
        except refusals():
            return "exists"
        except RuntimeError:
            return "no user is bound"
        except ValueError:
            return "refused"

    def _plain(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._plain(item) for item in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        row = cast("dict[str, Any]", value)
        plain = {
            name: self._plain(item)
            for name, item in row.items()
            if name not in OUR_KEYS and name not in SQL_METADATA
        }
        if "feedback_id" in row:
            if row["feedback_id"] not in self._votes:
                self._votes.append(row["feedback_id"])
            plain["feedback_id"] = self._votes.index(row["feedback_id"])
        if isinstance(row.get("created_at"), str):
            time = datetime.fromisoformat(row["created_at"]).replace(tzinfo=UTC)
            plain["created_at"] = time if time.year == LONG_AGO.year else "now"
            plain.pop("updated_at", None)
        return plain


@pytest.fixture
async def both(
    request: pytest.FixtureRequest, tmp_path: Path, mongodb_url: str, database_name: str
) -> AsyncGenerator[tuple[Side, Side]]:
    async with AsyncExitStack() as stack:

        async def side(backend: str) -> Side:
            opened = open_store(
                request.param, backend, folder=tmp_path, url=mongodb_url, database=database_name
            )
            return Side(await stack.enter_async_context(opened))

        yield await side(OURS), await side(SQL)


@pytest.mark.parametrize(
    ("both", "call"),
    [(THREADS, thread_call), (RUNS, run_call), (FEEDBACK, feedback_call), (RUN_EVENTS, event_call)],
    indirect=["both"],
    ids=[kind.part for kind in (THREADS, RUNS, FEEDBACK, RUN_EVENTS)],
)
@pytest.mark.parametrize("seed", range(2))
async def test_random_calls_get_the_answers_of_the_sql_store(
    both: tuple[Side, Side], call: Callable[[Caller], Call], seed: int
) -> None:
    draw = Caller(f"{call.__name__} {seed}")
    ours, sql = both
    answers: set[str] = set()
    for number in range(CALLS):
        method, arguments, options = call(draw)
        user = draw.one_of("alice", "bob", None, UUID(int=5))
        if method == "aggregate_tokens_by_thread":
            user = None  # with a bound user ours sums that user's runs only
        if call is run_call and method == "put":
            known = await sql.answer(None, "get", arguments, {"user_id": None})
            if known is not None:
                continue  # ours replaces the fields of a known run, so that a repeated call changes nothing
        expected = await sql.answer(user, method, arguments, options)
        answer = await ours.answer(user, method, arguments, options)
        if method in RETURN_NOTHING and expected is None and isinstance(answer, bool):
            answer = None
        assert answer == expected, (number, user, method, arguments, options)
        answers.add(f"{method} {bool(answer)}")
    assert len(answers) > 10
