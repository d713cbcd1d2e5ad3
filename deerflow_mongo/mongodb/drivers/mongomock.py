"""mongomock: no server at all, for a host's quick tests.

It must agree with the real ones and proves nothing about them. What it lacks and the stores need is made up
for here (`$mergeObjects` and `$substrBytes` in updates, the limit of a document's size); what it lacks beyond
that is listed in `UNSUPPORTED`. It removes nothing by its age, neither old events nor stubs.
"""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakKeyDictionary

import bson
from mongomock_motor import AsyncMongoMockClient  # pyright: ignore[reportMissingTypeStubs]

from ...contract.errors import PayloadTooLargeError, StorageError
from .base import (
    MAX_DOCUMENT_BYTES,
    NO_CHANGE_STREAMS,
    Collection,
    Document,
    Driver,
    DriverOptions,
    Update,
    too_large,
)

# By client. The mock's own TTL warns of a deprecated call on Python 3.12, at every use of the collection.
_expiries: WeakKeyDictionary[Any, dict[str, dict[str, Document]]] = WeakKeyDictionary()
_EXPIRY = "expireAfterSeconds"

_OTHER_NAMES = {"$substrBytes": "$substr"}
"""An operator, and its older name, which the mock knows."""

UNSUPPORTED: dict[str, str] = {
    "validators": "mongomock ignores a collection's validator",
    "processes": "a mock lives in one process: another one sees nothing of it",
    "durability": "a mock keeps nothing when its process ends",
    "following": "mongomock has no change streams",
    "server": "a mock has no server to be unreachable, to log who connects or to explain a query",
}
"""What no test can show on the mock, with the reason."""


class MongomockCollection(Collection):
    async def insert_one(self, document: Document) -> None:
        _check_size(document, document)
        await super().insert_one(document)

    async def update_one(self, query: Document, update: Update) -> int:
        _check_size(update, update)
        before = await self.find_one(query)
        matched = await super().update_one(query, _in_its_words(update))
        if before is not None:
            await self._check_growth(before, update)
        return matched

    async def _check_growth(self, before: Document, update: Update) -> None:
        """Undo an update whose result a server would refuse; nothing else runs in between."""
        by_id: Document = {"_id": before["_id"]}
        try:
            _check_size(await self.find_one(by_id), update)
        except PayloadTooLargeError:
            await (await self.handle()).replace_one(by_id, before)
            raise

    async def find_one_and_upsert(self, query: Document, update: Update, *, sort: Any = None) -> Document:
        _check_size(update, update)
        return await super().find_one_and_upsert(query, update, sort=sort)


class MongomockDriver(Driver):
    name = "mongomock"

    def connect(self, options: DriverOptions) -> Any:
        return cast("Any", AsyncMongoMockClient())

    def introduce(self, client: Any) -> None:
        """Nobody is there to be told."""

    async def close_client(self, client: Any) -> None:
        client.close()

    def database_of(self, client: Any, options: DriverOptions) -> Any:
        return client[options.database]

    def collection(self, name: str, options: Document | None = None) -> Collection:
        # There is one node and one process: every read sees all that is written.
        return self.adopt(MongomockCollection(self, name))

    async def insert_in_transaction(self, handle: Any, documents: list[Document]) -> None:
        await handle.insert_many(documents)

    async def watch(self, handle: Any, pipeline: list[Document]) -> Any:
        raise StorageError(NO_CHANGE_STREAMS)

    async def command(self, document: Document, *, database: str | None = None) -> Document:
        await self.opened()
        if "ping" in document:
            return {"ok": 1.0}
        raise NotImplementedError(f"mongomock runs no command such as {next(iter(document))}")

    async def list_collections(self) -> dict[str, Document]:
        names: list[str] = await (await self.opened()).list_collection_names()
        return {name: {} for name in names}

    async def create_collection(self, name: str, validator: Document) -> None:
        await (await self.opened()).create_collection(name)

    async def set_validator(self, name: str, validator: Document) -> None:
        """Ignored, as the mock ignores every validator."""

    async def list_indexes(self, name: str) -> list[Document]:
        found: dict[str, Any] = await (await self.opened())[name].index_information()
        expiry = self._expiry(name)
        return [
            {**options, **expiry.get(index, {}), "name": index, "key": dict(options["key"])}
            for index, options in found.items()
        ]

    async def create_index(self, name: str, index: Document) -> None:
        if any(known["name"] == index["name"] for known in await self.list_indexes(name)):
            return  # made again, the mock would take every document for one of a partial unique index
        options = {key: value for key, value in index.items() if key not in ("key", "v", _EXPIRY)}
        if _EXPIRY in index:
            self._expiry(name)[index["name"]] = {_EXPIRY: index[_EXPIRY]}
        await (await self.opened())[name].create_index(list(index["key"].items()), **options)

    async def set_expiry(self, name: str, index: Document) -> None:
        self._expiry(name)[index["name"]] = {_EXPIRY: index[_EXPIRY]}

    def _expiry(self, name: str) -> dict[str, Document]:
        """What this client's TTL indexes of a collection say; the mock is not told and removes nothing."""
        return _expiries.setdefault(self._client, {}).setdefault(name, {})

    async def drop_index(self, name: str, index_name: str) -> None:
        self._expiry(name).pop(index_name, None)
        await (await self.opened())[name].drop_index(index_name)


def _check_size(document: object, written: object) -> None:
    if len(bson.encode({"": document})) > MAX_DOCUMENT_BYTES:
        raise too_large(written)


def _in_its_words(expression: Any) -> Any:
    """`expression` with what the mock lacks said by operators that it knows."""
    if isinstance(expression, list):
        return [_in_its_words(item) for item in cast("list[Any]", expression)]
    if not isinstance(expression, dict) or "$literal" in expression:
        return cast("Any", expression)
    document = cast("Document", expression)
    if "$mergeObjects" in document:
        pairs = [{"$objectToArray": item} for item in document["$mergeObjects"]]
        return {"$arrayToObject": {"$concatArrays": pairs}}
    return {_OTHER_NAMES.get(key, key): _in_its_words(value) for key, value in document.items()}
