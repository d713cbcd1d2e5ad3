"""The same graphs on our saver and on LangGraph's in-memory and SQLite savers: equal answers, equal rows."""

from __future__ import annotations

from typing import Any

import pytest

from .answers import difference
from .runner import Runner, SyncRunner
from .scenarios import SCENARIOS, Scenario

memory: Any = pytest.importorskip("langgraph.checkpoint.memory")
sqlite: Any = pytest.importorskip("langgraph.checkpoint.sqlite.aio")

RUNNERS = [
    pytest.param("pymongo", Runner, id="pymongo-async"),
    pytest.param("pymongo", SyncRunner, id="pymongo-sync"),
    pytest.param("motor", Runner, id="motor-async"),
]


# Here the in-memory saver stores other rows than SQLite's and PostgreSQL's savers, whose rows ours are.
OTHER_ROWS_IN_MEMORY = {
    # It replaces a special write also where a task's writes are of both kinds.
    "two_interrupts_in_one_node",
    # It finds a snapshot by its channel's version, also for a checkpoint that was put without it.
    "delta_channel",
}


Results = tuple[list[Any], list[Any]]


async def _results(scenario: Scenario, runner: type[Runner], saver: Any) -> Results:
    """What the graphs answered, and the rows that are stored then."""
    run = runner(saver)
    await scenario(run)
    return run.answers.collected, await run.rows()


async def _expected_results(scenario: Scenario, runner: type[Runner]) -> Results:
    """Those of SQLite's saver, which the in-memory saver confirms."""
    async with sqlite.AsyncSqliteSaver.from_conn_string(":memory:") as sqlite_saver:
        answers, rows = await _results(scenario, runner, sqlite_saver)
    answers_in_memory, rows_in_memory = await _results(scenario, runner, memory.InMemorySaver())
    assert difference(answers_in_memory, answers) is None
    if scenario.__name__ not in OTHER_ROWS_IN_MEMORY:
        assert difference(rows_in_memory, rows) is None
    return answers, rows


@pytest.fixture(scope="module")
def expected() -> dict[Any, Results]:
    """The results of scenarios that have run already: both drivers must give the same."""
    return {}


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """The synchronous runner on one driver only: the drivers serve the same asynchronous calls."""
    return request.param


@pytest.mark.parametrize(("driver", "runner"), RUNNERS, indirect=["driver"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_graph_answers_as_on_other_savers(
    scenario: Scenario, runner: type[Runner], saver: Any, expected: dict[Any, Results]
) -> None:
    if (scenario.__name__, runner) not in expected:
        expected[scenario.__name__, runner] = await _expected_results(scenario, runner)
    answers, rows = expected[scenario.__name__, runner]
    our_answers, our_rows = await _results(scenario, runner, saver)
    assert difference(our_answers, answers) is None
    assert difference(our_rows, rows) is None
