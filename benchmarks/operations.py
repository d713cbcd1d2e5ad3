"""The measured operations (sections 3 to 6 of the contract) and the arguments of their n-th call.

The arguments depend only on the number of the call and the dataset, so all contenders get the same calls. An
operation that deletes rows lists the rows that its calls need; they are loaded beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from deerflow_mongo.contract.rows import ThreadMetaCreate

from .dataset import EVENTS_PER_RUN, RUNS_PER_THREAD, Dataset, Rows, an_id
from .payloads import Call

Kind: TypeAlias = Literal["read_by_id", "read", "write", "mixed"]
Arguments: TypeAlias = Callable[[Dataset, int], Mapping[str, Any]]

EVENTS_PER_BATCH = 5
PAGE = 50
_NEW_RUNS_PER_THREAD = 10
_NOW = datetime(2026, 6, 1, tzinfo=UTC)
_HOT_RUN = 1  # pending
HOT_THREAD = an_id("hot thread", 0)


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    kind: Kind
    arguments: Arguments
    consumes: Callable[[Dataset, Sequence[int]], Rows] | None = None
    """The rows that the calls with these numbers delete."""
    read_back: Callable[[Mapping[str, Any]], Call] | None = None
    """The read that shows the effect of a call."""
    is_hot: bool = False
    """Whether all calls use one thread or run, to measure contention."""

    @property
    def path(self) -> str:
        """The store and its method."""
        return ".".join(self.name.split(".")[:2])

    @property
    def section(self) -> int:
        """The section of the contract."""
        return {"runs": 3, "feedback": 4, "threads": 5, "run_events": 6}[self.name.partition(".")[0]]


def _run(data: Dataset, run: int) -> dict[str, Any]:
    return {"run_id": an_id("run", run)}


def _owned_run(data: Dataset, run: int) -> dict[str, Any]:
    return {**_run(data, run), "user_id": data.owner_of_run(run)}


def _thread(thread: int) -> dict[str, Any]:
    return {"thread_id": an_id("thread", thread)}


def _owned_thread(data: Dataset, thread: int) -> dict[str, Any]:
    return {**_thread(thread), "user_id": data.owner_of_thread(thread)}


def _of_run(run: int) -> dict[str, Any]:
    return {"thread_id": an_id("thread", run // RUNS_PER_THREAD), "run_id": an_id("run", run)}


def _run_with_events(data: Dataset, call: int) -> int:
    """A run that has events."""
    return data.any_thread_with_events(call) * RUNS_PER_THREAD + call % RUNS_PER_THREAD


def _first_run(data: Dataset, call: int) -> int:
    """A run with many votes."""
    return data.any_thread(call) * RUNS_PER_THREAD


def _new_run(data: Dataset, call: int) -> dict[str, Any]:
    return {
        "run_id": an_id("new run", call),
        "thread_id": an_id("new thread", call // _NEW_RUNS_PER_THREAD),
        "user_id": an_id("new user", call // _NEW_RUNS_PER_THREAD),
        "assistant_id": "lead_agent",
        "metadata": data.metadata(call),
        "kwargs": data.kwargs(call),
    }


def _batch(data: Dataset, call: int, thread_id: str) -> dict[str, Any]:
    first = call * EVENTS_PER_BATCH
    run_id = an_id("writing run", call // _NEW_RUNS_PER_THREAD)
    return {"events": [data.event(first + place, thread_id, run_id) for place in range(EVENTS_PER_BATCH)]}


def _writing_thread(call: int) -> str:
    """Batches are spread over a few hundred threads, as on busy hosts."""
    return an_id("writing thread", call % 199)


# -- rows that calls delete ------------------------------------------------------------------------


_SPARE_USER = an_id("spare user", 0)


def _spare_run(name: str, call: int, runs_per_thread: int = RUNS_PER_THREAD) -> dict[str, str]:
    """A run that only this operation uses."""
    thread = call // runs_per_thread
    return {"run_id": an_id(f"run for {name}", call), "thread_id": an_id(f"thread for {name}", thread)}


def _spare_runs(data: Dataset, calls: Sequence[int]) -> Rows:
    rows = Rows()
    for call in calls:
        rows.runs.append(data.run_row(call, **_spare_run("runs.delete", call), owner=_SPARE_USER))
    return rows


def _spare_votes(name: str) -> Callable[[Dataset, Sequence[int]], Rows]:
    def votes(data: Dataset, calls: Sequence[int]) -> Rows:
        rows = Rows()
        for call in calls:
            vote = data.vote_row(call, **_spare_run(name, call), voter=_SPARE_USER)
            rows.feedback.append({**vote, "feedback_id": an_id(f"vote for {name}", call)})
        return rows

    return votes


def _spare_threads(data: Dataset, calls: Sequence[int]) -> Rows:
    return Rows([data.thread_row(call, an_id("spare thread", call), _SPARE_USER) for call in calls])


def _spare_events(
    name: str, runs_per_thread: int = RUNS_PER_THREAD
) -> Callable[[Dataset, Sequence[int]], Rows]:
    def events(data: Dataset, calls: Sequence[int]) -> Rows:
        rows = Rows()
        for call in calls:
            names = _spare_run(name, call, runs_per_thread)
            begin = call % runs_per_thread * EVENTS_PER_RUN
            for seq in range(begin + 1, begin + EVENTS_PER_RUN + 1):
                rows.run_events.append(data.event_row(call * EVENTS_PER_RUN + seq, seq, **names))
        return rows

    return events


# -- reads after a call ----------------------------------------------------------------------------


def _read_run(arguments: Mapping[str, Any]) -> Call:
    return Call("runs.get", {"run_id": arguments["run_id"], "user_id": None})


def _read_thread(arguments: Mapping[str, Any]) -> Call:
    thread_id = arguments["data"].thread_id if "data" in arguments else arguments["thread_id"]
    return Call("threads.get_thread_meta", {"thread_id": thread_id})


def _read_votes(arguments: Mapping[str, Any]) -> Call:
    names = {name: arguments[name] for name in ("thread_id", "run_id")}
    return Call("feedback.list_by_run", {**names, "limit": 100, "user_id": None})


def _read_events(arguments: Mapping[str, Any]) -> Call:
    event = arguments["events"][0] if "events" in arguments else arguments
    names = {"thread_id": event["thread_id"], "run_id": event["run_id"]}
    return Call("run_events.list_events", {**names, "limit": 500})


_RUNS: tuple[Operation, ...] = (
    Operation("runs.get", "read_by_id", lambda data, n: _owned_run(data, data.any_run(n))),
    Operation(
        "runs.list_by_thread",
        "read",
        lambda data, n: {**_owned_thread(data, data.any_thread(n)), "limit": 20},
    ),
    Operation("runs.token_usage_by_thread", "read", lambda data, n: _owned_thread(data, data.any_thread(n))),
    Operation("runs.create", "write", _new_run, read_back=_read_run),
    Operation(
        "runs.update_status",
        "write",
        lambda data, n: {**_run(data, data.pending_run(n)), "status": "running", "started_at": _NOW},
        read_back=_read_run,
    ),
    Operation(
        "runs.set_error",
        "write",
        lambda data, n: {**_run(data, data.finished_run(n)), "error": "TimeoutError: the model is busy"},
        read_back=_read_run,
    ),
    Operation(
        "runs.update_run_completion",
        "write",
        lambda data, n: {**_run(data, data.finished_run(n)), **data.completion(n)},
        read_back=_read_run,
    ),
    Operation(
        "runs.record_token_usage",
        "write",
        lambda data, n: {
            **_run(data, data.any_run(n)),
            "caller": "lead_agent",
            "model_name": "gpt-4.1",
            "input_tokens": 1_000 + n % 7,
            "output_tokens": 100,
        },
        read_back=_read_run,
    ),
    Operation(
        "runs.delete",
        "write",
        lambda data, n: {"run_id": _spare_run("runs.delete", n)["run_id"], "user_id": _SPARE_USER},
        consumes=_spare_runs,
        read_back=_read_run,
    ),
)

_FEEDBACK: tuple[Operation, ...] = (
    Operation(
        "feedback.get", "read_by_id", lambda data, n: {"feedback_id": an_id("feedback", data.any_run(n) * 11)}
    ),
    Operation(
        "feedback.list_by_run",
        "read",
        lambda data, n: {**_of_run(_first_run(data, n)), "limit": 100, "user_id": None},
    ),
    Operation(
        "feedback.list_by_thread", "read", lambda data, n: {**_thread(data.any_thread(n)), "limit": 100}
    ),
    Operation(
        "feedback.list_by_thread_grouped",
        "read",
        lambda data, n: _owned_thread(data, data.any_thread(n)),
    ),
    Operation("feedback.aggregate_by_run", "read", lambda data, n: _of_run(_first_run(data, n))),
    Operation(
        "feedback.create",
        "write",
        lambda data, n: {
            **_of_run(data.any_run(n)),
            "rating": 1,
            "user_id": an_id("reader", n),
            "message_id": an_id("message", n),
            "comment": "Just what I was looking for.",
        },
        read_back=_read_votes,
    ),
    Operation(
        "feedback.upsert",
        "write",
        lambda data, n: {
            **_of_run(data.any_run(n)),
            "rating": 1 if n % 2 else -1,
            "user_id": data.owner_of_run(data.any_run(n)),
            "comment": None,
        },
        read_back=_read_votes,
    ),
    Operation(
        "feedback.upsert.first",
        "write",
        lambda data, n: {
            **_of_run(data.any_run(n)),
            "rating": 1,
            "user_id": an_id("new voter", n),
            "comment": None,
        },
        read_back=_read_votes,
    ),
    Operation(
        "feedback.delete",
        "write",
        lambda data, n: {"feedback_id": an_id("vote for feedback.delete", n)},
        consumes=_spare_votes("feedback.delete"),
        read_back=lambda arguments: Call("feedback.get", arguments),
    ),
    Operation(
        "feedback.delete_by_run",
        "write",
        lambda data, n: {**_spare_run("feedback.delete_by_run", n), "user_id": _SPARE_USER},
        consumes=_spare_votes("feedback.delete_by_run"),
        read_back=_read_votes,
    ),
)

_THREADS: tuple[Operation, ...] = (
    Operation("threads.get_thread", "read_by_id", lambda data, n: _owned_thread(data, data.any_thread(n))),
    Operation("threads.get_thread_meta", "read_by_id", lambda data, n: _thread(data.any_thread(n))),
    Operation(
        "threads.search_threads",
        "read",
        lambda data, n: {"user_id": data.owner_of_thread(data.any_thread(n)), "limit": 20},
    ),
    Operation(
        "threads.search_threads.by_status",
        "read",
        lambda data, n: {
            "user_id": data.owner_of_thread(data.any_thread(n)),
            "status": "busy",
            "limit": 20,
        },
    ),
    Operation(
        "threads.search_threads.by_metadata",
        "read",
        lambda data, n: {
            "user_id": data.owner_of_thread(data.any_thread(n)),
            "metadata": {"project": data.thread_metadata(data.any_thread(n))["project"]},
            "limit": 20,
        },
    ),
    Operation(
        "threads.create_thread_meta",
        "write",
        lambda data, n: {
            "data": ThreadMetaCreate(
                thread_id=an_id("new thread", n),
                assistant_id="lead_agent",
                user_id=an_id("new user", n % 97),
                metadata=data.thread_metadata(n),
            )
        },
        read_back=_read_thread,
    ),
    Operation(
        "threads.ensure_thread",
        "write",
        lambda data, n: {
            "thread_id": an_id("ensured thread", n),
            "assistant_id": "lead_agent",
            "metadata": data.thread_metadata(n),
            "user_id": an_id("new user", n % 97),
        },
        read_back=_read_thread,
    ),
    Operation(
        "threads.ensure_thread.existing",
        "write",
        lambda data, n: {
            **_owned_thread(data, data.any_thread(n)),
            "assistant_id": "lead_agent",
            "metadata": None,
        },
        read_back=_read_thread,
    ),
    Operation(
        "threads.ensure_thread_running",
        "write",
        lambda data, n: _thread(data.any_thread(n)),
        read_back=_read_thread,
    ),
    Operation(
        "threads.update_thread_meta",
        "write",
        lambda data, n: {**_thread(data.any_thread(n)), "metadata": {**data.thread_metadata(n), "n": str(n)}},
        read_back=_read_thread,
    ),
    Operation(
        "threads.sync_thread_status",
        "write",
        lambda data, n: {**_thread(data.any_thread(n)), "status": "busy" if n % 2 else "idle"},
        read_back=_read_thread,
    ),
    Operation(
        "threads.delete_thread",
        "write",
        lambda data, n: {"thread_id": an_id("spare thread", n)},
        consumes=_spare_threads,
        read_back=_read_thread,
    ),
)

_RUN_EVENTS: tuple[Operation, ...] = (
    Operation(
        "run_events.list_messages",
        "read",
        lambda data, n: {**_thread(data.any_thread_with_events(n)), "limit": PAGE},
    ),
    Operation(
        "run_events.list_events",
        "read",
        lambda data, n: {**_of_run(_run_with_events(data, n)), "limit": 500},
    ),
    Operation(
        "run_events.list_messages_by_run",
        "read",
        lambda data, n: {**_of_run(_run_with_events(data, n)), "limit": PAGE},
    ),
    Operation("run_events.count_messages", "read", lambda data, n: _thread(data.any_thread_with_events(n))),
    Operation(
        "run_events.put",
        "write",
        lambda data, n: data.event(n, _writing_thread(n), an_id("run for put", n)),
        read_back=_read_events,
    ),
    Operation(
        "run_events.put_batch",
        "write",
        lambda data, n: _batch(data, n, _writing_thread(n)),
        read_back=_read_events,
    ),
    Operation(
        "run_events.put_if_absent",
        "write",
        lambda data, n: data.event(n, _writing_thread(n), an_id("run for put_if_absent", n)),
        read_back=_read_events,
    ),
    Operation(
        "run_events.delete_by_run",
        "write",
        lambda data, n: _spare_run("run_events.delete_by_run", n),
        consumes=_spare_events("run_events.delete_by_run"),
        read_back=_read_events,
    ),
    Operation(
        "run_events.delete_by_thread",
        "write",
        lambda data, n: {"thread_id": _spare_run("run_events.delete_by_thread", n, 1)["thread_id"]},
        consumes=_spare_events("run_events.delete_by_thread", runs_per_thread=1),
        read_back=lambda arguments: Call("run_events.count_messages", arguments),
    ),
)

_HOT: tuple[Operation, ...] = (
    Operation(
        "run_events.put_batch.hot_thread",
        "write",
        lambda data, n: _batch(data, n, HOT_THREAD),
        is_hot=True,
    ),
    Operation(
        "runs.record_token_usage.hot_run",
        "write",
        lambda data, n: {
            **_run(data, _HOT_RUN),
            "caller": "lead_agent",
            "model_name": "gpt-4.1",
            "input_tokens": 1_000,
            "output_tokens": 100,
        },
        read_back=_read_run,
        is_hot=True,
    ),
    Operation(
        "runs.update_status.hot_run",
        "write",
        lambda data, n: {**_run(data, _HOT_RUN), "status": "running"},
        read_back=_read_run,
        is_hot=True,
    ),
    Operation(
        "feedback.upsert.hot_run",
        "write",
        lambda data, n: {
            **_of_run(_HOT_RUN),
            "rating": 1 if n % 2 else -1,
            "user_id": an_id("voter", n % 50),
            "comment": None,
        },
        is_hot=True,
    ),
)

OPERATIONS: Mapping[str, Operation] = {
    operation.name: operation for operation in (*_RUNS, *_FEEDBACK, *_THREADS, *_RUN_EVENTS, *_HOT)
}
"""Name -> operation. A name is `store.method`, with a third part if a method is measured in several ways."""
