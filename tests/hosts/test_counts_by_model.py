"""Counts by model and the model's name of a run, through DeerFlow's own journal and LangChain's messages.

`Host` does what DeerFlow's worker does: it stores the run, lets the journal send its events, and ends the run
with the journal's completion.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from deerflow_mongo import StorageUnavailableError

from .gateway_process import needs_deerflow
from .host_stores import OURS, RUN_EVENTS, RUNS, SQL, named, open_storage, open_store

pytestmark = [needs_deerflow, pytest.mark.usefixtures("emptied_database")]

THREAD, RUN = "thread", "run"
SMALL, LARGE, UNKNOWN = "gpt-4.1-mini-2025-04-14", "gpt-4.1-2025-04-14", "unknown"


class Spy:
    """A store that counts the calls of its methods, and can fail before or after one."""

    def __init__(self, store: Any) -> None:
        self.calls = Counter[str]()
        self.failures: list[str] = []
        """"before" or "after", for each of the next calls."""
        self._store = store

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            failure = self.failures.pop(0) if self.failures else None
            if failure == "before":
                raise StorageUnavailableError("no server")
            answer = await getattr(self._store, name)(*arguments, **options)
            if failure == "after":
                raise StorageUnavailableError("no answer")
            return answer

        return call


class Host:
    """DeerFlow's worker, with the adapters as the gateway builds them."""

    def __init__(self, storage: Any) -> None:
        module: Any = importlib.import_module("deerflow_mongo.hosts.adapters.counts_by_model")
        self.counts = module.CountsByModel()
        self.stored_runs, self.stored_events = Spy(storage.runs), Spy(storage.run_events)
        self.runs = named(RUNS.ours)(self.stored_runs, self.counts)
        self.events = named(RUN_EVENTS.ours)(self.stored_events, self.counts)
        self.token_usage: Any = storage.runs.token_usage_by_thread

    async def start(self, run_id: str = RUN, model_name: str | None = "gpt", **journal: Any) -> Any:
        """Store a run; its journal."""
        await self.runs.put(run_id, thread_id=THREAD, user_id=None, model_name=model_name)
        return named("deerflow.runtime.journal:RunJournal")(run_id, THREAD, self.events, **journal)

    async def end(self, journal: Any, **completion: Any) -> dict[str, Any]:
        """Send the events that are left, and end the run; its counts by model."""
        await journal.flush()
        return await self.complete(journal, **completion)

    async def complete(self, journal: Any, **completion: Any) -> dict[str, Any]:
        data = {**journal.get_completion_data(), **completion}
        await self.runs.update_run_completion(journal.run_id, status="success", **data)
        return await self.by_model(journal)

    async def by_model(self, journal: Any) -> dict[str, Any]:
        """The counts by model as they are stored, which must add up to the run's total."""
        usage = await self.token_usage(THREAD, user_id=None)
        total = journal.get_completion_data()["total_tokens"]
        assert sum(counts["tokens"] for counts in usage["by_model"].values()) == usage["total_tokens"]
        assert usage["total_tokens"] == total
        return usage["by_model"]

    async def model_name(self) -> str | None:
        return (await self.runs.get(RUN, user_id=None))["model_name"]


@pytest.fixture
async def host(mongodb_url: str, database_name: str) -> AsyncGenerator[Host]:
    async with open_storage(mongodb_url, database_name) as storage:
        yield Host(storage)


def answer(
    journal: Any,
    model: str | None,
    tokens: int,
    *,
    tag: str | None = None,
    call: UUID | None = None,
    **message: Any,
) -> None:
    """One LLM response, as LangChain reports it: `tokens` for reading and one for writing."""
    usage = {"input_tokens": tokens, "output_tokens": 1, "total_tokens": tokens + 1}
    call = call or uuid4()
    fields = {
        "content": "hello",
        "id": f"lc_run--{call}-0",
        "usage_metadata": usage,
        "response_metadata": {"finish_reason": "stop"} | ({} if model is None else {"model_name": model}),
        **message,
    }
    generation = named("langchain_core.outputs:ChatGeneration")(
        message=named("langchain_core.messages:AIMessage")(**fields)
    )
    result = named("langchain_core.outputs:LLMResult")(generations=[[generation]])
    journal.on_llm_end(result, run_id=call, tags=None if tag is None else [tag])


def begin(journal: Any, model_name: str) -> None:
    """The start of the agent's graph, whose metadata has DeerFlow's name of the model."""
    journal.on_chain_start({}, {}, run_id=uuid4(), metadata={"model_name": model_name})


def counts(runs: int, spent: int, calls: int) -> dict[str, int]:
    """A model's counts after `calls` responses of `answer` that read `spent` tokens."""
    return {
        "runs": runs,
        "tokens": spent + calls,
        "input_tokens": spent,
        "output_tokens": calls,
        "llm_calls": calls,
    }


# -- counts by model -------------------------------------------------------------------------------


async def test_each_model_of_a_run_has_its_counts_whoever_called_it(host: Host) -> None:
    journal = await host.start()
    answer(journal, LARGE, 100)
    answer(journal, LARGE, 50)
    answer(journal, SMALL, 7, tag="middleware:title")
    answer(journal, SMALL, 3, tag="subagent:bash")
    assert await host.end(journal) == {LARGE: counts(1, 150, 2), SMALL: counts(1, 10, 2)}
    usage = await host.runs.aggregate_tokens_by_thread(THREAD)
    assert usage["by_caller"] == {"lead_agent": 152, "subagent": 4, "middleware": 8}
    assert usage["by_model"] == {LARGE: {"tokens": 152, "runs": 1}, SMALL: {"tokens": 12, "runs": 1}}


async def test_two_runs_of_a_thread_do_not_mix(host: Host) -> None:
    one, two = await host.start("one"), await host.start("two")
    for journal, model in ((one, LARGE), (two, SMALL), (one, SMALL)):
        answer(journal, model, 10)
        await journal.flush()
    await host.runs.update_run_completion("one", status="success", **one.get_completion_data())
    await host.runs.update_run_completion("two", status="success", **two.get_completion_data())
    usage = await host.token_usage(THREAD, user_id=None)
    assert usage["by_model"] == {LARGE: counts(1, 10, 1), SMALL: counts(2, 20, 2)}


async def test_streamed_chunks_give_one_count(host: Host) -> None:
    chunk_class = named("langchain_core.messages:AIMessageChunk")
    usage = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
    chunks = [chunk_class(content="hel", id="run-1"), chunk_class(content="lo", id="run-1")]
    last = chunk_class(content="", id="run-1", usage_metadata=usage, response_metadata={"model_name": LARGE})
    journal, whole = await host.start(), chunks[0] + chunks[1] + last
    generation = named("langchain_core.outputs:ChatGenerationChunk")(message=whole)
    result = named("langchain_core.outputs:LLMResult")(generations=[[generation]])
    journal.on_llm_end(result, run_id=uuid4())
    assert await host.end(journal) == {LARGE: counts(1, 10, 1)}


async def test_response_that_langchain_reports_twice_counts_once(host: Host) -> None:
    journal, call = await host.start(), uuid4()
    answer(journal, LARGE, 100, call=call)
    await journal.flush()
    answer(journal, LARGE, 100, call=call)
    answer(journal, SMALL, 10)
    assert await host.end(journal) == {LARGE: counts(1, 100, 1), SMALL: counts(1, 10, 1)}
    assert host.stored_events.calls["put_batch"] == 2


async def test_model_may_be_named_as_some_providers_do(host: Host) -> None:
    journal = await host.start()
    answer(journal, None, 10, response_metadata={"model": LARGE})
    assert await host.end(journal) == {LARGE: counts(1, 10, 1)}


@pytest.mark.parametrize("failure", ["before", "after"])
async def test_batch_that_is_sent_again_after_an_error_counts_once(host: Host, failure: str) -> None:
    journal = await host.start()
    answer(journal, LARGE, 10, id=None)
    answer(journal, LARGE, 10)
    host.stored_events.failures = [failure]
    with pytest.raises(StorageUnavailableError):
        await journal.flush()
    answer(journal, SMALL, 5, id=None)
    assert await host.end(journal) == {LARGE: counts(1, 20, 2), SMALL: counts(1, 5, 1)}


async def test_events_that_are_stored_truncated_are_counted(host: Host) -> None:
    journal = await host.start()
    answer(journal, LARGE, 10, content="x" * (17 * 1024 * 1024))
    assert await host.end(journal) == {LARGE: counts(1, 10, 1)}


# -- what the events do not account for ------------------------------------------------------------


async def test_tokens_of_subagents_which_have_no_events_count_for_an_unknown_model(host: Host) -> None:
    journal = await host.start()
    answer(journal, LARGE, 100)
    record = {"source_run_id": "1", "caller": "subagent:bash", "input_tokens": 40, "output_tokens": 2}
    journal.record_external_llm_usage_records([record])
    by_model = await host.end(journal)
    rest = {"runs": 1, "tokens": 42, "input_tokens": 40, "output_tokens": 2, "llm_calls": 0}
    assert by_model == {LARGE: counts(1, 100, 1), UNKNOWN: rest}


async def test_responses_without_a_name_count_for_an_unknown_model(host: Host) -> None:
    journal = await host.start()
    for model, tokens in ((LARGE, 100), (None, 10), (UNKNOWN, 5), ("", 1)):
        answer(journal, model, tokens)
    assert await host.end(journal) == {LARGE: counts(1, 100, 1), UNKNOWN: counts(1, 16, 3)}


async def test_events_that_are_lost_count_for_an_unknown_model(host: Host) -> None:
    journal = await host.start(flush_threshold=1)
    answer(journal, LARGE, 100)
    await journal.flush()
    answer(journal, SMALL, 10)
    host.stored_events.failures = ["before", "before"]
    with pytest.raises(StorageUnavailableError):
        await journal.flush()
    assert await host.complete(journal) == {LARGE: counts(1, 100, 1), UNKNOWN: counts(1, 10, 1)}


async def test_run_whose_responses_have_no_names_counts_for_its_own_model(host: Host) -> None:
    journal = await host.start(model_name="gpt")
    answer(journal, None, 10)
    assert await host.end(journal) == {"gpt": counts(1, 10, 1)}


async def test_run_without_events_counts_for_its_own_model(host: Host) -> None:
    journal = await host.start(model_name="gpt")
    assert await host.end(journal) == {"gpt": counts(1, 0, 0)}


async def test_events_of_a_run_of_another_process_are_not_counted(host: Host) -> None:
    """The process that stored a run runs it: a part of the events would be a part of the tokens."""
    journal = await host.start(model_name="gpt")
    host.counts.discard(RUN)
    answer(journal, LARGE, 10)
    assert await host.end(journal) == {"gpt": counts(1, 10, 1)}
    assert len(host.counts) == 0


async def test_events_that_exceed_the_completion_are_not_used(host: Host) -> None:
    """Such as one response that LangChain reports twice, under two ids."""
    journal, call = await host.start(model_name="gpt"), uuid4()
    answer(journal, LARGE, 10, call=call, id="one")
    answer(journal, LARGE, 10, call=call, id="two")
    assert await host.end(journal) == {"gpt": counts(1, 10, 1)}


async def test_without_token_tracking_there_are_no_counts(host: Host) -> None:
    journal = await host.start(model_name="gpt", track_token_usage=False)
    answer(journal, LARGE, 10)
    assert await host.end(journal) == {"gpt": counts(1, 0, 0)}


@pytest.mark.parametrize(
    "name", ["x" * 5_000, "\ud800", 5, {"a": 1}], ids=["long", "surrogate", "int", "dict"]
)
async def test_unusual_name_of_a_model_does_not_keep_a_run_from_ending(host: Host, name: Any) -> None:
    journal = await host.start()
    answer(journal, None, 10, response_metadata={"model_name": name})
    answer(journal, LARGE, 10)
    by_model = await host.end(journal)
    assert set(by_model) == {LARGE, "x" * 128 if isinstance(name, str) and len(name) > 1 else UNKNOWN}


# -- counts that DeerFlow passes -------------------------------------------------------------------


async def test_counts_that_deerflow_passes_win(host: Host) -> None:
    journal = await host.start()
    answer(journal, LARGE, 10)
    given = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11, "cache_read_tokens": 4}
    by_model = await host.end(journal, token_usage_by_model={"other": given})
    assert by_model == {"other": counts(1, 10, 1) | {"llm_calls": 0}}


async def test_names_that_deerflow_passes_are_stored_shortened(host: Host) -> None:
    journal = await host.start()
    answer(journal, LARGE, 2)
    one = {"input_tokens": 1, "output_tokens": 0, "total_tokens": 1}
    given = {"x" * 5_000: one, "x" * 4_000: one, "": one}
    by_model = await host.end(journal, token_usage_by_model=given)
    assert {name: found["tokens"] for name, found in by_model.items()} == {"x" * 128: 2, UNKNOWN: 1}


# -- the model's name ------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, ""])
async def test_run_without_a_models_name_gets_deerflows_name(host: Host, given: str | None) -> None:
    journal = await host.start(model_name=given)
    begin(journal, "gpt")
    answer(journal, LARGE, 10)
    await host.end(journal)
    assert await host.model_name() == "gpt"


@pytest.mark.parametrize("configured", ["", "default"])
async def test_without_deerflows_name_a_run_gets_that_of_its_lead_agent(host: Host, configured: str) -> None:
    journal = await host.start(model_name=None)
    begin(journal, configured)
    answer(journal, SMALL, 500, tag="middleware:title")
    answer(journal, LARGE, 10)
    await host.end(journal)
    assert await host.model_name() == LARGE


async def test_stored_name_of_a_model_stays(host: Host) -> None:
    journal = await host.start(model_name="requested")
    begin(journal, "gpt")
    answer(journal, LARGE, 10)
    await host.end(journal)
    assert await host.model_name() == "requested"


async def test_name_that_deerflow_updates_stays(host: Host) -> None:
    journal = await host.start(model_name=None)
    await host.runs.update_model_name(RUN, "effective")
    begin(journal, "gpt")
    await host.end(journal)
    assert await host.model_name() == "effective"


async def test_run_that_fails_before_a_response_has_its_models_name(host: Host) -> None:
    journal = await host.start(model_name=None)
    begin(journal, "gpt")
    assert await host.end(journal) == {"gpt": counts(1, 0, 0)}


async def test_name_that_cannot_be_stored_does_not_fail_the_completion(host: Host) -> None:
    journal = await host.start(model_name=None)
    answer(journal, LARGE, 10)
    await journal.flush()
    host.stored_runs.failures = ["", "before"]
    assert await host.complete(journal) == {LARGE: counts(1, 10, 1)}
    assert (await host.model_name(), len(host.counts)) == (None, 0)


# -- what it costs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ["gpt", None])
async def test_only_a_missing_name_costs_a_command(host: Host, model_name: str | None) -> None:
    journal = await host.start(model_name=model_name)
    for _ in range(30):
        answer(journal, LARGE, 10)
    await host.end(journal)
    names = {} if model_name else {"update_model_name": 1}
    assert host.stored_runs.calls == {"put": 1, "update_run_completion": 1, **names}
    assert host.stored_events.calls == {"put_batch": 2}


async def test_nothing_is_left_of_a_run_that_ended_or_is_deleted(host: Host) -> None:
    ended = await host.start("ended")
    answer(ended, LARGE, 10)
    await host.start("deleted")
    assert len(host.counts) == 2
    await host.runs.delete("deleted", user_id="not the owner")
    assert len(host.counts) == 2
    await host.runs.delete("deleted", user_id=None)
    await host.end(ended)
    assert len(host.counts) == 0
    answer(ended, LARGE, 10)
    await ended.flush()
    assert len(host.counts) == 0


async def test_completion_that_failed_can_be_repeated(host: Host) -> None:
    journal = await host.start(model_name=None)
    answer(journal, LARGE, 10)
    await journal.flush()
    host.stored_runs.failures = ["before"]
    with pytest.raises(StorageUnavailableError):
        await host.complete(journal)
    assert await host.complete(journal) == {LARGE: counts(1, 10, 1)}
    assert await host.model_name() == LARGE


async def test_events_that_are_stored_after_a_failed_completion_are_counted(host: Host) -> None:
    journal = await host.start()
    answer(journal, LARGE, 100)
    await journal.flush()
    answer(journal, SMALL, 10)
    host.stored_runs.failures = ["before"]
    with pytest.raises(StorageUnavailableError):
        await host.complete(journal)
    assert await host.end(journal) == {LARGE: counts(1, 100, 1), SMALL: counts(1, 10, 1)}


async def test_number_of_runs_in_memory_is_bounded() -> None:
    counts_class = named("deerflow_mongo.hosts.adapters.counts_by_model:CountsByModel")
    held = counts_class(max_runs=3)
    for run_id in "abc":
        held.start(run_id, None)
    held.add([{"run_id": "a", "event_type": "run.start", "metadata": {"model_name": "gpt"}}])
    for run_id in "de":
        held.start(run_id, None)
    assert len(held) == 3
    assert held.missing_model_name("a") == "gpt"


async def test_run_in_a_full_document_ends_without_counts_by_model(host: Host) -> None:
    kwargs = {"input": "x" * (16 * 1024 * 1024 - 900)}
    await host.runs.put(RUN, thread_id=THREAD, user_id=None, model_name="gpt", kwargs=kwargs)
    journal = named("deerflow.runtime.journal:RunJournal")(RUN, THREAD, host.events)
    for number in range(20):
        answer(journal, f"{LARGE}-{number}", 10)
    assert await host.end(journal) == {"gpt": counts(1, 200, 20)}
    assert (await host.runs.get(RUN, user_id=None))["status"] == "success"


# -- DeerFlow's own SQL ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("responded", "ours", "theirs"),
    [
        ("gpt", {"gpt": 11, UNKNOWN: 42}, {"gpt": 53}),
        (None, {"gpt": 53}, {"gpt": 53}),
        (LARGE, {LARGE: 11, UNKNOWN: 42}, {"gpt": 53}),
    ],
    ids=["the requested name", "no name", "another name"],
)
async def test_sums_equal_those_on_sql_except_by_model(
    host: Host,
    tmp_path: Path,
    responded: str | None,
    ours: dict[str, int],
    theirs: dict[str, int],
) -> None:
    """SQL counts a run for the model of its request, whichever models answered."""
    usages: list[Any] = []
    for backend in (OURS, SQL):
        async with open_store(RUNS, SQL, folder=tmp_path, url="", database="") as sql_runs:
            runs = host.runs if backend == OURS else sql_runs
            journal = named("deerflow.runtime.journal:RunJournal")(RUN, THREAD, host.events)
            await runs.put(RUN, thread_id=THREAD, user_id=None, model_name="gpt")
            answer(journal, responded, 10)
            record = {"source_run_id": "1", "caller": "subagent:bash", "input_tokens": 40, "output_tokens": 2}
            journal.record_external_llm_usage_records([record])
            await journal.flush()
            await runs.update_run_completion(RUN, status="success", **journal.get_completion_data())
            usages.append(await runs.aggregate_tokens_by_thread(THREAD))
    found = [{name: by["tokens"] for name, by in usage.pop("by_model").items()} for usage in usages]
    assert found == [ours, theirs]
    assert usages[0] == usages[1]
