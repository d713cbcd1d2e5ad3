"""Token counts of an active run, and their totals by thread (CONTRACT section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ..contract.protocols import Storage
from ..contract.rows import CALLERS, Caller
from .cases import case
from .contract import ALICE, BOB, RUN, THREAD, Contract, acting_as, given_run, stored_run
from .values import exactly

MODELS = (
    "gpt-4.1",
    "gpt-4%2E1",
    "claude-3.5-sonnet@2026.01",
    "$model",
    "$$ROOT",
    "a.$.b",
    "",
    "%",
    "%%",
    "%25",
    "100%",
    "0",
    "_id",
    "model",
    " ",
    "модель",
    "a\0b",
    "..",
    "x" * 1_000,
)
"""Names with every character that a database may treat as syntax."""


def model_usage(runs: int, input_tokens: int, output_tokens: int, llm_calls: int) -> dict[str, int]:
    """One model's share in `by_model`, where the total is input plus output."""
    return {
        "runs": runs,
        "tokens": input_tokens + output_tokens,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "llm_calls": llm_calls,
    }


async def _counts(storage: Storage, run_id: str = RUN) -> dict[str, int]:
    row: dict[str, Any] = dict(await stored_run(storage, run_id))
    return {
        "input": row["total_input_tokens"],
        "output": row["total_output_tokens"],
        "total": row["total_tokens"],
        "calls": row["llm_call_count"],
        **{caller: row[f"{caller}_tokens"] for caller in CALLERS},
    }


async def _usage(
    storage: Storage, thread_id: str = THREAD, user_id: str | None = None, **arguments: Any
) -> dict[str, Any]:
    return dict(await storage.runs.token_usage_by_thread(thread_id, user_id=user_id, **arguments))


class TokenUsageContract(Contract):
    async def test_recorded_tokens_are_added_to_the_run_and_its_caller(self, storage: Storage) -> None:
        for caller in CALLERS:
            with case(caller):
                await given_run(storage, caller)
                record = storage.runs.record_token_usage
                await record(caller, caller=caller, input_tokens=10, output_tokens=5)
                await record(
                    caller, caller=caller, model_name="m", input_tokens=100, output_tokens=50, llm_calls=3
                )
                others = dict.fromkeys(CALLERS, 0)
                expected = {"input": 110, "output": 55, "total": 165, "calls": 4, **others, caller: 165}
                assert await _counts(storage, caller) == expected

    async def test_token_record_defaults_to_one_call_without_tokens(self, storage: Storage) -> None:
        await given_run(storage)
        await storage.runs.record_token_usage(RUN, caller="subagent")
        nothing = {"input": 0, "output": 0, "total": 0, **dict.fromkeys(CALLERS, 0)}
        assert await _counts(storage) == {**nothing, "calls": 1}

    async def test_unknown_caller_raises_and_counts_nothing(self, storage: Storage) -> None:
        """A caller other than "lead_agent", "subagent" or "middleware" is a `ValueError`."""
        before = await given_run(storage)
        others: tuple[Any, ...] = ("", "user", "LEAD_AGENT", "lead_agent.x", "$where", None, 1, {"$ne": None})
        for caller in others:
            with case(caller), pytest.raises(ValueError, match="caller"):
                await storage.runs.record_token_usage(RUN, caller=caller, input_tokens=1)
        assert await stored_run(storage) == before

    async def test_tokens_from_a_hundred_concurrent_tasks_are_counted_exactly(self, storage: Storage) -> None:
        """The increments are atomic."""
        await given_run(storage)
        models = ("gpt-4.1", "small", None)

        async def spend(number: int) -> None:
            caller: Caller = CALLERS[number % 3]
            for model in models:
                await storage.runs.record_token_usage(
                    RUN, caller=caller, model_name=model, input_tokens=number, output_tokens=1
                )

        await asyncio.gather(*(spend(number) for number in range(100)))
        spent = sum(range(100))
        by_caller = {
            caller: 3 * sum(n + 1 for n in range(100) if n % 3 == i) for i, caller in enumerate(CALLERS)
        }
        expected = {"input": 3 * spent, "output": 300, "total": 3 * spent + 300, "calls": 300, **by_caller}
        assert await _counts(storage) == expected
        by_model = (await _usage(storage))["by_model"]
        for model in ("gpt-4.1", "small"):
            assert by_model[model] == model_usage(1, spent, 100, 100)

    async def test_tokens_recorded_after_the_end_are_counted(self, storage: Storage) -> None:
        await given_run(storage)
        await storage.runs.update_run_completion(RUN, status="success", total_tokens=10, lead_agent_tokens=10)
        ended_at = (await stored_run(storage))["ended_at"]
        await storage.runs.record_token_usage(RUN, caller="lead_agent", model_name="m", input_tokens=5)
        row = await stored_run(storage)
        assert (row["status"], row["ended_at"]) == ("success", ended_at)
        assert (row["total_tokens"], row["lead_agent_tokens"]) == (15, 15)

    async def test_completion_replaces_totals_and_leaves_counts_by_model(self, storage: Storage) -> None:
        """It replaces the counts by caller too."""
        await given_run(storage)
        for model in ("gpt-4.1", "small"):
            await storage.runs.record_token_usage(RUN, caller="subagent", model_name=model, input_tokens=7)
        await storage.runs.update_run_completion(
            RUN, status="success", total_input_tokens=3, total_tokens=3, lead_agent_tokens=2
        )
        expected = {
            "input": 3,
            "output": 0,
            "total": 3,
            "calls": 0,
            **dict.fromkeys(CALLERS, 0),
            "lead_agent": 2,
        }
        assert await _counts(storage) == expected
        usage = await _usage(storage)
        assert usage["by_model"] == {model: model_usage(1, 7, 0, 1) for model in ("gpt-4.1", "small")}
        assert usage["by_caller"] == {"lead_agent": 2, "subagent": 0, "middleware": 0}

    async def test_thread_without_runs_has_zero_usage(self, storage: Storage) -> None:
        await given_run(storage, thread_id="thread-2")
        await storage.runs.record_token_usage(RUN, caller="subagent", model_name="m", input_tokens=1)
        expected: dict[str, Any] = {
            "total_runs": 0,
            "total_input_tokens": 0,
            "total_output_tokens": 0,
            "total_tokens": 0,
            "llm_call_count": 0,
            "by_caller": dict.fromkeys(CALLERS, 0),
            "by_model": {},
        }
        assert exactly(await _usage(storage)) == exactly(expected)

    async def test_usage_sums_all_runs_of_the_thread(self, storage: Storage) -> None:
        """In total, by caller and by model."""
        for number in range(120):
            run_id = f"run-{number}"
            await given_run(storage, run_id, "thread-2" if number >= 110 else THREAD)
            await storage.runs.record_token_usage(
                run_id,
                caller=CALLERS[number % 2],
                model_name=f"model-{number % 2}.0",
                input_tokens=10,
                output_tokens=number % 2,
                llm_calls=2,
            )
        await given_run(storage, "idle")
        expected: dict[str, Any] = {
            "total_runs": 111,
            "total_input_tokens": 1_100,
            "total_output_tokens": 55,
            "total_tokens": 1_155,
            "llm_call_count": 220,
            "by_caller": {"lead_agent": 550, "subagent": 605, "middleware": 0},
            "by_model": {
                "model-0.0": model_usage(55, 550, 0, 110),
                "model-1.0": model_usage(55, 550, 55, 110),
                "unknown": model_usage(1, 0, 0, 0),
            },
        }
        assert exactly(await _usage(storage)) == exactly(expected)

    async def test_usage_counts_only_the_users_runs(self, storage: Storage) -> None:
        for owner, tokens in ((ALICE, 1), (BOB, 10), (None, 100), ("", 1_000)):
            await given_run(storage, f"run of {owner}", user_id=owner)
            await storage.runs.record_token_usage(
                f"run of {owner}", caller="middleware", model_name="m", input_tokens=tokens
            )
        for user_id, tokens, runs in (
            (ALICE, 1, 1),
            (BOB, 10, 1),
            ("", 1_000, 1),
            ("carol", 0, 0),
            (None, 1_111, 4),
        ):
            with case(user_id):
                usage = await _usage(storage, user_id=user_id)
                assert (usage["total_runs"], usage["total_tokens"]) == (runs, tokens)
                assert usage["by_caller"]["middleware"] == tokens
                assert usage["by_model"] == ({"m": model_usage(runs, tokens, 0, runs)} if runs else {})
        with acting_as(ALICE):
            assert (await storage.runs.token_usage_by_thread(THREAD))["total_tokens"] == 1

    async def test_any_text_works_as_a_model_name(self, storage: Storage) -> None:
        """With dots, dollar and percent signs, or empty; each is a separate model."""
        for number, run_id in enumerate(("run-a", "run-b")):
            await given_run(storage, run_id)
            for position, model in enumerate(MODELS):
                with case(model):
                    await storage.runs.record_token_usage(
                        run_id,
                        caller="subagent",
                        model_name=model,
                        input_tokens=position,
                        output_tokens=number,
                    )
        usage = await _usage(storage)
        expected = {model: model_usage(2, 2 * position, 1, 2) for position, model in enumerate(MODELS)}
        assert exactly(usage["by_model"]) == exactly(expected)
        assert usage["total_tokens"] == sum(counts["tokens"] for counts in expected.values())

    async def test_run_without_counts_by_model_counts_under_its_model_name(self, storage: Storage) -> None:
        """Under its `model_name`, or "unknown" if it has none."""
        for number, model in enumerate(("gpt-4.1", "$a.b", None, "gpt-4.1", "")):
            await given_run(storage, f"run-{number}", model_name=model)
            await storage.runs.update_run_completion(
                f"run-{number}",
                status="success",
                total_input_tokens=2,
                total_output_tokens=1,
                total_tokens=3,
                llm_call_count=1,
            )
        expected = {
            "gpt-4.1": model_usage(2, 4, 2, 2),
            "$a.b": model_usage(1, 2, 1, 1),
            "unknown": model_usage(1, 2, 1, 1),
            "": model_usage(1, 2, 1, 1),
        }
        assert (await _usage(storage))["by_model"] == expected

    async def test_tokens_of_no_model_count_by_model_only_where_no_other_tokens_do(
        self, storage: Storage
    ) -> None:
        """A run's tokens without a model stay under its `model_name` until tokens of a model are recorded."""
        await given_run(storage, model_name="first")
        await storage.runs.record_token_usage(RUN, caller="subagent", input_tokens=10)
        await storage.runs.update_model_name(RUN, "second")
        assert (await _usage(storage))["by_model"] == {"second": model_usage(1, 10, 0, 1)}
        await storage.runs.record_token_usage(RUN, caller="subagent", model_name="third", input_tokens=5)
        usage = await _usage(storage)
        assert usage["by_model"] == {"third": model_usage(1, 5, 0, 1)}
        assert usage["total_input_tokens"] == 15

    async def test_run_without_tokens_counts_under_its_model_name(self, storage: Storage) -> None:
        """Of any status, under its `model_name` or "unknown", with zero in every count."""
        for number, model in enumerate(("gpt-4.1", None, "gpt-4.1", "small")):
            await given_run(storage, f"run-{number}", model_name=model)
        await storage.runs.update_run_completion("run-2", status="success", message_count=2)
        await storage.runs.record_token_usage("run-3", caller="lead_agent", model_name="small", llm_calls=0)
        usage = await _usage(storage)
        expected = {
            "gpt-4.1": model_usage(2, 0, 0, 0),
            "unknown": model_usage(1, 0, 0, 0),
            "small": model_usage(1, 0, 0, 0),
        }
        assert exactly(usage["by_model"]) == exactly(expected)
        assert (usage["total_runs"], usage["total_tokens"], usage["llm_call_count"]) == (4, 0, 0)

    async def test_usage_is_filtered_by_status(self, storage: Storage) -> None:
        """None is every status, an empty list none; the filter by user applies too."""
        tokens = {"pending": 1, "running": 10, "success": 100, "error": 1_000, "odd": 10_000}
        for status, spent in tokens.items():
            for owner in (ALICE, BOB):
                run_id = f"{status} of {owner}"
                await given_run(storage, run_id, user_id=owner, status=status)
                await storage.runs.record_token_usage(
                    run_id, caller="subagent", model_name=f"for {status}", input_tokens=spent
                )
        table: tuple[Sequence[str] | None, ...] = (
            ("success",),
            ("success", "error"),
            ["running", "running", "odd"],
            ("pending", "unknown"),
            ("SUCCESS", "success "),
            (),
            tuple(tokens),
            None,
        )
        for statuses in table:
            wanted = [status for status in tokens if statuses is None or status in statuses]
            spent = sum(tokens[status] for status in wanted)
            for user_id, owners in ((ALICE, 1), (None, 2), ("carol", 0)):
                with case(statuses, user_id):
                    usage = await _usage(storage, user_id=user_id, statuses=statuses)
                    assert usage["total_runs"] == len(wanted) * owners
                    assert usage["total_tokens"] == usage["by_caller"]["subagent"] == spent * owners
                    models = {f"for {status}" for status in wanted} if owners else set[str]()
                    assert set(usage["by_model"]) == models

    async def test_invalid_statuses_raise(self, storage: Storage) -> None:
        await given_run(storage)
        others: tuple[Any, ...] = (
            "success",
            b"x",
            5,
            True,
            {"$ne": None},
            [{"$ne": None}],
            [None],
            [5],
            [""],
        )
        for statuses in others:
            with case(statuses), pytest.raises((TypeError, ValueError), match="statuses"):
                await _usage(storage, statuses=statuses)

    async def test_usage_sums_are_not_limited_to_32_bits(self, storage: Storage) -> None:
        for number in range(3):
            await given_run(storage, f"run-{number}")
            await storage.runs.record_token_usage(
                f"run-{number}", caller="lead_agent", model_name="m", input_tokens=2**40
            )
        usage = await _usage(storage)
        assert exactly(usage["total_tokens"]) == exactly(3 * 2**40)
        assert exactly(usage["by_model"]["m"]["input_tokens"]) == exactly(3 * 2**40)
