"""What an update of a run returns and logs, by the status of the run; and lists that follow such updates."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ..contract.protocols import Storage
from ..contract.rows import ACTIVE_STATUSES, ENDED_STATUSES
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, given_run, stored_run

_STATUSES = (*ACTIVE_STATUSES, *ENDED_STATUSES)


def _regenerating(source: object, kind: object = "edit") -> dict[str, Any]:
    return {"regenerate_from_run_id": source, "replay_kind": kind}


class StatusConditionContract(Contract):
    async def test_update_returns_whether_the_run_exists(self, storage: Storage) -> None:
        """Also where an ended run does not become active again."""
        for old in _STATUSES:
            for new in _STATUSES:
                with case(old, new):
                    run_id = f"{old} {new}"
                    await given_run(storage, run_id, status=old)
                    assert await storage.runs.update_status(run_id, new) is True
                    assert await storage.runs.update_run_completion(run_id, status=new) is True

    async def test_update_from_another_status_stores_nothing_of_it(self, storage: Storage) -> None:
        allowed = ("pending", "running", "interrupted")
        for old in _STATUSES:
            with case(old):
                before = await given_run(storage, old, status=old)
                changed = await storage.runs.update_status(
                    old,
                    "error",
                    error="x",
                    metadata={"a": 1},
                    started_at="2026-04-22",
                    from_statuses=allowed,
                )
                row = await stored_run(storage, old)
                assert changed is (old in allowed)
                assert (row["error"], row["metadata"]) == (("x", {"a": 1}) if changed else (None, {}))
                assert (row == before) is (not changed)

    async def test_allowed_ended_status_makes_no_run_active_again(self, storage: Storage) -> None:
        for old in ENDED_STATUSES:
            for new in ACTIVE_STATUSES:
                with case(old, new):
                    run_id = f"{old} {new}"
                    await given_run(storage, run_id, status=old)
                    assert await storage.runs.update_status(
                        run_id, new, metadata={"a": 1}, from_statuses=[old]
                    )
                    row = await stored_run(storage, run_id)
                    assert (row["status"], row["metadata"]) == (old, {"a": 1})

    async def test_of_guarded_updates_only_that_of_a_missing_run_is_logged(
        self, storage: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        await given_run(storage, status="success")
        guard = ["running"]
        with caplog.at_level(logging.WARNING):
            for run_id in (RUN, "missing"):
                await storage.runs.update_status(run_id, "error", from_statuses=guard)
                await storage.runs.update_run_completion(run_id, status="error", from_statuses=guard)
        texts = [record.getMessage() for record in caplog.records]
        assert (sum(RUN in text for text in texts), sum("missing" in text for text in texts)) == (0, 2)

    async def test_invalid_condition_or_reason_raises_and_changes_nothing(self, storage: Storage) -> None:
        before = await given_run(storage)
        lists: tuple[Any, ...] = ("pending", 5, {"$ne": None}, [None], [5], [""], [{"$ne": None}], b"x")
        for wrong in lists:
            with case(wrong), pytest.raises((TypeError, ValueError), match="from_statuses"):
                await storage.runs.update_status(RUN, "running", from_statuses=wrong)
            with case(wrong), pytest.raises((TypeError, ValueError), match="from_statuses"):
                await storage.runs.update_run_completion(RUN, status="success", from_statuses=wrong)
        reasons: tuple[Any, ...] = (5, b"x", ["x"], {"$ne": None})
        for wrong in reasons:
            with case(wrong), pytest.raises((TypeError, ValueError), match="stop_reason"):
                await storage.runs.update_status(RUN, "running", stop_reason=wrong)
        assert await stored_run(storage) == before

    async def test_regenerate_lists_have_no_limit(self, storage: Storage) -> None:
        for number in range(120):
            metadata = _regenerating(f"source-{number}")
            await storage.runs.create(
                f"run-{number}", THREAD, user_id=ALICE, status="success", metadata=metadata
            )
        edited = await storage.runs.list_edit_regenerate_runs(THREAD, user_id=ALICE)
        assert [row["run_id"] for row in edited] == [f"run-{number}" for number in range(120)]
        assert len(await storage.runs.list_successful_regenerate_sources(THREAD, user_id=ALICE)) == 120
        names = [f"run-{number}" for number in range(120)]
        assert set(await storage.runs.get_many_by_thread(THREAD, names, user_id=ALICE)) == set(names)

    async def test_regenerate_lists_follow_updates(self, storage: Storage) -> None:
        """Sources are any text that is not empty."""
        await given_run(storage, status="running")
        runs = storage.runs
        for source in ("a.b", "$c", " ", "a\0b", "é", "x" * 3_000):
            with case(source[:5]):
                await runs.update_status(RUN, "success", metadata=_regenerating(source))
                assert await runs.list_successful_regenerate_sources(THREAD, user_id=None) == {source}
                assert await runs.list_edit_regenerate_runs(THREAD, user_id=None) == [
                    await stored_run(storage)
                ]
        for kind in (None, "", "Edit", "edit ", True, ["edit"], {"$eq": "edit"}):
            with case("kind", kind):
                await runs.update_status(RUN, "error", metadata=_regenerating("source", kind))
                assert await runs.list_successful_regenerate_sources(THREAD, user_id=None) == set()
                assert await runs.list_edit_regenerate_runs(THREAD, user_id=None) == []
