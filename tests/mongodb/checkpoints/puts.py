"""Checkpoints that a test puts itself, and the check that what a saver lists is what was put."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.checkpoint.base import Checkpoint, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6


def texts(seed: str, count: int = 60) -> list[str]:
    """A value of several pieces, the same for the same seed; it does not compress to less."""
    numbers = random.Random(seed)  # noqa: S311 - no secret
    return [f"{seed}-{numbers.randbytes(120).hex()}" for _ in range(count)]


def new_checkpoint(values: Mapping[str, Any], checkpoint_id: str | None = None) -> Checkpoint:
    checkpoint = empty_checkpoint()
    checkpoint["id"] = checkpoint_id or str(uuid6())
    checkpoint["channel_values"] = dict(values)
    checkpoint["channel_versions"] = {name: uuid.uuid4().hex for name in values}
    return checkpoint


async def put(
    saver: Any,
    thread: str,
    value: Any,
    *,
    parent: str | None = None,
    ns: str = "",
    checkpoint_id: str | None = None,
    values: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> str:
    """Put a checkpoint whose channel `value` has this value; its id."""
    channels = {"value": value} if values is None else values
    checkpoint = new_checkpoint(channels, checkpoint_id)
    configurable = {"thread_id": thread, "checkpoint_ns": ns}
    if parent is not None:
        configurable["checkpoint_id"] = parent
    config = {"configurable": configurable}
    await saver.aput(config, checkpoint, {"step": 1, **metadata}, checkpoint["channel_versions"])
    return checkpoint["id"]


async def put_writes(saver: Any, thread: str, checkpoint_id: str, value: Any, ns: str = "") -> None:
    config = {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}
    await saver.aput_writes(config, [("value", value)], "task-1")


async def listed(saver: Any, thread: str, ns: str | None = None) -> dict[str, CheckpointTuple]:
    """What a saver lists of a thread, by checkpoint id."""
    configurable = {"thread_id": thread} if ns is None else {"thread_id": thread, "checkpoint_ns": ns}
    return {found.checkpoint["id"]: found async for found in saver.alist({"configurable": configurable})}


async def values_of(saver: Any, thread: str) -> dict[str, Any]:
    """The channel `value` of each checkpoint of a thread, by checkpoint id."""
    found = await listed(saver, thread)
    return {name: row.checkpoint["channel_values"].get("value") for name, row in found.items()}


async def read_each(saver: Any, thread: str, checkpoints: Sequence[str]) -> dict[str, CheckpointTuple]:
    """Those of these checkpoints that a saver finds, each read alone."""
    found: dict[str, CheckpointTuple] = {}
    for name in checkpoints:
        config = {"configurable": {"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": name}}
        row = await saver.aget_tuple(config)
        if row is not None:
            found[name] = row
    return found
