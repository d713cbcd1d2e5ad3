"""Gives a key to the accounts that have none: those that an older release stored, with emails of any case.

A setup does it, in small batches, while the database is used: it can be interrupted anywhere and repeated,
also by several processes at once. Accounts that this release stores have their keys from the start.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from . import queries
from .documents.encoding import Document
from .documents.users import ascii_email_keys_update, email_key_update
from .drivers.collection import Collection

logger = logging.getLogger(__name__)

BATCH_ACCOUNTS: Final = 500


async def fill_email_keys(users: Collection, validator: Document) -> int:
    """The number of accounts that got their keys from this process.

    A document that `validator` refuses is left as it is: the server would refuse its update.
    """
    filled, last = 0, None
    while True:
        query = queries.users_without_email_key_after(last)
        batch = await users.find(query, sort=(("_id", 1),), limit=BATCH_ACCOUNTS, projection=["email"])
        if not batch:
            break
        filled += await _fill(users, batch, validator)
        last = batch[-1]["_id"]
    if filled:
        logger.info(
            "%s: %d accounts of an older release can now be found by their email in any case",
            users.name,
            filled,
            extra={"operation": "setup", "collection": users.name},
        )
    return filled


async def _fill(users: Collection, batch: list[Document], validator: Document) -> int:
    in_ascii = [account["_id"] for account in batch if account["email"].isascii()]
    filled = 0
    if in_ascii:
        query = queries.users_to_be_keyed(in_ascii, validator)
        filled += await users.update_many(query, ascii_email_keys_update())
    for account in batch:
        email: Any = account["email"]
        if not email.isascii():
            query = queries.users_to_be_keyed([account["_id"]], validator)
            filled += await users.update_many(query, email_key_update(email))
    return filled
