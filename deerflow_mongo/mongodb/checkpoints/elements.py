"""Serialises the elements of a value, and recognises those that an earlier value had as well.

A thread's messages are put again with every step, and all but the last ones are what they were. Comparing a
message with its state of then takes a quarter of the time that serialising it takes.
"""

from __future__ import annotations

import marshal
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple, TypeAlias

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.base import SerializerProtocol

from .cutting import Buffer, CutPiece
from .headers import array_header, map_header

MSGPACK: Final = "msgpack"

_STATE_BYTES: Final = 128
"""What a state needs besides the data, about."""

MAX_STATES_BYTES: Final = 16 * 1024 * 1024
"""Of one value; the elements behind it are always serialised again."""

_SAMPLED_ELEMENTS: Final = 32
_SMALL_ELEMENT_BYTES: Final = 32
_MIN_SMALL_ELEMENTS: Final = 1024
_BATCH: Final = 256
"""Many small elements are serialised in batches: a call of serde for each takes a hundred times as long."""

_MESSAGES: Final[Mapping[type, int]] = {
    AIMessage: 1,
    AIMessageChunk: 2,
    HumanMessage: 3,
    SystemMessage: 4,
    ToolMessage: 5,
}
"""What serde stores of these, and not of their subclasses, is the class and the fields. Any numbers do."""

_MARSHAL_VERSION: Final = 2
"""The last one by which equal values of equal types give equal bytes, whoever else refers to them."""

State: TypeAlias = bytes
"""Of a unit when it was serialised: class and fields of a message, else the serialised bytes."""


class NotByElementError(Exception):
    """Serde does not give msgpack for an element."""


class Encoded(NamedTuple):
    """How a value was encoded.

    `states` are those of the first units, and `pieces` those that a value with the same beginning has as
    well. A unit is an element, or `batch` small ones.
    """

    is_dict: bool
    batch: int
    states: Sequence[State]
    pieces: Sequence[CutPiece]
    size_bytes: int
    """Of the states."""


class Elements:
    """The elements of one list, or the items of one dict."""

    def __init__(self, serde: SerializerProtocol, elements: Sequence[Any], *, is_dict: bool) -> None:
        self._serde = serde
        self._elements = elements
        self._is_dict = is_dict
        self._header = 0x81 if is_dict else 0x91  # msgpack's for one element
        self._batch = 1
        if self._are_small():
            self._batch = _BATCH

    def encoded(self, states: Sequence[State], pieces: Sequence[CutPiece]) -> Encoded:
        size = sum(map(len, states)) + _STATE_BYTES * len(states)
        return Encoded(self._is_dict, self._batch, states, pieces, size)

    def serialised(self, start: int) -> Iterator[tuple[State, Buffer, int]]:
        """From this element on: the state of each unit, its bytes, and the number of its elements."""
        elements, step = self._elements, self._batch
        if step == 1:
            for element in elements[start:]:
                # The state first: of an element that another thread changes now, it must not be newer.
                state = _fields(element)
                packed = self._packed(element)
                yield state or packed, memoryview(packed)[1:], 1  # no copy
            return
        for position in range(start, len(elements), step):
            some = elements[position : position + step]
            content = self._content(some)
            yield content, content, len(some)

    def common(self, before: Encoded, stored: Container[bytes]) -> tuple[list[CutPiece], list[State]]:
        """The pieces that an earlier value begins with and this one as well, and the states of their units.

        Only those that are `stored`.
        """
        if (before.is_dict, before.batch) != (self._is_dict, self._batch):
            return [], []
        unchanged = self._unchanged(before.states)
        complete = elements = covered = 0
        for count, piece in enumerate(before.pieces, 1):
            elements += piece.elements
            units = -(-elements // self._batch)
            if units > unchanged or piece.key not in stored:
                break
            if piece.elements:  # not a part of an element that continues
                complete, covered = count, units
        return list(before.pieces[:complete]), list(before.states[:covered])

    def _unchanged(self, states: Sequence[State]) -> int:
        """The number of the first units that are as they were."""
        pairs = zip(states, self._states(), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _states(self) -> Iterator[State]:
        elements, step = self._elements, self._batch
        if step == 1:
            for element in elements:
                yield _fields(element) or self._packed(element)
            return
        for position in range(0, len(elements), step):
            yield self._content(elements[position : position + step])

    def _packed(self, element: Any) -> bytes:
        """The bytes of an element behind the header of one."""
        kind, data = self._serde.dumps_typed({element[0]: element[1]} if self._is_dict else [element])
        if kind != MSGPACK or data[0] != self._header:
            raise NotByElementError
        return data

    def _content(self, some: Sequence[Any]) -> bytes:
        """The bytes of some elements without the header before them."""
        kind, data = self._serde.dumps_typed(dict(some) if self._is_dict else list(some))
        header = map_header(len(some)) if self._is_dict else array_header(len(some))
        if kind != MSGPACK or not data.startswith(header):
            raise NotByElementError
        return data[len(header) :]

    def _are_small(self) -> bool:
        count = len(self._elements)
        if count < _MIN_SMALL_ELEMENTS:
            return False
        sample = self._elements[:: max(1, count // _SAMPLED_ELEMENTS)]
        room = _SMALL_ELEMENT_BYTES * len(sample)
        for element in sample:  # one by one: a few of them may be large
            room -= len(self._content([element]))
            if room <= 0:
                return False
        return True


def are_plain_messages(elements: Sequence[Any]) -> bool:
    """Whether all are messages whose fields hold nothing but Python's own types."""
    return all(_fields(element) is not None for element in elements)


def _fields(element: Any) -> State | None:
    """The class and fields of a message; None for anything else, and where a field holds other objects."""
    number = _MESSAGES.get(element.__class__)
    if number is None:
        return None
    try:
        # It begins with "(": what serde gives for one element begins with another byte.
        return marshal.dumps((number, element.__dict__, element.__pydantic_extra__), _MARSHAL_VERSION)
    except ValueError:
        return None
