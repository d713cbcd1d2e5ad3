"""mongomock: no server at all, for a host's quick tests.

It must agree with the real drivers and proves nothing about them. What it lacks and the stores need is added
here (`$$NOW`, `$type` and `$isNumber` in expressions, `$mergeObjects` and `$substrBytes` in updates, the
limit of a document's size); what else it lacks is listed in `UNSUPPORTED`. It has no TTL monitor: neither
old events nor tombstones are removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast
from weakref import WeakKeyDictionary

import bson
from mongomock_motor import AsyncMongoMockClient  # pyright: ignore[reportMissingTypeStubs]
from pymongo.errors import CollectionInvalid

from ...contract.errors import PayloadTooLargeError, StorageError
from ..documents.stored_times import BELOW_MS, NOW, REMOVED
from ..schema import ACTIVE_OPERATION_INDEX
from .collection import Collection, Document, Update
from .driver import Driver, DriverOptions
from .errors import MAX_DOCUMENT_BYTES, NO_CHANGE_STREAMS, DuplicateKeyError, too_large

# By client. Mongomock's own TTL warns of a deprecated call on Python 3.12, at every use of the collection.
_expiries: WeakKeyDictionary[Any, dict[str, dict[str, Document]]] = WeakKeyDictionary()
_EXPIRY = "expireAfterSeconds"

_OTHER_NAMES = {"$substrBytes": "$substr"}
"""An operator, and its older name, which mongomock knows."""

UNSUPPORTED: dict[str, str] = {
    "validators": "mongomock ignores a collection's validator",
    "processes": "mongomock lives in one process: other processes see nothing of it",
    "durability": "mongomock stores nothing beyond its process",
    "following": "mongomock has no change streams",
    "many_rows": "mongomock compares each new document with all stored ones: minutes for what takes a second",
    "server": "mongomock has no server to be unreachable, to log who connects or to explain a query",
}
"""What no test can show on mongomock, with the reason."""


class MongomockCollection(Collection):
    def translate(self, error: Exception, operation: str, written: object = None) -> StorageError:
        translated = super().translate(error, operation, written)
        if isinstance(translated, DuplicateKeyError) and _is_guess(error):
            translated.keys = None
        return translated

    async def find_one(self, query: Document) -> Document | None:
        return await super().find_one(_in_known_conditions(query))

    async def find(self, query: Document, **options: Any) -> list[Document]:
        return await super().find(_in_known_conditions(query), **options)

    async def find_page(self, query: Document, *, sort: Any, limit: int) -> list[Document]:
        return await self.find(query, sort=sort, limit=limit)

    async def insert_one(self, document: Document) -> None:
        _check_size(document, document)
        await super().insert_one(document)

    async def replace_one(self, query: Document, document: Document) -> int:
        _check_size(document, document)
        return await super().replace_one(_in_known_conditions(query), document)

    async def update_one(self, query: Document, update: Update) -> int:
        _check_size(update, update)
        before = await self.find_one(query)
        matched = await super().update_one(_in_known_conditions(query), _in_known_stages(update))
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

    async def insert_if_absent(self, query: Document, update: Update) -> bool:
        _check_size(update, update)
        return await super().insert_if_absent(query, update)

    async def update_many(self, query: Document, update: Update) -> int:
        return await super().update_many(_in_known_conditions(query), _in_known_stages(update))

    async def upsert_one(self, query: Document, update: Update) -> None:
        _check_size(update, update)
        before = await self.find_one(query)
        await super().upsert_one(_in_known_conditions(query), _in_known_stages(update))
        if before is not None:
            await self._check_growth(before, update)

    async def update_all(self, query: Document, update: Update) -> int:
        return await super().update_all(_in_known_conditions(query), _in_known_stages(update))

    async def find_one_and_update(self, query: Document, update: Update, **options: Any) -> Document | None:
        """The mock looks for the document once more after the update, by its id alone."""
        return await super().find_one_and_update(
            _in_known_conditions(query), _in_known_stages(update), **options
        )

    async def delete_many(self, query: Document) -> int:
        return await super().delete_many(_in_known_conditions(query))

    async def aggregate(
        self, pipeline: list[Document], *, batch_size: int = 100, **options: Any
    ) -> list[Document]:
        return await super().aggregate(_in_known_conditions(pipeline), batch_size=batch_size, **options)

    async def find_one_and_upsert(self, query: Document, update: Update, *, sort: Any = None) -> Document:
        _check_size(update, update)
        return await super().find_one_and_upsert(query, update, sort=sort)


class MongomockDriver(Driver):
    name = "mongomock"
    can_group = False

    async def connect(self, options: DriverOptions) -> Any:
        return cast("Any", AsyncMongoMockClient())

    def introduce(self, client: Any) -> None:
        """Without a server there is no log."""

    async def close_client(self, client: Any) -> None:
        client.close()

    def database_of(self, client: Any, options: DriverOptions) -> Any:
        return client[options.database]

    def collection(
        self, name: str, options: Document | None = None, *, shares_lists: bool = True
    ) -> Collection:
        # There is one node and one process: every read returns what was written, without any options.
        return self.adopt(MongomockCollection(self, name))

    async def watch(self, database: Any, pipeline: list[Document]) -> Any:
        raise StorageError(NO_CHANGE_STREAMS)

    async def command(self, document: Document, *, database: str | None = None) -> Document:
        await self.opened()
        if "ping" in document:
            return {"ok": 1.0}
        if "hello" in document:
            return {"ok": 1.0, "localTime": datetime.now(UTC)}
        raise StorageError(f"mongomock does not support the command `{next(iter(document))}`")

    async def list_collections(self, names: Sequence[str]) -> dict[str, Document]:
        existing: list[str] = await (await self.opened()).list_collection_names()
        return {name: {"name": name, "type": "collection"} for name in names if name in existing}

    async def create_collection(self, name: str, validator: Document) -> None:
        with contextlib.suppress(CollectionInvalid):  # another setup of this process was first
            await (await self.opened()).create_collection(name)

    async def set_validator(self, name: str, validator: Document, level: str) -> None:
        """Nothing: mongomock has no validators."""

    async def list_indexes(self, name: str) -> list[Document]:
        found: dict[str, Any] = await (await self.opened())[name].index_information()
        expiry = self._expiry(name)
        return [
            {**options, **expiry.get(index, {}), "name": index, "key": dict(options["key"])}
            for index, options in found.items()
        ]

    async def create_indexes(self, name: str, indexes: Sequence[Document]) -> None:
        for index in indexes:
            await self._create_index(name, index)

    async def has_results(self, name: str, pipeline: Sequence[Document]) -> bool:
        return bool(await self.collection(name).aggregate(list(pipeline)))

    async def _create_index(self, name: str, index: Document) -> None:
        if any(known["name"] == index["name"] for known in await self.list_indexes(name)):
            return  # made twice, mongomock applies a partial unique index to every document
        options = {key: value for key, value in index.items() if key not in ("key", "v", _EXPIRY)}
        if _EXPIRY in index:
            self._expiry(name)[index["name"]] = {_EXPIRY: index[_EXPIRY]}
        await (await self.opened())[name].create_index(list(index["key"].items()), **options)

    async def set_expiry(self, name: str, index: Document) -> None:
        self._expiry(name)[index["name"]] = {_EXPIRY: index[_EXPIRY]}

    def _expiry(self, name: str) -> dict[str, Document]:
        """The lifetimes in this client's TTL indexes of a collection; mongomock never reads them."""
        return _expiries.setdefault(self._client, {}).setdefault(name, {})

    async def drop_index(self, name: str, index_name: str) -> None:
        self._expiry(name).pop(index_name, None)
        await (await self.opened())[name].drop_index(index_name)


def _is_guess(error: Exception) -> bool:
    """Whether the mock may name an index whose partial filter leaves the document out; it ignores filters."""
    details = cast("Document", getattr(error, "details", None) or {})
    is_of_partial_index = details.get("keyPattern") == dict(ACTIVE_OPERATION_INDEX.keys)
    return is_of_partial_index or None in details.get("keyValue", {}).values()


def _check_size(document: object, written: object) -> None:
    if len(bson.encode({"": document})) > MAX_DOCUMENT_BYTES:
        raise too_large(written)


def _in_known_conditions(condition: Any) -> Any:
    """A query or a pipeline without the conditions that the mock lacks.

    In place of `$jsonSchema` it asks for the required fields, and in place of several types for any value:
    nothing else writes to a mock.
    """
    if isinstance(condition, list):
        return [_in_known_conditions(item) for item in cast("list[Any]", condition)]
    if not isinstance(condition, dict):
        return condition
    document = cast("Document", condition)
    if "$jsonSchema" in document:
        others = {key: value for key, value in document.items() if key != "$jsonSchema"}
        return {"$and": [_in_known_conditions(others), _has_required(document["$jsonSchema"])]}
    if isinstance(document.get("$type"), list):
        return {"$exists": True}
    return {
        key: _in_known_operators(value) if key == "$expr" else _in_known_conditions(value)
        for key, value in document.items()
    }


def _has_required(schema: Document) -> Document:
    if "anyOf" in schema:
        return {"$or": [_has_required(alternative) for alternative in schema["anyOf"]]}
    return {"$and": [{field: {"$exists": True}} for field in schema["required"]]}


def _now() -> datetime:
    """The time of a server, which is in whole milliseconds."""
    now = datetime.now(UTC).replace(tzinfo=None)
    return now.replace(microsecond=now.microsecond // 1_000 * 1_000)


def _in_known_stages(update: Update) -> Update:
    """A pipeline with operators that mongomock knows; what a plain update sets is data."""
    return _in_known_operators(update) if isinstance(update, list) else update


def _in_known_operators(expression: Any, field: str = "") -> Any:
    """`expression` with operators that mongomock knows in place of those that it lacks.

    It removes no `field`: microseconds that are 0, and another field that is null, read and sort as a missing
    one does.
    """
    if expression == REMOVED:
        return 0 if field.endswith(BELOW_MS) else None
    if expression == NOW:
        return _now()
    if isinstance(expression, list):
        return [_in_known_operators(item, field) for item in cast("list[Any]", expression)]
    if not isinstance(expression, dict) or "$literal" in expression:
        return cast("Any", expression)
    document = cast("Document", expression)
    if "$isNumber" in document:
        return {"$ne": [document["$isNumber"], None]}  # as for queries: nothing else writes to a mock
    if "$type" in document:
        return {"$cond": [{"$ne": [document["$type"], None]}, "date", "null"]}
    if "$mergeObjects" in document:
        pairs = [{"$objectToArray": _in_known_operators(item)} for item in document["$mergeObjects"]]
        return {"$arrayToObject": {"$concatArrays": pairs}}
    return {
        _OTHER_NAMES.get(key, key): _in_known_operators(value, field if key.startswith("$") else key)
        for key, value in document.items()
    }
