"""Counts by model that a completion replaces: `update_run_completion(token_usage_by_model=...)`."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Any

import pytest

from ..contract.errors import InvalidArgumentError
from ..contract.protocols import Storage
from ..contract.rows import ACTIVE_STATUSES, ENDED_STATUSES, MAX_COUNT
from .cases import case
from .contract import ALICE, RUN, THREAD, Contract, given_run, snapshot, stored_run
from .token_usage import MODELS, model_usage
from .values import exactly

_COUNTS = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 9, "llm_calls": 3}
_COUNTED = {"runs": 1, "tokens": 9, "input_tokens": 5, "output_tokens": 2, "llm_calls": 3}

# What a completion may give of one model -> the usage of the thread.
_DEFAULTS: tuple[tuple[Any, dict[str, int]], ...] = (
    (_COUNTS, _COUNTED),
    ({}, model_usage(1, 0, 0, 0)),
    ({"input_tokens": 5}, model_usage(1, 5, 0, 0)),
    ({"output_tokens": 2, "llm_calls": 1}, model_usage(1, 0, 2, 1)),
    ({"input_tokens": 5, "output_tokens": 2, "total_tokens": None}, model_usage(1, 5, 2, 0)),
    ({"input_tokens": 5, "total_tokens": 0}, {**model_usage(1, 5, 0, 0), "tokens": 0}),
    ({**_COUNTS, "unknown": "ignored"}, _COUNTED),
    (MappingProxyType(_COUNTS), _COUNTED),
    ({"input_tokens": MAX_COUNT}, model_usage(1, MAX_COUNT, 0, 0)),
)

# A part of the value that makes the whole argument invalid.
_INVALID: tuple[Any, ...] = (
    "text",
    5,
    True,
    ["m"],
    [("m", {})],
    {"m": None},
    {"m": 5},
    {"m": [1]},
    {"m": {"input_tokens": -1}},
    {"m": {"output_tokens": True}},
    {"m": {"total_tokens": 1.0}},
    {"m": {"llm_calls": "1"}},
    {"m": {"llm_calls": {"$inc": 1}}},
    {"m": {"input_tokens": MAX_COUNT + 1}},
    {"m": {"input_tokens": MAX_COUNT, "output_tokens": 1}},
    {"good": _COUNTS, "m": {"input_tokens": -1}},
    {"x" * 1_025: _COUNTS},
    {"é" * 513: _COUNTS},
    {"a\ud800": _COUNTS},
    {5: _COUNTS},
    {None: _COUNTS},
    {b"m": _COUNTS},
)


class _Model(enum.StrEnum):
    SMALL = "small"


async def _by_model(storage: Storage) -> dict[str, Any]:
    return dict((await storage.runs.token_usage_by_thread(THREAD, user_id=None))["by_model"])


async def _complete(storage: Storage, by_model: Any, *, status: str = "success", **counts: Any) -> None:
    await storage.runs.update_run_completion(RUN, status=status, token_usage_by_model=by_model, **counts)


async def _given(storage: Storage, **fields: Any) -> None:
    """A new run on which two models have spent tokens."""
    await storage.runs.delete(RUN, user_id=None)
    await given_run(storage, **fields)
    for model in ("gpt-4.1", "old"):
        await storage.runs.record_token_usage(RUN, caller="subagent", model_name=model, input_tokens=7)


class ModelCountContract(Contract):
    async def test_completion_replaces_all_counts_by_model(self, storage: Storage) -> None:
        """Also those of models that it does not name; a second completion replaces the first one's."""
        await _given(storage)
        await _complete(storage, {"gpt-4.1": _COUNTS, "new": _COUNTS})
        assert exactly(await _by_model(storage)) == exactly({"gpt-4.1": _COUNTED, "new": _COUNTED})
        await _complete(storage, {"new": {"input_tokens": 1}})
        assert exactly(await _by_model(storage)) == exactly({"new": model_usage(1, 1, 0, 0)})

    async def test_completion_without_counts_by_model_leaves_them(self, storage: Storage) -> None:
        """The argument's default is None."""
        await _given(storage)
        before = await _by_model(storage)
        await storage.runs.update_run_completion(RUN, status="success", total_tokens=1)
        await _complete(storage, None)
        assert await _by_model(storage) == before
        await _complete(storage, {"new": _COUNTS})
        await _complete(storage, None)
        assert await _by_model(storage) == {"new": _COUNTED}

    async def test_empty_counts_by_model_clear_them(self, storage: Storage) -> None:
        """The run then counts under its `model_name`, or "unknown"."""
        totals: dict[str, Any] = {
            "total_input_tokens": 3,
            "total_output_tokens": 1,
            "total_tokens": 4,
            "llm_call_count": 2,
        }
        for model_name, expected in (("gpt-4.1", "gpt-4.1"), ("other", "other"), (None, "unknown")):
            with case(model_name):
                await _given(storage, model_name=model_name)
                await _complete(storage, {}, **totals)
                assert exactly(await _by_model(storage)) == exactly({expected: model_usage(1, 3, 1, 2)})

    async def test_absent_counts_of_a_model_have_the_documented_defaults(self, storage: Storage) -> None:
        """Absent counts are 0, an absent total is input plus output, and other keys are ignored."""
        await given_run(storage)
        for given, expected in _DEFAULTS:
            with case(given):
                await _complete(storage, {"m": given})
                assert exactly(await _by_model(storage)) == exactly({"m": expected})

    async def test_counts_by_model_and_totals_of_the_run_are_independent(self, storage: Storage) -> None:
        await _given(storage)
        await _complete(storage, {"new": _COUNTS}, total_tokens=100, subagent_tokens=100)
        row = await stored_run(storage)
        assert (row["total_tokens"], row["subagent_tokens"], row["llm_call_count"]) == (100, 100, 0)
        usage = await storage.runs.token_usage_by_thread(THREAD, user_id=ALICE)
        assert (usage["total_runs"], usage["total_tokens"]) == (1, 100)
        assert usage["by_model"] == {"new": _COUNTED}

    async def test_tokens_recorded_after_a_completion_are_added_to_its_counts(self, storage: Storage) -> None:
        await _given(storage)
        await _complete(storage, {"a.b": {"input_tokens": 5, "llm_calls": 1}})
        for model in ("a.b", "later"):
            await storage.runs.record_token_usage(RUN, caller="subagent", model_name=model, output_tokens=2)
        expected = {"a.b": model_usage(1, 5, 2, 2), "later": model_usage(1, 0, 2, 1)}
        assert exactly(await _by_model(storage)) == exactly(expected)

    async def test_any_text_works_as_a_model_name_of_a_completion(self, storage: Storage) -> None:
        """With dots, dollar and percent signs, or empty; each is a separate model."""
        await given_run(storage)
        models = (*MODELS, "x" * 1_024, "é" * 512)
        given: dict[str, Any] = {model: {"input_tokens": n} for n, model in enumerate(models)}
        await _complete(storage, given)
        expected = {model: model_usage(1, n, 0, 0) for n, model in enumerate(models)}
        assert exactly(await _by_model(storage)) == exactly(expected)
        await _complete(storage, {_Model.SMALL: {"input_tokens": 1}})
        assert exactly(await _by_model(storage)) == exactly({"small": model_usage(1, 1, 0, 0)})

    async def test_invalid_counts_by_model_raise_and_change_nothing(self, storage: Storage) -> None:
        """An `InvalidArgumentError` that names the argument."""
        await _given(storage)
        before = [await snapshot(storage), await _by_model(storage)]
        for value in _INVALID:
            with case(repr(value)[:80]):
                with pytest.raises(InvalidArgumentError, match="token_usage_by_model"):
                    await _complete(storage, value, total_tokens=1)
                assert [await snapshot(storage), await _by_model(storage)] == before

    async def test_active_completion_of_an_ended_run_leaves_counts_by_model(self, storage: Storage) -> None:
        for ended in ENDED_STATUSES:
            await _given(storage, status=ended, ended_at="2026-04-22T03:00:00Z")
            before = await _by_model(storage)
            for active in ACTIVE_STATUSES:
                with case(ended, active):
                    for by_model in ({}, {"new": _COUNTS}):
                        await _complete(storage, by_model, status=active, total_tokens=1)
                        assert await _by_model(storage) == before

    async def test_completion_of_a_running_run_replaces_counts_by_model(self, storage: Storage) -> None:
        """With an active status too, which does not end the run."""
        for status in ACTIVE_STATUSES:
            with case(status):
                await _given(storage, status="running")
                await _complete(storage, {"new": _COUNTS}, status=status)
                assert await _by_model(storage) == {"new": _COUNTED}

    async def test_completion_of_a_missing_run_stores_no_counts_by_model(self, storage: Storage) -> None:
        await _complete(storage, {"new": _COUNTS})
        assert await _by_model(storage) == {}
        await given_run(storage)
        assert await _by_model(storage) == {"unknown": model_usage(1, 0, 0, 0)}
