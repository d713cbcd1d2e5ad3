"""Inserts, and updates by id: what waits is one unordered write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne

from .command import VERSION, CommandLane, Document, Update, encoded
from .lane import Call
from .reads import ID_TYPES

SHARD_KEY_NOT_FOUND_CODE: Final = 61
_NO_ID: Final = None
"""No document of ours has this id."""
_IS_NEW: Final[Document] = {"$eq": [{"$type": f"${VERSION}"}, "missing"]}
_REFUSED_IF_NEW: Final[Document] = {"$set": {"_id": {"$cond": [_IS_NEW, _NO_ID, "$_id"]}}}


def is_by_id(query: Document) -> bool:
    """Whether the query names one document by its `_id`."""
    if type(query.get("_id")) not in ID_TYPES:
        return False
    for name in query:  # noqa: SIM110 - a third of the time that `any` takes, before each call
        if name.startswith("$"):
            return False
    return True


class Inserts(CommandLane[Document, bool]):
    """Inserts, in any order: what the server refuses reaches its own caller only."""

    kind = "insert"
    command = write_command = "insert"

    def measure(self, call: Call[Document, bool]) -> int | None:
        data = encoded(call.given)
        if data is None:
            return None
        call.written = RawBSONDocument(data)
        return len(data)

    async def send(self, calls: Sequence[Call[Document, bool]]) -> None:
        documents = [call.written for call in calls]
        outcome = await self.write(lambda handle: handle.insert_many(documents, ordered=False))
        for position, call in enumerate(calls):
            error = outcome.refused.get(position, outcome.unconfirmed)
            if error is None:
                call.answer(True)
            else:
                self.refuse(call, error, call.given)


class Updates(CommandLane[tuple[Document, Update], int]):
    """Updates of one document each, by id and any conditions.

    The server answers with the number of matches only. So each update is sent as an upsert whose insert can
    never succeed, because it would change the `_id` that the query has (ImmutableField): the answer then
    names the updates that matched nothing. These, and all that were refused, have changed nothing, and go
    alone. A document that matches is updated as without `upsert`.
    """

    kind = "update"
    command = "update"
    _is_sharded = False

    def can_group(self, given: tuple[Document, Update]) -> bool:
        return not self._is_sharded and is_by_id(given[0])

    def measure(self, call: Call[tuple[Document, Update], int]) -> int | None:
        query, update = call.given
        update = refusing_inserts(update)
        stages = update if isinstance(update, list) else [update]
        # Encoded once: the driver copies these bytes into the command.
        raw: list[RawBSONDocument] = []
        for part in (query, *stages):
            data = encoded(part)
            if data is None:
                return None
            raw.append(RawBSONDocument(data))
        call.written = UpdateOne(raw[0], raw[1:] if isinstance(update, list) else raw[1], upsert=True)
        return sum(len(part.raw) for part in raw)

    async def send(self, calls: Sequence[Call[tuple[Document, Update], int]]) -> None:
        operations = [call.written for call in calls]
        outcome = await self.write(lambda handle: handle.bulk_write(operations, ordered=False))
        for position, call in enumerate(calls):
            refused = outcome.refused.get(position)
            if refused is not None:
                # A cluster refuses an upsert without the shard key.
                self._is_sharded = self._is_sharded or refused.code == SHARD_KEY_NOT_FOUND_CODE
                call.go_alone()
            elif outcome.unconfirmed is not None:
                self.refuse(call, outcome.unconfirmed, call.given[1])
            else:
                call.answer(1)


def refusing_inserts(update: Update) -> Update:
    """The update for an upsert that the server refuses where nothing matches."""
    if isinstance(update, list):
        return [_REFUSED_IF_NEW, *update]
    on_insert: Document = {**update.get("$setOnInsert", {}), "_id": _NO_ID}
    return {**update, "$setOnInsert": on_insert}
