"""Checks that contenders give the same answers; if they do not, their measurements are excluded.

Times and generated ids are ignored; all other fields of a row are compared, and writes are read back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, cast

from deerflow_mongo.contract.rows import ThreadMeta

from .dataset import Call, Dataset
from .operations import Operation

GENERATED = frozenset(
    {"created_at", "updated_at", "started_at", "ended_at", "created_time", "updated_time", "feedback_id"}
)

Run = Callable[[str], Callable[..., Awaitable[Any]] | None]
"""Path -> coroutine function, or None if the contender has none."""


async def answers(run: Run, operation: Operation, data: Dataset, numbers: Iterable[int]) -> list[Any]:
    """The answers to the calls of these numbers, each followed by what is read back."""
    found: list[Any] = []
    for number in numbers:
        call = Call(operation.path, operation.arguments(data, number))
        found.append(await _answer(run, call))
        if (read := operation.read_back(call.arguments)) is not None:
            found.append(await _answer(run, read))
    return found


async def answers_at_once(run: Run, operation: Operation, data: Dataset, numbers: Iterable[int]) -> list[Any]:
    """The same, of calls that are made at once, so that they may share commands."""
    calls = [Call(operation.path, operation.arguments(data, number)) for number in numbers]
    answered = await asyncio.gather(*(_answer(run, call) for call in calls))
    found: list[Any] = []
    for call, answer in zip(calls, answered, strict=True):
        found.append(answer)
        if (read := operation.read_back(call.arguments)) is not None:
            found.append(await _answer(run, read))
    return found


async def _answer(run: Run, call: Call) -> Any:
    if (method := run(call.path)) is None:
        return {"lacks": call.path}
    try:
        return comparable(await method(**call.arguments))
    except Exception as error:  # noqa: BLE001 - errors are compared, too
        return {"raises": f"{type(error).__name__}: {error}"[:300]}


def comparable(value: Any) -> Any:
    """The value as JSON without the fields that may differ."""
    if isinstance(value, ThreadMeta):
        value = asdict(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {str(name): comparable(item) for name, item in items if name not in GENERATED}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in cast("list[Any]", value)]
    return value


def difference(
    ours: object, theirs: object, *, common_keys_only: bool = False, place: str = "answers"
) -> str | None:
    """The first difference; None if the answers are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        left, right = cast("dict[str, Any]", ours), cast("dict[str, Any]", theirs)
        names = sorted(left.keys() & right.keys() if common_keys_only else left.keys() | right.keys())
        pairs = [(f"{place}.{name}", left.get(name), right.get(name)) for name in names]
    elif isinstance(ours, list) and isinstance(theirs, list):
        left, right = cast("list[Any]", ours), cast("list[Any]", theirs)
        if len(left) != len(right):
            return f"{place}: {len(left)} here, {len(right)} there"
        pairs = [(f"{place}[{i}]", *both) for i, both in enumerate(zip(left, right, strict=True))]
    elif common_keys_only and theirs is None and isinstance(ours, bool):
        return None  # DeerFlow's deletions return nothing
    else:
        return None if ours == theirs else f"{place}: {ours!r:.80} here, {theirs!r:.80} there"
    found = (difference(a, b, common_keys_only=common_keys_only, place=where) for where, a, b in pairs)
    return next((text for text in found if text is not None), None)
