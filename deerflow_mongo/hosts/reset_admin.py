"""`python -m deerflow_mongo.hosts.reset_admin`: a new password for an account whose password is lost.

DeerFlow's command of that name works on SQL only. As there, the password is written to a file that only the
owner of the process can read, never to the terminal; every session of the account ends, and the next login
asks for a new email and password.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contract.errors import StorageError
from .deerflow import import_deerflow
from .gateway import open_storage

_PASSWORD_BYTES = 16


async def reset_admin(email: str | None = None) -> tuple[str, Path]:
    """Give the account, by default the oldest admin's, a new password.

    Returns its email, and the file with both. Raises `LookupError` if there is no such account.
    """
    from .adapters.users import UserRepositoryAdapter  # needs DeerFlow, which `--help` does not

    async with open_storage() as storage:
        users: Any = UserRepositoryAdapter(storage.users)
        if email is None:
            admins = await storage.users.list_by_role("admin", limit=1)
            user = await users.get_user_by_id(admins[0]["user_id"]) if admins else None
        else:
            user = await users.get_user_by_email(email)
        if user is None:
            raise LookupError(f"there is no account {email!r}" if email else "there is no admin account")
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        user.password_hash = await import_deerflow("app.gateway.auth.password").hash_password_async(password)
        user.token_version += 1
        user.needs_setup = True
        await users.update_user(user)
        write: Any = import_deerflow("app.gateway.auth.credential_file").write_initial_credentials
        return user.email, write(user.email, password, label="reset")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when it is done, 1 with a sentence on standard error when not."""
    parser = argparse.ArgumentParser(
        prog="python -m deerflow_mongo.hosts.reset_admin",
        description="Give an account of DeerFlow a new password, which is written to a file.",
    )
    parser.add_argument("--email", help="the account; by default the oldest admin's")
    given = parser.parse_args(arguments)
    try:
        email, file = asyncio.run(reset_admin(given.email))
    except (LookupError, StorageError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(
        f"new password for {email}: see {file}\nits next login asks for a new email and password\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
