"""Writes of a run that must not fail because of its texts or payloads: repeated with less of them.

A run has to be stored and to end, whatever a user has sent or an error says. What fits is not decided here
but by the store, which refuses a document that is too large.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from ...contract.errors import InvalidPayloadError, PayloadTooLargeError
from .truncation import storable_entries

MAX_MESSAGE_CHARACTERS: Final = 2_000
"""What DeerFlow stores of the two messages that stand for a run in lists."""

MAX_PAYLOAD_BYTES: Final = (4 * 1024 * 1024, 256 * 1024, 0)
"""The limits of metadata and of arguments that were refused: one for each further attempt."""

MAX_TEXT_CHARACTERS: Final = (None, MAX_MESSAGE_CHARACTERS, 0)
"""The limits of a run's texts: one for each attempt to store them."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


def message(text: str | None) -> str | None:
    return None if text is None else text[:MAX_MESSAGE_CHARACTERS]


async def write_texts(run_id: str, write: Callable[..., Awaitable[T]], **texts: str | None) -> T:
    """`write` these texts, shortened if the run's document has no room for them: a run must end.

    `write` gets their limit first; 0 means that nothing optional fits.
    """
    *limits, last = MAX_TEXT_CHARACTERS
    for limit in limits:
        try:
            return await write(limit, **_shortened(texts, limit))
        except PayloadTooLargeError as error:
            logger.warning("the texts of run %r are truncated: %s", run_id, error, extra={"run_id": run_id})
    return await write(last, **_shortened(texts, last))


def _shortened(texts: Mapping[str, str | None], max_characters: int | None) -> dict[str, str | None]:
    return {name: text and text[:max_characters] for name, text in texts.items()}


async def write_payloads(write: Callable[[], Awaitable[T]], fields: Any, **ids: str) -> T:
    """`write` the fields, with those of their metadata and arguments that can be stored."""
    try:
        return await write()
    except (InvalidPayloadError, PayloadTooLargeError) as refusal:
        logger.warning("run %r is stored truncated: %s", ids["run_id"], refusal, extra=ids)
    metadata, kwargs = fields["metadata"], fields["kwargs"]
    if "error" in fields:
        fields["error"] = message(fields["error"])
    *limits, last = MAX_PAYLOAD_BYTES
    for limit in limits:
        fields["metadata"], fields["kwargs"] = (
            storable_entries(metadata, limit),
            storable_entries(kwargs, limit),
        )
        try:
            return await write()
        except PayloadTooLargeError:
            continue
    fields["metadata"], fields["kwargs"] = storable_entries(metadata, last), storable_entries(kwargs, last)
    return await write()
