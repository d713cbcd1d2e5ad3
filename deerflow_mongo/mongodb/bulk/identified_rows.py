"""Imports rows that have an id of their own: accounts, threads, runs and feedback.

One insert stores what is new. What the server refuses is read and compared: a document that has not changed
since it was imported is replaced, by a command that requires it to be as it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ...contract.bulk_rows import BulkRow, Imported, Key, RefusedRow
from ...contract.errors import StorageError
from ...contract.row_digests import row_digest
from ..corruption import READ_ERRORS, corruption_of
from ..documents.encoding import Document
from ..documents.exported_rows import ClockReading, imported, is_as_imported
from ..documents.users import EMAIL_KEY
from ..drivers.collection import Collection
from ..drivers.errors import DuplicateKeyError
from ..queries import by_ids, changeable
from ..schema import USERS, schema_of
from . import queries
from .kinds import EMAIL_TAKEN, IdentifiedKind
from .sizes import parts, size_or_refusal

_ROUNDS: Final = 4
"""A row that another one was in the way of is tried again, as long as others were replaced meanwhile."""

_BY_ID: Final = (("_id", 1),)


class _Given(NamedTuple):
    """A row to be imported, and its document."""

    key: Key
    row: BulkRow
    document: Document
    size_bytes: int

    def refused(self, error: StorageError) -> RefusedRow:
        return RefusedRow(self.key, str(error))

    def conflict(self, reason: str) -> RefusedRow:
        return RefusedRow(self.key, reason, is_conflict=True)


class IdentifiedRowImport:
    """One call of `import_rows`, for one of these kinds."""

    def __init__(self, collection: Collection, kind: IdentifiedKind, *, overwrite: bool) -> None:
        self._collection = collection
        self._kind = kind
        self._overwrite = overwrite
        self._schema = schema_of(kind.collection)
        self._fields: frozenset[str] = frozenset(self._schema.validator["properties"])
        self._outcome = Imported()

    async def run(self, rows: Mapping[Key, BulkRow], now: ClockReading) -> Imported:
        given: list[_Given] = []
        for key, row in rows.items():
            try:
                document = imported(self._kind.to_document(row, now), row)
            except StorageError as error:
                self._outcome.refused.append(RefusedRow(key, str(error)))
                continue
            size = size_or_refusal(key, document)
            if isinstance(size, RefusedRow):
                self._outcome.refused.append(size)
            else:
                given.append(_Given(key, row, document, size))
        for part in parts(given, lambda one: one.size_bytes):
            await self._import_part(part)
        return self._outcome

    async def _import_part(self, given: list[_Given]) -> None:
        conflicts: dict[Key, RefusedRow] = {}
        for _ in range(_ROUNDS):
            replaced = self._outcome.replaced
            given, conflicts = await self._try(given)
            if not given or self._outcome.replaced == replaced:
                break
        self._outcome.refused += conflicts.values()

    async def _try(self, given: list[_Given]) -> tuple[list[_Given], dict[Key, RefusedRow]]:
        """Import the rows; those that another row is in the way of, and why."""
        taken = await self._with_taken_emails(given)
        conflicts = dict(taken)
        free = [one for one in given if one.key not in taken]
        failures = await self._collection.insert_each([one.document for one in free]) if free else {}
        self._outcome.stored += len(free) - len(failures)
        duplicates: list[_Given] = []
        for position, error in failures.items():
            one = free[position]
            if not isinstance(error, DuplicateKeyError):
                self._outcome.refused.append(one.refused(error))
                continue
            duplicates.append(one)
            conflicts[one.key] = one.conflict(self._kind.reason_of(error.keys))
        await self._undo_duplicate_emails(free, failures, conflicts)
        stored = await self._stored([*duplicates, *(one for one in given if one not in free)])
        for one in given:
            if one.document["_id"] in stored:
                del conflicts[one.key]
                refusal = await self._compare(one, stored[one.document["_id"]], taken.get(one.key))
                if refusal is not None:
                    conflicts[one.key] = refusal
        return [one for one in given if one.key in conflicts], conflicts

    async def _stored(self, given: list[_Given]) -> dict[str, Document]:
        ids = [one.document["_id"] for one in given]
        if not ids:
            return {}
        found = await self._collection.find(by_ids(ids), sort=_BY_ID, limit=len(ids))
        return {document["_id"]: document for document in found}

    # What is here already.

    async def _compare(
        self, given: _Given, stored: Document | None, obstacle: RefusedRow | None
    ) -> RefusedRow | None:
        """Leave or replace a stored document; why another one is in the way, if one is."""
        while stored is not None:
            try:
                row = self._kind.to_row(stored)
            except READ_ERRORS:
                error = corruption_of(self._collection.name, self._schema, stored)
                self._outcome.refused.append(given.refused(error))
                return None
            if row_digest(row) == row_digest(given.row):
                self._outcome.unchanged += 1
                return None
            if not (self._overwrite or is_as_imported(stored, row)):
                self._outcome.changed_here.append(given.key)
                return None
            if obstacle is not None:
                return obstacle
            try:
                if await self._replace(stored, given.document):
                    self._outcome.replaced += 1
                    return None
            except DuplicateKeyError as error:
                return given.conflict(self._kind.reason_of(error.keys))
            stored = await self._collection.find_one(by_ids([given.document["_id"]]))
        return given.conflict("it was deleted here meanwhile")

    async def _replace(self, stored: Document, document: Document) -> bool:
        """Replace what was read, unless it has changed since; fields of other programs stay."""
        other_fields = {name: value for name, value in stored.items() if name not in self._fields}
        query = changeable(queries.as_read(stored, self._kind.compared))
        return bool(await self._collection.replace_one(query, {**other_fields, **document}))

    # Emails that differ in case only, which no index compares.

    async def _with_taken_emails(self, given: list[_Given]) -> dict[Key, RefusedRow]:
        """The accounts whose email another account has, in whatever case."""
        if self._kind.collection != USERS:
            return {}
        owners = await self._owners_of_emails(given)
        taken: dict[Key, RefusedRow] = {}
        first: dict[str, str] = {}
        for one in given:
            user_id, email = one.document["_id"], one.document[EMAIL_KEY]
            is_second = first.setdefault(email, user_id) != user_id
            if is_second or owners.get(email, set()) - {user_id}:
                taken[one.key] = one.conflict(EMAIL_TAKEN)
        return taken

    async def _undo_duplicate_emails(
        self, given: list[_Given], failures: Mapping[int, object], conflicts: dict[Key, RefusedRow]
    ) -> None:
        """Remove what was just stored if another account got its email in another case at the same time."""
        if self._kind.collection != USERS:
            return
        stored = [one for position, one in enumerate(given) if position not in failures]
        risky = [one for one in stored if one.document[EMAIL_KEY] != one.document["email"]]
        owners = await self._owners_of_emails(risky) if risky else {}
        for one in risky:
            if owners.get(one.document[EMAIL_KEY], set()) - {one.document["_id"]}:
                query = queries.as_read(one.document, self._kind.compared)
                if await self._collection.delete_one(query):
                    self._outcome.stored -= 1
                    conflicts[one.key] = one.conflict(EMAIL_TAKEN)

    async def _owners_of_emails(self, given: list[_Given]) -> dict[str, set[str]]:
        keys = [one.document[EMAIL_KEY] for one in given]
        found: dict[str, set[str]] = {}
        batches = self._collection.stream(
            queries.users_by_email_keys(keys), projection=[EMAIL_KEY], batch_size=len(keys) + 1
        )
        async for batch in batches:
            for document in batch:
                found.setdefault(document[EMAIL_KEY], set()).add(document["_id"])
        return found
