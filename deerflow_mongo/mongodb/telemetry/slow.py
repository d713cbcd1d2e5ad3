"""One log record for each operation that took long; where its time went, and nothing of what it stored."""

from __future__ import annotations

import logging
from typing import Final

from .operation import Operation

LOGGER_NAME: Final = "deerflow_mongo.slow"

logger = logging.getLogger(LOGGER_NAME)


def log_slow(operation: Operation, outcome: str) -> None:
    """A WARNING; the ids of the thread and the run are fields of the record and not in its text."""
    parts = [operation, *operation.groups]
    commands = sum(part.commands for part in parts)
    command_ms = sum(part.command_s for part in parts) * 1000
    collections = sorted({name for part in parts for name in part.collections})
    duration_ms = operation.seconds * 1000
    logger.warning(
        "%s took %.1f ms (%s): %d %s on %s, %.1f ms on the network and in the server",
        operation.name,
        duration_ms,
        outcome,
        commands,
        "command" if commands == 1 else "commands",
        ", ".join(collections) or "no collection",
        command_ms,
        extra={
            "operation": operation.name,
            "outcome": outcome,
            "duration_ms": round(duration_ms, 3),
            "commands": commands,
            "command_ms": round(command_ms, 3),
            "collections": collections,
            **operation.ids,
        },
    )
