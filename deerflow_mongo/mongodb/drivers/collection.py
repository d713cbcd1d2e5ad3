"""One collection, one method per server command: a store's method that calls one of them is one round trip.

What differs between drivers is asked of the `CollectionDriver`; nothing here knows what a run or a vote is.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from bson import Timestamp
from pymongo import DeleteMany, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from ...contract.errors import StorageClosedError, StorageError, StorageUnavailableError
from ..observation import CommandObserver
from .errors import DRIVER_ERRORS, no_answer, refusals, translate, with_cause
from .event_loop import error_of_other_loop
from .groups.command import Document, Sort, Update
from .groups.lane import GroupDriver
from .groups.reads import ID_INDEX, NO_DOCUMENT, Reads
from .groups.unions import FEW_BATCH, Aggregation, Aggregations, ListQuery, Lists
from .groups.upserts import UpsertQuery, Upserts
from .groups.writes import Inserts, Updates

_MAX_BATCH_SIZE = 2**31 - 1


class CollectionDriver(GroupDriver, Protocol):
    """What a collection needs of its driver, in addition to what its lanes need; see `Driver`."""

    database_name: str
    observer: CommandObserver | None
    has_groups: bool

    async def opened(self) -> Any: ...
    def handle_options(self, options: Document) -> Document: ...
    async def rows(self, cursor: Any) -> list[Document]: ...
    async def session(self) -> Any: ...
    async def aggregate(self, handle: Any, pipeline: list[Document], options: Document) -> Any: ...


class Collection:
    """One collection; each method is one command to the server, or a part of one: see `groups/`.

    Raises the package's own errors, and `DuplicateKeyError` where a unique index refuses a write.
    """

    def __init__(
        self,
        driver: CollectionDriver,
        name: str,
        options: Document | None = None,
        *,
        shares_lists: bool = True,
    ) -> None:
        """With `shares_lists`, lists that wait share commands, which pays where documents are small."""
        self._driver = driver
        self._name = name
        self._options = options or {}
        self._handle: Any = None
        self._has_groups = driver.has_groups
        self._shares_lists = driver.has_groups and shares_lists
        self._reads = Reads(driver, self)
        self._lists = Lists(driver, self)
        self._aggregations = Aggregations(driver, self)
        self._inserts = Inserts(driver, self)
        self._updates = Updates(driver, self)
        self._upserts = Upserts(driver, self)
        self._lanes = (
            *(self._reads, self._lists, self._aggregations),
            *(self._inserts, self._updates, self._upserts),
        )

    def end_groups(self) -> set[asyncio.Task[None]]:
        """End the calls that wait to share a command; the commands that several share and that go on."""
        return set[asyncio.Task[None]]().union(*(lane.close() for lane in self._lanes))

    @property
    def name(self) -> str:
        """The name in the database, prefix included."""
        return self._name

    async def handle(self) -> Any:
        """The driver's own collection object; opens the client at the first use."""
        if self._handle is None:
            database = await self._driver.opened()
            options = self._driver.handle_options(self._options)
            self._handle = database.get_collection(self._name, **options)
        return self._handle

    def check_owner(self) -> None:
        """Raise `StorageError` in another event loop or process than the storage's own."""
        self._driver.owner.refuse_others()

    def drop_handle(self) -> None:
        """Drop the handle, so that the next use asks the driver, which may be closed."""
        self._handle = None

    async def run(self, operation: str, call: Callable[[Any], Awaitable[Any]], written: object = None) -> Any:
        """What `call` returns for the handle; every command goes through here.

        `operation` is the server's command, for the error's text; `written` is what it stores.
        """
        driver = self._driver
        driver.owner.check()
        handle = self._handle if self._handle is not None else await self.handle()
        if driver.observer is not None:
            call = driver.observer.observed(self._name, operation, call)
        try:
            with driver.time_limit.call():
                return await call(handle)
        except DRIVER_ERRORS as error:
            raise self.translate(error, operation, written) from error
        except TimeoutError as error:
            raise self.no_answer(operation) from error
        except RuntimeError as error:
            refused = error_of_other_loop(error)
            if refused is None:
                raise
            raise refused from error

    def translate(self, error: Exception, operation: str, written: object = None) -> StorageError:
        translated = translate(error, operation, self._namespace, written)
        if isinstance(translated, StorageUnavailableError) and self._driver.is_closed:
            return StorageClosedError()  # the driver reports what its close interrupted as a lost connection
        return translated

    def no_answer(self, operation: str) -> StorageError:
        """The error of a call whose time is over."""
        return no_answer(operation, self._namespace, self._driver.time_limit.effective_ms)

    @property
    def _namespace(self) -> str:
        return f"{self._driver.database_name}.{self._name}"

    # Reading.

    async def find_one(self, query: Document) -> Document | None:
        """The document that matches, as an object of the caller's own."""
        if self._has_groups:
            return await self._reads.run(query, self._find_one) or None
        return await self._find_one(query) or None

    async def _find_one(self, query: Document) -> Document:
        return await self.run("find", lambda handle: handle.find_one(query)) or NO_DOCUMENT

    async def find_by_ids(self, query: Document, count: int) -> list[Document]:
        """The documents, at most `count`, of a query whose every clause names ids."""
        return await self.run(
            "find",
            lambda handle: self._driver.rows(
                handle.find(query, limit=count, batch_size=count + 1, hint=ID_INDEX)
            ),
        )

    async def find_candidates(self, query: Document, sort: Sort, limit: int) -> list[Document]:
        """As `find`, never as a part of a group."""
        return await self._find(ListQuery(query, sort, limit, 0, None))

    async def find(
        self,
        query: Document,
        *,
        sort: Sort,
        limit: int,
        skip: int = 0,
        projection: Sequence[str] | None = None,
    ) -> list[Document]:
        """At most `limit` (from 1 up) documents, all in one answer unless they exceed what one holds."""
        given = ListQuery(query, sort, limit, skip, projection)
        if self._shares_lists:
            return await self._lists.run(given, self._find)
        return await self._find(given)

    async def _find(self, given: ListQuery, **session: Any) -> list[Document]:
        query, sort, limit, skip, projection = given
        # One more than the limit lets the server close the cursor with its first answer.
        size = min(limit + 1, _MAX_BATCH_SIZE)
        return await self.run(
            "find",
            lambda handle: self._driver.rows(
                handle.find(query, projection, sort=sort, limit=limit, skip=skip, batch_size=size, **session)
            ),
        )

    async def find_as_of(
        self,
        query: Document,
        *,
        sort: Sort,
        limit: int,
        as_of: Timestamp | None,
        projection: Sequence[str] | None = None,
    ) -> list[Document]:
        """As `find`, of a state that has every write up to this time of the cluster; it is waited for.

        Else a read of what a majority has may be of a state before a change that a change stream has told of:
        just after another member became the primary.
        """
        if as_of is None:
            return await self.find(query, sort=sort, limit=limit, projection=projection)
        async with await self._driver.session() as session:
            session.advance_operation_time(as_of)
            return await self._find(ListQuery(query, sort, limit, 0, projection), session=session)

    async def find_page(self, query: Document, *, sort: Sort, limit: int) -> list[Document]:
        """The first documents, at most `limit` and no more than one answer holds; none where there are none.

        An answer holds 16 MiB, and at least one document.
        """
        return await self.run(
            "find", lambda handle: self._driver.rows(handle.find(query, sort=sort, limit=-limit))
        )

    async def stream(
        self,
        query: Document,
        *,
        sort: Sort | None = None,
        projection: Sequence[str] | None = None,
        batch_size: int = 1_000,
    ) -> AsyncGenerator[list[Document]]:
        """All documents, in batches: one command for each, with the time limit of a call.

        What a batch shows is of the time when it is read. Close it where it is not read to its end.
        """
        cursor: Any = None

        async def first(handle: Any) -> list[Document]:
            nonlocal cursor
            cursor = handle.find(query, projection, sort=sort, batch_size=batch_size)
            return await cursor.to_list(batch_size)

        try:
            batch = await self.run("find", first)
            while batch:
                yield batch
                batch = await self.run("getMore", lambda _: cursor.to_list(batch_size))
        finally:
            if cursor is not None:
                closing = cursor.close()
                if inspect.isawaitable(closing):
                    await closing

    async def aggregate(
        self, pipeline: list[Document], *, batch_size: int = 100, **options: Any
    ) -> list[Document]:
        """`options` are the command's own, such as `allowDiskUse`."""
        given = {"batchSize": batch_size, **options}

        async def read(handle: Any) -> list[Document]:
            return await self._driver.rows(await self._driver.aggregate(handle, pipeline, given))

        return await self.run("aggregate", read)

    async def aggregate_few(self, pipeline: list[Document], *, rows: int = 1) -> list[Document]:
        """All documents of a pipeline that may be expected to give as few as `rows`, in one answer."""
        given = Aggregation(pipeline, rows)
        if self._has_groups:
            return await self._aggregations.run(given, self._aggregate_few)
        return await self._aggregate_few(given)

    async def _aggregate_few(self, given: Aggregation) -> list[Document]:
        return await self.aggregate(given.pipeline, batch_size=FEW_BATCH)

    # Writing.

    async def insert_one(self, document: Document) -> None:
        if self._has_groups:
            await self._inserts.run(document, self._insert_one)
        else:
            await self._insert_one(document)

    async def _insert_one(self, document: Document) -> bool:
        await self.run("insert", lambda handle: handle.insert_one(document), document)
        return True

    async def insert_many(self, documents: list[Document]) -> None:
        """In their order, up to the first that is refused."""
        await self.run("insert", lambda handle: handle.insert_many(documents), documents)

    async def insert_each(self, documents: list[Document]) -> dict[int, StorageError]:
        """Insert all that are not refused; why the others were, by their positions."""

        async def insert(handle: Any) -> Mapping[int, OperationFailure]:
            try:
                await handle.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                return refusals(error)
            return {}

        found: Mapping[int, OperationFailure] = await self.run("insert", insert, documents)
        return {
            position: with_cause(self.translate(error, "insert", documents[position]), error)
            for position, error in found.items()
        }

    async def replace_one(self, query: Document, document: Document) -> int:
        """The number of documents that matched: 0 or 1."""
        result = await self.run("update", lambda handle: handle.replace_one(query, document), document)
        return result.matched_count

    async def update_one(self, query: Document, update: Update) -> int:
        """The number of documents that matched: 0 or 1."""
        if self._has_groups:
            return await self._updates.run((query, update), self._update_one)
        return await self._update_one((query, update))

    async def _update_one(self, given: tuple[Document, Update]) -> int:
        query, update = given
        result = await self.run("update", lambda handle: handle.update_one(query, update), update)
        return result.matched_count

    async def insert_if_absent(self, query: Document, update: Update) -> bool:
        """Insert what `update` sets on an insert, unless a document matches; whether it did so."""
        result = await self.run(
            "update", lambda handle: handle.update_one(query, update, upsert=True), update
        )
        return result.upserted_id is not None

    async def update_many(self, query: Document, update: Update) -> int:
        """The number of documents that were changed."""
        result = await self.run("update", lambda handle: handle.update_many(query, update), update)
        return result.modified_count

    async def upsert_one(self, query: Document, update: Update) -> None:
        """Update the document that matches, or insert one."""
        await self.run("update", lambda handle: handle.update_one(query, update, upsert=True), update)

    async def upsert_many(self, changes: Sequence[tuple[Document, Update]]) -> None:
        """Update or insert one document each, in any order; as many commands as their size needs."""
        operations = [UpdateOne(query, update, upsert=True) for query, update in changes]
        await self.run(
            "update",
            lambda handle: handle.bulk_write(operations, ordered=False),
            [update for _, update in changes],
        )

    async def update_all(self, query: Document, update: Update) -> int:
        """As `update_many`; the number of documents that matched."""
        result = await self.run("update", lambda handle: handle.update_many(query, update), update)
        return result.matched_count

    async def find_one_and_update(
        self,
        query: Document,
        update: Update,
        *,
        projection: Sequence[str] | None = None,
        return_document: bool = ReturnDocument.AFTER,
    ) -> Document | None:
        """Update the match; the document, or these fields of it, None without one.

        As it is afterwards, or before with `ReturnDocument.BEFORE`.
        """
        return await self.run(
            "findAndModify",
            lambda handle: handle.find_one_and_update(
                query, update, projection, return_document=return_document
            ),
            update,
        )

    async def find_one_and_upsert(
        self, query: Document, update: Update, *, sort: Sort | None = None
    ) -> Document:
        """Update the first match, or insert; the document as it is afterwards."""
        given = UpsertQuery(query, update, sort)
        if self._has_groups:
            return await self._upserts.run(given, self._find_one_and_upsert)
        return await self._find_one_and_upsert(given)

    async def _find_one_and_upsert(self, given: UpsertQuery) -> Document:
        query, update, sort = given
        return await self.run(
            "findAndModify",
            lambda handle: handle.find_one_and_update(
                query, update, sort=sort, upsert=True, return_document=ReturnDocument.AFTER
            ),
            update,
        )

    async def delete_one(self, query: Document) -> bool:
        result = await self.run("delete", lambda handle: handle.delete_one(query))
        return result.deleted_count == 1

    async def delete_many(self, query: Document) -> int:
        """The number of documents that were deleted."""
        result = await self.run("delete", lambda handle: handle.delete_many(query))
        return result.deleted_count

    async def delete_each(self, queries: Sequence[Document]) -> int:
        """Delete what matches any of the queries; cheaper than one query with `$or` where there are many."""
        operations = [DeleteMany(query) for query in queries]
        result = await self.run("delete", lambda handle: handle.bulk_write(operations, ordered=False))
        return result.deleted_count

    async def find_one_and_delete(self, query: Document, *, sort: Sort) -> Document | None:
        return await self.run("findAndModify", lambda handle: handle.find_one_and_delete(query, sort=sort))


def end_if_cancelled() -> None:
    """A driver may swallow a task's cancellation when its answer arrives at the same moment."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
