"""What arrives of a source, and what repeating a transfer does. The target is one of dicts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from deerflow_mongo.transfer.sql import reading
from deerflow_mongo.transfer.sql.reading import EventSummary

from .conftest import NewSource
from .dict_target import DictTarget
from .passes import StoredInDicts, one_pass, surveyed
from .sources import Source, at, event, fill, rows_of, run, thread, user, vote


def counts(target: DictTarget) -> dict[str, int]:
    return {kind: len(rows) for kind, rows in target.rows.items() if rows}


def expected_counts(source: Source) -> dict[str, int]:
    expected = rows_of()
    if source.release == "seed":
        del expected["users"]
    return expected


async def test_every_row_of_every_release_arrives(new_source: NewSource, release: str) -> None:
    source, target = new_source(release), DictTarget()
    fill(source)
    outcomes = await one_pass(source, target)
    assert counts(target) == expected_counts(source)
    for kind, outcome in outcomes.items():
        assert (outcome.rows, outcome.stored) == (rows_of()[kind], rows_of()[kind])
        assert outcome.is_complete
        assert outcome.source_digest == outcome.target_digest


async def test_rows_have_the_values_of_the_source(new_source: NewSource) -> None:
    source, target = new_source("main"), DictTarget()
    lease = {"owner_worker_id": "w", "lease_expires_at": at(9), "cancel_action": "rollback"}
    source.insert("users", [user(1, needs_setup=True)])
    source.insert("threads", [thread(1)])
    source.insert("runs", [run(1, 1, status="running", operation_kind="run", idempotency_key="k", **lease)])
    source.insert("run_events", [event(1, 1), event(2, 1, content="text", metadata={})])
    source.insert("run_events", [event(3, 1, content="null"), event(4, 1, content="{broken")])
    await one_pass(source, target)
    assert target.rows["users"]["user-1",]["needs_setup"] is True
    stored = target.rows["threads"]["thread-1",]
    assert stored["metadata"] == {"deerflow_pinned": True, "a.b": {"$c": [1, 1.0, None]}}
    assert stored["created_time"] == at(1).isoformat()
    stored = target.rows["runs"]["run-1",]
    assert stored["lease_expires_at"] == at(9).isoformat()
    assert {stored[name] for name in ("status", "operation_kind", "idempotency_key")} == {
        "running",
        "run",
        "k",
    }
    assert stored["token_usage_by_model"]["gpt-4.1"]["total_tokens"] == 3
    first, second, without_content, broken = target.rows["run_events"].values()
    assert (first["content"], first["metadata"]) == ({"text": "event 1"}, {"caller": "lead_agent"})
    assert (second["content"], second["metadata"]) == ("text", {})
    assert (first["user_id"], "user_id" in second) == ("user-1", False)
    assert (without_content["content"], broken["content"]) == ("", "{broken")
    assert broken["metadata"]["content_is_json"]


@pytest.mark.parametrize("release", ["0.1.7", "2.0.0"])
async def test_runs_of_releases_without_owners_occupy_no_thread(new_sqlite: NewSource, release: str) -> None:
    source, target = new_sqlite(release), DictTarget()
    source.insert("runs", [run(1, 1, status="running"), run(2, 1, status="running")])
    await one_pass(source, target)
    assert [row["operation_kind"] for row in target.rows["runs"].values()] == [None, None]


# -- votes and numbers -----------------------------------------------------------------------------


async def test_newest_of_several_votes_is_the_vote_and_the_others_are_feedback(
    new_source: NewSource,
) -> None:
    source, target = new_source("seed"), DictTarget()
    source.insert("feedback", [vote(1, 0), vote(3, 0), vote(2, 0), vote(4, 0, message_id="m")])
    source.insert("feedback", [vote(5, 0, user_id=None), vote(6, 0, user_id=None), vote(7, 0, user_id="x")])
    outcome = (await one_pass(source, target))["feedback"]
    votes = {key for (key,), row in target.rows["feedback"].items() if row["is_vote"]}
    assert votes == {"vote-3", "vote-6", "vote-7"}
    assert (outcome.stored, outcome.is_complete) == (7, True)
    [finding] = (await surveyed(source)).findings
    assert finding.rows == 3


async def test_newer_vote_of_a_second_pass_takes_the_place_of_the_first(new_sqlite: NewSource) -> None:
    source, target = new_sqlite("0.1.7"), DictTarget()
    source.insert("feedback", [vote(2, 0)])
    await one_pass(source, target)
    source.insert("feedback", [vote(1, 0, created_at=at(60))])
    assert (await one_pass(source, target))["feedback"].is_complete
    assert {key for (key,), row in target.rows["feedback"].items() if row["is_vote"]} == {"vote-1"}


async def test_vote_whose_place_a_deleted_one_has_is_carried_as_feedback(new_sqlite: NewSource) -> None:
    source, target = new_sqlite("seed"), DictTarget()
    source.insert("feedback", [vote(1, 0)])
    await one_pass(source, target)
    source.execute("DELETE FROM feedback")
    source.insert("feedback", [vote(2, 0)])
    for _ in range(2):
        outcome = (await one_pass(source, target))["feedback"]
        assert (outcome.demoted_votes, outcome.differences) == (1, [])
    assert target.rows["feedback"]["vote-2",]["is_vote"] is False


async def test_events_with_one_number_are_numbered_in_the_order_of_their_storing(
    new_source: NewSource,
) -> None:
    source, target = new_source("seed"), DictTarget()
    texts = [(1, "a"), (2, "b"), (2, "c"), (3, "d"), (7, "e"), (7, "f")]
    source.insert("run_events", [event(seq, 0, content=text, metadata={}) for seq, text in texts])
    source.insert("run_events", [event(1, 1)])
    outcome = (await one_pass(source, target))["run_events"]
    stored = [
        (seq, row["content"]) for (key, seq), row in target.rows["run_events"].items() if key == "thread-0"
    ]
    assert stored == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (7, "e"), (8, "f")]
    assert (outcome.renumbered, outcome.is_complete) == (3, True)
    findings = {finding.table: finding.rows for finding in (await surveyed(source)).findings}
    assert findings == {"run_events": 2}


async def test_numbering_stays_the_same_across_pages_and_passes(
    new_sqlite: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_ROWS", 2)
    source, target = new_sqlite("seed"), DictTarget()
    source.insert("run_events", [event(1, 0, content=str(n), metadata={}) for n in range(7)])
    await one_pass(source, target)
    source.insert("run_events", [event(2, 0, content="7", metadata={})])
    outcome = (await one_pass(source, target))["run_events"]
    assert [row["content"] for row in target.rows["run_events"].values()] == [str(n) for n in range(8)]
    assert (outcome.stored, outcome.unchanged, outcome.is_complete) == (1, 7, True)


# -- passes ----------------------------------------------------------------------------------------


def stored_now(source: Source, target: DictTarget) -> StoredInDicts:
    """What a target has that has the source's events of this moment."""
    known: dict[str, EventSummary] = {}
    rows = source.execute(
        "SELECT thread_id, (SELECT count(*) FROM run_events AS e WHERE e.thread_id = last.thread_id), seq, "
        "created_at, user_id FROM run_events AS last WHERE seq = (SELECT max(seq) FROM run_events AS e "
        "WHERE e.thread_id = last.thread_id)"
    )
    for thread_id, events, last, created_at, user_id in rows:
        known[thread_id] = EventSummary(thread_id, events, last, reading.to_millisecond(created_at), user_id)
    return StoredInDicts(target, known)


async def test_second_pass_carries_what_has_changed_and_reads_no_other_events(
    new_source: NewSource,
) -> None:
    source, target = new_source("0.1.7"), DictTarget()
    fill(source)
    await one_pass(source, target)
    stored = stored_now(source, target)
    source.execute("UPDATE runs SET status = 'error' WHERE run_id = 'run-1'")
    source.insert("run_events", [event(6, 2)])
    source.insert("threads", [thread(9)])
    outcomes = await one_pass(source, target, stored=stored)
    assert (outcomes["runs"].replaced, outcomes["runs"].equal_by_summary) == (1, 5)
    assert (outcomes["threads"].stored, outcomes["threads"].equal_by_summary) == (1, 6)
    events = outcomes["run_events"]
    assert (events.stored, events.unchanged, events.equal_by_summary) == (1, 5, 25)
    assert all(outcome.is_complete for outcome in outcomes.values())
    assert (await one_pass(source, target, stored=stored, compare_all=True))["run_events"].unchanged == 31


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM run_events WHERE thread_id = 'thread-0' AND seq = 2",
        "UPDATE run_events SET user_id = 'u' WHERE thread_id = 'thread-0' AND seq = 5",
        "UPDATE run_events SET created_at = '2026-05-01 00:00:00.000000' WHERE seq = 5",
    ],
)
async def test_thread_that_differs_in_any_part_of_its_summary_is_read(
    new_sqlite: NewSource, change: str
) -> None:
    source, target = new_sqlite("0.1.7"), DictTarget()
    fill(source, threads=1)
    stored = stored_now(source, target)
    source.execute(change)
    outcome = (await one_pass(source, target, stored=stored))["run_events"]
    assert outcome.equal_by_summary == 0
    assert outcome.stored > 0


async def test_row_that_was_changed_in_the_target_stays_and_is_listed(new_sqlite: NewSource) -> None:
    source, target = new_sqlite("0.1.7"), DictTarget()
    fill(source)
    await one_pass(source, target)
    target.rows["threads"]["thread-1",]["display_name"] = "new here"
    target.changed.add(("thread-1",))
    outcome = (await one_pass(source, target))["threads"]
    [difference] = outcome.differences
    assert (difference.key, difference.reason, outcome.is_complete) == (("thread-1",), "changed_here", True)


async def test_interrupted_pass_continues(new_sqlite: NewSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE_ROWS", 4)
    source, target = new_sqlite("0.1.7"), DictTarget()
    fill(source, threads=20)
    target.fail_after = 9
    with pytest.raises(RuntimeError, match="killed"):
        await one_pass(source, target)
    target.fail_after = None
    outcomes = await one_pass(source, target)
    assert all(outcome.is_complete for outcome in outcomes.values())
    assert counts(target) == rows_of(threads=20)
    assert outcomes["threads"].equal_by_summary > 0


# -- what does not arrive --------------------------------------------------------------------------


async def test_rows_that_cannot_be_carried_are_listed(new_sqlite: NewSource) -> None:
    source, target = new_sqlite("0.1.7"), DictTarget()
    fill(source)
    source.execute("UPDATE runs SET kwargs_json = '{broken' WHERE run_id = 'run-2'")
    source.execute("UPDATE threads_meta SET created_at = 'yesterday' WHERE thread_id = 'thread-3'")
    target.too_large = {("thread-4", 2)}
    outcomes = await one_pass(source, target)
    listed = {
        difference.key: difference.details
        for outcome in outcomes.values()
        for difference in outcome.differences
    }
    assert list(listed) == [("thread-3",), ("run-2",), ("thread-4", 2)]
    assert listed["thread-3",] == "created_time: 'yesterday' is no time"
    assert listed["run-2",].startswith("kwargs: it is no JSON")
    assert [kind for kind, outcome in outcomes.items() if not outcome.is_complete] == [
        "threads",
        "runs",
        "run_events",
    ]


async def test_row_that_is_stored_otherwise_is_a_difference(
    new_sqlite: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = new_sqlite("0.1.7"), DictTarget()
    exported = target.export_rows

    async def lossy(kind: Any, **options: Any) -> AsyncGenerator[Any]:
        async for batch in exported(kind, **options):
            yield [{**row, "status": "idle"} for row in batch if row.get("run_id") != "run-3"]

    monkeypatch.setattr(target, "export_rows", lossy)
    source.insert("runs", [run(2, 0), run(3, 0)])
    outcome = (await one_pass(source, target))["runs"]
    found = {difference.key: (difference.reason, difference.details) for difference in outcome.differences}
    assert found == {("run-2",): ("different", "status"), ("run-3",): ("missing", "")}
    assert not outcome.is_complete
    assert outcome.source_digest != outcome.target_digest
    assert outcome.different_threads == 1


# -- memory ----------------------------------------------------------------------------------------


async def test_pages_are_bounded_in_rows_and_bytes(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_ROWS", 7)
    monkeypatch.setattr(reading, "PAGE_BYTES", 3_000)
    source, target = new_source("0.1.7"), DictTarget()
    fill(source, threads=30, events=4)
    source.insert("run_events", [event(5, 2, content="x" * 2_900, metadata={})])
    source.insert("run_events", [event(6, 2, content="x" * 2_900, metadata={})])
    await one_pass(source, target)
    assert counts(target)["run_events"] == 122
    assert target.max_rows_of_a_call == 7
    assert target.calls >= 122 / 7
