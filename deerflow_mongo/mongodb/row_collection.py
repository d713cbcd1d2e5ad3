"""A collection as rows: what a store does with a document that it cannot read, and with a newer one.

Another program may have changed a document, or a newer release may have written it. A list leaves such a
document out and logs it; a method that is given its id raises `CorruptDocumentError`. A document of a newer
version is never changed. A second command is sent only where the first one failed or matched nothing. How a
document becomes a row is in `documents/`, what is wrong with one in `corruption.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from pymongo import ReturnDocument

from ..contract.errors import CorruptDocumentError, StorageError
from . import queries
from .corruption import READ_ERRORS, corruption_of, is_refused
from .documents.encoding import Document, Update
from .documents.versions import is_newer
from .drivers.collection import Collection, Sort
from .queries import Query
from .schema import COLLECTIONS

logger = logging.getLogger(__name__)

_SCHEMAS = {schema.name: schema for schema in COLLECTIONS}

_REFILL = 100
"""Documents that are read at least to replace those that were left out of a list."""

_Row = TypeVar("_Row")


class RowCollection(Generic[_Row]):
    """One collection, whose documents are read as rows. Raises what `Collection` raises."""

    def __init__(self, collection: Collection, schema_name: str, to_row: Callable[[Document], _Row]) -> None:
        self._collection = collection
        self._schema = _SCHEMAS[schema_name]
        self._to_row = to_row

    # Reading.

    def row(self, document: Document) -> _Row:
        """The row of a document. Raises `CorruptDocumentError`."""
        try:
            return self._to_row(document)
        except READ_ERRORS as error:
            raise self._corruption(document) from error

    def rows(self, documents: Iterable[Document]) -> list[_Row]:
        """The rows of the documents that can be read; the others are logged at ERROR."""
        found: list[_Row] = []
        for document in documents:
            try:
                found.append(self._to_row(document))
            except READ_ERRORS:
                self._log(document)
        return found

    async def find_one(self, query: Query) -> _Row | None:
        document = await self._collection.find_one(query)
        return None if document is None else self.row(document)

    async def find(self, query: Query, *, sort: Sort, limit: int) -> list[_Row]:
        """The first `limit` rows, from 1 up; the documents that cannot be read do not count."""
        documents = await self._collection.find(query, sort=sort, limit=limit)
        rows = self.rows(documents)
        skipped, wanted = len(documents), limit
        while len(rows) < limit and len(documents) == wanted:
            wanted = max(limit - len(rows), _REFILL)
            documents = await self._collection.find(query, sort=sort, limit=wanted, skip=skipped)
            rows += self.rows(documents)
            skipped += wanted
        return rows[:limit]

    async def find_page(self, query: Query, *, sort: Sort, limit: int, skip: int) -> list[_Row]:
        """The rows of `limit` documents behind the first `skip`, so that no page repeats a row of another."""
        return self.rows(await self._collection.find(query, sort=sort, limit=limit, skip=skip))

    # Writing.

    async def update_one(self, query: Query, update: Update) -> bool:
        """Whether a document matched. Raises `CorruptDocumentError` for one that may not be changed."""
        if await self.update_matching(query, update):
            return True
        await self.check_not_newer(query)
        return False

    async def update_matching(self, query: Query, update: Update) -> bool:
        """As `update_one`, by one command: where nothing matched, the caller finds out why."""
        try:
            return bool(await self._collection.update_one(queries.changeable(query), update))
        except StorageError as error:
            raise await self._reason(query, error) from error.__cause__

    async def upsert_one(self, query: Query, update: Update) -> None:
        """As `Collection` does. After a `DuplicateKeyError`, `check_not_newer` finds out why."""
        try:
            await self._collection.upsert_one(queries.changeable(query), update)
        except StorageError as error:
            raise await self._reason(query, error) from error.__cause__

    async def update_all(self, query: Query, update: Update) -> int:
        """The number of documents that matched. Those that the validator refuses are left out.

        The server would end the whole update at the first of them.
        """
        valid = {**queries.changeable(query), **self._schema.stored_validator}
        return await self._collection.update_all(valid, update)

    async def find_one_and_update(
        self, query: Query, update: Update, *, projection: Sequence[str] | None = None
    ) -> Document | None:
        """The document that matched, or these fields of it, as it is afterwards; see `update_matching`."""
        try:
            return await self._collection.find_one_and_update(
                queries.changeable(query), update, projection=projection
            )
        except StorageError as error:
            raise await self._reason(query, error) from error.__cause__

    async def update_and_read(self, query: Query, update: Update) -> Document | None:
        """The document that matched, as it was before; the update must not change one of a newer version.

        Raises `CorruptDocumentError` for a newer one: this command needs no second one to find out why.
        """
        try:
            document = await self._collection.find_one_and_update(
                query, update, return_document=ReturnDocument.BEFORE
            )
        except StorageError as error:
            raise await self._reason(query, error) from error.__cause__
        if document is not None and is_newer(document):
            raise self._corruption(document)
        return document

    async def find_one_and_upsert(self, query: Query, update: Update, *, sort: Sort | None = None) -> _Row:
        """As `Collection` does. After a `DuplicateKeyError`, `check_not_newer` finds out why."""
        try:
            document = await self._collection.find_one_and_upsert(
                queries.changeable(query), update, sort=sort
            )
        except StorageError as error:
            raise await self._reason(query, error, sort) from error.__cause__
        return self.row(document)

    async def delete_one(self, query: Query) -> bool:
        """Whether a document was deleted; also one that cannot be read, but none of a newer version."""
        if await self._collection.delete_one(queries.changeable(query)):
            return True
        await self.check_not_newer(query)
        return False

    async def find_one_and_delete(self, query: Query, *, sort: Sort) -> bool:
        """As `delete_one`, for the first document in this order."""
        if await self._collection.find_one_and_delete(queries.changeable(query), sort=sort) is not None:
            return True
        await self.check_not_newer(query)
        return False

    # Why a write failed or matched nothing.

    async def check_not_newer(self, query: Query) -> None:
        """Raise `CorruptDocumentError` where the document that a write looked for is of a newer version."""
        document = await self._collection.find_one(queries.newer(query))
        if document is not None:
            raise self._corruption(document)

    async def _reason(self, query: Query, error: StorageError, sort: Sort | None = None) -> StorageError:
        """`CorruptDocumentError` where the document is the reason for the server's error, else the error."""
        if type(error) is not StorageError:
            return error
        by = sort or (("_id", 1),)
        with contextlib.suppress(StorageError):  # the first error is the one to report
            for document in await self._collection.find(query, sort=by, limit=1):
                if is_refused(self._schema, document):
                    return self._corruption(document)
        return error

    def _corruption(self, document: Document) -> CorruptDocumentError:
        return corruption_of(self._collection.name, self._schema, document)

    def _log(self, document: Document) -> None:
        error = self._corruption(document)
        logger.error(
            "%s; it is left out",
            error,
            extra={"collection": error.collection, "document_id": error.document_id, "field": error.field},
        )
