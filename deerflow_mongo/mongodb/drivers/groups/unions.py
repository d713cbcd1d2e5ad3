"""Lists, and aggregations with few documents: what waits is one aggregation, with a `$unionWith` for each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from .command import CommandLane, Document, Sort, all_alone, encoded
from .lane import MAX_BYTES, Call
from .reads import copy_of

MAX_LISTED: Final = 1_000
"""Documents that the lists of a group may have together: decoding them blocks the event loop."""

FEW_BATCH: Final = 100_000
"""Of documents that are few, all in one answer, unless they exceed what the server puts into one."""
_LIST: Final = "list"
"""No document of ours has this field."""

_Given = TypeVar("_Given")


class ListQuery(NamedTuple):
    """The arguments of one `find`."""

    query: Document
    sort: Sort
    limit: int
    skip: int
    projection: Sequence[str] | None


class Aggregation(NamedTuple):
    """A pipeline, and how many documents it may be expected to give."""

    pipeline: list[Document]
    rows: int


class _Unions(CommandLane[_Given, list[Document]]):
    """Reads of several documents, in their order, as parts of one aggregation; equal ones are one part."""

    @abstractmethod
    def stages(self, given: _Given) -> list[Document]:
        """What the call asks for, as a pipeline."""

    @abstractmethod
    def rows(self, given: _Given) -> int:
        """How many documents it may get."""

    def measure(self, call: Call[_Given, list[Document]]) -> int | None:
        stages = self.stages(call.given)
        key = encoded({"pipeline": stages})
        if key is None:
            return None
        call.asked = key, stages
        return len(key) + self.rows(call.given) * (MAX_BYTES // MAX_LISTED)

    async def send(self, calls: Sequence[Call[_Given, list[Document]]]) -> None:
        equal: dict[bytes, list[Call[_Given, list[Document]]]] = {}
        for call in calls:
            key, _ = call.asked
            equal.setdefault(key, []).append(call)
        first, *others = [
            [*each[0].asked[1], {"$set": {_LIST: {"$literal": position}}}]
            for position, each in enumerate(equal.values())
        ]
        source = self._collection.name
        pipeline = first + [{"$unionWith": {"coll": source, "pipeline": stages}} for stages in others]
        documents = await self.read(self._collection.aggregate(pipeline, batch_size=FEW_BATCH))
        if documents is None:
            all_alone(calls)
            return
        found: list[list[Document]] = [[] for _ in equal]
        for document in documents:
            position: int = document.pop(_LIST)
            found[position].append(document)
        for each, of_each in zip(equal.values(), found, strict=True):
            each[0].answer(of_each)
            for call in each[1:]:
                call.answer(copy_of(of_each))


class Lists(_Unions[ListQuery]):
    kind = "list"
    command = "find"

    def can_group(self, given: ListQuery) -> bool:
        return given.limit <= MAX_LISTED and bool(given.sort)

    def rows(self, given: ListQuery) -> int:
        return given.limit

    def stages(self, given: ListQuery) -> list[Document]:
        stages: list[Document] = [{"$match": given.query}, {"$sort": dict(given.sort)}]
        if given.skip:
            stages.append({"$skip": given.skip})
        stages.append({"$limit": given.limit})
        if given.projection is not None:
            stages.append({"$project": dict.fromkeys(given.projection, 1)})
        return stages


class Aggregations(_Unions[Aggregation]):
    kind = command = "aggregate"

    def rows(self, given: Aggregation) -> int:
        return given.rows

    def stages(self, given: Aggregation) -> list[Document]:
        return given.pipeline
