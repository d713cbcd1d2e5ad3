"""Checkpoints as LangGraph's loop makes them, for tests that call a saver directly."""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.base import Checkpoint, CheckpointTuple, empty_checkpoint

Config = Any


def config_of(thread_id: Any, *, ns: str = "", checkpoint_id: str | None = None) -> Config:
    configurable = {"thread_id": thread_id, "checkpoint_ns": ns}
    return {"configurable": configurable | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


def checkpoint_with(values: dict[str, Any], version: int = 1) -> Checkpoint:
    """A new checkpoint, whose channels all have this version."""
    versions: Any = dict.fromkeys(values, f"{version:032}.0")
    return {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}


def metadata(**fields: Any) -> Any:
    return {"source": "loop", "step": 0, "parents": {}, **fields}


async def put(saver: Any, parent: Config, values: dict[str, Any], version: int = 1, **fields: Any) -> Config:
    """Put a checkpoint with these values after `parent`; the config of the new one."""
    checkpoint = checkpoint_with(values, version)
    return await saver.aput(parent, checkpoint, metadata(**fields), checkpoint["channel_versions"])


async def values_of(saver: Any, config: Config) -> dict[str, Any]:
    found: CheckpointTuple | None = await saver.aget_tuple(config)
    assert found is not None
    return found.checkpoint["channel_values"]


async def listed(saver: Any, config: Config | None, **options: Any) -> list[Any]:
    return [row async for row in saver.alist(config, **options)]


def id_of(config: Config) -> str:
    return config["configurable"]["checkpoint_id"]
