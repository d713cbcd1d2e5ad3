"""What is created again under the id of a deleted row is new: it inherits nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..contract.protocols import Storage
from ..contract.rows import ThreadMeta, ThreadMetaCreate
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, given_run, stored_run, stored_thread
from .values import COMPLETION_DATA, exactly

_GIVEN_LATER = ("created_at", "created_time", "updated_time")


def _without_times(row: Any) -> object:
    return exactly({name: value for name, value in row.items() if name not in _GIVEN_LATER})


async def _spend(storage: Storage) -> None:
    """Counts, texts, metadata, times and a model for the default run."""
    await storage.runs.record_token_usage(RUN, caller="lead_agent", model_name="old", input_tokens=7)
    await storage.runs.update_status(
        RUN, "running", started_at="2026-04-22T03:00:00Z", metadata={"old": {"k": 1}}
    )
    await storage.runs.update_model_name(RUN, "old")
    await storage.runs.update_run_completion(RUN, status="success", error="old", **COMPLETION_DATA)


class NewAfterDeletionContract(Contract):
    async def test_run_created_again_inherits_nothing(self, storage: Storage) -> None:
        new = _without_times(await given_run(storage))
        await _spend(storage)
        assert await storage.runs.delete(RUN, user_id=ALICE) is True
        assert _without_times(await given_run(storage)) == new
        assert await storage.runs.list_by_thread(THREAD, user_id=ALICE) == [await stored_run(storage)]
        assert [row["run_id"] for row in await storage.runs.list_pending()] == [RUN]

    async def test_run_created_again_inherits_no_token_counts(self, storage: Storage) -> None:
        """Neither in total nor by caller nor by model; what is recorded later is all that counts."""
        replacements: tuple[Any, ...] = (None, {"old": {"input_tokens": 3}})
        for replaced in replacements:
            with case(replaced):
                await storage.runs.delete(RUN, user_id=None)
                await given_run(storage)
                await _spend(storage)
                await storage.runs.update_run_completion(RUN, status="error", token_usage_by_model=replaced)
                assert await storage.runs.delete(RUN, user_id=None) is True
                assert (await storage.runs.token_usage_by_thread(THREAD, user_id=None))["by_model"] == {}
                await given_run(storage, model_name="new")
                usage = await storage.runs.token_usage_by_thread(THREAD, user_id=None)
                assert list(usage["by_model"]) == ["new"]
                assert (usage["total_runs"], usage["total_tokens"], usage["llm_call_count"]) == (1, 0, 0)
                await storage.runs.record_token_usage(
                    RUN, caller="subagent", model_name="new", input_tokens=1
                )
                usage = await storage.runs.token_usage_by_thread(THREAD, user_id=None)
                assert exactly(usage["by_model"]) == exactly(
                    {"new": {"runs": 1, "tokens": 1, "input_tokens": 1, "output_tokens": 0, "llm_calls": 1}}
                )
                assert usage["by_caller"] == {"lead_agent": 0, "subagent": 1, "middleware": 0}

    async def test_run_created_again_belongs_to_its_new_owner_and_thread(self, storage: Storage) -> None:
        await given_run(storage)
        await _spend(storage)
        await storage.runs.delete(RUN, user_id=ALICE)
        row = await given_run(storage, RUN, "thread-2", user_id=BOB)
        assert await storage.runs.get(RUN, user_id=ALICE) is None
        assert await storage.runs.list_by_thread(THREAD, user_id=None) == []
        assert await storage.runs.list_by_thread("thread-2", user_id=BOB) == [row]
        assert (await storage.runs.token_usage_by_thread(THREAD, user_id=None))["total_runs"] == 0

    async def test_updates_before_a_run_is_created_have_no_effect_on_it(self, storage: Storage) -> None:
        """Updating a run that does not exist changes nothing, also not a run that is created later."""
        new = _without_times(await given_run(storage))
        await storage.runs.delete(RUN, user_id=None)
        await _spend(storage)
        await storage.runs.set_error(RUN, "old")
        assert await storage.runs.get(RUN, user_id=None) is None
        assert _without_times(await given_run(storage)) == new
        usage = await storage.runs.token_usage_by_thread(THREAD, user_id=None)
        assert (usage["total_tokens"], list(usage["by_model"])) == (0, ["unknown"])

    async def test_thread_created_again_inherits_nothing(self, storage: Storage) -> None:
        threads = storage.threads
        old: dict[str, Any] = {"user_id": ALICE, "assistant_id": "old", "display_name": "old"}
        first = await threads.create_thread_meta(
            ThreadMetaCreate(thread_id=THREAD, status="old", metadata={"old": {"k": 1}}, **old)
        )
        await threads.merge_thread_metadata(THREAD, {"merged": 1})
        creates: dict[str, Callable[[], Awaitable[ThreadMeta]]] = {
            "create_thread_meta": lambda: threads.create_thread_meta(
                ThreadMetaCreate(thread_id=THREAD, user_id=BOB)
            ),
            "ensure_thread": lambda: threads.ensure_thread(thread_id=THREAD, user_id=BOB),
        }
        for name, create in creates.items():
            with case(name):
                assert await threads.delete_thread(THREAD) is True
                again = await create()
                assert again == await stored_thread(storage)
                assert (again.user_id, again.assistant_id, again.display_name) == (BOB, None, None)
                assert (again.status, again.metadata) == ("idle", {})
                assert again.created_time == again.updated_time > first.created_time
                assert await threads.search_threads(metadata={"old": {"k": 1}}, user_id=None) == []
                assert await threads.search_threads(metadata={"merged": 1}, user_id=None) == []
                assert await threads.search_threads(user_id=ALICE) == []
                await threads.update_thread_meta(THREAD, metadata={"old": {"k": 1}}, status="old")

    async def test_updates_before_a_thread_is_created_have_no_effect_on_it(self, storage: Storage) -> None:
        threads = storage.threads
        await threads.merge_thread_metadata(THREAD, {"old": 1})
        await threads.update_thread_meta(THREAD, display_name="old", status="old", metadata={"old": 2})
        assert await threads.get_thread_meta(THREAD) is None
        thread = await threads.ensure_thread(thread_id=THREAD, user_id=ALICE)
        assert (thread.display_name, thread.status, thread.metadata) == (None, "idle", {})
