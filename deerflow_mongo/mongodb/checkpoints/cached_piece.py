"""A piece as readers share it. Its messages are copied instead of decoded once they were read twice."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from .elements import are_plain_messages


class CachedPiece:
    """The number of elements of a piece and its data, as it was read, or a copy of its messages.

    Making messages of a copy takes a fourth of the time that serde takes, which validates them anew.
    """

    __slots__ = ("_codec", "_is_decoded", "data", "elements", "size")

    def __init__(self, data: Any, elements: Any) -> None:
        self.data = data
        self.elements = elements
        self.size = self.held_bytes
        """Of the piece in the database."""
        self._codec: object = None
        self._is_decoded = False

    @property
    def held_bytes(self) -> int:
        """What it takes up here."""
        return len(self.data) if isinstance(self.data, bytes) else 0

    def is_for(self, codec: object) -> bool:
        """Whether this codec can use it: what one has accepted, another one may refuse."""
        return self._codec is None or self._codec is codec

    def messages(self) -> list[Any] | None:
        """New messages, equal to those that were decoded; None without a copy of them."""
        if self._codec is None:
            return None
        return pickle.loads(self.data)  # noqa: S301 - made by this process, of what serde had accepted

    def copied(self, codec: object, elements: Sequence[Any]) -> CachedPiece | None:
        """The same piece with a copy of its elements, when they are plain messages and were decoded before.

        To be called before anyone can change the elements.
        """
        if self._is_decoded and are_plain_messages(elements):
            copy = CachedPiece(pickle.dumps(elements, pickle.HIGHEST_PROTOCOL), self.elements)
            copy.size, copy._codec = self.size, codec
            return copy
        self._is_decoded = True
        return None
