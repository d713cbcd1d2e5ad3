"""The measured operations: for each, the arguments of its n-th call, and the rows that its calls delete.

Which methods there are, and which of them read or write, is in `deerflow_mongo.contract.methods`. Arguments
depend only on the number of the call and the dataset, so all contenders get the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from deerflow_mongo.contract.methods import METHOD_KINDS, Kind, section_of, store_of
from deerflow_mongo.contract.rows import ThreadMetaCreate

from .dataset import EVENTS_PER_RUN, RUNS_PER_THREAD, Call, Dataset, Rows, an_id

Arguments: TypeAlias = Mapping[str, Any]
Consumes: TypeAlias = Callable[[Dataset, Iterable[int]], Rows]
"""Returns the rows that the calls with these numbers delete."""

EVENTS_PER_BATCH = 5
PAGE = 50
HOT_THREAD = an_id("hot thread", 0)
_HOT_RUN = 1  # pending
_NEW_RUNS_PER_THREAD = 10
_NOW = datetime(2026, 6, 1, tzinfo=UTC)
_SPARE_USER = an_id("spare user", 0)

HEADLINES: Mapping[str, str] = {
    "runs.get": "read a run by id",
    "runs.list_by_thread": "list the runs of a thread",
    "runs.create": "start a run",
    "runs.update_run_completion": "complete a run",
    "feedback.upsert": "vote",
    "run_events.put_batch": "append a batch of events",
    "run_events.list_messages": "read a page of messages",
}
"""The operations of a quick run and of the summary, with what they do."""

NOT_MEASURED: Mapping[str, str] = {
    "runs.update_model_name": "the same command as runs.set_error",
    "runs.list_pending": "called once, when a host starts",
    "runs.get_many_by_thread": "the same command as runs.list_by_thread, for some ids",
    "runs.list_successful_regenerate_sources": "as runs.list_by_thread, for the few runs that repeat another",
    "runs.list_edit_regenerate_runs": "as runs.list_by_thread, for the few runs that repeat another",
    "feedback.list_by_run_ids": "the same command as feedback.list_by_thread_grouped, for some runs",
    "run_events.get_last_visible_ai_seq_by_run": "no adapter of DeerFlow's app layer has it",
    "threads.merge_thread_metadata": "no adapter of DeerFlow's app layer has it",
    "threads.sync_thread_title": "the same command as threads.sync_thread_status",
    "threads.sync_thread_assistant_id": "the same command as threads.sync_thread_status",
    "threads.sync_thread_metadata": "the same command as threads.update_thread_meta",
}
"""Method -> the reason why it is not measured."""


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    """`store.method`, with a third part if a method is measured in several ways."""
    arguments: Callable[[Dataset, int], Arguments]

    @property
    def path(self) -> str:
        return ".".join(self.name.split(".")[:2])

    @property
    def kind(self) -> Kind:
        return METHOD_KINDS[self.path]

    @property
    def section(self) -> int:
        return section_of(self.path)

    @property
    def is_hot(self) -> bool:
        """Whether all calls use one thread or run, to measure contention."""
        return ".hot_" in self.name

    @property
    def consumes(self) -> Consumes | None:
        """The rows that the calls with these numbers delete; they are loaded beforehand."""
        return _CONSUMED.get(self.name)

    def read_back(self, arguments: Arguments) -> Call | None:
        """The read that shows the effect of a write."""
        store = store_of(self.path)
        if self.kind != "write":
            return None
        if store == "runs":
            return Call("runs.get", {"run_id": arguments["run_id"], "user_id": None})
        if store == "threads":
            thread_id = arguments["data"].thread_id if "data" in arguments else arguments["thread_id"]
            return Call("threads.get_thread_meta", {"thread_id": thread_id})
        if "feedback_id" in arguments:
            return Call("feedback.get", arguments)
        first = arguments["events"][0] if "events" in arguments else arguments
        if "run_id" not in first:
            return Call("run_events.count_messages", arguments)
        of_run = {name: first[name] for name in ("thread_id", "run_id")}
        if store == "feedback":
            return Call("feedback.list_by_run", {**of_run, "limit": 100, "user_id": None})
        return Call("run_events.list_events", {**of_run, "limit": 500})


# -- arguments -------------------------------------------------------------------------------------


def _run(run: int) -> dict[str, Any]:
    return {"run_id": an_id("run", run)}


def _thread(thread: int) -> dict[str, Any]:
    return {"thread_id": an_id("thread", thread)}


def _owned_run(data: Dataset, n: int) -> Arguments:
    run = data.any_run(n)
    return {**_run(run), "user_id": data.owner_of_run(run)}


def _owned_thread(data: Dataset, n: int, **more: Any) -> Arguments:
    thread = data.any_thread(n)
    return {**_thread(thread), "user_id": data.owner_of_thread(thread), **more}


def _of_run(run: int, **more: Any) -> Arguments:
    return {**_thread(run // RUNS_PER_THREAD), **_run(run), **more}


def _of_first_run(data: Dataset, n: int, **more: Any) -> Arguments:
    """A run with many votes."""
    return _of_run(data.any_thread(n) * RUNS_PER_THREAD, **more)


def _of_run_with_events(data: Dataset, n: int, **more: Any) -> Arguments:
    return _of_run(data.any_thread_with_events(n) * RUNS_PER_THREAD + n % RUNS_PER_THREAD, **more)


def _thread_with_events(data: Dataset, n: int, **more: Any) -> Arguments:
    return {**_thread(data.any_thread_with_events(n)), **more}


def _new_run(data: Dataset, n: int) -> Arguments:
    thread = n // _NEW_RUNS_PER_THREAD
    return data.new_run(n, an_id("new run", n), an_id("new thread", thread), an_id("new user", thread))


def _usage(run: int, n: int) -> Arguments:
    tokens = {"input_tokens": 1_000 + n % 7, "output_tokens": 100}
    return {**_run(run), "caller": "lead_agent", "model_name": "gpt-4.1", **tokens}


def _vote(run: int, n: int, user_id: str) -> Arguments:
    return _of_run(run, rating=1 if n % 2 else -1, user_id=user_id, comment=None)


def _new_feedback(data: Dataset, n: int) -> Arguments:
    message: dict[str, Any] = {"message_id": an_id("message", n), "comment": "Just what I was looking for."}
    return _of_run(data.any_run(n), rating=1, user_id=an_id("reader", n), **message)


def _search(data: Dataset, n: int, **filters: Any) -> Arguments:
    return {"user_id": data.owner_of_thread(data.any_thread(n)), **filters, "limit": 20}


def _new_thread(kind: str, data: Dataset, n: int) -> dict[str, Any]:
    return {
        "thread_id": an_id(kind, n),
        "assistant_id": "lead_agent",
        "user_id": an_id("new user", n % 97),
        "metadata": data.thread_metadata(n),
    }


def _event(name: str, data: Dataset, n: int) -> Arguments:
    return data.event(n, _writing_thread(n), an_id(f"run for {name}", n))


def _batch(data: Dataset, n: int, thread_id: str) -> Arguments:
    run_id = an_id("writing run", n // _NEW_RUNS_PER_THREAD)
    numbers = range(n * EVENTS_PER_BATCH, (n + 1) * EVENTS_PER_BATCH)
    return {"events": [data.event(number, thread_id, run_id) for number in numbers]}


def _writing_thread(n: int) -> str:
    """Events are spread over a few hundred threads, as on busy hosts."""
    return an_id("writing thread", n % 199)


# -- rows that calls delete ------------------------------------------------------------------------


def _spare_run(name: str, n: int, runs_per_thread: int = RUNS_PER_THREAD) -> dict[str, str]:
    """A run that only this operation uses."""
    thread = n // runs_per_thread
    return {"thread_id": an_id(f"thread for {name}", thread), "run_id": an_id(f"run for {name}", n)}


def _spare_runs(data: Dataset, calls: Iterable[int]) -> Rows:
    return Rows(runs=[data.run_row(n, **_spare_run("runs.delete", n), owner=_SPARE_USER) for n in calls])


def _spare_threads(data: Dataset, calls: Iterable[int]) -> Rows:
    return Rows(threads=[data.thread_row(n, an_id("spare thread", n), _SPARE_USER) for n in calls])


def _spare_votes(name: str) -> Consumes:
    def vote(data: Dataset, n: int) -> dict[str, Any]:
        row = data.vote_row(n, **_spare_run(name, n), voter=_SPARE_USER)
        return {**row, "feedback_id": an_id(f"vote for {name}", n)}

    return lambda data, calls: Rows(feedback=[vote(data, n) for n in calls])


def _spare_events(name: str, runs_per_thread: int) -> Consumes:
    def of_run(data: Dataset, n: int) -> Iterable[dict[str, Any]]:
        begin = n % runs_per_thread * EVENTS_PER_RUN
        for seq in range(begin + 1, begin + EVENTS_PER_RUN + 1):
            yield data.event_row(n * EVENTS_PER_RUN + seq, seq, **_spare_run(name, n, runs_per_thread))

    return lambda data, calls: Rows(run_events=[event for n in calls for event in of_run(data, n)])


_CONSUMED: Mapping[str, Consumes] = {
    "runs.delete": _spare_runs,
    "feedback.delete": _spare_votes("feedback.delete"),
    "feedback.delete_by_run": _spare_votes("feedback.delete_by_run"),
    "threads.delete_thread": _spare_threads,
    "run_events.delete_by_run": _spare_events("run_events.delete_by_run", RUNS_PER_THREAD),
    "run_events.delete_by_thread": _spare_events("run_events.delete_by_thread", 1),
}


# -- the operations, in the order of the contract ----------------------------------------------------

_ARGUMENTS: Mapping[str, Callable[[Dataset, int], Arguments]] = {
    "runs.get": _owned_run,
    "runs.list_by_thread": lambda data, n: _owned_thread(data, n, limit=20),
    "runs.token_usage_by_thread": _owned_thread,
    "runs.create": _new_run,
    "runs.update_status": lambda data, n: {
        **_run(data.pending_run(n)),
        "status": "running",
        "started_at": _NOW,
    },
    "runs.set_error": lambda data, n: {**_run(data.ended_run(n)), "error": "TimeoutError: the model is busy"},
    "runs.update_run_completion": lambda data, n: {**_run(data.ended_run(n)), **data.completion(n)},
    "runs.record_token_usage": lambda data, n: _usage(data.any_run(n), n),
    "runs.delete": lambda _, n: {"run_id": _spare_run("runs.delete", n)["run_id"], "user_id": _SPARE_USER},
    "feedback.get": lambda data, n: {"feedback_id": data.owners_vote(data.any_run(n))},
    "feedback.list_by_run": lambda data, n: _of_first_run(data, n, limit=100, user_id=None),
    "feedback.list_by_thread": lambda data, n: {**_thread(data.any_thread(n)), "limit": 100},
    "feedback.list_by_thread_grouped": _owned_thread,
    "feedback.aggregate_by_run": _of_first_run,
    "feedback.create": _new_feedback,
    "feedback.upsert": lambda data, n: _vote(data.any_run(n), n, data.owner_of_run(data.any_run(n))),
    "feedback.upsert.first": lambda data, n: _vote(data.any_run(n), n, an_id("new voter", n)),
    "feedback.delete": lambda _, n: {"feedback_id": an_id("vote for feedback.delete", n)},
    "feedback.delete_by_run": lambda _, n: {
        **_spare_run("feedback.delete_by_run", n),
        "user_id": _SPARE_USER,
    },
    "threads.get_thread": _owned_thread,
    "threads.get_thread_meta": lambda data, n: _thread(data.any_thread(n)),
    "threads.search_threads": _search,
    "threads.search_threads.by_status": lambda data, n: _search(data, n, status="busy"),
    "threads.search_threads.by_metadata": lambda data, n: _search(
        data, n, metadata={"project": data.thread_metadata(data.any_thread(n))["project"]}
    ),
    "threads.create_thread_meta": lambda data, n: {
        "data": ThreadMetaCreate(**_new_thread("new thread", data, n))
    },
    "threads.ensure_thread": lambda data, n: _new_thread("ensured thread", data, n),
    "threads.ensure_thread.existing": lambda data, n: _owned_thread(
        data, n, assistant_id="lead_agent", metadata=None
    ),
    "threads.ensure_thread_running": lambda data, n: _thread(data.any_thread(n)),
    "threads.update_thread_meta": lambda data, n: {
        **_thread(data.any_thread(n)),
        "metadata": {**data.thread_metadata(n), "n": str(n)},
    },
    "threads.sync_thread_status": lambda data, n: {
        **_thread(data.any_thread(n)),
        "status": "busy" if n % 2 else "idle",
    },
    "threads.delete_thread": lambda _, n: {"thread_id": an_id("spare thread", n)},
    "run_events.list_messages": lambda data, n: _thread_with_events(data, n, limit=PAGE),
    "run_events.list_events": lambda data, n: _of_run_with_events(data, n, limit=500),
    "run_events.list_messages_by_run": lambda data, n: _of_run_with_events(data, n, limit=PAGE),
    "run_events.count_messages": _thread_with_events,
    "run_events.put": lambda data, n: _event("put", data, n),
    "run_events.put_batch": lambda data, n: _batch(data, n, _writing_thread(n)),
    "run_events.put_if_absent": lambda data, n: _event("put_if_absent", data, n),
    "run_events.delete_by_run": lambda _, n: _spare_run("run_events.delete_by_run", n),
    "run_events.delete_by_thread": lambda _, n: {
        "thread_id": _spare_run("run_events.delete_by_thread", n, 1)["thread_id"]
    },
    "run_events.put_batch.hot_thread": lambda data, n: _batch(data, n, HOT_THREAD),
    "runs.record_token_usage.hot_run": lambda _, n: _usage(_HOT_RUN, n),
    "runs.update_status.hot_run": lambda _, n: {**_run(_HOT_RUN), "status": "running"},
    "feedback.upsert.hot_run": lambda _, n: _vote(_HOT_RUN, n, an_id("voter", n % 50)),
}

OPERATIONS: Mapping[str, Operation] = {
    name: Operation(name, arguments) for name, arguments in _ARGUMENTS.items()
}
